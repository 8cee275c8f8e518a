"""Pictures and conversations as DeepSeek-VL2 reads them: tiles, image tokens, and the chat format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor, select_best_resolution

TILED_PICTURES = 2
"""A conversation with more pictures than this shows each of them as a single tile."""

SPECIAL_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>")
"""Tokens that the published processor adds after padding and image token, in this order, if a tokenizer lacks them."""

PAD_TOKEN = "<｜▁pad▁｜>"

# An answer follows the colon without a blank, and is closed by the end of sequence.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set content %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{% endset %}"
    "{% if message['role'] == 'user' %}{{ '<|User|>: ' + content | trim + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|Assistant|>:' + content | trim + eos_token }}"
    "{% else %}{{ content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)
"""The published conversation format as a template; a system message stands before everything, unmarked."""


class DeepseekVLV2ImageProcessor(BaseImageProcessor):
    """Cuts pictures into a global view and tiles, by Pillow alone.

    Args:
        candidate_resolutions: (width, height) that a picture may be resized to; the first one is a single view.
        image_mean, image_std: per channel, of values in [0, 1]; the mean is also the colour of the margins.
    """

    model_input_names = ["pixel_values", "image_tiles"]

    def __init__(
        self,
        candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),),
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.candidate_resolutions = [list(pair) for pair in candidate_resolutions]
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    @property
    def side(self) -> int:
        """Width and height of a view."""
        return self.candidate_resolutions[0][0]

    def preprocess(self, images: Sequence[Any], return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Prepares the pictures of several conversations (a list of lists), or of one (a list).

        Returns pixel_values: (pictures, views, 3, side, side): global view, tiles row by row, zeros. image_tiles:
        (pictures, 2), tiles across and down.
        """
        conversations = [images] if isinstance(images[0], Image.Image) else images
        views, tiles = [], []
        for conversation in conversations:
            for image in conversation:
                image = image.convert("RGB")
                width, height = self.side, self.side
                if len(conversation) <= TILED_PICTURES:
                    candidates = [(height, width) for width, height in self.candidate_resolutions]
                    height, width = select_best_resolution((image.height, image.width), candidates)
                views.append(self._views(image, width, height))
                tiles.append([width // self.side, height // self.side])
        most = max(map(len, views))
        padded = [np.pad(own, [(0, most - len(own)), *[(0, 0)] * 3]) for own in views]
        content = {"pixel_values": np.stack(padded), "image_tiles": np.array(tiles)}
        return BatchFeature(content, tensor_type=return_tensors)

    def _views(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        """The global view and the tiles of a picture at width x height, (views, 3, side, side) float32."""
        side, margin = self.side, tuple(int(255 * value) for value in self.image_mean)
        whole = ImageOps.pad(image, (side, side), color=margin)
        large = ImageOps.pad(image, (width, height), color=margin)
        corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
        tiles = [large.crop((left, top, left + side, top + side)) for left, top in corners]
        values = np.stack([np.asarray(view, dtype=np.float32) for view in (whole, *tiles)]) / 255
        values = (values - np.float32(self.image_mean)) / np.float32(self.image_std)
        return values.transpose(0, 3, 1, 2)


class DeepseekVLV2Processor(ProcessorMixin):
    """Tokenizer and image processor of DeepSeek-VL2; its settings are those of the published processor_config.json.

    Args:
        tokenizer: special tokens that it lacks are added.
        candidate_resolutions, image_mean, image_std: see DeepseekVLV2ImageProcessor.
        patch_size: of the vision tower. downsample_ratio: of the projector.
        image_token: stands for a picture in a prompt.
        chat_template: the published format (CHAT_TEMPLATE) when None.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),),
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        image_token: str = "<image>",
        chat_template: str | None = None,
    ) -> None:
        _complete(tokenizer, image_token)
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_processor = DeepseekVLV2ImageProcessor(candidate_resolutions, image_mean, image_std)
        self.candidate_resolutions = self.image_processor.candidate_resolutions
        self.image_mean, self.image_std = self.image_processor.image_mean, self.image_processor.image_std
        self.patch_size, self.downsample_ratio = patch_size, downsample_ratio
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> DeepseekVLV2Processor:
        """Reads a published folder or a saved one, here or on the hub.

        The tokenizer is tokenizer.json as it stands: the published tokenizer_config.json names a class that would
        rebuild it for another kind of vocabulary.
        """
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **options)
        settings, _ = cls.get_processor_dict(source, **options)
        names = "candidate_resolutions patch_size downsample_ratio image_mean image_std image_token chat_template"
        return cls(tokenizer, **{name: settings[name] for name in names.split() if name in settings})

    def replace_image_token(self, image_inputs: dict[str, torch.Tensor], image_idx: int, **kwargs: Any) -> str:
        """The image tokens of one picture, as text."""
        across, down = (int(count) for count in image_inputs["image_tiles"][image_idx])
        side = math.ceil(self.image_processor.side // self.patch_size / self.downsample_ratio)
        return self.image_token * (side * (side + 1) + 1 + side * down * (side * across + 1))


def _complete(tokenizer: PreTrainedTokenizerFast, image_token: str) -> None:
    """Adds the special tokens that the tokenizer lacks, as the published processor does."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    known = tokenizer.get_vocab()
    missing = [token for token in (image_token, *SPECIAL_TOKENS) if token not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
