"""Files: whole from the moment they have their name, and read only where reading comes to an end."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of ``path`` when the block ends without an error.

    The folder is made if need be. An error leaves whatever had the name before. Of two processes that write the same
    file at once, the later one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes what JSON can hold, for people to read too, as a `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file, or of what a link to one leads to.

    Raises:
        OSError: if it cannot be read, or is something else: a pipe would be waited for, a device never ends.
    """
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return path.read_bytes()
