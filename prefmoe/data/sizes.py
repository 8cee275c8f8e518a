"""What the user state and the experts count by, for everything that only counts: planning a workflow needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from prefmoe.data.benchmark import FACETS

ANCHORS = ("name", "image", "description", *FACETS)
"""The eight anchors of a user, in the order of every anchor axis; all but the name carry a correction."""

PREFIX_LENGTH = 3 + 2 * len(FACETS)

PROFILE_EXPERTS = ("image", "description")


@dataclass(frozen=True)
class Ranks:
    """Rank of each preference expert, of the user expert and of each profile expert."""

    preference: int = 8
    user: int = 64
    profile: int = 8

    @property
    def total(self) -> int:
        return self.user + len(FACETS) * self.preference + len(PROFILE_EXPERTS) * self.profile
