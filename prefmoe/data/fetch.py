"""Fetches the public 200-row subset of MMPB-clean."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from prefmoe.system.files import read_regular, whole_file
from prefmoe.system.places import expanded

REPOSITORY = "wqzhang1030/PrefMoE"
COMMIT = "b34e56a93ea663f88e3eccec1f86246417020bf5"

CHECKSUMS = Path(__file__).with_name("mmpb_clean_subset.sha256")
"""sha256 and path of every file of the subset, as `sha256sum --check` reads them."""

QUESTIONS = "mmpb_clean/sample.csv"

LICENCE = "The data derive from MMPB (CC BY-NC-SA 4.0): for research only, and not part of this package."

ATTEMPTS = 5
"""How often an address is asked before giving up; the waits between double from one second."""

DOWNLOADS = 2
"""How often a file is downloaded that is not the published one: something on the way may have kept another."""

_UNREADABLE = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What zipfile raises where an archive is damaged, encrypted (RuntimeError), or packed in a way that it cannot unpack
(NotImplementedError, which is one)."""

Reader = Callable[[str], bytes]
"""Gives the bytes of a file by its path in the data folder, or raises FetchError."""


class FetchError(RuntimeError):
    """The data could not be fetched, or is not the published data; the message says what to do."""


@dataclass(frozen=True)
class Release:
    """Which files a data folder consists of.

    Attributes:
        url: where the files lie, one below the other by path; ends with a slash.
        files: path -> sha256 of the bytes.
    """

    url: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: str | Path, url: str = "") -> Release:
        """The release that a complete data folder is."""
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return cls(url, {path.relative_to(folder).as_posix(): _sha256(path.read_bytes()) for path in paths})

    @classmethod
    def noted(cls, checksums: Path, url: str) -> Release:
        """The release whose checksums are in a file."""
        lines = checksums.read_text(encoding="utf-8").splitlines()
        return cls(url, {path: digest for digest, path in (line.split("  ", 1) for line in lines)})


PUBLIC_SUBSET = Release.noted(CHECKSUMS, f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/data/")
"""The subset that the authors published with their code, at a fixed commit."""


def fetch(folder: str | Path, *, source: str | Path | None = None, release: Release = PUBLIC_SUBSET) -> Path:
    """Completes a data folder: what is there and right stays, the rest is fetched, everything is verified.

    An interrupted call continues where it stopped: files appear under their name only when they are complete.

    Args:
        folder: becomes the data folder (holds mmpb_clean/ and multi_turn/).
        source: where to take files from instead of the release's address: a folder, a zip archive (of the
            data or of the whole repository), or another address.

    Returns ``folder``. Raises FetchError if a file cannot be had, or is not the published one.
    """
    folder = expanded(folder)
    read = _reader(release.url if source is None else source)
    pool = ThreadPoolExecutor(max_workers=8)
    # The table first: whoever gives something else as the source is told before a thousand pictures are asked for.
    paths = sorted(release.files, key=lambda path: (path != QUESTIONS, path))
    _complete(folder, paths[0], release.files[paths[0]], read)
    try:
        done = pool.map(lambda path: _complete(folder, path, release.files[path], read), paths)
        for _ in tqdm(done, total=len(paths), unit="file", disable=None):
            pass
    except FetchError as error:
        there = sum((folder / path).is_file() for path in paths)
        progress = f"{there} of {len(paths)} files are here; the same call continues"
        raise FetchError(f"{error}\n{progress}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return folder


def _complete(folder: Path, path: str, digest: str, read: Reader) -> None:
    """Leaves the file as it is if it is the published one, and gets it otherwise. Raises FetchError if it cannot be
    had, or is not the published one."""
    target = folder / path
    with suppress(OSError):
        if _sha256(read_regular(target)) == digest:
            return
    for _ in range(DOWNLOADS):
        data = read(path)
        if (found := _sha256(data)) == digest:
            with whole_file(target) as partial:
                partial.write_bytes(data)
            return
    hint = "; it is a web page: is there a login page or a proxy between?" if _is_page(data) else ""
    raise FetchError(f"{path}: not the published file; expected sha256 {digest}, found {found}{hint}")


def _is_page(data: bytes) -> bool:
    return data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _reader(source: str | Path) -> Reader:
    """How to get files from an address, a zip archive or a folder."""
    if str(source).startswith(("http://", "https://")):
        return lambda path: _download(f"{str(source).rstrip('/')}/{path}")
    source = expanded(source)
    if source.is_file() and zipfile.is_zipfile(source):
        try:
            archive = zipfile.ZipFile(source)
        except _UNREADABLE as error:
            raise FetchError(f"{source}: expected a whole zip archive: {error}") from error
        found = [name for name in archive.namelist() if f"/{name}".endswith(f"/{QUESTIONS}")]
        if not found:
            raise FetchError(f"{source}: expected an archive with {QUESTIONS} somewhere in it")
        place = min(found, key=len).removesuffix(QUESTIONS)
        return lambda path: _read_member(archive, place + path)
    for base in (source, source / "data"):
        if (base / QUESTIONS).is_file():
            return partial(_read_local, base)
    raise FetchError(f"{source}: expected a zip archive, or a folder that holds (data/){QUESTIONS}")


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except _UNREADABLE as error:
        raise FetchError(f"{archive.filename}: cannot read {name}: {error}") from error


def _read_local(base: Path, path: str) -> bytes:
    try:
        return read_regular(base / path)
    except OSError as error:
        raise FetchError(f"{base / path}: cannot be read: {error.strerror}") from error


def _download(url: str) -> bytes:
    """The bytes at an address; tries again after a failure that may pass."""
    for attempt in range(ATTEMPTS):
        wait = 2.0**attempt
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}"
            if error.code not in (429, 500, 502, 503, 504):
                raise FetchError(f"{url}: {problem}") from error
            asked = error.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdecimal() else wait
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error))
        if attempt + 1 < ATTEMPTS:
            time.sleep(wait)
    hint = "is the internet reachable? a local copy will do, too (source)"
    raise FetchError(f"{url}: {problem} ({ATTEMPTS} attempts); {hint}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
