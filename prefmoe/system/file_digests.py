"""Digests of files, each read again only when its size or one of its times has changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prefmoe.system import provenance
from prefmoe.system.files import FileError, read_json, write_json

SETTLED = 2.0
"""Seconds after which a change to a file shows in its times for sure; a younger file is not remembered."""


def state_of(path: Path) -> list[int]:
    """All that tells a file from another one in its place without reading it: size, times and inode. A time of change
    may be set to what it was; that of the inode may not."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def content_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def content_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """The digest of each file, all of them read."""
    return {path: content_digest(path) for path in paths}


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, through links too, without hidden ones; sorted."""
    found, seen = [], set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inner[:] = [] if real in seen else [name for name in inner if not name.startswith(".")]
        if real not in seen:
            found += [Path(place, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(path for path in found if path.is_file())


def parts_digest(folder: Path, parts: Iterable[str], digests: FileDigests, without: str | None = None) -> str:
    """A hash of the names and contents of all files below some parts of a folder, but for those below ``without``."""
    paths = (path for part in parts for path in files_below(folder / part))
    if without is not None:
        paths = (path for path in paths if not path.is_relative_to(folder / without))
    found = digests.of(paths)
    named = {path.relative_to(folder).as_posix(): digest for path, digest in found.items()}
    return provenance.digest(named)


class FileDigests:
    """`content_digests` with a memory in a JSON file, which is no loss where it is missing, unreadable or old."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self._known: dict[str, list] = {}
        with suppress(FileError):
            self._known = read_json(memory, "digests of files")

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The digest of each file."""
        found, news = {}, False
        for path in paths:
            state = state_of(path)
            known = self._known.get(key := os.path.abspath(path))
            if isinstance(known, list) and known[:-1] == state:
                found[path] = known[-1]
                continue
            found[path] = content_digest(path)
            if time.time() - max(state[1:3]) / 1e9 > SETTLED:
                self._known[key], news = [*state, found[path]], True
        if news:
            self._save()
        return found

    def _save(self) -> None:
        self._known = {path: entry for path, entry in self._known.items() if os.path.exists(path)}
        with suppress(OSError):  # a folder that cannot be written to: everything is read again next time
            write_json(self.memory, self._known)
