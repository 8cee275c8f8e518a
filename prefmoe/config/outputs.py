"""Where an edition's tables and figures are: made by the workflow, drawn by hand, or committed."""

import csv
import os
import warnings
from pathlib import Path

from prefmoe.config import FIGURES, RESULTS, load_edition

NOTEBOOK_FIGURES = "PREFMOE_FIGURES"
"""Environment variable by which the runner tells a notebook where its figures go."""

PARTS = {"": "table1.csv", "protocol": "differences.csv"}
"""What is made by a command of its own: the subfolder, and a table that is there when it has been made."""


SPEED = "speed"
"""The folder of results/ and figures/, beside those of the editions, that has measurements of speed."""


class OutputError(ValueError):
    """Tables that are not there because nobody has made them."""


def made_folder(edition: str, results: str | Path = RESULTS) -> Path:
    """Where the workflow, and nothing else, puts an edition's tables and figures."""
    return Path(results) / edition / "figures"


def committed_folder(edition: str, figures: str | Path = FIGURES) -> Path:
    """Where workflow/scripts/publish.py, and nothing else, copies them, to be committed."""
    return Path(figures) / edition


def trials_file(edition: str, results: str | Path = RESULTS) -> Path:
    """Where workflow/scripts/tune.py writes its trials; published, they stand beside the grid in config/tuning."""
    return Path(results) / edition / "tuning" / "trials.csv"


def speed_folder(results: str | Path = RESULTS) -> Path:
    """Where workflow/scripts/speed.py writes what it measured, a file per kind of device; published: figures/speed/."""
    return Path(results) / SPEED


def figures_folder(edition: str) -> Path:
    """Where the running notebook saves what it draws: the edition's folder if the workflow runs it.

    One that is run by hand, perhaps with parameters of its own, has a folder of its own, so that it never takes the
    place of a figure that the edition's settings made. Raises ConfigError as `load_edition`.
    """
    edition = load_edition(edition).name
    return Path(os.environ.get(NOTEBOOK_FIGURES) or RESULTS / edition / "by_hand")


def tables_folder(edition: str, part: str = "") -> Path:
    """Where to read an edition's tables: this machine's if it has made them, or else, with a warning, the committed.

    ``part``: a key of `PARTS`. Tables of one part never come from both places. Raises OutputError if there are none in
    either place, or this machine's lack columns that the committed ones have: an earlier version made them; ConfigError
    as `load_edition`.
    """
    edition = load_edition(edition).name
    made, committed = made_folder(edition, RESULTS) / part, committed_folder(edition, FIGURES) / part
    make = f"`snakemake --cores all {part} --config edition={edition}`".replace("  ", " ")
    if (made / PARTS[part]).is_file():
        for ours in sorted(made.glob("*.csv")):
            there = _columns(ours)
            if missing := [name for name in _columns(committed / ours.name) if name not in there]:
                raise OutputError(
                    f"{ours}: no column {', '.join(missing)}, which {committed / ours.name} has; an earlier version "
                    f"made it: make it again with {make}"
                )
        return made
    if (committed / PARTS[part]).is_file():
        warnings.warn(f"no tables in {made}: this machine has not made them. Reading {committed}", stacklevel=2)
        return committed
    raise OutputError(f"there are no tables in {made}, nor committed ones in {committed}; make them with {make}")


def _columns(table: Path) -> list[str]:
    """The names in the first row of a CSV file; none if there is no such file. What is no text is left to readers."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        return next(csv.reader(file), [])
