"""A backbone's files: which of them are loaded, and what identifies them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prefmoe.system import hub, places, provenance
from prefmoe.system.file_digests import content_digests

LOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is downloaded of a repository, and read of a folder."""

MINIATURE_CARD = "miniature.json"
"""Where a miniature's folder says by which recipe its weights were made, and what they can do."""

CARDS = (MINIATURE_CARD, "projector.json", "origin.json")
"""What a folder says about how its weights were made: nothing reads it when a backbone is loaded."""

Digests = Callable[[Iterable[Path]], Mapping[Path, str]]
"""How files are read: all of them, or those that have changed (`prefmoe.system.file_digests.FileDigests.of`)."""


def loaded_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that a backbone may be made from, by their name: weights, configurations, tokenizer,
    processor, chat templates."""
    found = {path for pattern in LOADED for path in folder.glob(pattern) if path.is_file()}
    found |= {path for path in folder.glob("additional_chat_templates/*.jinja") if path.is_file()}
    named = {path.relative_to(folder).as_posix(): path for path in found if path.name not in CARDS}
    return dict(sorted(named.items()))


def files_digest(folder: Path, digests: Digests = content_digests) -> str:
    """A hash of the names and contents of `loaded_files`."""
    total, files = hashlib.blake2b(digest_size=16), loaded_files(folder)
    found = digests(files.values())
    for name, path in files.items():
        total.update(name.encode())
        total.update(bytes.fromhex(found[path]))
    return total.hexdigest()


def identity(folder: Path | None, repository: str | None, revision: str | None) -> str:
    """Identifies a backbone without loading it: the hub's commit, or a hash of all files that loading reads.

    Args:
        folder: where the files are; None for the hub's cache.
        repository, revision: on the hub, whose identity a folder has with just these files.
    """
    if folder is None or (revision and noted_revision(folder) == revision and as_downloaded(folder)):
        return f"{repository}@{revision}"
    return files_digest(folder)


def registered_identity(name: str, digests: Digests) -> str:
    """The same for a backbone of the registry, to notice changes: a folder's files are compared with no checksum of the
    hub, for which all of them would have to be read each time."""
    entry, folder = places.registered()[name], places.weights_folder(name)
    if folder is None:
        return identity(None, entry.get("hub_id"), entry.get("revision"))
    return files_digest(folder, digests)


def cards_digest(name: str, digests: Digests) -> str:
    """A hash of the names and contents of `CARDS` in the folder of a backbone of the registry."""
    folder = places.weights_folder(name)
    found = digests(path for card in CARDS if folder is not None and (path := folder / card).is_file())
    return provenance.digest({path.name: digest for path, digest in found.items()})


def noted_revision(folder: Path) -> str | None:
    """The commit that `hf download --local-dir` noted for a folder, if it did."""
    note = folder / hub.NOTES / "config.json.metadata"
    return note.read_text(encoding="utf-8").partition("\n")[0].strip() if note.is_file() else None


def as_downloaded(folder: Path) -> bool:
    """Whether no file of such a folder that is loaded, weights included, was changed or added since."""
    noted = hub.published(folder)
    files = loaded_files(folder).values()
    return all(path in noted and hub.is_published(path, noted[path]) for path in files)
