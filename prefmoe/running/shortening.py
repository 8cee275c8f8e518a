"""Questions whose prompts are longer than the model's positions: refused, or asked with less small talk."""

from collections.abc import Sequence

from prefmoe.backbones.errors import PromptTooLong
from prefmoe.config import TooLong
from prefmoe.data.benchmark import Example, Turn
from prefmoe.models.base import Method


class TooLongError(ValueError):
    """Questions that the model has too few positions for; the message says how many, and what can be done."""


def fitting_talks(
    method: Method,
    examples: Sequence[Example],
    talks: Sequence[tuple[Turn, ...]],
    *,
    max_new_tokens: int,
    too_long: TooLong,
) -> list[tuple[Turn, ...]]:
    """The small talk before each question that leaves room for the question and its answer.

    Args:
        talks: for each question, the exchanges (two utterances each) that it should come after.
        too_long: "refuse", or "drop_small_talk": leave out the oldest exchanges, as few as possible.

    Raises TooLongError if a prompt is too long as it is ("refuse"), or without any small talk.
    """
    fitting, errors = [], []
    for example, asked in zip(examples, talks, strict=True):
        talk = asked
        while (error := _too_long(method, example, talk, max_new_tokens)) and talk and too_long == "drop_small_talk":
            talk = talk[2:]
        fitting.append(talk)
        if error:
            errors.append(error)
    if errors:
        turns = max(map(len, talks)) // 2
        means = "a shorter profile, fewer pictures, or another backbone"
        if turns and too_long == "refuse":
            means = "evaluation.too_long: drop_small_talk (the oldest exchanges go), fewer turns, or another backbone"
        raise TooLongError(
            f"{len(errors)} of {len(examples)} questions after {turns} turns of small talk are too long for the model: "
            f"{errors[0]}{', ...' if errors[1:] else ''}; what helps: {means}"
        )
    return fitting


def _too_long(method: Method, example: Example, talk: tuple[Turn, ...], max_new_tokens: int) -> str | None:
    """What is wrong with a prompt's length, if anything; the last new token is said, but not read again."""
    what = f"question {example.index} ({example.name}): the prompt with an answer of {max_new_tokens} tokens"
    try:
        taken = method.collator.encode(example, talk).taken_positions
        method.backbone.check_length(taken + max_new_tokens - 1, what)
    except PromptTooLong as error:
        return str(error)
    return None


def exchanges_left_out(asked: Sequence[tuple[Turn, ...]], shown: Sequence[tuple[Turn, ...]]) -> list[int]:
    """How many exchanges of small talk each question goes without."""
    return [(len(before) - len(after)) // 2 for before, after in zip(asked, shown, strict=True)]
