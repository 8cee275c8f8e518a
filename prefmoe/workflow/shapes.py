"""The sizes of a backbone, from the registry or from the headers of a folder's files; nothing is loaded."""

import math

from safetensors import safe_open

from prefmoe.config.registry import BackboneEntry, Shape
from prefmoe.system.files import read_json

MEGAPIXEL_TOKENS = 1369
"""Of a picture of 1036 x 1036 pixels, where 28 x 28 make a token."""


class ResourceError(ValueError):
    """A backbone whose shape is not known."""


def shape_of(entry: BackboneEntry) -> Shape:
    """The sizes of a backbone: from the registry, or from the headers of a folder's files. Raises ResourceError if
    neither gives them."""
    if entry.shape is not None:
        return entry.shape
    if entry.folder is None:
        raise ResourceError(f"backbone {entry.name!r} has no `shape` in the registry")
    total = vision = 0
    tower, projector = (path.removeprefix("model.") + "." for path in (entry.paths.vision_tower, entry.paths.projector))
    for path in entry.folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:  # only headers are read, for which torch need not be imported
            for name in file.keys():
                count = math.prod(file.get_slice(name).get_shape())
                total += count
                vision += count if (tower in name and projector not in name) or "image_newline" in name else 0
    content = read_json(entry.folder / "config.json", "the configuration of a backbone", kind=ResourceError)
    text, picture = content.get("text_config", content), content["vision_config"]
    side = picture.get("image_size", 0) // picture["patch_size"]
    latents = content.get("perceiver_config", {}).get("resampler_n_latents", 0)
    return Shape(
        parameters=total,
        vision=vision,
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=text["num_attention_heads"],
        key_value_heads=text["num_key_value_heads"],
        head_size=text.get("head_dim") or 0,
        vocabulary=text["vocab_size"],
        image_tokens=latents or side * side or MEGAPIXEL_TOKENS,
        tied=content.get("tie_word_embeddings", False),
    )
