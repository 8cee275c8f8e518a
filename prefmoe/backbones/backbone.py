"""Backbones: loads any multimodal model of the registry and gives its parts one set of names."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from prefmoe.backbones import efficientnet_lite  # noqa: F401  makes its class known to transformers
from prefmoe.backbones.anchor_cache import AnchorCache
from prefmoe.backbones.collation import Picture, load_pictures, process_pictures, stack_pictures
from prefmoe.backbones.prompt_checks import check_length
from prefmoe.backbones.vision_cache import VisionCache
from prefmoe.config.backbone_files import LOADED, identity, image_token_settings, noted_revision
from prefmoe.config.registry import (
    BackboneEntry,
    BackboneError,
    Paths,
    check_plain_folder,
    find_backbone,
    model_class_of,
)
from prefmoe.system import distributed, hub, memory, places
from prefmoe.system.files import FileError, read_json
from prefmoe.system.finite import not_finite
from prefmoe.system.foreign_files import ForeignFileError, MissingFileError, foreign_file

_MAPPINGS = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
"""Files of which transformers does not say that they hold something else: a login page, null."""


def _class(name: str) -> Any:
    """The class of this name: of transformers, or of this package where transformers has none.

    Raises:
        BackboneError: if neither has it.
    """
    if hasattr(transformers, name):
        return getattr(transformers, name)
    from prefmoe.backbones import deepseek_vl2  # takes a moment: it imports several of transformers' models

    if name not in deepseek_vl2.__all__:
        places = f"transformers {transformers.__version__} nor {deepseek_vl2.__name__}"
        raise BackboneError(f"neither {places} has a class {name}")
    return getattr(deepseek_vl2, name)


def load_backbone(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn: str = "sdpa",
    cache_images: bool = False,
    four_bit: bool = False,
    shard: torch.dtype | None = None,
) -> Backbone:
    """Loads a backbone, frozen and in evaluation mode.

    Args:
        name_or_folder: a name of registry.yaml, or a folder in the format of save_pretrained.
        dtype: of the parameters, whatever the files hold.
        device: where the model goes; "auto" spreads it over all accelerators.
        attn: "sdpa", "eager" (returns attention maps) or another implementation of transformers.
        cache_images: keep the vision tower's output for every picture (VisionCache).
        four_bit: the decoder layers' projections in 4-bit NF4 (bitsandbytes), computing in ``dtype``.
        shard: share the decoder layers out among all processes, to compute in this precision; all processes call
            this at once, and load in turn, so that the CPU's memory holds one copy.

    Raises:
        BackboneError: if it is unknown, a file is missing or broken, the class is not the registry's, the weights
            do not fit the model, memory does not suffice, or something that an option needs is not installed.
        HubError: if it cannot be downloaded.
    """
    entry = find_backbone(name_or_folder)
    folder = _source(entry)
    if shard is not None:
        among = distributed.mesh(torch.device(device).type)
        for _ in distributed.in_turn():
            backbone = _load(entry, folder, dtype, "cpu", attn, None)
            distributed.shard_layers(backbone.layers, among, shard)
            backbone.to(device)
    else:
        quantization = _four_bit(entry, dtype) if four_bit else None
        backbone = _load(entry, folder, dtype, device, attn, quantization)
    backbone.freeze()
    if cache_images:
        backbone.vision_cache = VisionCache(backbone)
    return backbone


def _load(
    entry: BackboneEntry,
    folder: Path,
    dtype: torch.dtype,
    device: str | torch.device,
    attn: str,
    quantization: BitsAndBytesConfig | None,
) -> Backbone:
    """The backbone in a folder, checked against the registry."""
    source, options = str(folder), {"local_files_only": True}
    placement: Any = "auto" if device == "auto" else {"": device}
    if quantization is None and device != "auto" and torch.device(device).type == "cpu":
        placement = None
    model_class = _class(entry.model_class)
    own = not model_class.__module__.startswith("transformers.")
    try:
        with _no_progress_bars(), memory.explained(BackboneError, f"backbone {entry.name!r}", memory.LOADING_HINT):
            model, loading = model_class.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attn,
                device_map=placement,
                quantization_config=quantization,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **options,
            )
            processor = _load_processor(entry, source, options, model)
    except BackboneError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackboneError(f"backbone {entry.name!r} cannot be loaded from {source}: {error}") from error
    # Files of transformers' classes may hold tensors of older versions; an own class knows all that it may meet.
    for kind in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if own else [])):
        if loading[kind]:
            some = ", ".join(sorted(map(str, loading[kind]))[:5])
            raise BackboneError(f"backbone {entry.name!r}: {source} has weights with {kind.replace('_', ' ')}: {some}")
    if damaged := not_finite(model.state_dict().items()):
        some = ", ".join(damaged[:5])
        raise BackboneError(f"backbone {entry.name!r}: {source} has weights that are NaN or infinite: {some}")
    return Backbone(entry, model, processor)


def _four_bit(entry: BackboneEntry, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation for the decoder layers; head, tower and projector stay as they are."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError("4-bit loading needs bitsandbytes: python -m pip install -e '.[four-bit]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[entry.paths.lm_head, entry.paths.vision_tower, entry.paths.projector],
    )


def _offline(entry: BackboneEntry) -> Path | None:
    """The folder $PREFMOE_WEIGHTS/<name> in the place of a hub repository, where there is one.

    Raises:
        BackboneError: if there is none and there is no such repository either.
    """
    root = places.from_environment(places.WEIGHTS_VARIABLE)
    folder = root / entry.name if root else None
    if folder is not None and folder.is_dir():
        return folder
    if entry.made_by is not None:
        missing = f"{folder} does not exist" if folder else "PREFMOE_WEIGHTS is not set"
        raise BackboneError(
            f"backbone {entry.name!r}: {missing}; make it once with `{entry.made_by} <folder>/{entry.name}` and set "
            f"PREFMOE_WEIGHTS to <folder>"
        )
    return None


def weights_digest(entry: BackboneEntry) -> str:
    """Identifies a backbone without loading it: the hub's commit, or a hash of all files that loading reads."""
    folder = entry.folder or _offline(entry)
    if folder is not None:
        check_plain_folder(entry.name, folder)
    return identity(folder, entry.hub_id, entry.revision)


def _source(entry: BackboneEntry) -> Path:
    """The folder with a backbone's files, downloaded if need be, and checked."""
    folder = entry.folder or _offline(entry)
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
    for path in (folder / name for name in _MAPPINGS if (folder / name).is_file()):
        try:
            read_json(path, "a part of the backbone")
        except FileError as error:
            raise BackboneError(str(error)) from error
    _check_shards(entry, folder)
    return folder


def _check_shards(entry: BackboneEntry, folder: Path) -> None:
    """Every weights file that the index names must be there: a broken download leaves some out."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        named = sorted(set(read_json(index, "JSON with a mapping `weight_map`")["weight_map"].values()))
    except FileError as error:
        raise BackboneError(str(error)) from error
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


def pictures_only(processor_class: type) -> type:
    """The processor class without its video part, which pictures do not need (and which needs torchvision)."""
    if "video_processor" not in processor_class.get_attributes():
        return processor_class

    class PictureProcessor(processor_class):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **kwargs)

    # save_pretrained writes the settings that the signature names, under the name of the class.
    signature = inspect.signature(processor_class.__init__)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "video_processor"]
    PictureProcessor.__init__.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    PictureProcessor.__name__ = processor_class.__name__
    return PictureProcessor


def _load_processor(entry: BackboneEntry, source: str, options: dict[str, Any], model: nn.Module) -> Any:
    """The processor with pictures prepared by Pillow, so that the pixels are the same wherever it runs."""
    original = _class(entry.architecture.processor_class)
    if not original.__module__.startswith("transformers."):
        return original.from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    images = transformers.AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **options)
    settings, _ = original.get_processor_dict(source, **options)
    accepted = set(inspect.signature(original.__init__).parameters) - set(original.get_attributes())
    settings = {key: value for key, value in settings.items() if key in accepted}
    settings.setdefault("chat_template", tokenizer.chat_template)
    tower = model.get_submodule(entry.paths.vision_tower)
    settings |= image_token_settings(settings, accepted, model.config, tower)
    return pictures_only(original)(images, tokenizer, **settings)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class Backbone:
    """A multimodal model with its processor, and its parts under the same names whatever its class.

    Attributes:
        entry: what the registry says about it.
        model, processor, tokenizer: as transformers made them.
        vision_cache: the cache of the vision tower's output, or None.
        anchor_cache: where the anchors of users are kept, or None; for as long as the weights are as loaded.
        encoded: memory that collators of this backbone share (prefmoe.backbones.collation.Collator).
    """

    def __init__(self, entry: BackboneEntry, model: nn.Module, processor: Any) -> None:
        self.entry, self.model, self.processor = entry, model, processor
        self.tokenizer = processor.tokenizer
        self.vision_cache: VisionCache | None = None
        self.anchor_cache: AnchorCache | None = None
        self.encoded: dict[Any, Any] = {}
        for path in Paths.model_fields:
            self._part(path)
        if not self.tokenizer.is_fast:
            raise BackboneError(f"backbone {entry.name!r}: expected a fast tokenizer (tokenizer.json)")
        if self.processor.chat_template is None:
            raise BackboneError(f"backbone {entry.name!r}: its processor has no chat template")
        found = self.tokenizer.convert_tokens_to_ids(entry.image_token)
        if model.config.image_token_id is None:  # the model's files leave it to the tokenizer
            model.config.image_token_id = found
        if found != model.config.image_token_id:
            raise BackboneError(
                f"backbone {entry.name!r}: the tokenizer has id {found} for {entry.image_token!r}, "
                f"the model expects {model.config.image_token_id}"
            )

    def _part(self, field: str) -> Any:
        path = getattr(self.entry.paths, field)
        part: Any = self.model
        for name in path.split("."):
            if not hasattr(part, name):
                raise BackboneError(
                    f"backbone {self.entry.name!r}, {field}: {type(self.model).__name__} has no {path!r} "
                    f"({type(part).__name__} lacks {name!r})"
                )
            part = getattr(part, name)
        return part

    @cached_property
    def language_model(self) -> nn.Module:
        return self._part("language_model")

    @cached_property
    def layers(self) -> nn.ModuleList:
        return self._part("layers")

    @cached_property
    def embed_tokens(self) -> nn.Module:
        return self._part("embed_tokens")

    @cached_property
    def lm_head(self) -> nn.Module:
        return self._part("lm_head")

    @cached_property
    def vision_tower(self) -> nn.Module:
        return self._part("vision_tower")

    @cached_property
    def projector(self) -> nn.Module:
        return self._part("projector")

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def pad_token_id(self) -> int:
        """The padding id, or the end-of-sequence id where a tokenizer has none (padding is masked)."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @cached_property
    def placeholder_id(self) -> int:
        """The id at prefix positions: the first ordinary token, neither special nor padding nor image."""
        taken = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder, self.pad_token_id}
        return next(i for i in range(len(self.tokenizer)) if i not in taken and i != self.image_token_id)

    @cached_property
    def digest(self) -> str:
        """Identifies the weights: a hash of the folder's files, or the hub's commit."""
        return weights_digest(self.entry)

    def to(self, device: str | torch.device) -> Backbone:
        """Moves the model; returns self."""
        self.model.to(device)
        return self

    def adopt_caches(self, other: Backbone) -> None:
        """Goes on with what another copy of this backbone has encoded: conversations, and pictures if both cache.

        Raises:
            BackboneError: if the other one has other weights.
        """
        if other.digest != self.digest:
            raise BackboneError(f"{self.entry.name!r} cannot use what {other.entry.name!r} encoded: other weights")
        self.encoded = other.encoded
        if self.vision_cache is not None and other.vision_cache is not None:
            self.vision_cache.share(other.vision_cache)

    def freeze(self) -> None:
        """Stops gradients into every parameter and switches to evaluation mode."""
        self.model.requires_grad_(False)
        self.model.eval()

    def target_modules(self, last_layers: int | None = None) -> list[str]:
        """Full names of the projections that adapters go on, in the last decoder layers (all when None).

        Names are paths below the language model's layers: the vision tower has projections of the same names.

        Raises:
            BackboneError: if a layer lacks one of the architecture's target modules.
        """
        count = len(self.layers)
        first = 0 if last_layers is None else max(0, count - last_layers)
        names = []
        for index in range(first, count):
            prefix = f"{self.entry.paths.layers}.{index}"
            found = {name.rsplit(".", 1)[-1]: name for name, _ in self.layers[index].named_modules()}
            for target in self.entry.target_modules:
                present = [found[name] for name in target.split("|") if name in found]
                if not present:
                    raise BackboneError(f"backbone {self.entry.name!r}: {prefix} has no {target}")
                names.append(f"{prefix}.{present[0]}")
        return names

    @torch.no_grad()
    def image_features(self, images: Sequence[Picture], batch_size: int = 32) -> list[Tensor]:
        """Projected image tokens of each picture, as the language model receives them: list of (n_tokens, H).

        Raises:
            CollationError: if a picture cannot be read; the message names it.
        """
        features: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            processed = [process_pictures(self, load_pictures([image])) for image in images[start : start + batch_size]]
            inputs = {key: value.to(self.device) for key, value in stack_pictures(processed).items()}
            features += list(self.model.get_image_features(**inputs, return_dict=True).pooler_output)
        return features

    @torch.no_grad()
    def text_anchors(
        self, texts: Sequence[str], kind: Literal["hidden", "embedding"] = "hidden", batch_size: int = 32
    ) -> Tensor:
        """One vector per text, (N, H): the mean over its tokens, special tokens and padding left out.

        Args:
            kind: of the language model's last hidden states, or of its input embeddings.

        Raises:
            ValueError: if a text has no tokens, or the kind is unknown.
            PromptTooLong: if a text has more tokens than the model has positions.
        """
        if kind not in ("hidden", "embedding"):
            raise ValueError(f"kind of text anchor: expected hidden or embedding, found {kind!r}")
        # An unknown word is a word: a small vocabulary does not hold every name.
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        special = torch.tensor(sorted(special), device=self.device)
        rows = []
        for start in range(0, len(texts), batch_size):
            encoded = self.tokenizer(list(texts[start : start + batch_size]))["input_ids"]
            for text, row in zip(texts[start:], encoded, strict=False):
                check_length(self, len(row), f"the text {text[:60]!r}")
            length = max(map(len, encoded))
            ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in encoded], device=self.device)
            lengths = torch.tensor([len(row) for row in encoded], device=self.device)
            attention = torch.arange(length, device=self.device) < lengths[:, None]
            counted = attention & ~torch.isin(ids, special)
            for text, count in zip(texts[start:], counted.sum(1).tolist(), strict=False):
                if count == 0:
                    raise ValueError(f"a text without tokens has no anchor: {text!r}")
            states = self.embed_tokens(ids)
            if kind == "hidden":
                states = self.language_model(
                    inputs_embeds=states, attention_mask=attention.long(), use_cache=False
                ).last_hidden_state
            weight = counted.to(states.dtype).unsqueeze(-1)
            rows.append((states * weight).sum(1) / weight.sum(1))
        return torch.cat(rows) if rows else torch.empty(0, self.hidden_size, device=self.device)
