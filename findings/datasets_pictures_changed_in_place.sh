#!/usr/bin/env bash
# datasets and Pillow: a picture that was opened from a file and changed in place is stored as it was in the file.
#
# Seen with datasets 5.2.0, Pillow 13.0.0 (CPython 3.11, Linux). For a Pillow image that knows its file's name the Image
# feature keeps the name and not the pixels. Pillow's thumbnail(), paste() and ImageDraw change such an image and leave
# the name: a box drawn around a person, a face painted over, or a picture made small is gone from the dataset, without
# a word, in Dataset.from_dict and in what a function given to map() returns. The same function on rows that hold the
# files' bytes keeps the change. Expected: the pixels that were handed over; the documentation says that a Pillow image
# is accepted. Return image.copy(), or what resize() and convert() give: these have no name, and come out right.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" HF_HUB_OFFLINE=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet datasets==5.2.0 pillow==13.0.0 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1
python - <<'PY'
import sys
import warnings
from pathlib import Path

from datasets import Dataset, Features, disable_progress_bars
from datasets import Image as Picture
from PIL import Image, ImageDraw

disable_progress_bars()
Image.new("RGB", (64, 48), (200, 30, 30)).save("red.png")
FEATURES = Features({"picture": Picture()})


def thumbnail(picture):
    picture.thumbnail((16, 16))
    return picture


def paste(picture):
    picture.paste((0, 0, 255), (0, 0, 32, 48))
    return picture


def draw(picture):
    ImageDraw.Draw(picture).rectangle((0, 0, 31, 47), fill=(0, 0, 255))
    return picture


CHANGES = {
    "thumbnail": thumbnail, "paste": paste, "draw": draw, "draw, copy": lambda picture: draw(picture).copy(),
    "resize": lambda picture: picture.resize((16, 12))}


def stored(rows):
    picture = rows[0]["picture"]
    return picture.size, picture.getpixel((0, 0))


files = Dataset.from_dict({"picture": ["red.png"]}, features=FEATURES)
inside = Dataset.from_dict({"picture": [{"bytes": Path("red.png").read_bytes(), "path": None}]}, features=FEATURES)
kept = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name, change in CHANGES.items():
        given = change(Image.open("red.png"))
        wanted = given.size, given.getpixel((0, 0))
        found = {
            "from_dict": stored(Dataset.from_dict({"picture": [given]}, features=FEATURES)),
            "map over files": stored(files.map(lambda row: {"picture": change(row["picture"])})),
            "map over bytes": stored(inside.map(lambda row: {"picture": change(row["picture"])}))}
        kept[name] = tuple(value == wanted for value in found.values())
        print(f"{name}: handed over {wanted}, stored: {found}")
print("warnings:", [str(warning.message) for warning in said])
lost, right = (False, False, True), (True, True, True)
same = not said and kept == {"thumbnail": lost, "paste": lost, "draw": lost, "draw, copy": right, "resize": right}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
