"""What can be known of choices without a model: nothing, the population's taste, a history, the group's taste, all.

They need the true tastes, as the miniature has them. F = features (values of attributes that utilities are linear in),
M = users drawn from the prior, R = references of a user, H = histories of a user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, log_expit, softmax

from prefmoe.analysis.answers import TableError
from prefmoe.analysis.choices import COLUMNS, Ratings
from prefmoe.data.choice_world import GROUP_SHARES, Tastes, features
from prefmoe.data.choices import Choice, ChoiceBenchmark

CHANCE, POPULATION, READER, GROUP, BEST = (
    "Chance", "Population's choice", "Ideal reader of the history", "Group's taste", "Best possible"
)  # fmt: skip

KNOWN = {
    CHANCE: "nothing",
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

    Returns:
        (H, F)
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
        n_refs: lengths of histories. draws: histories of each length per user.

    Raises:
        TableError: if the benchmark does not tell the true tastes.
        HistoryError: if a user has fewer references than the longest history.
    """
    utilities, values = _utilities(benchmark)
    targets = [(split, target) for split in splits for target in benchmark.select(split)]
    candidates = pd.DataFrame(
        [
            (target.index, split, target.user, k, benchmark.relative(picture))
            for split, target in targets
            for k, picture in enumerate(target.candidates)
        ],
        columns=["index", "split", "user", "candidate", "picture"],
    )
    shown = features(benchmark.attributes.loc[candidates["picture"]], values)
    seen = utilities.loc[benchmark.trained_users, list(values)].mean().to_numpy()
    by_user = utilities.loc[candidates["user"]]
    group = tastes.groups[by_user["group"].to_numpy()]
    alike = {
        CHANCE: np.zeros(len(candidates)),
        POPULATION: shown @ seen,
        GROUP: (shown * group).sum(axis=1),
        BEST: (shown * by_user[list(values)].to_numpy()).sum(axis=1),
    }
    frames = {name: candidates.assign(n_ref=0, draw=0, score=score) for name, score in alike.items()}
    frames[READER] = _read_histories(benchmark, candidates, shown, values, prior_users(tastes), n_refs, draws)
    return {name: Ratings(name, "", (frames[name][list(COLUMNS)].reset_index(drop=True),)) for name in KNOWN}


def expected_best(benchmark: ChoiceBenchmark, splits: Iterable[str] = ("test", "unseen")) -> float:
    """The accuracy between two candidates that nobody can beat: the mean of sigma(|u(liked) - u(disliked)|).

    The best possible score's accuracy on the choices that were drawn varies around it.

    Raises:
        TableError: if the benchmark does not tell the true tastes.
    """
    utilities, values = _utilities(benchmark)
    targets = [target for split in splits for target in benchmark.select(split)]
    own = utilities.loc[[target.user for target in targets], list(values)].to_numpy()
    return float(expit(np.abs((_differences(benchmark, targets, values) * own).sum(axis=1))).mean())


def _utilities(benchmark: ChoiceBenchmark) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The users' utilities, and the values of attributes that they are of."""
    if benchmark.utilities is None or benchmark.attributes is None:
        raise TableError(
            f"{benchmark.root}: the true tastes of its users are not known (attributes.csv, utilities.csv)"
        )
    return benchmark.utilities, tuple(column for column in benchmark.utilities if column != "group")


def _differences(benchmark: ChoiceBenchmark, choices: Sequence[Choice], values: Sequence[str]) -> NDArray:
    """Features of the liked picture less those of the disliked one, (choices, F)."""
    sides = ([benchmark.relative(choice.candidates[k]) for choice in choices] for k in range(2))
    liked, disliked = (features(benchmark.attributes.loc[pictures], values) for pictures in sides)
    return liked - disliked


def _read_histories(
    benchmark: ChoiceBenchmark,
    candidates: pd.DataFrame,
    shown: NDArray,
    values: Sequence[str],
    prior: NDArray,
    n_refs: Sequence[int],
    draws: int,
) -> pd.DataFrame:
    """The ideal reader's scores of the candidates, for every length and draw of a history."""
    cases = [(n_ref, draw) for n_ref in n_refs for draw in range(draws)]
    frames = []
    for user, own in candidates.groupby("user", sort=False):
        owned = benchmark.references[user]
        place = {index: k for k, index in enumerate(owned)}
        histories = np.zeros((len(cases), len(owned)))
        for row, (n_ref, draw) in zip(histories, cases, strict=True):
            row[[place[choice.index] for choice in benchmark.history(user, n_ref, draw)]] = 1
        differences = _differences(benchmark, [benchmark.choices[index] for index in owned], values)
        scores = shown[own.index] @ posterior_means(differences, histories, prior).T
        frames += [own.assign(n_ref=n, draw=d, score=column) for (n, d), column in zip(cases, scores.T, strict=True)]
    return pd.concat(frames)
