"""Where answers look: attention to the prefix tokens and to the patches of the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.data.benchmark import Example
from prefmoe.inspection.questions import InspectionError, prompts
from prefmoe.models.base import Method
from prefmoe.running.evaluation import answer_probabilities, first_tokens


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


def with_prefix(method: Method) -> Method:
    """The method itself. Raises InspectionError if it puts no soft tokens before a question."""
    if not method.prefix_length:
        raise InspectionError(f"{method.config.label!r} has no prefix to attend to")
    return method


@torch.no_grad()
def attention(method: Method, examples: Sequence[Example]) -> Attention:
    """Runs the questions through a method with a prefix and keeps the attention to prefix and picture.

    Raises InspectionError if the method has no prefix, the backbone was not loaded with attn="eager", or the picture's
    tokens are no grid of patches.
    """
    backbone = with_prefix(method).backbone
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
