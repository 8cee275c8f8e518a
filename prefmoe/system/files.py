"""Files: whole from the moment they have their name, able to say when they were damaged since, read only to an end."""

import errno
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class FileError(ValueError):
    """A file of ours that does not hold what it should, or cannot be where it should; the message names it and says
    what was expected."""


@contextmanager
def whole_file(path: Path, *, sealed: bool = False) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of ``path`` when the block ends without an error.

    The folder is made if need be, and the file has the mode that the umask gives, whatever its writer gave it. An error
    leaves whatever had the name before. Of two processes that write the same file at once, the later one's stays.

    ``sealed``: note the file's digest beside it, for `is_intact`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.touch()
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial
        partial.chmod(mode)  # safetensors makes files that nobody but their owner can read
        if sealed:  # first, so that nobody finds a new file without its digest
            seal_of(path).write_text(f"{sha256(partial)}  {path.name}\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_to_readers(folder: Path) -> None:
    """Gives the files of a folder that a library wrote the mode that the umask gives: safetensors makes files that
    nobody but their owner can read."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        usual = Path(place) / "usual"
        usual.touch()
        mode = stat.S_IMODE(usual.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def seal_of(path: Path) -> Path:
    """Where a file's digest is noted, in the form that `sha256sum --check` reads."""
    return path.with_name(path.name + ".sha256")


def is_intact(path: Path) -> bool:
    """Whether a file that was written sealed is there, as it was written. One that has changed since is named in the
    log and removed, so that it is made again."""
    if not path.is_file():
        return False
    try:
        noted = seal_of(path).read_text(encoding="utf-8").partition(" ")[0]
        if noted == sha256(path):
            return True
        reason = "its digest is not the one noted beside it"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"its digest cannot be read: {error}"
    log.warning("%s: damaged (%s), it is made again", path, reason)
    with suppress(OSError):  # in a folder that cannot be written it stays, unused
        path.unlink()
    return False


def keep(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a sealed `whole_file` that only saves time; where nothing can be written, that is said and nothing else.
    ``write``: called with the name to write to."""
    try:
        with whole_file(path, sealed=True) as partial:
            write(partial)
    except OSError as error:
        log.warning("%s: not kept (%s)", path, error.strerror)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Holds the lock of a file that several processes want to make; there is none where nothing can be written."""
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        log.info("%s: not locked (%s)", path, error.strerror)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def sole_process(folder: Path, otherwise: Exception) -> Iterator[None]:
    """Holds a lock on a folder, which ends with its process. Raises ``otherwise`` if another process holds it."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
    except Timeout as error:
        raise otherwise from error
    with held:
        yield


def sha256(path: Path) -> str:
    """The digest of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_place(path: Path) -> None:
    """Raises FileError if no file can have this name: it is a folder's, or lies below what is none."""
    if path.is_dir():
        raise FileError(f"{path}: a folder, expected the name of a file to write")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise FileError(f"{path}: cannot be made: {above} is no folder")


def write_json(path: Path, content: Any, *, sealed: bool = False) -> None:
    """Writes what JSON can hold, for people to read too, as a `whole_file`."""
    with whole_file(path, sealed=sealed) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_parquet(path: Path, frame: Any, *, sealed: bool = False) -> None:
    """Writes a pandas table without its row names, as a `whole_file`."""
    with whole_file(path, sealed=sealed) as partial:
        frame.to_parquet(partial, index=False)


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file, or of what a link to one leads to. Raises OSError if it cannot be read, or is
    something else: a pipe would be waited for, a device never ends."""
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return path.read_bytes()


def read_json(path: Path, expected: str, *, once: bool = False, kind: type[ValueError] = FileError) -> dict[str, Any]:
    """The mapping that a JSON file holds. ``expected``: what it should be, for the message; ``once``: whether a key may
    stand in a mapping no more than once; ``kind``: of error, which is raised if it cannot be read, is not JSON (a login
    page, half a file), or is no mapping (null, a list)."""
    try:
        content = parsed_json(read_regular(path).decode("utf-8"), once=once)
    except OSError as error:
        raise kind(f"{path}: expected {expected}, cannot be read: {error.strerror}") from error
    except ValueError as error:  # undecodable bytes are one, too
        raise kind(f"{path}: expected {expected}, found no JSON ({error})") from error
    except RecursionError as error:
        raise kind(f"{path}: expected {expected}, found brackets without end") from error
    if not isinstance(content, dict):
        found = "null" if content is None else f"a {type(content).__name__}"
        raise kind(f"{path}: expected {expected}, a JSON mapping; found {found}")
    return content


def parsed_json(text: str, *, once: bool = False) -> Any:
    """What JSON says. ``once``: as of `read_json`. Raises ValueError (RepeatedKeyError for a key that stands twice) for
    what is none, and for half a character (an escape such as \\ud800 alone): no file and no prompt can hold it."""
    content = json.loads(text, object_pairs_hook=once_each if once else None)
    if "\\ud" in text.lower():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise json.JSONDecodeError(f"half a character, {half}", text, text.lower().index(half)) from error
    return content


class RepeatedKeyError(ValueError):
    """A JSON mapping in which keys stand more than once. ``keys``: those keys, in their order."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"given twice: {keys[0]!r}")
        self.keys = keys


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The ``object_pairs_hook`` for JSON whose keys stand once; json itself would keep the last of several values.
    Raises RepeatedKeyError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        raise RepeatedKeyError([name for name, count in counted.items() if count > 1])
    return found
