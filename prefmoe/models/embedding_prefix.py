"""Embedding to prefix: a user is one vector that nobody trains, and a small network says it in soft tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import EmbeddingPrefixMethod
from prefmoe.data.benchmark import Benchmark, User
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import Method
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import UserTokens, trained_rows
from prefmoe.models.growing import with_rows
from prefmoe.models.lora import pooled_lora
from prefmoe.models.prefix import PrefixHook


class EmbeddingPrefix(Method, settings=EmbeddingPrefixMethod):
    """Embedding-to-Prefix (E2P: Huber et al. 2025, arXiv 2505.17051): p_u = MLP(e_u) in front of a frozen model.

    e_u is fixed, the MLP is all that is trained and everybody's: who was never trained on is served like anybody.

    Departures: there may be more tokens than the paper's one, and a LoRA beside them that everybody shares
    (``pooled_rank``; the paper's model is frozen); the paper's vectors come from what a service knows of its users'
    behaviour, here e_u is the user's eight anchors (name, picture, description, facets; PrefMoE's, of the frozen
    backbone) side by side, each dimension centred and scaled by the trained users. The tokens are in units of the word
    embeddings' rms.
    """

    token_controls = ("zero_prefix",)
    kept = ("vectors", "centre", "spread")

    def __init__(self, config: EmbeddingPrefixMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=config.tokens, **options)
        self.pooled = pooled_lora(backbone, config)
        vectors = self._vectors(list(benchmark.users.values()))
        known = vectors[trained_rows(benchmark, backbone.device)]
        self.register_buffer("vectors", vectors, persistent=False)  # (U, 8 H)
        self.register_buffer("centre", known.mean(0), persistent=False)
        spread = known.std(0, correction=0)
        typical = spread.square().mean().sqrt().clamp_min(1e-6)  # for dimensions in which nobody differs
        self.register_buffer("spread", torch.where(spread > 1e-3 * typical, spread, typical), persistent=False)
        self.network = nn.Sequential(
            nn.Linear(vectors.shape[1], config.width),
            nn.GELU(),
            nn.Linear(config.width, config.tokens * backbone.hidden_size),
        ).to(backbone.device)
        self.rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
        self.prefix = PrefixHook(backbone.embed_tokens)

    def _vectors(self, users: list[User]) -> Tensor:
        return encode_users(self.backbone, users, "embedding")[0].flatten(1)

    def tokens(self, rows: Tensor) -> Tensor:
        """(B, tokens, H) the soft tokens of users, by row; rows (B,)."""
        said = self.network((self.vectors[rows] - self.centre) / self.spread)
        return self.rms * said.view(len(rows), self.prefix_length, -1)

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        shown = controlled_tokens(UserTokens(self.tokens(batch.user)), batch.control)
        with self.prefix.active(shown.prefix, batch.prefix_mask):
            yield

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"network": (list(self.network.parameters()), self.config.lr), **self.pooled}

    def _encode_user(self, user: User) -> Tensor:
        return self._vectors([user])

    def _append_user(self, groups: list[int], encoded: Tensor | None) -> None:
        new = self.vectors.new_zeros(1, self.vectors.shape[1]) if encoded is None else encoded
        self.vectors = with_rows(self, "vectors", new)
