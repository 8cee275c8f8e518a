"""Committed tables as sentences quote them: rows by what stands in their columns, numbers as the pages write them."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from prefmoe.analysis import claims
from prefmoe.analysis.answers import TableError
from prefmoe.config import ROOT


@dataclass(frozen=True)
class Tables:
    """The committed tables of a clone, rows of which are looked up by what stands in their columns."""

    root: Path = ROOT

    def rows(self, name: str, **where: object) -> pd.DataFrame:
        """Rows of figures/<name>.csv. Raises TableError if there are none."""
        path = self.root / "figures" / f"{name}.csv"
        if not path.is_file():
            raise TableError(f"{path}: no such table; a sentence at the end of a notebook needs it")
        rows = pd.read_csv(path)
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if rows.empty:
            raise TableError(f"{path}: no row with {where}")
        return rows

    def row(self, name: str, **where: object) -> pd.Series:
        """The one row. Raises TableError if there are several."""
        rows = self.rows(name, **where)
        if len(rows) > 1:
            raise TableError(f"figures/{name}.csv: {len(rows)} rows with {where}, expected one")
        return rows.iloc[0]

    def main(self, method: str, metric: str, backbone: str = "llava-mini") -> pd.Series:
        """A row of the default edition's Table 1, without small talk."""
        return self.row("mini/table1", method=method, metric=metric, backbone=backbone, turns=0)

    def paired(self, baseline: str, metric: str, edition: str = "mini", backbone: str = "llava-mini") -> pd.Series:
        """PrefMoE minus a baseline, in the comparisons of an edition."""
        where = {"method": "PrefMoE", "backbone": backbone, "turns": 0}
        return self.row(f"{edition}/comparisons", baseline=baseline, metric=metric, **where)

    def refuted(self, claim: str, backbone: str) -> list[str]:
        """What refutes a claim by the rule that was written down before the runs, in the default edition's tables."""
        names = ("table1", "controls", "comparisons")
        return claims.refuted_by(
            claims.claims_table(*(self.rows(f"mini/{name}") for name in names), backbone=backbone), claim
        )

    def choices(self, method: str, users: str = "all", n_ref: int = 8) -> float:
        """Accuracy of one of two in the edition about choices."""
        where = {"method": method, "users": users, "n_ref": n_ref, "candidates": 2, "k": 1}
        return float(self.row("preference-mini/table1", **where)["value"])

    def printed(self, notebook: str, pattern: str) -> tuple[str, ...]:
        """What the outputs of a committed notebook say, by the groups of a pattern. Raises TableError without a "
        "match."""
        (path,) = (self.root / "notebooks").glob(f"{notebook}_*.ipynb")
        cells = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        outputs = [o for cell in cells for o in cell.outputs]
        texts = (o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)
        if match := re.search(pattern, "\n".join(texts)):
            return match.groups()
        raise TableError(f"{path}: no output says {pattern!r}")


def dot(value: float, places: int = 2) -> str:
    """A number as the pages write it: .53, -.004, 1.00."""
    text = f"{value:.{places}f}"
    text = text[1:] if set(text) <= set("-0.") and text[0] == "-" else text
    return re.sub(r"^(-?)0\.", r"\1.", text)


def around(row: pd.Series, places: int = 2, name: str = "value") -> str:
    """With the interval: .53 [.48, .58]."""
    return f"{dot(row[name], places)} [{dot(row['low'], places)}, {dot(row['high'], places)}]"


def holds(condition: bool, what: str) -> None:
    if not condition:
        raise TableError(f"it no longer holds that {what}")
