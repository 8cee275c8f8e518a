"""Asks many yes/no questions together, for the probabilities of single ones: what they share is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefmoe.backbones.batches import Collator
from prefmoe.backbones.encodings import Encoded
from prefmoe.data.benchmark import Example
from prefmoe.models.base import Method
from prefmoe.models.lora import merged_lora
from prefmoe.running.evaluation import EvaluationError, answer_probabilities, first_tokens, generate, generation_config

BATCH = 240
"""Questions per forward pass: four users' at once."""


@torch.inference_mode()
def score(method: Method, examples: Sequence[Example], *, batch_size: int = BATCH) -> NDArray:
    """(N,) P(yes) of yes/no questions, as `evaluation.evaluate` has it for each of them alone.

    Questions of one user in a row share what stands before the picture (`prefix_cache`); prompts that differ in
    nothing but the picture are rendered and tokenised once, and a picture is prepared and looked at once.

    Raises EvaluationError if a question is about a user whom the method does not know, or logits are not finite.
    """
    for example in examples:
        if example.name not in method.benchmark.users:
            raise EvaluationError(f"question {example.index}: the method knows no user {example.name!r}")
    tokens = first_tokens(method.backbone.tokenizer, letters=method.config.answers)
    generation = generation_config(method, 1)
    method.eval()
    encoded, found = _encoded(method, examples), []
    with merged_lora(method.model):
        for start in range(0, len(examples), batch_size):
            asked = examples[start : start + batch_size]
            output = generate(method, asked, [next(encoded) for _ in asked], generation)
            found.append(answer_probabilities(output.logits[0], asked, tokens)["p_yes"].to_numpy(dtype=float))
    scores = np.concatenate(found)
    if not np.isfinite(scores).all():
        at = examples[int(np.argmin(np.isfinite(scores)))]
        raise EvaluationError(f"question {at.index} ({at.name}): the model's answer is not a number")
    return scores


def _encoded(method: Method, examples: Sequence[Example]) -> Iterator[Encoded]:
    """Every question as the method's collator encodes it; of prompts that differ in their picture alone the first."""
    collator, backbone = method.collator, method.backbone
    # A class that is asked as a whole, or a collator of its own kind, may read a picture into more than its place.
    alike = type(collator).encode is Collator.encode and backbone.entry.architecture is not None
    prepared: dict[tuple[str, ...], Any] = {}
    first: dict[tuple[Any, ...], Encoded] = {}
    for example in examples:
        if not alike:
            yield collator.encode(example)
            continue
        user = method.benchmark.users[collator.whose(example)]
        messages, images = collator.conversation(collator.asked(example), user, ())
        files = tuple(map(str, images))
        if files not in prepared:
            prepared[files] = backbone.process_pictures(images)
        pictures = prepared[files]
        sizes = tuple((k, v.shape if v.is_floating_point() else repr(v.tolist())) for k, v in pictures.inputs.items())
        key = (repr(messages), pictures.replacements, sizes)
        if key not in first:
            first[key] = collator.encode(example)
        yield replace(first[key], pictures=pictures)
