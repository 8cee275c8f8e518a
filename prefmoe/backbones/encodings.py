"""What a backbone has read: conversations as tensors, and the memory of them that all copies of it share."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from prefmoe.backbones.pictures import ProcessedPictures

T = TypeVar("T")

REMEMBERED = 4096
"""How many values of one kind are remembered before all of them are forgotten."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as unpadded tensors.

    Attributes:
        input_ids: (T,) long: prefix placeholders, rendered prompt and, if given, answer and end of sequence.
        labels: (T,) long, -100 but at the answer and the end of sequence; None without an answer.
        query_mask: (T,) bool, True at the final turn's text and image tokens.
        prefix_mask: (T,) bool, True at the placeholders.
        token_types: (T,) long, 1 at image tokens, or None where the model wants none.
        positions: (3, T) long, multimodal positions where the model has them; else None. They are those that the
            model would compute in every forward, row by row.
        pictures: the image tensors.
        earlier_pictures: how many of the pictures come before the final turn.
        prompt_digest: a hash of the rendered prompt and of its pictures.
        prompt: the rendered prompt, image tokens not expanded.
        inputs: whatever else the processor made of it, of a class that is asked as a whole (prefmoe.backbones.whole).
    """

    input_ids: Tensor
    labels: Tensor | None
    query_mask: Tensor
    prefix_mask: Tensor
    token_types: Tensor | None
    positions: Tensor | None
    pictures: ProcessedPictures
    earlier_pictures: int
    prompt_digest: str
    prompt: str
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def taken_positions(self) -> int:
        """How many positions it takes: one per token, or fewer where pictures have positions in rows and columns."""
        return len(self) if self.positions is None else int(self.positions.max()) + 1


class Remembered(dict[Hashable, T]):
    """Values that depend on their keys alone."""

    def once(self, key: Hashable, make: Callable[..., T], *args: Any, **options: Any) -> T:
        """The value of a key; ``make(*args, **options)`` when it is not remembered."""
        if key not in self:
            if len(self) >= REMEMBERED:
                self.clear()
            self[key] = make(*args, **options)
        return self[key]


@dataclass
class BenchmarkEncodings:
    """What was read of one benchmark.

    Attributes:
        examples: by the form of the prompts (length of the prefix, profile, wording, and the control that they are put
            under, if any), examples by what they ask.
        pictures: prepared ones by their files.
    """

    examples: defaultdict[Hashable, dict[Hashable, Encoded]] = field(default_factory=lambda: defaultdict(dict))
    pictures: dict[tuple[str, ...], ProcessedPictures] = field(default_factory=dict)


@dataclass
class Encodings:
    """All that a backbone has read; it depends on the processor and the frozen vision tower, not on what is trained.

    Attributes:
        benchmarks: by their digests.
        outlines: prompts with marks in the place of the last message's texts, by template and conversation.
        answers: tokens of answers, by the end of the prompt and the answer.
        positions: multimodal positions, by where pictures of which size are.
        quarters: by how many places a side has, what the tower sees in the quarters of a picture, by its file.
    """

    benchmarks: defaultdict[str, BenchmarkEncodings] = field(default_factory=lambda: defaultdict(BenchmarkEncodings))
    outlines: Remembered[str] = field(default_factory=Remembered)
    answers: Remembered[list[int]] = field(default_factory=Remembered)
    positions: Remembered[Tensor] = field(default_factory=Remembered)
    quarters: defaultdict[int, dict[Path, Tensor]] = field(default_factory=lambda: defaultdict(dict))
