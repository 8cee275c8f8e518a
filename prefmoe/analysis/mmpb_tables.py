"""MMPB's tables: accuracy by task type and attribute, what ten turns of small talk leave of it, and what is unread."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe.analysis import statistics
from prefmoe.analysis.answers import REFERENCE, Answers
from prefmoe.data.benchmark import Benchmark

TASKS = {"awareness": "awareness", "overconcept": "appropriateness", "inconsistency": "coherency"}
"""MMPB's task types by l2-category. Persistency, its fourth, is the change with small talk."""

ATTRIBUTES = ("human", "animal", "object", "character")

COLUMNS = (
    "method", "type", "backbone", "split", "turns", "information", "category", "attribute", "task", "value",
    "low", "high", "n", "users", "unread", "change", "change_low", "change_high", "seeds",
)  # fmt: skip


DIFFERENCES = "-differences"
"""What the names of files with `differences_table` end in."""

DIFFERENCE_COLUMNS = (
    "method", "baseline", "backbone", "split", "turns", "information", "baseline_information", "category",
    "difference", "low", "high", "n", "p_users", "p_users_holm",
)  # fmt: skip


def attributes_table(benchmark: Benchmark, answers: Sequence[Answers]) -> pd.DataFrame:
    """Accuracy of every category, attribute and task type, each also "all", with intervals that resample users.

    unread: answers that could not be read; they count as wrong. change: from the fewest turns, in the same questions
    and the same draws of users; NaN there. Intervals of one user's questions are NaN; where all or none are right, of
    which no draw of users could say how sure it is, they are Wilson's over questions.
    """
    rows = []
    for entry in answers:
        if entry.type == REFERENCE:
            continue
        first = entry.at_first(answers)
        before = None if first is entry or not np.array_equal(first.index, entry.index) else first
        for group, inside in _groups(benchmark, entry):
            rows.append(
                {
                    **entry.where(),
                    "split": entry.split,
                    **group,
                    **_estimate(entry, inside, before),
                    "seeds": entry.seeds,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _groups(benchmark: Benchmark, entry: Answers) -> list[tuple[dict[str, str], NDArray]]:
    """The cells of the table that questions fall into, with (N,) whether each does."""
    frame = entry.frames[0]
    labels = {
        "category": frame["category"].to_numpy(dtype=object),
        "attribute": np.array([benchmark.users[name].attribute for name in frame["name"]], dtype=object),
        "task": frame["l2-category"].map(TASKS).to_numpy(dtype=object),
    }
    kinds = (("all", "recognition", "preference"), ("all", *ATTRIBUTES), ("all", *TASKS.values()))
    found = []
    for values in product(*kinds):
        group = dict(zip(labels, values, strict=True))
        inside = np.logical_and.reduce([(labels[key] == v) | (v == "all") for key, v in group.items()])
        if inside.any():
            found.append((group, inside))
    return found


def _estimate(entry: Answers, inside: NDArray, before: Answers | None) -> dict[str, float]:
    right = entry.right[inside, :, 0].mean(axis=1)  # (n,) hits, mean over seeds
    columns = [right, np.ones(len(right)), right if before is None else before.right[inside, :, 0].mean(axis=1)]
    users, sums = statistics.cluster_sums(np.stack(columns, axis=-1), entry.users[inside])
    hits, counts, earlier = sums.T
    value, change = hits.sum() / counts.sum(), (hits - earlier).sum() / counts.sum()
    (low, high), (change_low, change_high) = (
        statistics.interval(statistics.ratio_bootstrap(sums, counts), len(users)) for sums in (hits, hits - earlier)
    )
    if value in (0.0, 1.0) and len(users) > 1:
        low, high = map(float, statistics.wilson_interval(value, len(right)))
    if before is None:
        change = change_low = change_high = np.nan
    return {
        "value": value, "low": low, "high": high, "n": int(inside.sum()), "users": len(users),
        "unread": entry.unread[inside].mean(axis=1).sum(), "change": change, "change_low": change_low,
        "change_high": change_high,
    }  # fmt: skip


def differences_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Each condition's accuracy minus the first one's, in the same questions after as many turns: `DIFFERENCE_COLUMNS`.

    Intervals resample users, in the test they exchange the two conditions' answers; Holm's correction is over the
    conditions, for each backbone, split, number of turns and category. The first is the first that was asked after
    as many turns; a condition that was asked other questions than it has no row.
    """
    rows, models = [], [entry for entry in answers if entry.type != REFERENCE]
    for entry in models:
        where = (entry.backbone, entry.split, entry.turns)
        first = next(one for one in models if (one.backbone, one.split, one.turns) == where)
        if entry is first or not np.array_equal(first.index, entry.index):
            continue
        difference = (entry.right[:, :, 0] - first.right[:, :, 0]).mean(axis=1)
        about = {"baseline": first.method, "baseline_information": first.information, "split": entry.split}
        category = entry.frames[0]["category"].to_numpy(dtype=object)
        for name in ("all", "recognition", "preference"):
            inside = (category == name) | (name == "all")
            if inside.any():
                paired = statistics.paired_difference(difference[inside], entry.users[inside])
                rows.append({**entry.where(), **about, "category": name, **paired})
    return corrected(pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS)))


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """A `differences_table`, or several as one, with Holm's correction over all conditions that it has."""
    family = table.groupby(["baseline", "backbone", "split", "turns", "category"])["p_users"]
    return table.assign(p_users_holm=family.transform(statistics.holm))


def as_printed(table: pd.DataFrame) -> str:
    """The table as the paper lays it out: a row per method and turns, a column per category, task and attribute."""
    shown = table.assign(
        cell=[
            f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" if r.low == r.low else f"{r.value:.3f}"
            for r in table.itertuples()
        ]
    )
    keep = shown["category"].eq("all") & shown["attribute"].eq("all") | ~shown["category"].eq("all")
    columns = ["category", "attribute", "task"]
    wide = shown[keep].pivot(index=columns, columns=["backbone", "method", "split", "turns"], values="cell").fillna("")
    order = shown[keep][columns].drop_duplicates().apply(tuple, axis=1)
    lines = [wide.reindex(pd.MultiIndex.from_tuples(order, names=columns)).to_string()]
    whole = table[(table[columns] == "all").all(axis=1)]
    lines += [
        f"{r.method}, {r.split}, {r.turns} turns: {r.unread:.0f} of {r.n} answers unread" for r in whole.itertuples()
    ]
    return "\n".join(lines)
