"""Where answers look: attention to the prefix tokens and to the patches of the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from prefmoe.analysis import statistics
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.backbones.pictures import load_pictures
from prefmoe.data.benchmark import FACETS, Example
from prefmoe.inspection.questions import InspectionError, asked_text, prompts
from prefmoe.inspection.users import PREFIX_TOKENS
from prefmoe.models.base import Method
from prefmoe.running.evaluation import answer_probabilities, first_tokens


def visible_part(backbone: Backbone, path: Path) -> Image.Image:
    """The part of a picture that the backbone sees: its processor may crop the middle after resizing."""
    (picture,) = load_pictures([path])
    processor = backbone.processor.image_processor
    if not getattr(processor, "do_center_crop", False):
        return picture
    scale = min(picture.size) / processor.size["shortest_edge"] if processor.do_resize else 1.0
    crop = (scale * processor.crop_size["width"], scale * processor.crop_size["height"])
    left, top = ((whole - part) / 2 for whole, part in zip(picture.size, crop, strict=True))
    return picture.crop((round(left), round(top), round(left + crop[0]), round(top + crop[1])))


@dataclass(frozen=True)
class Attention:
    """Where questions look, averaged over heads; B questions, L layers. A layer's attention sums to 1 over all tokens.

    Attributes:
        answer_to_prefix: (B, L, 13) from the position that predicts the answer.
        image_to_prefix: (B, L, 13) from the picture's tokens, averaged.
        answer_to_image: for each question (L, h, w) from the answer's position to the picture's patches.
        even: (B,) what each token would get if a question's attention were spread evenly from its answer's position.
        p_yes: (B,) probability of "yes" among yes and no (NaN for multiple choice).
    """

    answer_to_prefix: NDArray
    image_to_prefix: NDArray
    answer_to_image: list[NDArray]
    even: NDArray
    p_yes: NDArray

    def table(self, examples: Sequence[Example]) -> pd.DataFrame:
        """Long form: index, user, question, origin ("answer", "image"), layer (from 1), token, share."""
        parts = []
        for origin, shares in (("answer", self.answer_to_prefix), ("image", self.image_to_prefix)):
            row, layer, token = (axis.ravel() for axis in np.indices(shares.shape))
            parts.append(
                pd.DataFrame(
                    {
                        "index": [examples[r].index for r in row],
                        "user": [examples[r].name for r in row],
                        "question": [asked_text(examples[r]) for r in row],
                        "origin": origin,
                        "layer": layer + 1,
                        "token": np.array(PREFIX_TOKENS)[token],
                        "share": shares.ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def budget(self) -> pd.DataFrame:
        """Per layer, the mean share of the answer's attention on the prefix, on the picture and on everything else."""
        prefix = self.answer_to_prefix.sum(2).mean(0)
        image = np.mean([grid.sum((1, 2)) for grid in self.answer_to_image], axis=0)
        layers = pd.Index(range(1, len(prefix) + 1), name="layer")
        return pd.DataFrame({"prefix": prefix, "image": image, "other tokens": 1 - prefix - image}, index=layers)


@torch.no_grad()
def attention(method: Method, examples: Sequence[Example]) -> Attention:
    """Runs the questions through a method with a prefix and keeps the attention to prefix and picture.

    Raises InspectionError if the method has no prefix, the backbone was not loaded with attn="eager", or the picture's
    tokens are no grid of patches.
    """
    if not method.prefix_length:
        raise InspectionError(f"{method.config.label!r} has no prefix to attend to")
    backbone = method.backbone
    if backbone.model.config.get_text_config()._attn_implementation != "eager":
        raise InspectionError(f"attention maps need load_backbone({backbone.entry.name!r}, attn='eager')")
    batch = prompts(method, examples)
    with method.context(batch):
        output = method.model(**batch.inputs, use_cache=False, output_attentions=True)
    maps = torch.stack([layer.float().mean(1) for layer in output.attentions], dim=1)  # (B, L, T, T)
    on_image = batch.inputs["input_ids"] == backbone.image_token_id  # (B, T)
    answer, image, patches = [], [], []
    for row, shares in enumerate(maps):
        prefix = batch.prefix_mask[row]
        answer.append(shares[:, -1, prefix])
        image.append(shares[:, on_image[row]][:, :, prefix].mean(1))
        height, width = _patch_grid(backbone, batch, row, int(on_image[row].sum()))
        patches.append(shares[:, -1, on_image[row]].reshape(-1, height, width).cpu().numpy())
    tokens = first_tokens(backbone.tokenizer, letters=method.config.answers)
    known = answer_probabilities(output.logits[:, -1], examples, tokens)
    return Attention(
        answer_to_prefix=torch.stack(answer).cpu().numpy(),
        image_to_prefix=torch.stack(image).cpu().numpy(),
        answer_to_image=patches,
        even=1 / batch.inputs["attention_mask"].sum(1).cpu().numpy(),
        p_yes=known["p_yes"].to_numpy(),
    )


def attention_by_group(method: Method, examples: Sequence[Example], batch_size: int = 64) -> pd.DataFrame:
    """Mean attention to each prefix token, over layers and heads, by kind of question.

    Returns origin ("answer", "image"), group (the facet asked about, or "recognition"), token, value, low, high
    (cluster bootstrap over users), n (questions). Raises InspectionError: see `attention`.
    """
    shares: dict[str, list[NDArray]] = {"answer": [], "image": []}
    for start in range(0, len(examples), batch_size):
        found = attention(method, examples[start : start + batch_size])
        shares["answer"].append(found.answer_to_prefix.mean(1))
        shares["image"].append(found.image_to_prefix.mean(1))
    users = np.array([example.name for example in examples])
    asked = np.array([example.concept if example.facet_id >= 0 else "recognition" for example in examples])
    table = []
    for origin, parts in shares.items():
        values = np.concatenate(parts)  # (N, 13)
        for group in [name for name in (*FACETS, "recognition") if name in asked]:
            inside = asked == group
            for token, column in zip(PREFIX_TOKENS, values[inside].T, strict=True):
                estimate = statistics.cluster_bootstrap(column, users[inside])
                table.append({"origin": origin, "group": group, "token": token, **estimate})
    return pd.DataFrame(table)


def own_residual(by_group: pd.DataFrame, origin: str = "answer") -> pd.DataFrame:
    """Whether the residual of the facet that is asked about gets more attention than it gets otherwise.

    ``by_group``: from `attention_by_group`. Returns facet, value, low, high, n (attention to its residual by questions
    about it), elsewhere (the mean attention to the same token by questions about other facets).
    """
    shares = by_group[by_group["origin"] == origin].set_index(["group", "token"])
    facets = [facet for facet in FACETS if (facet, f"r {facet}") in shares.index]
    table = []
    for facet in facets:
        token = f"r {facet}"
        elsewhere = [shares.loc[(other, token), "value"] for other in facets if other != facet]
        own = shares.loc[(facet, token), ["value", "low", "high", "n"]].to_dict()
        own["n"] = int(own["n"])
        table.append({"facet": facet, **own, "elsewhere": float(np.mean(elsewhere)) if elsewhere else math.nan})
    return pd.DataFrame(table)


def _patch_grid(backbone: Backbone, batch: Batch, row: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of the image tokens of a question with one picture."""
    if "image_grid_thw" in batch.inputs:
        merge = backbone.vision_tower.spatial_merge_size
        _, height, width = (batch.inputs["image_grid_thw"][row] // torch.tensor([1, merge, merge])).tolist()
    else:
        height = width = math.isqrt(tokens)
    if height * width != tokens:
        raise InspectionError(f"{backbone.entry.name!r}: {tokens} image tokens are no {height} x {width} patches")
    return height, width
