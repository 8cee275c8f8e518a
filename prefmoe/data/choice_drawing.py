"""Draws the pictures that people choose between: items of which everything that a prompt leaves open can be seen.

Every attribute can be read from a picture reduced to 64 x 64 pixels, whatever the others are.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from prefmoe.data.drawing import icon_mask

CHOICE_PICTURE_SIZE = 128
"""Width and height of a picture in pixels."""

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "number": ("one", "two", "three"),
    "item": (
        "drums", "novels", "mountains", "caravans", "trains", "dogs", "cats", "apples",
        "cameras", "umbrellas", "lamps", "gifts", "shirts", "hats", "crowns", "mittens",
    ),
    "palette": ("scarlet", "amber", "emerald", "azure", "violet", "grey"),
    "background": ("plain", "gradient", "shapes", "stripes", "night"),
    "style": ("filled", "outlined"),
    "size": ("small", "large"),
    "place": ("left", "centre", "right"),
    "tilt": ("upright", "tilted"),
    "shadow": ("flat", "shadowed"),
})  # fmt: skip
"""What makes a picture, each attribute with its values; no word is the value of two attributes. Items are keys of
`prefmoe.data.drawing.ITEM_FACET` from all facets."""

PROMPTED = ("number", "item")
"""The attributes that a prompt names; it leaves the others open."""

_DAY = {
    "scarlet": (214, 30, 44), "amber": (238, 140, 0), "emerald": (0, 140, 68),
    "azure": (22, 104, 222), "violet": (134, 48, 186), "grey": (92, 92, 96),
}  # fmt: skip
_NIGHT = {
    "scarlet": (255, 82, 88), "amber": (255, 182, 40), "emerald": (64, 224, 120),
    "azure": (84, 176, 255), "violet": (206, 124, 255), "grey": (206, 206, 210),
}  # fmt: skip
_SIDES = {"small": (38, 31, 25), "large": (64, 54, 38)}
"""Longer side of an item in pixels of CHOICE_PICTURE_SIZE, for one, two and three items."""
_CENTRES = {"left": 0.28, "centre": 0.5, "right": 0.72}
_ANGLES = {"upright": (0,), "tilted": (-32, -28, -24, 24, 28, 32)}
"""Degrees by which items are turned."""
_SHADOW_OFFSET = 0.045
_LINE = 13
"""Width of an outline in pixels of an icon's mask (192 pixels)."""


def prompt_of(number: str, item: str) -> str:
    """The prompt that names a picture's content: "one camera", "two cameras"."""
    return f"{number} {item.removesuffix('s') if number == 'one' else item}"


def content_of(prompt: str) -> dict[str, str]:
    """Number and item that a prompt names, the reverse of `prompt_of`. Raises ValueError if it is no such prompt."""
    known = {prompt_of(number, item): (number, item) for number in ATTRIBUTES["number"] for item in ATTRIBUTES["item"]}
    if prompt not in known:
        example = prompt_of(ATTRIBUTES["number"][1], ATTRIBUTES["item"][0])
        raise ValueError(f"prompt {prompt!r}: expected a number and an item that can be drawn, such as {example!r}")
    return dict(zip(PROMPTED, known[prompt], strict=True))


def random_attributes(rng: np.random.Generator, **given: str) -> dict[str, str]:
    """One value of each attribute: as given, the others drawn uniformly and independently."""
    return {name: given.get(name) or values[rng.integers(len(values))] for name, values in ATTRIBUTES.items()}


def draw_choice_picture(
    attributes: Mapping[str, str], rng: np.random.Generator, size: int = CHOICE_PICTURE_SIZE
) -> Image.Image:
    """A picture with the given attributes: its items stand above one another, in one column.

    Args:
        attributes: one value of each of `ATTRIBUTES`.
        rng: source of what no attribute describes: hues of the ground, where shapes and stars are, small shifts.
        size: width and height in pixels.

    Returns an RGB picture. Raises ValueError if an attribute is missing, unknown, or has a value that it does not know.
    """
    _check(attributes)
    canvas = _BACKGROUNDS[attributes["background"]](rng, size)
    colour = (_NIGHT if attributes["background"] == "night" else _DAY)[attributes["palette"]]
    count = 1 + ATTRIBUTES["number"].index(attributes["number"])
    side = round(_SIDES[attributes["size"]][count - 1] * size / CHOICE_PICTURE_SIZE)
    for k in range(count):
        angles = _ANGLES[attributes["tilt"]]
        sprite = attributes["item"], attributes["style"], angles[int(rng.random() * len(angles))], side
        mask = _sprite(*sprite)
        shift = rng.uniform(-0.015, 0.015, 2)
        x = round((_CENTRES[attributes["place"]] + shift[0]) * size - mask.width / 2)
        y = round(((k + 0.5) / count + shift[1]) * size - mask.height / 2)
        if attributes["shadow"] == "shadowed":
            offset = max(2, round(_SHADOW_OFFSET * size))
            canvas.paste((4, 4, 10), (x + offset, y + offset), _shade(*sprite))
        canvas.paste(colour, (x, y), mask)
    return canvas


def _check(attributes: Mapping[str, str]) -> None:
    if attributes.keys() != ATTRIBUTES.keys():
        raise ValueError(f"expected the attributes {', '.join(ATTRIBUTES)}, got {', '.join(attributes)}")
    for name, value in attributes.items():
        if value not in ATTRIBUTES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(ATTRIBUTES[name])}, got {value!r}")


@functools.cache
def _style_mask(item: str, style: str) -> Image.Image:
    """An item's mask with a margin, whole or its contour alone."""
    icon = icon_mask(item)
    mask = Image.new("L", (icon.width + 2 * _LINE, icon.height + 2 * _LINE))
    mask.paste(icon, (_LINE, _LINE))
    if style == "outlined":
        mask = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(5)), mask.filter(ImageFilter.MinFilter(_LINE)))
    return mask


@functools.lru_cache(maxsize=8192)
def _sprite(item: str, style: str, angle: int, side: int) -> Image.Image:
    """An item's mask, ``side`` pixels along its longer side before it is turned by ``angle`` degrees."""
    mask = _style_mask(item, style).rotate(angle, Image.BICUBIC, expand=True)
    scale = side / max(icon_mask(item).size)
    return mask.resize((max(1, round(mask.width * scale)), max(1, round(mask.height * scale))), Image.BOX)


@functools.lru_cache(maxsize=8192)
def _shade(item: str, style: str, angle: int, side: int) -> Image.Image:
    """The shadow of `_sprite`: as strong as a shadow has to be to show beside a thin line."""
    return _sprite(item, style, angle, side).point(lambda v: v * 3 // 4)


def _pastel(rng: np.random.Generator, value: float = 0.95) -> np.ndarray:
    """A pale colour (3,) of any hue, too pale to pass for a palette."""
    return 255 * value * (1 - rng.uniform(0, 0.1, 3))


def _plain(rng: np.random.Generator, size: int) -> Image.Image:
    return Image.new("RGB", (size, size), tuple(_pastel(rng).astype(int)))


def _gradient(rng: np.random.Generator, size: int) -> Image.Image:
    """From nearly white at one end to a middle tone at the other, top to bottom or bottom to top."""
    ends = np.stack([_pastel(rng, 1.0), _pastel(rng, 0.6)])[:: rng.choice((-1, 1))]
    ramp = np.linspace(0, 1, size)[:, None, None]
    return Image.fromarray(np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, (size, size, 3)).astype(np.uint8))


def _shapes(rng: np.random.Generator, size: int) -> Image.Image:
    """Discs and squares of a darker tone, scattered over a pale ground."""
    canvas = _plain(rng, size)
    draw = ImageDraw.Draw(canvas)
    for cell in rng.permutation(9)[:6]:
        x, y = ((cell % 3, cell // 3) + rng.uniform(0.3, 0.7, 2)) * size / 3
        r = rng.uniform(0.09, 0.13) * size
        fill = tuple(_pastel(rng, 0.76).astype(int))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x - r, y - r, x + r, y + r), fill=fill)
    return canvas


def _stripes(rng: np.random.Generator, size: int) -> Image.Image:
    """Slanted stripes of two tones."""
    first, second = (tuple(_pastel(rng, value).astype(int)) for value in (0.97, 0.76))
    canvas = Image.new("RGB", (size, size), first)
    steps = np.arange(size, dtype=np.float32) * np.float32(rng.uniform(4.5, 5.5) / size)
    along = steps[None] + steps[:, None] * rng.choice((-1, 1)) + np.float32(rng.random())
    canvas.paste(second, mask=Image.fromarray(np.where(along % 1 < 0.5, 255, 0).astype(np.uint8)))
    return canvas


def _night(rng: np.random.Generator, size: int) -> Image.Image:
    """A dark sky with stars and a moon."""
    canvas = Image.new("RGB", (size, size), tuple((np.array((48, 58, 122)) + rng.uniform(-6, 6, 3)).astype(int)))
    draw = ImageDraw.Draw(canvas)
    for x, y in rng.uniform(0, size, (14, 2)):
        r = 0.008 * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(236, 236, 214))
    x, y, r = rng.choice((0.1, 0.9)) * size, 0.1 * size, 0.07 * size
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(244, 240, 206))
    return canvas


_BACKGROUNDS = {"plain": _plain, "gradient": _gradient, "shapes": _shapes, "stripes": _stripes, "night": _night}
