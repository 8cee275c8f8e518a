"""Reads a folder of choices (a miniature's, one's own, Pick-a-Pic unpacked) and checks it row by row."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from prefmoe.data.benchmark import name_mistake
from prefmoe.data.choices import CHOICE_SPLITS, Choice, ChoiceBenchmark
from prefmoe.data.rows import Columns, Mistakes, MMPBError, Row, numbered, read_rows
from prefmoe.data.shown import check_pictures

TABLE, ATTRIBUTE_FILE, UTILITY_FILE = "choices.csv", "attributes.csv", "utilities.csv"

PICTURES = ("liked", "disliked", "other_1", "other_2")
"""Columns with a choice's pictures; the last two may be empty, or absent."""

REFERENCE = "reference"
"""What the column split says of a choice that may stand in its user's history and is no target."""

COLUMNS = ("index", "user", "prompt", *PICTURES, "split")
_COLUMNS = Columns(("index", "user", "prompt", "liked", "disliked", "split"), {"other_1": "", "other_2": ""})

_HISTORIES = ("train", REFERENCE)


def read(folder: str | Path, *, seen: Path | None = None) -> ChoiceBenchmark:
    """The benchmark in a folder that holds choices.csv (docs/choices.md says what is in it).

    ``seen``: a file that remembers which pictures are complete, as in `prefmoe.data.mmpb.read`. Raises MMPBError with
    one line per mistake: file, line, field, expectation.
    """
    root = Path(folder)
    if not (root / TABLE).is_file():
        raise MMPBError(f"{root / TABLE}: no such file; expected a folder of choices (docs/choices.md)")
    mistakes = Mistakes(str(root))
    rows = list(read_rows(root / TABLE, _COLUMNS, mistakes, TABLE))
    if not rows and not mistakes.lines:
        mistakes.add(TABLE, "expected at least one choice, found none")
    kept = [row for row in rows if _check(row)]
    numbered(rows)
    _check_users(kept)
    pictures = check_pictures(rows, root, seen, PICTURES)
    same = {path: digest or path for path, digest in pictures.items()}
    _check_different(kept, same)
    _check_apart(kept, same)
    attributes, utilities = _read_tastes(root, kept, mistakes)
    mistakes.check()
    users: dict[str, int] = {}
    references: dict[str, list[int]] = {}
    splits: dict[str, list[int]] = {split: [] for split in CHOICE_SPLITS}
    for row in rows:
        users.setdefault(row["user"], len(users))
        owned = references.setdefault(row["user"], [])
        if row["split"] in _HISTORIES:
            owned.append(int(row["index"]))
        if row["split"] != REFERENCE:
            splits[row["split"]].append(int(row["index"]))
    return ChoiceBenchmark(
        root=root,
        choices={int(row["index"]): _choice(row, root) for row in rows},
        users=users,
        references={user: tuple(owned) for user, owned in references.items()},
        splits={split: tuple(targets) for split, targets in splits.items()},
        attributes=attributes,
        utilities=utilities,
        digest=_digest(rows, pictures, attributes, utilities),
    )


def _shown(row: Row) -> list[str]:
    """The pictures of a choice, as paths from the folder."""
    return [row[column] for column in PICTURES if row[column]]


def _choice(row: Row, root: Path) -> Choice:
    liked, disliked, *others = (root / picture for picture in _shown(row))
    return Choice(int(row["index"]), row["user"], row["prompt"], liked, disliked, tuple(others))


def _check(row: Row) -> bool:
    """Whether a row's own fields are right; what is wrong is noted."""
    before = len(row.mistakes.lines)
    if (expected := name_mistake(row["user"])) is not None:
        row.require(False, "user", expected)
    splits = (*CHOICE_SPLITS, REFERENCE)
    row.require(row["split"] in splits, "split", f"one of {', '.join(splits)}")
    for column in ("liked", "disliked"):
        row.require(row[column] != "", column, f"the path of the picture that was {column}")
    expected = "a picture, as other_2 names one (one among four has both)"
    row.require(bool(row["other_1"]) == bool(row["other_2"]), "other_1", expected if row["other_2"] else "none")
    return len(row.mistakes.lines) == before


def _check_users(rows: Sequence[Row]) -> None:
    """Every user has two choices at least, a history before targets, and is trained on, or not."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row["user"], []).append(row)
    for user, own in by_user.items():
        if len(own) < 2:
            own[0].require(False, "user", f"two choices of user {user!r} at least (one is the history of the other)")
            continue
        there = {row["split"] for row in own}
        for row in own:
            if row["split"] == "unseen" and "train" in there:
                row.require(False, "split", f"test, as user {user!r} has training choices")
            elif row["split"] == "test" and "train" not in there:
                row.require(False, "split", f"unseen, as user {user!r} has no training choices")
            elif row["split"] not in _HISTORIES and not there.intersection(_HISTORIES):
                expected = f"choices of user {user!r} that are his history (train or {REFERENCE}), too"
                row.require(False, "split", expected)


def _check_different(rows: Sequence[Row], same: Mapping[str, str]) -> None:
    """No picture is in a choice twice, under whatever path: ``same`` maps each to what its copies have in common."""
    for row in rows:
        first: dict[str, str] = {}
        for column in PICTURES:
            if row[column] and (there := first.setdefault(same[row[column]], column)) != column:
                row.require(False, column, f"a picture that is not in this choice already ({there} has it)")


def _check_apart(rows: Sequence[Row], same: Mapping[str, str]) -> None:
    """No picture of a target that is not trained on is in a choice of training or of a history, nor a copy of one."""
    known = {same[picture]: row for row in rows if row["split"] in _HISTORIES for picture in _shown(row)}
    for row in rows:
        if row["split"] in _HISTORIES:
            continue
        for column in PICTURES:
            if row[column] and (first := known.get(same[row[column]])):
                told = f"a picture that is in no choice of {first['split']} ({first.place_for(row)} has it)"
                row.require(False, column, told)


def _read_tastes(
    root: Path, rows: Sequence[Row], mistakes: Mistakes
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """The pictures' attributes and the users' utilities, where the folder has them."""
    if not (root / ATTRIBUTE_FILE).exists() and not (root / UTILITY_FILE).exists():
        return None, None
    pictures = dict.fromkeys(picture for row in rows for picture in _shown(row))
    attributes = _read_all(root / ATTRIBUTE_FILE, "picture", list(pictures), mistakes)
    utilities = _read_all(root / UTILITY_FILE, "user", list(dict.fromkeys(row["user"] for row in rows)), mistakes)
    return _frame(attributes, "picture"), _numbers(utilities)


def _read_all(path: Path, key: str, wanted: Sequence[str], mistakes: Mistakes) -> dict[str, Row]:
    """The rows of a table by what they are about, of which each is there once and every wanted one is."""
    found: dict[str, Row] = {}
    before = len(mistakes.lines)
    for row in read_rows(path, Columns((key,), {}), mistakes, path.name):
        first = found.setdefault(row[key], row)
        row.require(first is row, key, f"each {key} once ({first.place} has it, too)")
    missing = [name for name in wanted if name not in found]
    if missing and len(mistakes.lines) == before:
        mistakes.add(path.name, f"expected every {key} of {TABLE}, {len(missing)} missing, such as {missing[0]!r}")
    return found


def _frame(rows: Mapping[str, Row], key: str) -> pd.DataFrame:
    return pd.DataFrame([row.fields for row in rows.values()]).set_index(key) if rows else pd.DataFrame()


def _numbers(rows: Mapping[str, Row]) -> pd.DataFrame:
    for row in rows.values():
        for column, text in row.fields.items():
            if column == "group":
                row.number(column, "the number of a taste group")
            elif column != "user":
                row.require(_is_number(text), column, "a number")
    frame = _frame(rows, "user")
    try:
        return frame.astype({column: int if column == "group" else float for column in frame})
    except ValueError:  # noted above
        return frame


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _digest(
    rows: Sequence[Row], pictures: Mapping[str, str], attributes: pd.DataFrame | None, utilities: pd.DataFrame | None
) -> str:
    """A hash of all that the benchmark says and shows; where the folder lies does not count."""
    content = {
        "choices": [[row[column] for column in COLUMNS] for row in rows],
        "pictures": sorted(pictures.items()),
        "tastes": [None if t is None else t.reset_index().to_dict("split") for t in (attributes, utilities)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
