"""Leaving out what the last layer says elsewhere changes neither losses, gradients nor answers, on any class."""

import pytest
import torch
from pydantic import TypeAdapter
from small_world import METHODS, PREFMOE, model_folder, small_benchmark
from test_every_class import spoiled
from tiny_models import ARCHITECTURES

from prefmoe import config
from prefmoe.backbones.last_positions import last_positions_only
from prefmoe.backbones.loading import load_backbone
from prefmoe.models import base
from prefmoe.models.base import Method, build_method

EVERY = pytest.mark.parametrize("kind", ARCHITECTURES)


def build(kind: str, content: dict) -> Method:
    settings = TypeAdapter(config.Method).validate_python(content)
    return spoiled(build_method(settings, load_backbone(model_folder(kind)), small_benchmark(), seed=0))


def step(method: Method) -> dict[str, torch.Tensor]:
    """Terms of the loss and gradients of one step, by name."""
    batch = method.collator(small_benchmark().select("train")[:5], with_answer=True)
    for parameter in method.parameters():
        parameter.grad = None
    with method.context(batch):
        terms = method.training_losses(batch)
        sum(terms.values()).backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in terms.items()} | gradients


@EVERY
@pytest.mark.parametrize("content", [METHODS["FFT"], PREFMOE], ids=["FFT", "PrefMoE"])
def test_a_step_is_that_of_all_positions(kind, content, monkeypatch):
    method = build(kind, content)
    short = step(method)
    monkeypatch.setattr(base, "last_positions_only", lambda backbone, count: last_positions_only(backbone, None))
    whole = step(method)
    assert short.keys() == whole.keys()
    for name, value in whole.items():
        close = {"rtol": 1e-4, "atol": 1e-6 + 1e-5 * float(value.abs().max())}
        torch.testing.assert_close(short[name], value, **close, msg=lambda text, name=name: name + text)


@EVERY
@pytest.mark.parametrize("count", [5, 1], ids=["padded", "one"])
def test_states_are_right_at_the_end_alone_and_neither_mlp_nor_attention_sees_others(kind, count, monkeypatch):
    method = build(kind, METHODS["FFT"])
    batch = method.collator(small_benchmark().select("train")[:count], with_answer=True)
    model, seen, queries = method.model.base_model, [], []
    usual = torch.nn.functional.scaled_dot_product_attention

    def attend(query, *args, **named):
        queries.append(query.shape[2])
        return usual(query, *args, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    (mlp,) = (part for name, part in method.backbone.layers[-1].named_modules() if name == "mlp")
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]), prepend=False)
    with torch.no_grad():
        whole = model(**batch.inputs, use_cache=False).last_hidden_state
        with last_positions_only(method.backbone, 3):
            short = model(**batch.inputs, use_cache=False).last_hidden_state
        again = model(**batch.inputs, use_cache=False).last_hidden_state
    handle.remove()
    torch.testing.assert_close(short[:, -3:], whole[:, -3:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(short[:, :-3], whole[:, :-3], atol=1e-3)
    assert torch.equal(again, whole)
    assert len(seen) == 3 and seen[0] == seen[2] == batch.labels.shape[1]
    passes = len(queries) // 3  # of the three, each has as many attentions, and the last layer's comes last
    assert [queries[k * passes - 1] for k in (1, 2, 3)] == [len(batch.labels[0]), 3, len(batch.labels[0])]


def test_spans_reach_back_to_the_answers_and_to_the_question():
    method = build("llava", PREFMOE)
    batch = method.collator(small_benchmark().select("train")[:5], with_answer=True)
    length = batch.labels.shape[1]
    rows, columns = (batch.labels != -100).nonzero(as_tuple=True)
    assert len(rows.unique()) == 5
    assert batch.answer_span == length - (int(columns.min()) - 1)
    assert batch.question_span == length - int(batch.query_mask.nonzero()[:, 1].min()) > batch.answer_span
    assert method.collator(small_benchmark().select("test")[:2], with_answer=False).answer_span == 1


def test_gradient_checkpointing_leaves_nothing_out():
    method = build("llava", PREFMOE).train()
    whole = step(method)
    method.model.activation_checkpointing_enable({"use_reentrant": False})
    for name, value in step(method).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)
