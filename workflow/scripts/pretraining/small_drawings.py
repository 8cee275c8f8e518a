"""The drawings that the drawer and its reader learn from: attributes at random, as small as the drawer's pictures."""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from prefmoe.data.choice_drawing import random_attributes
from prefmoe.generation.captions import OPEN, caption, small_drawing
from pretraining.drawings import drawn_once


def _draw(job: tuple[dict[str, str], int]) -> np.ndarray:
    attributes, seed = job
    return small_drawing(attributes, np.random.default_rng(seed))


def draw_small_pool(count: int, seed: int, folder: Path | None = None) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Drawings (count, 32, 32, 3) uint8 with their attributes; kept in the folder, if there is one (`drawn_once`)."""
    jobs = _jobs(count, seed)
    return drawn_once(_draw, jobs, folder, (__file__, "prefmoe.generation.captions")), [one for one, _ in jobs]


def draw_item_masks(count: int, seed: int, folder: Path | None = None) -> np.ndarray:
    """Where the items of the drawings of `draw_small_pool` are, and a pixel around them: (count, 32, 32) of 0 and 1."""
    jobs = [(*job, "items") for job in _jobs(count, seed)]
    return drawn_once(_item_mask, jobs, folder, (__file__, "prefmoe.generation.captions"))


def _jobs(count: int, seed: int) -> list[tuple[dict[str, str], int]]:
    """Attributes of drawings, and the seed of what no attribute describes."""
    rng = np.random.default_rng([seed, 91])
    attributes = [random_attributes(rng) for _ in range(count)]
    return [(one, int(rng.integers(2**62))) for one in attributes]


def _item_mask(job: tuple[dict[str, str], int, str]) -> np.ndarray:
    """What differs when the same items on the same ground have another colour."""
    attributes, seed, _ = job
    other = "azure" if attributes["palette"] == "scarlet" else "scarlet"
    drawn = [_draw((one, seed)).astype(int) for one in (attributes, {**attributes, "palette": other})]
    return maximum_filter((np.abs(drawn[0] - drawn[1]).max(-1) > 24).astype(np.uint8), 3)


def told_of(attributes: dict[str, str], rng: np.random.Generator, untold: float, whole: float) -> str:
    """A caption of a drawing: with a chance of ``whole`` it tells all of its open attributes, otherwise any number of
    them; and now and then there is no caption."""
    everything = rng.random() < whole if 0 < whole < 1 else bool(whole)
    if rng.random() < untold:
        return ""
    told = OPEN if everything else rng.choice(OPEN, rng.integers(len(OPEN) + 1), replace=False).tolist()
    return caption(attributes, told)


def as_pictures(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (n, S, S, 3) as (n, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
