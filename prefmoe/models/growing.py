"""Tensors that get rows one by one: room is kept behind the last, so that the rows before are seldom copied."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def with_rows(module: nn.Module, name: str, rows: Tensor) -> Tensor:
    """A module's tensor (N, ...) with rows (n, ...) behind it; it is for the caller to put it into the tensor's place.
    The tensor is left as it is, whatever fails. Many calls of one row each take time in proportion to their number."""
    rooms: dict[str, Tensor] = module.__dict__.setdefault("_rooms", {})
    old, room = getattr(module, name), rooms.get(name)
    count = len(old) + len(rows)
    # Whoever moves or replaces the tensor leaves the room behind.
    if room is None or len(room) < count or room.data_ptr() != old.data_ptr() or room.dtype != old.dtype:
        room = old.detach().new_empty(2 * count, *old.shape[1:])
        room[: len(old)] = old.detach()
        rooms[name] = room
    room[len(old) : count] = rows
    return room[:count]
