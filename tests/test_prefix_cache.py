"""Shared beginnings of prompts: the same answers as without sharing for every method, with less work."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter
from small_world import METHODS, PREFMOE, small_backbone, small_benchmark
from tiny_models import ARCHITECTURES, DEEPSEEK_VL2, going_on
from transformers import GenerationConfig

from prefmoe import config
from prefmoe.backbones.conversations import encode
from prefmoe.data import prompts
from prefmoe.models.base import build_method
from prefmoe.running import prefix_cache
from prefmoe.running.evaluation import evaluate

KINDS = METHODS | {
    "NT-no-profile": {"kind": "nontuned", "label": "without profile", "profile": "none"},
    "injected": {"kind": "injected", "label": "injected", "pictures": 1},
    **{name: {**PREFMOE, "label": name, "components": name} for name in ("E", "EPICD")},
    "soft prompt": {"kind": "soft_prompt", "label": "prompt", "lr": 1e-2, "tokens": 3},
    "Yo'LLaVA": {"kind": "yollava", "label": "yollava", "lr": 1e-2, "tokens": 3},
    "LOVA3": {**METHODS["LoRA"], "kind": "lova3"},
    "TG-LLaVA": {**METHODS["LoRA"], "kind": "tg_llava", "lr_guidance": 1e-3, "side": 4, "latents": 3},
    "retrieved": {**METHODS["LoRA"], "kind": "retrieved"},
    "one LoRA each": {"kind": "user_lora", "label": "user_lora", "lr": 1e-2, "rank": 2, "alpha": 2, "pooled_rank": 2},
    "history": {"kind": "history", "label": "history", "lr": 1e-2, "width": 8},
    "embedding": {"kind": "embedding_prefix", "label": "embedding", "lr": 1e-2, "width": 8, "pooled_rank": 2},
    "graph": {"kind": "graph_experts", "label": "graph", "lr": 1e-2, "kinds": 4, "size": 4, "experts": 2,
              "expert_rank": 2, "pooled_rank": 2, "neighbours": 2},
    "joint": {"kind": "joint_tokens", "label": "joint", "lr": 1e-2, "tokens": 2},
}
SHARING = dict.fromkeys(("NT-no-profile", "FFT", "LoRA", "LOVA3", "TG-LLaVA"), "talk")
SHARING |= dict.fromkeys(("NT", "injected", "E", "EPICD", "soft prompt", "Yo'LLaVA"), "user")
SHARING |= dict.fromkeys(("one LoRA each", "embedding", "graph"), "user")


backbone_of = going_on(partial(small_backbone, cache_images=True))


def method_of(content: dict, backbone):
    """A method whose trained parameters are not at their start, where adapters would change nothing."""
    settings = TypeAdapter(config.Method).validate_python(content)
    method = build_method(settings, backbone, small_benchmark(), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for group in method.parameter_groups():
            for parameter in group["params"]:
                parameter += 0.1 * parameter.std().nan_to_num(1).clamp_min(0.1) * torch.randn_like(parameter)
    return method


@contextmanager
def counting(method):
    """Counts the prompt positions that the language model computes."""
    counts = []
    handle = method.backbone.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True,
    )
    try:
        yield counts
    finally:
        handle.remove()


def ask(method, reuse: bool, turns: int = 10, batch_size: int = 8) -> tuple[pd.DataFrame, int]:
    """Answers to all questions and the number of positions computed."""
    benchmark = small_benchmark()
    examples = [e for k, e in enumerate(benchmark.select("test")[:24]) if k % 4 < 2]  # four users, both forms
    with counting(method) as counts:
        frame = evaluate(
            method, examples, turns=turns, transcripts=benchmark.transcripts[:2], batch_size=batch_size,
            max_new_tokens=2, reuse_prefixes=reuse,
        )  # fmt: skip
    return frame, sum(counts)


def assert_same(shared: pd.DataFrame, alone: pd.DataFrame) -> None:
    numbers = alone.select_dtypes("number").columns
    pd.testing.assert_frame_equal(shared.drop(columns=numbers), alone.drop(columns=numbers))
    np.testing.assert_allclose(shared[numbers].to_numpy(), alone[numbers].to_numpy(), rtol=0, atol=1e-5)


def test_every_kind_of_method_is_in_these_tests():
    asking = {kind for kind, settings in config.KINDS.items() if not settings.about_choices}
    assert {content["kind"] for content in KINDS.values()} == asking


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_answers_and_probabilities_are_those_without_sharing(kind, name):
    method = method_of(KINDS[name], backbone_of(kind))
    assert method.beginning == SHARING.get(name, "question")
    (shared, less), (alone, more) = ask(method, True), ask(method, False)
    assert_same(shared, alone)
    assert alone["p_yes"].std() > 1e-3 and alone["p_a"].std() > 1e-3
    assert less < 0.75 * more if name in SHARING else less == more


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_can_share(kind):
    method = method_of(KINDS["E"], small_backbone(kind))
    (shared, less), (alone, more) = ask(method, True, turns=2), ask(method, False, turns=2)
    assert_same(shared, alone)
    assert less < more


def conversations_with_a_portrait(backbone, count: int = 8):
    """Questions of two users whose portrait is shown before the question, encoded."""
    benchmark = small_benchmark()
    examples = [e for e in benchmark.select("test") if benchmark.row(e.name) < 2][:count]
    encoded = []
    for example in examples:
        user = benchmark.users[example.name]
        messages = prompts.messages(example, user, profile="image", transcript=benchmark.transcripts[0][:2])
        encoded.append(encode(backbone, messages, prompts.images(example, user, "image")))
    return examples, encoded


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "llava_next", *DEEPSEEK_VL2])
def test_a_portrait_before_the_question_is_shared_too(kind):
    method = method_of(KINDS["NT-no-profile"], small_backbone(kind))
    examples, encoded = conversations_with_a_portrait(method.backbone)
    generation = GenerationConfig(
        max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    with torch.no_grad(), counting(method) as counts:
        shared = prefix_cache.generate(method, examples, encoded, generation)
    assert counts[0] < sum(map(len, encoded)) / 3  # two beginnings, not eight
    plain = method.collator.pad(encoded, examples).inputs
    with torch.no_grad():
        alone = method.model.generate(**plain, generation_config=generation)
    torch.testing.assert_close(shared.logits[0], alone.logits[0], rtol=0, atol=1e-4)
    said = [output.sequences[:, -len(output.logits) :] for output in (shared, alone)]
    assert torch.equal(*said)
    other = replace(encoded[0], pictures=encoded[-1].pictures)  # the same words, somebody else's portrait
    with torch.no_grad():
        mixed = prefix_cache.generate(method, [examples[0]] * 2, [encoded[0], other], generation)
    assert mixed is None


def test_pictures_that_belong_together_stay_together():
    method = method_of(KINDS["NT-no-profile"], small_backbone("llava_onevision"))
    examples, encoded = conversations_with_a_portrait(method.backbone)
    assert prefix_cache.generate(method, examples, encoded, GenerationConfig()) is None


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_the_parts_of_a_conversation_make_it_up_and_the_question_is_in_the_second(kind):
    backbone = small_backbone(kind)
    for conversation in conversations_with_a_portrait(backbone)[1]:
        beginning, end = prefix_cache.split(conversation)
        assert not beginning.query_mask.any() and end.query_mask[0]
        for name in ("input_ids", "prefix_mask", "query_mask", "token_types", "positions"):
            if (whole := getattr(conversation, name)) is not None:
                assert torch.equal(torch.cat([getattr(beginning, name), getattr(end, name)], dim=-1), whole)
        assert beginning.pictures.digests + end.pictures.digests == conversation.pictures.digests
        assert len(beginning.pictures.digests) == len(end.pictures.digests) == 1
        for key, value in conversation.pictures.inputs.items():
            assert torch.equal(torch.cat([beginning.pictures.inputs[key], end.pictures.inputs[key]]), value)


def test_little_in_common_is_not_worth_a_second_pass():
    method = method_of(KINDS["LoRA"], small_backbone())
    (shared, less), (alone, more) = ask(method, True, turns=0), ask(method, False, turns=0)
    assert less == more
    assert_same(shared, alone)
