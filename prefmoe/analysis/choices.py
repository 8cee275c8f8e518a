"""What was chosen for users: top-k accuracies, seen users beside unseen ones, and collapse, from rated candidates.

An answer is a score for each candidate of a choice, the liked one first. Choices of one user are not independent:
intervals resample users, and seeds where there are several. Each history drawn for a user counts as much as any other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe.analysis import statistics
from prefmoe.analysis.answers import TableError, check_seeds, finished
from prefmoe.config import Edition, MethodSettings

COLUMNS = ("index", "split", "user", "n_ref", "draw", "candidate", "score")
"""What a prediction of one candidate says."""

CASE = ["index", "split", "user", "n_ref", "draw"]
"""What tells the sets of candidates apart."""

USERS: dict[str, tuple[str, ...]] = {"seen": ("test",), "unseen": ("unseen",), "all": ("test", "unseen")}
"""Groups of users by the splits with their choices."""

RANKED = ((2, 1), (4, 1), (4, 2), (4, 3))
"""The accuracies of the tables: among how many candidates, and in the first how many places."""

TABLE1_COLUMNS = ("method", "users", "n_ref", "candidates", "k", "value", "low", "high", "n", "seeds")

SEEDS_COLUMNS = ("method", "users", "n_ref", "candidates", "k", "value", "sd", "minimum", "maximum", "seeds")

DIFFERENCE_COLUMNS = ("method", "n_ref", "difference", "low", "high", "seen", "unseen", "n", "seeds")

GAP_COLUMNS = ("method", "baseline", *DIFFERENCE_COLUMNS[1:])

PAIRED = ((2, 1), (4, 1))
"""The accuracies of which two methods are compared: among how many candidates, and in the first how many places."""

COMPARISON_COLUMNS = (
    "method", "baseline", "users", "n_ref", "candidates", "k", "difference", "low", "high", "n", "p_users",
    "p_users_holm",
)  # fmt: skip

MORE_HISTORY_COLUMNS = (
    "method", "users", "n_ref", "baseline_n_ref", "difference", "low", "high", "n", "p_users", "p_users_holm"
)  # fmt: skip

COLLAPSE_COLUMNS = ("method", "users", "n_ref", "measure", "value", "low", "high", "n", "seeds")


def cases(frame: pd.DataFrame) -> pd.DataFrame:
    """The scores of each set of candidates side by side: CASE as index, candidates 0 (liked) to C - 1 as columns.
    Raises TableError if a candidate is missing or there twice, or a score is not finite."""
    if (twice := frame.duplicated([*CASE, "candidate"])).any():
        first = frame[twice].iloc[0]
        raise TableError(f"choice {first['index']}: candidate {first['candidate']} is rated twice")
    table = frame.pivot(index=CASE, columns="candidate", values="score").sort_index()
    if list(table.columns) != list(range(table.shape[1])) or table.shape[1] < 2:
        raise TableError(f"expected candidates 0, 1, ..., found {', '.join(map(str, table.columns))}")
    two = table[[0, 1]]  # only some choices have more than two candidates, and those have all of them
    bad = ~np.isfinite(two).all(axis=1) | ~table.notna().sum(axis=1).isin((2, table.shape[1]))
    if bad.any():
        index, _, user, n_ref, draw = table.index[bad][0]
        raise TableError(f"choice {index} of {user} (n_ref {n_ref}, draw {draw}): a score is missing or not finite")
    return table


def hits(scores: NDArray, k: int) -> NDArray:
    """The probability that the liked picture is among the first k, ties in random order. ``scores``: (N, C), the liked
    picture's in column 0. Returns (N,): 0 or 1 where nothing is tied with the liked picture."""
    liked, others = scores[:, :1], scores[:, 1:]
    above, tied = (others > liked).sum(1), (others == liked).sum(1)
    return np.clip((k - above) / (tied + 1), 0, 1)


@dataclass(frozen=True)
class Ratings:
    """What one method said of the same candidates with each of its seeds.

    Attributes:
        method: label shown in tables. key: its name in the configuration; "" for a reference.
        frames: a frame with `COLUMNS` per seed.
        seeds: how many seeds stand behind them; 1 for what is not trained.
    """

    method: str
    key: str
    frames: tuple[pd.DataFrame, ...]
    seeds: int = 1

    @cached_property
    def cases(self) -> list[pd.DataFrame]:
        """`cases` of every seed. Raises TableError if they are not of the same candidates."""
        found = [cases(frame) for frame in self.frames]
        if any(not one.index.equals(found[0].index) for one in found):
            raise TableError(f"{self.method}: the seeds rated different candidates")
        return found

    def values(self, candidates: int, k: int) -> pd.DataFrame:
        """The mean over draws of `hits` for each choice, (N, S): indexed by n_ref, split, user and index, a column for
        each seed."""
        if (candidates, k) not in self._values:
            self._values[candidates, k] = self._counted(candidates, k)
        return self._values[candidates, k]

    @cached_property
    def _values(self) -> dict[tuple[int, int], pd.DataFrame]:
        """What `values` has returned: several tables ask for the same."""
        return {}

    def _counted(self, candidates: int, k: int) -> pd.DataFrame:
        asked = list(range(candidates))
        tables = [table.dropna(subset=asked) for table in self.cases if candidates <= table.shape[1]]
        if not tables or tables[0].empty:
            return pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * 4, names=GROUPS), dtype=float)
        each = [hits(table[asked].to_numpy(float), k) for table in tables]
        return pd.DataFrame(np.column_stack(each), tables[0].index).groupby(GROUPS).mean()


GROUPS = ["n_ref", "split", "user", "index"]


def _of(values: pd.DataFrame, splits: Sequence[str]) -> Iterable[tuple[int, pd.DataFrame]]:
    """The values of some splits, for each n_ref."""
    inside = values[values.index.get_level_values("split").isin(splits)]
    yield from inside.groupby("n_ref")


def _estimate(values: pd.DataFrame) -> dict[str, float]:
    return statistics.cluster_bootstrap(values.to_numpy(), values.index.get_level_values("user"))


def _accuracies(one: Ratings) -> Iterable[tuple[dict, pd.DataFrame]]:
    """What each of a method's accuracies is about, and the values behind it."""
    for candidates, k in RANKED:
        values = one.values(candidates, k)
        for users, splits in USERS.items():
            for n_ref, chosen in _of(values, splits):
                yield {"method": one.method, "users": users, "n_ref": n_ref, "candidates": candidates, "k": k}, chosen


def accuracy_table(ratings: Iterable[Ratings]) -> pd.DataFrame:
    """Top-k accuracies of every method with their intervals: `TABLE1_COLUMNS`."""
    rows = [
        {**where, **_estimate(chosen), "seeds": one.seeds} for one in ratings for where, chosen in _accuracies(one)
    ]
    return pd.DataFrame(rows, columns=list(TABLE1_COLUMNS))


def seeds_table(ratings: Iterable[Ratings]) -> pd.DataFrame:
    """How much every accuracy differs between seeds: `SEEDS_COLUMNS`; sd is NaN where there is one."""
    rows = []
    for one in ratings:
        for where, chosen in _accuracies(one):
            each = chosen.mean()
            spread = statistics.spread_over_seeds(each)
            rows.append({**where, "value": each.mean(), **spread, "seeds": one.seeds})
    return pd.DataFrame(rows, columns=list(SEEDS_COLUMNS))


def difference_table(ratings: Iterable[Ratings]) -> pd.DataFrame:
    """Unseen minus seen users' accuracy between two candidates: `DIFFERENCE_COLUMNS`, n: choices of both. The two
    groups share no user: they are resampled apart."""
    rows = [{"method": one.method, **row, "seeds": one.seeds} for one in ratings for row in _gaps(one.values(2, 1))]
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def gap_table(pairs: Iterable[tuple[Ratings, Ratings]]) -> pd.DataFrame:
    """What the first method of each pair does to the second's gap between unseen and seen users: `GAP_COLUMNS`.

    seen, unseen: the first's accuracy minus the second's on the same choices; difference: unseen minus seen, which is
    by how much the gap differs. Raises TableError where nothing can be paired.
    """
    rows = []
    for focus, other in pairs:
        where = {"method": focus.method, "baseline": other.method}
        for _, change in _paired(focus, other, 2, 1):
            rows += [{**where, **row, "seeds": change.shape[1]} for row in _gaps(change)]
    return pd.DataFrame(rows, columns=list(GAP_COLUMNS))


def _gaps(values: pd.DataFrame) -> Iterable[dict[str, float]]:
    """Unseen minus seen users' mean of some values, as `Ratings.values` indexes them, for each n_ref that both have."""
    groups = {users: dict(_of(values, USERS[users])) for users in ("seen", "unseen")}
    for n_ref in groups["seen"].keys() & groups["unseen"].keys():
        means, drawn, n = {}, {}, 0
        for seed, (users, of_n_ref) in enumerate(groups.items()):
            chosen = of_n_ref[n_ref]
            counted = np.column_stack([chosen.to_numpy(), np.ones(len(chosen))])
            _, sums = statistics.cluster_sums(counted, chosen.index.get_level_values("user"))
            means[users] = float(chosen.to_numpy().mean())
            drawn[users] = statistics.ratio_bootstrap(sums[:, :-1], sums[:, -1:], seed=seed)  # (B, S)
            n += len(chosen)
        low, high = statistics.percentile_interval(statistics.over_seeds(drawn["unseen"] - drawn["seen"]))
        difference = {"difference": means["unseen"] - means["seen"], "low": float(low), "high": float(high)}
        yield {"n_ref": n_ref, **difference, **means, "n": n}


def _paired(focus: Ratings, other: Ratings, candidates: int, k: int) -> Iterable[tuple[int, pd.DataFrame]]:
    """The first's values minus the second's on the same choices of all users, (N, S), for each n_ref that both have.
    Seeds are paired; what has only one stands beside each of the other's. Raises TableError where they rated other
    choices, or have unequal numbers of seeds."""
    mine, theirs = focus.values(candidates, k), other.values(candidates, k)
    for n_ref, first in _of(mine, USERS["all"]):
        lengths = set(theirs.index.get_level_values("n_ref"))
        if lengths == {0}:  # a method without histories is the same at every length
            same = theirs.droplevel("n_ref").reindex(first.index.droplevel("n_ref")).set_axis(first.index)
        elif n_ref in lengths:
            same = theirs.reindex(first.index)
        else:
            continue
        if same.isna().any(axis=None):
            raise TableError(f"{other.method} rated other choices than {focus.method}; nothing to pair")
        check_seeds({focus.method: first.shape[1], other.method: same.shape[1]})
        yield n_ref, pd.DataFrame(first.to_numpy() - same.to_numpy(), first.index)


def comparison_table(pairs: Iterable[tuple[Ratings, Ratings]]) -> pd.DataFrame:
    """The first method of each pair minus the second on the same choices, for each of `PAIRED`.

    Returns `COMPARISON_COLUMNS`, for all users and the histories that both had; the interval is over users and, where
    there are several, over seeds; p_users: permutation test in which users exchange the two methods' results; with
    Holm's correction over the rows of one length of history and of one of `PAIRED`. Raises TableError where nothing
    can be paired.
    """
    rows = []
    for focus, other in pairs:
        for candidates, k in PAIRED:
            for n_ref, change in _paired(focus, other, candidates, k):
                where = {"method": focus.method, "baseline": other.method, "users": "all", "n_ref": n_ref}
                where |= {"candidates": candidates, "k": k}
                owners = change.index.get_level_values("user")
                rows.append({**where, **statistics.paired_difference(change.to_numpy(), owners)})
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
    return statistics.corrected(table, ["n_ref", "candidates", "k"])


def more_history_table(ratings: Iterable[Ratings]) -> pd.DataFrame:
    """Each method's accuracy behind its longest history minus that behind its shortest, on the same choices, between
    two candidates: `MORE_HISTORY_COLUMNS`, baseline_n_ref: the shortest. Holm's correction is over the methods, for
    each group of users; what was asked after one length only has no row."""
    rows = []
    for one in ratings:
        values = one.values(2, 1)
        for users, splits in USERS.items():
            lengths = dict(_of(values, splits))
            if len(lengths) < 2:
                continue
            short, long = (lengths[pick(lengths)].droplevel("n_ref") for pick in (min, max))
            difference = long - short.reindex(long.index)
            owners = difference.index.get_level_values("user")
            where = {"method": one.method, "users": users, "n_ref": max(lengths), "baseline_n_ref": min(lengths)}
            rows.append({**where, **statistics.paired_difference(difference.to_numpy(), owners)})
    return statistics.corrected(pd.DataFrame(rows, columns=list(MORE_HISTORY_COLUMNS)), ["users"])


def collapse_table(ratings: Iterable[Ratings], population: Ratings) -> pd.DataFrame:
    """Where the population's favourite of four is not the user's: how often a method names either first. Returns
    `COLLAPSE_COLUMNS`; measure: "population" (its favourite is named: collapse) and "user" (the liked picture is)."""
    reference = population.cases[0].groupby("index").first().dropna()
    favourite = reference.to_numpy().argmax(axis=1)
    asked = pd.Series(favourite, reference.index)[favourite != 0]
    rows = []
    for one in ratings:
        measured: dict[str, list[pd.Series]] = {"population": [], "user": []}
        for table in one.cases:
            table = table[table.index.get_level_values("index").isin(asked.index)].dropna()
            scores = table.to_numpy(float)
            best = scores == scores.max(axis=1, keepdims=True)
            share = best / best.sum(axis=1, keepdims=True)  # of what is tied in the first place
            theirs = asked.reindex(table.index.get_level_values("index")).to_numpy(int)
            for measure, place in (("population", theirs), ("user", np.zeros(len(theirs), int))):
                named = pd.Series(share[np.arange(len(share)), place], table.index)
                measured[measure].append(named.groupby(GROUPS).mean())
        for measure, of_seeds in measured.items():
            values = pd.concat(of_seeds, axis=1)
            for users, splits in USERS.items():
                for n_ref, chosen in _of(values, splits):
                    where = {"method": one.method, "users": users, "n_ref": n_ref, "measure": measure}
                    rows.append({**where, **_estimate(chosen), "seeds": one.seeds})
    return pd.DataFrame(rows, columns=list(COLLAPSE_COLUMNS))


def read_ratings(
    edition: Edition, results: str | Path, kind: type[MethodSettings] = MethodSettings
) -> dict[str, Ratings]:
    """What the runs of an edition said of choices, by method; see `answers.finished`."""
    return {
        key: Ratings(edition.methods[key].label, key, tuple(frames.values()), len(frames))
        for _, key, frames in finished(edition, results, COLUMNS, kind=kind)
    }
