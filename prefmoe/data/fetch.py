"""Fetches the public 200-row subset of MMPB-clean: ``python -m prefmoe.data.fetch FOLDER``."""

from __future__ import annotations

import argparse
import csv
import hashlib
import http.client
import io
import os
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .columns import IMAGE_COLUMNS
from .pictures import picture_mistake

REPOSITORY = "wqzhang1030/PrefMoE"
COMMIT = "b34e56a93ea663f88e3eccec1f86246417020bf5"

QUESTIONS = "mmpb_clean/sample.csv"

LICENCE = "The data derive from MMPB (CC BY-NC-SA 4.0): for research only, and not part of this package."

ATTEMPTS = 5
"""How often a file is asked for before giving up; the waits between double from one second."""

Reader = Callable[[str], bytes]
"""Gives the bytes of a file by its path in the data folder, or raises FetchError."""


class FetchError(RuntimeError):
    """The data could not be fetched, or is not the published data; the message says what to do."""


@dataclass(frozen=True)
class Release:
    """Which files a data folder consists of, and their checksums.

    Attributes:
        url: where the files lie, one below the other by path; ends with a slash.
        documents: path -> sha256 of the bytes, for all files but the pictures.
        pictures: folder -> sha256 of its lines "<sha256>  <path>\\n", sorted by path, one per picture; which
            pictures there are, sample.csv says.
    """

    url: str
    documents: Mapping[str, str]
    pictures: Mapping[str, str]

    @classmethod
    def of(cls, folder: str | Path, url: str = "") -> Release:
        """The release that a complete data folder is."""
        folder = Path(folder)
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        paths = picture_paths((folder / QUESTIONS).read_bytes())
        documents = {name: _sha256((folder / name).read_bytes()) for name in sorted(set(names) - set(paths))}
        pictures = folder_digests({path: _sha256((folder / path).read_bytes()) for path in paths})
        return cls(url, documents, pictures)


PUBLIC_SUBSET = Release(
    url=f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/data/",
    documents={
        "mmpb_clean/README.md":
            "988ecc79c6fec1f82c7b1f95ad82b0f34f65c7fc7cd0c1c24dba8cb65742eee4",
        "mmpb_clean/manifest.json":
            "ef8a228ad732142225b014d8709238a91bb70ce3bb4e0840c7fc6c8abc694c9c",
        "mmpb_clean/pseudo_users.csv":
            "cf582b09183478444acbb4297663bd7836f6a02f718378fe433ec2db8156a30d",
        "mmpb_clean/sample.csv":
            "3d54749d475dc7de424b783cc9caa74b5610f41f598b83062afacea38b37836b",
        "mmpb_clean/split.json":
            "a92097b6d7e535bf0dcf8c10ab69830574ae942b0951c4b54585a76f052becdb",
        "multi_turn/generic_text/multi_turn_conversation.json":
            "f90896cfb0b563155260a761da00d26db0e726820e005c1ba5258b9b66e3c167",
    },
    pictures={
        "mmpb_clean/images":
            "e11b1dcbca522ebb4fb95c72f0b92c00dad1bb664a7f855a67e17099f52cdec8",
        "mmpb_clean/injection/injection_image_1":
            "d4f21612cbaeb012ffb987bd38c1b5741bf60bb8615e82cc44067de482c8218f",
        "mmpb_clean/injection/injection_image_2":
            "39d860323cc3f02c1812e223b33c8a1d9f383a9ef7f27136a79fa7960981c600",
        "mmpb_clean/injection/injection_image_3":
            "cdfaacbd465dc9219acf95cf008ea89e080a2fba14fe25b3c9c009befd93fdc4",
        "mmpb_clean/injection/injection_image_4":
            "58c88d8d32c304ecb30f179da1ff1bc99a2c0415dfc2ee11a54275a22d47984e",
        "mmpb_clean/injection/injection_image_5":
            "f972b16681f7f2477dd96f47047536a0a5a6ee6bc6c1028862bd46e4a42b20f6",
    },
)
"""The subset that the authors published with their code, at a fixed commit."""


def picture_paths(questions: bytes) -> list[str]:
    """The paths of all pictures that a questions CSV mentions, sorted."""
    rows = csv.DictReader(io.StringIO(questions.decode("utf-8-sig"), newline=""))
    return sorted({row[column] for row in rows for column in IMAGE_COLUMNS})


def folder_digests(pictures: Mapping[str, str]) -> dict[str, str]:
    """One checksum per folder from each picture's (path -> sha256)."""
    lines: dict[str, list[str]] = {}
    for path in sorted(pictures):
        lines.setdefault(str(PurePosixPath(path).parent), []).append(f"{pictures[path]}  {path}\n")
    return {folder: _sha256("".join(group).encode()) for folder, group in lines.items()}


def fetch(folder: str | Path, *, source: str | Path | None = None, release: Release = PUBLIC_SUBSET) -> Path:
    """Completes a data folder: what is there and right stays, the rest is fetched, everything is verified.

    An interrupted call continues where it stopped: files appear under their name only when they are complete.

    Args:
        folder: becomes the data folder (holds mmpb_clean/ and multi_turn/).
        source: where to take files from instead of the release's address: a folder, a zip archive (of the
            data or of the whole repository), or another address.

    Returns:
        ``folder``.

    Raises:
        FetchError: if a file cannot be had, or is not the published one.
    """
    folder = Path(folder)
    read = _reader(release.url if source is None else source)
    for path, digest in release.documents.items():
        target = folder / path
        if target.is_file() and _sha256(target.read_bytes()) == digest:
            continue
        data = read(path)
        if _sha256(data) != digest:
            found = _sha256(data)
            raise FetchError(f"{path}: not the published file; expected sha256 {digest}, found {found}")
        _write(target, data)

    def complete(path: str) -> str:
        target = folder / path
        if target.is_file() and picture_mistake(data := target.read_bytes()) is None:
            return _sha256(data)
        data = read(path)
        mistake = picture_mistake(data)
        if mistake:
            raise FetchError(f"{path}: {mistake}")
        _write(target, data)
        return _sha256(data)

    paths = picture_paths((folder / QUESTIONS).read_bytes())
    pool = ThreadPoolExecutor(max_workers=8)
    try:
        results = tqdm(pool.map(complete, paths), total=len(paths), unit="picture", disable=None)
        digests = dict(zip(paths, results, strict=True))
    except FetchError as error:
        there = sum((folder / path).is_file() for path in paths)
        progress = f"{there} of {len(paths)} pictures are here; the same call continues"
        raise FetchError(f"{error}\n{progress}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    found = folder_digests(digests)
    wrong = [name for name, digest in release.pictures.items() if found.get(name) != digest]
    if wrong:
        names = ", ".join(str(folder / name) for name in wrong)
        raise FetchError(f"not the published pictures in {names}; remove these folders and fetch again")
    return folder


def _reader(source: str | Path) -> Reader:
    """How to get files from an address, a zip archive or a folder."""
    if str(source).startswith(("http://", "https://")):
        return lambda path: _download(f"{str(source).rstrip('/')}/{path}")
    source = Path(source)
    if zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
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
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise FetchError(f"{archive.filename}: cannot read {name}: {error}") from error


def _read_local(base: Path, path: str) -> bytes:
    try:
        return (base / path).read_bytes()
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


def _write(target: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prefmoe.data.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the data folder is made or completed")
    parser.add_argument("--source", help="a folder or zip archive with the files, instead of the internet")
    options = parser.parse_args(arguments)
    print(LICENCE, file=sys.stderr)
    try:
        fetch(options.folder, source=options.source)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"complete and verified: {options.folder} (export PREFMOE_DATA={options.folder.resolve()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
