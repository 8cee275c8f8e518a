"""Names of editions, backbones and methods: which may become files and words of commands, and which one was meant."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
RULE = "letters, digits, dots, dashes and underscores, the first of them neither dot nor dash, and at most 100"


def check_name(name: str) -> str:
    """The name itself, if a file and a word of a command may be called so. Raises ValueError if not; the message says
    what a name is made of."""
    if not NAME.fullmatch(name):
        raise ValueError(f"the name {name!r:.80} is refused: expected {RULE}")
    return name


Name = Annotated[str, AfterValidator(check_name)]


def no_repeats(values: tuple) -> tuple:
    """The values themselves, if each is there once. Raises ValueError naming those that are there twice."""
    if repeated := list(dict.fromkeys(value for value in values if values.count(value) > 1)):
        raise ValueError(f"given more than once: {', '.join(map(str, repeated))}")
    return values


Once = AfterValidator(no_repeats)
"""In an annotation: no value twice."""

T = TypeVar("T")

Some = Annotated[tuple[T, ...], Field(min_length=1), Once]
"""Of a type, in an annotation: one value at least, and none twice."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'LoRA'?", or nothing where none is near."""
    spelt = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), spelt, n=1)
    return f"; did you mean {spelt[near[0]]!r}?" if near else ""
