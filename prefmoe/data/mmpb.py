"""Reads MMPB-clean's folder (the miniature has the same layout) into a Benchmark and checks it row by row."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import pandas as pd

from prefmoe.data import prompts
from prefmoe.data.benchmark import (
    APART,
    FACETS,
    HOLDER_SEPARATOR,
    OPTION_LETTERS,
    Benchmark,
    Example,
    Turn,
    User,
    is_another_list,
    join_holders,
    listed_holders,
    name_mistake,
    split_holders,
)
from prefmoe.data.columns import COLUMNS, DEFAULTS, IMAGE_COLUMNS, INJECTION_COLUMNS, QUESTIONS
from prefmoe.data.packed import unpack
from prefmoe.data.rows import Columns, Mistakes, MMPBError, Row, numbered, read_rows, whole_number
from prefmoe.data.shown import check_pictures
from prefmoe.data.splits import read_annotations, read_splits, read_transcripts
from prefmoe.system.places import UNPACKED

ATTRIBUTES = get_args(User.model_fields["attribute"].annotation)
CATEGORIES = get_args(Example.model_fields["category"].annotation)
L2_CATEGORIES = get_args(Example.model_fields["l2_category"].annotation)
ANSWER_TEXTS = ("a", "b", "c", "d", "yes", "no")
"""The answer_text of each answer's code."""


def read(data_folder: str | Path, *, csv: str = "sample.csv", seen: Path | None = None) -> Benchmark:
    """The benchmark in ``<data_folder>/mmpb_clean`` and its small talk in ``<data_folder>/multi_turn``.

    docs/data.md says what the files hold. Every row, every picture (is it complete?), the splits, the transcripts and
    the optional ``annotations.csv`` are checked.

    Args:
        csv: the table's name; it may end in .tsv or .parquet. seen: a file that remembers the complete pictures, so
            that the next reading checks only those whose size or time of change is another; None checks all.

    Raises MMPBError with one line per mistake (REPORTED_MISTAKES at most): file, line, field, expectation.
    """
    root = Path(data_folder)
    if not (root / "mmpb_clean").is_dir():
        raise MMPBError(
            f"{root / 'mmpb_clean'}: no such folder; expected a data folder that holds mmpb_clean/ "
            f"({csv}, split.json, pictures; docs/data.md says what is in them). `prefmoe fetch mmpb-clean FOLDER` "
            "downloads the public subset, `prefmoe convert` makes one from a table."
        )
    mistakes = Mistakes(str(root))
    rows = question_rows(root / "mmpb_clean" / csv, f"mmpb_clean/{csv}", mistakes, root, UNPACKED)
    indices, users, examples, pictures = check_questions(rows, root, seen)
    splits = read_splits(root / "mmpb_clean" / "split.json", indices, mistakes)
    transcripts = read_transcripts(root / "multi_turn" / "generic_text", mistakes)
    annotations = read_annotations(root / "mmpb_clean" / "annotations.csv", indices, mistakes)
    mistakes.check()
    frame = frame_of(rows)
    return Benchmark(
        root=root,
        frame=frame,
        users=users,
        examples=examples,
        splits=splits,
        transcripts=transcripts,
        annotations=annotations,
        digest=_digest(frame, splits, transcripts, annotations, pictures),
    )


def question_rows(
    path: Path, name: str, mistakes: Mistakes, root: Path, unpacked: str, columns: Columns = QUESTIONS
) -> list[Row]:
    """The rows of a table of questions; pictures that it holds itself become files below ``root / unpacked``. Fields
    that follow from others are filled in, and columns that it lacks (see prefmoe.data.columns)."""
    pictures = partial(unpack, root=root, folder=unpacked)
    rows = list(read_rows(path, columns, mistakes, name, partial(_unpacked, pictures=pictures)))
    if not rows and not mistakes.lines:
        mistakes.add(name, "expected at least one question, found none")
    shown = {row["index"]: row["image_path"] for row in rows}
    return [replace(row, fields=filled_in(row.fields, shown)) for row in rows]


def _unpacked(column: str, value: Any, pictures: Callable[[Any], str | None]) -> str | None:
    """The text of a picture, or of a list of holders; None where a value is text as it stands."""
    if column == "preference_bucket_names" and isinstance(value, list):
        return listed_holders(value)
    return pictures(value) if column in IMAGE_COLUMNS else None


def filled_in(fields: Mapping[str, str], shown: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """A row with what follows from its other fields; ``shown``: the picture of each index, which another may name."""
    filled = {**fields, "image_path": shown.get(fields["image_path"], fields["image_path"])}
    form = "mcq" if fields["l2-category"] == "inconsistency" else "yesno"
    for column in ("attribute", "preference_semantic_invert"):
        filled[column] = fields[column] or DEFAULTS[column]
    filled["task_family"] = fields["task_family"] or f"{fields['category']}_{form}"
    if not fields["answer_text"] and fields["answer"] in tuple("012345"):
        filled["answer_text"] = ANSWER_TEXTS[int(fields["answer"])]
    return filled


def check_questions(
    rows: Sequence[Row], root: Path, seen: Path | None = None
) -> tuple[dict[int, str], dict[str, User], dict[int, Example], dict[str, str]]:
    """Index -> name, the users, the examples and the pictures' digests; what is wrong becomes the rows' mistakes."""
    indices = {index: row["name"] for index, row in numbered(rows).items()}
    users = _read_users(rows, root)
    _check_holders(rows, users)
    examples = [_read_example(row, root) for row in rows]
    found = {example.index: example for example in examples if example is not None}
    return indices, users, found, check_pictures(rows, root, seen)


def _read_users(rows: Sequence[Row], root: Path) -> dict[str, User]:
    """Users by name in order of first appearance; every row about a user must repeat the same profile."""
    users: dict[str, User] = {}
    first_rows: dict[str, Row] = {}
    for row in rows:
        if (expected := name_mistake(row["name"])) is not None:
            row.require(False, "name", expected)
            continue
        first = first_rows.setdefault(row["name"], row)
        if first is not row:
            for column in ("attribute", "preference", "description_moderate"):
                expected = f"what {first.place_for(row)} says of user {row['name']!r}"
                row.require(row[column] == first[column], column, expected)
            continue
        known = row.require(row["attribute"] in ATTRIBUTES, "attribute", f"one of {', '.join(ATTRIBUTES)}")
        expected = f"a description of user {row['name']!r}"
        described = row.require(row["description_moderate"] != "", "description_moderate", expected)
        pictured = row.require(row["injection_image_1"] != "", "injection_image_1", "the path of a picture")
        try:
            preferences = prompts.parse_preferences(row["preference"] or prompts.UNKNOWN)
        except ValueError as error:
            row.mistake("preference", str(error))
            continue
        if known and described and pictured:
            users[row["name"]] = User(
                name=row["name"],
                attribute=row["attribute"],
                description=row["description_moderate"],
                preferences=preferences,
                images=tuple(root / row[column] for column in INJECTION_COLUMNS if row[column]),
            )
    return users


def _check_holders(rows: Sequence[Row], users: Mapping[str, User]) -> None:
    """Notes holders who are nobody of the table and, read as a list or in another spelling, users of it, and whatever
    else `is_another_list`. Taken for strangers, they would leave recall and collapse without a word."""
    known = {_spelling(name): name for name in users}
    for row in rows:
        for holder in split_holders(row["preference_bucket_names"]):
            if holder in users:
                continue
            parts = [part for part in map(str.strip, re.split(r"[,;/&]", holder)) if part]
            if len(parts) > 1 and all(_spelling(part) in known for part in parts):
                row.mistake("preference_bucket_names", f"expected {' | '.join(parts)!r}, found {holder!r}")
            elif near := known.get(_spelling(holder)):
                row.mistake("preference_bucket_names", f"expected {near!r} as the column name has it, found {holder!r}")
            elif is_another_list(holder, lambda part: _spelling(part) in known):
                row.require(False, "preference_bucket_names", f"names with {HOLDER_SEPARATOR!r} between them")


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


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
            text = ANSWER_TEXTS[answer]
            row.require(row["answer_text"].lower() == text, "answer_text", f"{text!r} (answer is {answer})")
    row.require(row["image_path"] != "", "image_path", "the path of a picture")
    invert = row.number("preference_semantic_invert", "0 or 1", range(2))
    names = split_holders(row["preference_bucket_names"])
    row.require(not any("|" in name for name in names), "preference_bucket_names", f"names without '|', {APART}")
    index = whole_number(row["index"])
    if len(row.mistakes.lines) > before or index is None:
        return None
    return Example(
        index=index,
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


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The questions with MMPB-clean's columns and the table's further ones, indexed by ``index``; nothing is ""."""
    further = dict.fromkeys(column for row in rows for column in row.fields if column not in COLUMNS)
    frame = pd.DataFrame([row.fields for row in rows], columns=[*COLUMNS, *further])
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
    table = frame.reset_index()
    content = {
        "questions": table[list(COLUMNS)].to_dict("split")["data"],
        "splits": splits,
        "transcripts": transcripts,
        "annotations": None if annotations is None else annotations.reset_index().to_dict("split")["data"],
        "pictures": sorted(pictures.items()),
    }
    if len(table.columns) > len(COLUMNS):
        content["further columns"] = table.drop(columns=list(COLUMNS)).to_dict("list")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
