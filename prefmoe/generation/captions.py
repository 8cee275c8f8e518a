"""What a drawer is told and what it learns to draw: captions of closed words, and drawings reduced to its size."""

from collections.abc import Collection, Mapping

import numpy as np
from PIL import Image

from prefmoe.data.choice_drawing import ATTRIBUTES, PROMPTED, draw_choice_picture, prompt_of

SIZE = 32
"""Width and height in pixels of what the miniature draws."""

OPEN = tuple(name for name in ATTRIBUTES if name not in PROMPTED)
"""The attributes that a prompt leaves open and a caption may tell, in the order in which captions tell them."""


def words() -> tuple[str, ...]:
    """Every word of every caption, in a fixed order."""
    singular = (prompt_of("one", item).split()[1] for item in ATTRIBUTES["item"])
    return tuple(dict.fromkeys([*(value for values in ATTRIBUTES.values() for value in values), *singular]))


def caption(attributes: Mapping[str, str], told: Collection[str] = OPEN) -> str:
    """What a picture shows, its content first: "two cameras, scarlet, night, tilted".

    Args:
        attributes: number, item and all that is told.
        told: open attributes, in any order.

    Raises:
        ValueError: if something is told that is no open attribute, or that ``attributes`` does not say.
    """
    if unknown := sorted(set(told) - set(OPEN)):
        raise ValueError(f"told: expected some of {', '.join(OPEN)}, got {', '.join(unknown)}")
    if missing := [name for name in (*PROMPTED, *told) if name not in attributes]:
        raise ValueError(f"a caption tells {', '.join(missing)}, and the attributes say only {', '.join(attributes)}")
    content = prompt_of(attributes["number"], attributes["item"])
    return ", ".join([content, *(attributes[name] for name in OPEN if name in told)])


def reduced(picture: Image.Image, size: int = SIZE) -> np.ndarray:
    """A picture as a drawer draws it: (size, size, 3) uint8, each pixel the mean of those it takes the place of."""
    return np.asarray(picture.convert("RGB").resize((size, size), Image.BOX))


def small_drawing(attributes: Mapping[str, str], rng: np.random.Generator) -> np.ndarray:
    """The drawing that has these attributes, `reduced`."""
    return reduced(draw_choice_picture(attributes, rng))
