"""What was answered: reads an edition's runs, scores every answer once, and computes each estimate once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import pairs, probabilities, statistics
from prefmoe.config import Edition, Method, MethodSettings, is_trained, run_folder
from prefmoe.system.run_files import RunFileError, read_predictions

REFERENCE = "Reference"
"""Type of computed floors and ceilings; `type_of` gives those of methods."""

NO_BACKBONE = "none"
"""What the backbone column says for a reference, which has none."""


class TableError(ValueError):
    """Runs from which a table cannot be made; the message names the runs and what was expected."""


def check_seeds(counts: Mapping[str, int]) -> None:
    """Raises TableError if two rows, by name, have numbers of seeds that cannot be paired: neither the same nor one."""
    if len({*counts.values(), 1}) > 2:
        told = " and ".join(f"{name} has {count}" for name, count in counts.items())
        raise TableError(f"{told} seeds, which cannot be paired")


@dataclass(frozen=True)
class Answers:
    """What one method answered to the same N questions with each of S seeds.

    Attributes:
        method: label shown in tables.
        key: name in the configuration ("" for a reference).
        index: (N,) question indices, ascending.
        users: (N,) names.
        right, counted: (N, S, 5) per-question contributions to the metrics (`metrics.question_counts`).
        unread: (N, S) whether each answer could not be read.
        frames: the S scored frames.
        information: what the method is shown of a user (`MethodSettings.information`).
    """

    method: str
    key: str
    type: str
    backbone: str
    turns: int
    split: str
    index: NDArray
    users: NDArray
    right: NDArray
    counted: NDArray
    unread: NDArray
    frames: tuple[pd.DataFrame, ...]
    information: str = ""

    @classmethod
    def of(cls, copies: Sequence[pd.DataFrame], **where: Any) -> Answers:
        """Collects scored frames of the same questions; ``where``: method, key, type, backbone, turns, split
        and information."""
        counts = [metrics.question_counts(copy) for copy in copies]
        return cls(
            **where,
            index=copies[0]["index"].to_numpy(),
            users=copies[0]["name"].to_numpy(dtype=object).astype(str),
            right=np.stack([right for right, _ in counts], axis=1),
            counted=np.stack([counted for _, counted in counts], axis=1),
            unread=np.stack([metrics.unreadable(copy) for copy in copies], axis=1),
            frames=tuple(copies),
        )

    def part(self, inside: NDArray) -> Answers:
        """The answers to some of the questions, (N,) bool."""
        kept = {name: getattr(self, name)[inside] for name in ("index", "users", "right", "counted", "unread")}
        return replace(self, **kept, frames=tuple(frame[inside] for frame in self.frames))

    @property
    def is_reference(self) -> bool:
        """Whether its frames are copies of a reference, which are not seeds."""
        return self.type == REFERENCE

    @property
    def seeds(self) -> int:
        """How many seeds stand behind an estimate."""
        return 1 if self.is_reference else len(self.frames)

    @cached_property
    def confidences(self) -> list[tuple[NDArray, NDArray]]:
        """`probabilities.confidence` of every seed."""
        return [probabilities.confidence(frame) for frame in self.frames]

    @cached_property
    def user_sums(self) -> tuple[NDArray, NDArray]:
        """Sums per user of right and counted, each (U, S, 5)."""
        _, sums = statistics.cluster_sums(np.stack([self.right, self.counted], axis=-1), self.users)
        return sums[..., 0], sums[..., 1]

    @cached_property
    def duels(self) -> dict[str, pairs.Duels]:
        """The pairs behind each AUC that the frames allow (`pairs.duels`); a reference's answers count as 0 or 1."""
        return pairs.duels(self.frames)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """`metrics.METRICS`, and the AUCs behind them: M metrics in the order of every axis of them."""
        return (*metrics.METRICS, *self.duels)

    @cached_property
    def estimates(self) -> dict[str, dict[str, float]]:
        """Every metric's mean over seeds, with its interval (`metrics.estimates`, `pairs.Duels.estimate`)."""
        aucs = zip(self.duels.items(), self.resampled.T[len(metrics.METRICS) :], strict=True)
        shares = metrics.estimates(*self.user_sums, copies=self.is_reference)
        return shares | {name: duels.estimate(drawn) for (name, duels), drawn in aucs}

    @cached_property
    def seed_values(self) -> NDArray:
        """(S, M) every metric of every seed."""
        shares = metrics.with_sensitivity(statistics.ratio(self.right.sum(0), self.counted.sum(0)))
        return np.column_stack([shares, *(duels.values for duels in self.duels.values())])

    @cached_property
    def resampled(self) -> NDArray:
        """`resample` with the same draws every time; one row of NaN when there are fewer than two users."""
        if len(np.unique(self.users)) < 2:
            return np.full((1, len(self.metrics)), np.nan)
        return self.resample()

    def resample(self, seed: int = 0) -> NDArray:
        """(B, M) every metric, mean over seeds, when users and seeds are drawn with replacement."""
        each = metrics.with_sensitivity(statistics.ratio_bootstrap(*self.user_sums, seed=seed))
        known = {"seed": seed, "copies": self.is_reference}
        aucs = (duels.resampled(**known) for duels in self.duels.values())
        return np.column_stack([statistics.over_seeds(each, **known), *aucs])

    def influences(self, member: NDArray | None = None) -> NDArray:
        """(N, M) how much each question moves every metric's mean over seeds (`statistics.influence`). ``member``: (N,)
        0/1, the questions that the metrics are computed on; all when absent. AUCs are NaN with it."""
        chosen = np.ones(len(self.index)) if member is None else member
        weight = chosen[:, None, None]
        shares = metrics.with_sensitivity(statistics.influence(self.right * weight, self.counted * weight))
        unknown = np.full(len(self.index), np.nan)
        aucs = (duels.influences() if member is None else unknown for duels in self.duels.values())
        return np.column_stack([shares.mean(axis=1), *aucs])

    def at_first(self, answers: Iterable[Answers]) -> Answers:
        """Of these, the same method's on the same backbone and split after the fewest turns of small talk."""
        own = (self.method, self.backbone, self.split)
        alike = (one for one in answers if (one.method, one.backbone, one.split) == own)
        return min(alike, key=lambda one: one.turns)

    def where(self) -> dict:
        """The columns that say whose values a row holds."""
        where = {"method": self.method, "type": self.type, "backbone": self.backbone, "turns": self.turns}
        return where | {"information": self.information}


def type_of(method: Method) -> str:
    """The type in Table 1: "NT", "FFT" or "PEFT"."""
    return method.table_type if is_trained(method) else "NT"


def finished(
    edition: Edition,
    results: str | Path,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    kind: type[MethodSettings] = MethodSettings,
    read: Callable[..., Any] | None = None,
) -> Iterator[tuple[str, str, dict[Path, Any]]]:
    """Backbone and method of every run of an edition, with the predictions of each seed by the run's folder, in the
    order of the configuration.

    Args:
        columns, optional: as of `read_predictions`. kind: only runs of such methods.
        read: what is read of a run, in the place of its predictions.

    Raises TableError, behind the last one, naming every run that is missing, incomplete or damaged.
    """
    missing: list[str] = []
    for backbone, key in edition.runs():
        if not isinstance(edition.methods[key], kind):
            continue
        frames = {}
        for seed in edition.seeds_of(key):
            folder = run_folder(results, edition.name, backbone, key, seed)
            told = {"edition": edition.name, "backbone": backbone, "method": key, "seed": seed}
            try:
                frames[folder] = (read or read_predictions)(folder, columns, optional=optional, **told)
            except RunFileError as error:
                missing.append(str(error))
        if len(frames) == len(edition.seeds_of(key)):
            yield backbone, key, frames
    if missing:
        found = f"{len(missing)} run(s) of edition {edition.name!r} are missing, incomplete or damaged"
        raise TableError("\n  ".join([f"{found}:", *missing]))


def read_runs(edition: Edition, results: str | Path, *splits: str) -> list[Answers]:
    """Scored answers of every run of an edition to some splits, in the order of the configuration.

    Every run is read once and each of its answers scored once, of all seeds that the edition has for its method.

    Raises TableError naming every run that is missing, incomplete or damaged, and any that answered other questions.
    """
    answers: list[Answers] = []
    expected: dict[tuple[str, int], NDArray] = {}
    probability = [f"p_{answer}" for answer in (*probabilities.ANSWERS, "allowed")]
    columns = [*metrics.COLUMNS, "index", "split", "turns", *probability]
    for backbone, key, found in finished(edition, results, columns, optional=pairs.TOLD):
        method = edition.methods[key]
        chosen = (frame[frame["split"].isin(splits)] for frame in found.values())
        frames = [metrics.score(frame.sort_values(["turns", "index"])) for frame in chosen]
        for split, turns in ((name, turns) for name in splits for turns in edition.evaluation.asked.get(name, ())):
            copies = [frame[(frame["split"] == split) & (frame["turns"] == turns)] for frame in frames]
            for folder, copy in zip(found, copies, strict=True):
                asked = expected.setdefault((split, turns), copy["index"].to_numpy())
                if not np.array_equal(asked, copy["index"].to_numpy()):
                    raise TableError(
                        f"{folder / 'predictions.parquet'}: {len(copy)} {split} questions with {turns} turns "
                        f"that differ from the other runs' {len(asked)}; expected the same in every run"
                    )
            if len(copies[0]):
                where = {"backbone": backbone, "type": type_of(method), "turns": turns, "split": split}
                where |= {"information": method.information_unseen if split == "unseen" else method.information}
                answers.append(Answers.of(copies, method=method.label, key=key, **where))
    return answers
