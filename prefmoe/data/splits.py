"""Reads the JSON files of a data folder, splits and small talk, and the annotations; notes what is wrong in them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prefmoe.data import prompts
from prefmoe.data.benchmark import Turn
from prefmoe.data.rows import Columns, Mistakes, read_rows
from prefmoe.system.files import RepeatedKeyError, parsed_json, read_regular

SPLIT_KEYS = {f"{split}_idx": split for split in ("train", "validation", "test", "unseen")}

ANNOTATION_COLUMNS = ("index", "item", "popularity", "seen_pair")

TOLD_COLUMN = "told"
"""A further column of annotations, where users like what no profile tells."""

TOLD = ("told", "untold", "other")
"""What it says of a question's item: the user's profile tells it, as a like or a dislike; the user likes it and no
profile tells; neither. Empty where there is no item."""

_SPLIT_FORM = 'expected [{"tasks": [{"train_idx": [...], "test_idx": [...]}]}]'
_TALK_FORM = 'expected a list of pairs {"role": "user", ...}, {"role": "assistant", ...}'


def load_list(path: Path, name: str, expected: str, mistakes: Mistakes) -> list[Any] | None:
    """The list in a JSON file; None and a mistake if it cannot be read or holds something else, null for one."""
    try:
        content = parsed_json(read_regular(path).decode("utf-8-sig"), once=True)
    except OSError as error:
        mistakes.add(name, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        mistakes.add(name, f"expected UTF-8 text, byte {error.start} is something else")
    except json.JSONDecodeError as error:
        mistakes.add(name, f"not valid JSON: {error.msg}, column {error.colno}", place=f"line {error.lineno}")
    except RepeatedKeyError as error:
        mistakes.add(name, f"expected each key once, found {error.keys[0]!r} twice in the same mapping")
    except ValueError:
        mistakes.add(name, f"expected numbers of {sys.get_int_max_str_digits()} digits at most, found a longer one")
    except RecursionError:
        mistakes.add(name, "not valid JSON: lists within lists without end")
    else:
        if isinstance(content, list):
            return content
        found = "null" if content is None else type(content).__name__
        mistakes.add(name, f"{expected}, found {found}")
    return None


def read_splits(
    path: Path, names: Mapping[int, str], mistakes: Mistakes, name: str = "mmpb_clean/split.json"
) -> dict[str, tuple[int, ...]]:
    """The four splits (absent ones empty, but not all); ``names``: each index's user, empty if no row was read;
    ``name``: of the file, in messages."""
    splits: dict[str, tuple[int, ...]] = {split: () for split in SPLIT_KEYS.values()}
    content = load_list(path, name, _SPLIT_FORM, mistakes)
    if content is None:
        return splits
    tasks = [task for entry in content for task in _tasks(entry)]
    if not tasks or not all(isinstance(task, dict) for task in tasks):
        mistakes.add(name, _SPLIT_FORM)
        return splits
    home: dict[int, str] = {}
    for number, task in enumerate(tasks, 1):
        place = f"task {number}" if len(tasks) > 1 else "the task"
        for key in task:
            if key not in SPLIT_KEYS:
                mistakes.add(name, f"{place} has an unknown key {key!r}, expected {', '.join(SPLIT_KEYS)}")
        for key, split in SPLIT_KEYS.items():
            values = task.get(key, [])
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
    if not any(splits.values()):
        mistakes.add(name, f"expected at least one index in one of {', '.join(SPLIT_KEYS)}")
    trained = {names[index] for index in splits["train"] if index in names}
    for index in splits["unseen"]:
        if names.get(index) in trained:
            problem = f"expected users without training questions, index {index} is about {names[index]!r}"
            mistakes.add(name, problem, column="unseen_idx")
    return splits


def _tasks(entry: Any) -> list[Any]:
    tasks = entry.get("tasks") if isinstance(entry, dict) else None
    return tasks if isinstance(tasks, list) else [None]


def read_transcripts(folder: Path, mistakes: Mistakes) -> tuple[tuple[Turn, ...], ...]:
    """The small talk of all JSON files of the folder, by file name; none if there is no folder."""
    transcripts = []
    for path in sorted(folder.glob("*.json")):
        name = f"multi_turn/generic_text/{path.name}"
        content = load_list(path, name, _TALK_FORM, mistakes)
        if content is None:
            continue
        if not content or len(content) % 2:
            mistakes.add(name, _TALK_FORM)
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


def read_annotations(path: Path, indices: Mapping[int, str], mistakes: Mistakes) -> pd.DataFrame | None:
    """item, popularity, seen_pair and, if the file has it, told of the annotated questions, by ``index``; None
    without the file."""
    if not path.exists():
        return None
    records = []
    seen: set[int] = set()
    columns = Columns(ANNOTATION_COLUMNS, optional=(TOLD_COLUMN,))
    header = ANNOTATION_COLUMNS
    for row in read_rows(path, columns, mistakes, "mmpb_clean/annotations.csv"):
        index = row.number("index", "a non-negative integer")
        if index is not None:
            row.require(index in indices, "index", "an index of the questions")
            row.require(index not in seen, "index", "an index that occurs once")
            seen.add(index)
        popularity = row.number("popularity", "a number of users")
        seen_pair = row.number("seen_pair", "0 or 1", range(2))
        records.append((index, row["item"], popularity, seen_pair))
        if TOLD_COLUMN in row.fields:
            header = (*ANNOTATION_COLUMNS, TOLD_COLUMN)
            expected = f"one of {', '.join(TOLD)} where there is an item, else nothing"
            row.require(row[TOLD_COLUMN] in (TOLD if row["item"] else ("",)), TOLD_COLUMN, expected)
            records[-1] += (row[TOLD_COLUMN],)
    return pd.DataFrame(records, columns=list(header)).set_index("index")
