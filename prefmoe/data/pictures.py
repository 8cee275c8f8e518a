"""Opens every picture of this package, strangers' included: upright, in 8 bits, on white and complete, or refused."""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prefmoe.system.files import read_regular

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is opened. Pillow knows dozens more, one of which (EPS) starts a program on the file."""

EIGHT_BITS = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes by what `as_rgb` does with them; the others (I and F) do not say which value is white."""

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow raises where a file is damaged."""

_SAVE_AS = "save it as PNG or JPEG, with 8 bits per channel"


class PictureError(ValueError):
    """A picture that is not opened; the message says what was expected."""


def picture_bytes(path: str | Path) -> bytes:
    """What is in a picture's file, whatever it is. Raises PictureError if there is no such file, or it is no regular
    one; the message names it."""
    try:
        return read_regular(Path(path))
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except OSError as error:
        raise PictureError(f"{path}: expected a file that can be read ({error.strerror})") from error


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file, as RGB; see `decode`. Raises PictureError as `picture_bytes`, and if the file holds no
    whole picture in one of FORMATS; it is named."""
    data = picture_bytes(path)
    try:
        return decode(data)
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the picture in a file as its header has them, before it is turned; no pixel is read. Raises
    PictureError as `picture_bytes`, and if the file begins like no picture in one of FORMATS; it is named."""
    data = picture_bytes(path)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.size
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: expected a picture ({', '.join(FORMATS)}), found another file: {error}") from error


def decode(data: bytes) -> Image.Image:
    """The picture in these bytes as RGB: turned as its EXIF data say, 16 bits scaled to 8, on white where transparent.

    Of a moving picture the first frame counts.

    Raises PictureError if the bytes are no picture in one of FORMATS, damaged, without some of its rows, or too large.
    (A JPEG that was cut and then closed properly passes: its decoder paints the missing part grey in silence.)
    """
    with _opened(data) as picture:
        return as_rgb(picture)


def picture_mistake(data: bytes) -> str | None:
    """What is wrong with a picture's bytes, or None if `decode` takes them. The pixels of a PNG are not made for that,
    since its checksums, its length and the forms of its rows say enough."""
    try:
        with _opened(data) as picture:
            if picture.format != "PNG":
                as_rgb(picture)
    except PictureError as error:
        return str(error)
    return None


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture, for the time of the block; whatever goes wrong in it becomes a PictureError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.format == "PNG":
                bits = _check_png(data)
                if "transparency" in picture.info and picture.mode in ("L", "RGB"):
                    picture.info["transparency"] = _in_8_bits(picture.info["transparency"], bits)
            yield picture
    except Image.UnidentifiedImageError:
        raise PictureError(f"expected a picture ({', '.join(FORMATS)}), found {_format(data)}") from None
    except Image.DecompressionBombError:
        text = "expected a picture of ordinary size, found one that would not fit in memory"
        raise PictureError(text) from None
    except PictureError:
        raise
    except _DAMAGED as error:
        text = f"expected a complete picture, found a damaged or truncated one ({error})"
        raise PictureError(text) from error


def as_rgb(picture: Image.Image) -> Image.Image:
    """An opened or drawn picture as RGB: upright, scaled to 8 bits, on white. Raises PictureError if nothing says which
    of its values is white (modes I and F), or its file turns out to be damaged."""
    picture = _upright(picture)
    if picture.mode in SIXTEEN_BITS:
        clear = picture.info.get("transparency")
        values = np.asarray(picture).astype(np.uint32)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if clear is not None:
            grey = np.where(values == clear, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode not in (*EIGHT_BITS, *TRANSPARENT):
        raise PictureError(f"expected a picture with 8 or 16 bits per channel, found mode {picture.mode}: {_SAVE_AS}")
    if picture.mode in TRANSPARENT or picture.has_transparency_data:
        shown = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except _DAMAGED as error:
        text = f"expected a complete picture, found a damaged or truncated one ({error})"
        raise PictureError(text) from error
    try:
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return picture  # EXIF data that nobody can read turn nothing


def _in_8_bits(clear: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """The transparent colour of a PNG as the pixels are: Pillow brings these to 8 bits, and leaves it as it stands."""
    if isinstance(clear, tuple):
        return tuple(_in_8_bits(value, bits) for value in clear)
    return clear >> 8 if bits == 16 else clear * 255 // (2**bits - 1)


def _check_png(data: bytes) -> int:
    """The bits per channel of a PNG. Raises PictureError for one with a chunk that does not match its checksum, with
    fewer rows than it should have, with a row in no known form, or without the palette that its pixels name: Pillow
    compares no checksum of picture data, and leaves what is missing black."""
    position, kind, header, palette, packed = 8, b"", b"", b"", []
    while kind != b"IEND":
        (length,), kind = struct.unpack_from(">I", data, position), data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            text = f"chunk {kind.decode('latin-1')} does not match its checksum"
            raise PictureError(f"expected a complete picture, found a damaged one ({text})")
        if kind == b"IHDR":
            header = content
        elif kind == b"PLTE" and not packed:
            palette = content
        elif kind == b"IDAT":
            packed.append(content)
        position += 12 + length
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour == 3 and (not palette or len(palette) % 3):
        raise PictureError("expected a complete picture, found a damaged one (without the palette of its colours)")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column and row, then the steps between them
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    expected, starts = 0, []
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            row = 1 + -(-columns * channels * bits // 8)
            starts.append(range(expected, expected + rows * row, row))
            expected += rows * row
    unpacked, waiting = 0, chain.from_iterable(starts)
    start = next(waiting, expected)
    for piece in _inflated(packed):
        while start < min(unpacked + len(piece), expected):
            if (form := piece[start - unpacked]) > 4:
                text = f"a row of filter {form}, not 0 to 4"
                raise PictureError(f"expected a complete picture, found a damaged one ({text})")
            start = next(waiting, expected)
        unpacked += len(piece)
        if unpacked >= expected:
            return bits
    found = "without its data" if not packed else f"with {unpacked * 100 // expected} % of its data"
    raise PictureError(f"expected a complete picture, found a truncated one ({found})")


def _inflated(packed: Iterable[bytes]) -> Iterator[bytes]:
    """What a PNG's data chunks hold, in pieces of a mebibyte at most."""
    reader = zlib.decompressobj()
    for content in packed:
        while content:
            yield reader.decompress(content, 2**20)
            content = reader.unconsumed_tail
    yield reader.decompress(b"", 2**20)


def _format(data: bytes) -> str:
    """What the bytes seem to be, by their beginning alone: nothing is opened."""
    if not data:
        return "an empty file"
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        if accept is not None and name not in FORMATS and accept(data[:16].ljust(16, b"\0")) is True:
            return f"{name}: {_SAVE_AS}"
    return "something else"
