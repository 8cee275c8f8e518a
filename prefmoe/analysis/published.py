"""The paper's printed tables, read from published/."""

import pandas as pd

from prefmoe.config import ROOT

QUESTIONS = {"overall": 2145, "preference": 750, "profile": 1395, "collapse": 219}
"""Questions behind each printed share: the test split of MMPB-clean (collapse: the user is outside the group)."""


def read(name: str) -> pd.DataFrame:
    """A table of published/: "table1", "table2", "dataset_statistics" or "identities", as printed. Raises
    FileNotFoundError if there is no such table."""
    return pd.read_csv(ROOT / "published" / f"{name}.csv")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One line per method and type (or per components) and number of turns, a column per metric."""
    keys = [column for column in ("type", "method", "components", "turns") if column in table]
    metrics = list(dict.fromkeys(table["metric"]))
    order = table[keys].drop_duplicates()
    values = table.pivot(index=keys, columns="metric", values="value")[metrics]
    return values.loc[list(order.itertuples(index=False, name=None))].rename_axis(columns=None)
