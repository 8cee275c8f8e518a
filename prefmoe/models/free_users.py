"""Free vectors per user, which training alone gives a meaning."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefmoe.data.benchmark import Benchmark
from prefmoe.data.sizes import PREFIX_LENGTH
from prefmoe.models.growing import with_rows


@dataclass
class UserTokens:
    """The soft tokens of a batch's users. A free embedding has a prefix and nothing else.

    Attributes:
        prefix: (B, 13, H) name, image, description, then prototype and residual of each facet.
        profile: (B, 3, H) name, image and description tokens.
        profile_anchors: (B, 2, H) the frozen image and description anchors.
        prototypes: (F, H). residuals: (B, F, H).
    """

    prefix: Tensor
    profile: Tensor | None = None
    profile_anchors: Tensor | None = None
    prototypes: Tensor | None = None
    residuals: Tensor | None = None


def prefix_of(profile: Tensor, prototypes: Tensor, residuals: Tensor) -> Tensor:
    """(B, 13, H) from profile (B, 3, H), prototypes (F, H) and residuals (B, F, H), in the order of the prefix."""
    pairs = torch.stack([prototypes.expand_as(residuals), residuals], dim=2)  # (B, F, 2, H)
    return torch.cat([profile, pairs.flatten(1, 2)], dim=1)


class SparseRows(torch.autograd.Function):
    """weight[rows] with a gradient that is sparse in the rows, which SparseAdam takes."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return weight[rows]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], gradient, ctx.shape, check_invariants=False), None


class FreeUsers(nn.Module):
    """Free vectors per user, with neither anchors nor structure: 13 of them are our row "E" (`user_embedding: free`).

    Drawn from N(0, rms^2), rms being that of the backbone's input embeddings. Users without training
    questions get the mean of the trained users' vectors: nothing is known of them.

    Args:
        trained: (U,) bool. hidden: H. rms: standard deviation of the start. length: vectors per user.
        sparse: give the embedding gradients that are sparse in the users of a batch.
    """

    def __init__(
        self, trained: Tensor, hidden: int, rms: float, length: int = PREFIX_LENGTH, *, sparse: bool = False
    ) -> None:
        super().__init__()
        self.sparse = sparse
        if not trained.any():
            raise ValueError("a user embedding needs at least one user with training questions")
        # (U,) a user's row of the embedding, or -1
        self.register_buffer("slot", torch.where(trained, trained.cumsum(0) - 1, -1))
        self.embedding = nn.Parameter(rms * torch.randn(int(trained.sum()), length, hidden))

    def forward(self, rows: Tensor) -> UserTokens:
        """The tokens of users, by row. rows: (B,)."""
        slot = self.slot[rows]  # (B,)
        slot_or_first = slot.clamp_min(0)
        prefix = SparseRows.apply(self.embedding, slot_or_first) if self.sparse else self.embedding[slot_or_first]
        if not self.training:
            prefix = torch.where(slot[:, None, None] >= 0, prefix, self.embedding.mean(0))
        return UserTokens(prefix)

    @torch.no_grad()
    def append(self, count: int) -> None:
        """Adds ``count`` users of whom nothing is known."""
        self.slot = with_rows(self, "slot", self.slot.new_full((count,), -1))


def trained_rows(benchmark: Benchmark, device: torch.device) -> Tensor:
    """(U,) bool: which users of a benchmark have training questions."""
    trained = set(benchmark.trained_users)
    return torch.tensor([name in trained for name in benchmark.users], device=device)
