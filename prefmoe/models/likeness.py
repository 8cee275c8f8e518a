"""Who is most alike: a block of rows at a time, so that memory grows with the users and not with their square."""

import torch
from torch import Tensor

BLOCK = 1024
"""Rows that are compared with all others at once."""


@torch.no_grad()
def most_alike(asked: Tensor, known: Tensor, count: int, *, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest products of each row of asked (N, H) with the rows of known (T, H), and which rows these are: both
    (N, count), the largest first.

    own: (N,) for each the row of known that is the same one, and is left out.
    """
    values = asked.new_empty(len(asked), count)
    rows = torch.empty(len(asked), count, dtype=torch.long, device=asked.device)
    for start in range(0, len(asked), BLOCK):
        block = slice(start, start + BLOCK)
        likeness = asked[block] @ known.T  # (BLOCK, T)
        if own is not None:
            likeness.scatter_(1, own[block, None], -torch.inf)
        values[block], rows[block] = likeness.topk(count, dim=1)
    return values, rows
