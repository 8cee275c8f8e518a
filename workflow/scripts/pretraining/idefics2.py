"""The Idefics2 miniature itself: its words, tokenizer, configuration and folder."""

from string import ascii_letters

import torch
from tokenizers import processors
from transformers import (
    GenerationConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from prefmoe.data.choice_drawing import ATTRIBUTES, prompt_of
from prefmoe.system.places import CHOICE_MINIATURE
from pretraining.miniatures import HIDDEN, IMAGE_SIZE, WEIGHTS, keys_like_queries, word_tokenizer

NAME = CHOICE_MINIATURE
FOLDER = WEIGHTS / NAME

LATENTS = (("number", "item"), ("palette", "style"), ("background", "shadow"), ("size", "place", "tilt"))
"""What each token of a picture tells: the attributes whose words it sums."""

LABEL_WORDS = tuple(ascii_letters)
"""What pictures are sorted by in pre-training: two of these in each episode, never "+" and "-"."""

MARK, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}:{% if m['content'] is string %} {{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %} {{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<end_of_utterance>{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the pictures that people choose between, and single characters for everything else."""
    words = [word for values in ATTRIBUTES.values() for word in values]
    words += [prompt_of("one", item).split()[1] for item in ATTRIBUTES["item"]]
    words += [*ATTRIBUTES, *"The prompt is Score for this image User Assistant".split()]
    tokenizer = word_tokenizer(["<pad>", "<unk>", "<s>", "</s>", MARK, IMAGE, END], words, template=TEMPLATE)
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    return tokenizer


def build_model(seed: int = 0) -> tuple[Idefics2ForConditionalGeneration, Idefics2Processor]:
    """An untrained Idefics2 of a small configuration, with its processor.

    Beside keys that start close to queries, what attention takes from a position starts as a copy of what stands there,
    so that a label can be found by its picture and said from the first steps on.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, initializer_range=0.08,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, sliding_window=None, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    tower = dict(
        hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, image_size=IMAGE_SIZE,
        patch_size=8, initializer_range=0.08,
    )  # fmt: skip
    perceiver = dict(
        hidden_size=HIDDEN, rms_norm_eps=text.rms_norm_eps, resampler_n_latents=len(LATENTS), resampler_depth=2,
        resampler_n_heads=4, resampler_head_dim=32, num_key_value_heads=4, initializer_range=0.08,
    )  # fmt: skip
    config = Idefics2Config(
        vision_config=tower, perceiver_config=perceiver, text_config=text, tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Idefics2ForConditionalGeneration(config)
    unsaid = [[tokenizer.convert_tokens_to_ids(token)] for token in (MARK, IMAGE)]
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, do_sample=False, bad_words_ids=unsaid,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)],
    )  # fmt: skip
    resampler = model.model.connector.perceiver_resampler
    with torch.no_grad():
        keys_like_queries(model.model.text_model)
        for layer in model.model.text_model.layers:
            attention = layer.self_attn
            torch.nn.init.orthogonal_(attention.v_proj.weight, gain=0.7)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
            layer.mlp.down_proj.weight.mul_(0.3)
        model.model.vision_model.embeddings.position_embedding.weight.normal_(0, 0.3)
        resampler.latents.normal_()  # latents that are all alike would stay so
        resampler.norm.weight.fill_(0.08)  # as long as words are
    size = {"shortest_edge": IMAGE_SIZE, "longest_edge": IMAGE_SIZE}
    images = Idefics2ImageProcessorPil(size=size, do_image_splitting=False)
    return model, Idefics2Processor(images, tokenizer, image_seq_len=len(LATENTS), chat_template=TEMPLATE)
