"""Folders of data that are made once: whole from the moment they have their name, and made again for other settings, or
when something of what was made is lost."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefmoe.system.file_digests import FileDigests, content_digest, files_below
from prefmoe.system.files import FileError, one_at_a_time, read_json, write_json

log = logging.getLogger(__name__)

MADE = "made"
"""The marker's entry that lists what was made: the digest of each file."""


def make_once(
    folder: Path, marker: str, made_from: Mapping[str, Any], what: str, write: Callable[[Path], None]
) -> Path:
    """Makes a folder unless it was made from the same already and is whole; of several processes one does, and the
    others wait.

    Args:
        marker: name of a file in the folder that says what it was made from, and what was made.
        made_from: all that decides the content, as JSON has it.
        what: the folder should hold, for the message: "a miniature benchmark".
        write: called with the folder under a temporary name.

    Returns ``folder``. Raises FileExistsError if ``folder`` holds something else.
    """
    if _is_made(folder, marker, made_from):
        return folder
    with one_at_a_time(folder):  # a second process waits, and finds it made
        if _is_made(folder, marker, made_from):
            return folder
        if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise FileExistsError(f"{folder} holds something else than {what}; choose an empty folder")
        building = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write(building)
        made = {path.relative_to(building).as_posix(): content_digest(path) for path in files_below(building)}
        write_json(building / marker, {**made_from, MADE: made})
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    return folder


def _is_made(folder: Path, marker: str, made_from: Mapping[str, Any]) -> bool:
    """Whether a folder was made from the same, and still holds all that was made; what is damaged is named in the log.
    Where it cannot be read what was made, nothing was."""
    try:
        noted = read_json(folder / marker, "what a folder was made from")
    except FileError:
        return False
    made = noted.pop(MADE, None)
    if noted != made_from or not isinstance(made, dict):
        return False
    there = [folder / name for name in made if (folder / name).is_file()]
    found = FileDigests(_memory(folder)).of(there)
    for name, digest in made.items():
        if found.get(folder / name) != digest:
            log.warning("%s: missing or changed, %s is made again", folder / name, folder)
            return False
    return True


def _memory(folder: Path) -> Path:
    """Beside a folder, where the digests of its files are kept, of which there may be very many: what has not changed
    is not read again."""
    return folder.with_name(f".{folder.name}.digests.json")
