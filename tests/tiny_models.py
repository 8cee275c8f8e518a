"""Tiny random models of every architecture, saved like real ones, and models that are read from a folder once."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_benchmark import ITEMS, NAMES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.deepseek_vl2 import DeepseekVLV2Config, DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from prefmoe.backbones.efficientnet_lite import EfficientNetLiteConfig
from prefmoe.backbones.loading import pictures_only
from prefmoe.config.registry import BackboneEntry
from prefmoe.data.benchmark import FACETS

DEEPSEEK_VL2 = ("deepseek_vl2_tiny", "deepseek_vl2_small", "deepseek_vl2")
ARCHITECTURES = (
    "llava", "qwen2_5_vl", "llava_next", "llava_onevision", "llava_lite", "idefics2", "idefics3", *DEEPSEEK_VL2,
)  # fmt: skip
"""llava_lite: a LLaVA with the tower of the small edition, and tied embeddings like its language model."""

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "llava": LLAVA_TEMPLATE,
    "llava_next": LLAVA_TEMPLATE,
    "llava_lite": smollm2_lite.TEMPLATE,
    "idefics2": LLAVA_TEMPLATE,
    "idefics3": LLAVA_TEMPLATE,
    "llava_onevision": CHATML_TEMPLATE.replace("IMAGE", "<image>"),
    "qwen2_5_vl": CHATML_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
}

EXPERTS = {
    "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10,
    "first_k_dense_replace": 1,
}  # fmt: skip
DEEPSEEK_VL2_TEXT = {
    "deepseek_vl2_tiny": EXPERTS | {
        "model_type": "deepseek_ocr2_text", "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "deepseek_vl2_small": EXPERTS | LATENT | {"model_type": "deepseek_v2"},
    "deepseek_vl2": EXPERTS | LATENT | {
        "model_type": "deepseek_v3", "norm_topk_prob": True, "routed_scaling_factor": 2.0, "num_mtp_layers": 0,
    },
}  # fmt: skip


def tiny_tokenizer(kind: str, further: str = "") -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the tiny benchmark's words, with the special tokens of the architecture."""
    special = {
        "llava": ["<pad>", "<s>", "</s>", "<image>"],
        "llava_next": ["<pad>", "<s>", "</s>", "<image>"],
        "llava_onevision": ["<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        "llava_lite": ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"],
        "idefics2": ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>"],
        "idefics3": ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>",
                     "<end_of_utterance>", *(f"<row_{y}_col_{x}>" for y in (1, 2, 3) for x in (1, 2, 3))],
        "qwen2_5_vl": ["<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                       "<|video_pad|>"],
        **{size: ["<pad>", "<s>", "</s>", "<image>", "<|User|>", "<|Assistant|>"] for size in DEEPSEEK_VL2},
    }[kind]  # fmt: skip
    text = " ".join(
        [*NAMES, *ITEMS, *FACETS, "USER ASSISTANT user assistant system yes no yeah A B C D Yes No"]
        + ["User preference in enjoys dislikes but In terms of Does like Is in this picture Which does Options I got"]
        + ["it A person with red hair blue This hello how are you fine thanks the weather is good which name what"]
        + [*"0123456789.,:;?!'\"-()", further]
    )
    words = list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text)))
    vocabulary = {word: index for index, word in enumerate([*special, "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    options = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": special[2]}
    if "<s>" in special:
        options["bos_token"] = "<s>"
    if kind in ("llava", "llava_next"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    extra_special = [token for token in special if token not in options.values()]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra_special, **options)


def save_tiny(kind: str, folder: Path, seed: int = 0, words: str = "") -> Path:
    """Writes a random model of an architecture that knows some more words, in the format of save_pretrained."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(kind, words)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>" if kind == "qwen2_5_vl" else "<image>")
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8,
        initializer_range=0.3,
    )  # fmt: skip
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    common = {"chat_template": TEMPLATES.get(kind)}
    if kind == "llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision), text_config=transformers.LlamaConfig(**text),
            image_token_id=image, vision_feature_layer=-2,
        )  # fmt: skip
        model = transformers.LlavaForConditionalGeneration(config)
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        processor = transformers.LlavaProcessor(
            images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            **common,
        )  # fmt: skip
    elif kind == "llava_lite":
        tower = EfficientNetLiteConfig(
            image_size=16, patch_size=8, hidden_size=24, stem_channels=6, initializer_range=0.3,
            stages=[[1, 3, 1, 1, 6], [2, 3, 2, 2, 8], [1, 5, 2, 2, 8]],
        )  # fmt: skip
        config = transformers.LlavaConfig(
            vision_config=tower, text_config=transformers.LlamaConfig(**text, tie_word_embeddings=True),
            image_token_id=image, vision_feature_layer=-1, vision_feature_select_strategy="full",
            tie_word_embeddings=True,
        )  # fmt: skip
        model = transformers.LlavaForConditionalGeneration(config)
        processor = smollm2_lite.picture_processor(tower, tokenizer)
    elif kind == "idefics2":
        perceiver = dict(
            hidden_size=32, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=8,
            num_key_value_heads=1, initializer_range=0.1,
        )  # fmt: skip
        config = transformers.Idefics2Config(
            vision_config=vision, perceiver_config=perceiver, text_config=transformers.MistralConfig(**text),
            image_token_id=image,
        )  # fmt: skip
        model = transformers.Idefics2ForConditionalGeneration(config)
        with torch.no_grad():  # latents that are all alike would stay so
            model.model.connector.perceiver_resampler.latents.normal_()
        images = transformers.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32})
        processor = transformers.Idefics2Processor(images, tokenizer, image_seq_len=3, **common)
    elif kind == "idefics3":
        config = transformers.Idefics3Config(
            vision_config=vision, text_config=transformers.LlamaConfig(**text), image_token_id=image, scale_factor=2,
        )  # fmt: skip
        model = transformers.Idefics3ForConditionalGeneration(config)
        images = transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
        )
        processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=1, **common)
    elif kind == "llava_next":
        config = transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**vision), text_config=transformers.LlamaConfig(**text),
            image_token_id=image, image_grid_pinpoints=pinpoints,
        )  # fmt: skip
        model = transformers.LlavaNextForConditionalGeneration(config)
        images = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
        )
        processor = transformers.LlavaNextProcessor(
            images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            **common,
        )  # fmt: skip
    elif kind == "llava_onevision":
        vision.pop("initializer_range")
        config = transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**vision), text_config=transformers.Qwen2Config(**text),
            image_token_id=image, video_token_id=image + 1, image_grid_pinpoints=pinpoints,
        )  # fmt: skip
        model = transformers.LlavaOnevisionForConditionalGeneration(config)
        images = transformers.LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
        )
        processor = pictures_only(transformers.LlavaOnevisionProcessor)(
            images, tokenizer, num_image_tokens=4, vision_feature_select_strategy="full", **common
        )
    elif kind in DEEPSEEK_VL2:
        config = DeepseekVLV2Config(
            vision_config=vision | {"model_type": "siglip_vision_model", "image_size": 24},
            text_config=text | DEEPSEEK_VL2_TEXT[kind], image_token_id=image,
        )  # fmt: skip
        model = DeepseekVLV2ForCausalLM(config)
        with torch.no_grad():  # routers that start at zero, or next to it, choose experts by rounding errors
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if ".gate." in name:
                    tensor.normal_()
        processor = DeepseekVLV2Processor(tokenizer, [[24, 24], [24, 48], [48, 24], [48, 48], [24, 72]], patch_size=8)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=dict(
                depth=3, hidden_size=24, intermediate_size=32, num_heads=2, patch_size=4, spatial_merge_size=2,
                temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1], out_hidden_size=32,
            ),
            image_token_id=image, video_token_id=image + 1, vision_start_token_id=image - 2,
            vision_end_token_id=image - 1, tie_word_embeddings=False,
        )  # fmt: skip
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        images = transformers.Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
        )
        processor = pictures_only(transformers.Qwen2_5_VLProcessor)(images, tokenizer, **common)
    unsaid = {"bad_words_ids": [[image], [image + 1]]} if kind == "idefics2" else {}  # as the published one's
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=2, do_sample=False, **unsaid)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class _Tensors(pickle.Pickler):
    """Writes a module with its tensors left out; they are in .tensors."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.file, self.tensors, self.places = io.BytesIO(), [], {}
        super().__init__(self.file)
        self.dump(module)
        self.tensors = copy.deepcopy(self.tensors)  # the module itself may be trained

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self.places:  # tied weights are written once
            self.places[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self.places[id(value)]

    def copy(self) -> torch.nn.Module:
        """The module anew, at a quarter of copy.deepcopy's time."""
        reader = pickle.Unpickler(io.BytesIO(self.file.getvalue()))
        reader.persistent_load = copy.deepcopy(self.tensors).__getitem__
        return reader.load()


def read_once(load: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """load_backbone's part that reads a folder, as long as the folder does not change: its result, copied from then on.

    Everybody gets a model of his own, with the very weights of the files, at a twentieth of the time.
    """
    known: dict[Any, tuple[_Tensors, Any]] = {}

    def load_or_copy(entry: BackboneEntry, folder: Path, *options: Any) -> Backbone:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        files = tuple((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in stats)
        reader = getattr(transformers, entry.model_class, Backbone).__dict__.get("from_pretrained")  # a test's own?
        key = (entry, folder, files, reader, *map(str, options))
        if key not in known:
            backbone = load(entry, folder, *options)
            known[key] = _Tensors(backbone.model), copy.deepcopy(backbone.processor)
            return backbone
        model, processor = known[key]
        return Backbone(entry, model.copy(), copy.deepcopy(processor))

    return load_or_copy


def going_on(load: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """load(kind), whose backbones go on with what the first of their kind saw, as the runs of one process do.

    What a tower says about a picture depends, in its last digits, on the pictures that it sees beside it.
    """
    first = cache(load)

    def load_and_go_on(kind: str) -> Backbone:
        backbone = load(kind)
        backbone.adopt_caches(first(kind))
        return backbone

    return load_and_go_on
