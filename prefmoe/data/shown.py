"""Checks the picture files that a table names, and remembers which were whole, so that they are decoded once."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefmoe.data.columns import IMAGE_COLUMNS
from prefmoe.data.pictures import picture_mistake
from prefmoe.data.rows import Row
from prefmoe.system import provenance
from prefmoe.system.file_digests import state_of
from prefmoe.system.files import is_intact, keep, read_json, read_regular

Notes = dict[str, tuple[list[Any], str]]
"""Relative path -> state and digest of a picture that was whole."""


def check_pictures(
    rows: Sequence[Row], root: Path, seen: Path | None, columns: Sequence[str] = IMAGE_COLUMNS
) -> dict[str, str]:
    """Checks every picture that the rows name, once; relative path -> sha256 of its bytes.

    An empty field names none; whether one may be empty is not asked here.

    ``seen``: see `prefmoe.data.mmpb.read`; ``columns``: which of the fields are paths of pictures.
    """
    mentions: dict[str, tuple[Row, str]] = {}
    for row in rows:
        for column in columns:
            if row[column]:
                mentions.setdefault(row[column], (row, column))
    states = {relative: _state(root / relative) for relative in mentions} if seen else {}
    notes = _remembered(seen)
    known = {relative: digest for relative, (state, digest) in notes.items() if states.get(relative) == state}
    unknown = [relative for relative in mentions if relative not in known]
    real_root, complete = os.path.realpath(root), {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda relative: _check(relative, root, real_root), unknown)
        for relative, (mistake, digest) in zip(unknown, found, strict=True):
            row, column = mentions[relative]
            if row.require(mistake is None, column, mistake or ""):
                complete[relative] = digest
    if seen and complete:
        notes = {relative: (states[relative], digest) for relative, digest in (known | complete).items()}
        text = json.dumps({"code": _code(), "pictures": notes})
        keep(seen, lambda partial: partial.write_text(text, encoding="utf-8"))
    return dict.fromkeys(mentions, "") | known | complete


def _check(relative: str, root: Path, real_root: str) -> tuple[str | None, str]:
    """What was expected instead of this picture, or None, and its digest."""
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts or "\\" in relative or "\0" in relative:
        return "a path relative to the data folder and inside it", ""
    if not os.path.realpath(root / path).startswith(real_root + os.sep):
        return "a file inside the data folder (this is a link that leaves it)", ""
    try:
        data = read_regular(root / path)
    except OSError as error:
        return f"a file that can be read ({error.strerror})", ""
    mistake = picture_mistake(data)
    return (mistake.removeprefix("expected ") if mistake else None), hashlib.sha256(data).hexdigest()


def _code() -> str:
    """Names the rules by which a picture is whole: under other ones it is looked at again."""
    return provenance.code_digest(("prefmoe.data.pictures",))


def _state(path: Path) -> list[Any] | None:
    """Where a file really is, its size and all that tells it from another one there; None if there is none."""
    try:
        return [os.path.realpath(path), *state_of(path)]
    except (OSError, ValueError):
        return None


def _remembered(seen: Path | None) -> Notes:
    """The notes; none where they cannot be read, are damaged, or were taken by other rules."""
    if seen is None or not is_intact(seen):
        return {}
    try:
        content = read_json(seen, "notes about pictures")
        if content.get("code") != _code():
            return {}
        return {path: (list(state), str(digest)) for path, (state, digest) in content["pictures"].items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}
