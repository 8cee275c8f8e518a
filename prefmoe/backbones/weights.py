"""Where a backbone's files are: found or downloaded, checked before anything is loaded, and identified by a digest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prefmoe.config.backbone_files import LOADED, identity, noted_revision
from prefmoe.config.registry import BackboneEntry, BackboneError, check_plain_folder, model_class_of
from prefmoe.system import hub, places
from prefmoe.system.files import read_json
from prefmoe.system.foreign_files import ForeignFileError, MissingFileError, foreign_file

_MAPPINGS = (
    "config.json", "added_tokens.json", "chat_template.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "video_preprocessor_config.json",
)  # fmt: skip
"""Files of which transformers does not say that they hold something else: a login page, null."""

_PARTS = ("text_config", "vision_config", "language_config", "llm_config", "perceiver_config")
"""Settings of config.json in whose place transformers, if one is null, takes its defaults: billions of weights."""

_COUNTS = (
    "head_dim", "hidden_size", "image_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_channels", "num_hidden_layers", "num_key_value_heads", "patch_size", "vocab_size",
)  # fmt: skip
"""Settings of config.json that count something there is at least one of: transformers builds a model with -1 layers,
and has no message for others."""


def offline_folder(entry: BackboneEntry) -> Path | None:
    """The folder $PREFMOE_WEIGHTS/<name> in the place of a hub repository, where there is one. Raises BackboneError if
    there is none and there is no such repository either."""
    folder = places.given_weights(entry.name)
    if folder is None and entry.made_by is not None:
        root = places.from_environment(places.WEIGHTS_VARIABLE)
        missing = f"{root / entry.name} does not exist" if root else "PREFMOE_WEIGHTS is not set"
        raise BackboneError(
            f"backbone {entry.name!r}: {missing}; make it once with `{entry.made_by} <folder>/{entry.name}` and set "
            f"PREFMOE_WEIGHTS to <folder>"
        )
    return folder


def weights_digest(entry: BackboneEntry) -> str:
    """Identifies a backbone without loading it: the hub's commit, or a hash of all files that loading reads."""
    folder = entry.folder or offline_folder(entry)
    if folder is not None:
        check_plain_folder(entry.name, folder)
    return identity(folder, entry.hub_id, entry.revision)


def checked_folder(entry: BackboneEntry) -> Path:
    """The folder with a backbone's files, downloaded if need be, and checked."""
    folder = entry.folder or offline_folder(entry)
    if folder is None:
        assert entry.hub_id is not None
        otherwise = f"without the hub, put the files into $PREFMOE_WEIGHTS/{entry.name}"
        folder = hub.download(entry.hub_id, revision=entry.revision, allow_patterns=list(LOADED), otherwise=otherwise)
    elif entry.revision and (found := noted_revision(folder)) not in (None, entry.revision):
        raise BackboneError(
            f"backbone {entry.name!r}: {folder} holds revision {found}, the registry pins {entry.revision}: "
            f"hf download {entry.hub_id} --revision {entry.revision} --local-dir {folder}"
        )
    if not folder.is_dir():
        raise BackboneError(f"backbone {entry.name!r}: folder {folder} is missing")
    expected = [("config.json",), ("tokenizer.json",), ("processor_config.json", "preprocessor_config.json")]
    expected.append(("model.safetensors", "model.safetensors.index.json"))
    missing = [" or ".join(names) for names in expected if not any((folder / name).is_file() for name in names)]
    if missing:
        raise BackboneError(f"backbone {entry.name!r}: {folder} lacks {', '.join(missing)}")
    found = model_class_of(folder)
    if found != entry.model_class:
        raise BackboneError(f"{folder / 'config.json'}, architectures: found {found}, expected {entry.model_class}")
    check_mappings(folder)
    _check_shards(entry, folder)
    return folder


def check_mappings(folder: Path) -> None:
    """Raises BackboneError naming the file where a folder's settings are no JSON mapping, or its tokenizer is none."""
    for path in (folder / name for name in _MAPPINGS if (folder / name).is_file()):
        content = read_json(path, "a part of the backbone", kind=BackboneError)
        wrong = [part for part in _PARTS if path.name == "config.json" and not isinstance(content.get(part, {}), dict)]
        if wrong:
            raise BackboneError(f"{path}, {wrong[0]}: expected a mapping, found {content[wrong[0]]!r:.80}")
        if path.name == "config.json":
            check_counts(path, content)
        if path.name == "chat_template.json" and not isinstance(content.get("chat_template"), str | dict):
            raise BackboneError(f"{path}, chat_template: expected a text, found {content.get('chat_template')!r:.80}")
    if (path := folder / "tokenizer.json").is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # of no kind of its own
            raise BackboneError(f"{path}: expected a tokenizer ({error})") from error


def check_counts(path: Path, content: Mapping[str, Any], part: str = "") -> None:
    """Raises BackboneError if one of `_COUNTS` is below 1, here or in a part, or heads do not go evenly among those
    whose keys they read."""
    for name, value in content.items():
        if isinstance(value, dict):
            check_counts(path, value, f"{part}{name}.")
        elif name in _COUNTS:
            for count in value if isinstance(value, list) else [value]:
                if isinstance(count, int | float) and count < 1:
                    raise BackboneError(f"{path}, {part}{name}: expected a number from 1, found {value!r:.80}")
    heads, keys = (content.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(keys, int) and heads % keys:
        wrong = f"expected a divisor of num_attention_heads ({heads}), found {keys}"
        raise BackboneError(f"{path}, {part}num_key_value_heads: {wrong}")


def _check_shards(entry: BackboneEntry, folder: Path) -> None:
    """Every weights file that the index names must be there: a broken download leaves some out."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        files = read_json(index, "JSON with a mapping `weight_map`", kind=BackboneError)["weight_map"].values()
        named = sorted(set(files))
    except (KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{index}: expected JSON with a mapping `weight_map` ({error!r})") from error
    missing = []
    for name in named:
        try:
            foreign_file(folder, name)
        except MissingFileError:
            missing.append(name)
        except ForeignFileError as error:
            raise BackboneError(f"{index}, weight_map: {error}") from error
    if missing:
        raise BackboneError(
            f"backbone {entry.name!r}: {folder} is incomplete, it lacks {len(missing)} of {len(named)} weights files: "
            f"{', '.join(missing[:5])}; download it again, finished files are kept"
        )
