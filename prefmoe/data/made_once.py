"""Folders of data that are made once: whole from the moment they have their name, and made again for other settings."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefmoe.system.files import FileError, one_at_a_time, read_json, write_json


def make_once(
    folder: Path, marker: str, made_from: Mapping[str, Any], what: str, write: Callable[[Path], None]
) -> Path:
    """Makes a folder unless it was made from the same already; of several processes one does, and the others wait.

    Args:
        marker: name of a file in the folder that says what it was made from.
        made_from: all that decides the content, as JSON has it.
        what: the folder should hold, for the message: "a miniature benchmark".
        write: called with the folder under a temporary name.

    Returns ``folder``. Raises FileExistsError if ``folder`` holds something else.
    """
    if _made_from(folder / marker, what) == made_from:
        return folder
    with one_at_a_time(folder):  # a second process waits, and finds it made
        if _made_from(folder / marker, what) == made_from:
            return folder
        if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise FileExistsError(f"{folder} holds something else than {what}; choose an empty folder")
        building = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write(building)
        write_json(building / marker, made_from)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    return folder


def _made_from(marker: Path, what: str) -> dict[str, Any] | None:
    """What a folder was made from; None where none was, or where that cannot be read."""
    try:
        return read_json(marker, f"what {what} was made from")
    except FileError:
        return None
