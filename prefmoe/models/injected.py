"""A concept put into the conversation as MMPB does, asked of any backbone, also of one that is asked as a whole."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, Self

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Collator
from prefmoe.backbones.pictures import Picture, load_pictures, mean_picture
from prefmoe.config import InjectedMethod
from prefmoe.data.benchmark import Benchmark, Example, Turn, User
from prefmoe.data.injection import Protocol
from prefmoe.models.base import Method


class InjectedCollator(Collator):
    """Turns questions into batches as the protocol puts them."""

    def __init__(self, protocol: Protocol, backbone: Backbone, *, cache: bool) -> None:
        self.protocol = protocol
        super().__init__(backbone, protocol.benchmark, cache=cache)
        # What the user's collator says of a profile is not asked for: prompts are the protocol's.
        self.profile = "none" if protocol.settings.tells_nothing else "both"

    @property
    def form(self) -> tuple[Hashable, ...]:
        return repr(self.protocol.settings), self.protocol.seed

    def of(self, benchmark: Benchmark) -> Self:
        other = super().of(benchmark)
        other.protocol = Protocol(self.protocol.settings, benchmark, self.protocol.seed)
        return other

    def untold(self) -> InjectedCollator:
        nothing = {"description": "none", "preferences": False, "pictures": 0, "portraits": "own"}
        protocol = Protocol(self.protocol.settings.model_copy(update=nothing), self.benchmark, self.protocol.seed)
        protocol.first_users = self.protocol.first_users
        return InjectedCollator(protocol, self.backbone, cache=self.cache)

    def conversation(
        self, example: Example, user: User, transcript: Sequence[Turn]
    ) -> tuple[list[dict[str, Any]], Sequence[Picture]]:
        messages, files = self.protocol.conversation(example, transcript)
        pictures: list[Picture] = list(files)
        if self.protocol.settings.question_picture == "blank":
            (shown,) = load_pictures(files[-1:])
            pictures[-1] = mean_picture(self.backbone.processor, shown.size)
        return messages, pictures


class Injected(Method, settings=InjectedMethod):
    """The backbone as it is, told of the user as the settings say; the settings take the place of controls."""

    def __init__(
        self, config: InjectedMethod, backbone: Backbone, benchmark: Benchmark, *, seed: int = 0, cache: bool = True
    ) -> None:
        super().__init__(config, backbone, benchmark, seed=seed, cache=cache)
        self.collator = InjectedCollator(Protocol(config, benchmark, seed), backbone, cache=cache)

    @property
    def beginning(self) -> Literal["talk", "user", "question"]:
        """Drawn names and topics depend on the question; and models asked as a whole share nothing."""
        config, whole = self.config, self.backbone.entry.architecture is None
        return "question" if whole or config.names == "random" or config.talk == "topic" else "user"

    @property
    def _pictures_shown(self) -> int:
        return self.config.pictures if self.config.portraits == "own" else 0

    def _check_prompts(self, user: User) -> None:
        self.collator.protocol.check(user)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "profile": self.config.information}
