"""What the drawer and its reader can do, on captions and drawings that no stage has seen."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prefmoe.data.choice_drawing import ATTRIBUTES, PROMPTED, random_attributes
from prefmoe.generation.captions import OPEN, caption
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.reader import AttributeReader
from prefmoe.generation.sampling import sample
from pretraining.small_drawings import draw_small_pool

Told = Sequence[tuple[dict[str, str], tuple[str, ...]]]
"""Attributes, and which of the open ones a caption tells."""


def unseen_captions(count: int, seed: int = 1001) -> Told:
    """Attributes at random; every second caption tells all of them, the others any number."""
    rng = np.random.default_rng([seed, 121])
    counts = [len(OPEN) if k % 2 == 0 else rng.integers(len(OPEN)) for k in range(count)]
    return [(random_attributes(rng), tuple(rng.choice(OPEN, told, replace=False).tolist())) for told in counts]


def pictures_of(drawer: Drawer, told: Told, batch: int = 100, **options) -> Tensor:
    """A picture of each caption, (n, 3, S, S), with the noise of its place in the list; options: of `sample`."""
    drawn = []
    for first in range(0, len(told), batch):
        prompts = [caption(*one) for one in told[first : first + batch]]
        drawn.append(sample(drawer, prompts, noise=range(first, first + len(prompts)), **options))
    return torch.cat(drawn)


def measure_drawing(drawer: Drawer, reader: AttributeReader, told: Told, **options) -> dict[str, dict[str, float]]:
    """How often a picture shows what its caption told, as the reader reads it: "drawing palette" -> accuracy and n.

    "drawing the content" is number and item together; of open attributes, only captions that told them count.
    """
    read = reader.read(pictures_of(drawer, told, **options))
    right = {name: read[name].to_numpy() == np.array([one[name] for one, _ in told]) for name in ATTRIBUTES}
    found = {"drawing the content": np.logical_and.reduce([right[name] for name in PROMPTED])}
    for name in ATTRIBUTES:
        counted = [name in PROMPTED or name in said for _, said in told]
        found[f"drawing {name}"] = right[name][counted]
    return {ability: _share(hits) for ability, hits in found.items()}


def measure_reading(reader: AttributeReader, count: int = 2000) -> dict[str, dict[str, float]]:
    """How often the reader is right about drawings that it has not seen: "reading palette" -> accuracy and n."""
    pixels, attributes = draw_small_pool(count, seed=1000)
    read = reader.read(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    return {
        f"reading {name}": _share(read[name].to_numpy() == np.array([one[name] for one in attributes]))
        for name in ATTRIBUTES
    }


def _share(hits: np.ndarray) -> dict[str, float]:
    return {"accuracy": round(float(hits.mean()), 4), "n": len(hits)}
