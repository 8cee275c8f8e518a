"""What a benchmark is: users with profiles and preferences, questions about them, and splits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import field_validator

from prefmoe.system.frozen import Frozen

FACETS = ("entertainment", "travel", "lifestyle", "shopping", "fashion")
"""The five preference facets, in the order of every facet axis in this package."""

OPTION_LETTERS = ("A", "B", "C", "D")

Turn = tuple[Literal["user", "assistant"], str]
"""One utterance of a conversation: who speaks, and what."""


HOLDER_SEPARATOR = " | "
"""What stands between the names of those who hold a preference, in the column preference_bucket_names."""


APART = f"which stands between the names of those who hold a preference, as {HOLDER_SEPARATOR!r}"


_JOINERS = re.compile(r"(?<=[^\x00-\x7f\s\u200c\u200d])[\u200c\u200d]")
"""Two characters that nobody sees, and that words of several scripts need behind a letter; not those of Latin."""


def name_mistake(name: str) -> str | None:
    """What is expected instead of this user's name; None if it can stand in a prompt, a table and a list of holders."""
    if not name.strip():
        return "a user's name"
    if name != name.strip():
        return "a name without blanks at its ends"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs") for character in _JOINERS.sub("", name)):
        return "a name without line breaks, control characters and characters that nobody sees"
    return f"a name without '|', {APART}" if "|" in name else None


def split_holders(text: str) -> tuple[str, ...]:
    """The names in a preference_bucket_names cell: its parts between ``HOLDER_SEPARATOR`` that are not blank."""
    # A single name that could be read as several is followed by a separator, which may have lost its last blank.
    parts = f"{text} ".split(HOLDER_SEPARATOR)
    return tuple(name for name in (part.strip() for part in parts) if name)


_ENCLOSED = re.compile(r"""[\[({"'].*[\])}"']""", re.DOTALL)
_JOINTS = re.compile(r"[,;/&]| and ", re.IGNORECASE)


def in_brackets_or_lines(cell: str) -> bool:
    """Whether a cell is in brackets or quotation marks, or has several lines, as lists have and names have not."""
    return _ENCLOSED.fullmatch(cell.strip()) is not None or len(cell.strip().splitlines()) > 1


def is_another_list(cell: str, known: Callable[[str], bool]) -> bool:
    """Whether a cell of holders without `HOLDER_SEPARATOR` lists them in another way: in brackets or quotation marks, a
    line for each, or a user's name joined to others by a comma, a semicolon, a slash, "&" or "and".

    ``known``: whether a name is that of a user; a stranger's name may have such marks in it.
    """
    if HOLDER_SEPARATOR in f"{cell} " or known(cell.strip()):
        return False
    if in_brackets_or_lines(cell):
        return True
    parts = _JOINTS.split(cell)
    return len(parts) > 1 and any(known(part.strip()) for part in parts)


def join_holders(names: Iterable[str]) -> str:
    """The cell of these names, which `split_holders` reads back. A single name that could be read as several is
    followed by a separator, so that nobody takes it for a list."""
    names = tuple(names)
    alone = len(names) == 1 and ("|" in names[0] or is_another_list(names[0], lambda part: part != names[0]))
    return HOLDER_SEPARATOR.join((*names, "") if alone else names)


def listed_holders(names: Iterable[Any]) -> str:
    """The cell of names that a table holds as a list. Raises ValueError if one of them is no user's name."""
    names = tuple(names)
    for name in names:
        if (expected := name_mistake(name) if isinstance(name, str) else "a user's name as text") is not None:
            raise ValueError(f"expected {expected} in a list of names, found {name!r}")
    return join_holders(names)


class Preference(Frozen):
    """What a user likes and dislikes within one facet."""

    likes: tuple[str, ...]
    dislikes: tuple[str, ...]

    @property
    def items(self) -> tuple[str, ...]:
        """All that it names, likes first."""
        return (*self.likes, *self.dislikes)


class Described(Frozen):
    """A user: a name, a face and a description (profile), and up to five preferences (one per facet)."""

    name: str
    attribute: Literal["human", "animal", "object", "character"]
    description: str
    preferences: dict[str, Preference]


class User(Described):
    """Somebody with pictures, of whom questions are asked."""

    images: tuple[Path, ...]

    @field_validator("name")
    @classmethod
    def _speakable(cls, name: str) -> str:
        if (expected := name_mistake(name)) is not None:
            raise ValueError(f"expected {expected}, found {name!r}")
        return name

    @property
    def image(self) -> Path:
        """The profile picture: the first of the user's injection images. Raises ValueError if there is none, as of a
        user whom a loaded adapter brings."""
        if not self.images:
            raise ValueError(f"user {self.name!r} has no picture")
        return self.images[0]


class Example(Frozen):
    """One question about one user and one picture."""

    index: int
    name: str
    category: Literal["preference", "recognition"]
    l2_category: Literal["awareness", "overconcept", "inconsistency"]
    concept: str
    target: str
    question: str
    options: tuple[str, ...]
    answer: int
    image: Path
    semantic_invert: bool
    bucket_names: tuple[str, ...]

    @property
    def answer_text(self) -> str:
        """The string the model is trained to say: an option letter, "yes" or "no"."""
        return ("A", "B", "C", "D", "yes", "no")[self.answer]

    @property
    def facet_id(self) -> int:
        """Row of the question's facet in FACETS, or -1 for a recognition question."""
        return FACETS.index(self.concept) if self.category == "preference" else -1

    @property
    def is_multiple_choice(self) -> bool:
        return self.l2_category == "inconsistency"


def named_items(users: Iterable[User], facet: str) -> list[str]:
    """All that the preferences of some users name in a facet, sorted."""
    return sorted({item for user in users if facet in user.preferences for item in user.preferences[facet].items})


@dataclass(frozen=True)
class Benchmark:
    """Users, examples and splits of one benchmark folder.

    Attributes:
        root: the data folder that image paths are relative to.
        frame: the questions with MMPB-clean's columns, indexed by ``index``.
        users: name -> User, in order of first appearance; a user's row is the position in this order.
        examples: index -> Example.
        splits: split name ("train", "validation", "test", "unseen") -> indices; absent splits are empty.
        transcripts: small-talk conversations for multi-turn prompts.
        annotations: optional item, popularity, seen_pair and told per question, indexed by ``index``.
        digest: a hash of everything above, pictures included.
    """

    root: Path
    frame: pd.DataFrame
    users: dict[str, User]
    examples: dict[int, Example]
    splits: dict[str, tuple[int, ...]]
    transcripts: tuple[tuple[Turn, ...], ...] = ()
    annotations: pd.DataFrame | None = None
    digest: str = field(default="")

    def select(self, split: str) -> list[Example]:
        """The examples of one split. Raises KeyError if the benchmark has no such split."""
        if split not in self.splits:
            raise KeyError(f"split {split!r} is unknown; this benchmark has {', '.join(self.splits)}")
        return [self.examples[i] for i in self.splits[split]]

    def row(self, name: str) -> int:
        """The row of a user in every user axis, from 0. Raises KeyError for a name that no user has."""
        return self._rows[name]

    def told(self, indices: Sequence[int]) -> pd.DataFrame:
        """Whether profiles tell what questions are about: item, told and seen_pair of each, by ``index``.

        No columns where the annotations do not say, or profiles tell everything; empty (and 0) for questions that are
        not annotated.
        """
        known = self.annotations
        if known is None or "told" not in known or not (known["told"] == "untold").any():
            return pd.DataFrame(index=pd.Index(indices, name="index"))
        found = known[["item", "told", "seen_pair"]].reindex(indices)
        return found.fillna({"item": "", "told": "", "seen_pair": 0}).astype({"seen_pair": int})

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.users)}

    @property
    def groups(self) -> list[list[int]]:
        """Preference group of each user in each facet, (users, facets): equal annotation, equal id; -1 = none."""
        return self._grouping[1]

    def groups_of(self, user: User) -> list[int]:
        """A user's groups, (facets,); a preference that none of the users has is given an id that is free."""
        ids, row = self._grouping[0], []
        free = len(ids)
        for facet in FACETS:
            preference = user.preferences.get(facet)
            row.append(-1 if preference is None else ids.get((facet, preference), free))
            free += row[-1] == free
        return row

    @cached_property
    def _grouping(self) -> tuple[dict[tuple[str, Preference], int], list[list[int]]]:
        """The id of every preference, and the groups of every user."""
        ids: dict[tuple[str, Preference], int] = {}
        table = []
        for user in self.users.values():
            row = []
            for facet in FACETS:
                preference = user.preferences.get(facet)
                row.append(-1 if preference is None else ids.setdefault((facet, preference), len(ids)))
            table.append(row)
        return ids, table

    @property
    def trained_users(self) -> list[str]:
        """Names of the users that occur in the training split, in user order."""
        seen = {self.examples[i].name for i in self.splits["train"]}
        return [name for name in self.users if name in seen]


@dataclass(frozen=True)
class GrowingBenchmark(Benchmark):
    """A benchmark that users join, each at the same cost however many there are. It has no digest, as it changes."""

    @classmethod
    def of(cls, benchmark: Benchmark) -> GrowingBenchmark:
        """A growing copy; the benchmark itself stays as it is."""
        content = {part.name: getattr(benchmark, part.name) for part in fields(benchmark)}
        return cls(**content | {"users": dict(benchmark.users), "digest": ""})

    def join(self, user: User, groups: list[int]) -> int:
        """Adds a user of a new name, and of these groups (`groups_of`); returns the user's row."""
        (ids, table), rows = self._grouping, self._rows
        ids |= {(facet, user.preferences[facet]): k for facet, k in zip(FACETS, groups, strict=True) if k >= 0}
        table.append(groups)
        rows[user.name] = len(self.users)
        self.users[user.name] = user
        return rows[user.name]
