#!/usr/bin/env bash
# Pillow: the transparent colour of a PNG with 4 or 16 bits per channel is compared with pixels of 8 bits, and not found.
#
# Seen with Pillow 13.0.0 (CPython 3.11, Linux). A PNG may name one colour as transparent (chunk tRNS), in the depth of
# the picture. Pillow brings grey pixels of 2 or 4 bits, and RGB pixels of 16 bits, to 8 bits, and leaves the colour in
# info["transparency"] as the file has it: convert("RGBA") then makes nothing transparent. Three pictures that consist of
# their transparent colour alone, and should all be invisible: of 8 bits alpha is 0; of 4 bits grey and of 16 bits RGB it
# is 255 (of 16 bits, unless both bytes of a value are equal). Drawings of icons are the usual place: pasted on white they
# keep their background. Valid files, no warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet pillow==13.0.0
python - <<'PY'
import io
import struct
import sys
import zlib

from PIL import Image


def png(kind, bits, row, clear, size=4):
    """A square PNG of equal rows; kind 0 is grey, 2 is RGB; clear: the transparent colour's values."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", size, size, bits, kind, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * size)
    colour = struct.pack(f">{len(clear)}H", *clear)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", colour), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


pictures = {
    "grey, 8 bits": png(0, 8, b"\x55" * 4, [0x55]),
    "grey, 4 bits": png(0, 4, b"\x55" * 2, [5]),
    "RGB, 16 bits": png(2, 16, struct.pack(">12H", *[0x1234] * 12), [0x1234] * 3),
}
alpha = {}
for name, data in pictures.items():
    picture = Image.open(io.BytesIO(data))
    alpha[name] = picture.convert("RGBA").getchannel("A").getextrema()
    print(f"{name}: mode {picture.mode}, transparency {picture.info['transparency']}, alpha {alpha[name]}")
expected = [alpha[name] for name in pictures] == [(0, 0), (255, 255), (255, 255)]
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
