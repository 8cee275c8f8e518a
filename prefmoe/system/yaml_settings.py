"""Reads settings from YAML and finds those that are given twice, of which YAML itself would silently keep the last."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from prefmoe.system.files import read_regular
from prefmoe.system.frozen import Frozen, mistakes_of

Content = TypeVar("Content", bound=Frozen)


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """libyaml's, at a tenth of the time, where yaml was built with it: every process begins with settings. Of a value
    that is none of its kind, such as the date 2024-13-45, it says the line; yaml passes on what Python raises of it."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error


def read_settings(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A YAML file's mapping of settings, and one line per setting that is given twice.

    Raises OSError if the file cannot be read, or is no regular one; ValueError if it is not UTF-8 text, not YAML, or
    holds something else than a mapping.
    """
    try:
        text = read_regular(path).decode("utf-8")
        content, repeated = yaml.load(text, Loader), list(_repeated(yaml.compose(text, Loader)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected a mapping of settings, found one nested without end") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content, repeated


def read_checked(
    path: Path, kind: type[Content], error: type[Exception], mistakes: Callable[[Content], Iterable[str]] | None = None,
    *, said: Callable[[ValidationError], Iterable[str]] = mistakes_of,
) -> Content:  # fmt: skip
    """The settings of a file, read and checked, with its path as pydantic's context; raises ``error`` with one line per
    mistake. ``mistakes``: says what is wrong with settings that are well formed; ``said``: with those that are not."""
    try:
        content, lines = read_settings(path)
        read = kind.model_validate(content, context=path)
        lines += mistakes(read) if mistakes else ()
    except ValidationError as found:
        lines += said(found)
    except OSError as found:
        raise error(f"{path}: cannot be read: {found.strerror}") from found
    except ValueError as found:
        raise error(str(found)) from found
    if lines:
        raise error(f"{path} has {len(lines)} mistake(s):\n" + "\n".join(f"  {line}" for line in lines))
    return read


def _repeated(node: yaml.Node | None, place: str = "") -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            inner = f"{place}.{key.value}".lstrip(".")
            if key.value in seen:
                yield f"{inner}: given twice, again in line {key.start_mark.line + 1}"
            seen.add(key.value)
            yield from _repeated(value, inner)
