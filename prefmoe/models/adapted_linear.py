"""A frozen linear map with its low-rank update as one step of autograd: products and sums that it can do without.

Written with torch's operations, an adapted projection makes a tensor of activations for the map, one for the update
and one for their sum, and three again for their gradients. With the derivative by hand, products add to what is there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


def is_plain(base: nn.Module, A: Tensor, x: Tensor) -> bool:
    """Whether `AdaptedLinear` may take the place of base(x) and its update: frozen whole weights of one precision."""
    return (
        type(base) is nn.Linear
        and type(base.weight) is nn.Parameter
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and base.weight.dtype == A.dtype == x.dtype
        and not torch.is_autocast_enabled(x.device.type)
    )


class AdaptedLinear(torch.autograd.Function):
    """y = W x + b + B (scale . h) with h = A x, of which the first C rows become gelu(A x + context).

    ``AdaptedLinear.apply(x, weight, bias, A, B, scale, context)`` with x (E, ..., in), weight (out, in), bias (out,)
    or None, A (R, in), B (out, R), scale (E, R) or one number, context (E, C) or None; E = examples. Returns
    (E, ..., out). Neither weight nor bias gets a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: Tensor | float,
        context: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])  # (N, in), N = all positions of all examples
        hidden, bent = (rows @ A.T).view(len(x), -1, len(A)), None  # (E, T, R)
        if context is not None:
            bent = hidden[..., : context.shape[1]] + context[:, None]
            hidden[..., : context.shape[1]] = gelu(bent)
        factor = scale[:, None] if isinstance(scale, Tensor) else scale
        scaled = (hidden * factor).flatten(0, 1)  # (N, R)
        output = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        tensor, ctx.number = (scale, 1.0) if isinstance(scale, Tensor) else (None, scale)
        ctx.save_for_backward(rows, weight, A, B, hidden, bent, scaled, tensor)
        ctx.shape = x.shape
        return output.addmm_(scaled, B.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, A, B, hidden, bent, scaled, scale = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])  # (N, out)
        inner, to_scale, to_context = (gradient @ B).view_as(hidden), None, None  # that of scale . h
        if scale is not None:
            to_scale = (inner * hidden).sum(1)
        inner = inner * (ctx.number if scale is None else scale[:, None])  # that of h
        if bent is not None:
            size = bent.shape[-1]
            before = torch.ops.aten.gelu_backward(inner[..., :size], bent)
            inner[..., :size], to_context = before, before.sum(1)
        inner = inner.flatten(0, 1)
        to_x = (gradient @ weight).addmm_(inner, A).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return to_x, None, None, inner.T @ rows, gradient.T @ scaled, to_scale, to_context
