"""What an edition says of its data: which benchmark is drawn or read, with which users and how many of everything."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefmoe.config.strict import Strict

Seed = Annotated[int, Field(ge=0, lt=2**32)]

MOST_DRAWN = 10_000_000
"""Questions, choices or pictures of a miniature: more than memory holds is refused before anything is drawn."""


def require_size(count: int, things: str) -> None:
    """Raises ValueError if a miniature would have more than `MOST_DRAWN` of something."""
    if count > MOST_DRAWN:
        raise ValueError(f"expected at most {MOST_DRAWN} {things}, found {count}")


class MiniatureData(Strict):
    """The embedded miniature benchmark, drawn from a seed."""

    kind: Literal["miniature"]
    seed: Seed = 0
    users: int = Field(40, ge=4)
    unseen_users: int = Field(8, ge=0)
    train_per_user: int = Field(40, ge=5)
    validation_per_user: int = Field(10, ge=1)
    test_per_user: int = Field(25, ge=5)
    full_names: bool = Field(False, description="names of two words, of which there are thousands")
    untold: int = Field(0, ge=0, le=6, description="liked items per facet and preference group that no profile tells")

    @model_validator(mode="after")
    def _of_a_size(self) -> MiniatureData:
        each = self.train_per_user + self.validation_per_user + self.test_per_user
        require_size((self.users + self.unseen_users) * each, "questions, users times those of each")
        return self


class MMPBData(Strict):
    """A folder that holds mmpb_clean/ (from PREFMOE_DATA when none is given); a relative one starts at the clone."""

    kind: Literal["mmpb"]
    folder: str | None = None
    csv: str = "sample.csv"


class ChoicesData(Strict):
    """The embedded miniature of choices between pictures, drawn from a seed.

    Every prompt comes with four pictures, and many users choose among the same four; the pictures of training,
    validation, test and of unseen users' histories are different ones.
    """

    kind: Literal["choices"]
    seed: Seed = 0
    users: int = Field(160, ge=5)
    unseen_users: int = Field(48, ge=0)
    train_per_user: int = Field(24, ge=2, description="choices to train on, which are also the user's references")
    validation_per_user: int = Field(2, ge=1)
    test_per_user: int = Field(6, ge=1)
    unseen_per_user: int = Field(12, ge=1, description="test choices of each unseen user")
    unseen_references: int = Field(16, ge=1, description="choices for the histories of each unseen user")
    train_prompts: int = Field(480, ge=2, description="prompts with four pictures each that training choices share")
    test_prompts: int = Field(96, ge=2, description="as many again for validation and for unseen users' references")

    @model_validator(mode="after")
    def _enough_prompts(self) -> ChoicesData:
        seen = self.train_per_user + self.validation_per_user + self.test_per_user
        unseen = self.unseen_per_user + self.unseen_references
        require_size(self.users * seen + self.unseen_users * unseen, "choices, users times those of each")
        require_size(4 * (self.train_prompts + self.test_prompts), "pictures, four for each prompt")
        if self.train_per_user > self.train_prompts:
            raise ValueError(
                f"a user chooses once per prompt: train_per_user is more than {self.train_prompts} prompts"
            )
        for name in ("validation_per_user", "test_per_user", "unseen_per_user", "unseen_references"):
            if getattr(self, name) > self.test_prompts:
                raise ValueError(
                    f"a user chooses once per prompt: {name} is more than {self.test_prompts} test_prompts"
                )
        return self


class ChoiceFolderData(Strict):
    """A folder of choices of one's own: choices.csv and its pictures (docs/choices.md); from PREFMOE_DATA when none is
    given. A relative one starts at the clone."""

    kind: Literal["choice_folder"]
    folder: str | None = None


class PickAPicData(Strict):
    """A folder with the hub's parquet files of Pick-a-Pic v2 (from PREFMOE_DATA when none is given)."""

    kind: Literal["pick_a_pic"]
    folder: str | None = None
    minimum_liked: int = Field(11, ge=2, description="different liked pictures without which a user is left out")
    unseen_references: int = Field(8, ge=1, description="choices for the history of a user whom nobody trains on")


Data = MiniatureData | MMPBData | ChoicesData | ChoiceFolderData | PickAPicData
Choices = ChoicesData | ChoiceFolderData | PickAPicData
"""Benchmarks of choices between pictures, which `prefmoe.data.sources.load_choices` loads."""
