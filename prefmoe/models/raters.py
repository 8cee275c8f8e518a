"""Raters of pictures: a backbone reads what a user liked and disliked, and says how much the user would like a target.

Learning User Preferences for Image Generation Models (arXiv 2508.08220): M+ and M- are the logits of "+" and "-" behind
a target, Q = softmax(M+, M-)[+]. Latent preference prototypes are learned vectors P in front of the history,
x' = [P; x], which all tokens reach by ordinary attention. B = sessions, K = targets, E = rated pictures of a history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import OnDevice
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
from prefmoe.models.base import Method
from prefmoe.models.lora import install_lora
from prefmoe.models.prefix import PrefixHook


@dataclass(frozen=True)
class RatedBatch(OnDevice):
    """Sessions whose targets are the two pictures of choices, the liked one first: 2k and 2k + 1 belong together.

    Attributes:
        histories: the sessions as the backbone reads them.
        choices: (2, N) long: the session of each choice, and the place of its liked picture among the targets.
        entries: (2, M) long: the session of each rated picture of a history, and its place there.
        ratings: (M,) long, 0 where that picture was liked, 1 where it was not.
    """

    histories: HistoryBatch
    choices: Tensor
    entries: Tensor
    ratings: Tensor

    def __len__(self) -> int:
        return len(self.histories)


class Rater(Method):
    """A backbone that rates targets after a history; what the pictures look like is computed once for each.

    Args:
        config, backbone, seed: as of `Method`.
        benchmark: of choices; a rater knows its users by their histories alone.
    """

    config: RaterMethod
    benchmark: ChoiceBenchmark
    users_need_training = "a user is known by a history of rated pictures, and is asked about without being added"
    _own_users = saved.identify(())  # nobody: an adapter is no one user's

    def __init__(self, config: RaterMethod, backbone: Backbone, benchmark: ChoiceBenchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        label_ids(backbone)
        self._seen: dict[Path, Tensor] = {}

    def _make_collator(self, *, cache: bool, **options: Any) -> HistoryCollator:
        self._keeps_seen = cache
        return HistoryCollator(
            self.backbone, prefix_length=self.prefix_length, prompts=self.config.prompts,
            max_prompt_tokens=self.config.max_prompt_tokens, pixels=False,
        )  # fmt: skip

    @property
    def _learns_to_see(self) -> bool:
        """Whether what a picture looks like changes from step to step."""
        return self.training and self._tower_learns

    @property
    def _tower_learns(self) -> bool:
        return any(p.requires_grad for p in self.backbone.vision_tower.parameters())

    def train(self, mode: bool = True) -> Rater:
        """What was seen before is forgotten where training changes it."""
        if mode != self.training and self._tower_learns:
            self._seen.clear()
        return super().train(mode)

    def collate(self, sessions: Sequence[Session]) -> RatedBatch:
        """Sessions as a batch. Raises CollationError, PromptError naming the session."""
        choices = [(row, 2 * k) for row, one in enumerate(sessions) for k in range(len(one.targets) // 2)]
        entries = [(row, k) for row, one in enumerate(sessions) for k in range(len(one.history))]
        ratings = [LABELS.index(entry.label) for one in sessions for entry in one.history]
        places = [torch.tensor(some, dtype=torch.long).reshape(-1, 2).T for some in (choices, entries)]
        return RatedBatch(self.collator(sessions), *places, torch.tensor(ratings, dtype=torch.long))

    @torch.inference_mode(False)
    @torch.no_grad()
    def look_at(self, files: Iterable[Path], *, batch_size: int = 64) -> None:
        """Sees these pictures before they are asked about, and keeps that, in an order that depends on them alone.

        What a tower says of a picture depends on the others beside it in the last bits: a run that goes on would
        otherwise differ from one that was never interrupted. Nothing is done where nothing is kept.
        """
        names = sorted(set(files))
        if not self._keeps_seen or self._learns_to_see or all(name in self._seen for name in names):
            return
        for start in range(0, len(names), batch_size):
            some = names[start : start + batch_size]
            self._seen.update(zip(some, self._look(some), strict=True))

    def _look(self, files: Sequence[Path]) -> Tensor:
        prepared = stack_pictures([self.collator.prepared(file) for file in files])
        return picture_features(self.backbone, {key: value.to(self.backbone.device) for key, value in prepared.items()})

    def features(self, files: Sequence[Path]) -> Tensor:
        """What the language model sees of U pictures, (U, L, H): as `look_at` saw them, or all of them anew."""
        if not self._learns_to_see and all(file in self._seen for file in files):
            return torch.stack([self._seen[file] for file in files])
        with torch.set_grad_enabled(self._learns_to_see):
            return self._look(files)

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
        self.stage1 = install_lora(backbone, None, **shape, targets=config.targets)
        if config.vision:
            self.stage1 += _learning(backbone.vision_tower, backbone.dtype)
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
        return self._losses(self.hidden(batch.histories), batch)

    def _losses(self, hidden: Tensor, batch: RatedBatch) -> dict[str, Tensor]:
        logits = label_logits(self.backbone, hidden, batch.histories.target).float()
        row, place = batch.choices
        liked, disliked = logits[row, place], logits[row, place + 1]  # (N, 2)
        if self.config.objective == "ratings":
            said = label_logits(self.backbone, hidden, batch.histories.rated).float()[tuple(batch.entries)]
            truth = torch.cat([batch.ratings, torch.zeros_like(row), torch.ones_like(row)])
            return {"answer": cross_entropy(torch.cat([said, liked, disliked]), truth)}
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

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"begins_with": self.config.begins_with}

    def begin_with(self, folder: Path) -> None:
        """Takes what a finished stage 1 has trained, from its saved method. Raises MethodError if a file is damaged, or
        was saved by another method than one with just these parts."""
        self._load_tensors(folder / saved.WEIGHTS_FILE, self._buffers_to_save())
        self._seen.clear()


def _learning(tower: nn.Module, dtype: torch.dtype) -> list[nn.Parameter]:
    """Lets a vision encoder learn, in float32 whatever the precision of what is behind it: small steps get lost."""
    tower.requires_grad_(True)
    if dtype != torch.float32:
        forward = tower.float().forward

        def in_float32(*args: Any, **named: Any) -> Any:
            seen = forward(*args, **{key: v.float() if key == "pixel_values" else v for key, v in named.items()})
            seen.last_hidden_state = seen.last_hidden_state.to(dtype)
            return seen

        tower.forward = in_float32
    return list(tower.parameters())
