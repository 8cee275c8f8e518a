"""Files that somebody else made: plain names in one folder, and regular files, before anything is read of them."""

import os
import stat
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path


class ForeignFileError(ValueError):
    """A file that is not read; the message names it and says what was expected."""


class MissingFileError(ForeignFileError):
    """A file that is not there."""


def foreign_file(folder: Path, name: str) -> Path:
    """The file of a plain name in a folder, which may be a link to another one there.

    A folder of the Hugging Face cache (snapshots/<commit>) links to the files in blobs/ beside snapshots/.

    Raises MissingFileError if there is no such file; ForeignFileError if the name leads elsewhere, the file is no
    regular one (a pipe would be waited for, a device never ends), or a link that leaves the folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ForeignFileError(f"{folder}: expected the plain name of a file in this folder, found {name!r}")
    path = folder / name
    try:
        kind = path.stat().st_mode
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except OSError as error:
        raise ForeignFileError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(kind):
        raise ForeignFileError(f"{path}: expected a regular file")
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if home not in real.parents and real.parent != home.parent.parent / "blobs":
        raise ForeignFileError(f"{path}: is a link to {real}, which is in another folder; copy it, or link the folder")
    return path


def check_folder(folder: Path, patterns: Iterable[str]) -> None:
    """Checks every file of a folder that libraries will read, by the patterns of their names. Raises ForeignFileError
    as `foreign_file`."""
    patterns = tuple(patterns)
    for name in sorted(os.listdir(folder)):
        if any(fnmatch(name, pattern) for pattern in patterns):
            foreign_file(folder, name)
