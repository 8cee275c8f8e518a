"""Unpacks the hub's parquet files of Pick-a-Pic v2 into a folder of choices, for users with histories long enough.

The hub's parts are kept: train; validation; test, which is about users who are trained on, or about unseen ones. In
each part only users count who liked `PickAPicData.minimum_liked` different pictures there. A user whom nobody trains on
gives the choices of the first prompts for his history and is asked about those of the others.
"""

import csv
import hashlib
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet

from prefmoe.config import PickAPicData
from prefmoe.data.choice_folder import COLUMNS, REFERENCE, TABLE
from prefmoe.data.made_once import make_once
from prefmoe.data.packed import packed_bytes
from prefmoe.data.pictures import picture_mistake
from prefmoe.data.rows import Mistakes, MMPBError
from prefmoe.system.files import write_json

log = logging.getLogger(__name__)

VERSION = 2
"""Raised whenever the same files would be unpacked into another benchmark."""

PARTS = ("train", "validation", "test")
"""Of the hub's files: train-00000-of-00645-....parquet and so on (the files of *_unique repeat some of their rows)."""

SAID = (
    "caption", "user_id", "image_0_uid", "image_1_uid", "label_0", "label_1", "has_label", "are_different"
)  # fmt: skip
PICTURES = ("jpg_0", "jpg_1")
"""Columns that are read; the hub's files have more."""

LEFT_OUT = "left_out.json"
"""How many rows and users were left out, and why."""

_UID = re.compile(r"[\w-]+")
_LABELS = (0.0, 0.5, 1.0)
_DAMAGED = (pyarrow.ArrowException, OSError, UnicodeDecodeError)


def unpack(config: PickAPicData, source: Path, folder: Path) -> Path:
    """Writes choices.csv and the pictures that it names, by uid, unless that was done from the same files already.

    Args:
        source: the folder with the hub's files, or the one above it (they lie in data/).
        folder: becomes a folder of choices (`prefmoe.data.choice_folder.read`); takes what its pictures take.

    Returns ``folder``. Raises MMPBError with one line per mistake: file, row, field, expectation; FileExistsError if
    ``folder`` holds something else.
    """
    files = _files(source)
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for paths in files.values() for path in paths}
    made_from = {"version": VERSION, **config.model_dump(exclude={"folder"}), "files": stats}
    return make_once(folder, "pick_a_pic.json", made_from, "choices of Pick-a-Pic", partial(_write, config, files))


def _files(source: Path) -> dict[str, list[Path]]:
    """The files of each part. Raises MMPBError if there are none for training or none for the test, or one is no
    regular file: a pipe would be waited for."""
    root = source / "data" if (source / "data").is_dir() else source
    files = {part: sorted(root.glob(f"{part}-*.parquet")) for part in PARTS}
    mistakes = Mistakes(str(root))
    for part in ("train", "test"):
        if not files[part]:
            mistakes.add(f"{part}-*.parquet", "no such file; expected the files of the hub's Pick-a-Pic v2")
    for path in (path for paths in files.values() for path in paths if not path.is_file()):
        mistakes.add(path.name, "cannot be read: Not a regular file")
    mistakes.check()
    return files


def _write(config: PickAPicData, files: dict[str, list[Path]], folder: Path) -> None:
    left_out: dict[str, int] = {}
    table = _read(files, left_out)
    table = _split(table, config, left_out)
    if table.empty:
        least, counted = config.minimum_liked, ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise MMPBError(f"{files['train'][0].parent}: expected users who liked {least} pictures; left out: {counted}")
    where, first = _write_pictures(table, folder)
    table = _one_uid_each(table, first, left_out)
    table["other_1"], table["other_2"] = _others(table)
    rows = (
        [index, row.user, row.caption, *(where.get(uid, "") for uid in _uids(row)), row.split]
        for index, row in enumerate(table.itertuples())
    )
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    write_json(folder / LEFT_OUT, left_out)
    log.info("%s: %d choices of %d users; left out: %s", folder, len(table), table["user"].nunique(), left_out)


def _uids(row: Any) -> tuple[str, str, str, str]:
    return row.liked, row.disliked, row.other_1, row.other_2


def _read(files: dict[str, list[Path]], left_out: dict[str, int]) -> pd.DataFrame:
    """The rows with a preference: file, row, part, user, caption, liked, disliked (uids), likes_first. Raises MMPBError
    if a column is missing, or a row says what cannot be."""
    first = next(path for paths in files.values() for path in paths)
    mistakes, tables = Mistakes(str(first.parent)), []
    for part, path in ((part, path) for part, paths in files.items() for path in paths):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                there = file.schema_arrow.names
                if missing := [column for column in (*SAID, *PICTURES) if column not in there]:
                    mistakes.add(path.name, f"missing column(s): {', '.join(map(repr, missing))}", place="schema")
                    continue
                table = file.read(columns=list(SAID)).to_pandas()
        except _DAMAGED as error:
            mistakes.add(path.name, f"not a whole parquet file: {error}")
            continue
        tables.append(table.assign(file=path, row=range(1, len(table) + 1), part=part))
    mistakes.check()
    table = pd.concat(tables, ignore_index=True)
    labelled, different = (_truths(table, column, mistakes) for column in ("has_label", "are_different"))
    mistakes.check()
    left_out["rows without a label"] = int((~labelled).sum())
    left_out["rows with the same picture twice"] = int((labelled & ~different).sum())
    table = table[labelled & different].assign(user=lambda rows: rows["user_id"].map(_user))
    _check(table, mistakes)
    tied = table["label_0"] == table["label_1"]
    left_out["ties"] = int(tied.sum())
    table = table[~tied]
    first = table["label_0"] == 1
    return table.assign(
        caption=table["caption"].fillna(""),
        likes_first=first,
        liked=table["image_0_uid"].where(first, table["image_1_uid"]),
        disliked=table["image_1_uid"].where(first, table["image_0_uid"]),
    )


def _note(table: pd.DataFrame, bad: pd.Series, column: str, expected: str, mistakes: Mistakes) -> None:
    """Notes what these rows say in a column instead of what was expected."""
    for row in table[bad].to_dict("records"):
        found = f"expected {expected}, found {row[column]!r:.80}"
        mistakes.add(row["file"].name, found, place=f"row {row['row']}", column=column)


def _truths(table: pd.DataFrame, column: str, mistakes: Mistakes) -> pd.Series:
    """A column of true and false (or 1 and 0; empty is false); notes whatever is something else."""
    told = table[column].notna()
    valid = table[column].map(lambda value: isinstance(value, bool | int | float) and value in (0, 1)).astype(bool)
    _note(table, told & ~valid, column, "true or false", mistakes)
    return table[column].where(valid, False).astype(bool)


def _user(value: Any) -> str | None:
    """A user's number, or other letters and digits, as text; None if it is neither."""
    if isinstance(value, str):
        return value if _UID.fullmatch(value) else None
    return str(int(value)) if isinstance(value, int | float) and float(value).is_integer() else None


def _check(table: pd.DataFrame, mistakes: Mistakes) -> None:
    """Notes whatever a row with a label says that cannot be, and raises."""

    def note(bad: pd.Series, column: str, expected: str) -> None:
        _note(table, bad, column, expected, mistakes)

    labels = table[["label_0", "label_1"]].map(lambda value: isinstance(value, int | float) and value in _LABELS)
    for column in labels:
        note(~labels[column].astype(bool), column, "0, 0.5 or 1")
    both = table[labels.all(axis=1)]
    contrary = both.index[(both["label_0"] + both["label_1"]).astype(float) != 1]
    preference = "a preference (1 for one picture and 0 for the other, or 0.5 for both)"
    note(table.index.isin(contrary), "label_1", preference)
    note(table["user"].isna(), "user_id", "the number of a user, or letters, digits, - and _")
    texts = table["caption"].map(lambda caption: isinstance(caption, str)).astype(bool)
    note(~texts & table["caption"].notna(), "caption", "a prompt as text")
    for column in ("image_0_uid", "image_1_uid"):
        valid = table[column].map(lambda uid: isinstance(uid, str) and _UID.fullmatch(uid) is not None)
        note(~valid.astype(bool), column, "letters, digits, - and _")
    note(table["image_0_uid"] == table["image_1_uid"], "image_1_uid", "another picture than image_0_uid")
    mistakes.check()


def _split(table: pd.DataFrame, config: PickAPicData, left_out: dict[str, int]) -> pd.DataFrame:
    """The rows that stay, with their column split."""
    liked = table.groupby(["part", "user"])["liked"].transform("nunique")
    few = liked < config.minimum_liked
    users = table.loc[few, ["part", "user"]].drop_duplicates()
    left_out[f"users of a part with fewer than {config.minimum_liked} liked pictures"] = len(users)
    table = table[~few].copy()
    trained = table["user"].isin(table.loc[table["part"] == "train", "user"])
    table["split"] = table["part"].where((table["part"] != "test") | trained, "unseen")
    # Of a user whom nobody trains on, whole prompts: pictures recur within a prompt.
    new = table[~trained]
    sizes = new.groupby(["user", "caption"], sort=False).size()
    before = sizes.groupby("user", sort=False).cumsum() - sizes
    history = before[before < config.unseen_references].index
    table.loc[new.index[pd.MultiIndex.from_frame(new[["user", "caption"]]).isin(history)], "split"] = REFERENCE
    return _apart(table, left_out)


def _apart(table: pd.DataFrame, left_out: dict[str, int]) -> pd.DataFrame:
    """Without targets that show a picture of training or a history, and without users of whom only a history stays."""
    told = table["split"].isin(("train", REFERENCE))
    known = set(table.loc[told, ["liked", "disliked"]].to_numpy().ravel())
    seen = ~told & (table["liked"].isin(known) | table["disliked"].isin(known))
    _count(left_out, "targets with a picture of training or a history", seen.sum())
    table = table[~seen]
    asked = table["user"].isin(table.loc[table["split"] != REFERENCE, "user"])
    _count(left_out, "users of whom only a history is left", table.loc[~asked, "user"].nunique())
    return table[asked].copy()


def _one_uid_each(table: pd.DataFrame, first: dict[str, str], left_out: dict[str, int]) -> pd.DataFrame:
    """Rows that name each picture by one uid, where the same bytes had several, and what that leaves of them.
    ``first``: uid -> the uid that stands for the picture."""
    table = table.assign(**{side: table[side].map(first) for side in ("liked", "disliked")})
    same = table["liked"] == table["disliked"]
    _count(left_out, "rows with the same picture under two uids", same.sum())
    return _apart(table[~same], left_out)


def _count(left_out: dict[str, int], reason: str, more: int) -> None:
    left_out[reason] = left_out.get(reason, 0) + int(more)


def _others(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Two more pictures of a target's prompt that the user liked less than the same picture, where there are two."""
    told = table["split"].isin(("train", REFERENCE))
    less = table[~told].groupby(["user", "caption", "liked"])["disliked"].unique().to_dict()
    found = []
    for row in table.itertuples():
        others = [uid for uid in less.get((row.user, row.caption, row.liked), ()) if uid != row.disliked]
        found.append(others[:2] if len(others) >= 2 and row.split not in ("train", REFERENCE) else ["", ""])
    return [pair[0] for pair in found], [pair[1] for pair in found]


def _write_pictures(table: pd.DataFrame, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Writes every picture once, and returns uid -> path in the folder, and uid -> the first uid with the same bytes.
    Raises MMPBError naming every picture that is missing or damaged."""
    sides = {"liked": table["likes_first"], "disliked": ~table["likes_first"]}
    wanted = [
        pd.DataFrame(
            {"uid": table[name], "file": table["file"], "row": table["row"], "column": np.where(first, *PICTURES)}
        )
        for name, first in sides.items()
    ]
    places = pd.concat(wanted).drop_duplicates("uid")
    where = {uid: f"pictures/{uid[:2]}/{uid}.jpg" for uid in places["uid"]}
    for parent in {(folder / path).parent for path in where.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    mistakes, first, by_digest = Mistakes(str(places["file"].iloc[0].parent)), {}, {}
    for path, own in places.groupby("file"):
        by_row = own.groupby("row")
        for number, pictures in _pictures(path, set(own["row"]), mistakes):
            for uid, column in by_row.get_group(number)[["uid", "column"]].itertuples(index=False):
                try:
                    data = packed_bytes(pictures[column])
                    problem = picture_mistake(data) if data else "expected the bytes of a picture, found none"
                except ValueError as error:
                    problem = str(error)
                if problem:
                    mistakes.add(path.name, problem, place=f"row {number}", column=column)
                    continue
                first[uid] = by_digest.setdefault(hashlib.sha256(data).digest(), uid)
                if first[uid] == uid:
                    (folder / where[uid]).write_bytes(data)
    mistakes.check()
    return where, first


def _pictures(path: Path, rows: set[int], mistakes: Mistakes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and pictures of each of these rows of a file, few of which are in memory at once. Notes where the file is
    damaged, and stops there."""
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            end = 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                if not rows.intersection(range(start + 1, end + 1)):
                    continue
                number = start
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=list(PICTURES)):
                    for pictures in batch.to_pylist():
                        number += 1
                        if number in rows:
                            yield number, pictures
    except _DAMAGED as error:
        mistakes.add(path.name, f"not a whole parquet file: {error}", place=f"row {number + 1} or later")
