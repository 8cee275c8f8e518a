"""DeepSeek-VL2 against a second implementation written from its description, in the names of the published tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_deepseek import (
    GRIDS,
    HEADS,
    PATCH,
    PUBLISHED,
    RESOLUTIONS,
    Published,
    published_config,
    published_weights,
    save_published,
    tiny_language,
    tiny_weights,
)
from test_prefmoe import batch_of, configuration, logits
from tiny_benchmark import make_picture
from tiny_models import DEEPSEEK_VL2, tiny_tokenizer
from torch import Tensor

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.deepseek_vl2 import DeepseekVLV2Config, DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from prefmoe.backbones.deepseek_vl2.processing import SPECIAL_TOKENS
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import BackboneError, read_registry
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import Method, build_method
from prefmoe.models.moe_lora import MixtureOfLoRA

SIZES = pytest.mark.parametrize("kind", DEEPSEEK_VL2)


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    return lambda kind="deepseek_vl2_small", weights=None: save_published(tmp_path / kind, kind, weights)


@SIZES
@torch.no_grad()
def test_a_published_folder_computes_what_a_second_implementation_does(
    published: Callable[..., Path], kind: str
) -> None:
    folder = published(kind)
    backbone = load_backbone(folder)
    language = json.loads((folder / "config.json").read_text())["language_config"]
    reference = Published(published_weights(folder), language, HEADS, PATCH)
    images = [make_picture(0, (72, 44)), make_picture(1, (20, 40))]
    text = "<|User|>: Ann <image> likes <image> tea \n\n<|Assistant|>:"
    inputs = backbone.processor(images=[images], text=[text], return_tensors="pt")
    assert inputs["image_tiles"].tolist() == [[3, 2], [1, 2]]
    pictures = [
        reference.picture(inputs["pixel_values"][k], *tiles) for k, tiles in enumerate(inputs["image_tiles"].tolist())
    ]
    features = backbone.image_features(images)
    for found, expected in zip(features, pictures, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected = reference.logits(inputs["input_ids"][0].tolist(), backbone.image_token_id, pictures)
    found = backbone.model(**inputs).logits[0]
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@SIZES
@torch.no_grad()
def test_saving_gives_the_published_tensors_back(published: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    folder = published(kind)
    original = published_weights(folder)
    backbone = load_backbone(folder)
    backbone.model.save_pretrained(tmp_path / "saved")
    backbone.processor.save_pretrained(tmp_path / "saved")
    saved = published_weights(tmp_path / "saved")
    assert set(original) - set(saved) == {name for name in original if name.startswith("vision.attn_pool.")}
    assert not set(saved) - set(original)
    for name, tensor in saved.items():
        assert torch.equal(tensor, original[name]), name
    again = load_backbone(tmp_path / "saved")
    text = "<|User|>: Ann <image> likes tea"
    for image in (make_picture(0, (48, 20)), make_picture(1)):
        first, second = (b.processor(images=[[image]], text=[text], return_tensors="pt") for b in (backbone, again))
        assert first["input_ids"].tolist() == second["input_ids"].tolist()
        assert torch.equal(backbone.model(**first).logits, again.model(**second).logits)
    assert again.processor.chat_template == backbone.processor.chat_template


def test_half_precision_keeps_the_routers_corrections_exact(published: Callable[..., Path]) -> None:
    backbone = load_backbone(published("deepseek_vl2"), dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in backbone.model.state_dict().items()}
    exact = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert exact == {name for name in dtypes if name.endswith("e_score_correction_bias")} and exact
    features = backbone.image_features([make_picture(0)])
    assert features[0].dtype == torch.bfloat16 and bool(features[0].isfinite().all())


LAYER = "language.model.layers.2"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("view_seperator"), "missing keys: .*view_separator"),
        (lambda w: w.pop("vision.blocks.1.attn.qkv.bias"), "missing keys: .*layers.1.self_attn.k_proj.bias"),
        (
            lambda w: w.pop(f"{LAYER}.mlp.experts.5.down_proj.weight"),
            "mismatched keys: .*s.2.mlp.experts.down_proj",
        ),
        (
            lambda w: w.pop(f"{LAYER}.mlp.experts.5.up_proj.weight"),
            "mismatched keys: .*s.2.mlp.experts.gate_up_proj",
        ),
        (
            lambda w: w.update({"vision.blocks.2.norm1.bias": torch.ones(24)}),
            "unexpected keys: .*s.2.layer_norm1",
        ),
        (
            lambda w: w.update({f"{LAYER}.self_attn.k_proj.weight": torch.ones(2, 2)}),
            "unexpected keys: .*s.2.*k_proj",
        ),
        (lambda w: w.update({"image_newline": torch.ones(31)}), "mismatched keys: .*image_newline"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    published: Callable[..., Path], change: Callable[[dict[str, Tensor]], Any], expected: str
) -> None:
    kind = "deepseek_vl2_small"
    weights = tiny_weights(tiny_language(kind, len(tiny_tokenizer("deepseek_vl2")) + 8))
    change(weights)
    with pytest.raises(BackboneError, match=expected):
        load_backbone(published(kind, weights))


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "billions"),
    [("deepseek_vl2_tiny", "deepseek_ocr2_text", 3.37), ("deepseek_vl2_small", "deepseek_v2", 16.1),
     ("deepseek_vl2", "deepseek_v3", 27.5)],
)  # fmt: skip
def test_published_configurations_have_the_published_numbers_of_parameters(
    kind: str, text: str, billions: float
) -> None:
    config = DeepseekVLV2Config.from_dict(published_config(PUBLISHED[kind]))
    assert config.text_config.model_type == text and config.image_token_id is None
    assert (config.vision_config.num_attention_heads, config.vision_config.intermediate_size) == (16, 4304)
    with torch.device("meta"):
        model = DeepseekVLV2ForCausalLM(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)
    stated = read_registry().backbones[kind.replace("_", "-")].parameters
    assert float(stated.removesuffix("B")) == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("part", "fields", "expected"),
    [
        (None, {"tile_tag": "1D"}, "config.json, tile_tag: expected '2D', found '1D'"),
        ("projector_config", {"depth": 3}, "projector_config, depth: expected 2, found 3"),
        ("projector_config", {"n_embed": 5}, "projector_config, n_embed: expected 2048, found 5"),
        (
            "language_config",
            {"topk_method": "group_limited_greedy"},
            r"expected one of .*found \(True, 'softmax', 'gr",
        ),
        ("language_config", {"moe_layer_freq": 2}, "language_config, moe_layer_freq: expected 1, found 2"),
    ],
)
def test_a_configuration_of_no_published_model_is_refused(part: str | None, fields: dict, expected: str) -> None:
    content = published_config(PUBLISHED["deepseek_vl2_small"])
    content |= fields if part is None else {part: content[part] | fields}
    with pytest.raises(ValueError, match=expected):
        DeepseekVLV2Config.from_dict(content)


# --- processor ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> DeepseekVLV2Processor:
    """With the published settings."""
    return DeepseekVLV2Processor(tiny_tokenizer("deepseek_vl2"), RESOLUTIONS)


def best_grid(width: int, height: int) -> tuple[int, int]:
    """The tiles across and down that keep most of a picture's pixels, and of those that waste least."""

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        wide, high = 384 * grid[0], 384 * grid[1]
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -(wide * high - kept)

    return max(GRIDS, key=merit)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((384, 384), (1, 1)), ((200, 100), (1, 1)), ((800, 400), (3, 2)), ((500, 1800), (2, 4)), ((4000, 4000), (3, 3)),
     ((3000, 300), (8, 1))],
)  # fmt: skip
def test_tiles_and_image_tokens(processor: DeepseekVLV2Processor, size: tuple, tiles: tuple) -> None:
    assert best_grid(*size) == tiles
    across, down = tiles
    inputs = processor.image_processor(images=[[Image.new("RGB", size)]], return_tensors="pt")
    assert inputs["image_tiles"].tolist() == [[across, down]]
    assert inputs["pixel_values"].shape == (1, 1 + across * down, 3, 384, 384)
    tokens = processor.replace_image_token(inputs, image_idx=0).count("<image>")
    assert tokens == 14 * 15 + 1 + 14 * down * (14 * across + 1)
    assert (tokens == 421) == (tiles == (1, 1))


def test_three_pictures_are_not_tiled(processor: DeepseekVLV2Processor) -> None:
    images = [Image.new("RGB", (800, 400)), Image.new("RGB", (384, 384)), Image.new("RGB", (100, 900))]
    both = processor.image_processor(images=[images[:2], images], return_tensors="pt")
    assert both["image_tiles"].tolist() == [[3, 2], [1, 1], [1, 1], [1, 1], [1, 1]]
    assert both["pixel_values"].shape[:2] == (5, 7)
    assert not both["pixel_values"][1, 2:].any()
    counts = [processor.replace_image_token(both, image_idx=k).count("<image>") for k in range(5)]
    assert counts[1:] == [421] * 4


def test_views_are_the_padded_picture_cut_into_tiles(processor: DeepseekVLV2Processor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 768, 3), dtype=np.uint8)
    inputs = processor.image_processor(images=[[Image.fromarray(pixels)]], return_tensors="pt")
    assert inputs["image_tiles"].tolist() == [[2, 1]]
    views = inputs["pixel_values"][0].numpy().transpose(0, 2, 3, 1)
    large = np.concatenate([views[1], views[2]], axis=1)  # 384 x 768, in which the picture needs no resizing
    np.testing.assert_allclose(large[42:342], pixels / 127.5 - 1, atol=1e-6)
    margin = 127 / 127.5 - 1
    for rows in (large[:42], large[342:]):
        np.testing.assert_allclose(rows, margin, atol=1e-6)
    small = np.asarray(Image.fromarray(pixels).resize((384, 150), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(views[0][117:267], small / 127.5 - 1, atol=1e-6)
    for rows in (views[0][:117], views[0][267:]):
        np.testing.assert_allclose(rows, margin, atol=1e-6)


def test_conversations_are_written_as_published(processor: DeepseekVLV2Processor) -> None:
    first = [{"type": "text", "text": " hello, how are you? "}]
    question = [{"type": "image"}, {"type": "text", "text": "\nIs Ann in this picture?\n"}]
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": "fine, thanks."},
                {"role": "user", "content": question}]  # fmt: skip
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<s><|User|>: hello, how are you?\n\n<|Assistant|>:fine, thanks.</s>"
        "<|User|>: <image>\nIs Ann in this picture?\n\n<|Assistant|>:"
    )
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    assert processor.apply_chat_template(answered, tokenize=False) == rendered + "yes</s>"


def test_special_tokens_that_a_tokenizer_lacks_are_added_in_the_published_order() -> None:
    tokenizer = tiny_tokenizer("llava")  # has <pad> and <image>
    before = len(tokenizer)
    DeepseekVLV2Processor(tokenizer)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(before, before + 7))
    ids = tokenizer("<|User|>: Ann", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|User|>", ":", "Ann"]


def test_the_image_tokens_id_comes_from_the_tokenizer(published: Callable[..., Path]) -> None:
    backbone = load_backbone(published())
    assert backbone.tokenizer.convert_ids_to_tokens(backbone.image_token_id) == "<image>"
    assert backbone.model.config.image_token_id == backbone.image_token_id


def test_pictures_and_image_tokens_must_agree(published: Callable[..., Path]) -> None:
    backbone = load_backbone(published())
    inputs = backbone.processor(images=[[make_picture(0)]], text=["<image> Ann"], return_tensors="pt")
    count = int((inputs["input_ids"] == backbone.image_token_id).sum())
    inputs["input_ids"] = inputs["input_ids"][:, 1:]
    with pytest.raises(ValueError, match=f"the prompts have {count - 1} image tokens, the pictures {count}"):
        backbone.model(**inputs)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tiny_backbone: Callable[..., Backbone], tiny_benchmark: Benchmark) -> Callable[..., Method]:
    def build(kind: str, components: str = "EPICDM") -> Method:
        return build_method(configuration(components), tiny_backbone(kind), tiny_benchmark, seed=0)

    return build


def stir(method: Method) -> None:
    """Gives the adapters values, as if they had been trained."""
    with torch.no_grad():
        for parameter in method.experts:
            parameter.copy_(torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(parameter) / 5)


@SIZES
def test_a_training_step_moves_exactly_the_intended_parameters(build: Callable[..., Method], kind: str) -> None:
    method = build(kind)
    stir(method)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.AdamW(method.parameter_groups(), weight_decay=0.0)
    batch = batch_of(method)
    method.train()
    with method.context(batch):
        sum(method.training_losses(batch).values()).backward()
    optimizer.step()
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    value = "v_proj" if kind == "deepseek_vl2_tiny" else "kv_b_proj"
    attention = [f"self_attn.{name}" for name in ("q_proj", value, "o_proj")]
    shared = [f"mlp.shared_experts.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    places = [f"model.language_model.layers.{n}.{name}" for n in (1, 2) for name in (*attention, *shared)]
    assert {name for name, m in method.model.named_modules() if isinstance(m, MixtureOfLoRA)} == {
        f"model.{place.removeprefix('model.')}" for place in places
    }
    adapters = {f"model.{place}.{matrix}" for place in places for matrix in "AB"}
    others = {name for name in before if name.startswith(("user_state.", "router."))}
    assert moved == adapters | others


@pytest.mark.parametrize("components", ["EPICD", "EPICDM"])
@SIZES
def test_gradient_checkpointing_gives_equal_gradients(build: Callable[..., Method], kind: str, components: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        method = build(kind, components)
        stir(method)
        if checkpointed:
            method.model.activation_checkpointing_enable()
        method.train()
        batch = batch_of(method)
        with method.context(batch):
            sum(method.training_losses(batch).values()).backward()
        gradients.append([p.grad for group in method.parameter_groups() for p in group["params"]])
    assert all(bool(gradient.any()) for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@SIZES
def test_routed_by_user_a_padded_batch_equals_its_rows(build: Callable[..., Method], kind: str) -> None:
    method = build(kind)
    stir(method)
    with torch.no_grad():
        for parameter in method.router.parameters():
            parameter.normal_(std=0.3)
    method.eval()
    examples = method.benchmark.select("train")[::3]
    together = logits(method, method.collator(examples, with_answer=False))[:, -1]
    alone = [logits(method, method.collator([example], with_answer=False))[0, -1] for example in examples]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-3, atol=1e-4)
    plain = build(kind).eval()
    difference = (together - logits(plain, plain.collator(examples, with_answer=False))[:, -1]).abs().mean()
    assert float(difference) > 0.1
