"""What a rater says of pictures that are tensors, not files, so that gradients flow into them."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.histories import HistoryBatch, Session, hidden_states, label_logits, picture_features
from prefmoe.backbones.pictures import mean_picture, stack_pictures
from prefmoe.models.raters import Rater
from prefmoe.running.choices import pictures as shown_pictures
from prefmoe.running.choices import told

USERS = 8
"""Users whose pictures are judged at once."""

AT_ONCE = 64
"""Pictures that are looked at together."""


def picture_inputs(backbone: Backbone, pictures: Tensor) -> dict[str, Tensor]:
    """Pictures (N, 3, S, S) in [0, 1] as the backbone's image processor would prepare them: enlarged or reduced
    (bilinear) to the size that it makes of such pictures, and normalised."""
    blank = stack_pictures([backbone.process_pictures([mean_picture(backbone.processor, tuple(pictures.shape[-2:]))])])
    shape = blank["pixel_values"].shape  # (1, crops, 3, H, W), or without crops
    processor = backbone.processor.image_processor
    both = (processor.image_mean, processor.image_std)
    mean, std = (torch.tensor(values).to(pictures)[:, None, None] for values in both)
    small = pictures.shape[-1] <= shape[-1]
    resized = F.interpolate(pictures, shape[-2:], mode="bilinear", align_corners=False, antialias=not small)
    prepared = ((resized.clamp(0, 1) - mean) / std).reshape(len(pictures), *shape[1:])
    others = {key: value.expand(len(pictures), *value.shape[1:]) for key, value in blank.items()}
    return {**others, "pixel_values": prepared.to(others["pixel_values"].dtype)}


def judged(rater: Rater, asked: pd.DataFrame, pictures: Tensor, *, n_ref: int, draw: int) -> Tensor:
    """M+ and M- of every picture, (N, 2), after a history of its user; differentiable in the pictures.

    Args:
        asked: columns user and prompt, a row per picture. pictures: (N, 3, S, S) in [0, 1].
        n_ref, draw: of the history that is told.
    """
    rater.eval()
    users = list(asked.reset_index(drop=True).groupby("user", sort=True).indices.items())
    rater.look_at(shown_pictures(rater.benchmark, {user for user, _ in users}))
    seen, found, order = _look(rater, pictures), [], []
    for start in range(0, len(users), USERS):
        some = users[start : start + USERS]
        sessions = [
            Session(
                told(rater.benchmark, user, n_ref, draw, ()),
                tuple((Path(f"drawn/{k}"), asked["prompt"].iloc[k]) for k in rows),  # names that stand for tensors
            )
            for user, rows in some
        ]
        batch = rater.collator(sessions).to(rater.backbone.device)
        features = _features(rater, batch, seen)
        with rater.context(batch):
            hidden = hidden_states(rater.backbone, batch, features=features)
        logits = label_logits(rater.backbone, hidden, batch.target).float()
        for row, (_, rows) in enumerate(some):
            found.append(logits[row, : len(rows)])
            order += rows.tolist()
    return torch.cat(found)[torch.tensor(order).argsort()]


def _look(rater: Rater, pictures: Tensor) -> Tensor:
    """What the language model sees of tensors, (N, L, H); of equal ones once, where no gradient is asked for."""
    rows, back = pictures, torch.arange(len(pictures))
    if not pictures.requires_grad:
        rows, back = torch.unique(pictures, dim=0, return_inverse=True)
    backbone, parts = rater.backbone, rows.split(AT_ONCE)
    seen = [picture_features(backbone, picture_inputs(backbone, some.to(backbone.device))) for some in parts]
    return torch.cat(seen)[back.to(backbone.device)]


def _features(rater: Rater, batch: HistoryBatch, looked: Tensor) -> Tensor:
    """What the language model sees of a batch's pictures, (U, L, H): of files as noted, of tensors as looked at."""
    drawn = [file.parent.name == "drawn" and not file.is_absolute() for file in batch.files]
    seen = looked[[int(file.name) for file, own in zip(batch.files, drawn, strict=True) if own]]
    with torch.no_grad():
        noted = rater.features([file for file, own in zip(batch.files, drawn, strict=True) if not own]).to(seen)
    mask = torch.tensor(drawn)
    place = torch.where(mask, mask.cumsum(0) - 1, (~mask).cumsum(0) - 1 + len(seen))
    return torch.cat([seen, noted])[place.to(seen.device)]
