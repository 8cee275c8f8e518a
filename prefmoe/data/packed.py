"""Pictures that a table holds itself (base64 text, bytes, the hub's {"bytes", "path"}), unpacked into files."""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from prefmoe.system.files import whole_file

_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR", "data:image/")
"""Of a PNG, a JPEG and a WEBP as base64, and of a data address."""

_LONGEST_PATH = 1024

_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def packed_bytes(value: Any) -> bytes | None:
    """The file that a table's field holds itself; None for an empty field and for the path of a file. Raises ValueError
    if the text is too long for a path and no base64, or the value is of another type."""
    if isinstance(value, dict):
        if not set(value) <= {"bytes", "path"}:
            raise ValueError(f"expected a picture as {{bytes, path}}, found fields {', '.join(map(str, value))}")
        return value.get("bytes") or None
    if isinstance(value, bytes):
        return value or None
    if not isinstance(value, str):
        if value is None or value != value or isinstance(value, int):
            return None
        raise ValueError(f"expected a path, base64 text or a picture's bytes, found {str(value)[:60]!r}")
    if not value.startswith(_BEGINNINGS) and len(value) <= _LONGEST_PATH:
        return None
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected a path or a picture as base64 text ({error}), found {value[:40]!r}...") from None


def named_by_content(data: bytes, folder: str) -> str:
    """The path of a picture in a folder of pictures, by what is in it."""
    ending = next((ending for start, ending in _ENDINGS.items() if data.startswith(start)), ".picture")
    return f"{folder}/{hashlib.sha256(data).hexdigest()[:32]}{ending}"


def unpack(value: Any, root: Path, folder: str) -> str | None:
    """The path, from root, of a file with the picture that a field holds; None where it holds none.

    The file lies in ``folder`` and is named by its contents, so that a picture that many rows hold is written once.

    Raises ValueError if the field holds something else, or the file cannot be written; the message says so.
    """
    data = packed_bytes(value)
    if data is None:
        return value.get("path") or "" if isinstance(value, dict) else None
    relative = named_by_content(data, folder)
    target = root / relative
    if not target.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} is a link that leaves the data folder; expected a folder inside it, or none")
    if not target.is_file() or target.read_bytes() != data:
        try:
            with whole_file(target) as partial:
                partial.write_bytes(data)
        except OSError as error:
            hint = "`prefmoe convert` unpacks it somewhere else"
            raise ValueError(f"the picture cannot be unpacked to {target} ({error.strerror}); {hint}") from error
    return relative
