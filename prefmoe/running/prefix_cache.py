"""Prompts that begin alike share the keys and values of that beginning, which is computed once per batch.

After ten turns of small talk most of a prompt stands before its final turn, and that part is the same for
many questions: for all with the same transcript, or, where a prompt shows the user's profile or opens with
the user's soft prefix, for all about the same user with the same transcript. Attention is causal, so its keys and
values do not depend on what follows. Routed experts (component M of PrefMoE) are the exception: the question
sets their gates, and with them every position of every adapted layer; such methods answer without sharing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.pictures import ProcessedPictures
from prefmoe.data.benchmark import Example
from prefmoe.models.base import Method

WORTHWHILE = 0.25
"""Share of a batch's prompt tokens that sharing must save, to be worth a second forward pass."""


def split(conversation: Encoded) -> tuple[Encoded, Encoded]:
    """A conversation without an answer, cut where the final turn's text or picture starts."""
    at = int(conversation.query_mask.int().argmax())
    pictures = _split_pictures(conversation.pictures, conversation.earlier_pictures)

    def part(places: slice, shown: ProcessedPictures) -> Encoded:
        names = ("input_ids", "query_mask", "prefix_mask", "token_types", "positions")
        whole = {name: getattr(conversation, name) for name in names}
        cut = {name: None if value is None else value[..., places] for name, value in whole.items()}
        return replace(conversation, **cut, pictures=shown)

    return part(slice(None, at), pictures[0]), part(slice(at, None), pictures[1])


def _split_pictures(pictures: ProcessedPictures, count: int) -> tuple[ProcessedPictures, ProcessedPictures]:
    """The first ``count`` pictures, and the others."""
    if count == 0:
        return ProcessedPictures({}, (), ()), pictures
    grids = pictures.inputs.get("image_grid_thw")  # pictures are rows, or many packed patches each
    patches = count if grids is None else int(grids[:count].prod(-1).sum())

    def part(shown: slice, rows: slice) -> ProcessedPictures:
        place = {"pixel_values": rows}
        inputs = {key: value[place.get(key, shown)] for key, value in pictures.inputs.items()}
        return ProcessedPictures(inputs, pictures.replacements[shown], pictures.digests[shown])

    return part(slice(None, count), slice(None, patches)), part(slice(count, None), slice(patches, None))


def generate(
    method: Method, examples: Sequence[Example], conversations: Sequence[Encoded], generation: GenerationConfig
) -> Any | None:
    """What ``method.model.generate`` returns for these conversations, with equal beginnings computed once.

    ``conversations``: B prompts, one per example, of ``method.collator``. Returns the output of generate(), whose first
    logits belong to the end of each prompt, and whose sequences (B, T + new tokens) are prompts, padded between
    beginning and end, and answers; or None when the method cannot share, or would save less than the share `WORTHWHILE`
    of the tokens.
    """
    if method.beginning == "question" or any(map(_pictures_belong_together, conversations)):
        return None
    beginnings, ends = zip(*map(split, conversations), strict=True)
    of_user = method.beginning == "user"
    keys = [
        (example.name if of_user else "", one.input_ids.numpy().tobytes(), one.pictures.digests)
        for example, one in zip(examples, beginnings, strict=True)
    ]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    computed = sum(map(len, ends)) + sum(len(beginnings[row]) for row in first.values())
    if computed > (1 - WORTHWHILE) * sum(map(len, conversations)):
        return None
    pad, device = method.collator.pad, method.backbone.device
    start = pad(*zip(*((beginnings[row], examples[row]) for row in first.values()), strict=True)).to(device)
    end = pad(ends, examples).to(device)
    places = {key: place for place, key in enumerate(first)}
    rows = torch.tensor([places[key] for key in keys])  # on the CPU: layers may live on several devices

    # Either part is padded on its left; positions count the tokens, as in generate(), not the columns.
    positions = (start.inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=method.model.config)
    with method.context(start):
        method.model.base_model(**{"position_ids": positions} | start.inputs, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(rows)
    whole = {
        key: torch.cat([start.inputs[key][..., rows, :], end.inputs[key]], dim=-1)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "position_ids")
        if key in end.inputs
    }
    with method.context(end):
        return method.model.generate(**end.inputs | whole, past_key_values=cache, generation_config=generation)


def _pictures_belong_together(conversation: Encoded) -> bool:
    """Whether the model reads several pictures of one conversation otherwise than single ones."""
    return conversation.earlier_pictures > 0 and "batch_num_images" in conversation.pictures.inputs
