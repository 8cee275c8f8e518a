"""A reader's guide to the published tables: which digits fit together, how noisy each is, and what differs by more.

Everything is computed from the printed numbers alone. A value that fails a check may be a slip of typesetting, a mean
over several runs, or another test set; nothing here can tell which.
"""

import re

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from prefmoe.analysis import published, statistics
from prefmoe.analysis.published import QUESTIONS

DECIMALS = 4
"""Decimals of the printed shares."""

ACCURACIES = ("overall", "preference", "profile")

_HALF = 0.5 * 10.0**-DECIMALS
"""How far a printed share may be from the exact one."""


def fits(share: ArrayLike, n: ArrayLike) -> NDArray:
    """Whether a printed share is k/n for some whole number k, to four decimals."""
    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    return np.abs(np.round(share * n) / n - share) <= _HALF + 1e-9


def recovered_denominators(table: pd.DataFrame, *, smallest: int = 20, largest: int = 3000) -> pd.DataFrame:
    """The number of questions behind each metric, found from the printed values alone.

    Of n questions there are n + 1 shares among the 10001 numbers with four decimals, so chance lets (n + 1)/10001 of
    the values fit. Every n from ``smallest`` to ``largest`` is tried; the one whose values fit the most standard
    deviations above chance is reported, with the next best that is neither a multiple nor a divisor of it (those
    fit for the same reason).

    ``table``: published/table1.csv. Returns one line per metric: questions (stated by the paper's dataset table),
    recovered, fitting and printed (values), expected (fitting by chance), excess (standard deviations above it),
    runner_up and its excess.
    """
    candidates = np.arange(smallest, largest + 1)
    chance = (candidates + 1) / 10**DECIMALS
    rows = []
    for metric, stated in QUESTIONS.items():
        values = table.loc[table["metric"] == metric, "value"].to_numpy()
        fitting = fits(values[:, None], candidates).sum(axis=0)
        excess = (fitting - len(values) * chance) / np.sqrt(len(values) * chance * (1 - chance))
        best = int(np.argmax(excess))
        n = candidates[best]
        others = (candidates % n != 0) & (n % candidates != 0)
        second = int(np.argmax(np.where(others, excess, -np.inf)))
        row = {"metric": metric, "questions": stated, "recovered": int(n), "fitting": int(fitting[best])}
        row |= {"printed": len(values), "expected": len(values) * chance[best], "excess": excess[best]}
        rows.append(row | {"runner_up": int(candidates[second]), "runner_up_excess": excess[second]})
    return pd.DataFrame(rows).set_index("metric")


def values(table: pd.DataFrame) -> pd.DataFrame:
    """Every printed value with its questions, its nearest count and a 95 % interval.

    ``table``: published/table1.csv or table2.csv. Returns the table with n, nearest (the whole number of questions
    closest to value * n), fits (0/1: nearest / n is printed so) and low, high (Wilson: what n independent questions
    would leave open; questions about one user are not independent, so the true interval is wider).
    """
    n = table["metric"].map(QUESTIONS)
    low, high = statistics.wilson_interval(table["value"], n)
    nearest = np.rint(table["value"] * n).astype(int)
    return table.assign(n=n, nearest=nearest, fits=fits(table["value"], n).astype(int), low=low, high=high)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Overall accuracy as printed, and as the weighted mean of its two parts (750 and 1395 questions).

    Returns one line per row of the table: printed, computed, difference, and fits: 0 where the difference is more than
    rounding of all three values can make it. The largest difference first.
    """
    lines = published.wide(table)
    parts = lines["preference"] * QUESTIONS["preference"] + lines["profile"] * QUESTIONS["profile"]
    result = pd.DataFrame({"printed": lines["overall"], "computed": parts / QUESTIONS["overall"]})
    result["difference"] = result["printed"] - result["computed"]
    result["fits"] = (result["difference"].abs() <= 2 * _HALF + 1e-9).astype(int)
    return result.sort_values("difference", key=lambda d: -d.abs(), kind="stable")


def turn_changes(table: pd.DataFrame) -> pd.DataFrame:
    """What ten turns of small talk change, and which rows change every accuracy by one and the same amount.

    Two experiments of 750 and 1395 questions change by k/750 and j/1395, which rarely agree to four decimals.

    Returns one line per row of the table: the change of every metric, spread (largest minus smallest change of the
    three accuracies), constant (1 where the spread is at most one unit of the last decimal) and whole: 1 where every
    accuracy's change can be a difference of two counts. The smallest spread first.
    """
    lines = published.wide(table)
    change = lines.xs(10, level="turns") - lines.xs(0, level="turns")
    accuracies = change[list(ACCURACIES)]
    n = np.array([QUESTIONS[metric] for metric in ACCURACIES])
    whole = np.abs(np.round(accuracies * n) / n - accuracies) <= 2 * _HALF + 1e-9
    spread = (accuracies.max(axis=1) - accuracies.min(axis=1)).round(DECIMALS)
    change = change.assign(spread=spread, constant=(spread <= 2 * _HALF + 1e-9).astype(int))
    return change.assign(whole=whole.all(axis=1).astype(int)).sort_values("spread", kind="stable")


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """PrefMoE minus the fine-tuned and minus the non-tuned model of the same backbone, with intervals.

    Newcombe's interval and the z test take the two rows as independent samples of the same size. They answered the
    same questions, which usually makes the real noise smaller; questions about one user are not independent, which
    makes it larger. Neither can be undone without the answers.

    ``table``: published/table1.csv. Returns columns backbone, baseline (its type: FFT, NT), turns, metric, difference,
    low, high, n, p, p_holm (Holm over all comparisons of the metric) and clear: 1 where p_holm < .05.
    """
    rows = []
    for method in table.loc[table["group"] == "PrefMoE", "method"].unique():
        backbone = re.fullmatch(r"PrefMoE \((.+)\)", method)[1]
        for baseline in ("FFT", "NT"):
            ours = table[table["method"] == method]
            theirs = table[(table["method"] == backbone) & (table["type"] == baseline)]
            pairs = ours.merge(theirs, on=["turns", "metric"], suffixes=("", "_baseline"))
            rows.append(pairs.assign(backbone=backbone, baseline=baseline))
    pairs = pd.concat(rows, ignore_index=True)
    return tested(pairs, ["backbone", "baseline", "turns", "metric"])


def tested(pairs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Differences of the columns value and value_baseline of pairs of rows of a published table.

    Returns the keys, of which one is metric, and the columns difference to clear of `differences`.
    """
    first, second, n = pairs["value"], pairs["value_baseline"], pairs["metric"].map(QUESTIONS)
    low, high = statistics.newcombe_interval(first, second, n)
    result = pairs[keys].assign(difference=first - second, low=low, high=high, n=n)
    result["p"] = statistics.two_proportions_p(first, second, n)
    result["p_holm"] = result.groupby("metric")["p"].transform(statistics.holm)
    return result.assign(clear=(result["p_holm"] < 0.05).astype(int))
