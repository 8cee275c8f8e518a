"""The report of a comparison: its verdict in a sentence, what differs most, and the files that hold it."""

from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe.analysis import tables
from prefmoe.system.files import whole_file
from prefmoe.workflow.reproduction import (
    ALLOWED,
    BY_CHANCE,
    EQUAL,
    EXACT,
    FAR,
    JUDGED,
    NOT,
    REPRODUCED,
    SHOWN,
    TOLERANCE,
    Comparison,
)  # fmt: skip

VERDICT = "verdict.txt"
"""The file of the report, written last."""


def summary(comparison: Comparison) -> pd.DataFrame:
    """A line per table: how many of its numbers are compared, equal, allowed for, too far, and outside the interval."""
    cells = comparison.cells
    outside = (cells["here"] < cells["low"] - TOLERANCE) | (cells["here"] > cells["high"] + TOLERANCE)
    counts = pd.crosstab(cells["table"], cells["state"]).reindex(columns=[EQUAL, ALLOWED, FAR, SHOWN], fill_value=0)
    counts.insert(0, "numbers", counts.sum(axis=1))
    counts["outside committed interval"] = (outside & (cells["state"] != EQUAL)).groupby(cells["table"]).sum()
    judged = [name for name in (*JUDGED, *EXACT) if name in counts.index]
    return counts.loc[judged + [name for name in counts.index if name not in judged]].rename_axis(None)


def sentence(comparison: Comparison) -> str:
    """The verdict with its reasons, in one sentence or two."""
    cells, verdict = comparison.cells, comparison.verdict
    judged = cells[(cells["scale"] != "unknown") | (cells["state"] == FAR)]
    differing = judged[judged["state"] != EQUAL]
    if verdict == REPRODUCED:
        return f"{verdict}: all {len(cells)} numbers of {cells['table'].nunique()} tables are the committed ones."
    if verdict == NOT:
        far = differing[differing["state"] == FAR]
        reasons = _first(comparison.problems)
        if len(far):
            places = _first([f"{row.table}: {row.cell}" for row in far.itertuples()])
            reasons.insert(0, f"{len(far)} of {len(judged)} judged numbers are too far off ({'; '.join(places)})")
        return f"{verdict}: {'; '.join(reasons)}."
    if differing.empty:
        return f"{verdict}: all {len(judged)} judged numbers are the committed ones, and only finer ones differ."
    begin = f"{verdict}: {len(differing)} of {len(judged)} judged numbers differ"
    spread = differing[differing["scale"].isin(BY_CHANCE)]
    if spread.empty:
        return f"{begin}, all within the committed intervals."
    usual = np.sqrt((cells.loc[cells["scale"].isin(BY_CHANCE), "units"] ** 2).mean())
    most, limit = f"{spread['units'].max():.1f}", f"{comparison.limit:.1f}"
    unit = "spread between two sets of seeds"
    if (spread["scale"] == "one seed").any():
        unit = "sampling error of a difference, as one seed has no spread"
    return (
        f"{begin}, none by more than other seeds would give (typically {usual:.1f}, at most {most} times the {unit}; "
        f"the limit is {limit})."
    )


def _first(lines: list[str], count: int = 5) -> list[str]:
    """A few of many, and how many more there are."""
    return lines[:count] + ([f"and {len(lines) - count} more"] if len(lines) > count else [])


def report(comparison: Comparison, edition: str) -> str:
    """All of it to read: a line per table, the cells that differ most, changed conclusions, and last the verdict."""
    cells = comparison.cells
    parts = [f"Edition {edition}: this machine's tables beside the committed ones", summary(comparison).to_string()]
    differing = cells[cells["state"].isin([ALLOWED, FAR])]
    worst = differing.sort_values(["state", "units"], key=lambda c: c if c.name == "units" else c != FAR,
                                  ascending=[True, False]).head(8)  # fmt: skip
    if len(worst):
        shown = worst[["table", "cell", "committed", "low", "high", "here", "units", "scale"]]
        parts += ["The largest differences:", shown.to_string(index=False, float_format=lambda x: f"{x:.3f}")]
    if comparison.conclusions:
        head = f"Paired comparisons that come out differently ({len(comparison.conclusions)}):"
        parts.append("\n  ".join([head, *_first(comparison.conclusions, 10)]))
    for title, lines in (("Missing or additional:", comparison.problems), ("Noted:", comparison.notes)):
        if lines:
            parts.append("\n  ".join([title, *_first(lines, 10)]))
    return "\n\n".join([*parts, f"Verdict: {sentence(comparison)}"]) + "\n"


def write(comparison: Comparison, edition: str, folder: Path) -> str:
    """Writes reproduction.csv, reproduction.png and, last, verdict.txt, which is `report`; returns that text."""
    from prefmoe.figures import style
    from prefmoe.figures.reproduction import draw

    tables.write_csv(comparison.cells, folder / "reproduction.csv")
    style.save(draw(comparison.cells, sentence(comparison), edition), folder / "reproduction.png")
    text = report(comparison, edition)
    with whole_file(folder / VERDICT) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
