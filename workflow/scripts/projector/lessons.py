"""What the projector is taught from: drawings and photographs, with what should be said of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import MiniatureData
from prefmoe.data import miniature
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET, Face, draw_items, draw_people
from prefmoe.data.prompts import fill

COLUMNS = [list(ITEM_FACET), *(list(words) for words in ATTRIBUTES.values())]
"""The words a place of a drawing can be named by: of its item, and of each attribute of its person."""

NAME_IT, LIST_THEM, DESCRIBE = "What is this?", "What is in this picture?", "Describe this picture."

_WHAT = {"human": "person"}
"""What a description calls its subject in the place of the name, where that is not MMPB's word for the kind."""


@dataclass(frozen=True)
class Lesson:
    """A picture with what should be said about it.

    Attributes:
        picture: makes it, always the same.
        labels: (side, side, 7), for each place the index of its word in each of COLUMNS, or -1; None for photographs.
    """

    picture: Callable[[], Image.Image]
    question: str
    answer: str
    labels: np.ndarray | None = None


def drawings(items: int, quarters: int, people: int, *, seed: int, side: int = 7) -> list[Lesson]:
    """Drawings of one item, of four, and of one to three invented people, who never look like a benchmark's user."""
    rng = np.random.default_rng([seed, 31])
    avoid = {person.face for group in miniature.people(MiniatureData(kind="miniature")) for person in group}
    words = list(ITEM_FACET)
    lessons = []
    for index in range(items + quarters):
        shown = [words[index % len(words)]] if index < items else [str(w) for w in rng.choice(words, 4, replace=False)]
        picture = partial(_drawn, draw_items, shown, int(rng.integers(2**62)))
        labels = np.full((side, side, len(COLUMNS)), -1)
        half = side // 2
        for place, item in enumerate(shown):
            rows, columns = (slice(None),) * 2 if len(shown) == 1 else (
                slice(place // 2 * (side - half), place // 2 * (side - half) + half),
                slice(place % 2 * (side - half), place % 2 * (side - half) + half),
            )  # fmt: skip
            labels[rows, columns, 0] = words.index(item)
        answer = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
        lessons.append(Lesson(picture, NAME_IT if len(shown) == 1 else LIST_THEM, answer, labels))
    for index in range(people):
        faces: list[Face] = []
        while len(faces) < 1 + index % 3:
            if (face := Face.random(rng)) not in avoid:
                faces.append(face)
        picture = partial(_drawn, draw_people, faces, int(rng.integers(2**62)))
        labels = np.full((side, side, len(COLUMNS)), -1)
        edges = np.linspace(0, side, len(faces) + 1)
        for face, left, right in zip(faces, edges[:-1], edges[1:], strict=True):
            columns = slice(math.ceil(left), math.floor(right))  # a place that two people share belongs to neither
            for column, (attribute, values) in enumerate(ATTRIBUTES.items(), start=1):
                labels[:, columns, column] = list(values).index(getattr(face, attribute))
        descriptions = [fill(face.description(), "This") for face in faces]
        answer = descriptions[0] if len(faces) == 1 else " ".join(
            text.replace("This is a", f"On the {where} is a")
            for text, where in zip(descriptions, miniature.PLACES[len(faces)], strict=True)
        )  # fmt: skip
        lessons.append(Lesson(picture, DESCRIBE, answer, labels))
    return lessons


def _drawn(draw: Callable[..., Image.Image], content: Sequence[Any], seed: int) -> Image.Image:
    return draw(content, np.random.default_rng(seed))


def photographs(benchmark: Benchmark) -> list[Lesson]:
    """Every user's portraits, and the training photographs that show a user, with the description of who it is."""
    shown = {(path, name) for name, user in benchmark.users.items() for path in user.images}
    for example in benchmark.select("train"):
        if example.category == "recognition" and example.l2_category == "awareness":
            shown.add((example.image, example.name))
    lessons = []
    for path, name in sorted(shown, key=str):
        user = benchmark.users[name]
        subject = f"This {_WHAT.get(user.attribute, user.attribute)}"
        lessons.append(Lesson(partial(_opened, path), DESCRIBE, fill(user.description, subject)))
    return lessons


def _opened(path: Path) -> Image.Image:
    return load_pictures([path])[0]


def asked(lesson: Lesson) -> list[dict[str, Any]]:
    """The chat in which a lesson's question is asked, its picture first."""
    content = [{"type": "image"}, {"type": "text", "text": f"\n{lesson.question}\n"}]
    return [{"role": "user", "content": content}]
