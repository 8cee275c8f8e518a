"""Raters of pictures: a backbone reads what a user liked and disliked, and says how much the user would like a target.

Learning User Preferences for Image Generation Models (arXiv 2508.08220): M+ and M- are the logits of "+" and "-" behind
a target, Q = softmax(M+, M-)[+]. Latent preference prototypes are learned vectors P in front of the history,
x' = [P; x], which all tokens reach by ordinary attention. B = sessions, K = targets, E = rated pictures of a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.histories import (
    LABELS,
    HistoryBatch,
    HistoryCollator,
    Session,
    hidden_states,
    label_ids,
    label_logits,
    picture_features,
)
from prefmoe.backbones.pictures import stack_pictures
from prefmoe.config import PrototypesMethod, RaterMethod, ZeroShotMethod
from prefmoe.data.choices import ChoiceBenchmark
from prefmoe.losses import pairwise_preference
from prefmoe.models import saved
from prefmoe.models.base import Method, MethodError
from prefmoe.models.lora import install_lora
from prefmoe.models.prefix import PrefixHook


@dataclass(frozen=True)
class RatedBatch:
    """Sessions whose targets are the two pictures of choices, the liked one first: 2k and 2k + 1 belong together.

    Attributes:
        histories: the sessions as the backbone reads them.
        ratings: (B, E) long, 0 where an entry of the history was liked, 1 where it was not; -1 where there is none.
    """

    histories: HistoryBatch
    ratings: Tensor

    def __len__(self) -> int:
        return len(self.histories)

    def to(self, device: str | torch.device) -> RatedBatch:
        """The batch with its tensors on a device."""
        return replace(self, histories=self.histories.to(device), ratings=self.ratings.to(device))


class Rater(Method):
    """A backbone that rates targets after a history; what the pictures look like is computed once for each.

    Args:
        config, backbone, seed: as of `Method`.
        benchmark: of choices; a rater knows its users by their histories alone.
    """

    config: RaterMethod
    benchmark: ChoiceBenchmark
    users_need_training = "a user is known by a history of rated pictures, and is asked about without being added"

    def __init__(self, config: RaterMethod, backbone: Backbone, benchmark: ChoiceBenchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        label_ids(backbone)
        self._seen: dict[Path, Tensor] = {}

    def _make_collator(self, **options: Any) -> HistoryCollator:
        return HistoryCollator(
            self.backbone, prefix_length=self.prefix_length, prompts=self.config.prompts,
            max_prompt_tokens=self.config.max_prompt_tokens, pixels=False,
        )  # fmt: skip

    @property
    def _own_users(self) -> saved.SavedUsers:
        """Nobody: an adapter is no one user's."""
        return saved.identify(())

    @property
    def _learns_to_see(self) -> bool:
        """Whether what a picture looks like changes from step to step."""
        return self.training and any(p.requires_grad for p in self.backbone.vision_tower.parameters())

    def train(self, mode: bool = True) -> Rater:
        """What was seen before is forgotten: training changes it where the vision encoder learns."""
        self._seen.clear()
        return super().train(mode)

    def collate(self, sessions: Sequence[Session]) -> RatedBatch:
        """Sessions as a batch. Raises CollationError, PromptError naming the session."""
        ratings = [torch.tensor([LABELS.index(entry.label) for entry in one.history]) for one in sessions]
        padded = nn.utils.rnn.pad_sequence(ratings, batch_first=True, padding_value=-1)
        return RatedBatch(self.collator(sessions), padded.long())

    def features(self, files: Sequence[Path]) -> Tensor:
        """What the language model sees of U pictures, (U, L, H); kept, unless the vision encoder is learning."""
        known = {} if self._learns_to_see else self._seen
        new = [file for file in files if file not in known]
        if new:
            prepared = stack_pictures([self.collator.prepared(file) for file in new])
            inputs = {key: value.to(self.backbone.device) for key, value in prepared.items()}
            with torch.set_grad_enabled(self._learns_to_see):
                known.update(zip(new, picture_features(self.backbone, inputs), strict=True))
        return torch.stack([known[file] for file in files])

    def hidden(self, batch: HistoryBatch) -> Tensor:
        """The last hidden states, (B, T, H)."""
        return hidden_states(self.backbone, batch, features=self.features(batch.files))

    def rate(self, batch: HistoryBatch) -> Tensor:
        """M+ and M- of every target, (B, K, 2)."""
        return label_logits(self.backbone, self.hidden(batch), batch.target)


class ZeroShot(Rater, settings=ZeroShotMethod):
    """The backbone as it is: nobody told it what + and - mean."""


class Prototypes(Rater, settings=PrototypesMethod):
    """The paper's method and its ablations.

    Stage 1 trains LoRA on the language model and the vision encoder; stage 2 (``begins_with``) keeps both as they are
    and trains the prototypes alone. They start at the scale of word embeddings.
    """

    config: PrototypesMethod
    auxiliary = frozenset({"plus", "minus"})

    def __init__(
        self, config: PrototypesMethod, backbone: Backbone, benchmark: ChoiceBenchmark, **options: Any
    ) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=config.prototypes, **options)
        shape = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
        self.stage1 = install_lora(backbone, None, **shape)
        if config.vision:
            backbone.vision_tower.requires_grad_(True)
            self.stage1 += list(backbone.vision_tower.parameters())
        self.prototypes: nn.Parameter | None = None
        self.prefix = PrefixHook(backbone.embed_tokens)
        if config.prototypes:
            rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
            drawn = rms * torch.randn(config.prototypes, backbone.hidden_size)
            self.prototypes = nn.Parameter(drawn.to(backbone.device))
            for parameter in self.stage1:
                parameter.requires_grad_(False)

    @contextmanager
    def context(self, batch: RatedBatch | HistoryBatch) -> Iterator[None]:
        """Prototypes are in front of the batch's histories until the backward pass is done."""
        if self.prototypes is None:
            yield
            return
        histories = batch.histories if isinstance(batch, RatedBatch) else batch
        with self.prefix.active(self.prototypes.expand(len(histories), -1, -1), histories.prefix_mask):
            yield

    def rate(self, batch: HistoryBatch) -> Tensor:
        """M+ and M- of every target, (B, K, 2)."""
        with self.context(batch):
            return super().rate(batch)

    def training_losses(self, batch: RatedBatch) -> dict[str, Tensor]:
        """Terms by name: answer (L_base), and plus and minus (L+, L-) where the settings have them."""
        hidden = self.hidden(batch.histories)
        logits = label_logits(self.backbone, hidden, batch.histories.target).float()
        liked, disliked = logits[:, 0::2], logits[:, 1::2]
        there = batch.histories.target[:, 1::2] >= 0
        if self.config.objective == "ratings":
            said, rated = label_logits(self.backbone, hidden, batch.histories.rated).float(), batch.ratings >= 0
            said = torch.cat([said[rated], liked[there], disliked[there]])
            truth = batch.ratings.new_tensor([0, 1]).repeat_interleave(there.sum())
            return {"answer": cross_entropy(said, torch.cat([batch.ratings[rated], truth]))}
        liked, disliked = liked[there], disliked[there]
        base, plus, minus = pairwise_preference(liked[:, 0], disliked[:, 0], liked[:, 1], disliked[:, 1])
        return {"answer": base, **({"plus": plus, "minus": minus} if self.config.auxiliary else {})}

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        if self.prototypes is not None:
            return {"prototypes": ([self.prototypes], self.config.lr_prototypes)}
        tower = set(map(id, self.backbone.vision_tower.parameters()))
        parts = {"lora": [p for p in self.stage1 if id(p) not in tower]}
        if self.config.vision:
            parts["vision"] = [p for p in self.stage1 if id(p) in tower]
        return {name: (parameters, self.config.lr) for name, parameters in parts.items()}

    def _buffers_to_save(self) -> dict[str, Tensor]:
        """In stage 2 what stage 1 has trained, so that an adapter is whole."""
        if self.prototypes is None:
            return {}
        kept = set(map(id, self.stage1))
        return {name: p for name, p in self.named_parameters() if id(p) in kept}

    @torch.no_grad()
    def begin_with(self, folder: Path) -> None:
        """Takes what a finished stage 1 has trained, from its saved method. Raises MethodError if a file is damaged, or
        was saved by another method than one with just these parts."""
        expected = self._buffers_to_save()
        try:
            found = saved.read_tensors(folder / saved.WEIGHTS_FILE, expected)
        except ValueError as error:
            raise MethodError(str(error)) from error
        for name, tensor in expected.items():
            tensor.copy_(found[name])
        self._seen.clear()
