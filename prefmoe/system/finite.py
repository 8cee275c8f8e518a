"""Finds the tensors that hold something else than finite numbers, in one pass and with one wait for the device."""

from collections.abc import Iterable

import torch
from torch import Tensor

from prefmoe.system import distributed


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors with a NaN or an infinity, in their order; of a sharded tensor this process's part counts.
    Tensors of whole numbers, those that a quantised layer packs among them, hold nothing else."""
    kept = [(name, distributed.local(tensor)) for name, tensor in named if tensor.is_floating_point()]
    kept = [(name, tensor) for name, tensor in kept if tensor.numel() and not tensor.is_meta]
    if not kept:
        return []
    # The cheapest reduction, and no NaN or infinity can leave a sum finite; one that overflows is looked at twice.
    sums = [tensor.sum() for _, tensor in kept]
    good = torch.stack([value.float().to(sums[0].device) for value in sums]).isfinite().tolist()
    doubtful = [pair for pair, finite in zip(kept, good, strict=True) if not finite]
    return [name for name, tensor in doubtful if not tensor.isfinite().all()]


def check_finite(named: Iterable[tuple[str, Tensor]], where: object, error: type[ValueError] = ValueError) -> None:
    """Raises ``error`` naming where the tensors come from and the first of those that hold a NaN or an infinity."""
    if damaged := not_finite(named):
        raise error(f"{where}: NaN or infinite values in {', '.join(damaged[:5])}")
