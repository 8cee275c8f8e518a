"""The drawer learns to draw: in phases, from whole captions to any, from what covers much of a picture to items."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from prefmoe.generation.denoising import denoising_loss
from prefmoe.generation.drawer import Drawer
from pretraining.place import Place
from pretraining.small_drawings import as_pictures, told_of

log = logging.getLogger(__name__)


class _Learning(nn.Module):
    """What a `Place` keeps of a drawer: its two networks, and their moving average."""

    def __init__(self, drawer: Drawer, decay: float):
        super().__init__()
        self.unet, self.text_encoder = drawer.unet, drawer.text_encoder
        self.learned = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.ema = EMAModel(self.learned, decay=decay, use_ema_warmup=True, power=3 / 4)
        self.averages = nn.ParameterList(nn.Parameter(p, requires_grad=False) for p in self.ema.shadow_params)
        self.ema.shadow_params = [p.data for p in self.averages]  # restored in place


def train_drawer(
    drawer: Drawer, pixels: np.ndarray, attributes: Sequence[dict[str, str]], *, masks: np.ndarray,
    phases: Sequence[dict], batch: int, lr: float, decayed: int, untold: float, ema: float, seed: int = 0,
    path: Path | None = None,
) -> float:  # fmt: skip
    """Trains U-Net and text encoder together; what is left in the drawer is their moving average.

    Args:
        masks: (n, S, S), 1 where the drawings' items are.
        phases: each with its number of steps, and in these steps

            - whole: the share of captions that tell everything; a word whose attribute is always told is learned
              several times sooner;
            - items: how much more pixels of items weigh than others. What nobody can foretell of a ground, its hue and
              where its shapes are, otherwise drowns what items look like;
            - large: the share of a batch in which items are large;
            - most: the bound of the weights of times (`denoising_loss`).
        decayed: so many steps at the end bring the learning rate from ``lr`` down to zero.
        untold: share of drawings without a caption.
        ema: the moving average's decay.
        path: keeps the stage's `Place`.

    Returns:
        the mean loss of the last 200 steps.
    """
    rng, device = np.random.default_rng([seed, 101]), drawer.unet.device
    learning = _Learning(drawer, ema)
    learning.train()
    optimizer = torch.optim.AdamW(learning.learned, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    place = Place(path, rng, learning, optimizer)
    first, losses = place.at.get("step", 0), place.at.get("losses", [])
    learning.ema.optimization_step = first
    pool, of_items = as_pictures(pixels), torch.from_numpy(masks)[:, None].float()
    large = np.flatnonzero([one["size"] == "large" for one in attributes])
    plan = [phase for phase in phases for _ in range(phase["steps"])]
    steps = len(plan)
    for step in tqdm(range(first, steps), desc="drawer", initial=first, total=steps, mininterval=5):
        phase = plan[step]
        chosen = rng.integers(0, len(pool), batch)
        if sought := int(phase["large"] * batch):
            chosen[:sought] = rng.choice(large, sought)
        rows = torch.from_numpy(chosen)
        text = drawer.encode_prompts([told_of(attributes[k], rng, untold, phase["whole"]) for k in chosen])
        emphasis = 1 + (phase["items"] - 1) * of_items[rows].to(device)
        loss = denoising_loss(drawer, pool[rows].to(device), text, rng, emphasis=emphasis, most=phase["most"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning.learned, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100, (steps - step) / decayed)
        optimizer.step()
        learning.ema.step(learning.learned)
        losses = [*losses[-199:], loss.item()]
        if step % 100 == 99:
            log.info("drawer %d: loss %.4f", step + 1, np.mean(losses))
        if place.due(step + 1) and step + 1 < steps:
            place.keep(step=step + 1, losses=losses)
    learning.ema.copy_to(learning.learned)
    learning.eval()
    return float(np.mean(losses))
