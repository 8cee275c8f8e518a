"""Reads what a small picture shows, attribute by attribute: the measure of what a drawer has drawn.

It has learned from drawings alone, never from a drawer's pictures; what it gets wrong on drawings that it has not seen
is on the drawer's card.
"""

from pathlib import Path

import pandas as pd
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.generation.captions import SIZE
from prefmoe.generation.drawer import FOLDER
from prefmoe.generation.saved_networks import check_files, check_weights

READER = FOLDER / "reader"


class ReaderError(ValueError):
    """A reader that cannot be loaded, or something that it cannot read; the message says what was expected."""


class AttributeReader(ModelMixin, ConfigMixin):
    """Four convolutions, the last three of which halve the picture, and a linear head for each attribute.

    Args:
        channels: of the convolutions. hidden: width of what the heads read.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), hidden: int = 192):
        super().__init__()
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(zip((3, *channels), channels, strict=False)):
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if k == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(after), nn.SiLU(),
            ]  # fmt: skip
        side = SIZE // 2 ** (len(channels) - 1)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels[-1] * side**2, hidden))
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits (B, values) of each attribute of pictures (B, 3, 32, 32) in [0, 1]."""
        read = nn.functional.silu(self.body(pictures * 2 - 1))
        return {name: head(read) for name, head in self.heads.items()}

    @torch.no_grad()
    def probabilities(self, pictures: Tensor) -> dict[str, Tensor]:
        """What each attribute's value is, (B, values) in the order of ATTRIBUTES; read in any mode as in evaluation.

        Raises:
            ReaderError: if the pictures have another shape, or are not numbers from 0 to 1.
        """
        if pictures.ndim != 4 or pictures.shape[1:] != (3, SIZE, SIZE):
            raise ReaderError(f"pictures: expected (B, 3, {SIZE}, {SIZE}), got {tuple(pictures.shape)}")
        if not bool(((pictures >= 0) & (pictures <= 1)).all()):  # NaN is neither
            raise ReaderError("pictures: expected numbers from 0 to 1")
        was_training = self.training
        self.eval()
        found = {name: logits.softmax(-1) for name, logits in self(pictures.float()).items()}
        self.train(was_training)
        return found

    def read(self, pictures: Tensor) -> pd.DataFrame:
        """The likeliest value of each attribute: one row a picture, with the columns of ATTRIBUTES. Raises ReaderError
        (`probabilities`)."""
        found = self.probabilities(pictures)
        return pd.DataFrame(
            {name: [ATTRIBUTES[name][k] for k in chances.argmax(-1).tolist()] for name, chances in found.items()}
        )


def load_reader(folder: str | Path = READER) -> AttributeReader:
    """The reader that was trained beside the drawer, in single precision. Raises ReaderError if there is none, or one
    of its files is damaged."""
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    try:
        check_files([Path(folder)])
        reader = AttributeReader.from_pretrained(folder, **options)
        check_weights({Path(folder): reader})
    except (OSError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise ReaderError(f"{folder}: expected the folder of an attribute reader: {error}") from error
    return reader.eval()
