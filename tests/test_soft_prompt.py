"""A soft prompt per user: trained alone, each user's by that user's questions, in front of the prompt."""

from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits
from torch.nn.functional import cross_entropy

from prefmoe.config import SoftPromptMethod
from prefmoe.models.base import build_method
from prefmoe.models.prefix import PrefixHook

CONFIG = SoftPromptMethod(kind="soft_prompt", label="Soft prompt", lr=1e-2, tokens=3)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def of_user(benchmark, name: str, split: str = "train"):
    return [example for example in benchmark.select(split) if example.name == name]


@BOTH
def test_a_user_s_questions_train_that_user_s_prompt_alone(tiny_backbone, tiny_benchmark, kind):
    method = build_method(CONFIG, tiny_backbone(kind), tiny_benchmark, seed=0)
    before = method.users.embedding.detach().clone()
    assert before.shape == (4, 3, method.backbone.hidden_size)
    fit(method, 3, batch_of(method, of_user(tiny_benchmark, "Bob")[:3]))
    changed = (method.users.embedding - before).abs().amax((1, 2)) > 0
    assert changed.tolist() == [name == "Bob" for name in tiny_benchmark.users]


@BOTH
@torch.no_grad()
def test_it_is_the_backbone_behind_the_user_s_vectors(tiny_backbone, tiny_benchmark, kind):
    method = build_method(CONFIG, tiny_backbone(kind), tiny_benchmark, seed=0).eval()
    batch = batch_of(method, tiny_benchmark.select("train")[:5])
    backbone = tiny_backbone(kind)
    rows = [list(tiny_benchmark.users).index(tiny_benchmark.examples[i].name) for i in batch.index.tolist()]
    with PrefixHook(backbone.embed_tokens).active(method.users.embedding[rows], batch.prefix_mask):
        out = backbone.model(**batch.inputs).logits
    answered = batch.labels[:, 1:] != -100
    expected = cross_entropy(out[:, :-1][answered], batch.labels[:, 1:][answered])
    with method.context(batch):
        torch.testing.assert_close(method.training_losses(batch)["answer"], expected)


def test_a_user_without_training_questions_gets_the_mean_prompt(tiny_backbone, tiny_benchmark):
    train = tuple(i for i in tiny_benchmark.splits["train"] if tiny_benchmark.examples[i].name != "Dot")
    benchmark = replace(tiny_benchmark, splits={**tiny_benchmark.splits, "train": train}, digest="without Dot")
    method = build_method(CONFIG, tiny_backbone(), benchmark, seed=0).eval()
    assert len(method.users.embedding) == 3
    questions = of_user(benchmark, "Dot", "test")[:2]
    before = logits(method, questions)
    with torch.no_grad():
        method.users.embedding.copy_(method.users.embedding.mean(0).expand_as(method.users.embedding))
    torch.testing.assert_close(logits(method, questions), before)
    with torch.no_grad():
        method.users.embedding[1] += 1.0
    assert not torch.allclose(logits(method, questions), before)
