"""What a rater knows of a user, layer by layer: its states behind pictures that the user liked and disliked.

The state of a picture is the hidden state at its last token, which predicts the rating, read behind a history as in
prefmoe.models.raters. N histories or sessions, K targets, L decoder layers, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prefmoe.backbones.histories import Rated, Session, layer_states
from prefmoe.data.choices import Choice, ChoiceBenchmark, HistoryError
from prefmoe.models.lora import merged_lora
from prefmoe.models.raters import Rater
from prefmoe.running.choices import pictures, told

BATCH = 16
"""Histories that are read at once."""


@dataclass(frozen=True)
class History:
    """Which of a user's choices are told.

    Attributes:
        draw: tells the histories of one user apart. without: choices that are not told, nor any picture of theirs.
    """

    user: str
    n_ref: int
    draw: int
    without: tuple[Choice, ...] = field(default=(), compare=False)

    def entries(self, benchmark: ChoiceBenchmark) -> tuple[Rated, ...]:
        """The rated pictures. Raises HistoryError if the user has no liked picture, or too few choices."""
        if self.n_ref < 1:
            raise HistoryError(f"user {self.user!r} without liked pictures: expected a history of at least one choice")
        return told(benchmark, self.user, self.n_ref, self.draw, self.without)

    def liked(self, benchmark: ChoiceBenchmark) -> Path:
        """The first liked picture, of which e_img is made."""
        return next(entry.picture for entry in self.entries(benchmark) if entry.label == "+")


@torch.inference_mode()
def target_states(rater: Rater, sessions: Sequence[Session]) -> list[Tensor]:
    """The states of every session's targets in all layers: for each session (K, L, H), on the CPU."""
    found: list[Tensor] = []
    rater.eval()
    benchmark = rater.benchmark
    users = {name for name, owned in benchmark.references.items() if owned}
    asked = {file for one in sessions for file, _ in one.targets}
    rater.look_at(pictures(benchmark, users) | asked)
    with merged_lora(rater.model):
        for start in range(0, len(sessions), BATCH):
            some = sessions[start : start + BATCH]
            batch = rater.collator(some).to(rater.backbone.device)
            with rater.context(batch):
                layers = torch.stack(layer_states(rater.backbone, batch, features=rater.features(batch.files)), 2)
            for row, one in enumerate(some):
                found.append(layers[row, batch.target[row, : len(one.targets)]].float().cpu())
    return found


def user_states(rater: Rater, histories: Sequence[History]) -> Tensor:
    """What the rater knows of a user behind a whole history: mean states of its liked and of its disliked pictures,
    each asked about once more behind it. (N, 2, L, H), liked first. Raises HistoryError: see `History.entries`."""
    told_of = [one.entries(rater.benchmark) for one in histories]
    sessions = [Session(entries, tuple((e.picture, e.prompt) for e in entries)) for entries in told_of]
    means = []
    for entries, states in zip(told_of, target_states(rater, sessions), strict=True):
        is_liked = torch.tensor([entry.label == "+" for entry in entries])
        means.append(torch.stack([states[is_liked].mean(0), states[~is_liked].mean(0)]))
    return torch.stack(means)
