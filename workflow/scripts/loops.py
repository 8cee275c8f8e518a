"""What the project computes at once, and loops that say the same: what speed.py compares."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from prefmoe import losses
from prefmoe.data.benchmark import FACETS
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.sampling import sample
from prefmoe.models.moe_lora import MixtureOfLoRA, Ranks, Routing

Variant = Callable[[], Any]


def loop_over_experts(x: Tensor, mixture: MixtureOfLoRA, ranks: Ranks) -> Tensor:
    """What MixtureOfLoRA computes, one expert after the other."""
    scale, context = mixture.routing.scale, mixture.routing.context
    output, start = mixture.base(x), 0
    sizes = [ranks.user, *[ranks.preference] * len(FACETS), *[ranks.profile] * 2]
    for size in sizes:
        part = slice(start, start + size)
        hidden = linear(x, mixture.A[part])
        if start == 0:
            hidden = gelu(hidden + context[:, None])
        output = output + scale[:, None, start : start + 1] * linear(hidden, mixture.B[:, part])
        start += size
    return output


def layer_variants(hidden: int, tokens: int, batch: int, device: torch.device) -> dict[str, Variant]:
    """Forward and backward pass of one adapted projection: plain LoRA of equal rank, the mixture, the loop."""
    ranks = Ranks()
    base = nn.Linear(hidden, hidden, bias=False, device=device).requires_grad_(False)
    experts = torch.rand(batch, 8, device=device)
    sizes = torch.tensor([ranks.user, *[ranks.preference] * len(FACETS), *[ranks.profile] * 2], device=device)
    scale = experts.repeat_interleave(sizes, dim=1).requires_grad_()
    context = torch.randn(batch, ranks.user, device=device).requires_grad_()
    mixture = MixtureOfLoRA(base, ranks.total, Routing(scale, context))
    nn.init.normal_(mixture.B)
    x = torch.randn(batch, tokens, hidden, device=device, requires_grad=True)

    def plain() -> Tensor:
        return base(x) + linear(linear(x, mixture.A), mixture.B)

    def step(forward: Callable[[], Tensor]) -> Variant:
        def run() -> None:
            forward().sum().backward()
            for tensor in (x, mixture.A, mixture.B, scale, context):
                tensor.grad = None

        return run

    return {
        "plain LoRA": step(plain),
        "mixture": step(lambda: mixture(x)),
        "loop over experts": step(lambda: loop_over_experts(x, mixture, ranks)),
    }


def loop_over_anchors(residuals: Tensor, groups: Tensor, query: Tensor, pseudo: Tensor, pseudo_groups: Tensor):
    """losses.residual_contrast at its defaults, one anchor and facet after the other."""
    batch, facets, _ = residuals.shape
    contrasts, focals = [], []
    for f in range(facets):
        active = [i for i in range(batch) if groups[i, f] >= 0]
        rows = []
        for i in active:
            own = residuals[i, f] + query[i]
            others = [(residuals[j, f] + query[j], groups[j, f]) for j in active]
            others += [(r + query[i], g) for r, g in zip(pseudo[:, f], pseudo_groups[:, f], strict=True) if g >= 0]
            similar = torch.stack([torch.cosine_similarity(own, other, dim=0) for other, _ in others])
            similar = similar / losses.TEMPERATURE
            positive = torch.stack([group == groups[i, f] for _, group in others])
            p = (similar.softmax(0) * positive).sum().clamp(1e-6, 1)
            rho = sum(bool(groups[j, f] == groups[i, f]) for j in active) / len(active)
            rows.append((-p.log(), -(1 - rho) * (1 - p) * p.log()))
        if rows:
            contrasts.append(torch.stack([row[0] for row in rows]).mean())
            focals.append(torch.stack([row[1] for row in rows]).mean())
    return sum(contrasts) / facets, sum(focals) / facets


def loss_variants(hidden: int, batch: int, pseudo_users: int, device: torch.device) -> dict[str, Variant]:
    """Forward and backward pass of the two residual terms, vectorised and anchor by anchor."""
    residuals = torch.randn(batch, len(FACETS), hidden, device=device, requires_grad=True)
    groups = torch.randint(-1, 5, (batch, len(FACETS)), device=device)
    query = torch.randn(batch, hidden, device=device)
    pseudo = torch.randn(pseudo_users, len(FACETS), hidden, device=device)
    pseudo_groups = torch.randint(-1, 8, (pseudo_users, len(FACETS)), device=device)

    def step(function: Callable[..., tuple[Tensor, Tensor]]) -> Variant:
        def run() -> None:
            contrast, focal = function(residuals, groups, query, pseudo, pseudo_groups)
            (contrast + focal).backward()
            residuals.grad = None

        return run

    return {"vectorised": step(losses.residual_contrast), "loop over anchors": step(loop_over_anchors)}


def drawing_variants(drawer: Drawer, count: int) -> dict[str, Variant]:
    """Pictures of four prompts, each from one noise, for ``count`` users: drawn together, and one after the other.

    First for users with tokens of their own, then for nobody, from as many noises.
    """
    prompts = [f"{number} dogs, {place}" for number in ("two", "three") for place in ("left", "right")]
    prompts = [prompts[k % len(prompts)] for k in range(count)]
    users = torch.randn(count, 4, drawer.width, generator=torch.Generator().manual_seed(0)).to(drawer.device)
    alike, different = [k % 4 for k in range(count)], list(range(count))

    def drawn(noise: list[int], users: Tensor | None, size: int) -> Variant:
        parts = [slice(start, start + size) for start in range(0, count, size)]
        told = [None if users is None else users[part] for part in parts]
        asked = [(prompts[part], noise[part], own) for part, own in zip(parts, told, strict=True)]
        return lambda: torch.cat([sample(drawer, p, noise=n, user_tokens=u) for p, n, u in asked])

    return {
        "users together": drawn(alike, users, count), "users one by one": drawn(alike, users, 1),
        "nobody together": drawn(different, None, count), "nobody one by one": drawn(different, None, 1),
    }  # fmt: skip
