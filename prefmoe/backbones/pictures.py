"""Pictures as a backbone's processor prepares them."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prefmoe.backbones.errors import CollationError
from prefmoe.data.pictures import PictureError, as_rgb, open_picture

Picture = Path | str | Image.Image
"""A picture, or the file that holds it."""


def load_pictures(pictures: Sequence[Picture]) -> list[Image.Image]:
    """The pictures as RGB images, upright and on white; see `prefmoe.data.pictures`. Raises CollationError if a file is
    missing, truncated or no picture that is opened; the message names it."""
    try:
        return [as_rgb(one) if isinstance(one, Image.Image) else open_picture(one) for one in pictures]
    except PictureError as error:
        raise CollationError(str(error)) from error


@dataclass(frozen=True)
class ProcessedPictures:
    """The pictures of one conversation, as its model reads them.

    Attributes:
        inputs: what the image processor made (pixel_values, and image_grid_thw, image_sizes or pixel_attention_mask
            of some models), a row for each picture but for packed patches.
        replacements: for each picture, its image tokens as text.
        digests: for each picture, a hash of its pixels.
    """

    inputs: dict[str, Tensor]
    replacements: tuple[str, ...]
    digests: tuple[str, ...]


def process_pictures(processor: Any, images: Sequence[Image.Image]) -> ProcessedPictures:
    """Prepares the RGB pictures of one conversation with a model's own processor. Raises ValueError if the processor
    takes no picture of such a size (Qwen's none 200 times as long as wide), or makes zeros of all of a picture's values
    where its model takes such a picture for padding (Idefics)."""
    if not images:
        return ProcessedPictures({}, (), ())
    if getattr(processor, "images_kwargs", {}).get("return_row_col_info"):
        # Idefics3 puts the crops of all pictures into one row; picture by picture, they can be told apart.
        parts = [
            processor.image_processor(images=[[image]], return_tensors="pt", return_row_col_info=True)
            for image in images
        ]
        replacements = tuple(processor.replace_image_token(part, image_idx=0) for part in parts)
        tensors = [{key: value for key, value in part.items() if isinstance(value, Tensor)} for part in parts]
        inputs = stack_pictures([ProcessedPictures(part, (), ()) for part in tensors])
    else:
        inputs = processor.image_processor(images=[list(images)], return_tensors="pt")
        if _fenced(processor) and (zero := ~inputs["pixel_values"][0].flatten(1).any(dim=1)).any():
            raise ValueError(f"all values of picture {int(zero.nonzero()[0]) + 1} are 0, which this model leaves out")
        if _fenced(processor):  # Idefics2, whose processor has no method for it
            mark = processor.fake_image_token
            replacements = (f"{mark}{processor.image_token * processor.image_seq_len}{mark}",) * len(images)
        else:
            replacements = tuple(processor.replace_image_token(inputs, image_idx=i) for i in range(len(images)))
    digests = tuple(hashlib.blake2b(i.tobytes() + repr(i.size).encode(), digest_size=16).hexdigest() for i in images)
    return ProcessedPictures(dict(inputs), replacements, digests)


def _fenced(processor: Any) -> bool:
    """Whether a picture's tokens stand between two marks, of which neighbouring pictures share one (Idefics2)."""
    return hasattr(processor, "fake_image_token") and not hasattr(processor, "global_image_tag")


def between(processor: Any, replacements: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The pictures' image tokens as text, as they stand between the parts of a prompt (one part more than pictures).
    Where marks fence pictures, neighbours share one, and a blank parts the last mark from a word."""
    if not _fenced(processor):
        return list(replacements)
    found, mark = [], processor.fake_image_token
    for tokens, before, after in zip(replacements, parts, parts[1:], strict=False):
        text = tokens.removeprefix(mark) if found and not before else tokens
        found.append(text + " " if after and not after[0].isspace() and after[0] != "<" else text)
    return found


def pictures_only(processor_class: type) -> type:
    """The processor class without its video part, which pictures do not need (and which needs torchvision)."""
    if "video_processor" not in processor_class.get_attributes():
        return processor_class

    class PictureProcessor(processor_class):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **kwargs)

    # save_pretrained writes the settings that the signature names, under the name of the class.
    signature = inspect.signature(processor_class.__init__)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "video_processor"]
    PictureProcessor.__init__.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    PictureProcessor.__name__ = processor_class.__name__
    return PictureProcessor


def mean_picture(processor: Any, size: tuple[int, int]) -> Image.Image:
    """A picture (width, height) that shows nothing: in the colour that the processor takes for the mean, else grey.
    Raises CollationError if its mean is no colour."""
    mean = getattr(processor.image_processor, "image_mean", None) or [0.5] * 3
    try:  # never black: Idefics3 takes pixels of 0 for padding
        red, green, blue = (max(1, round(255 * value)) for value in mean)
    except (TypeError, ValueError, OverflowError) as error:
        raise CollationError(f"image_mean: expected three numbers, found {mean!r}") from error
    return Image.new("RGB", size, (red, green, blue))


def stack_pictures(processed: Sequence[ProcessedPictures]) -> dict[str, Tensor]:
    """The image tensors of several conversations, concatenated along the pictures. Padded with zeros: crops where their
    numbers differ, and pictures at the right and below where the sizes do."""
    stacked: dict[str, Tensor] = {}
    shown = [one.inputs for one in processed if one.inputs]
    for key in shown[0] if shown else ():
        values = [inputs[key] for inputs in shown]
        if len({value.shape[1:] for value in values}) > 1:  # (pictures, crops, C, H, W), (pictures, crops, H, W), ...
            most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
            missing = [[(0, want - has) for want, has in zip(most, value.shape[1:], strict=True)] for value in values]
            values = [F.pad(v, sum(reversed(pads), ())) for v, pads in zip(values, missing, strict=True)]
        stacked[key] = torch.cat(values)
    return stacked
