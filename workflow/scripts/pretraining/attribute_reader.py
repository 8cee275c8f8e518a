"""Trains the reader of attributes, on drawings alone that are made worse: a drawer's pictures have softer edges."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.generation.reader import AttributeReader
from pretraining.place import Place

log = logging.getLogger(__name__)

HARD = {"item": 1.0, "tilt": 0.5}
"""Weight in the loss of attributes that are read from shapes; the others have 0.25."""


def indices_of(attributes: list[dict[str, str]]) -> dict[str, Tensor]:
    """Which value of each attribute drawings have, (n,) each."""
    return {name: torch.tensor([values.index(one[name]) for one in attributes]) for name, values in ATTRIBUTES.items()}


def made_worse(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] moved by up to a pixel, half of them blurred, all with noise of their own."""
    count, _, side, _ = pictures.shape
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    left, top = (torch.from_numpy(rng.integers(0, 3, count)) for _ in range(2))
    rows, columns = (start[:, None] + torch.arange(side) for start in (top, left))
    moved = padded[torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None], rows[:, None, :, None],
                   columns[:, None, None, :]]  # fmt: skip
    shares = torch.from_numpy(rng.uniform(0, 0.5, count).astype(np.float32)) * torch.from_numpy(rng.random(count) < 0.5)
    around = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    shares = shares[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(moved.shape, dtype=np.float32))
    spread = torch.from_numpy(rng.uniform(0, 0.06, (count, 1, 1, 1)).astype(np.float32))
    return (moved * (1 - shares) + around * shares + noise * spread).clamp(0, 1)


def train_reader(
    reader: AttributeReader, pixels: np.ndarray, attributes: list[dict[str, str]], *, steps: int, batch: int, lr: float,
    seed: int = 0, path: Path | None = None,
) -> float:  # fmt: skip
    """Trains the reader; the learning rate goes down to zero along a cosine.

    Args:
        pixels: (n, 32, 32, 3) uint8, of these attributes.
        path: keeps the stage's `Place`.

    Returns:
        the mean loss of the last 200 steps.
    """
    rng, device = np.random.default_rng([seed, 111]), reader.device
    wanted = {name: found.to(device) for name, found in indices_of(attributes).items()}
    pool = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    reader.train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
    place = Place(path, rng, reader, optimizer, schedule)
    first, losses = place.at.get("step", 0), place.at.get("losses", [])
    torch.manual_seed(seed + first)  # of dropout
    for step in tqdm(range(first, steps), desc="reader", initial=first, total=steps, mininterval=5):
        chosen = torch.from_numpy(rng.integers(0, len(pool), batch))
        pictures = made_worse(pool[chosen].float() / 255, rng).to(device)
        logits = reader(pictures)
        loss = sum(HARD.get(name, 0.25) * F.cross_entropy(logits[name], wanted[name][chosen]) for name in ATTRIBUTES)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses = [*losses[-199:], loss.item()]
        if step % 250 == 249:
            log.info("reader %d: loss %.3f", step + 1, np.mean(losses))
        if place.due(step + 1) and step + 1 < steps:
            place.keep(step=step + 1, losses=losses)
    reader.eval()
    return float(np.mean(losses))
