"""Reads a table's rows, from CSV, TSV or parquet, and collects what is wrong with them by file, row and field."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from prefmoe.data import prompts
from prefmoe.system.files import read_regular

REPORTED_MISTAKES = 20
"""How many mistakes one MMPBError spells out; the others are counted."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
SEVERAL = (list, tuple, dict, bytes)
"""Types of parquet values that a CSV's field has no text for."""

TABLES = (*SEPARATORS, PARQUET)
"""Endings of the files that `read_rows` reads; any other one is read as CSV."""

csv.field_size_limit(2**31 - 1)  # a picture as base64 text is longer than the 128 KiB that csv takes by default

Record = tuple[str, Sequence[Any]]
"""Where a record is ("line 3"), and its values."""


class MMPBError(ValueError):
    """A data folder or table with mistakes; the message names file, row, field and what was expected for each."""


@dataclass
class Mistakes:
    """Collects the mistakes of a data folder, so that all of them are reported at once."""

    source: str
    lines: list[str] = field(default_factory=list)

    def add(self, file: str, expected: str, *, place: str = "", column: str | None = None) -> None:
        """Notes one mistake: where it is and what was expected there."""
        where = file + (f", {place}" if place else "") + (f", field {column}" if column else "")
        self.lines.append(f"{where}: {expected}")

    def check(self) -> None:
        """Raises MMPBError if there are any."""
        if self.lines:
            shown = [f"  {line}" for line in self.lines[:REPORTED_MISTAKES]]
            if len(self.lines) > REPORTED_MISTAKES:
                shown.append(f"  ... and {len(self.lines) - REPORTED_MISTAKES} more")
            raise MMPBError(f"{self.source} has {len(self.lines)} mistake(s):\n" + "\n".join(shown))


@dataclass(frozen=True)
class Row:
    """One record of a table: its file, its place there ("line 3"; "row 3" of a parquet file), its cleaned fields."""

    file: str
    place: str
    fields: Mapping[str, str]
    mistakes: Mistakes

    def __getitem__(self, column: str) -> str:
        return self.fields[column]

    def mistake(self, column: str, problem: str) -> None:
        """Notes a mistake in the column."""
        index = self.fields.get("index")
        name = column if index is None or column == "index" else f"{column} (index {index})"
        self.mistakes.add(self.file, problem, place=self.place, column=name)

    def require(self, valid: bool, column: str, expected: str) -> bool:
        """Notes a mistake in the column unless valid."""
        if not valid:
            self.mistake(column, f"expected {expected}, found {_shortened(self[column])!r}")
        return valid

    def number(self, column: str, expected: str, allowed: range | None = None) -> int | None:
        """The column as a non-negative integer (one of ``allowed``), or None and a mistake."""
        value = whole_number(self[column])
        valid = value is not None and (allowed is None or value in allowed)
        return value if self.require(valid, column, expected) else None

    def place_for(self, other: Row) -> str:
        """This row's place, as said to somebody who reads about the other row."""
        return self.place if other.file == self.file else f"{self.place} of {self.file}"


def whole_number(text: str) -> int | None:
    """The non-negative integer of 18 digits at most that a text is; None if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def numbered(rows: Iterable[Row]) -> dict[int, Row]:
    """The rows by their index, the first of each; one that is no number, or was there before, is noted."""
    found: dict[int, Row] = {}
    for row in rows:
        if (index := row.number("index", "a non-negative integer")) is not None:
            first = found.setdefault(index, row)
            row.require(first is row, "index", f"an index that occurs once ({first.place_for(row)} has it, too)")
    return found


@dataclass(frozen=True)
class Columns:
    """Which columns a table has.

    Attributes:
        required: without these it is refused.
        defaults: column -> what every row of a table without it says there; None: there are no other columns than the
            required and the optional ones (else all others are kept).
        instead: column -> the one whose place it takes, where the table has it.
        optional: those that a table may lack, and of which nothing is said then.
    """

    required: Sequence[str]
    defaults: Mapping[str, str] | None = None
    instead: Mapping[str, str] = field(default_factory=dict)
    optional: Sequence[str] = ()

    def knows(self, column: str) -> bool:
        """Whether the column is none of a table's further ones."""
        return column in (*self.required, *self.optional, *(self.defaults or ()))

    def mistakes_of(self, header: Sequence[str]) -> tuple[list[tuple[str, list[str]]], bool]:
        """What is wrong with a header, by kind of mistake, and whether rows can be read in spite of it."""
        there = {self.instead.get(column, column) for column in header}
        known = (*self.required, *self.optional, *(self.defaults or ()))
        missing = [column for column in self.required if column not in there]
        twice = sorted({column for column in header if header.count(column) > 1})
        absent = [column for column in known if column not in there]
        others = [column for column in header if column not in known and column not in self.instead]
        unexpected, misspelt = others if self.defaults is None else [], []
        for column in others if self.defaults is not None else ():
            near = [known for known in absent if known.lower() == column.strip().lower()]
            near = near or difflib.get_close_matches(column, absent, n=1, cutoff=0.85)
            misspelt += [f"{column} (did you mean {near[0]}?)"] if near else []
        kinds = (("missing", missing), ("unexpected", unexpected), ("misspelt", misspelt), ("repeated", twice))
        return [kind for kind in kinds if kind[1]], not (missing or twice)


def read_rows(
    path: Path, columns: Columns, mistakes: Mistakes, name: str, unpack: Callable[[str, Any], str | None] | None = None
) -> Iterator[Row]:
    """The records of a table; whatever is malformed is noted in ``mistakes``.

    Args:
        name: of the file, in messages.
        unpack: makes text of a column's value that is none, such as a picture; None where it is as it stands. Its
            ValueError becomes a mistake, and so does a list or a mapping that it leaves in a column of ``columns``.
    """
    records = _parquet(path, mistakes, name) if path.suffix.lower() == PARQUET else _text(path, mistakes, name)
    first = next(records, None)
    if first is None:
        return
    header = list(first[1])
    problems, readable = columns.mistakes_of(header)
    for problem, found in problems:
        mistakes.add(name, f"{problem} column(s): {', '.join(map(repr, found))}", place=first[0])
    if not readable:
        return
    for place, values in records:
        record = dict(zip(header, values, strict=True))
        for other, column in columns.instead.items():
            value = record.pop(other, None)
            if column not in record or not _empty(value):
                record[column] = value
        fields, problems = dict(columns.defaults or {}), []
        for column, value in record.items():
            try:
                unpacked = unpack(column, value) if unpack else None
                if unpacked is None and isinstance(value, SEVERAL) and columns.knows(column):
                    raise ValueError(f"expected one value, found {_shortened(value)}")
            except ValueError as error:
                unpacked, problems = "", [*problems, (column, str(error))]
            fields[column] = prompts.clean(_as_text(value)) if unpacked is None else unpacked
        row = Row(name, place, fields, mistakes)
        for column, problem in problems:
            row.mistake(column, problem)
        yield row


def read_text(path: Path) -> tuple[list[str], list[Sequence[str]]]:
    """The header and the records of a CSV or TSV, as they stand there.

    Raises MMPBError naming every line with another number of fields than the header, what else is not well-formed, and
    columns that occur twice.
    """
    mistakes = Mistakes(str(path))
    header, *records = [list(values) for _, values in _text(path, mistakes, path.name)] or [[]]
    if not (mistakes.lines or header):
        mistakes.add(path.name, "expected a header, found nothing", place="line 1")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        mistakes.add(path.name, f"repeated column(s): {', '.join(map(repr, twice))}", place="line 1")
    mistakes.check()
    return header, records


def _text(path: Path, mistakes: Mistakes, name: str) -> Iterator[Record]:
    """The records of a CSV or TSV, the header first. Lines without anything are none."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except OSError as error:
        mistakes.add(name, f"cannot be read: {error.strerror}{_others(path)}")
        return
    except UnicodeDecodeError as error:
        mistakes.add(name, f"expected UTF-8 text, byte {error.start} is something else")
        return
    kind = "TSV" if path.suffix.lower() == ".tsv" else "CSV"
    if "\0" in text:
        before = text.partition("\0")[0].count("\n")
        mistakes.add(name, "expected text, found a NUL byte", place=f"line {before + 1}")
        return
    separator = SEPARATORS.get(path.suffix.lower(), ",")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    line = 1
    try:
        header = next(reader, [])
        yield "line 1", header
        line = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                mistakes.add(name, f"expected {len(header)} fields, found {len(values)}", place=f"line {line}")
            elif values:
                yield f"line {line}", values
            line = reader.line_num + 1
    except csv.Error as error:
        place = f"line {line}" if line == reader.line_num else f"lines {line} to {reader.line_num}, one record"
        mistakes.add(name, f"not well-formed {kind}: {error}", place=place)


def _parquet(path: Path, mistakes: Mistakes, name: str) -> Iterator[Record]:
    """The records of a parquet file, the header first; few at a time, since they may hold pictures."""
    if path.exists() and not path.is_file():
        mistakes.add(name, "cannot be read: Not a regular file")
        return
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield "schema", file.schema_arrow.names
            row = 0
            for batch in file.iter_batches(batch_size=64):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row += 1
                    yield f"row {row}", values
    except FileNotFoundError:
        mistakes.add(name, f"cannot be read: No such file or directory{_others(path)}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        mistakes.add(name, f"not a whole parquet file: {error}")


def _others(path: Path) -> str:
    """What else could have been meant by a table that is not there."""
    if path.exists() or not path.parent.is_dir():
        return ""
    found = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in TABLES and p.stem != "annotations")
    return f"; the folder holds {', '.join(found)}: name the table as the edition's data.csv" if found else ""


def _as_text(value: Any) -> str:
    """A parquet value as a CSV would have it."""
    if _empty(value):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def _shortened(value: Any, length: int = 60) -> str:
    """What a message shows of a value."""
    text = str(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is how pandas writes that nothing is there
