"""The configuration of DeepSeek-VL2, read from the published config.json as well as from a saved one."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

PUBLISHED_LANGUAGE = {
    "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "moe_intermediate_size": 1407,
    "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 32, "n_shared_experts": None,
    "n_routed_experts": None, "num_experts_per_tok": None, "routed_scaling_factor": 1.0, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "topk_method": "greedy", "n_group": None, "topk_group": None, "moe_layer_freq": 1,
    "first_k_dense_replace": 0, "norm_topk_prob": False, "scoring_func": "softmax", "hidden_act": "silu",
    "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "pad_token_id": None,
    "bos_token_id": 100000, "eos_token_id": 100001, "tie_word_embeddings": False, "rope_theta": 10000.0,
    "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0, "use_mla": True,
}  # fmt: skip
"""What the published code assumes of a language_config's absent fields (the base model's leaves out most of them)."""

PUBLISHED_VISION = {
    "image_size": 384, "patch_size": 16, "width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4,
    "class_token": False,
}  # fmt: skip
"""The same for a vision_config."""

PUBLISHED_PROJECTOR = {
    "projector_type": "downsample_mlp_gelu", "input_dim": 1152, "n_embed": 2048, "depth": 2, "mlp_ratio": 1,
    "downsample_ratio": 2, "token_pooling": False,
}  # fmt: skip
"""The same for a projector_config."""


class DeepseekVLV2Config(PreTrainedConfig):
    """SigLIP tower, pixel-unshuffle projector, and one of three kinds of DeepSeekMoE language models.

    The language models are those of transformers, by text_config.model_type:

        deepseek_ocr2_text  multi-head attention, softmax router                       (DeepSeek-VL2-Tiny)
        deepseek_v2         multi-head latent attention (MLA), softmax router          (DeepSeek-VL2-Small)
        deepseek_v3         MLA, sigmoid router with a correction bias, normalised     (DeepSeek-VL2)

    Attributes:
        image_token_id: None where the tokenizer has to say it (the published config.json does not).
        downsample_ratio: side of the square of patches that becomes one token.
        projector_ratio: hidden size of the projector over that of the language model.
    """

    model_type = "deepseek_vl_v2"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="deepseek_v2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    downsample_ratio: int = 2
    projector_ratio: int = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.vision_config.vision_use_head = False  # the tower's attention pooling is published, but nothing reads it

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration in a config.json of either kind; the published one has a language_config.

        Raises ValueError naming the field and what was expected, if the published one asks for something that none of
        the three published models has.
        """
        if "language_config" in config_dict:
            config_dict = from_published(config_dict)
        return super().from_dict(config_dict, **kwargs)


def from_published(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a DeepseekVLV2Config from a published config.json. Raises ValueError: see
    DeepseekVLV2Config.from_dict."""
    language = PUBLISHED_LANGUAGE | content["language_config"]
    vision = PUBLISHED_VISION | content.get("vision_config", {})
    projector = PUBLISHED_PROJECTOR | content.get("projector_config", {})
    layout = {"tile_tag": "2D", "global_view_pos": "head"}
    joined = {
        "projector_type": "downsample_mlp_gelu", "depth": 2, "token_pooling": False,
        "input_dim": vision["width"], "n_embed": language["hidden_size"],
    }  # fmt: skip
    plain = {"moe_layer_freq": 1, "attention_bias": False, "tie_word_embeddings": False}
    for part, fields, expected in (
        ("config.json", layout | content, layout),
        ("vision_config", vision, {"class_token": False}),
        ("projector_config", projector, joined),
        ("language_config", language, plain),
    ):
        for name, value in expected.items():
            if fields[name] != value:
                raise ValueError(f"{part}, {name}: expected {value!r}, found {fields[name]!r}")
    return {
        "architectures": content.get("architectures"),
        "dtype": content.get("dtype", content.get("torch_dtype")),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        "text_config": _text_config(language),
        "downsample_ratio": projector["downsample_ratio"],
        "projector_ratio": projector["mlp_ratio"],
    }


def _text_config(language: dict[str, Any]) -> dict[str, Any]:
    """The fields of one of transformers' configurations; its kind is decided by attention and router."""
    names = (
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads n_shared_experts n_routed_experts num_experts_per_tok routed_scaling_factor n_group "
        "topk_group hidden_act max_position_embeddings initializer_range rms_norm_eps pad_token_id bos_token_id "
        "eos_token_id attention_dropout"
    ).split()
    fields = {name: language[name] for name in names}
    router = (language["scoring_func"], language["topk_method"], language["norm_topk_prob"])
    kinds = {
        (False, "softmax", "greedy", False): "deepseek_ocr2_text",
        (True, "softmax", "greedy", False): "deepseek_v2",
        (True, "sigmoid", "noaux_tc", True): "deepseek_v3",
    }
    found = (bool(language["use_mla"]), *router)
    if found not in kinds:
        expected = ", ".join(map(str, kinds))
        raise ValueError(
            f"language_config, (use_mla, scoring_func, topk_method, norm_topk_prob): expected one of {expected}, "
            f"found {found}"
        )
    scaling = dict(language["rope_scaling"] or {"type": "default"})
    fields["rope_parameters"] = {
        "rope_type": scaling.pop("type"), "rope_theta": float(language["rope_theta"]), **scaling
    }  # fmt: skip
    fields["model_type"] = kinds[found]
    dense = language["first_k_dense_replace"]
    if not language["use_mla"]:
        sparse = language["num_hidden_layers"] - dense
        return fields | {"mlp_layer_types": ["dense"] * dense + ["sparse"] * sparse, "topk_method": "greedy"}
    latent = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "norm_topk_prob")
    fields |= {name: language[name] for name in latent} | {"first_k_dense_replace": dense}
    if fields["model_type"] == "deepseek_v2":
        return fields | {"topk_method": "greedy"}
    return fields | {"rope_interleave": True, "num_mtp_layers": 0}
