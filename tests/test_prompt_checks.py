"""A prompt that a model could not read is refused: too long, or with an added word that is not one token."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Collator
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.errors import PromptError, PromptTooLong
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import TGLLaVAMethod, YoLLaVAMethod
from prefmoe.data.prompts import Wording
from prefmoe.models.base import build_method

WORDS = ("<sks>", "<token0>", "<token1>", "<token2>")
YOLLAVA = YoLLaVAMethod(kind="yollava", label="Yo'LLaVA", lr=1e-2, tokens=3, recognition=0.0)
TG_LLAVA = TGLLaVAMethod(
    kind="tg_llava", label="TG-LLaVA", lr=1e-2, lr_guidance=1e-2, rank=2, alpha=2, dropout=0, side=2, latents=3
)


@pytest.fixture(scope="module")
def like_llama_2(tiny_folder, tmp_path_factory) -> Path:
    """A tiny LLaVA whose tokenizer has the normalizer of Llama 2: a mark before a text, and for each blank."""
    folder = shutil.copytree(tiny_folder("llava"), tmp_path_factory.mktemp("llama2") / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("config", [YOLLAVA, TG_LLAVA], ids=lambda config: config.kind)
def test_every_added_word_is_found_whatever_stands_before_it(like_llama_2, tiny_benchmark, config):
    method = build_method(config, load_backbone(like_llama_2), tiny_benchmark, seed=0)
    encoded = method.collator.encode(tiny_benchmark.examples[0])
    ids, tokenizer = encoded.input_ids.tolist(), method.backbone.tokenizer
    if config is YOLLAVA:
        latents = [tokenizer.convert_tokens_to_ids(word) for word in WORDS[1:]]
        assert ids.count(tokenizer.convert_tokens_to_ids("<sks>")) == encoded.prompt.count("<sks>") == 2
    else:
        latents = [tokenizer.convert_tokens_to_ids(f"<detail{k}>") for k in range(3)]
    assert ids[ids.index(latents[0]) :][:3] == latents


def test_a_word_that_the_tokenizer_does_not_find_is_an_error(like_llama_2, tiny_benchmark):
    backbone = load_backbone(like_llama_2)
    backbone.tokenizer.add_tokens(list(WORDS))  # as the library adds them: found behind a blank only
    wording = Wording(opening="<sks> is <token0><token1><token2>.", name="<sks>", added=WORDS)
    message = r"question 0 \(Ann\): the prompt has '<token1>' 1 times, and 0 times as one token"
    with pytest.raises(PromptError, match=message):
        Collator(backbone, tiny_benchmark, wording=wording).encode(tiny_benchmark.examples[0])


def test_a_word_that_no_prompt_shows_is_an_error(llava, tiny_benchmark):
    llava.tokenizer.add_tokens(["<gone>"])
    with pytest.raises(PromptError, match="has '<gone>' 0 times"):
        Collator(llava, tiny_benchmark, wording=Wording(added=("<gone>",))).encode(tiny_benchmark.examples[0])


def question(words: int) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": " ".join(["tea"] * words)}]}]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "idefics3", "deepseek_vl2_small"])
def test_a_prompt_takes_the_model_s_last_position_and_none_beyond(tiny_backbone, kind):
    backbone: Backbone = tiny_backbone(kind)
    limit = backbone.max_positions
    assert limit == 2048
    one = encode(backbone, question(1)).taken_positions
    assert encode(backbone, question(1 + limit - one)).taken_positions == limit
    with pytest.raises(PromptTooLong, match=f"takes 2,049 positions, and backbone '{backbone.entry.name}' has 2,048"):
        encode(backbone, question(2 + limit - one))
    with pytest.raises(PromptTooLong):  # the answer counts
        encode(backbone, question(1 + limit - one), answer="yes")


@torch.no_grad()
def test_a_profile_without_an_end_has_no_anchor(llava):
    with pytest.raises(PromptTooLong, match="the text 'tea tea .* takes 2,101 positions"):
        llava.text_anchors(["Ann", " ".join(["tea"] * 2100)])
