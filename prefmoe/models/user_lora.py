"""One LoRA per user, trained and asked in batches of many users: every row is multiplied by its own user's matrices."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import UserLoRAMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.adapted_linear import is_plain
from prefmoe.models.base import Method
from prefmoe.models.free_users import trained_rows
from prefmoe.models.growing import with_rows


class UserLoRA(Method, settings=UserLoRAMethod):
    """One PEFT Per User (OPPU: Tan et al. 2024, arXiv 2402.04401): a user's adapter, plugged in when that user asks.

    For user u an adapted projection is ``W x + a B_0 A_0 x + a B_u A_u x``: the adapter 0 is everybody's, and u's own
    learns from u's questions alone. B start at zero, so that an untrained one is the backbone.

    The paper trains one user after the other. Here the A of all users are one tensor, (U, r, in), and the B another: a
    batch takes the rows of its users, and two batched products do for many users what a LoRA does for one.

    Users without training questions get the shared adapter alone (of the paper, the model before its second stage). The
    mean of the others' adapters would be no alternative: the product of mean factors is not the mean of products.

    Departures: both adapters learn at once, where the paper first adapts the model to the task, on other users, and
    then trains each user's; no profile and no retrieved history in the prompt; AdamW over all users' matrices, so
    that somebody's moments go on for a few steps after a question.
    """

    adapts_to_user = True

    def __init__(self, config: UserLoRAMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        trained = trained_rows(benchmark, backbone.device)
        # (U,) a user's place among the adapters, or -1
        self.register_buffer("slot", torch.where(trained, trained.cumsum(0) - 1, -1), persistent=False)
        self.asked = AskedUsers()
        shape = {"users": int(trained.sum()), "rank": config.rank, "pooled_rank": config.pooled_rank}
        for name in backbone.target_modules(config.last_layers):
            base = self.model.get_submodule(name)
            self.model.set_submodule(name, LinearPerUser(base, self.asked, alpha=config.alpha, **shape))
        self.adapters = [p for p in self.model.parameters() if p.requires_grad]

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        self.asked.slot = self.slot[batch.user]
        try:
            yield
        finally:
            self.asked.slot = None

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"adapters": (self.adapters, self.config.lr)}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "trained_users": len(self.benchmark.trained_users)}

    def _append_user(self, groups: list[int], encoded: Any) -> None:
        self.slot = with_rows(self, "slot", self.slot.new_full((1,), -1))


class AskedUsers:
    """Whose adapters all layers take: ``slot`` (B,), -1 for nobody's; None for the plain backbone."""

    slot: Tensor | None = None


class LinearPerUser(nn.Module):
    """A frozen linear layer with a low-rank update for each user, and one for all of them, in the place of that layer.

    Args:
        base: the layer. asked: shared by all layers of the model. users: U adapters. rank: r of each.
        alpha: the updates are alpha / rank * B A x, the shared one's too. pooled_rank: of that one; 0 for none.
    """

    is_adapter = True

    def __init__(
        self, base: nn.Linear, asked: AskedUsers, *, users: int, rank: int, alpha: float, pooled_rank: int
    ) -> None:
        super().__init__()
        self.base_layer, self.asked = base, asked
        device = base.weight.device

        def first(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, base.in_features, device=device).uniform_(-bound, bound))

        bound = 1 / math.sqrt(base.in_features)  # that of torch's linear layers, and of peft's A
        self.lora_A = first(users, rank)
        self.lora_B = nn.Parameter(torch.zeros(users, base.out_features, rank, device=device))
        self.lora_shared_A = first(pooled_rank)
        self.lora_shared_B = nn.Parameter(torch.zeros(base.out_features, pooled_rank, device=device))
        if not pooled_rank:
            for empty in (self.lora_shared_A, self.lora_shared_B):
                empty.requires_grad_(False)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ..., in) to (B, ..., out)."""
        if self.asked.slot is None:
            return self.base_layer(x)
        slot = self.asked.slot.to(x.device)  # layers of a large backbone may live on different devices
        A, B, scale = self._of(slot)
        if is_plain(self.base_layer, self.lora_A, x):
            return RowwiseAdapted.apply(x, self.base_layer.weight, self.base_layer.bias, A, B, scale)
        rows = x.flatten(1, -2).to(A.dtype)  # (B, T, in)
        update = torch.bmm(torch.bmm(rows, A.mT) * scale[:, None], B.mT)
        output = self.base_layer(x)
        return output + update.view(output.shape).to(output.dtype)

    def _of(self, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adapters of a batch's users, slot (B,), the shared one before their own: A (B, R, in), B (B, out, R) and
        factors (B, R), which are 0 for the own adapter of those who have none."""
        count, place = len(slot), slot.clamp_min(0)
        A = torch.cat([self.lora_shared_A.expand(count, -1, -1), self.lora_A.index_select(0, place)], dim=1)
        B = torch.cat([self.lora_shared_B.expand(count, -1, -1), self.lora_B.index_select(0, place)], dim=2)
        known = (slot >= 0).to(A.dtype)[:, None].expand(-1, self.lora_A.shape[1])
        return A, B, self.scale * torch.cat([known.new_ones(count, len(self.lora_shared_A)), known], dim=1)


class RowwiseAdapted(torch.autograd.Function):
    """y = W x + b + B_e (scale_e . A_e x) for each example e, as one step of autograd.

    ``RowwiseAdapted.apply(x, weight, bias, A, B, scale)`` with x (E, ..., in), weight (out, in), bias (out,) or None,
    A (E, R, in), B (E, out, R), scale (E, R). Returns (E, ..., out). Weight, bias and scale get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: Tensor
    ) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])  # (E, T, in)
        flat = rows.flatten(0, 1)
        output = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        hidden = torch.bmm(rows, A.mT).mul_(scale[:, None])  # (E, T, R)
        ctx.save_for_backward(rows, weight, A, B, hidden, scale)
        ctx.shape = x.shape
        return output.view(*rows.shape[:2], -1).baddbmm_(hidden, B.mT).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, A, B, hidden, scale = ctx.saved_tensors
        gradient = gradient.reshape(*rows.shape[:2], -1)  # (E, T, out)
        inner = torch.bmm(gradient, B).mul_(scale[:, None])  # that of A x
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient.flatten(0, 1) @ weight).view_as(rows).baddbmm_(inner, A).view(ctx.shape)
        return to_x, None, None, torch.bmm(inner.mT, rows), torch.bmm(gradient.mT, hidden), None
