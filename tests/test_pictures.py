"""Pictures: upright, scaled, on white and complete, or refused by name; never waited for, never run."""

import ast
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import prefmoe
from prefmoe.backbones.errors import CollationError
from prefmoe.backbones.pictures import load_pictures
from prefmoe.data.pictures import FORMATS, PictureError, as_rgb, decode, open_picture, picture_mistake


def written(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: int | None, *, said: int = 8, form: int = 0) -> bytes:
    """A valid PNG, checksums and all, that says it has 8 rows of 8 pixels and holds only some; None: no data chunk.
    ``form``: the filter of the last row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, said, 8, 2, 0, 0, 0))
    content = b"".join(bytes([filter, *[200] * 24]) for filter in [*[0] * ((rows or 0) - 1), form][: rows or 0])
    data = b"" if rows is None else chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def test_a_plain_picture_is_what_pillow_makes_of_it_pixel_by_pixel(noise, tmp_path):
    for format, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})):
        data = written(noise, format, **options)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        path = tmp_path / "picture.png"
        path.write_bytes(data)
        for found in (decode(data), open_picture(path), load_pictures([path])[0], load_pictures([expected])[0]):
            assert found.mode == "RGB" and np.array_equal(pixels(found), pixels(expected))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_every_mode_becomes_rgb(noise, mode):
    picture = noise.convert(mode)
    assert np.array_equal(pixels(as_rgb(picture)), pixels(picture.convert("RGB")))
    if mode in ("CMYK", "YCbCr"):
        assert decode(written(picture, "JPEG")).mode == "RGB"
    else:
        assert np.array_equal(pixels(decode(written(picture))), pixels(picture.convert("RGB")))


def test_sixteen_bits_are_scaled_to_eight():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    found = pixels(decode(written(Image.fromarray(values))))
    assert np.abs(found - values[..., None] / 257).max() <= 0.5 and 110 < found.mean() < 145
    twin = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    assert np.array_equal(pixels(decode(written(Image.fromarray(twin))))[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_a_picture_without_a_known_white_is_refused(mode, dtype):
    picture = Image.fromarray(np.full((4, 4), 300, dtype))
    assert picture.mode == mode
    with pytest.raises(CollationError, match=f"8 or 16 bits per channel, found mode {mode}: save it as PNG or JPEG"):
        load_pictures([picture])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_stands_upright(noise, format, orientation):
    """The turned picture is made from the upright one by numpy, the inverse of what EXIF says is to be done."""
    upright = np.kron(pixels(noise.resize((4, 3))), np.ones((16, 16, 1))).astype(np.uint8)
    turn = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}[format]
    found = pixels(decode(written(stored, format, exif=exif, **options)))
    assert found.shape == upright.shape and np.abs(found - upright).mean() < 3


def test_exif_data_that_cannot_be_read_turn_nothing(noise):
    data = written(noise, "JPEG", exif=b"Exif\0\0no such thing")
    assert decode(data).size == noise.size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
def test_what_is_transparent_is_white(mode):
    black = {"RGBA": (0, 0, 0, 0), "LA": (0, 0), "P": 0, "L": 0, "RGB": (0, 0, 0), "I;16": 0}[mode]
    picture = Image.new(mode, (6, 4), black)
    key = {} if mode in ("RGBA", "LA") else {"transparency": black}
    assert pixels(decode(written(picture, **key))).min() == 255


def test_what_is_half_transparent_is_mixed_with_white():
    found = pixels(decode(written(Image.new("RGBA", (3, 3), (200, 100, 0, 51)))))
    assert np.abs(found[0, 0] - (0.2 * np.array([200, 100, 0]) + 0.8 * 255)).max() <= 1


@pytest.mark.parametrize("options", [{}, {"said": 1}, {"rows": None}, {"rows": 0}, {"rows": 4}, {"rows": 7}])
def test_a_png_without_all_of_its_rows_is_refused(options):
    rows = options.pop("rows", 1 if options else 8)
    if rows == options.get("said", 8):
        assert pixels(decode(png(rows, **options))).min() == 200
        return
    with pytest.raises(PictureError, match="expected a complete picture, found a (damaged or )?truncated one"):
        decode(png(rows, **options))


@pytest.mark.parametrize("form", [5, 9, 255])
def test_a_png_with_a_row_of_an_unknown_filter_is_refused_when_it_is_checked(form):
    assert picture_mistake(png(8, form=4)) is None and decode(png(8, form=4))
    assert f"a row of filter {form}, not 0 to 4" in picture_mistake(png(8, form=form))
    assert picture_mistake(png(8, said=7, form=form)) is None  # behind the last row


@pytest.mark.parametrize("palette", [None, b"", bytes(5)])
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_a_png_without_its_palette_is_refused_and_not_black(palette, place):
    whole = written(Image.new("P", (8, 8), 3).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE))
    start = whole.index(b"PLTE") - 4
    end = start + 12 + struct.unpack_from(">I", whole, start)[0]
    assert picture_mistake(whole) is None
    instead = b"" if palette is None else chunk(b"PLTE", palette)
    last = whole.index(b"IEND") - 4
    moved = {"before the pixels": whole[:start] + instead + whole[end:],
             "behind them": whole[:start] + whole[end:last] + whole[start:end] + whole[last:]}[place]  # fmt: skip
    assert "without the palette of its colours" in picture_mistake(moved)
    with pytest.raises(PictureError, match="without the palette of its colours"):
        decode(moved)


def test_an_interlaced_png_is_complete_or_refused(noise):
    values = np.asarray(noise)
    passes = [values[::8, ::8], values[::8, 4::8], values[4::8, ::4], values[::4, 2::4], values[2::4, ::2],
              values[::2, 1::2], values[1::2]]  # fmt: skip
    raw = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", noise.width, noise.height, 8, 2, 0, 0, 1))
    last = len(raw) - 1 - 3 * noise.width
    whole, cut, odd = (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        for data in (raw, raw[:-1], raw[:last] + b"\7" + raw[last + 1 :])
    )
    assert np.array_equal(pixels(decode(whole)), values)
    with pytest.raises(PictureError, match="truncated"):
        decode(cut)
    assert picture_mistake(whole) is None and "a row of filter 7" in picture_mistake(odd)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_png_of_few_bits_is_complete(bits):
    picture = Image.fromarray(np.arange(13 * 7, dtype=np.uint8).reshape(7, 13) & (2**bits - 1)).convert("P")
    assert decode(written(picture, bits=bits)).size == (13, 7)


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_picture_is_refused_wherever_it_is_cut(noise, format):
    data = written(noise, format)
    for share in (0.0, 0.02, 0.3, 0.6, 0.95):
        with pytest.raises(PictureError, match="expected a (complete )?picture"):
            decode(data[: int(share * len(data))])


def test_an_opened_picture_whose_file_is_cut_is_refused(noise):
    data = written(noise)
    with Image.open(io.BytesIO(data[: len(data) // 2])) as opened, pytest.raises(CollationError, match="truncated"):
        load_pictures([opened])


def test_a_flipped_bit_of_a_png_is_noticed(noise):
    data = bytearray(written(noise))
    data[len(data) // 2] ^= 1
    with pytest.raises(PictureError, match="chunk IDAT does not match its checksum"):
        decode(bytes(data))


@pytest.mark.parametrize("format", ["EPS", "TIFF", "GIF", "BMP", "PPM"])
def test_other_formats_are_refused_by_name_and_start_nothing(noise, tmp_path, monkeypatch, format):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "harmless.png"
    path.write_bytes(written(noise, format))
    with pytest.raises(PictureError, match=f"harmless.png: expected a picture \\(PNG, JPEG, WEBP\\), found {format}"):
        open_picture(path)
    with pytest.raises(CollationError, match=f"found {format}"):
        load_pictures([path])


def test_only_regular_files_are_opened(noise, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="pipe.png: expected a file that can be read \\(Not a regular file\\)"):
        open_picture(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="Not a regular file"):
        open_picture("/dev/zero")
    with pytest.raises(PictureError, match="Is a directory"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match="none.png: no such picture"):
        open_picture(tmp_path / "none.png")
    noise.save(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert open_picture(tmp_path / "link.png").size == noise.size


def test_a_huge_picture_is_refused(noise, tmp_path, monkeypatch):
    noise.save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CollationError, match="huge.png: .*would not fit in memory"):
        load_pictures([tmp_path / "huge.png"])


def test_no_other_module_opens_pictures():
    """`Image.open` is called in data/pictures.py alone, and for what this package itself has just drawn; the workflow's
    scripts never call it."""
    package, found = Path(prefmoe.__file__).parent, {}
    scripts = Path(__file__).parents[1] / "workflow" / "scripts"
    assert not [path for path in scripts.rglob("*.py") if "Image.open" in path.read_text(encoding="utf-8")]
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {keyword.arg for keyword in node.keywords}, path
                found[path.relative_to(package).as_posix()] = ast.unparse(node)
    assert list(found) == ["data/drawing.py", "data/pictures.py", "figures/style.py"]


@pytest.mark.parametrize(
    ("bits", "colour", "pixel"),
    [(2, 0, bytes([0b01010101])), (4, 0, bytes([0x55] * 2)), (8, 0, bytes([5] * 4)), (16, 2, bytes([1, 44] * 12))],
)
def test_a_transparent_colour_of_any_depth_is_white(bits, colour, pixel):
    """Pillow brings the pixels to 8 bits, and leaves the colour that is clear as the file says it."""
    said = {2: 1, 4: 5, 8: 5, 16: 300}[bits]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, bits, colour, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(">H", said) * (3 if colour == 2 else 1))
    data = chunk(b"IDAT", zlib.compress((b"\0" + pixel) * 3)) + chunk(b"IEND", b"")
    opaque, transparent = (decode(b"\x89PNG\r\n\x1a\n" + header + part + data) for part in (b"", clear))
    assert pixels(transparent).min() == 255 and pixels(opaque).max() < 255
