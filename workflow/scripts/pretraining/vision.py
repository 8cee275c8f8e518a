"""Stage 2: tower and projector learn to emit the word embeddings of what stands at their place."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.data.drawing import ATTRIBUTES
from pretraining.drawings import LABEL_WORDS, Pictures
from pretraining.miniatures import BLANK, GRID, IMAGE_SIZE
from pretraining.place import Place

log = logging.getLogger(__name__)


def word_ids(tokenizer) -> list[torch.Tensor]:
    """Token ids of the words of each label column."""
    return [torch.tensor(tokenizer.convert_tokens_to_ids(words)) for words in LABEL_WORDS]


def image_tokens(model, image_processor, pixels: np.ndarray) -> torch.Tensor:
    """Projected image tokens (n, 16, H) of uint8 pictures (n, 64, 64, 3), through the model's own code path."""
    inputs = image_processor(images=list(pixels), return_tensors="pt").to(model.device)
    features = model.model.get_image_features(**inputs).pooler_output
    return torch.stack([f.reshape(GRID * GRID, -1) for f in features])


def vision_targets(labels: torch.Tensor, table: torch.Tensor, ids: Sequence[torch.Tensor], blank: int) -> torch.Tensor:
    """The sum of the embeddings of a token's words, scaled to the norm of one word; (n, 16, 8) -> (n, 16, H)."""
    total = table.new_zeros(*labels.shape[:2], table.shape[1])
    for column, words in enumerate(ids):
        named = labels[..., column] >= 0
        total[named] += table[words[labels[..., column][named]]]
    count = (labels >= 0).sum(-1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1).sqrt(), table[blank])


def shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random translations by up to four pixels, and small changes of brightness: cheap new pictures."""
    dy, dx = rng.integers(-4, 5, 2)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    moved = padded[:, 4 + dy : 4 + dy + IMAGE_SIZE, 4 + dx : 4 + dx + IMAGE_SIZE].astype(np.float32)
    gain = rng.uniform(0.93, 1.07, (len(pixels), 1, 1, 3))
    return np.clip(moved * gain, 0, 255).astype(np.uint8)


def vision_accuracy(tokens: torch.Tensor, labels: torch.Tensor, table: torch.Tensor, ids) -> dict[str, float]:
    """Share of labelled image tokens whose nearest word is right, per label column."""
    names = ["item", *ATTRIBUTES, "place"]
    result = {}
    for column, name in enumerate(names):
        named = labels[..., column] >= 0
        scores = tokens[named] @ table[ids[column]].T
        result[name] = (scores.argmax(-1) == labels[..., column][named]).float().mean().item()
    return result


@torch.no_grad()
def pool_features(model, image_processor, pool: Pictures) -> torch.Tensor:
    """Projected image tokens of every picture of the pool, (n, 16, H) in half precision."""
    parts = [
        image_tokens(model, image_processor, pool.pixels[k : k + 64]).half() for k in range(0, len(pool.pixels), 64)
    ]
    return torch.cat(parts)


def whiten_patches(model, image_processor, pool: Pictures) -> None:
    """Starts the patch embedding as a PCA whitening of the pool's patches: shape is seen beside colour at once."""
    some = pool.pixels[:: max(1, len(pool.pixels) // 3000)]
    pixels = image_processor(images=list(some), return_tensors="pt")["pixel_values"].float()
    whiten(getattr(model.model, "vision_tower", None) or model.model.visual, pixels)


def whiten(vision: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Whitens a tower's first convolution for pictures (n, 3, H, W), or patches of them (n, values)."""
    convolution = next(m for m in vision.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)))
    weight = convolution.weight
    if pixels.ndim == 4:  # pictures: cut them into patches; Qwen's processor has done so already
        size = weight.shape[-1]
        pixels = F.unfold(pixels, size, stride=size).transpose(1, 2)
    patches = pixels.reshape(-1, weight[0].numel())
    values, directions = torch.linalg.eigh(torch.cov(patches[torch.randperm(len(patches))[:20000]].T))
    top = directions[:, -weight.shape[0] :] / (values[-weight.shape[0] :].clamp(min=0) + 1e-2).sqrt()
    with torch.no_grad():
        weight.copy_(0.5 * top.T.reshape(weight.shape))


def train_vision(
    model, image_processor, tokenizer, pool: Pictures, *, steps: int, lr: float, batch: int = 64, seed: int = 0,
    path: Path | None = None,
) -> dict:  # fmt: skip
    """Stage 2. Trains tower and projector; word embeddings stay as they are. ``path`` keeps its `Place`.

    Returns:
        accuracy per label column on pictures that were not trained on.
    """
    rng = np.random.default_rng([seed, 21])
    table = model.get_input_embeddings().weight.detach().clone()
    ids, blank = [words.to(table.device) for words in word_ids(tokenizer)], tokenizer.convert_tokens_to_ids(BLANK)
    vision = [p for name, p in model.model.named_parameters() if not name.startswith("language_model")]
    optimizer = torch.optim.AdamW(vision, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    scale = 12.0 / table.norm(dim=1).mean() ** 2
    order = rng.permutation(len(pool.pixels))
    held, train = np.split(order, [min(512, len(order) // 8)])
    place = Place(path, rng, model, optimizer, schedule)
    first = place.at.get("step", 0)
    if not first:
        whiten_patches(model, image_processor, pool)
    bar = tqdm(range(first, steps), desc="vision", initial=first, total=steps, mininterval=5)
    for step in bar:
        chosen = rng.choice(train, batch, replace=False)
        tokens = image_tokens(model, image_processor, shifted(pool.pixels[chosen], rng))
        labels = torch.from_numpy(pool.labels[chosen]).to(table.device)
        target = vision_targets(labels, table, ids, blank)
        loss = 4.0 * F.mse_loss(tokens, target) / target.var()
        for column, words in enumerate(ids):
            named = labels[..., column] >= 0
            weight = 1.0 if column == 0 else 0.5
            loss = loss + weight * F.cross_entropy(scale * tokens[named] @ table[words].T * (1 if column == 0 else 2.4),
                                                   labels[..., column][named])  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vision, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 249 or step == steps - 1:
            with torch.no_grad():
                got = torch.cat(
                    [
                        image_tokens(model, image_processor, pool.pixels[held[i : i + 64]])
                        for i in range(0, len(held), 64)
                    ]
                )
            scores = vision_accuracy(got, torch.from_numpy(pool.labels[held]).to(table.device), table, ids)
            log.info("vision %d: loss %.3f %s", step + 1, loss.item(), {k: round(v, 3) for k, v in scores.items()})
        if place.due(step + 1) and step + 1 < steps:
            place.keep(step=step + 1)
    return scores
