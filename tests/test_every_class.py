"""Every class of backbone with every method of Table 1 and of the ablation: starts, gradients, padding, small talk.

What the prefix and the key-value cache change on every class is in test_prefix.py, the parts' names and the vision
cache in test_backbones.py.
"""


import pytest
import torch
from pydantic import TypeAdapter
from small_world import METHODS, PREFMOE, small_backbone, small_benchmark
from tiny_models import ARCHITECTURES, going_on

from prefmoe import config
from prefmoe.data.benchmark import Example
from prefmoe.models.base import Method, build_method
from prefmoe.models.moe_lora import MixtureOfLoRA

EVERY = pytest.mark.parametrize("kind", ARCHITECTURES)
ABLATION = ("E", "EP", "EPI", "EPIC", "EPICD")
KINDS = {
    "NT-profile": METHODS["NT"],
    "NT": METHODS["NT"] | {"profile": "none"},
    "FFT": METHODS["FFT"],
    "LoRA": METHODS["LoRA"] | {"dropout": 0.0},
    **{components: PREFMOE | {"components": components} for components in ABLATION},
    "PrefMoE": PREFMOE | {"last_layers": 2},
}
CASES = [
    *((kind, name) for kind in ARCHITECTURES for name in KINDS if name not in ABLATION),
    *(("llava", name) for name in ABLATION),
    *((kind, ABLATION[k % len(ABLATION)]) for k, kind in enumerate(ARCHITECTURES) if kind != "llava"),
]
"""Every class with every method of Table 1, and every step of the ablation with LLaVA and with one or two more."""


backbone_of = going_on(small_backbone)


def build(kind: str, name: str = "PrefMoE") -> Method:
    settings = TypeAdapter(config.Method).validate_python(KINDS[name])
    return build_method(settings, backbone_of(kind), small_benchmark(), seed=0)


def spoiled(method: Method) -> Method:
    """Trained parameters moved away from their start, where adapters change nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for group in method.parameter_groups() for p in group["params"]):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return method


def questions(count: int = 4) -> list[Example]:
    """Some of every kind, of different lengths."""
    examples = small_benchmark().select("test")
    return examples[:: len(examples) // count][:count]


def batch_of(method: Method, with_answer: bool = True):
    return method.collator(questions(), with_answer=with_answer)


def backward(method: Method) -> float:
    batch = batch_of(method)
    with method.context(batch):
        loss = sum(method.training_losses(batch).values())
        loss.backward()
    return float(loss.detach())


@EVERY
def test_without_its_prefix_an_untrained_prefmoe_is_its_backbone(kind):
    method = build(kind).eval()
    batch = batch_of(method, with_answer=False)
    with torch.no_grad(), method.context(batch):
        with_prefix = method.model(**batch.inputs).logits[:, -1]
        method.prefix.tokens = None  # the placeholders stay; the experts are routed as ever
        found = method.model(**batch.inputs).logits[:, -1]
        assert method.routing.scale is not None
    with torch.no_grad():
        expected = small_backbone(kind).model(**batch.inputs).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(with_prefix, expected, atol=1e-2)


@EVERY
def test_gradients_reach_exactly_the_trained_parameters(kind):
    method = build(kind)
    with torch.no_grad():
        for module in method.modules():
            if isinstance(module, MixtureOfLoRA):
                module.B.normal_(std=0.1)
    backward(method.train())
    trained = {id(p) for group in method.parameter_groups() for p in group["params"]}
    moved = {id(p) for p in method.parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == trained and len(trained) > 20


@EVERY
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        method = spoiled(build(kind)).train()
        if checkpointing:
            method.model.activation_checkpointing_enable({"use_reentrant": False})
        backward(method)
        gradients.append([p.grad for group in method.parameter_groups() for p in group["params"]])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_method_takes_a_step_and_comes_back_from_disk(kind, name, tmp_path):
    method = build(kind, name)
    if name.startswith("NT"):
        assert method.parameter_groups() == []
    else:
        groups = [group | {"lr": group["lr"] / 10} for group in method.parameter_groups()]  # random weights are steep
        optimizer = torch.optim.AdamW(groups)
        before = backward(method.train())
        optimizer.step()
        optimizer.zero_grad()
        after = backward(method)
        assert after < before
        method.zero_grad()
    batch = batch_of(method.eval(), with_answer=False)
    with torch.no_grad(), method.context(batch):
        expected = method.model(**batch.inputs).logits
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, small_backbone(kind), small_benchmark())
    with torch.no_grad(), loaded.context(batch):
        assert torch.equal(loaded.model(**batch.inputs).logits, expected)


@EVERY
@pytest.mark.parametrize("name", ["NT-profile", "PrefMoE"])
@torch.no_grad()
def test_a_padded_batch_with_ten_turns_answers_like_single_questions(kind, name):
    """Rows of one batch after no, one and ten turns of small talk, so that paddings differ by hundreds of tokens."""
    method, talk = spoiled(build(kind, name)).eval(), small_benchmark().transcripts[0]
    asked = questions()
    talks = [talk[: 2 * turns] for turns in (0, 10, 1, 10)]
    options = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    options |= dict(output_logits=True, return_dict_in_generate=True)

    def answers(examples, transcripts, **more):
        batch = method.collator(examples, transcripts=transcripts, with_answer=False)
        with method.context(batch):
            output = method.model.generate(**batch.inputs, **options, **more)
        return torch.stack(output.logits, dim=1), batch

    together, batch = answers(asked, talks)
    padding = (batch.inputs["attention_mask"] == 0).sum(1)
    assert padding.min() == 0 and padding.max() > 50
    alone = torch.cat([answers([e], [t])[0] for e, t in zip(asked, talks, strict=True)])
    torch.testing.assert_close(together[:, 0], alone[:, 0], rtol=1e-3, atol=1e-3)
    assert torch.equal(together.argmax(-1), alone.argmax(-1))
    uncached, _ = answers(asked[1:2], talks[1:2], use_cache=False)
    torch.testing.assert_close(uncached, alone[1:2], rtol=1e-3, atol=1e-3)
