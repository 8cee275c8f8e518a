"""TG-LLaVA: the question guides what is read from the picture, by a feature mask and by detail latents."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.backbones.pictures import load_pictures
from prefmoe.backbones.tower_layout import nearest, places, quarter_states
from prefmoe.config import TGLLaVAMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.prompts import Wording
from prefmoe.models.added_tokens import AddedTokens
from prefmoe.models.base import Method, MethodError
from prefmoe.models.lora import adapt


class TGLLaVA(Method, settings=TGLLaVAMethod):
    """TG-LLaVA (Yan et al. 2025, arXiv 2409.09564, Section 3): text-guided feature mask and detail perceiver.

    With F the vision tower's output, F_t the question's text features, F_t^p their mean, and L_m and L_d latents:

        M_t = FFN(A_cross(A_self(L_m), F_t^p)),   F' = F + Z(M_t)   before the projector, Z zero-initialised
        T_d = MLP(P_image(P_text(L_d, F_t), F_p))                   tokens behind the picture's own

    P are perceiver layers, F_p the tower's output for the quarters of the picture, each at the tower's full
    resolution. Untrained, the projector receives exactly what it would without the mask.

    Departures: text features are the backbone's input embeddings (pooled: their mean), since no backbone here
    has CLIP's text tower; where the tower's grid is not side x side, a place takes the nearest query, and
    quarters are read at their nearest places; the latents stand behind the picture as added tokens, so that
    on Qwen they are not inside its vision markers; a picture that the backbone cuts itself gives one mask to
    all crops, and whole quarters to the perceiver; LoRA in the language model in the place of full
    fine-tuning, the projector stays frozen, and there is no pre-training of the modules on captions.
    """

    def __init__(self, config: TGLLaVAMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        words = tuple(f"<detail{k}>" for k in range(config.latents))
        wording = Wording(after_picture="".join(words), added=words)
        super().__init__(config, backbone, benchmark, wording=wording, **options)
        self.added = AddedTokens(backbone, words)
        self.adapted = adapt(backbone, config)
        any_picture = next(iter(benchmark.examples.values())).image
        width, hidden = self._patches([any_picture]).shape[-1], backbone.hidden_size
        self.mask = FeatureMask(hidden, width, config.side).to(backbone.device)
        self.details = DetailPerceiver(hidden, width, config.side, config.latents).to(backbone.device)
        self._guidance: tuple[Tensor, dict[str, Tensor]] | None = None
        backbone.projector.register_forward_pre_hook(self._guide)

    # --- training and asking

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """Mask and details of the batch's questions; neither where only the small talk before is read."""
        if "pixel_values" not in batch.inputs:
            yield
            return
        ids = batch.inputs["input_ids"]
        text = batch.query_mask & (ids != self.backbone.image_token_id) & ~self.added.contains(ids)  # (B, T)
        words = self.backbone.embed_tokens(ids.masked_fill(~text, self.backbone.placeholder_id)).float()  # (B, T, H)
        pooled = torch.einsum("bth,bt->bh", words, text.to(words)) / text.sum(1, keepdim=True)
        details = self.details(words, text, self._patches([example.image for example in batch.examples]))
        self._guidance = self.mask(pooled), batch.inputs
        try:
            with self.added.active(details):
                yield
        finally:
            self._guidance = None

    def _guide(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """F' = F + Z(M_t), each place of a picture with its query's part of the mask."""
        cache = self.backbone.vision_cache
        if self._guidance is None or (cache is not None and cache.filling):
            return None
        (mask, inputs), states, side = self._guidance, args[0], self.config.side
        layout = places(self.backbone, inputs, states)
        if len(layout) != len(mask):
            raise MethodError(f"expected one picture per question, found {len(layout)} for {len(mask)}")
        query = torch.empty(states.shape[:-1].numel(), dtype=torch.long)
        for picture, crops in enumerate(layout):
            for where in crops:
                row, column = (nearest(size, side) for size in where.shape)
                query[where] = picture * side**2 + row[:, None] * side + column
        return (states + mask.flatten(0, 1)[query.to(mask.device)].view_as(states).to(states), *args[1:])

    def _patches(self, paths: Sequence[Path]) -> Tensor:
        """What the tower sees in the quarters of each picture: (B, 4 side^2, D)."""
        side, memory = self.config.side, {}
        if self.collator.cache:
            memory = self.backbone.encodings.quarters[side]
        if unknown := list(dict.fromkeys(path for path in paths if path not in memory)):
            states = quarter_states(self.backbone, load_pictures(unknown), side).to(self.backbone.device)
            memory |= dict(zip(unknown, states.unbind(), strict=True))
        return torch.stack([memory[path] for path in paths])

    # --- parameters

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        guidance = [*self.mask.parameters(), *self.details.parameters()]
        return {**self.adapted, "guidance": (guidance, self.config.lr_guidance)}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "rank": self.config.rank, "latents": self.config.latents}


class FeatureMask(nn.Module):
    """Z(M_t): side^2 learned queries look at each other, then at the pooled question; one Q-Former layer. ``text``: H
    of the question's features; ``width``: D of the tower's."""

    def __init__(self, text: int, width: int, side: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(1, side**2, width))
        self.read = nn.Linear(text, width)
        self.among, self.across = (_attention(width) for _ in range(2))
        self.feed_forward = _feed_forward(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.zero = nn.Linear(width, width)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, question: Tensor) -> Tensor:
        """question (B, H) -> mask (B, side^2, D)."""
        text, x = self.read(question)[:, None], self.queries  # (B, 1, D), (1, side^2, D)
        x = self.norms[0](x + self.among(x, x, x, need_weights=False)[0]).expand(len(text), -1, -1)
        x = self.norms[1](x + self.across(x, text, text, need_weights=False)[0])
        return self.zero(self.norms[2](x + self.feed_forward(x)))


class DetailPerceiver(nn.Module):
    """T_d: learned latents look at the question's words, then at the quarters; L tokens come out."""

    def __init__(self, text: int, width: int, side: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(0.02 * torch.randn(1, latents, width))
        self.place = nn.Parameter(0.02 * torch.randn(4 * side**2, width))
        self.read_text, self.read_patches = nn.Linear(text, width), _feed_forward(width, width)
        self.text, self.image = PerceiverLayer(width), PerceiverLayer(width)
        self.norm, self.project = nn.LayerNorm(width), _feed_forward(width, text)

    def forward(self, words: Tensor, mask: Tensor, patches: Tensor) -> Tensor:
        """words (B, T, H), counted where mask (B, T) is True; patches (B, 4 side^2, D) -> (B, L, H)."""
        latents = self.latents.expand(len(words), -1, -1)
        latents = self.text(latents, self.read_text(words), mask)
        latents = self.image(latents, self.read_patches(patches + self.place))
        return self.project(self.norm(latents))


class PerceiverLayer(nn.Module):
    """Latents look at a context and at themselves, then pass a feed-forward block; normalised before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention, self.feed_forward = _attention(width), _feed_forward(width, width)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """latents (B, L, D), context (B, T, D), mask (B, T) True where the context counts -> (B, L, D)."""
        queries = self.norms[0](latents)
        keys = torch.cat([self.norms[1](context), queries], dim=1)
        ignored = None if mask is None else nn.functional.pad(~mask, (0, latents.shape[1]))
        x = latents + self.attention(queries, keys, keys, key_padding_mask=ignored, need_weights=False)[0]
        return x + self.feed_forward(self.norms[2](x))


def _attention(width: int) -> nn.MultiheadAttention:
    """Heads of 64 channels, as far as the width goes."""
    return nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)


def _feed_forward(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, out))
