"""DeepSeek-VL2 against a second implementation written from its description, in the names of the published tensors."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_prefmoe import batch_of, configuration, logits
from tiny_benchmark import make_picture
from tiny_models import DEEPSEEK_VL2, tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.deepseek_vl2 import DeepseekVLV2Config, DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from prefmoe.backbones.deepseek_vl2.processing import SPECIAL_TOKENS
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import BackboneError, read_registry
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import Method, build_method
from prefmoe.models.moe_lora import MixtureOfLoRA

# Sides of the published candidate resolutions: every grid of one to nine tiles.
GRIDS = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3), (3, 2),
         (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1), (3, 3)]  # fmt: skip
RESOLUTIONS = [[384 * across, 384 * down] for across, down in GRIDS]

VISION = {"model_name": "siglip_so400m_patch14_384", "model_type": "vision", "layers": 27, "mlp_ratio": 3.7362,
          "patch_size": 14, "width": 1152}  # fmt: skip
EXPERTS = {"first_k_dense_replace": 1, "n_group": 1, "n_shared_experts": 2, "num_experts_per_tok": 6, "topk_group": 1,
           "q_lora_rank": None, "max_position_embeddings": 4096, "vocab_size": 129280}  # fmt: skip
PUBLISHED = {
    "deepseek_vl2_tiny": EXPERTS | {
        "hidden_size": 1280, "intermediate_size": 6848, "moe_intermediate_size": 896, "n_routed_experts": 64,
        "num_attention_heads": 10, "num_hidden_layers": 12, "num_key_value_heads": 10, "kv_lora_rank": None,
        "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "topk_method": "greedy", "use_mla": False,
        "bos_token_id": 0, "eos_token_id": 1,
    },
    "deepseek_vl2_small": EXPERTS | {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16, "topk_method": "greedy",
    },
    "deepseek_vl2": EXPERTS | {
        "hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 72,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.0,
    },
}  # fmt: skip
"""The language_config of each published model, in its own words."""

SIZES = pytest.mark.parametrize("kind", DEEPSEEK_VL2)


def published_config(language: dict[str, Any], vision: dict[str, Any] = VISION, **changes: Any) -> dict[str, Any]:
    projector = {
        "model_type": "mlp_projector",
        "n_embed": language["hidden_size"],
        "input_dim": vision["width"],
    }
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"], "auto_map": {"AutoConfig": "modeling_deepseek_vl_v2.Config"},
        "candidate_resolutions": RESOLUTIONS, "global_view_pos": "head", "tile_tag": "2D",
        "model_type": "deepseek_vl_v2", "language_config": language, "vision_config": vision,
        "projector_config": projector, "torch_dtype": "bfloat16", "transformers_version": "4.38.2", **changes,
    }  # fmt: skip


# --- a second implementation --------------------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotate(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (T, heads, d): position t turns the pair (first[i], second[i]) by t * 10000^(-2i/d)."""
    frequencies = 1e4 ** (-torch.arange(len(first)) / len(first))
    angles = (torch.arange(len(x))[:, None] * frequencies)[:, None]
    turned = x.clone()
    turned[..., first] = x[..., first] * angles.cos() - x[..., second] * angles.sin()
    turned[..., second] = x[..., second] * angles.cos() + x[..., first] * angles.sin()
    return turned


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """(T, heads, d) each, to (T, heads * d)."""
    outputs = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head].T / math.sqrt(query.shape[2])
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        outputs.append(scores.softmax(-1) @ value[:, head])
    return torch.cat(outputs, dim=-1)


class Published:
    """DeepSeek-VL2 of one conversation at a time, from published tensors and the fields of a language_config."""

    def __init__(self, weights: dict[str, Tensor], language: dict[str, Any], heads: int, patch: int) -> None:
        self.weights, self.language, self.vision_heads, self.patch = weights, language, heads, patch

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def count(self, pattern: str) -> int:
        return next(n for n in range(1000) if not any(name.startswith(pattern.format(n)) for name in self.weights))

    def tower(self, view: Tensor) -> Tensor:
        """(3, S, S) to (g, g, D)."""
        grid = view.shape[1] // self.patch
        patches = [
            view[:, y : y + self.patch, x : x + self.patch].reshape(-1)
            for y in range(0, grid * self.patch, self.patch)
            for x in range(0, grid * self.patch, self.patch)
        ]
        kernel = self.weights["vision.patch_embed.proj.weight"].flatten(1)
        x = torch.stack(patches) @ kernel.T + self.weights["vision.patch_embed.proj.bias"]
        x = x + self.weights["vision.pos_embed"][0]
        for block in (f"vision.blocks.{n}" for n in range(self.count("vision.blocks.{}."))):
            qkv = self.linear(f"{block}.attn.qkv", self.layer_norm(f"{block}.norm1", x))
            q, k, v = qkv.view(len(x), 3, self.vision_heads, -1).unbind(1)
            x = x + self.linear(f"{block}.attn.proj", attend(q, k, v, causal=False))
            inner = self.linear(f"{block}.mlp.fc1", self.layer_norm(f"{block}.norm2", x))
            x = x + self.linear(f"{block}.mlp.fc2", F.gelu(inner, approximate="tanh"))
        return self.layer_norm("vision.norm", x).view(grid, grid, -1)

    def project(self, states: Tensor) -> Tensor:
        """(g, g, D) to (t, t, H): each 2 x 2 square with zeros outside the grid, channel by channel."""
        grid, side = len(states), math.ceil(len(states) / 2)
        rows = []
        for y in range(side):
            for x in range(side):
                joined = torch.zeros(states.shape[2], 4)
                for place, (dy, dx) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                    if 2 * y + dy < grid and 2 * x + dx < grid:
                        joined[:, place] = states[2 * y + dy, 2 * x + dx]
                rows.append(joined.reshape(-1))
        inner = F.gelu(self.linear("projector.layers.0", torch.stack(rows)))
        return self.linear("projector.layers.2", inner).view(side, side, -1)

    def picture(self, views: Tensor, across: int, down: int) -> Tensor:
        """The global view and its tiles (1 + across * down, 3, S, S) to (tokens, H)."""
        whole, *tiles = [self.project(self.tower(view)) for view in views]
        side, sequence = len(whole), []
        for y in range(side):
            sequence += [*whole[y], self.weights["image_newline"]]
        sequence.append(self.weights["view_seperator"])
        for y in range(side * down):
            for x in range(side * across):
                sequence.append(tiles[y // side * across + x // side][y % side, x % side])
            sequence.append(self.weights["image_newline"])
        return torch.stack(sequence)

    def attention(self, name: str, x: Tensor) -> Tensor:
        heads = self.language["num_attention_heads"]
        if not self.language.get("use_mla", True):
            q, k, v = (self.linear(f"{name}.{p}_proj", x).view(len(x), heads, -1) for p in "qkv")
            first = torch.arange(q.shape[2] // 2)
            q, k = (rotate(part, first, first + len(first)) for part in (q, k))
            return self.linear(f"{name}.o_proj", attend(q, k, v, causal=True))
        rotary, plain = self.language["qk_rope_head_dim"], self.language["qk_nope_head_dim"]
        pairs = torch.arange(0, rotary, 2)
        q = self.linear(f"{name}.q_proj", x).view(len(x), heads, plain + rotary)
        q = torch.cat([q[..., :plain], rotate(q[..., plain:], pairs, pairs + 1)], dim=-1)
        latent = self.linear(f"{name}.kv_a_proj_with_mqa", x)
        shared = rotate(latent[:, None, -rotary:], pairs, pairs + 1).expand(-1, heads, -1)
        latent = norm(latent[:, :-rotary], self.weights[f"{name}.kv_a_layernorm.weight"])
        both = self.linear(f"{name}.kv_b_proj", latent).view(len(x), heads, -1)
        k = torch.cat([both[..., :plain], shared], dim=-1)
        return self.linear(f"{name}.o_proj", attend(q, k, both[..., plain:], causal=True))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        inner = F.silu(self.linear(f"{name}.gate_proj", x)) * self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", inner)

    def experts(self, name: str, x: Tensor) -> Tensor:
        output = self.feed_forward(f"{name}.shared_experts", x)
        scores = x @ self.weights[f"{name}.gate.weight"].T
        sigmoid = self.language.get("scoring_func", "softmax") == "sigmoid"
        scores = scores.sigmoid() if sigmoid else scores.softmax(-1)
        for token in range(len(x)):
            wanted = scores[token]
            if sigmoid:
                wanted = wanted + self.weights[f"{name}.gate.e_score_correction_bias"]
            chosen = wanted.argsort(descending=True)[: self.language["num_experts_per_tok"]].tolist()
            total = sum(scores[token, e] for e in chosen) if self.language.get("norm_topk_prob") else 1.0
            for e in chosen:
                weight = scores[token, e] / total * self.language.get("routed_scaling_factor", 1.0)
                output[token] += weight * self.feed_forward(f"{name}.experts.{e}", x[token])
        return output

    def logits(self, ids: list[int], image_id: int, pictures: list[Tensor]) -> Tensor:
        """(T, vocabulary) of token ids in which image_id stands for the pictures' tokens."""
        x = self.weights["language.model.embed_tokens.weight"][ids]
        if pictures:
            x[torch.tensor(ids) == image_id] = torch.cat(pictures)
        for n in range(self.language["num_hidden_layers"]):
            layer = f"language.model.layers.{n}"
            x = x + self.attention(f"{layer}.self_attn", norm(x, self.weights[f"{layer}.input_layernorm.weight"]))
            y = norm(x, self.weights[f"{layer}.post_attention_layernorm.weight"])
            dense = n < self.language["first_k_dense_replace"]
            x = x + (self.feed_forward if dense else self.experts)(f"{layer}.mlp", y)
        return self.linear("language.lm_head", norm(x, self.weights["language.model.norm.weight"]))


# --- a folder as it is published ----------------------------------------------------------------------------------

WIDTH, HEADS, PATCH, SIDE = 24, 2, 8, 24


def tiny_language(kind: str, vocabulary: int) -> dict[str, Any]:
    """A language_config with the fields of the published one, and small numbers."""
    small = {"hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 12, "n_routed_experts": 12,
             "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
             "vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    if kind != "deepseek_vl2_tiny":
        small |= {"kv_lora_rank": 16, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10}
    return PUBLISHED[kind] | small


def tiny_weights(language: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names of the published files, twelve experts one by one."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def add(name: str, *shape: int, bias: int | None = None) -> None:
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        if bias is not None:
            weights[f"{name}.bias"] = torch.randn(bias, generator=generator) / 3

    def add_norm(name: str, size: int, bias: bool = False) -> None:
        weights[f"{name}.weight"] = 1 + torch.randn(size, generator=generator) / 3
        if bias:
            weights[f"{name}.bias"] = torch.randn(size, generator=generator) / 3

    def add_mlp(name: str, inner: int) -> None:
        for projection in ("gate_proj", "up_proj"):
            add(f"{name}.{projection}", inner, hidden)
        add(f"{name}.down_proj", hidden, inner)

    hidden, heads = language["hidden_size"], language["num_attention_heads"]
    add("vision.patch_embed.proj", WIDTH, 3, PATCH, PATCH, bias=WIDTH)
    weights["vision.pos_embed"] = torch.randn(1, (SIDE // PATCH) ** 2, WIDTH, generator=generator)
    for n in range(2):
        block = f"vision.blocks.{n}"
        for name in ("norm1", "norm2"):
            add_norm(f"{block}.{name}", WIDTH, bias=True)
        add(f"{block}.attn.qkv", 3 * WIDTH, WIDTH, bias=3 * WIDTH)
        add(f"{block}.attn.proj", WIDTH, WIDTH, bias=WIDTH)
        add(f"{block}.mlp.fc1", int(3.7362 * WIDTH), WIDTH, bias=int(3.7362 * WIDTH))
        add(f"{block}.mlp.fc2", WIDTH, int(3.7362 * WIDTH), bias=WIDTH)
    add_norm("vision.norm", WIDTH, bias=True)
    add("vision.attn_pool.q", WIDTH, WIDTH, bias=WIDTH)
    weights["vision.attn_pool.latent"] = torch.randn(1, 1, WIDTH, generator=generator)
    add("projector.layers.0", hidden, 4 * WIDTH, bias=hidden)
    add("projector.layers.2", hidden, hidden, bias=hidden)
    for name in ("image_newline", "view_seperator"):
        weights[name] = torch.randn(hidden, generator=generator)
    add("language.model.embed_tokens", language["vocab_size"], hidden)
    add("language.lm_head", language["vocab_size"], hidden)
    add_norm("language.model.norm", hidden)
    for n in range(language["num_hidden_layers"]):
        layer = f"language.model.layers.{n}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            add_norm(f"{layer}.{name}", hidden)
        if language.get("use_mla", True):
            latent, rotary = language["kv_lora_rank"], language["qk_rope_head_dim"]
            plain, value = language["qk_nope_head_dim"], language["v_head_dim"]
            add(f"{layer}.self_attn.q_proj", heads * (plain + rotary), hidden)
            add(f"{layer}.self_attn.kv_a_proj_with_mqa", latent + rotary, hidden)
            add_norm(f"{layer}.self_attn.kv_a_layernorm", latent)
            add(f"{layer}.self_attn.kv_b_proj", heads * (plain + value), latent)
            add(f"{layer}.self_attn.o_proj", hidden, heads * value)
        else:
            for projection in "qkvo":
                add(f"{layer}.self_attn.{projection}_proj", hidden, hidden)
        if n < language["first_k_dense_replace"]:
            add_mlp(f"{layer}.mlp", language["intermediate_size"])
            continue
        inner = language["moe_intermediate_size"]
        add_mlp(f"{layer}.mlp.shared_experts", inner * language["n_shared_experts"])
        for expert in range(language["n_routed_experts"]):
            add_mlp(f"{layer}.mlp.experts.{expert}", inner)
        add(f"{layer}.mlp.gate", language["n_routed_experts"], hidden)
        if language["topk_method"] == "noaux_tc":
            bias = torch.randn(language["n_routed_experts"], generator=generator) / 3
            weights[f"{layer}.mlp.gate.e_score_correction_bias"] = bias
    return weights


def save_published(folder: Path, kind: str, weights: dict[str, Tensor] | None = None) -> Path:
    """A folder with the files of the published ones: two shards and an index, and no word of an image token's id."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer("deepseek_vl2")
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizerFast"}))
    language = tiny_language(kind, len(tokenizer) + 8)
    weights = tiny_weights(language) if weights is None else weights
    names = sorted(weights)
    shards = {
        "model-00001-of-000002.safetensors": names[::2],
        "model-00002-of-000002.safetensors": names[1::2],
    }
    for file, own in shards.items():
        save_file({name: weights[name] for name in own}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    vision = VISION | {"width": WIDTH, "layers": 2, "heads": HEADS, "patch_size": PATCH, "image_size": SIDE}
    candidates = [[SIDE * across, SIDE * down] for across, down in GRIDS]
    config = published_config(language, vision, candidate_resolutions=candidates)
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "add_special_token": False, "candidate_resolutions": candidates, "downsample_ratio": 2, "ignore_id": -100,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_token": "<image>", "mask_prompt": False,
        "normalize": True, "pad_token": "<｜▁pad▁｜>", "patch_size": PATCH,
        "processor_class": "DeepseekVLV2Processor", "sft_format": "deepseek",
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    return lambda kind="deepseek_vl2_small", weights=None: save_published(tmp_path / kind, kind, weights)


def published_weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


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
