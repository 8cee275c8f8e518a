"""Draws the miniature world: faces from attributes, items from icons, and the pictures that show them.

Faces come from python-avatars, items from the Font Awesome Free icons, both rasterised by resvg. A picture varies
in background, place, scale, rotation, colour and distractors, so that it has to be recognised.
"""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import python_avatars as avatars
import resvg_py
from PIL import Image, ImageDraw, ImageFilter

from prefmoe.data.benchmark import FACETS
from prefmoe.system.frozen import Frozen

PICTURE_SIZE = 160
"""Width and height of a picture in pixels."""

ITEMS: dict[str, dict[str, str]] = {
    "entertainment": {
        "movies": "film", "concerts": "music", "guitar": "guitar", "drums": "drum", "videogames": "gamepad",
        "chess": "chess-knight", "theatre": "masks-theater", "podcasts": "headphones", "television": "tv",
        "boardgames": "dice", "karaoke": "microphone", "novels": "book-open",
    },
    "travel": {
        "flights": "plane", "trains": "train", "sailing": "sailboat", "cycling": "bicycle",
        "roadtrips": "car-side", "mountains": "mountain", "camping": "campground", "beaches": "umbrella-beach",
        "cruises": "ship", "helicopters": "helicopter", "caravans": "caravan", "buses": "bus",
    },
    "lifestyle": {
        "gardening": "seedling", "weightlifting": "dumbbell", "dogs": "dog", "cats": "cat", "fishing": "fish",
        "naps": "bed", "pizza": "pizza-slice", "coffee": "mug-hot", "swimming": "person-swimming",
        "painting": "palette", "spas": "spa", "apples": "apple-whole",
    },
    "shopping": {
        "lamps": "lightbulb", "chairs": "chair", "sofas": "couch", "cameras": "camera", "laptops": "laptop",
        "clocks": "clock", "gems": "gem", "gifts": "gift", "blenders": "blender", "phones": "mobile",
        "umbrellas": "umbrella", "tools": "screwdriver-wrench",
    },
    "fashion": {
        "shirts": "shirt", "hats": "hat-cowboy", "eyewear": "glasses", "socks": "socks", "vests": "vest",
        "shoes": "shoe-prints", "crowns": "crown", "rings": "ring", "mittens": "mitten",
        "handbags": "bag-shopping", "mortarboards": "graduation-cap", "ribbons": "ribbon",
    },
}  # fmt: skip
"""Facet -> item word -> icon name; twelve items in each facet."""

ITEM_FACET = {item: facet for facet in FACETS for item in ITEMS[facet]}
"""Item word -> the facet it belongs to."""

_ITEM_ORDER = {item: order for order, item in enumerate(ITEM_FACET)}

SKIN = {"pale": "#F8DCC4", "tanned": "#E0A673", "bronze": "#A9693A", "dark": "#5C3A24"}
HAIR_STYLE = {
    "bob": "BOB", "bun": "BUN", "curly": "CURLY", "afro": "FRO",
    "short": "SHORT_FLAT", "dreadlocks": "DREADS", "long": "STRAIGHT_1", "mohawk": "MOHAWK",
}  # fmt: skip
HAIR_COLOUR = {
    "black": "#1F1A1A", "brunette": "#7A4A2A", "blonde": "#F0CE6B",
    "ginger": "#D2531F", "silver": "#C4C9CF", "pink": "#F59BC1",
}  # fmt: skip
FACIAL_HAIR = {"shaven": "NONE", "beard": "BEARD_MEDIUM", "moustache": "MOUSTACHE_MAGNUM"}
EYEWEAR = {"bare": "NONE", "spectacles": "PRESCRIPTION_2", "sunglasses": "WAYFARERS"}
SHIRT_COLOUR = {
    "red": "#D93A3A", "blue": "#2F6FDB", "green": "#2F9E58", "yellow": "#F2C037",
    "orange": "#F08A2C", "white": "#F4F4F4", "navy": "#27314D", "purple": "#8E4EC6",
}  # fmt: skip

_CLOTHING = ("HOODIE", "SHIRT_CREW_NECK", "SHIRT_V_NECK", "SHIRT_SCOOP_NECK")
_MOUTHS = ("SMILE", "DEFAULT", "TWINKLE", "SERIOUS", "BIG_SMILE")
_EYES = ("DEFAULT", "HAPPY", "SIDE", "WINK")
_BROWS = ("DEFAULT_NATURAL", "RAISED_EXCITED_NATURAL", "FLAT_NATURAL", "UP_DOWN_NATURAL")

ATTRIBUTES: dict[str, dict[str, str]] = {
    "hair_style": HAIR_STYLE,
    "hair_colour": HAIR_COLOUR,
    "skin": SKIN,
    "facial_hair": FACIAL_HAIR,
    "eyewear": EYEWEAR,
    "shirt": SHIRT_COLOUR,
}
"""The attributes that make a face, each with its words; a face has one word of each."""


class Face(Frozen):
    """What makes somebody recognisable: one word per attribute of ATTRIBUTES."""

    hair_style: str
    hair_colour: str
    skin: str
    facial_hair: str
    eyewear: str
    shirt: str

    @classmethod
    def random(cls, rng: np.random.Generator) -> Face:
        """Draws every attribute independently; half of the faces are shaven, half wear nothing on the eyes."""
        plain = {"facial_hair": (0.5, 0.25, 0.25), "eyewear": (0.5, 0.25, 0.25)}
        return cls(**{k: str(rng.choice(list(words), p=plain.get(k))) for k, words in ATTRIBUTES.items()})

    def shared(self, other: Face) -> int:
        """How many attributes two faces have in common (0 to 6)."""
        return sum(getattr(self, k) == getattr(other, k) for k in ATTRIBUTES)

    def altered(self, rng: np.random.Generator, changes: int) -> Face:
        """A lookalike that differs in exactly ``changes`` attributes."""
        names = rng.choice(list(ATTRIBUTES), size=changes, replace=False)
        new = {k: str(rng.choice([w for w in ATTRIBUTES[k] if w != getattr(self, k)])) for k in names}
        return self.model_copy(update=new)

    def description(self) -> str:
        """The description text of a profile, made from the same attributes as the portrait."""
        worn = [w for w in (self.facial_hair, self.eyewear) if w not in ("shaven", "bare")]
        face = f", {' and '.join(worn)}" if worn else ""
        return (
            f"<sks> is a person with {self.skin} skin, {self.hair_style} {self.hair_colour} hair{face}, "
            f"in {self.shirt} clothes."
        )


def _rasterise(svg: str, width: int) -> Image.Image:
    picture = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(picture), formats=["PNG"]).convert("RGBA")


@functools.lru_cache(maxsize=4096)
def face_image(face: Face, expression: int = 0, width: int = PICTURE_SIZE) -> Image.Image:
    """The bust of a face on a transparent ground, (width * 1.06) high; ``expression`` picks mouth, eyes, clothing."""
    choice = np.random.default_rng(expression)
    avatar = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=avatars.HairType[HAIR_STYLE[face.hair_style]],
        hair_color=HAIR_COLOUR[face.hair_colour],
        facial_hair_color=HAIR_COLOUR[face.hair_colour],
        skin_color=SKIN[face.skin],
        facial_hair=avatars.FacialHairType[FACIAL_HAIR[face.facial_hair]],
        accessory=avatars.AccessoryType[EYEWEAR[face.eyewear]],
        clothing=avatars.ClothingType[choice.choice(_CLOTHING)],
        mouth=avatars.MouthType[choice.choice(_MOUTHS)],
        eyes=avatars.EyeType[choice.choice(_EYES)],
        eyebrows=avatars.EyebrowType[choice.choice(_BROWS)],
    )
    avatar.clothing_color = SHIRT_COLOUR[face.shirt]
    return _rasterise(avatar.render(), width)


@functools.cache
def icon_mask(item: str) -> Image.Image:
    """The silhouette of an item as an 8-bit mask, 192 pixels along its longer side."""
    folder = files("fontawesomefree") / "static" / "fontawesomefree" / "svgs" / "solid"
    svg = (folder / f"{ITEMS[ITEM_FACET[item]][item]}.svg").read_text(encoding="utf-8")
    drawn = _rasterise(svg, 192)
    scale = 192 / max(drawn.size)
    return drawn.resize((round(drawn.width * scale), round(drawn.height * scale)), Image.LANCZOS).getchannel("A")


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """A pastel gradient with a few soft shapes."""
    hue = rng.random()
    top = np.array(_hsv(hue, rng.uniform(0.06, 0.22), rng.uniform(0.93, 1.0)))
    bottom = np.array(_hsv(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.12, 0.3), rng.uniform(0.85, 0.97)))
    ramp = np.linspace(0, 1, size)[:, None, None]
    canvas = Image.fromarray(np.broadcast_to(top * (1 - ramp) + bottom * ramp, (size, size, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(canvas, "RGBA")
    for _ in range(rng.integers(2, 6)):
        x, y, r = *rng.uniform(0, size, 2), rng.uniform(0.04, 0.22) * size
        colour = (*_hsv(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.1, 0.35), rng.uniform(0.85, 1.0)), 110)
        if rng.random() < 0.5:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            draw.rectangle((x - r, y - r / 2, x + r, y + r / 2), fill=colour)
    return canvas


def _paste_item(canvas: Image.Image, rng: np.random.Generator, item: str, box: tuple[float, float, float]) -> None:
    """Pastes one item, centred at box = (x, y, longer side) in pixels, with a colour, a tilt and a shadow."""
    x, y, side = box
    mask = icon_mask(item)
    scale = side / max(mask.size)
    mask = mask.resize((max(1, round(mask.width * scale)), max(1, round(mask.height * scale))), Image.BILINEAR)
    mask = mask.rotate(rng.uniform(-18, 18), Image.BICUBIC, expand=True)
    order = _ITEM_ORDER[item]  # things have a usual colour, with variation; neighbours in colour differ in shape
    hue = order * 0.381966 + rng.normal(0, 0.04)
    value = (0.42 if order % 2 else 0.78) + rng.uniform(-0.1, 0.1)
    colour = _hsv(hue, rng.uniform(0.65, 0.95), value)
    corner = (round(x - mask.width / 2), round(y - mask.height / 2))
    shadow = mask.filter(ImageFilter.GaussianBlur(2)).point(lambda v: v // 4)
    canvas.paste((40, 40, 60), (corner[0] + 3, corner[1] + 4), shadow)
    canvas.paste(colour, corner, mask)


def draw_items(items: Sequence[str], rng: np.random.Generator, size: int = PICTURE_SIZE) -> Image.Image:
    """A picture of one item, or of up to four in the quarters of the picture.

    Args:
        items: one to four item words (keys of ITEM_FACET); several are placed left to right, top to bottom.
        rng: source of every variation.
        size: width and height in pixels.

    Returns an RGB picture.
    """
    canvas = _background(rng, size)
    if len(items) == 1:
        side = rng.uniform(0.5, 0.72) * size
        free = (size - side) / 2
        centre = size / 2 + rng.uniform(-free, free, 2) * 0.8
        _paste_item(canvas, rng, items[0], (*centre, side))
    else:
        for place, item in enumerate(items):
            side = rng.uniform(0.36, 0.44) * size
            centre = np.array([0.27 + 0.46 * (place % 2), 0.27 + 0.46 * (place // 2)]) * size
            _paste_item(canvas, rng, item, (*(centre + rng.uniform(-0.03, 0.03, 2) * size), side))
    return canvas


def draw_people(faces: Sequence[Face], rng: np.random.Generator, size: int = PICTURE_SIZE) -> Image.Image:
    """A picture of one to three people side by side, left to right, as RGB (size x size pixels)."""
    canvas = _background(rng, size)
    widths = {1: (0.82, 0.98), 2: (0.60, 0.68), 3: (0.46, 0.52)}[len(faces)]
    centres = {1: (0.5,), 2: (0.27, 0.73), 3: (0.19, 0.5, 0.81)}[len(faces)]
    for face, centre in zip(faces, centres, strict=True):
        width = round(rng.uniform(*widths) * size)
        bust = face_image(face, int(rng.integers(0, 6)))
        bust = bust.resize((width, round(width * bust.height / bust.width)), Image.LANCZOS)
        if rng.random() < 0.5:
            bust = bust.transpose(Image.FLIP_LEFT_RIGHT)
        x = round(centre * size - width / 2 + rng.uniform(-0.02, 0.02) * size)
        canvas.paste(bust, (x, size - bust.height + round(rng.uniform(0, 0.03) * size)), bust)
    return canvas
