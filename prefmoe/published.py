"""The paper's printed tables: read from published/, and checked against themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from prefmoe.config import ROOT

QUESTIONS = {"overall": 2145, "preference": 750, "profile": 1395, "collapse": 219}
"""Questions behind each printed share: the test split of MMPB-clean (collapse: the user is outside the group)."""

DECIMALS = 4
"""Decimals of the printed shares."""


def read(name: str) -> pd.DataFrame:
    """A table of published/: "table1", "table2", "dataset_statistics" or "identities", as printed.

    Raises:
        FileNotFoundError: if there is no such table.
    """
    return pd.read_csv(ROOT / "published" / f"{name}.csv")


def wide(table: pd.DataFrame, *, rows: str = "method") -> pd.DataFrame:
    """One line per method and type (or per components) and number of turns, a column per metric."""
    keys = [column for column in ("type", rows, "turns") if column in table]
    metrics = list(dict.fromkeys(table["metric"]))
    order = table[keys].drop_duplicates()
    values = table.pivot(index=keys, columns="metric", values="value")[metrics]
    return values.loc[list(order.itertuples(index=False, name=None))].rename_axis(columns=None)


def recomputed_overall(table: pd.DataFrame) -> pd.DataFrame:
    """Overall accuracy as printed, and as the weighted mean of its two parts (750 and 1395 questions).

    Returns:
        one line per method, type and turns: printed, computed, difference; the largest difference first.
    """
    lines = wide(table)
    parts = lines["preference"] * QUESTIONS["preference"] + lines["profile"] * QUESTIONS["profile"]
    result = pd.DataFrame({"printed": lines["overall"], "computed": parts / QUESTIONS["overall"]})
    result["difference"] = result["printed"] - result["computed"]
    return result.sort_values("difference", key=lambda d: -d.abs(), kind="stable")


def impossible_shares(table: pd.DataFrame) -> pd.DataFrame:
    """How many printed values are no share k/n of the stated number of questions, even after rounding.

    Returns:
        one line per metric: questions (n), printed (values), impossible (how many of them fit no k).
    """
    rows = []
    for metric, n in QUESTIONS.items():
        values = table.loc[table["metric"] == metric, "value"].to_numpy()
        nearest = np.round(values * n) / n
        wrong = np.abs(nearest - values) > 0.5 * 10.0**-DECIMALS + 1e-9
        rows.append({"metric": metric, "questions": n, "printed": len(values), "impossible": int(wrong.sum())})
    return pd.DataFrame(rows).set_index("metric")


def turn_changes(table: pd.DataFrame) -> pd.DataFrame:
    """Each metric with ten turns of small talk minus without: one line per method and type."""
    lines = wide(table)
    return lines.xs(10, level="turns") - lines.xs(0, level="turns")
