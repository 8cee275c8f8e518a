"""The committed tables that others read have the promised columns, spelled out here and not read off the code."""

from pathlib import Path

import pandas as pd
import pytest

from prefmoe.config import FIGURES

PREFMOE = "method type backbone turns metric value low high n seeds"
PROMISED = {
    "*/table1.csv": PREFMOE,
    "*/table2.csv": PREFMOE.replace("method type backbone", "components"),
    "preference-*/table1.csv": "method users n_ref candidates k value low high n seeds",
    "generation-*/table1.csv": "condition users measure value low high n seeds",
    "generation-*/probes.csv": "layer task value low high n",
}
VALUES = {
    "turns": {0, 10},
    "metric": {"overall", "preference", "profile", "collapse", "recall", "sensitivity"}
    | {"auc_same", "auc_told", "auc_untold", "auc_untold_fresh"},
    "components": {"E", "EP", "EPI", "EPIC", "EPICD", "EPICDM"},
    "users": {"seen", "unseen", "all"},
    "candidates": {2, 4},
    "task": {"inter", "intra"},
}


def committed(pattern: str) -> list[Path]:
    others = ("preference-mini", "generation-mini")
    return [path for path in sorted(FIGURES.glob(pattern)) if pattern[0] != "*" or path.parent.name not in others]


@pytest.mark.parametrize("pattern", PROMISED)
def test_promised_columns_come_first_and_hold_what_is_promised(pattern):
    promised = PROMISED[pattern].split()
    paths = committed(pattern)
    assert paths, pattern
    for path in paths:
        table = pd.read_csv(path)
        assert table.columns[: len(promised)].tolist() == promised, path
        for column in set(promised) & set(VALUES):
            assert set(table[column]) <= VALUES[column], (path, column)
        told = table.dropna(subset=["value", "low", "high"])
        assert told["value"].between(told["low"] - 1e-6, told["high"] + 1e-6).all(), path


def test_a_row_of_a_promised_table_is_named_by_its_first_columns():
    for pattern, columns in PROMISED.items():
        names = columns.split(" value")[0].split()
        for path in committed(pattern):
            table = pd.read_csv(path)
            if path.name == "probes.csv":  # of two raters, chosen on one split and reported on the other
                names = [*names, "split", "rater"]
            assert not table.duplicated(names).any(), path
