"""How many trials of its settings each row had, from the committed CSV files beside the grids in config/tuning."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from prefmoe.analysis.tables import read_table
from prefmoe.config import CONFIG_FOLDER, Edition, load_edition
from prefmoe.system.yaml_settings import read_settings

TUNED = ("mini", "published-mini", "rivals", "preference-mini")
"""Editions with a grid, in the order in which they are shown."""


def budgets(figures: Path) -> pd.DataFrame | None:
    """A line per row of an edition that was tuned, and per row that takes another's choice: edition, method,
    information, trials, trainings, questions, tried (each setting's lowest and highest value), chosen.

    ``figures``: of a clone; config/tuning lies beside it. None if nobody has committed trials there.
    """
    folder = figures.parent / CONFIG_FOLDER.name / "tuning"
    paths = [path for name in TUNED if (path := folder / f"{name}.csv").is_file()]
    lines = [line for path in paths for line in _lines(load_edition(path.stem), path)]
    return pd.DataFrame(lines) if lines else None


def _lines(edition: Edition, path: Path) -> Iterator[dict[str, object]]:
    found, grid = read_table(path), path.with_suffix(".yaml")
    takes = read_settings(grid)[0].get("takes", {}) if grid.is_file() else {}
    for key, trials in found.groupby("method", sort=False):
        settings = [json.loads(cell) for cell in trials["settings"].unique()]
        (best,) = (json.loads(cell) for cell in trials.loc[trials["chosen"] == 1, "settings"].unique())
        values = {name: [one[name] for one in settings if name in one] for one in settings for name in one}
        tried = [f"{name} {min(some):g} to {max(some):g}" if len(set(some)) > 1 else f"{name} {some[0]:g}"
                 for name, some in values.items()]  # fmt: skip
        own = {
            "trials": len(settings), "trainings": len(trials), "questions": trials["n"].max(),
            "tried": ", ".join(tried), "chosen": ", ".join(f"{name} {value:g}" for name, value in best.items()),
        }  # fmt: skip
        yield _about(edition, str(key)) | own
        for other in (row for row, source in takes.items() if source == key):
            choice = f"as {edition.methods[str(key)].label}"
            yield _about(edition, other) | dict.fromkeys(own, "–") | {"trials": 0, "trainings": 0, "chosen": choice}


def _about(edition: Edition, key: str) -> dict[str, object]:
    method = edition.methods[key]
    return {"edition": edition.name, "method": method.label, "information": method.information}
