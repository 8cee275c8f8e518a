"""Packs a built book into one zip, which stands in the book and is linked from the teachers' page with its size."""

import re
import zipfile
from pathlib import Path

NAME = "prefmoe-book.zip"
FOLDER = "prefmoe-book"
"""What unpacking makes: one folder, with index.html in it."""

PAGE = "teachers.html"
PLACE = re.compile(r'<p id="offline-zip">.*?</p>', re.DOTALL)
"""Where the teachers' page speaks of it. Inside the zip, which has no zip in it, the page stays as it was written."""

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The date of every file, so that equal books make equal zips."""

PACKED = {".png", ".webp", ".woff", ".woff2", ".jpg", ".gz", ".zip"}
"""What does not get smaller."""


def pack(book: Path) -> Path:
    """Writes `NAME` into the folder of a built book, then its size into the teachers' page; returns the zip. Raises
    ValueError if that page has no place for it."""
    page, target = book / PAGE, book / NAME
    text = page.read_text(encoding="utf-8")
    if len(PLACE.findall(text)) != 1:
        raise ValueError(f'{page}: expected one <p id="offline-zip">, where the zip is linked')
    target.unlink(missing_ok=True)
    files = sorted(path for path in book.rglob("*") if path.is_file())
    with zipfile.ZipFile(target, "w") as archive:
        for path in files:
            entry = zipfile.ZipInfo(f"{FOLDER}/{path.relative_to(book).as_posix()}", MOMENT)
            entry.external_attr = 0o644 << 16
            kind = zipfile.ZIP_STORED if path.suffix in PACKED else zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes(), kind, 6)
    link = f'<p id="offline-zip"><a class="reference" href="{NAME}"><strong>The whole book as one file</strong></a>, '
    link += f"{target.stat().st_size / 1e6:.0f} MB: unpack it, and open index.html in it. No network is needed.</p>"
    page.write_text(PLACE.sub(lambda _: link, text), encoding="utf-8")
    return target
