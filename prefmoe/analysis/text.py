"""Tables as text: cells with their intervals, and verdicts in words."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe.analysis.answers import REFERENCE
from prefmoe.metrics import LOWER_IS_BETTER

BETTER, WORSE, UNDECIDED = "better", "worse", "not told apart"

ENOUGH = 20
"""Questions of each of two groups from which on it is said whether a metric rises between them."""


def readable(table: pd.DataFrame, *, rows: str | Sequence[str] = "method", columns: str = "metric") -> pd.DataFrame:
    """A table to read: cells are "value [low, high]", rows and columns in the order of the table.

    ``table``: rows of a CSV file of `build` (or any with a column value; low and high are optional). What each row is
    shown of the user, where the table says so, comes first.
    """
    keys = [rows] if isinstance(rows, str) else list(rows)
    value = "value" if "value" in table else "difference"
    cells = table[[*keys, columns]].assign(cell=[_interval(row, value) for row in table.to_dict("records")])
    grid = cells.pivot(index=keys, columns=columns, values="cell").fillna("–")
    order = pd.MultiIndex.from_frame(cells[keys].drop_duplicates()) if len(keys) > 1 else cells[keys[0]].unique()
    grid = grid.loc[order, cells[columns].unique()].rename_axis(columns=None)
    shown = "baseline_information" if "baseline" in keys else "information"
    if shown in table and shown not in keys:
        grid.insert(0, "information", table.groupby(keys)[shown].first())
    return grid


def _interval(row: Mapping, value: str) -> str:
    if pd.isna(row[value]):
        return "–"
    text, low, high = (f"{round(float(row.get(name, np.nan)), 3) + 0.0:.3f}" for name in (value, "low", "high"))
    if pd.isna(row.get("low")) or pd.isna(row.get("high")):  # no "-0.000" in any of them
        return text
    return f"{text} [{low}, {high}]"


def with_dashes(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The same table with an en dash where a value is missing, as `readable` shows it: numbers become text, those of a
    column of whole numbers without decimals, others with ``digits``."""

    def text(column: pd.Series) -> pd.Series:
        shown = column.astype(object)
        if pd.api.types.is_float_dtype(column):
            places = 0 if (column.dropna() % 1 == 0).all() else digits
            shown = (column.round(places) + 0.0).map(f"{{:.{places}f}}".format)  # no "-0.000"
        return shown.where(column.notna(), "–")

    return table.apply(text)


def seeds_in_words(table: pd.DataFrame, rows: str = "method") -> str:
    """How many seeds stand behind the trained rows of a table: "mean of 3 seeds for LoRA and PrefMoE, one seed
    for other trained rows". ``table``: with columns seeds and ``rows``; untrained ones (column type) do not count."""
    if "type" in table:
        table = table[~table["type"].isin((REFERENCE, "NT"))]
    names = table.groupby(rows, sort=False)["seeds"].max()
    counts = names.value_counts()
    if counts.empty:
        return "nothing here is trained"
    usual, parts = counts.index[0], []
    for seeds in sorted(set(counts.index) - {usual}, reverse=True):
        parts.append(f"{mean_of_seeds(seeds)} for {listed(names.index[names == seeds])}")
    return ", ".join([*parts, mean_of_seeds(usual) + " for other trained rows" * bool(parts)])


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: "A, B and C"; "none" of none."""
    *others, last = [*names] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def counted(count: int, noun: str) -> str:
    """How many, with the noun's plural: "1 choice", "8 choices"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def mean_of_seeds(count: int) -> str:
    """What a value is that stands for so many seeds."""
    return "one seed" if count == 1 else f"mean of {counted(count, 'seed')}"


def verdicts(comparisons: pd.DataFrame) -> pd.DataFrame:
    """What the paired tests of comparisons.csv allow to say, in words.

    Returns one line per backbone, method and baseline, a column per metric: the method is "better" or "worse" than the
    baseline where they are `told_apart`, else "not told apart"; "–" where there is nothing to test.
    """
    words = verdict_words(comparisons, told_apart(comparisons))
    words = np.where(comparisons["p_users_holm"].isna(), "–", words)
    return verdict_grid(comparisons, words, ["backbone", "method", "baseline"])


def told_apart(comparisons: pd.DataFrame | pd.Series) -> pd.Series | bool:
    """(N,), or of one row, whether both say so: the corrected p of the permutation test over users, below .05, and the
    interval, without 0."""
    return without_zero(comparisons) & (comparisons["p_users_holm"] < 0.05)


def without_zero(differences: pd.DataFrame | pd.Series) -> pd.Series | bool:
    """(N,), or of one row, whether the interval is without 0: all that can be asked where no paired test was made."""
    return (differences["low"] > 0) | (differences["high"] < 0)


def verdict_words(differences: pd.DataFrame, clear: NDArray | pd.Series) -> NDArray:
    """(N,) "better" or "worse" where a difference is clear, else "not told apart"; of collapse, less is better."""
    lower = differences["metric"].isin(LOWER_IS_BETTER)
    return np.where(clear, np.where((differences["difference"] > 0) != lower, BETTER, WORSE), UNDECIDED)


def verdict_grid(differences: pd.DataFrame, words: NDArray, keys: list[str]) -> pd.DataFrame:
    """Words as a grid: a line per value of the keys, a column per metric, both in the order of the differences."""
    grid = differences.assign(word=words).pivot(index=keys, columns="metric", values="word")
    order = list(differences[keys].drop_duplicates().itertuples(index=False, name=None))
    return grid.loc[order, differences["metric"].unique()].rename_axis(columns=None)
