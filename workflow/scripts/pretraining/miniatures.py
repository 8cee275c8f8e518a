"""The miniature models themselves: words, tokenizers, configurations, and their folders."""

import copy
import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prefmoe.backbones.loading import pictures_only
from prefmoe.config.backbone_files import MINIATURE_CARD as CARD
from prefmoe.data import miniature as world
from prefmoe.data.benchmark import FACETS
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET
from prefmoe.data.people import NAMES
from prefmoe.system.files import open_to_readers, write_json
from prefmoe.system.places import MINIATURES, PACKAGE

IMAGE_SIZE, GRID, HIDDEN = 64, 4, 128
"""Pixels the towers see, image tokens per side, hidden size of the language models."""

BLANK = "background"
"""The word whose embedding an image token takes where there is nothing."""

LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }}"
    "{% if m['content'] is string %} {{ m['content'] }} {% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %} {{ p['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ p['text'] }} {% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)

CAPTION_QUESTIONS = ("What is this?", "Name the thing in this picture.")
FACE_QUESTION = "Describe the person."

FOLDERS = dict(zip(("llava", "qwen2.5-vl"), MINIATURES, strict=True))
WEIGHTS = PACKAGE / "weights"


def vocabulary() -> list[str]:
    """Every whole word of the miniature world, in a fixed order."""
    talk = " ".join(t for k in range(40) for _, t in world.small_talk(np.random.default_rng(k), 10))
    questions = " ".join(
        [*world.LIKES_QUESTIONS, *world.NEGATED_QUESTIONS, *world.CHOICE_QUESTIONS.values(),
         *world.PRESENCE_QUESTIONS, world.PLACE_QUESTION, *CAPTION_QUESTIONS, FACE_QUESTION]
    )  # fmt: skip
    phrases = (
        f"{talk} {questions} In terms of enjoys but dislikes and is a person with skin hair in clothes person "
        "I got it Options A B C D yes no Yes No user assistant User preference in profile name image description "
        f"{BLANK} nothing unknown someone enjoy dislike suits there are people picture the this that"
    )
    words = [w for v in ATTRIBUTES.values() for w in v] + list(ITEM_FACET) + list(world.PLACE_OPTIONS)
    words += [*FACETS, *NAMES, *re.findall(r"[A-Za-z]+|[0-9]+", phrases)]
    return list(dict.fromkeys(words))


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: whole words of the world, and single characters for everything else."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if kind == "llava":
        special += ["<image>", "USER:", "ASSISTANT:"]
    else:
        special += [
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ]
    template = LLAVA_TEMPLATE if kind == "llava" else QWEN_TEMPLATE
    wrapped = word_tokenizer(special, vocabulary(), template=template, eos="</s>" if kind == "llava" else "<|im_end|>")
    if kind == "llava":
        wrapped.image_token = "<image>"
    return wrapped


def word_tokenizer(
    special: list[str], words: list[str], *, template: str, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of these words; special: padding, unknown, beginning and end come first."""
    characters = [chr(c) for c in range(33, 127)]
    entries = [*special, *characters, *(f"##{c}" for c in characters), *words]
    ids = {token: i for i, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=60))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token=eos,
        additional_special_tokens=special[4:], padding_side="left", model_max_length=1024,
    )  # fmt: skip
    wrapped.chat_template = template
    return wrapped


def build_model(kind: str, seed: int = 0):
    """An untrained miniature backbone of the real classes.

    Args:
        kind: "llava" (CLIP tower + Llama) or "qwen2.5-vl".

    Returns:
        (model, image processor, tokenizer).
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(kind)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    text = dict(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    if kind == "llava":
        vision = CLIPVisionConfig(
            hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=IMAGE_SIZE // GRID, projection_dim=HIDDEN,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**text, rope_parameters=rope), vision_feature_layer=-1,
            image_token_index=token("<image>"), image_seq_length=GRID * GRID,
        )  # fmt: skip
        model = LlavaForConditionalGeneration(config)
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images = CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size)
    else:
        vision = dict(
            depth=3, hidden_size=96, intermediate_size=192, num_heads=4, patch_size=8, spatial_merge_size=2,
            temporal_patch_size=2, window_size=IMAGE_SIZE, fullatt_block_indexes=[0, 1, 2], out_hidden_size=HIDDEN,
        )  # fmt: skip
        config = Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope | {"rope_type": "default", "mrope_section": [4, 6, 6]}},
            vision_config=vision, image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=False,
        )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(config)
        pixels = IMAGE_SIZE * IMAGE_SIZE
        geometry = dict(patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=pixels, max_pixels=pixels,
                        size={"shortest_edge": pixels, "longest_edge": pixels})  # fmt: skip
        images = Qwen2VLImageProcessorPil(**geometry)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, do_sample=False,
    )  # fmt: skip
    keys_like_queries(model.model.language_model)
    return model, images, tokenizer


@torch.no_grad()
def keys_like_queries(language_model: torch.nn.Module) -> None:
    """Keys start close to queries: equal things attend to each other from the first step."""
    for layer in language_model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight + 0.01 * torch.randn_like(attention.q_proj.weight))


def of_language_model(name: str) -> bool:
    """Whether a parameter belongs to the language model, its output included; the others are the tower's side."""
    return "language_model" in name or name.startswith("lm_head")


def adopt_language_model(model, tokenizer, source, source_tokenizer) -> None:
    """Starts a Qwen2.5-VL text model from the Llama's weights: the same blocks, with attention biases at zero.

    Embedding and output rows are matched by token; the chat markers of one template take the other's rows.
    """
    mine, theirs = model.model.language_model, source.model.language_model
    weights = theirs.state_dict()
    embedding = weights.pop("embed_tokens.weight")
    missing = mine.load_state_dict(weights, strict=False).missing_keys
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            if name in missing and name.endswith("bias"):
                parameter.zero_()
        markers = {"<|im_start|>": "<s>", "user": "USER:", "assistant": "ASSISTANT:", "<|im_end|>": "</s>"}
        known = source_tokenizer.get_vocab()
        for token, row in tokenizer.get_vocab().items():
            other = known.get(markers.get(token, token))
            if other is not None:
                mine.embed_tokens.weight[row] = embedding[other]
                model.lm_head.weight[row] = source.lm_head.weight[other]


def save(model, image_processor, tokenizer, kind: str, folder: Path, card: dict) -> None:
    """Writes a miniature with its processor (`write`)."""
    if kind == "llava":
        processor = LlavaProcessor(
            image_processor, tokenizer, patch_size=IMAGE_SIZE // GRID, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE,
        )  # fmt: skip
    else:
        processor = pictures_only(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)
    write(model, processor, folder, card)


def write(model, processor, folder: Path, card: dict) -> None:
    """Writes a miniature as an ordinary folder of save_pretrained, in half precision, with a card.

    The card (miniature.json) gets the digest of the weights, so that a test can tell whether the two belong together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.config.dtype = torch.float16
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    open_to_readers(folder)
    weights = (folder / "model.safetensors").read_bytes()
    card = {**card, "weights_blake2b": hashlib.blake2b(weights, digest_size=16).hexdigest()}
    write_json(folder / CARD, card)
