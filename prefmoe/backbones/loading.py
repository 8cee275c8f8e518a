"""Loads any multimodal model of the registry: its class, its weights, and the processor that it was made with."""

import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from prefmoe.backbones import (
    efficientnet_lite,  # noqa: F401  makes its class known to transformers
    whole,
)
from prefmoe.backbones.anchor_cache import AnchorCache
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import mean_picture, pictures_only
from prefmoe.backbones.weights import checked_folder
from prefmoe.config.registry import BackboneEntry, BackboneError, find_backbone
from prefmoe.system import distributed, memory
from prefmoe.system.files import read_json
from prefmoe.system.finite import not_finite


def load_backbone(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn: str = "sdpa",
    cache_images: bool = False,
    four_bit: bool = False,
    shard: torch.dtype | None = None,
    anchors: Path | None = None,
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
        anchors: a folder in which the anchors of users are kept (AnchorCache).

    Raises BackboneError if it or the device is unknown, a file is missing or broken, the class is not the registry's,
    the weights, the tokenizer or the processor do not fit the model, memory does not suffice, or something that an
    option needs is not installed; HubError if it cannot be downloaded.
    """
    _check_device(device)
    entry = find_backbone(name_or_folder)
    if entry.architecture is None:
        whole.check(entry)
    folder = checked_folder(entry)
    if shard is not None:
        among = distributed.mesh(torch.device(device).type)
        for _ in distributed.in_turn():
            backbone = _checked(_load(entry, folder, dtype, "cpu", attn, None), folder)
            distributed.shard_layers(backbone.layers, among, shard)
            backbone.to(device)
    else:
        quantization = _four_bit(entry, dtype) if four_bit else None
        backbone = _checked(_load(entry, folder, dtype, device, attn, quantization), folder)
    backbone.freeze()
    if cache_images:
        backbone.cache_images()
    if anchors is not None:
        backbone.anchor_cache = AnchorCache(anchors)
    return backbone


def _check_device(device: str | torch.device) -> None:
    """Raises BackboneError if this machine has no such device."""
    if device == "auto":
        return
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        expected = "expected one of this machine, such as cpu, cuda or auto"
        raise BackboneError(f"device {str(device)!r}: {expected} ({str(error).partition(chr(10))[0]:.80})") from error


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
        whole.read_config(entry, folder, model_class.config_class)
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
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError,
            StrictDataclassError) as error:  # fmt: skip
        raise BackboneError(f"backbone {entry.name!r} cannot be loaded from {source}: {error}") from error
    # Files of transformers' classes may hold tensors of older versions; an own class knows all that it may meet.
    for kind in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if own else [])):
        if loading[kind]:
            some = ", ".join(sorted(map(str, loading[kind]))[:5])
            raise BackboneError(f"backbone {entry.name!r}: {source} has weights with {kind.replace('_', ' ')}: {some}")
    if uncounted := _uncounted(loading["unexpected_keys"], model):
        left_out = f"weights of layers that config.json leaves out: {', '.join(uncounted[:5])}"
        raise BackboneError(f"backbone {entry.name!r}: {source} has {left_out}")
    if damaged := not_finite(model.state_dict().items()):
        some = ", ".join(damaged[:5])
        raise BackboneError(f"backbone {entry.name!r}: {source} has weights that are NaN or infinite: {some}")
    return Backbone(entry, model, processor)


def _uncounted(unexpected: Iterable[str], model: nn.Module) -> list[str]:
    """The layers, by name, of unexpected tensors that would follow those that a model has: with too low a number in
    config.json it would be built, and answer, without its last ones."""
    parts = {name for name, _ in model.named_modules()}
    found = set()
    for name in map(str, unexpected):
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            above = name[: number.start()]
            if f"{above}0" in parts and f"{above}{number.group()}" not in parts:
                found.add(name[: number.end()])
    return sorted(found)


def _checked(backbone: Backbone, folder: Path) -> Backbone:
    """The backbone, tried: what would stop its first question. Raises BackboneError naming file and field."""
    _check_tokens(backbone, folder)
    if backbone.entry.architecture is not None:  # else its processor was tried before
        _check_pictures(backbone, folder)
    return backbone


def _check_tokens(backbone: Backbone, folder: Path) -> None:
    """Raises BackboneError unless there are tokens to pad prompts with and to end answers, which the model knows."""
    place, tokenizer = folder / "tokenizer_config.json", backbone.tokenizer
    if backbone.pad_token_id is None:
        raise BackboneError(f"{place}, pad_token: expected the text of a token, found neither it nor eos_token")
    known = backbone.embed_tokens.weight.shape[0]
    field = "eos_token" if tokenizer.pad_token_id is None else "pad_token"
    if backbone.pad_token_id >= known:
        found = f"{getattr(tokenizer, field)!r:.80}, number {backbone.pad_token_id}"
        raise BackboneError(f"{place}, {field}: expected one of the model's {known} tokens, found {found}")
    end = backbone.model.generation_config.eos_token_id
    if end is not None and not all(isinstance(token, int) for token in (end if isinstance(end, list) else [end])):
        expected = "expected the number of a token, or a list of such"
        raise BackboneError(f"{folder / 'generation_config.json'}, eos_token_id: {expected}; found {end!r:.80}")


def _check_pictures(backbone: Backbone, folder: Path) -> None:
    """Tries the processor on a picture. Raises BackboneError if it takes none, or makes another number of tokens of it
    than the model, where settings say how many; that would show at the first question."""
    processor, entry = backbone.processor, backbone.entry
    picture = mean_picture(processor, whole.TRIAL_SIZE)
    try:
        text = backbone.process_pictures([picture]).replacements[0]
        tokens = backbone.tokenizer(text, add_special_tokens=False)["input_ids"].count(backbone.image_token_id)
        counted = hasattr(processor, "vision_feature_select_strategy")
        made = len(backbone.image_features([picture])[0]) if counted else tokens
    except Exception as error:  # whatever a processor raises
        problem, cause = f"no picture can be shown to the model ({error})", error
    else:
        problem, cause = f"a picture becomes {tokens} {entry.image_token} tokens, and the model has {made} for it", None
        if tokens == made != 0:
            return
    names = ("processor_config.json", "preprocessor_config.json")
    place = next(path for path in (folder / name for name in names) if path.is_file())
    odd = ", ".join(_odd_settings(backbone, read_json(place, "settings of a processor")))
    raise BackboneError(f"{place}{f', {odd}' if odd else ' or config.json'}: {problem}") from cause


def _odd_settings(backbone: Backbone, content: dict[str, Any]) -> Iterator[str]:
    """Fields of a processor's file that do not go with the model, each with its value and what was expected."""
    processor, config = backbone.processor, backbone.model.config
    accepted = {name for name in whole.IMAGE_TOKEN_SETTINGS if hasattr(processor, name)}
    expected = whole.image_token_settings({}, accepted, config, lambda: backbone.vision_tower)
    for name, value in (expected | {"image_token": backbone.entry.image_token}).items():
        if (found := getattr(processor, name, value)) != value:
            yield f"{name} {found!r:.80} (expected {value!r})"
    images = content.get("image_processor", content)
    for name in ("size", "crop_size", "rescale_factor"):
        values = found.values() if isinstance(found := images.get(name), dict) else [found]
        if found is not None and not all(isinstance(value, int | float) and value > 0 for value in values):
            yield f"{name} {found!r:.80} (expected positive numbers)"


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


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _class(name: str) -> Any:
    """The class of this name: of transformers, or of this package where transformers has none. Raises BackboneError if
    neither has it."""
    if hasattr(transformers, name):
        return getattr(transformers, name)
    from prefmoe.backbones import deepseek_vl2  # takes a moment: it imports several of transformers' models

    if name not in deepseek_vl2.__all__:
        places = f"transformers {transformers.__version__} nor {deepseek_vl2.__name__}"
        raise BackboneError(f"neither {places} has a class {name}")
    return getattr(deepseek_vl2, name)


def _load_processor(entry: BackboneEntry, source: str, options: dict[str, Any], model: nn.Module) -> Any:
    """The processor with pictures prepared by Pillow, so that the pixels are the same wherever it runs."""
    if entry.architecture is None:
        return whole.load_processor(entry, Path(source))
    original = _class(entry.architecture.processor_class)
    if not original.__module__.startswith("transformers."):
        return original.from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    uncut = {"do_image_splitting": False} if entry.architecture.whole_pictures else {}
    images = transformers.AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=False, **uncut, **options
    )
    settings, _ = original.get_processor_dict(source, **options)
    accepted = set(inspect.signature(original.__init__).parameters) - set(original.get_attributes())
    settings = {key: value for key, value in settings.items() if key in accepted}
    settings.setdefault("chat_template", tokenizer.chat_template)
    tower = model.get_submodule(entry.paths.vision_tower)
    settings |= whole.image_token_settings(settings, accepted, model.config, lambda: tower)
    return pictures_only(original)(images, tokenizer, **settings)
