"""Reads what an edition's experiments are to try: one file each, with all mistakes named at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prefmoe.config import ConfigError
from prefmoe.system.yaml_settings import read_settings


class Strict(BaseModel):
    """Frozen, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Content = TypeVar("Content", bound=Strict)


def read_checked(path: Path, content: type[Content], missing: str, mistakes: Callable[[Any], Iterable[str]]) -> Content:
    """A file of settings, read and checked.

    Args:
        missing: what to say of a file that does not exist.
        mistakes: says what is wrong with a content that is well formed.

    Raises:
        ConfigError: if the file is missing or malformed, or with one line per mistake.
    """
    if not path.is_file():
        raise ConfigError(f"{missing}: {path} does not exist")
    try:
        settings, lines = read_settings(path)
        read = content.model_validate(settings)
        lines += mistakes(read)
    except ValidationError as error:
        lines += [f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors()]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if lines:
        raise ConfigError(f"{path} has {len(lines)} mistake(s):\n" + "\n".join(f"  {line}" for line in lines))
    return read


def settings_key(settings: Any, *, size: int = 4) -> str:
    """A short name for settings, by which a run or benchmark that has them is found again."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=size).hexdigest()
