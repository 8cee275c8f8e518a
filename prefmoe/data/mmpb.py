"""Reads MMPB-clean's folder (the miniature has the same layout) into a Benchmark and checks it row by row."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import Error as CSVError
from csv import reader as csv_reader
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from PIL import Image

from prefmoe.files import whole_file

from . import prompts
from .benchmark import (
    FACETS,
    HOLDER_SEPARATOR,
    OPTION_LETTERS,
    Benchmark,
    Example,
    Turn,
    User,
    join_holders,
    split_holders,
)

INJECTION_COLUMNS = tuple(f"injection_image_{k}" for k in range(1, 6))
IMAGE_COLUMNS = ("image_path", *INJECTION_COLUMNS)

COLUMNS = (
    "index", "name", "attribute", "category", "l2-category", "concept", "target", "task_family", "question",
    *OPTION_LETTERS, "answer", "answer_text", *IMAGE_COLUMNS, "preference",
    "description_simple", "description_moderate", "description_detailed", "description_super_detailed",
    "polarity", "preference_semantic_invert", "preference_bucket_kind", "preference_common_items",
    "preference_bucket_names", "preference_candidate_neg_names", "recognition_bucket_type",
)  # fmt: skip
"""MMPB-clean's columns; a CSV has exactly these, in any order."""

ANNOTATION_COLUMNS = ("index", "item", "popularity", "seen_pair")

APART = f"which stands between the names of those who hold a preference, as {HOLDER_SEPARATOR!r}"

SPLIT_KEYS = {f"{split}_idx": split for split in ("train", "validation", "test", "unseen")}
OPTIONAL_SPLITS = ("validation_idx", "unseen_idx")

ATTRIBUTES = get_args(User.model_fields["attribute"].annotation)
CATEGORIES = get_args(Example.model_fields["category"].annotation)
L2_CATEGORIES = get_args(Example.model_fields["l2_category"].annotation)

REPORTED_MISTAKES = 20
"""How many mistakes one MMPBError spells out; the others are counted."""


class MMPBError(ValueError):
    """A data folder with mistakes; the message names file, row, field and what was expected for each."""


@dataclass
class Mistakes:
    """Collects the mistakes of a data folder, so that all of them are reported at once."""

    source: str
    lines: list[str] = field(default_factory=list)

    def add(self, file: str, expected: str, *, line: int | None = None, column: str | None = None) -> None:
        """Notes one mistake: where it is and what was expected there."""
        place = file + (f", line {line}" if line else "") + (f", field {column}" if column else "")
        self.lines.append(f"{place}: {expected}")

    def check(self) -> None:
        """Raises MMPBError if there are any."""
        if self.lines:
            shown = [f"  {line}" for line in self.lines[:REPORTED_MISTAKES]]
            if len(self.lines) > REPORTED_MISTAKES:
                shown.append(f"  ... and {len(self.lines) - REPORTED_MISTAKES} more")
            raise MMPBError(f"{self.source} has {len(self.lines)} mistake(s):\n" + "\n".join(shown))


@dataclass(frozen=True)
class Row:
    """One record of a CSV: the line where it starts, and its cleaned fields."""

    file: str
    line: int
    fields: Mapping[str, str]
    mistakes: Mistakes

    def __getitem__(self, column: str) -> str:
        return self.fields[column]

    def mistake(self, column: str, problem: str) -> None:
        """Notes a mistake in the column."""
        index = self.fields.get("index")
        name = column if index is None or column == "index" else f"{column} (index {index})"
        self.mistakes.add(self.file, problem, line=self.line, column=name)

    def require(self, valid: bool, column: str, expected: str) -> bool:
        """Notes a mistake in the column unless valid."""
        if not valid:
            found = self[column] if len(self[column]) <= 60 else self[column][:57] + "..."
            self.mistake(column, f"expected {expected}, found {found!r}")
        return valid

    def number(self, column: str, expected: str, allowed: range | None = None) -> int | None:
        """The column as a non-negative integer (one of ``allowed``), or None and a mistake."""
        value = int(self[column]) if re.fullmatch(r"[0-9]{1,18}", self[column]) else None
        valid = value is not None and (allowed is None or value in allowed)
        return value if self.require(valid, column, expected) else None


def read_rows(path: Path, columns: Sequence[str], mistakes: Mistakes, name: str) -> Iterator[Row]:
    """The records of a CSV that has exactly these columns; whatever is malformed is noted in ``mistakes``."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        mistakes.add(name, f"cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError as error:
        mistakes.add(name, f"expected UTF-8 text, byte {error.start} is something else")
        return
    reader = csv_reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        extra = [column for column in header if column not in columns]
        twice = sorted({column for column in header if header.count(column) > 1 and column in columns})
        for problem, found in (("missing", missing), ("unexpected", extra), ("repeated", twice)):
            if found:
                mistakes.add(name, f"{problem} column(s): {', '.join(map(repr, found))}", line=1)
        if missing or twice:
            return
        line = reader.line_num + 1
        for values in reader:
            if len(values) != len(header):
                mistakes.add(name, f"expected {len(header)} fields, found {len(values)}", line=line)
            else:
                cleaned = {column: prompts.clean(value) for column, value in zip(header, values, strict=True)}
                yield Row(name, line, cleaned, mistakes)
            line = reader.line_num + 1
    except CSVError as error:
        mistakes.add(name, f"not well-formed CSV: {error}", line=reader.line_num)


def read(data_folder: str | Path, *, csv: str = "sample.csv", seen: Path | None = None) -> Benchmark:
    """The benchmark in ``<data_folder>/mmpb_clean`` and its small talk in ``<data_folder>/multi_turn``.

    Every row, every picture (is it complete?), the splits, the transcripts and the optional
    ``annotations.csv`` are checked.

    Args:
        seen: a file that remembers the complete pictures, so that the next reading decodes only those whose size or
            time of change is another; None decodes all.

    Raises:
        MMPBError: with one line per mistake (REPORTED_MISTAKES at most): file, line, field, expectation.
    """
    root = Path(data_folder)
    if not (root / "mmpb_clean").is_dir():
        raise MMPBError(
            f"{root / 'mmpb_clean'}: no such folder; expected a data folder that holds mmpb_clean/ "
            f"({csv}, split.json, images/, injection/). "
            "'python -m prefmoe.data.fetch FOLDER' downloads the public subset."
        )
    mistakes = Mistakes(str(root))
    name = f"mmpb_clean/{csv}"
    rows = list(read_rows(root / "mmpb_clean" / csv, COLUMNS, mistakes, name))
    if not rows and not mistakes.lines:
        mistakes.add(name, "expected at least one question, found none")
    indices = _check_indices(rows)
    users = _read_users(rows, root)
    examples = [_read_example(row, root) for row in rows]
    pictures = _check_pictures(rows, root, seen)
    splits = _read_splits(root / "mmpb_clean" / "split.json", indices, mistakes)
    transcripts = _read_transcripts(root / "multi_turn" / "generic_text", mistakes)
    annotations = _read_annotations(root / "mmpb_clean" / "annotations.csv", indices, mistakes)
    mistakes.check()
    frame = _frame(rows)
    return Benchmark(
        root=root,
        frame=frame,
        users=users,
        examples={example.index: example for example in examples if example is not None},
        splits=splits,
        transcripts=transcripts,
        annotations=annotations,
        digest=_digest(frame, splits, transcripts, annotations, pictures),
    )


def _check_indices(rows: Sequence[Row]) -> dict[int, str]:
    """Index -> user name of the rows whose index is a number that did not occur before."""
    found: dict[int, Row] = {}
    for row in rows:
        index = row.number("index", "a non-negative integer")
        if index is None:
            continue
        first = found.setdefault(index, row)
        row.require(first is row, "index", f"an index that occurs once (line {first.line} has it, too)")
    return {index: row["name"] for index, row in found.items()}


def _read_users(rows: Sequence[Row], root: Path) -> dict[str, User]:
    """Users by name in order of first appearance; every row about a user must repeat the same profile."""
    users: dict[str, User] = {}
    first_rows: dict[str, Row] = {}
    for row in rows:
        if not row.require(row["name"] != "", "name", "a user's name"):
            continue
        row.require("|" not in row["name"], "name", f"a name without '|', {APART}")
        first = first_rows.setdefault(row["name"], row)
        if first is not row:
            for column in ("attribute", "preference", "description_moderate"):
                expected = f"what line {first.line} says of user {row['name']!r}"
                row.require(row[column] == first[column], column, expected)
            continue
        known = row.require(row["attribute"] in ATTRIBUTES, "attribute", f"one of {', '.join(ATTRIBUTES)}")
        expected = f"a description of user {row['name']!r}"
        described = row.require(row["description_moderate"] != "", "description_moderate", expected)
        try:
            preferences = prompts.parse_preferences(row["preference"])
        except ValueError as error:
            row.mistake("preference", str(error))
            continue
        if known and described:
            users[row["name"]] = User(
                name=row["name"],
                attribute=row["attribute"],
                description=row["description_moderate"],
                preferences=preferences,
                images=tuple(root / row[column] for column in INJECTION_COLUMNS),
            )
    return users


def _read_example(row: Row, root: Path) -> Example | None:
    """The question of a row, or None if anything about it is wrong."""
    before = len(row.mistakes.lines)
    row.require(row["category"] in CATEGORIES, "category", f"one of {', '.join(CATEGORIES)}")
    row.require(row["l2-category"] in L2_CATEGORIES, "l2-category", f"one of {', '.join(L2_CATEGORIES)}")
    if row["category"] == "preference":
        row.require(row["concept"] in FACETS, "concept", f"a facet ({', '.join(FACETS)})")
    row.require(row["question"] != "", "question", "a question")
    multiple_choice = row["l2-category"] == "inconsistency"
    form = "mcq" if multiple_choice else "yesno"
    row.require(row["task_family"] == f"{row['category']}_{form}", "task_family", f"{row['category']}_{form}")
    for letter in OPTION_LETTERS:
        expected = "an option (multiple choice has four)" if multiple_choice else "none (yes/no question)"
        row.require((row[letter] != "") == multiple_choice, letter, expected)
    answer = row.number("answer", "a code from 0 to 5 (0-3 = A-D, 4 = yes, 5 = no)", range(6))
    if answer is not None:
        expected = "0 to 3 (A-D; multiple choice)" if multiple_choice else "4 (yes) or 5 (no)"
        if row.require((answer < 4) == multiple_choice, "answer", expected):
            text = ("a", "b", "c", "d", "yes", "no")[answer]
            row.require(row["answer_text"].lower() == text, "answer_text", f"{text!r} (answer is {answer})")
    invert = row.number("preference_semantic_invert", "0 or 1", range(2))
    names = split_holders(row["preference_bucket_names"])
    row.require(not any("|" in name for name in names), "preference_bucket_names", f"names without '|', {APART}")
    if len(row.mistakes.lines) > before or not row["index"].isdecimal():
        return None
    return Example(
        index=int(row["index"]),
        name=row["name"],
        category=row["category"],
        l2_category=row["l2-category"],
        concept=row["concept"],
        target=row["target"],
        question=row["question"],
        options=tuple(row[letter] for letter in OPTION_LETTERS) if multiple_choice else (),
        answer=answer,
        image=root / row["image_path"],
        semantic_invert=bool(invert),
        bucket_names=names,
    )


def picture_mistake(data: bytes) -> str | None:
    """What is wrong with a picture's bytes, or None: a format that PIL knows, and complete."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            # A PNG has a checksum in every chunk; other formats show a truncation only when they are decoded.
            picture.verify() if picture.format == "PNG" else picture.load()
    except Image.UnidentifiedImageError:
        return "expected a picture (PNG or JPEG), found something else"
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        return f"expected a complete picture, found a damaged or truncated one ({error})"
    except Image.DecompressionBombError:
        return "expected a picture of ordinary size, found one that would not fit in memory"
    return None


def _check_pictures(rows: Sequence[Row], root: Path, seen: Path | None) -> dict[str, str]:
    """Checks every picture once; relative path -> sha256 of its bytes."""
    mentions: dict[str, tuple[Row, str]] = {}
    for row in rows:
        for column in IMAGE_COLUMNS:
            mentions.setdefault(row[column], (row, column))
    real_root = os.path.realpath(root)

    def check(relative: str) -> tuple[str | None, str]:
        path = Path(relative)
        if not relative:
            return "the path of a picture", ""
        if path.is_absolute() or ".." in path.parts or "\\" in relative:
            return "a path relative to the data folder and inside it", ""
        if not os.path.realpath(root / path).startswith(real_root + os.sep):
            return "a file inside the data folder (this is a link that leaves it)", ""
        try:
            data = (root / path).read_bytes()
        except OSError as error:
            return f"a file that can be read ({error.strerror})", ""
        mistake = picture_mistake(data)
        return (mistake.removeprefix("expected ") if mistake else None), hashlib.sha256(data).hexdigest()

    states = {relative: _state(root / relative) for relative in mentions} if seen else {}
    notes = _remembered(seen)
    known = {relative: digest for relative, (state, digest) in notes.items() if states.get(relative) == state}
    unknown = [relative for relative in mentions if relative not in known]
    complete: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for relative, (mistake, digest) in zip(unknown, pool.map(check, unknown), strict=True):
            row, column = mentions[relative]
            if row.require(mistake is None, column, mistake or ""):
                complete[relative] = digest
    if seen and complete:
        notes = {relative: (states[relative], digest) for relative, digest in (known | complete).items()}
        with whole_file(seen) as partial:
            partial.write_text(json.dumps(notes), encoding="utf-8")
    return dict.fromkeys(mentions, "") | known | complete


def _state(path: Path) -> list[Any] | None:
    """Where a file really is, its size and its time of change; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]


def _remembered(seen: Path | None) -> dict[str, tuple[list[Any], str]]:
    """Relative path -> state and digest of a picture that was complete; nothing where no notes can be read."""
    try:
        return json.loads(seen.read_text(encoding="utf-8")) if seen else {}
    except (OSError, ValueError):
        return {}


def _load_json(path: Path, name: str, mistakes: Mistakes) -> Any:
    """The content of a JSON file, or None and a mistake."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mistakes.add(name, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        mistakes.add(name, f"expected UTF-8 text, byte {error.start} is something else")
    except json.JSONDecodeError as error:
        mistakes.add(name, f"not valid JSON: {error.msg}, column {error.colno}", line=error.lineno)
    return None


def _read_splits(path: Path, names: Mapping[int, str], mistakes: Mistakes) -> dict[str, tuple[int, ...]]:
    """The four splits (absent ones empty); ``names``: the user of each index, empty if no row was read."""
    name = "mmpb_clean/split.json"
    content = _load_json(path, name, mistakes)
    splits: dict[str, tuple[int, ...]] = {split: () for split in SPLIT_KEYS.values()}
    if content is None:
        return splits
    try:
        tasks = [task for entry in content for task in entry["tasks"]]
        well_formed = isinstance(content, list) and tasks and all(isinstance(task, dict) for task in tasks)
    except (TypeError, KeyError):
        well_formed = False
    if not well_formed:
        mistakes.add(name, 'expected [{"tasks": [{"train_idx": [...], "test_idx": [...]}]}]')
        return splits
    home: dict[int, str] = {}
    for number, task in enumerate(tasks, 1):
        place = f"task {number}" if len(tasks) > 1 else "the task"
        for key in task:
            if key not in SPLIT_KEYS:
                mistakes.add(name, f"{place} has an unknown key {key!r}, expected {', '.join(SPLIT_KEYS)}")
        for key, split in SPLIT_KEYS.items():
            values = task.get(key, [] if key in OPTIONAL_SPLITS else None)
            if not isinstance(values, list) or any(type(value) is not int for value in values):
                mistakes.add(name, f"expected a list of indices in {place}", column=key)
                continue
            for index in values:
                if names and index not in names:
                    mistakes.add(name, f"expected an index of the CSV, found {index}", column=key)
                elif index in home:
                    problem = f"expected no overlap, index {index} is in {home[index]}, too"
                    mistakes.add(name, problem, column=key)
                else:
                    home[index] = key
            splits[split] += tuple(values)
    for key in ("train_idx", "test_idx"):
        if not splits[SPLIT_KEYS[key]]:
            mistakes.add(name, "expected at least one index", column=key)
    trained = {names[index] for index in splits["train"] if index in names}
    for index in splits["unseen"]:
        if names.get(index) in trained:
            problem = f"expected users without training questions, index {index} is about {names[index]!r}"
            mistakes.add(name, problem, column="unseen_idx")
    return splits


def _read_transcripts(folder: Path, mistakes: Mistakes) -> tuple[tuple[Turn, ...], ...]:
    """The small talk of all JSON files of the folder, by file name; none if there is no folder."""
    transcripts = []
    for path in sorted(folder.glob("*.json")):
        name = f"multi_turn/generic_text/{path.name}"
        content = _load_json(path, name, mistakes)
        if content is None:
            continue
        if not isinstance(content, list) or not content or len(content) % 2:
            mistakes.add(name, 'expected a list of pairs {"role": "user", ...}, {"role": "assistant", ...}')
            continue
        turns: list[Turn] = []
        for number, entry in enumerate(content, 1):
            role = "user" if number % 2 else "assistant"
            text = entry.get("content") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text.strip() or entry.get("role") != role:
                mistakes.add(name, f'expected {{"role": "{role}", "content": "..."}} as utterance {number}')
            else:
                turns.append((role, prompts.clean(text)))
        transcripts.append(tuple(turns))
    return tuple(transcripts)


def _read_annotations(path: Path, indices: Mapping[int, str], mistakes: Mistakes) -> pd.DataFrame | None:
    """item, popularity and seen_pair of the annotated questions, by ``index``; None without the file."""
    if not path.exists():
        return None
    records = []
    seen: set[int] = set()
    for row in read_rows(path, ANNOTATION_COLUMNS, mistakes, "mmpb_clean/annotations.csv"):
        index = row.number("index", "a non-negative integer")
        if index is not None:
            row.require(index in indices, "index", "an index of the questions")
            row.require(index not in seen, "index", "an index that occurs once")
            seen.add(index)
        popularity = row.number("popularity", "a number of users")
        seen_pair = row.number("seen_pair", "0 or 1", range(2))
        records.append((index, row["item"], popularity, seen_pair))
    return pd.DataFrame(records, columns=list(ANNOTATION_COLUMNS)).set_index("index")


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The questions with MMPB-clean's columns, indexed by ``index``; an empty field is an empty string."""
    frame = pd.DataFrame([row.fields for row in rows], columns=list(COLUMNS))
    frame["preference_bucket_names"] = frame["preference_bucket_names"].map(split_holders).map(join_holders)
    integers = ("index", "answer", "preference_semantic_invert")
    return frame.astype({column: "int64" for column in integers}).set_index("index")


def _digest(
    frame: pd.DataFrame,
    splits: Mapping[str, tuple[int, ...]],
    transcripts: Sequence[Sequence[Turn]],
    annotations: pd.DataFrame | None,
    pictures: Mapping[str, str],
) -> str:
    """A hash of all that the benchmark says and shows; where the folder lies does not count."""
    content = {
        "questions": frame.reset_index().to_dict("split")["data"],
        "splits": splits,
        "transcripts": transcripts,
        "annotations": None if annotations is None else annotations.reset_index().to_dict("split")["data"],
        "pictures": sorted(pictures.items()),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
