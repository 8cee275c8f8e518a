"""The adapted projection in one step of autograd is the one written out, and PEFT's LoRA is PEFT's."""

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.functional import gelu

from prefmoe.models.adapted_linear import AdaptedLinear, is_plain
from prefmoe.models.lora import QuickLinear, install_lora


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def written_out(x, weight, bias, A, B, scale, context):
    """Example by example, as the equations say."""
    rows = []
    for e, example in enumerate(x):
        hidden = example @ A.T
        if context is not None:
            size = context.shape[1]
            hidden = torch.cat([gelu(hidden[..., :size] + context[e]), hidden[..., size:]], dim=-1)
        hidden = hidden * (scale[e] if isinstance(scale, torch.Tensor) else scale)
        rows.append(example @ weight.T + (0 if bias is None else bias) + hidden @ B.T)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 1, 4, 6)], ids=["tokens", "latents"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["number", "scale", "context"])
def test_outputs_and_gradients_are_those_of_the_equations(shape, bias, kind):
    torch.manual_seed(0)
    x, A, B = draw(*shape), draw(4, 6), draw(5, 4)
    weight, offset = draw(5, 6).detach(), draw(5).detach() if bias else None
    scale = 0.5 if kind == "number" else draw(3, 4)
    context = draw(3, 2) if kind == "context" else None
    arguments = (x, weight, offset, A, B, scale, context)
    needed = [value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad]
    found, expected = AdaptedLinear.apply(*arguments), written_out(*arguments)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    gradients = zip(*(torch.autograd.grad(y, needed, towards) for y in (found, expected)), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs)


def test_inputs_that_need_no_gradient_get_none():
    x, A, B = draw(2, 3, 6).detach(), draw(4, 6), draw(5, 4)
    AdaptedLinear.apply(x, draw(5, 6).detach(), None, A, B, 1.0, None).sum().backward()
    assert x.grad is None and A.grad is not None and B.grad is not None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_is_pefts(llava, dropout, monkeypatch):
    install_lora(llava, None, rank=3, alpha=6, dropout=dropout)
    layers = [module for module in llava.model.modules() if isinstance(module, LoraLinear)]
    assert layers and all(type(layer) is QuickLinear for layer in layers)
    layer = layers[0].train()
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 3, layer.in_features)
    quick = []
    monkeypatch.setattr(AdaptedLinear, "apply", lambda *args: quick.append(args) or _apply(*args))
    outputs = []
    for forward in (layer.forward, super(QuickLinear, layer).forward):
        torch.manual_seed(0)
        outputs.append(forward(x))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    assert len(quick) == (dropout == 0)
    layer.merge()
    torch.testing.assert_close(layer.eval()(x), super(QuickLinear, layer).forward(x))
    assert len(quick) == (dropout == 0)


_apply = AdaptedLinear.apply


def test_weights_that_learn_or_are_of_another_precision_are_left_to_torch():
    base, A, x = nn.Linear(6, 5).requires_grad_(False), torch.randn(4, 6), torch.randn(2, 6)
    assert is_plain(base, A, x)
    assert not is_plain(base, A, x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(base, A, x)
    assert not is_plain(base.requires_grad_(True), A, x)
    assert not is_plain(type("Other", (nn.Linear,), {})(6, 5).requires_grad_(False), A, x)
