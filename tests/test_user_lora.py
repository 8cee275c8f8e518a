"""One LoRA per user: a mixed batch is what peft's LoRA makes of each user alone, and only the asked learn."""

from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.functional import linear

from prefmoe.config import UserLoRAMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import build_method
from prefmoe.models.user_lora import LinearPerUser, RowwiseAdapted, UserLoRA

BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
SHAPE = {"rank": 2, "alpha": 3.0, "pooled_rank": 0}


def configuration(**changes) -> UserLoRAMethod:
    return UserLoRAMethod(kind="user_lora", label="LoRA per user", lr=1e-2, **(SHAPE | changes))


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    def build(kind: str = "llava", *, benchmark: Benchmark = tiny_benchmark, filled=True, **changes) -> UserLoRA:
        method = build_method(configuration(**changes), tiny_backbone(kind), benchmark, seed=0).eval()
        if filled:
            generator = torch.Generator().manual_seed(1)
            for layer in layers(method):
                with torch.no_grad():
                    for B in (layer.lora_B, layer.lora_shared_B):
                        B.copy_(0.3 * torch.randn(B.shape, generator=generator))
        return method

    return build


def layers(method: UserLoRA) -> list[LinearPerUser]:
    return [module for module in method.model.modules() if isinstance(module, LinearPerUser)]


def of_user(benchmark: Benchmark, name: str, split: str = "train"):
    return [example for example in benchmark.select(split) if example.name == name]


@BOTH
@torch.no_grad()
def test_a_mixed_batch_answers_as_peft_s_lora_does_for_each_user_alone(build, tiny_backbone, tiny_benchmark, kind):
    method = build(kind)
    questions = [of_user(tiny_benchmark, name, "test")[0] for name in tiny_benchmark.users]
    batch = batch_of(method, questions, with_answer=False)
    mixed = logits(method, questions)
    for row in range(len(questions)):
        alone = tiny_backbone(kind)
        names = alone.target_modules(None)
        config = LoraConfig(r=SHAPE["rank"], lora_alpha=SHAPE["alpha"], target_modules=names)
        inject_adapter_in_model(config, alone.model)
        for name, mine in zip(names, layers(method), strict=True):
            theirs = alone.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(mine.lora_A[row])
            theirs.lora_B["default"].weight.copy_(mine.lora_B[row])
        expected = alone.model(**batch.inputs).logits[row]
        shown = batch.inputs["attention_mask"][row].bool()
        torch.testing.assert_close(mixed[row][shown], expected[shown], rtol=1e-3, atol=1e-4)


def test_the_gradients_of_a_mixed_batch_are_each_user_s_own(build, tiny_benchmark):
    """Of the summed answer losses: the batch's is the sum of the users' one after the other; others have none."""
    method = build(pooled_rank=3)
    names = ("Ann", "Cid")
    questions = {name: of_user(tiny_benchmark, name)[:2] for name in names}

    def gradients(examples) -> list[torch.Tensor]:
        method.zero_grad()
        batch = batch_of(method, examples)
        with method.context(batch):
            method.token_losses(batch)[0].sum().backward()
        return [p.grad.clone() for p in method.adapters]

    mixed = gradients([example for name in names for example in questions[name]])
    alone = [gradients(questions[name]) for name in names]
    for together, first, second in zip(mixed, *alone, strict=True):
        torch.testing.assert_close(together, first + second, rtol=1e-3, atol=1e-5)
    rows = [tiny_benchmark.row(name) for name in names]
    for layer, (first, second) in zip(layers(method), _pairs(method, alone), strict=True):
        others = [row for row in range(len(layer.lora_A)) if row not in rows]
        assert first[rows[0]].abs().max() > 0 and second[rows[1]].abs().max() > 0
        assert not first[[*others, rows[1]]].any() and not second[[*others, rows[0]]].any()


def _pairs(method: UserLoRA, alone) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The gradients of each layer's B, of the first and of the second user's questions."""
    places = {id(p): place for place, p in enumerate(method.adapters)}
    return [(alone[0][places[id(layer.lora_B)]], alone[1][places[id(layer.lora_B)]]) for layer in layers(method)]


@pytest.mark.parametrize("bias", [True, False])
def test_one_step_of_autograd_is_the_composed_one(bias):
    torch.manual_seed(0)
    E, T, R, size, out = 3, 4, 2, 5, 6
    x, A, B = torch.randn(E, T, size), torch.randn(E, R, size), torch.randn(E, out, R)
    inputs = [tensor.double().requires_grad_() for tensor in (x, A, B)]
    weight, offset = torch.randn(out, size).double(), torch.randn(out).double() if bias else None
    scale = torch.rand(E, R).double()

    def composed(x, A, B):
        rows = [linear(x[e], weight, offset) + (x[e] @ A[e].T * scale[e]) @ B[e].T for e in range(E)]
        return torch.stack(rows)

    def in_one(x, A, B):
        return RowwiseAdapted.apply(x, weight, offset, A, B, scale)

    torch.testing.assert_close(in_one(*inputs), composed(*inputs))
    seed = torch.randn(E, T, out).double()
    found = torch.autograd.grad((in_one(*inputs) * seed).sum(), inputs)
    expected = torch.autograd.grad((composed(*inputs) * seed).sum(), inputs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("pooled_rank", [0, 3])
def test_whether_layers_are_plain_changes_nothing(build, tiny_benchmark, monkeypatch, pooled_rank):
    method = build(pooled_rank=pooled_rank)
    questions = tiny_benchmark.select("test")[::4]
    quick = logits(method, questions)
    monkeypatch.setattr("prefmoe.models.user_lora.is_plain", lambda *_: False)
    torch.testing.assert_close(logits(method, questions), quick, rtol=1e-4, atol=1e-4)


@BOTH
def test_untrained_it_is_the_backbone(build, tiny_backbone, tiny_benchmark, kind):
    method = build(kind, filled=False, pooled_rank=2)
    batch = batch_of(method, tiny_benchmark.select("test")[:4], with_answer=False)
    with torch.no_grad():
        plain = tiny_backbone(kind).model(**batch.inputs).logits
    torch.testing.assert_close(logits(method), plain)


def test_users_without_training_questions_get_the_shared_adapter_alone(build, tiny_benchmark):
    train = tuple(i for i in tiny_benchmark.splits["train"] if tiny_benchmark.examples[i].name != "Bob")
    without = replace(tiny_benchmark, splits={**tiny_benchmark.splits, "train": train}, digest="without Bob")
    method = build(benchmark=without, pooled_rank=2)
    assert all(len(layer.lora_A) == 3 for layer in layers(method))
    bob, dot = (of_user(without, name, "test")[:2] for name in ("Bob", "Dot"))
    before = logits(method, bob), logits(method, dot)
    with torch.no_grad():
        for layer in layers(method):
            layer.lora_B.zero_()
    torch.testing.assert_close(logits(method, bob), before[0])
    assert not torch.allclose(logits(method, dot), before[1])
    with torch.no_grad():
        for layer in layers(method):
            layer.lora_shared_B.zero_()
    assert not torch.allclose(logits(method, bob), before[0])


def test_a_user_s_questions_leave_other_users_answers_alone(build, tiny_benchmark):
    method = build()
    others = [e for e in tiny_benchmark.select("test") if e.name != "Cid"][:4]
    before = logits(method, others)
    fit(method, 2, batch_of(method, of_user(tiny_benchmark, "Cid")[:3]))
    assert torch.equal(logits(method, others), before)
