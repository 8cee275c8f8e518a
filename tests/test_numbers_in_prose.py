"""Every value with its interval that a page says stands in a committed table."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"(-?\d*\.\d+)"
TRIPLE = re.compile(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]")
PAGES = [
    page
    for page in ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
    if page != "docs/history.md"  # former results, whose tables are not committed
    and TRIPLE.search((ROOT / page).read_text(encoding="utf-8"))
]
NOT_COMMITTED = {
    "docs/results.md": {
        "the first ranking, of one gallery": [".153 [.090, .218]", "-.167 [-.200, -.131]"],
        "pictures with a wrong user of the same group": [".062 [-.017, .139]", ".104 [.014, .191]"],
    },
}


@cache
def committed() -> np.ndarray:
    """Value, lower and upper end of every row of every committed table, and of the same comparison turned round."""
    found = []
    for path in (ROOT / "figures").rglob("*.csv"):
        table = pd.read_csv(path)
        if {"low", "high"} <= {*table.columns}:
            values = [name for name in table.select_dtypes("number") if name not in ("low", "high")]
            found += [table[[name, "low", "high"]].dropna().to_numpy() for name in values]
        if {"change", "change_low", "change_high"} <= {*table.columns}:
            found.append(table[["change", "change_low", "change_high"]].dropna().to_numpy())
    rows = np.concatenate(found)
    return np.concatenate([rows, -rows[:, [0, 2, 1]]])


def missing(text: str) -> list[str]:
    """The triples of a text that, rounded as it rounds, are in no committed table."""
    absent = []
    for match in TRIPLE.finditer(" ".join(text.replace("−", "-").split())):
        said = np.array([float(number) for number in match.groups()])
        places = np.array([len(number.partition(".")[2]) for number in match.groups()])
        if not (np.abs(committed() - said) <= 0.5 * 10.0**-places + 1e-9).all(axis=1).any():
            absent.append(match.group())
    return absent


@pytest.mark.parametrize("page", PAGES)
def test_values_with_intervals_stand_in_a_committed_table(page):
    known = [triple for triples in NOT_COMMITTED.get(page, {}).values() for triple in triples]
    assert missing((ROOT / page).read_text(encoding="utf-8")) == known


def test_a_wrong_end_of_an_interval_is_found():
    table = pd.read_csv(ROOT / "figures/mini/table1.csv").dropna(subset=["low", "high"])
    row = table[table["metric"] == "auc_same"].iloc[0]
    right = "{:.6f} [{:.6f}, {:.6f}]".format(*row[["value", "low", "high"]])
    wrong = "{:.6f} [{:.6f}, {:.6f}]".format(row["value"], row["low"] - 0.00123, row["high"])
    assert missing(f"as {right}, and\nnot {wrong}.") == [wrong]
