"""What can be known of choices without a model: nothing, the population's taste, a history, the group's taste, all.

They need the true tastes, as the miniature has them. F = features (values of attributes that utilities are linear in),
M = users drawn from the prior, R = references of a user, H = histories of a user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_expit, softmax

from prefmoe.analysis.answers import TableError
from prefmoe.analysis.choices import COLUMNS, Ratings
from prefmoe.data.choice_world import AGREES, GROUP_SHARES, Tastes, features
from prefmoe.data.choices import Choice, ChoiceBenchmark

CHANCE, AGREED, POPULATION, READER, GROUP, BEST = (
    "Chance", "True agreement with the prompt", "Population's choice", "Ideal reader of the history", "Group's taste",
    "Best possible",
)  # fmt: skip

KNOWN = {
    CHANCE: "nothing",
    AGREED: "whether a picture shows what the prompt names",
    POPULATION: "the mean utility of all seen users",
    READER: "the user's history, and how tastes are distributed",
    GROUP: "the mean utility of the user's taste group",
    BEST: "the user's utility",
}
"""What each reference knows of a user; all but the first know a picture's attributes."""

PRIOR_USERS = 8192
"""Users drawn from the prior for the ideal reader."""


def prior_users(tastes: Tastes, count: int = PRIOR_USERS, seed: int = 0) -> NDArray:
    """Utilities of users drawn from the distribution that the benchmark's users come from, (M, F)."""
    rng = np.random.default_rng(seed)
    return tastes.draw(rng.choice(len(GROUP_SHARES), count, p=GROUP_SHARES), rng)


def posterior_means(differences: NDArray, histories: NDArray, prior: NDArray) -> NDArray:
    """The mean utility of who made the choices of a history, under the prior and the logistic rule.

    A user of the prior counts as much as he is likely to have made the choices: prod_j sigma(u . d_j).

    Args:
        differences: (R, F) features of the liked picture less those of the disliked one.
        histories: (H, R) 1 where a choice is in a history, else 0.
        prior: (M, F) utilities drawn from the prior.

    Returns (H, F).
    """
    likelihood = log_expit(differences @ prior.T)
    return softmax(histories @ likelihood, axis=1) @ prior


def references(
    benchmark: ChoiceBenchmark,
    tastes: Tastes,
    *,
    n_refs: Sequence[int],
    draws: int,
    splits: Sequence[str] = ("test", "unseen"),
) -> dict[str, Ratings]:
    """Every reference's scores of the candidates of all targets, in the form of predictions.

    What needs no history has n_ref 0. Chance scores all alike. The ideal reader scores by posterior mean utility, of
    the same histories that methods see.

    Args:
        tastes: that the benchmark's users were drawn from: ``Tastes.of(edition.data.seed)``.
        n_refs: lengths of histories; without any there is no reader of them. draws: histories of each length per user.

    Raises TableError if the benchmark does not tell the true tastes; HistoryError if a user has fewer references than
    the longest history.
    """
    world = _World.of(benchmark)
    targets = [(split, target) for split in splits for target in benchmark.select(split)]
    candidates = pd.DataFrame(
        [(target.index, split, target.user, k) for split, target in targets for k in range(len(target.candidates))],
        columns=["index", "split", "user", "candidate"],
    )
    shown = world.features(picture for _, target in targets for picture in target.candidates)
    own = world.utilities.loc[candidates["user"]]
    alike = {
        CHANCE: np.zeros(len(candidates)),
        AGREED: shown[:, world.values.index(AGREES)],
        POPULATION: shown @ world.utilities.loc[benchmark.trained_users, world.values].mean().to_numpy(),
        GROUP: (shown * tastes.groups[own["group"].to_numpy()]).sum(axis=1),
        BEST: (shown * own[world.values].to_numpy()).sum(axis=1),
    }
    frames = {name: candidates.assign(n_ref=0, draw=0, score=score) for name, score in alike.items()}
    cases = [(n_ref, draw) for n_ref in n_refs for draw in range(draws)]
    if cases:
        scores = _read_histories(world, candidates["user"], shown, prior_users(tastes), cases)
        frames[READER] = pd.concat([candidates.assign(n_ref=n, draw=d, score=scores[n, d]) for n, d in cases])
    rated = [(name, frames[name][list(COLUMNS)].reset_index(drop=True)) for name in KNOWN if name in frames]
    return {name: Ratings(name, "", (frame,)) for name, frame in rated}


@dataclass(frozen=True)
class _World:
    """A benchmark with its true tastes.

    Attributes:
        values: columns of utilities, the values of attributes that they are of.
        rows: picture -> its row in table. table: (pictures, F).
    """

    benchmark: ChoiceBenchmark
    utilities: pd.DataFrame
    values: list[str]
    rows: dict[Path, int]
    table: NDArray

    @classmethod
    def of(cls, benchmark: ChoiceBenchmark) -> _World:
        attributes, utilities = benchmark.attributes, benchmark.utilities
        if utilities is None or attributes is None:
            text = "the true tastes of its users are not known (attributes.csv, utilities.csv)"
            raise TableError(f"{benchmark.root}: {text}")
        values = [column for column in utilities if column != "group"]
        rows = {benchmark.root / picture: row for row, picture in enumerate(attributes.index)}
        return cls(benchmark, utilities, values, rows, features(attributes, values))

    def features(self, pictures: Iterable[Path]) -> NDArray:
        """(pictures, F)"""
        return self.table[[self.rows[picture] for picture in pictures]]

    def differences(self, choices: Sequence[Choice]) -> NDArray:
        """Features of the liked picture less those of the disliked one, (choices, F)."""
        return self.features(c.liked for c in choices) - self.features(c.disliked for c in choices)


def _read_histories(
    world: _World, users: pd.Series, shown: NDArray, prior: NDArray, cases: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], NDArray]:
    """The ideal reader's scores of the candidates of these users, for every length and draw of a history."""
    scores = np.empty((len(cases), len(users)))
    for user, own in users.groupby(users, sort=False).indices.items():
        owned = world.benchmark.references[user]
        place = {index: k for k, index in enumerate(owned)}
        histories = np.zeros((len(cases), len(owned)))
        for row, (n_ref, draw) in zip(histories, cases, strict=True):
            row[[place[choice.index] for choice in world.benchmark.history(user, n_ref, draw)]] = 1
        differences = world.differences([world.benchmark.choices[index] for index in owned])
        scores[:, own] = posterior_means(differences, histories, prior) @ shown[own].T
    return dict(zip(cases, scores, strict=True))
