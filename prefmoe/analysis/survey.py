"""The survey's map: four applications, four ways of personalising, and what of each runs here, with its number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field, model_validator

from prefmoe.analysis.answers import TableError
from prefmoe.analysis.tables import read_table
from prefmoe.config import FIGURES, ROOT
from prefmoe.config.strict import Strict
from prefmoe.system.yaml_settings import read_checked

APPLICATIONS = ("text generation", "image generation", "recommendation", "retrieval")
MECHANISMS = ("instruction", "alignment", "generation", "fine-tuning")
MAP = ROOT / "published" / "survey_map.yaml"

Where = dict[str, str | int]
"""Columns of a table, and the values that leave one row of it."""


class Here(Strict):
    """Something that runs here.

    Attributes:
        name: as pages call it.
        command: what makes it.
        notebook: the two digits of the one that explains it. page: of docs, where it has tables of its own.
        table: a committed table, figures/<table>.csv, and where: its row.
        measure: what the row's value is, in words.
        chance: the value of whoever knows nobody, or the row of the same table that has it.
    """

    name: str
    command: str
    notebook: str = Field("", pattern=r"^(\d\d)?$")
    page: str = ""
    table: str = ""
    where: Where = {}
    measure: str = ""
    chance: float | Where | None = None

    @model_validator(mode="after")
    def _a_number_is_whole(self) -> Here:
        if len({bool(self.table), bool(self.where), bool(self.measure), self.chance is not None}) > 1:
            raise ValueError("table, where, measure and chance are given together or not at all")
        return self


class Empty(Strict):
    """Why nothing runs here, and a paper to read: its name and arXiv number."""

    why: str
    read: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")


class Cell(Strict):
    """What the survey names for an application and a mechanism, and what runs here or why nothing does."""

    survey: Annotated[tuple[str, ...], Field(min_length=1)]
    here: tuple[Here, ...] = ()
    empty: Empty | None = None

    @model_validator(mode="after")
    def _filled_or_empty(self) -> Cell:
        if bool(self.here) == (self.empty is not None):
            raise ValueError("expected either `here`, or `empty` with a reason and a paper")
        return self


Row = Annotated[dict[str, Cell], Field(min_length=1)]


class SurveyMap(Strict):
    """All sixteen cells, ``cells[application][mechanism]``."""

    cells: dict[str, Row]


def read_map(path: str | Path = MAP) -> SurveyMap:
    """The map as it is written down. Raises TableError with one line per mistake: an unknown or missing application or
    mechanism, a cell that is neither filled nor empty, or a number without its row."""
    return read_checked(Path(path), SurveyMap, TableError, _mistakes)


def _mistakes(found: SurveyMap) -> Iterator[str]:
    yield from _differences("applications", APPLICATIONS, found.cells)
    for application, row in found.cells.items():
        yield from _differences(f"{application}", MECHANISMS, row)


def _differences(what: str, expected: tuple[str, ...], found: Mapping[str, object]) -> Iterator[str]:
    if list(found) != list(expected):
        yield f"{what}: expected {', '.join(expected)} in this order, found {', '.join(found)}"


def numbers(found: SurveyMap, figures: str | Path = FIGURES) -> pd.DataFrame:
    """What of the map came out as a number: a row per entry of a cell, in the map's order.

    Columns: application, mechanism, name, command, notebook, page, measure, value, low, high (95 %), n, chance; those
    from measure on are missing where an entry has no number. A cell without entries has no row. Raises TableError if a
    table is not committed, or does not have exactly one such row.
    """
    rows = []
    for application, mechanism, entry in entries(found):
        row = {"application": application, "mechanism": mechanism} | entry.model_dump(
            include={"name", "command", "notebook", "page"}
        )
        if entry.table:
            result = _one(entry.table, entry.where, figures)
            chance = entry.chance
            row |= {"measure": entry.measure} | {name: result[name] for name in ("value", "low", "high", "n")}
            row["chance"] = _one(entry.table, chance, figures)["value"] if isinstance(chance, dict) else chance
        rows.append(row)
    return pd.DataFrame(rows)


def entries(found: SurveyMap) -> Iterator[tuple[str, str, Here]]:
    """Application, mechanism and entry of all that runs here."""
    for application, row in found.cells.items():
        for mechanism, cell in row.items():
            for entry in cell.here:
                yield application, mechanism, entry


def _one(table: str, where: Where, figures: str | Path) -> pd.Series:
    path = Path(figures) / f"{table}.csv"
    if not path.is_file():
        raise TableError(f"{path}: the map of the survey needs this table, and it is not there")
    rows = read_table(path)
    if unknown := set(where) - set(rows):
        raise TableError(f"{path}: no column {min(unknown)!r}; expected one of {', '.join(rows)}")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise TableError(f"{path}: {len(rows)} rows with {where}, expected one")
    return rows.iloc[0]
