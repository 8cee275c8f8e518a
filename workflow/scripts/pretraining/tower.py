"""The Idefics2 miniature's tower and perceiver learn to emit the sums of words that stand for a picture."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.data.choice_drawing import ATTRIBUTES, draw_choice_picture, random_attributes
from pretraining.drawings import drawn_once
from pretraining.episodes import NAMES, SIZES, STARTS
from pretraining.idefics2 import LATENTS
from pretraining.miniatures import IMAGE_SIZE
from pretraining.place import Place
from pretraining.sorting import EpisodeReader
from pretraining.vision import shifted, whiten

log = logging.getLogger(__name__)

TOKEN_OF = np.array([next(k for k, names in enumerate(LATENTS) if name in names) for name in NAMES])
"""Which token of a picture tells an attribute."""

HARDNESS = {"item": 1.0, "tilt": 0.5}
"""Weight in the loss of attributes that are read from shapes; the others, seen in a few hundred steps, have 0.2."""


@dataclass(frozen=True)
class ChoicePictures:
    """Drawings with attributes at random: pixels (n, 64, 64, 3) uint8, and the values (n, 9) that they show."""

    pixels: np.ndarray
    values: np.ndarray


def _draw(job: tuple[dict[str, str], int]) -> np.ndarray:
    attributes, seed = job
    picture = draw_choice_picture(attributes, np.random.default_rng(seed))
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.BILINEAR))  # as the image processor does


def draw_choice_pool(count: int, seed: int, folder: Path | None = None) -> ChoicePictures:
    """As many drawings; kept in the folder, if there is one (`drawn_once`)."""
    rng = np.random.default_rng([seed, 61])
    attributes = [random_attributes(rng) for _ in range(count)]
    values = np.array([[ATTRIBUTES[name].index(one[name]) for name in NAMES] for one in attributes])
    jobs = [(one, int(rng.integers(2**62))) for one in attributes]
    return ChoicePictures(drawn_once(_draw, jobs, folder, (__file__, "prefmoe.data.choice_drawing")), values)


@lru_cache(maxsize=2)
def unseen_choice_pictures(count: int = 2000) -> ChoicePictures:
    """Drawings that no stage has seen, for measuring the abilities."""
    return draw_choice_pool(count, seed=1000)


def picture_tokens(model, image_processor, pixels: np.ndarray) -> Tensor:
    """A picture's tokens (n, L, H) of uint8 pictures (n, 64, 64, 3), through the model's own code path."""
    inputs = image_processor(images=[[picture] for picture in pixels], return_tensors="pt").to(model.device)
    return torch.stack(list(model.model.get_image_features(**inputs, return_dict=True).pooler_output))


@torch.no_grad()
def all_tokens(model, image_processor, pool: ChoicePictures) -> Tensor:
    """The tokens of every picture, (n, L, H)."""
    pixels = pool.pixels
    return torch.cat([picture_tokens(model, image_processor, pixels[k : k + 64]) for k in range(0, len(pixels), 64)])


def attribute_logits(tokens: Tensor, reader: EpisodeReader) -> list[Tensor]:
    """For each attribute, how near the token that tells it is to the words of its values."""
    words = reader.table.detach()[reader.value_ids]
    return [
        tokens[:, TOKEN_OF[k]] @ words[start : start + size].T
        for k, (start, size) in enumerate(zip(STARTS, SIZES, strict=True))
    ]


def train_tower(
    model, image_processor, tokenizer, pool: ChoicePictures, *, shapes: dict, tokens: dict, lr: float, seed: int = 0,
    path: Path | None = None,
) -> dict[str, float]:  # fmt: skip
    """Trains the tower, then the tower with projection and perceiver; word embeddings stay as they are.

    Args:
        shapes: steps and batch of a first part, in which a linear probe reads all attributes from the mean of the
            tower's places, a shorter way for gradients; its first steps, as many as ``easy`` says, see large and filled
            items alone.
        tokens: steps and batch of the second part, in which the perceiver's tokens shall be sums of words.
        path: keeps the stage's `Place`.

    Returns:
        for each attribute, the share of pictures that were not trained on whose nearest word is right.
    """
    rng, reader = np.random.default_rng([seed, 71]), EpisodeReader(model, tokenizer)
    vision, connector = model.model.vision_model, model.model.connector
    probe = torch.nn.Linear(vision.config.hidden_size, int(SIZES.sum())).to(model.device)
    parts = torch.nn.ModuleList([vision, probe, connector])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    held, train = np.split(rng.permutation(len(pool.pixels)), [min(400, len(pool.pixels) // 8)])
    large, filled = ATTRIBUTES["size"].index("large"), ATTRIBUTES["style"].index("filled")
    shown = pool.values[train]
    easy = train[(shown[:, NAMES.index("size")] == large) & (shown[:, NAMES.index("style")] == filled)]
    place = Place(path, rng, parts, optimizer)
    first, total = place.at.get("step", 0), shapes["steps"] + tokens["steps"]
    if not first:
        some = image_processor(images=[list(pool.pixels[train[:3000]])], return_tensors="pt")["pixel_values"][0]
        whiten(vision, some)
    with torch.no_grad():
        scale = 12.0 / reader.table[reader.value_ids].square().sum(1).mean()
        spread = reader.in_words(pool.values[held]).var()
    for step in tqdm(range(first, total), desc="tower", initial=first, total=total, mininterval=5):
        probed = step < shapes["steps"]
        among = easy if step < shapes["easy"] else train
        chosen = rng.choice(among, (shapes if probed else tokens)["batch"])
        values = torch.from_numpy(pool.values[chosen]).to(model.device)
        pixels = shifted(pool.pixels[chosen], rng)
        if probed:
            images = image_processor(images=[list(pixels)], return_tensors="pt")["pixel_values"][0].to(model.device)
            found = probe(vision(pixel_values=images).last_hidden_state.mean(1)).split(SIZES.tolist(), -1)
            loss = 0.0
        else:
            told = picture_tokens(model, image_processor, pixels)
            with torch.no_grad():
                target = reader.in_words(pool.values[chosen])
            loss = F.mse_loss(told, target) / spread
            found = [scale * logits for logits in attribute_logits(told, reader)]
        for k, logits in enumerate(found):
            loss = loss + HARDNESS.get(NAMES[k], 0.2) * F.cross_entropy(logits, values[:, k])
        begun = step if probed else step - shapes["steps"]
        left = 1.0 if probed else 0.05 + 0.95 * (1 - begun / tokens["steps"])
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (begun + 1) / 50) * left
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            right = [(one.argmax(-1) == values[:, k]).float().mean().item() for k, one in enumerate(found)]
            shares = dict(zip(NAMES, np.round(right, 2).tolist(), strict=True))
            log.info("tower %d: loss %.3f %s", step + 1, loss.item(), shares)
        if place.due(step + 1) and step + 1 < total:
            place.keep(step=step + 1)
    scores = tower_accuracy(model, image_processor, reader, ChoicePictures(pool.pixels[held], pool.values[held]))
    log.info("tower: %s", {name: round(share, 3) for name, share in scores.items()})
    return scores


@torch.no_grad()
def tower_accuracy(model, image_processor, reader: EpisodeReader, pool: ChoicePictures) -> dict[str, float]:
    """For each attribute, the share of pictures whose nearest word is right."""
    found = attribute_logits(all_tokens(model, image_processor, pool), reader)
    values = torch.from_numpy(pool.values).to(model.device)
    return {name: (one.argmax(-1) == values[:, k]).float().mean().item() for k, (name, one) in enumerate(
        zip(NAMES, found, strict=True))}  # fmt: skip
