"""What pydantic finds in the file of an edition, in words of the file."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from prefmoe.config.strict import Strict


def mistakes_in(error: ValidationError) -> Iterator[str]:
    """One line per mistake; an unknown setting gets the nearest known name beside it."""
    entries = error.errors()
    for entry in entries:
        place = entry["loc"]
        inside = [other for other in entries if other is not entry and other["loc"][: len(place)] == place]
        if not (entry["type"] == "too_short" and inside):  # values that were refused are counted as missing
            yield _mistake(entry)


def _mistake(entry: Mapping[str, Any]) -> str:
    place = ".".join(map(str, entry["loc"])) or "(file)"
    match entry["type"]:
        case "extra_forbidden":
            known = sorted({name for part in _parts(Strict) for name in part.model_fields})
            name = str(entry["loc"][-1])
            if name in known:
                return f"{place}: unknown setting; {name!r} is one of other sections or kinds"
            near = difflib.get_close_matches(name, known, n=1)
            return f"{place}: unknown setting" + (f", did you mean {near[0]!r}?" if near else "")
        case "union_tag_not_found":
            return f"{place}: kind is missing beside {', '.join(map(str, entry['input'])) or 'nothing'}"
        case "tuple_type":
            said = "expected a list, such as [a, b]"
        case _:
            said = entry["msg"].removeprefix("Value error, ")
    found = entry["input"]  # a whole section shows nothing of what is wrong in it
    return f"{place}: {said}" + ("" if isinstance(found, dict) else f" (got {found!r:.80})")


def _parts(part: type[Strict]) -> Iterator[type[Strict]]:
    for inner in part.__subclasses__():
        yield inner
        yield from _parts(inner)
