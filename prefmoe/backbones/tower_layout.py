"""Where each place of a picture is among the states that a vision tower hands to its projector."""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.vision_utils import get_vision_window_index

from prefmoe.backbones.backbone import Backbone
from prefmoe.config.registry import BackboneError


@torch.no_grad()
def tower_states(backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the projector receives for pictures: (crops, tokens, D), or packed (tokens of all pictures, D). ``inputs``:
    image tensors, as `prefmoe.backbones.pictures.stack_pictures` gives them."""
    seen: list[Tensor] = []
    handle = backbone.projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        backbone.model.get_image_features(**inputs, return_dict=True)
    finally:
        handle.remove()
    return seen[-1]  # the vision cache may have asked the projector before, for pictures that are new to it


def places(backbone: Backbone, inputs: Mapping[str, Tensor], states: Tensor) -> list[list[Tensor]]:
    """For each picture, for each of its crops, the positions of its places in the flattened states.

    Args:
        inputs: image tensors of a batch. states: what the projector receives for them.

    Returns a long tensor (height, width) per crop, whose entry at (y, x) is a row of states.view(-1, D). Pictures that
    are not cut have one crop; the first crop of one that is shows it whole. Raises BackboneError if the tokens of a
    crop do not form a square.
    """
    if "image_grid_thw" in inputs:
        return _packed(backbone, inputs["image_grid_thw"])
    crops, tokens = states.shape[:2]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise BackboneError(f"backbone {backbone.entry.name!r}: {tokens} tokens per crop, expected a square number")
    counts = [1] * crops
    if "image_sizes" in inputs:
        config = backbone.model.config
        arguments = (config.image_grid_pinpoints, config.vision_config.image_size)
        counts = [image_size_to_num_patches(size, *arguments) for size in inputs["image_sizes"]]
    elif "image_tiles" in inputs:
        counts = [1 + across * down for across, down in inputs["image_tiles"].tolist()]
    elif "pixel_attention_mask" in inputs:
        counts = inputs["pixel_attention_mask"].flatten(2).any(-1).sum(1).tolist()
    grids = torch.arange(crops * tokens).view(crops, side, side)
    found = [list(picture) for picture in grids.split(counts)]
    if "pixel_attention_mask" in inputs:  # Idefics3 shows the whole picture last
        found = [[*picture[-1:], *picture[:-1]] for picture in found]
    return found


def _packed(backbone: Backbone, grids: Tensor) -> list[list[Tensor]]:
    """Qwen2.5-VL packs patches unit by unit: m x m patches that will be merged, one row after the other.

    Without the vision cache, which hands units over in the order of the picture, the tower keeps the order of
    its attention windows.
    """
    tower, m = backbone.vision_tower, backbone.vision_tower.spatial_merge_size
    if backbone.vision_cache is None:
        order, _ = get_vision_window_index(grids.cpu(), m, tower.window_size, tower.patch_size)
        units = torch.argsort(order)
    else:
        units = torch.arange(int(grids.prod(-1).sum()) // m**2)
    inside = m * torch.arange(m)[:, None] + torch.arange(m)  # (m, m)
    found, start = [], 0
    for _, height, width in grids.tolist():
        count = height * width // m**2
        unit = units[start : start + count].view(height // m, 1, width // m, 1)
        found.append([(unit * m**2 + inside[None, :, None, :]).reshape(height, width)])
        start += count
    return found


def nearest(count: int, size: int) -> Tensor:
    """(count,): of ``size`` equal cells, the one in which the centre of each of ``count`` equal cells lies."""
    return (2 * torch.arange(count) + 1) * size // (2 * count)


def quarters(picture: Image.Image) -> list[Image.Image]:
    """Upper left, upper right, lower left, lower right."""
    (x, y), (width, height) = (picture.width // 2, picture.height // 2), picture.size
    boxes = (0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)
    return [picture.crop(box) for box in boxes]


def quarter_states(backbone: Backbone, pictures: Sequence[Image.Image], side: int) -> Tensor:
    """The tower's output for the quarters of B pictures, each read at side x side places: (B, 4 side^2, D)."""
    # As pictures of as many conversations: together in one, some models would see them smaller.
    parts = [[part] for picture in pictures for part in quarters(picture)]
    inputs = backbone.processor.image_processor(images=parts, return_tensors="pt")
    inputs = {key: value.to(backbone.device) for key, value in inputs.items() if isinstance(value, Tensor)}
    states = tower_states(backbone, inputs)
    whole = [crops[0] for crops in places(backbone, inputs, states)]  # 4 B of (height, width)
    read = [where[nearest(side, len(where))][:, nearest(side, where.shape[1])].flatten() for where in whole]
    found = states.flatten(0, -2)[torch.cat(read).to(states.device)].float()
    return found.view(len(pictures), 4 * side**2, -1)
