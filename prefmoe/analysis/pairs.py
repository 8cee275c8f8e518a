"""AUCs over pairs of users asked about the same item: who likes it, told apart from who does not, by what was told.

A population's guess is at .5 in all of them. Works on scored per-question frames alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata

from prefmoe import metrics
from prefmoe.analysis import statistics

AUC_SAME = "auc_same"

SPLIT = ("auc_told", "auc_untold", "auc_untold_fresh")
"""Further measures, where the frames say what profiles tell."""

TOLD = ("item", "told", "seen_pair")
"""Columns that a frame has where its benchmark says what profiles tell (`Benchmark.told`)."""

PROBABILITIES = ("p_yes", "p_no")


@dataclass(frozen=True)
class Duels:
    """Who won P pairs of a question from inside a group and one from outside it, with each of S seeds.

    Attributes:
        inside, outside: (P,) rows of the questions in the frame.
        scores: (N, S) what was compared.
        user: (N,) the user behind each row of the frame, 0 to users - 1 where it takes part in a pair.
        users: how many are drawn from when users are, those without pairs included.
    """

    inside: NDArray
    outside: NDArray
    scores: NDArray
    user: NDArray
    users: int

    @cached_property
    def won(self) -> NDArray:
        """(P, S) 1 where the inside question has the higher score, half where both have the same, else 0."""
        return beats(self.scores[self.inside], self.scores[self.outside])

    @cached_property
    def by_user(self) -> tuple[list[csr_array], csr_array]:
        """(U, U) of every seed won, and fought, pairs of an inside question of one user and an outside one of another.
        Sparse: of very many users, few are asked about the same."""
        place, shape = (self.user[self.inside], self.user[self.outside]), (self.users, self.users)
        won = [csr_array((values, place), shape) for values in self.won.T]
        return won, csr_array((np.ones(len(self.won)), place), shape)

    @cached_property
    def by_question(self) -> tuple[NDArray, NDArray]:
        """(N, S) pairs that were won, and (N, S) fought, among those that each question takes part in. Their sums over
        questions count every pair twice, and their ratio is the AUC."""
        won, fought = np.zeros((2, len(self.user), self.won.shape[1]))
        for rows in (self.inside, self.outside):
            np.add.at(won, rows, self.won)
            np.add.at(fought, rows, 1)
        return won, fought

    @property
    def questions(self) -> NDArray:
        """Rows of the questions that take part in any pair."""
        return np.union1d(self.inside, self.outside)

    @property
    def n(self) -> int:
        """How many questions take part in any pair."""
        return len(self.questions)

    @cached_property
    def ranks(self) -> NDArray:
        """(N, S) each question's rank among those that take part, with each seed: two methods' scores made comparable.
        NaN for the others."""
        ranks = np.full(self.scores.shape, np.nan)
        ranks[self.questions] = rankdata(self.scores[self.questions], axis=0)
        return ranks

    @property
    def values(self) -> NDArray:
        """(S,) the AUC of each seed; NaN without pairs."""
        return statistics.ratio(self.won.sum(axis=0), np.full(self.won.shape[1], len(self.won)))

    def resampled(self, *, resamples: int | None = None, seed: int = 0, copies: bool = False) -> NDArray:
        """(B,) the AUC, mean over seeds, when users (both of a pair) and seeds (`statistics.over_seeds`) are drawn."""
        won, fought = self.by_user
        counts = statistics.resample_counts(self.users, resamples=resamples, seed=seed)
        drawn = np.stack([((counts @ one) * counts).sum(axis=1) for one in (*won, fought)], axis=1)
        each = statistics.ratio(drawn[:, :-1], drawn[:, -1:])
        return statistics.over_seeds(each, seed=seed, copies=copies)

    def influences(self) -> NDArray:
        """(N,) how much each question moves the AUC, mean over seeds, to first order (`statistics.influence`). Twice
        that of a ratio of sums over questions, in which a pair's other question would stay."""
        return 2 * statistics.influence(*self.by_question).mean(axis=1)

    def estimate(self, samples: NDArray | None = None) -> dict[str, float]:
        """value, n, low and high: the mean over seeds with its interval, from ``samples`` (`resampled`) if given."""
        low, high = statistics.interval(self.resampled() if samples is None else samples, self.users)
        return {"value": float(self.values.mean()), "n": self.n, "low": low, "high": high}


def measures(frame: pd.DataFrame) -> tuple[str, ...]:
    """The AUCs that a frame allows: `SPLIT` needs columns that say what profiles tell."""
    return (AUC_SAME, *SPLIT) if set(TOLD) <= set(frame) else (AUC_SAME,)


def duels(copies: Sequence[pd.DataFrame]) -> dict[str, Duels]:
    """Every measure's pairs, from scored frames of the same questions, one per seed.

    Pairs are of preference yes/no questions about the same item (column item; without it: of the same facet and with
    the same holders), one whose user is among the holders and one whose user is not, each truly answered so. Scores
    are the probabilities of answering as if the user held the preference (`held_probability`).

    - auc_same: all pairs.
    - auc_told: those whose inside question is about what the user's profile tells.
    - auc_untold: about what the user likes and no profile tells; the outside user's profile says nothing of it either,
      so that who reads profiles, and nothing else, is at .5.
    - auc_untold_fresh: of these, the pairs in which neither user was asked about the item in training, so that who
      reads profiles and remembers answers is at .5, too.

    Returns:
        Measure -> its `Duels`; the last three only where the frames say what profiles tell (columns told, seen_pair).

    Raises:
        metrics.ScoringError: see `held_probability`.
    """
    frame = copies[0]
    outside, inside, _, _ = metrics.boundary(frame)
    members = metrics.holders(frame)
    items = frame["item"].tolist() if "item" in frame else [None] * len(frame)
    keys = list(zip(frame["concept"].tolist(), items, members, strict=True))
    scores = np.stack([held_probability(copy) for copy in copies], axis=-1)
    asked: dict[tuple, tuple[list[int], list[int]]] = {}
    for row in np.flatnonzero((inside | outside) & np.array([bool(names) for names in members], dtype=bool)):
        asked.setdefault(keys[row], ([], []))[int(outside[row])].append(row)
    crossed = [np.array(np.meshgrid(*rows, indexing="ij"), dtype=int).reshape(2, -1) for rows in asked.values()]
    first, second = np.concatenate(crossed, axis=1) if crossed else np.zeros((2, 0), dtype=int)
    users, user = np.unique(frame["name"].to_numpy(dtype=object).astype(str), return_inverse=True)
    found = {AUC_SAME: Duels(first, second, scores, user, len(users))}
    if SPLIT[0] in measures(frame):
        told, fresh = frame["told"].to_numpy(dtype=object), frame["seen_pair"].to_numpy() == 0
        untold = (told[first] == "untold") & (told[second] == "other")
        chosen = (told[first] == "told", untold, untold & fresh[first] & fresh[second])
        for measure, kept in zip(SPLIT, chosen, strict=True):
            found[measure] = Duels(first[kept], second[kept], scores, user, len(users))
    return found


def beats(first: NDArray, second: NDArray) -> NDArray:
    """1 where the first is higher, half where both are the same, else 0."""
    return (first > second) + 0.5 * (first == second)


def held_probability(scored: pd.DataFrame) -> NDArray:
    """(N,) probability of answering as if the user held the preference; 0 or 1 (unreadable: 0) without columns of
    probabilities.

    Raises:
        metrics.ScoringError: naming the first yes/no question without a probability, where others have one.
    """
    if not set(PROBABILITIES) <= set(scored):
        return metrics.boundary(scored)[2].astype(float)
    yes, no = (scored[column].to_numpy(dtype=float) for column in PROBABILITIES)
    asked = ((scored["category"] == "preference") & (scored["l2-category"] != "inconsistency")).to_numpy()
    if (lacking := asked & (np.isnan(yes) | np.isnan(no))).any():
        row = scored.index[int(np.argmax(lacking))]
        raise metrics.ScoringError(f"row {row}: p_yes and p_no are empty, expected the probabilities of both answers")
    return np.where(metrics.inverted(scored), no, yes)


def require_probabilities(frame: pd.DataFrame) -> None:
    """Whether AUCs can be computed from probabilities.

    Raises:
        metrics.ScoringError: naming the columns that are missing.
    """
    if missing := [column for column in PROBABILITIES if column not in frame]:
        raise metrics.ScoringError(
            f"no column {', '.join(missing)}: {AUC_SAME} compares the probabilities of the answers yes and no"
        )
