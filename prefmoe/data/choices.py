"""What a benchmark of choices is: users who preferred one picture to another, and histories that tell their taste."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

CHOICE_SPLITS = ("train", "validation", "test", "unseen")
"""Splits of targets; "test" asks about users who are trained on, "unseen" about others."""


class HistoryError(ValueError):
    """A history longer than what a user has to offer; the message names the user and both numbers."""


@dataclass(frozen=True)
class Choice:
    """A user's choice among the pictures that were made for one prompt.

    Attributes:
        prompt: what the pictures were made for; may be empty.
        others: two more pictures that the user liked less, for one among four.
    """

    index: int
    user: str
    prompt: str
    liked: Path
    disliked: Path
    others: tuple[Path, ...] = ()

    @property
    def candidates(self) -> tuple[Path, ...]:
        """The liked picture, the disliked one and the others, as predictions number them."""
        return (self.liked, self.disliked, *self.others)


@dataclass(frozen=True)
class ChoiceBenchmark:
    """Users, choices and splits of one folder.

    Attributes:
        root: the folder that pictures lie in.
        choices: index -> Choice.
        users: name -> row, in order of first appearance.
        references: user -> indices of the choices that may stand in this user's history.
        splits: "train", "validation", "test" (users who are trained on) and "unseen" (others) -> indices of targets.
            Targets of training are references too; no picture of another target is in any of them.
        attributes: by picture (its path from root): one column per attribute. A miniature's only.
        utilities: by user: one column per value of an attribute, and "group". A miniature's only: the true tastes.
        digest: a hash of everything above, pictures included.
    """

    root: Path
    choices: dict[int, Choice]
    users: dict[str, int]
    references: dict[str, tuple[int, ...]]
    splits: dict[str, tuple[int, ...]]
    attributes: pd.DataFrame | None = None
    utilities: pd.DataFrame | None = None
    digest: str = field(default="")

    def select(self, split: str) -> list[Choice]:
        """The targets of one split. Raises KeyError if the benchmark has no such split."""
        if split not in self.splits:
            raise KeyError(f"split {split!r} is unknown; this benchmark has {', '.join(self.splits)}")
        return [self.choices[i] for i in self.splits[split]]

    def by_user(self, split: str) -> dict[str, list[Choice]]:
        """The targets of one split by user, users in order of their first; see `select`."""
        found: dict[str, list[Choice]] = {}
        for choice in self.select(split):
            found.setdefault(choice.user, []).append(choice)
        return found

    def relative(self, picture: Path) -> str:
        """A picture's path from root, as `attributes` names it."""
        return picture.relative_to(self.root).as_posix()

    @cached_property
    def trained_users(self) -> list[str]:
        """Names of the users that occur in the training split, in user order."""
        seen = {self.choices[i].user for i in self.splits["train"]}
        return [name for name in self.users if name in seen]

    def history(self, user: str, n_ref: int, draw: int, targets: Sequence[Choice] = ()) -> tuple[Choice, ...]:
        """A random history of a user: the same for the same user and draw, and a shorter one begins a longer one.

        Args:
            n_ref: how many choices.
            draw: a number that tells the histories of one user apart.
            targets: choices that are asked about; neither they nor any with a picture of theirs are in the history.

        Raises HistoryError if fewer than n_ref choices are left.
        """
        usable = self._usable(user, targets)
        if len(usable) < n_ref:
            raise HistoryError(self._too_few(user, n_ref, len(usable), targets))
        name = hashlib.blake2b(user.encode(), digest_size=8).digest()
        order = np.random.default_rng([draw, *name]).permutation(len(self.references[user]))
        kept = (self.references[user][k] for k in order)
        return tuple(self.choices[i] for i in kept if i in usable)[:n_ref]

    def check_histories(self, n_ref: int, splits: Iterable[str] = CHOICE_SPLITS) -> None:
        """Whether every target can be asked about after n_ref choices. Raises HistoryError naming the first that
        cannot, and how many there are."""
        short = []
        for target in (target for split in splits for target in self.select(split)):
            if (there := len(self._usable(target.user, (target,)))) < n_ref:
                short.append((target, there))
        if short:
            target, there = short[0]
            more = f" (and {len(short) - 1} more targets)" if len(short) > 1 else ""
            raise HistoryError(self._too_few(target.user, n_ref, there, (target,)) + more)

    def _usable(self, user: str, targets: Sequence[Choice]) -> set[int]:
        if user not in self.references:
            raise KeyError(f"user {user!r} is unknown to this benchmark of {len(self.users)} users")
        asked = {target.index for target in targets}
        hidden = {picture for target in targets for picture in target.candidates}
        kept = (self.choices[i] for i in self.references[user] if i not in asked)
        return {choice.index for choice in kept if hidden.isdisjoint(choice.candidates)}

    def _too_few(self, user: str, n_ref: int, there: int, targets: Sequence[Choice]) -> str:
        about = f" beside target {', '.join(str(target.index) for target in targets)}" if targets else ""
        return (
            f"{self.root}: user {user!r} has {there} choices for a history{about}, expected at least n_ref = {n_ref}: "
            "make n_ref smaller, or leave out users with so few"
        )
