"""The settings of MMPB's protocol: what of a concept is put into the conversation, where, and under which name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prefmoe.config.method_settings import MethodSettings

Description = Literal["none", "simple", "moderate", "detailed", "super_detailed"]
"""Which of MMPB's four descriptions is told, from a few words to several paragraphs."""

Names = Literal["own", "sks", "fixed", "random", "neutral", "shuffled"]
"""How the conversation calls the user: by the name; as MMPB's code does, <sks>; one name for all; by somebody else's
name, drawn anew for each question; a label that is no name; users' names exchanged among them."""


class InjectedMethod(MethodSettings):
    """Defaults: as MMPB's main table tells a concept in words."""

    table_type = "NT"
    module = "prefmoe.models.injected"
    kind: Literal["injected"]
    description: Description = "moderate"
    preferences: bool = Field(True, description="tell the preferences in words")
    pictures: int = Field(
        0, ge=0, le=5, description="pictures of the user; MMPB's tables show two in a description's place"
    )
    first: Literal["description", "preferences"] = Field("description", description="of the words")
    pictures_first: bool = Field(True, description="before the words, or behind them")
    after_turns: int = Field(
        0, ge=0, description="exchanges of small talk before it; all of them where there are fewer"
    )
    names: Names = "own"
    talk: Literal["generic", "topic"] = Field(
        "generic", description="the benchmark's small talk, or about the question's topic"
    )
    question_picture: Literal["own", "blank", "other"] = Field(
        "own", description="blank: MMPB's blind; other: the picture of another question"
    )
    portraits: Literal["own", "other"] = Field("own", description="other: the pictures show somebody else")

    @model_validator(mode="after")
    def _shown(self) -> InjectedMethod:
        if self.portraits == "other" and not self.pictures:
            raise ValueError("portraits: other means pictures of somebody else, and pictures is 0")
        return self

    @property
    def tells_nothing(self) -> bool:
        """Whether nothing of the user is told but the name."""
        return self.description == "none" and not self.preferences and not self.pictures

    @property
    def information(self) -> str:
        words = [] if self.description == "none" else [f"{self.description.replace('_', ' ')} description"]
        words += ["preferences"] if self.preferences else []
        shown = "picture" if self.pictures == 1 else f"{self.pictures} pictures"
        shown += " of somebody else" if self.portraits == "other" else ""
        parts = [*(words if self.first == "description" else words[::-1]), *([shown] if self.pictures else [])]
        name = {"own": "name", "sks": "name <sks>", "neutral": "label"}.get(self.names, f"{self.names} name")
        return ", ".join([name, *parts])
