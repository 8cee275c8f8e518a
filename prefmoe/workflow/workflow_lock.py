"""One workflow per edition at a time: a lock that dies with the process that holds it, and a note of who that is."""

import getpass
import os
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prefmoe.config import RESULTS
from prefmoe.system.files import FileError, read_json, write_json


class WorkflowLockError(RuntimeError):
    """Another process makes the same edition; the message says which."""


_held: dict[Path, FileLock] = {}
"""A lock is given back when its last reference goes; these stay until the process ends."""


def hold(edition: str, *, results: str | Path = RESULTS) -> None:
    """Keeps every other process from making the edition for as long as this one lives.

    The operating system ends the lock with the process, however it ends, so that nothing has to be unlocked by hand.

    Raises WorkflowLockError if another process holds it; names it as far as it is known.
    """
    path = Path(results).resolve() / edition / ".workflow.lock"
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path), path.with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise WorkflowLockError(
            f"edition {edition!r} is being made by {_holder(note)}; wait until that has ended, or stop it: what it has "
            "finished is kept, and unfinished runs go on from their last checkpoint"
        ) from error
    _held[path] = lock
    about = {"process": os.getpid(), "host": socket.gethostname(), "user": _user()}
    write_json(note, about | {"since": datetime.now().isoformat(" ", "seconds"), "command": shlex.join(sys.argv)})


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _holder(note: Path) -> str:
    try:
        about = read_json(note, "who holds the lock")
        where = f"process {about['process']} of {about['user']} on {about['host']} since {about['since']}"
        return f"{where} ({about['command']})"
    except (FileError, KeyError):
        return "another process"
