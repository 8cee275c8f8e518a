"""A backbone's files: which of them are loaded, what identifies them, and settings that old ones leave to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmoe.system import places
from prefmoe.system.file_digests import content_digests

if TYPE_CHECKING:  # plans of the workflow, which need the digests, do not wait for torch
    from torch import nn

from prefmoe.system import hub

LOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is downloaded of a repository, and read of a folder."""

CARDS = ("miniature.json", "projector.json", "origin.json")
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


def noted_revision(folder: Path) -> str | None:
    """The commit that `hf download --local-dir` noted for a folder, if it did."""
    note = folder / hub.NOTES / "config.json.metadata"
    return note.read_text(encoding="utf-8").partition("\n")[0].strip() if note.is_file() else None


def as_downloaded(folder: Path) -> bool:
    """Whether no file of such a folder that is loaded, weights included, was changed or added since."""
    noted = hub.published(folder)
    files = loaded_files(folder).values()
    return all(path in noted and hub.is_published(path, noted[path]) for path in files)


def image_token_settings(
    settings: Mapping[str, Any], accepted: Collection[str], config: Any, tower: nn.Module
) -> dict[str, Any]:
    """What a saved processor leaves open of how many tokens a picture has, from the model.

    Processors saved before they expanded image tokens themselves have none of it; those that transformers 4.46 saved
    have all but ``num_additional_image_tokens``, so that a picture got one token too few.

    Args:
        settings: what was saved. accepted: names that the processor's class takes. config, tower: of the model.
    """
    open_ = {name for name in accepted if settings.get(name) is None}
    found: dict[str, Any] = {}
    if "patch_size" in open_:
        found["patch_size"] = config.vision_config.patch_size
    if "vision_feature_select_strategy" in open_ and hasattr(config, "vision_feature_select_strategy"):
        found["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    if "num_additional_image_tokens" in open_:
        names = {name.rpartition(".")[2] for name, _ in tower.named_parameters()}
        found["num_additional_image_tokens"] = int(bool(names & {"class_embedding", "cls_token"}))
    return found
