"""Tiny random models of classes that the registry does not know, saved like real ones."""

from functools import cache
from pathlib import Path

import torch
import transformers
from small_world import _FOLDER, model_folder, small_benchmark
from tiny_models import CHATML_TEMPLATE, PreTrainedTokenizerFast, tiny_tokenizer

from prefmoe.backbones.pictures import pictures_only

UNKNOWN = ("internvl", "mllama", "gemma3", "qwen2_vl")
"""Tiles and image tokens between marks; cross attention; token types and a mask of its own; positions in three axes."""

IMAGE = {
    "internvl": "<IMG_CONTEXT>",
    "mllama": "<|image|>",
    "gemma3": "<image_soft_token>",
    "qwen2_vl": "<|image_pad|>",
}
SPECIAL = {
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "mllama": ["<|python_tag|>", "<|image|>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
}
PLACE = {"internvl": "<IMG_CONTEXT>", "mllama": "<|image|>", "gemma3": "<start_of_image>",
         "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}  # fmt: skip


def any_tokenizer(kind: str, words: str = "") -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the special tokens of a class."""
    tokenizer = tiny_tokenizer("llava_onevision", words)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL[kind]}, replace_extra_special_tokens=False)
    named = {
        "internvl": {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
                     "video_token": "<video>"},
        "mllama": {"image_token": "<|image|>"},
        "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        "qwen2_vl": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    }[kind]  # fmt: skip
    if kind in ("mllama", "gemma3"):
        named["bos_token"] = "<|im_start|>"
    fresh = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        extra_special_tokens=named,
    )  # fmt: skip
    return fresh


def save_any(kind: str, folder: Path, seed: int = 0, words: str = "", **text_changes: int) -> Path:
    """Writes a random model of a class, one of UNKNOWN, in the format of save_pretrained."""
    torch.manual_seed(seed)
    tokenizer = any_tokenizer(kind, words)
    ids = dict(zip(SPECIAL[kind], tokenizer.convert_tokens_to_ids(SPECIAL[kind]), strict=True))
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ) | text_changes  # fmt: skip
    common = {"chat_template": CHATML_TEMPLATE.replace("IMAGE", PLACE[kind])}
    if kind == "internvl":
        config = transformers.InternVLConfig(
            vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                               image_size=[16, 16], patch_size=[4, 4], initializer_range=0.3),
            text_config=text | {"model_type": "llama"}, image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=4,
        )  # fmt: skip
        model = transformers.InternVLForConditionalGeneration(config)
        images = transformers.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=3)
        processor = pictures_only(transformers.InternVLProcessor)(images, tokenizer, image_seq_length=4, **common)
    elif kind == "mllama":
        config = transformers.MllamaConfig(
            vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_global_layers=1,
                               attention_heads=2, image_size=16, patch_size=8, vision_output_dim=48,
                               intermediate_layers_indices=[0], max_num_tiles=2,
                               supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]]),
            text_config=text | {"cross_attention_layers": [1]}, image_token_index=ids["<|image|>"],
        )  # fmt: skip
        model = transformers.MllamaForConditionalGeneration(config)
        with torch.no_grad():  # gates that start at zero would hide the pictures
            for name, parameter in model.named_parameters():
                if "gate" in name and parameter.numel() == 1:
                    parameter.fill_(1.0)
        images = transformers.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=2)
        processor = transformers.MllamaProcessor(images, tokenizer, **common)
    elif kind == "gemma3":
        config = transformers.Gemma3Config(
            vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                               image_size=16, patch_size=4),
            text_config=text | {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8},
            mm_tokens_per_image=4, image_token_index=ids["<image_soft_token>"], boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
        )  # fmt: skip
        model = transformers.Gemma3ForConditionalGeneration(config)
        with torch.no_grad():  # which starts at zero as well
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.3)
        images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=4)
        processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, **common)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        config = transformers.Qwen2VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=dict(depth=2, embed_dim=24, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4,
                               spatial_merge_size=2, temporal_patch_size=2),
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        )  # fmt: skip
        model = transformers.Qwen2VLForConditionalGeneration(config)
        images = transformers.Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
        )
        processor = pictures_only(transformers.Qwen2VLProcessor)(images, tokenizer, **common)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=2, do_sample=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def folder_of(kind: str) -> Path:
    """The folder of a random model that knows the small world's words."""
    return model_folder(kind) if kind not in UNKNOWN else wordy(kind, Path(_FOLDER.name) / f"any-{kind}")


def wordy(kind: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random model of a class, one of UNKNOWN, that knows the small world's words."""
    benchmark = small_benchmark()
    columns = ("question", "preference", "description_moderate")
    words = [*(word for column in columns for word in benchmark.frame[column]), *benchmark.users]
    words += [text for transcript in benchmark.transcripts for _, text in transcript]
    return save_any(kind, folder, seed, " ".join(words))
