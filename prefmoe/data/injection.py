"""What MMPB's protocol says to a model: the concept, the small talk and the question, under the settings' switches."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefmoe.config import InjectedMethod
from prefmoe.data import prompts
from prefmoe.data.benchmark import FACETS, Benchmark, Example, Turn, User, named_items
from prefmoe.data.controls import derangement

FIXED_NAME, NEUTRAL_NAME = "FixedUser", "ENTITY_X"
"""How the published code calls everybody: by one name, or by what is none."""

LOOKS = ("hair", "skin", "face", "clothes", "background", "left", "right", "middle", "shoes", "hats")
"""What small talk about pictures of somebody is about."""


class Conversation(NamedTuple):
    """A conversation that ends with the question, and the files of its pictures in order."""

    messages: list[dict[str, Any]]
    pictures: list[Path]


class Protocol:
    """Puts the questions of a benchmark as the settings say; what is drawn depends on the seed alone.

    Names, portraits and topics are drawn among the users that the benchmark has now: whoever joins it later changes
    nothing of what is said to others.
    """

    def __init__(self, settings: InjectedMethod, benchmark: Benchmark, seed: int = 0) -> None:
        self.settings, self.benchmark, self.seed = settings, benchmark, seed
        self.first_users = tuple(benchmark.users)

    def check(self, user: User) -> None:
        """Raises ValueError if something is missing that conversations about a user say or show. The user need not be
        of the benchmark, and no picture is opened."""
        self.portraits(user)
        self.words(user, user.name)

    def conversation(self, example: Example, talk: Sequence[Turn]) -> Conversation:
        """Injection and acknowledgement, small talk, picture and question. Raises ValueError if the user's profile
        lacks what is to be shown, or nobody can stand in for the user."""
        settings, user = self.settings, self.benchmark.users[example.name]
        name = self.name(example)
        spoken = self.talk(example, len(talk) // 2) if settings.talk == "topic" else talk
        turns = [prompts.message(role, text) for role, text in spoken]
        pictures = self.portraits(user)
        if not settings.tells_nothing:
            words = self.words(user, name)
            told = prompts.message("user", words, pictures=len(pictures), pictures_first=settings.pictures_first)
            place = min(2 * settings.after_turns, len(turns))
            turns[place:place] = [told, prompts.message("assistant", prompts.ACKNOWLEDGEMENT)]
        question = prompts.message("user", f"\n{prompts.question_text(example, name)}", pictures=1)
        return Conversation([*turns, question], [*pictures, self._question_picture(example)])

    def name(self, example: Example) -> str:
        """How the conversation calls the user."""
        mode, own = self.settings.names, example.name
        if mode == "random":
            others = [name for name in self.first_users if name != own]
            if not others:
                raise ValueError("names: random takes somebody else's name, and there is one user")
            return others[np.random.default_rng([self.seed, example.index]).integers(len(others))]
        if mode == "shuffled":
            return self._stand_in(own)
        return {"own": own, "sks": prompts.PLACEHOLDER, "fixed": FIXED_NAME, "neutral": NEUTRAL_NAME}[mode]

    def words(self, user: User, name: str) -> str:
        """What is said of the user, in the settings' order."""
        settings = self.settings
        words = {"description": "", "preferences": ""}
        if settings.description != "none":
            words["description"] = prompts.fill(self._description(user), name)
        elif settings.pictures:
            words["description"] = (
                f"This image presents {name}." if settings.pictures == 1 else f"These images present {name}."
            )
        if settings.preferences:
            words["preferences"] = prompts.format_preferences(user.preferences, name)
        second = "preferences" if settings.first == "description" else "description"
        return " ".join(filter(None, (words[settings.first], words[second])))

    def portraits(self, user: User) -> list[Path]:
        """The pictures that introduce the user. Raises ValueError if there are fewer."""
        count = self.settings.pictures
        shown = user if self.settings.portraits == "own" else self.benchmark.users[self._stand_in(user.name)]
        if len(shown.images) < count:
            expected = "a picture" if count == 1 else f"{count} pictures"
            raise ValueError(f"expected {expected} of user {shown.name!r} in images, found {len(shown.images)}")
        return list(shown.images[:count])

    def talk(self, example: Example, exchanges: int) -> list[Turn]:
        """So many exchanges about what the question is about, which say nothing of the user: items of its facet, or how
        people look in pictures."""
        items = self._items.get(example.concept, ()) if example.category == "preference" else LOOKS
        items = items or (example.concept or "people",)
        said: list[Turn] = []
        for k in range(exchanges):
            item = items[(example.index + k) % len(items)]
            if example.category == "preference":
                said.append(("user", f"Do people like {item}?"))
                said.append(("assistant", f"There are people that enjoy {item} and people that dislike {item}."))
            else:
                said.append(("user", f"What do you see of the {item} in a picture?"))
                said.append(("assistant", f"Of the {item} I see what the picture does show."))
        return said

    def _description(self, user: User) -> str:
        column = f"description_{self.settings.description}"
        if column == "description_moderate":
            return user.description
        text = self._descriptions.get(user.name, "") if column in self.benchmark.frame else ""
        if not text:
            raise ValueError(f"user {user.name!r} has no {column}; expected one in the benchmark's table of questions")
        return text

    def _question_picture(self, example: Example) -> Path:
        if self.settings.question_picture != "other":
            return example.image
        if example.index not in self._others:
            raise ValueError("question_picture: other takes another question's of the same split, and there is none")
        return self._others[example.index]

    def _stand_in(self, name: str) -> str:
        """Somebody else of the first users: for each of these another one, for whoever joined one by their row."""
        if name in self._exchanged:
            return self._exchanged[name]
        others, users = [other for other in self.first_users if other != name], self.benchmark.users
        if not others:
            raise ValueError(f"nobody can stand in for user {name!r}: the benchmark has no other users")
        row = self.benchmark.row(name) if name in users else len(users)
        return others[np.random.default_rng([self.seed, row]).integers(len(others))]

    @cached_property
    def _exchanged(self) -> dict[str, str]:
        return derangement(self.first_users, self.seed) if len(self.first_users) > 1 else {}

    @cached_property
    def _others(self) -> dict[int, Path]:
        """For each question the picture of another one of its split."""
        found = {}
        for indices in self.benchmark.splits.values():
            if len(indices) > 1:
                found |= {k: self.benchmark.examples[o].image for k, o in derangement(indices, self.seed).items()}
        return found

    @cached_property
    def _descriptions(self) -> dict[str, str]:
        column = f"description_{self.settings.description}"
        return self.benchmark.frame.drop_duplicates("name").set_index("name")[column].to_dict()

    @cached_property
    def _items(self) -> dict[str, list[str]]:
        """What somebody likes or dislikes, by facet."""
        users = [self.benchmark.users[name] for name in self.first_users]
        return {facet: named_items(users, facet) for facet in FACETS}
