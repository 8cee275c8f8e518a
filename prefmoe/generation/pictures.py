"""Pictures as small as a drawer's, as tensors and as bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefmoe.backbones.pictures import load_pictures
from prefmoe.generation.captions import reduced


def small_pictures(files: Sequence[Path], size: int) -> Tensor:
    """Pictures reduced to size x size by averaging, (N, 3, size, size) in [0, 1]; each file is read once. Raises
    CollationError naming a file that cannot be read."""
    known: dict[Path, Tensor] = {}
    for file in dict.fromkeys(files):
        picture = reduced(load_pictures([file])[0], size).astype(np.float32) / 255
        known[file] = torch.from_numpy(picture).permute(2, 0, 1)
    return torch.stack([known[file] for file in files])


def as_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures (N, 3, S, S) in [0, 1] as (N, S, S, 3) of 0 to 255."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
