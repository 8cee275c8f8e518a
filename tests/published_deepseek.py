"""DeepSeek-VL2 as it is published: its configurations, folders with its files, and a second implementation."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F

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


def published_weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
