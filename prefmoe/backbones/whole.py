"""Models asked as a whole, of any class that AutoModelForImageTextToText maps: by their own processor and template.

Nothing is known of such a model's parts; its processor makes the inputs of one conversation, and conversations are
padded on the left. What can be wrong is looked for with the processor alone, before any weights are downloaded or read.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.errors import CollationError
from prefmoe.backbones.pictures import Picture, ProcessedPictures, load_pictures, mean_picture, pictures_only
from prefmoe.backbones.weights import check_mappings, offline_folder
from prefmoe.config.registry import (
    BackboneEntry,
    BackboneError,
    find_backbone,
    introduce,
    model_class_of,
    read_registry,
)
from prefmoe.data import prompts
from prefmoe.system import hub
from prefmoe.system.files import read_json
from prefmoe.system.places import expanded

if TYPE_CHECKING:
    from prefmoe.backbones.backbone import Backbone

SMALL = ("*.json", "*.jinja", "*.txt", "*.model")
"""What is downloaded before the weights."""

IMAGE_TOKEN_SETTINGS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
"""What processors of LLaVA's kind count a picture's tokens by."""

_PARTS = {"text_config": ("text_config", "language_config", "llm_config"), "vision_config": ("vision_config",)}
"""Parts of a model in whose place transformers, if config.json says nothing of them, takes its defaults: billions of
weights; each with the names that it may have there."""

TRIAL_SIZE = (336, 336)
"""Of the pictures that a processor is tried with."""


# --- which model, and whether it can be asked -----------------------------------------------------------------------


def find_any(model: str | Path) -> BackboneEntry:
    """A backbone of the registry, a local folder, or a hub repository ``owner/name`` or ``owner/name@revision``, of
    which the small files alone are downloaded; known by its name from now on (`introduce`).

    Raises BackboneError if it is none of these; HubError if the repository cannot be reached.
    """
    name, registry = str(model), read_registry()
    if not name:  # which Path would take for the folder that Python runs in
        raise BackboneError("expected a backbone's name, a folder or a repository owner/name, found an empty name")
    if name in registry.backbones:
        return find_backbone(name)
    folder, source = expanded(model), {}
    if folder.is_dir():
        name, source = folder.resolve().name, {"folder": folder.resolve()}
    elif found := re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?", name):
        repository, revision = found.groups()
        folder = hub.download(repository, revision=revision, allow_patterns=list(SMALL))
        name, source = repository.replace("/", "--"), {"hub_id": repository, "revision": folder.name}
    else:
        return find_backbone(model)  # which says what there is
    kind = model_class_of(folder)
    entry = BackboneEntry(name=name, model_class=kind, architecture=registry.architectures.get(kind), **source)
    introduce(entry)
    return entry


@dataclass(frozen=True)
class Tried:
    """What `check` learned without weights: a processor, and how many positions its model has, if it says so."""

    processor: Any
    positions: int | None

    def tokens(self, messages: Sequence[Mapping[str, Any]], images: Sequence[Picture]) -> int:
        """How many a conversation has. Raises CollationError if a picture cannot be read or is not taken."""
        try:
            return int(_processed(self.processor, messages, load_pictures(images))["input_ids"].shape[1])
        except ValueError as error:
            raise error if isinstance(error, CollationError) else CollationError(str(error)) from error


def check(entry: BackboneEntry, pictures: int = 1) -> Tried | None:
    """Tries the processor of a backbone on a conversation of MMPB's shape (somebody is told of, acknowledged, asked
    about) with the question's picture alone, and with so many, the question's included; no weights.

    Returns what was tried; None for a class of this package, which knows its processor.

    Raises BackboneError, in words of its own for each: a class that is no image-text-to-text model of transformers,
    code that would come from the repository, no processor of pictures, no chat template, no image token or another than
    the model looks for, a template that does not show the pictures or the words of every turn, a processor that fails
    on a picture, more pictures than it takes, counts below 1 in config.json; HubError if files cannot be downloaded.
    """
    folder = entry.folder or offline_folder(entry)
    if folder is None:
        folder = hub.download(str(entry.hub_id), revision=entry.revision, allow_patterns=list(SMALL))
    check_mappings(folder)
    if entry.architecture is None:
        _check_class(entry, folder)
    elif not hasattr(transformers, entry.model_class):
        return None
    config = _config(entry, folder)  # before the processor's parts read it, in words of their own
    processor = load_processor(entry, folder)
    if not processor.chat_template:
        raise _refused(entry, "its processor has no chat template, by which it could be asked")
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    count = _tried(entry, processor, 1, config)  # what fails on one picture is not a matter of their number
    if pictures > 1:
        count = _tried(entry, processor, pictures, config)
    if limit is not None and count > limit:
        size = "{} x {}".format(*TRIAL_SIZE)
        text = f"{pictures} of {size} pixels, the question's among them, take {count:,} positions of {limit:,}"
        raise _refused(entry, f"more pictures than it takes: {text}; show fewer (pictures)")
    return Tried(processor, limit)


def _refused(entry: BackboneEntry, why: str) -> BackboneError:
    return BackboneError(f"backbone {entry.name!r}: {why}")


def read_config(entry: BackboneEntry, folder: Path, kind: Any, **options: Any) -> Any:
    """A folder's configuration, of a class of transformers. Raises BackboneError if config.json has something else than
    numbers, or numbers that do not go together, or says nothing of a part; whatever else the class raises is passed
    on."""
    path = folder / "config.json"
    try:
        config = kind.from_pretrained(folder, local_files_only=True, **options)
    except (StrictDataclassError, TypeError, AttributeError, ArithmeticError) as error:
        raise _refused(entry, f"{path}: {' '.join(str(error).split())}") from error
    said = read_json(path, "the configuration of a model")
    size = getattr(config.get_text_config(), "hidden_size", None)
    beside = size is not None and said.get("hidden_size") == size  # as Qwen's text settings stood once
    for part, names in _PARTS.items():
        told = any(said.get(name) for name in names) or (beside and part == "text_config")
        if part in type(config).sub_configs and not told:
            raise _refused(entry, f"{path}, {part}: expected the settings of this part, found none")
    return config


def _config(entry: BackboneEntry, folder: Path) -> Any:
    try:
        return read_config(entry, folder, transformers.AutoConfig, trust_remote_code=False)
    except BackboneError:
        raise
    except (ValueError, OSError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise _refused(entry, "it needs code of its repository, which is never run") from error
        first = str(error).partition("\n")[0]
        raise _refused(entry, f"transformers {transformers.__version__} does not know its kind: {first}") from error


def _check_class(entry: BackboneEntry, folder: Path) -> None:
    config = _config(entry, folder)
    expected = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if expected is None:
        found = f"a {entry.model_class} (model_type {config.model_type}) is a text-only model, or has another task"
        raise _refused(entry, f"{found}; expected a class of AutoModelForImageTextToText")
    if expected.__name__ != entry.model_class:
        raise _refused(entry, f"config.json, architectures: found {entry.model_class}, expected {expected.__name__}")


def load_processor(entry: BackboneEntry, folder: Path) -> Any:
    """A folder's processor with pictures prepared by Pillow, and without its video part, which needs more than that.
    Raises BackboneError if there is none, or it prepares no pictures."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        named, _ = transformers.ProcessorMixin.get_processor_dict(folder, local_files_only=True)
        name = named.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(_config(entry, folder).model_type)
        kind = getattr(transformers, str(name), None)
        if kind is None or not set(kind.get_attributes()) <= {"image_processor", "tokenizer", "video_processor"}:
            processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
            settings, _ = kind.get_processor_dict(folder, local_files_only=True)
            accepted = set(inspect.signature(kind.__init__).parameters) - set(kind.get_attributes())
            settings = {key: value for key, value in settings.items() if key in accepted}
            settings.setdefault("chat_template", tokenizer.chat_template)
            if set(IMAGE_TOKEN_SETTINGS) <= accepted:
                config = _config(entry, folder)
                settings |= image_token_settings(settings, accepted, config, lambda: _tower(config))
            processor = pictures_only(kind)(images, tokenizer, **settings)
    except BackboneError:
        raise
    except Exception as error:  # whatever a processor, or the tower that it is counted by, makes of its settings
        raise _refused(entry, f"its processor cannot be loaded from {folder}: {error}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise _refused(entry, f"a {type(processor).__name__} prepares no pictures, as that of a text-only model")
    return processor


def _tower(config: Any) -> torch.nn.Module:
    """The vision tower of a configuration, without weights."""
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config.vision_config)


def image_token_settings(
    settings: Mapping[str, Any], accepted: Collection[str], config: Any, tower: Callable[[], torch.nn.Module]
) -> dict[str, Any]:
    """What a saved processor leaves open of how many tokens a picture has, from the model.

    Processors saved before they expanded image tokens themselves have none of it; those that transformers 4.46 saved
    have all but ``num_additional_image_tokens``, so that a picture got one token too few.

    Args:
        settings: what was saved. accepted: names that the processor's class takes. config, tower: of the model.
    """
    size, strategy, additional = IMAGE_TOKEN_SETTINGS
    open_ = {name for name in accepted if settings.get(name) is None}
    found: dict[str, Any] = {}
    if size in open_:
        found[size] = config.vision_config.patch_size
    if strategy in open_ and hasattr(config, strategy):
        found[strategy] = getattr(config, strategy)
    if additional in open_:
        names = {name.rpartition(".")[2] for name, _ in tower().named_parameters()}
        found[additional] = int(bool(names & {"class_embedding", "cls_token"}))
    return found


def _image_token(entry: BackboneEntry, processor: Any) -> str:
    """What stands for a picture in a prompt."""
    token, tokenizer = getattr(processor, "image_token", None), processor.tokenizer
    if token is None:
        raise _refused(entry, f"no image token: its {type(processor).__name__} names nothing that stands for a picture")
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise _refused(entry, f"no image token: its tokenizer does not know {token!r}, which stands for a picture")
    return str(token)


def _tried(entry: BackboneEntry, processor: Any, pictures: int, config: Any) -> int:
    """How many tokens a conversation with so many pictures takes, all but one in its first turn. With one picture what
    fails is named; with more it is their number, since one has been tried."""
    token, name = _image_token(entry, processor), type(processor).__name__
    messages = [
        prompts.message("user", "somebody", pictures=pictures - 1),
        prompts.message("assistant", prompts.ACKNOWLEDGEMENT),
        prompts.message("user", "a question", pictures=1),
    ]
    try:
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever somebody else's template raises
        raise _refused(entry, f"its chat template fails on {messages!r}: {error}") from error
    for message in messages:
        if (words := parts(message)[-1]["text"]) not in prompt:
            raise _refused(entry, f"its chat template shows no words {words!r} of the {message['role']}: {prompt!r}")
    if token not in prompt:
        raise _refused(entry, f"its chat template shows no picture: {prompt!r}")
    many = f"more pictures than it takes: of {pictures} in a conversation, the question's among them,"
    if (shown := prompt.count(token)) != pictures:
        refused = f"its chat template shows one picture {shown} times: {prompt!r}"
        if pictures > 1:
            refused = f"{many} its chat template shows {shown}; show fewer (pictures)"
        raise _refused(entry, refused)
    try:
        shown_pictures = [mean_picture(processor, TRIAL_SIZE)] * pictures
        ids = _processed(processor, messages, shown_pictures)["input_ids"][0].tolist()
    except Exception as error:  # whatever a processor raises
        refused = f"{many} its {name} takes fewer" if pictures > 1 else f"its {name} fails on a picture"
        raise _refused(entry, f"{refused}: {' '.join(str(error).split())}") from error
    for setting in ("image_token_id", "image_token_index"):
        if (wanted := getattr(config, setting, None)) is not None and wanted not in ids:
            told = f"config.json, {setting} is {wanted}, and no token of a conversation with a picture is that"
            raise _refused(entry, f"no image token that its model knows: {told}")
    return len(ids)


# --- conversations --------------------------------------------------------------------------------------------------


def _processed(processor: Any, messages: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> dict[str, Tensor]:
    """What a processor makes of one conversation, as tensors."""
    waiting = iter(images)
    shown = [
        {
            **message,
            "content": [{**p, "image": next(waiting)} if p["type"] == "image" else dict(p) for p in parts(message)],
        }
        for message in messages
    ]
    made = processor.apply_chat_template(
        [shown], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    if wrong := [key for key, value in made.items() if not isinstance(value, Tensor)]:
        raise CollationError(f"{type(processor).__name__} makes no tensor of {', '.join(wrong)}")
    return dict(made)


def encode(backbone: Backbone, messages: Sequence[dict[str, Any]], images: Sequence[Picture], prompt: str) -> Encoded:
    """Encodes one conversation that ends with a question, by the model's own processor.

    ``prompt``: as the chat template renders it. Raises CollationError if a picture cannot be read or is not taken.
    """
    pictures = load_pictures(images)
    try:
        made = _processed(backbone.processor, messages, pictures)
    except CollationError:
        raise
    except ValueError as error:
        raise CollationError(f"the processor of {backbone.entry.name!r}: {error}") from error
    ids = made.pop("input_ids")[0]
    made.pop("attention_mask", None)
    made = {key: value.to(backbone.dtype) if value.is_floating_point() else value for key, value in made.items()}
    by_token = {key: value[0] for key, value in made.items() if value.shape[:2] == (1, len(ids))}
    by_picture = {key: value for key, value in made.items() if key not in by_token}
    digests = tuple(hashlib.blake2b(i.tobytes() + repr(i.size).encode(), digest_size=16).hexdigest() for i in pictures)
    none = torch.zeros(len(ids), dtype=torch.bool)
    return Encoded(
        input_ids=ids, labels=None, query_mask=none, prefix_mask=none, token_types=None, positions=None,
        pictures=ProcessedPictures(by_picture, (), digests), earlier_pictures=0,
        prompt_digest=hashlib.blake2b("\0".join([prompt, *digests]).encode(), digest_size=16).hexdigest(),
        prompt=prompt, inputs=by_token,
    )  # fmt: skip


def parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message's content, of which a text alone is one."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def stacked(rows: Sequence[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """What there is of each token, (T, ...) of B conversations, padded with zeros on the left to (B, length, ...)."""
    return {
        key: torch.stack(
            [F.pad(row[key], (*[0] * (2 * row[key].dim() - 2), length - len(row[key]), 0)) for row in rows]
        )
        for key in rows[0]
    }
