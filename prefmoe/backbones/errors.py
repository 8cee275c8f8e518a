"""What an encoded prompt has to fulfil before a model reads it: it fits, and every added word is one token in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefmoe.backbones.backbone import Backbone
    from prefmoe.backbones.collation import Encoded


class PromptError(ValueError):
    """A prompt that the model cannot read as it was written."""


class PromptTooLong(PromptError):
    """A prompt of more tokens than the model has positions."""


def available_positions(backbone: Backbone) -> int | None:
    """How many positions the language model was made for; None where its configuration does not say.

    Beyond them a model with rotary positions still computes, and answers with no more sense than an untrained one.
    """
    return getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)


def taken_positions(encoded: Encoded) -> int:
    """How many positions a prompt takes: one per token, or fewer where pictures have positions in rows and columns."""
    return len(encoded) if encoded.positions is None else int(encoded.positions.max()) + 1


def check_length(backbone: Backbone, count: int, what: str = "the prompt") -> None:
    """
    Raises:
        PromptTooLong: if so many positions are more than there are.
    """
    limit = available_positions(backbone)
    if limit is not None and count > limit:
        name = backbone.entry.name
        raise PromptTooLong(f"{what} takes {count:,} positions, and backbone {name!r} has {limit:,}")


def check_words(backbone: Backbone, encoded: Encoded, words: Sequence[str]) -> None:
    """
    Raises:
        PromptError: if an added word is not in the prompt, or not one token wherever it is.
    """
    for word in words:
        token = backbone.tokenizer.convert_tokens_to_ids(word)
        written, found = encoded.prompt.count(word), int((encoded.input_ids == token).sum())
        if not written or found != written:
            raise PromptError(
                f"the prompt has {word!r} {written} times, and {found} times as one token of the tokenizer of "
                f"{backbone.entry.name!r}: {encoded.prompt!r}"
            )
