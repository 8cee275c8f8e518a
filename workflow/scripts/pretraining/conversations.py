"""What the miniatures read: conversations about people invented for one of them each, and their token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from prefmoe.data import miniature as world
from prefmoe.data.benchmark import FACETS, Preference
from prefmoe.data.drawing import ITEM_FACET, ITEMS, Face
from prefmoe.data.people import NAMES
from prefmoe.data.prompts import format_preferences
from pretraining.drawings import Pictures
from pretraining.miniatures import CAPTION_QUESTIONS, FACE_QUESTION, GRID


@dataclass(frozen=True)
class Say:
    """One utterance: its text, the pictures before the text, and whether the model learns to say it.

    The role "bare" adds its text without any chat markup (the first lessons of stage 1).
    """

    role: str
    text: str
    pictures: tuple[int, ...] = ()
    learn: bool = False


def invented_preferences(rng: np.random.Generator, facets: Sequence[str]) -> dict[str, Preference]:
    """Preferences of an invented person: uniform items, so that popularity cannot stand in for reading."""
    result = {}
    for facet in facets:
        picked = [str(i) for i in rng.choice(list(ITEMS[facet]), 4, replace=False)]
        result[facet] = Preference(likes=tuple(picked[:2]), dislikes=tuple(picked[2:]))
    return result


@dataclass(frozen=True)
class Introduced:
    """An invented person whom a soft prefix introduces. portrait: index of a picture of the pool."""

    name: str
    portrait: int
    description: str
    preferences: dict[str, Preference]


def _named(text: str, name: str) -> str:
    return text.replace("<sks>", name)


class Conversations:
    """Draws training conversations about invented people. ``pool``: pictures, or None for stage 1, where the word of an
    item stands in for its picture; ``rng``: source of every choice; ``negated``: share of questions with a "not"."""

    def __init__(self, pool: Pictures | None, rng: np.random.Generator, negated: float = world.NEGATED_SHARE):
        self.rng, self.pool, self.negated = rng, pool, negated
        if pool is None:
            return
        self.quarters, self.group_list = list(pool.quarters), list(pool.groups)
        self.portraits = {p: [k for k, _ in a if len(pool.groups[k]) == 1] for p, a in pool.appearances.items()}
        self.known = [p for p, a in pool.appearances.items() if self.portraits[p] and len(a) > 1]

    def _pick(self, options: Sequence):
        return options[int(self.rng.integers(len(options)))]

    def _shown(self, item: str) -> dict:
        """A picture of the item, or the word for it in stage 1."""
        return {"pictures": (self._pick(self.pool.items[item]),)} if self.pool else {"prefix": f"{item}. "}

    def _ask(self, question: str, answer: str, pictures: tuple[int, ...] = (), prefix: str = "") -> list[Say]:
        return [Say("user", prefix + question, pictures), Say("assistant", answer, learn=True)]

    def _preference_question(self, name: str, preferences: dict[str, Preference], choices: float) -> list[Say]:
        facet = self._pick(list(preferences))
        own = preferences[facet]
        if self.rng.random() < choices:
            target = self._pick(list(world.CHOICE_QUESTIONS))
            right_pool, wrong_pool = (own.likes, own.dislikes) if target == "like" else (own.dislikes, own.likes)
            neutral = [i for i in ITEMS[facet] if i not in own.likes + own.dislikes]
            right = self._pick(right_pool)
            options = [right, self._pick(wrong_pool), *(str(i) for i in self.rng.choice(neutral, 2, replace=False))]
            pictures: tuple[int, ...] = ()
            if self.pool:  # the options may be the four things in some picture of the pool
                pictures = (self._pick(self.quarters),)
            return self._choice(_named(world.CHOICE_QUESTIONS[target], name), self._shuffled(options), right, pictures)
        kind = self.rng.random()
        if kind < 0.5:
            item = self._pick(own.likes)
        elif kind < 0.75:
            item = self._pick(own.dislikes)
        else:
            item = self._pick(list(ITEMS[facet] if self.rng.random() < 0.6 else list(ITEM_FACET)))
        return self._liking_question(name, item, any(item in p.likes for p in preferences.values()))

    def _liking_question(self, name: str, item: str, liked: bool) -> list[Say]:
        negated = self.rng.random() < self.negated
        question = self._pick(world.NEGATED_QUESTIONS if negated else world.LIKES_QUESTIONS)
        return self._ask(_named(question, name), "yes" if liked != negated else "no", **self._shown(item))

    def _choice(self, question: str, options: Sequence[str], right: str, pictures: tuple[int, ...]) -> list[Say]:
        listed = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", options, strict=True))
        return self._ask(f"{question}\nOptions:\n{listed}", "ABCD"[options.index(right)], pictures)

    def _shuffled(self, options: Sequence[str]) -> list[str]:
        return [str(option) for option in self.rng.permutation(options)]

    def _talk(self, share: float = 0.3) -> list[Say]:
        if self.rng.random() < share:
            return [Say(role, text) for role, text in world.small_talk(self.rng, int(self.rng.integers(1, 11)))]
        return []

    def preferences(self, facets: int, questions: int, talk: bool = False, choices: float = 0.3) -> list[Say]:
        """A profile text with some facets, then questions about likings."""
        name = self._pick(NAMES)
        chosen = sorted(self.rng.choice(len(FACETS), facets, replace=False))
        held = invented_preferences(self.rng, [FACETS[f] for f in chosen])
        if self.rng.random() < 0.15:
            facet = FACETS[chosen[0]]
            own = held = {facet: held[facet]}
            likes, dislikes = ", ".join(own[facet].likes), ", ".join(own[facet].dislikes)
            profile = f"User preference in {facet}: enjoys {likes}, dislikes {dislikes}"
        else:
            profile = _named(format_preferences(held), name)
            if self.rng.random() < 0.5:
                profile = f"{_named(Face.random(self.rng).description(), name)} {profile}"
        turns = [Say("user", profile), Say("assistant", "I got it.")] + (self._talk() if talk else [])
        for _ in range(questions):
            turns += self._preference_question(name, held, choices)
        return turns

    def lesson(self, level: int) -> list[Say]:
        """Stage 1, from looking up a word to choosing between four options by a whole profile (levels 0 to 8)."""
        if level == 0:
            items = [str(i) for i in self.rng.choice(list(ITEM_FACET), 6, replace=False)]
            truth = {i: self._pick(("yes", "no")) for i in items}
            return [Say("bare", f"{i} {a} ") for i, a in truth.items()] + self._drill(truth, 14, chat=False)
        if level <= 3:
            facet = self._pick(FACETS)
            own = invented_preferences(self.rng, [facet])[facet]
            truth = dict.fromkeys(own.likes, "yes") | dict.fromkeys(own.dislikes, "no")
            text = format_preferences({facet: own}).removeprefix(f"In terms of {facet}, <sks> ")
            if level == 1:
                return [Say("bare", text), *self._drill(truth, 12, chat=False)]
            turns = [Say("user", text), Say("assistant", "I got it.")]
            if level == 2:
                return turns + self._drill(truth, 8, chat=True)
            name = self._pick(NAMES)
            for item in [self._pick(list(truth)) for _ in range(6)]:
                question = _named(self._pick(world.LIKES_QUESTIONS), name)
                turns += self._ask(question, truth[item], **self._shown(item))
            return turns
        if level == 4:
            return self.preferences(int(self.rng.integers(1, 4)), 6)
        if level == 5:
            return self.preferences(int(self.rng.integers(2, 6)), 8)
        if level == 6:  # find a word among four options and say its letter
            turns = []
            for _ in range(5):
                options = [str(i) for i in self.rng.choice(list(ITEM_FACET), 4, replace=False)]
                turns += self._choice(f"{options[0]}.", self._shuffled(options), options[0], ())
            return turns
        return self.preferences(
            1 if level == 7 else int(self.rng.integers(1, 6)), 5, choices=0.8 if level == 7 else 0.5
        )

    def _drill(self, truth: dict[str, str], count: int, chat: bool) -> list[Say]:
        turns: list[Say] = []
        for _ in range(count):
            item = self._pick(list(truth))
            if chat:
                turns += [Say("user", item), Say("assistant", truth[item], learn=True)]
            else:
                turns += [Say("bare", item), Say("bare", truth[item], learn=True)]
        return turns

    def _company(self, person: int, level: int) -> tuple[int, str | None]:
        """A picture with the person or without, and the person's place in it (None: absent).

        Level 0: one person at a time, strangers look very different. Level 1: groups, strangers look different.
        Level 2: a quarter of the pictures show a lookalike that has up to four attributes in common.
        """
        pool, most = self.pool, 4 if level == 2 else 2
        face = pool.faces[person]
        while True:
            draw = self.rng.random()
            if draw < 0.5:
                picture, _ = self._pick(pool.appearances[person])
            elif draw < 0.75 and level == 2:
                near = [int(p) for p in self.rng.integers(0, len(pool.faces), 40) if face.shared(pool.faces[p]) <= most]
                best = max(near, key=lambda p: face.shared(pool.faces[p]))
                picture, _ = self._pick(pool.appearances[best])
            else:
                picture = self._pick(self.group_list)
            members = pool.groups[picture]
            if level == 0 and len(members) > 1:
                continue
            if all(m == person or face.shared(pool.faces[m]) <= most for m in members):
                return picture, dict(pool.appearances[person]).get(picture)

    def recognition(self, questions: int, talk: bool = False, source: str | None = None, level: int = 2,
                    places: float = 0.3, in_words: float = 0.0) -> list[Say]:  # fmt: skip
        """A portrait, a description or both (or the given source), then questions about pictures of people.

        ``places`` is the share of questions about where somebody is (none at level 0), ``in_words`` the share of
        these that are answered with the place itself and not with the letter of an option; the others ask whether.
        """
        name, person = self._pick(NAMES), self._pick(self.known)
        draw = {"portrait": 0.0, "description": 1.0, None: self.rng.random()}[source]
        text = _named(self.pool.faces[person].description(), name) if draw > 0.5 else f"This is {name}."
        pictures = (self._pick(self.portraits[person]),) if draw < 0.8 else ()
        if draw > 0.5 and self.rng.random() < 0.3:
            facets = [FACETS[f] for f in sorted(self.rng.choice(5, int(self.rng.integers(1, 3)), replace=False))]
            text += " " + _named(format_preferences(invented_preferences(self.rng, facets)), name)
        turns = [Say("user", text, pictures), Say("assistant", "I got it.")] + (self._talk() if talk else [])
        for _ in range(questions):
            picture, place = self._company(person, level)
            while picture in pictures:
                picture, place = self._company(person, level)
            if self.rng.random() < places and level > 0:
                if self.rng.random() < in_words:
                    turns += self._ask(_named(world.PLACE_QUESTION, name), place or "absent", (picture,))
                    continue
                question = _named(world.PLACE_QUESTION, name)
                turns += self._choice(question, world.PLACE_OPTIONS, place or "absent", (picture,))
            else:
                question = _named(self._pick(world.PRESENCE_QUESTIONS), name)
                turns += self._ask(question, "yes" if place else "no", (picture,))
        return turns

    def strangers(self, talk: bool = False) -> list[Say]:
        """A question about somebody of whom nothing was said: only a guess of the right form can be learned."""
        asked = self.preferences(5, 1, choices=0.3) if self.rng.random() < 0.65 else self.recognition(1)
        return (self._talk(0.8) if talk else []) + asked[-2:]

    def introduced(self, questions: int, talk: bool = False) -> tuple[Introduced, list[Say]]:
        """Somebody whom a soft prefix introduces, and questions about the liking of things."""
        name, person = self._pick(NAMES), self._pick(self.known)
        facets = [FACETS[f] for f in sorted(self.rng.choice(len(FACETS), int(self.rng.integers(1, 6)), replace=False))]
        held = invented_preferences(self.rng, facets)
        turns = self.about(name, held, questions, talk)
        description = _named(self.pool.faces[person].description(), name)
        return Introduced(name, self._pick(self.portraits[person]), description, held), turns

    def about(self, name: str, held: dict[str, Preference], questions: int, talk: bool = False) -> list[Say]:
        """Questions about the liking of things, of somebody whom no text introduces."""
        facets, likes = list(held), [item for own in held.values() for item in own.likes]
        turns = self._talk() if talk else []
        for _ in range(questions):
            if self.rng.random() < 0.5:
                item = self._pick(likes)
            else:
                item = self._pick(list(ITEMS[self._pick(facets)] if self.rng.random() < 0.6 else ITEM_FACET))
            turns += self._liking_question(name, item, item in likes)
        return turns

    def captions(self, questions: int, faces: bool = True) -> list[Say]:
        """Pictures to be named or described."""
        turns: list[Say] = []
        for _ in range(questions):
            if not faces or self.rng.random() < 0.6:
                item = self._pick(list(ITEM_FACET))
                turns += self._ask(self._pick(CAPTION_QUESTIONS), item, **self._shown(item))
            else:
                person = self._pick(self.known)
                description = self.pool.faces[person].description().removeprefix("<sks> is ")
                turns += self._ask(FACE_QUESTION, description, (self._pick(self.portraits[person]),))
        return turns


class Encoder:
    """Turns conversations into token ids, exactly as the chat template does (a test compares the two)."""

    def __init__(self, kind: str, tokenizer):
        self.kind, self.tokenizer = kind, tokenizer
        self.ids = lru_cache(maxsize=100_000)(lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids))
        self.image_id = tokenizer.convert_tokens_to_ids("<image>" if kind == "llava" else "<|image_pad|>")

    def __call__(self, turns: Sequence[Say]) -> tuple[list[int], list[int], list[int]]:
        """Returns (input ids, labels with -100 where nothing is learned, pictures in order)."""
        ids: list[int] = []
        labels: list[int] = []
        pictures: list[int] = []
        if self.kind == "llava":
            ids += self.ids("<s>")
            opening = {"user": "USER:", "assistant": "ASSISTANT:"}
            before, after, closing = "", "", {"user": "", "assistant": "</s>"}
        else:
            opening = {"user": "<|im_start|> user", "assistant": "<|im_start|> assistant"}
            before, after, closing = (
                "<|vision_start|>",
                "<|vision_end|>",
                dict.fromkeys(("user", "assistant"), "<|im_end|>"),
            )
        labels += [-100] * len(ids)
        for say in turns:
            start = list(self.ids(opening[say.role])) if say.role in opening else []
            for picture in say.pictures:
                start += [*self.ids(before), *([self.image_id] * (GRID * GRID)), *self.ids(after)]
                pictures.append(picture)
            said = list(self.ids(say.text) + self.ids(closing.get(say.role, "")))
            ids += start + said
            labels += [-100] * len(start) + (said if say.learn else [-100] * len(said))
        return ids, labels, pictures


def collate(encoded: Sequence[tuple[list[int], list[int], list[int]]], pad: int, rooms: Sequence[int]) -> dict:
    """Left-pads conversations to (B, T), with room for so many soft tokens each, and lists their pictures in order."""
    rows = [([pad] * room + ids, [-100] * room + labels) for room, (ids, labels, _) in zip(rooms, encoded, strict=True)]
    length = max(len(ids) for ids, _ in rows)
    blanks = [length - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([[pad] * n + ids for n, (ids, _) in zip(blanks, rows, strict=True)]),
        "labels": torch.tensor([[-100] * n + labels for n, (_, labels) in zip(blanks, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in blanks]),
        "pictures": [p for _, _, pictures in encoded for p in pictures],
    }
