"""What a drawer and its branch for users learn by: seeing the clean picture in one that noise was added to."""

import numpy as np
import torch
from torch import Tensor

from prefmoe.generation.drawer import Drawer


def denoising_loss(
    drawer: Drawer, clean: Tensor, text: Tensor, rng: np.random.Generator, user_tokens: Tensor | None = None,
    emphasis: Tensor | None = None, most: float = 2.0, earliest: float = 0.0,
) -> Tensor:  # fmt: skip
    """The squared error of the clean pictures that a drawer sees in noisy ones, at times and with noise at random.

    It is weighted by the signal-to-noise ratio held between 1 and ``most``: at least 1 as in progressive distillation
    (arXiv 2202.00512), bounded as in Min-SNR (arXiv 2303.09556). Late times, at which a picture can be known from its
    words alone, are drawn more often: in proportion to how late they are.

    Args:
        clean: (B, 3, size, size) in [-1, 1]. text: (B, L, D), of `Drawer.encode_prompts`.
        rng: of times and noise, so that they are the same on every device.
        user_tokens: (B, T, D); zeros are nobody.
        emphasis: weights of pixels (B, 1, size, size); 1 everywhere by default.
        most: the largest weight of a time.
        earliest: share of the schedule before which there is not enough noise to learn from.

    Returns:
        the mean over the batch, a scalar.
    """
    from diffusers.training_utils import compute_snr  # a second and a half, which only those who learn spend

    scheduler = drawer.scheduler
    late = (earliest**2 + (1 - earliest**2) * rng.random(len(clean))) ** 0.5
    times = (scheduler.config.num_train_timesteps * late).astype(int)
    times = torch.from_numpy(times).to(clean.device)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(clean.device)
    seen = drawer.predict(scheduler.add_noise(clean, noise, times), times, text, user_tokens)
    weights = compute_snr(scheduler, times).clamp(1, most)
    errors = (seen - clean).square() * (1 if emphasis is None else emphasis)
    return (errors.mean((1, 2, 3)) * weights).mean()
