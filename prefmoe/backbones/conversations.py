"""From one conversation to tensors: renders it by the chat template, tokenizes it, and finds the question in it."""

import hashlib
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prefmoe.backbones import whole
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.errors import CollationError, PromptError
from prefmoe.backbones.pictures import Picture, ProcessedPictures, between

_MARK = "\u2063{}\u2063"
"""Stands for a text part while its place in a rendered prompt is looked up."""


def encode(
    backbone: Backbone,
    messages: Sequence[dict[str, Any]],
    images: Sequence[Picture] = (),
    answer: str | None = None,
    prefix_length: int = 0,
    *,
    memory: MutableMapping[tuple[str, ...], ProcessedPictures] | None = None,
) -> Encoded:
    """Encodes one conversation that ends with a question, by the backbone's processor and chat template.

    Args:
        messages: in the chat format of Hugging Face processors; the last one is the user's.
        images: the pictures (or their files) of the messages' image parts, in order.
        answer: what the model should say; None ends the sequence with the generation prompt.
        prefix_length: number of placeholders before everything else, the beginning-of-sequence token included.
        memory: keeps prepared pictures that came as files, by their paths.

    Raises CollationError if a picture cannot be read, pictures and image parts disagree in number, or the template does
    not show the final turn's text; PromptTooLong if the model has too few positions.
    """
    prompt, spans = render(backbone, messages)
    if backbone.entry.architecture is None:
        if answer is not None or prefix_length:
            raise CollationError(f"a {backbone.entry.model_class} is asked as a whole: no answer, no prefix")
        encoded = whole.encode(backbone, messages, images, prompt)
        backbone.check_length(len(encoded))
        return encoded
    key = tuple(map(str, images))
    if memory is not None and key in memory:
        pictures = memory[key]
    else:
        pictures = backbone.process_pictures(images)
        if memory is not None and not any(isinstance(image, Image.Image) for image in images):
            memory[key] = pictures
    token = backbone.entry.image_token
    places = [match.start() for match in re.finditer(re.escape(token), prompt)]
    if len(places) != len(images):
        raise CollationError(f"the prompt has {len(places)} places for pictures, {len(images)} were given: {prompt!r}")

    parts = prompt.split(token)
    replacements = between(backbone.processor, pictures.replacements, parts)
    expanded = parts[0] + "".join(tokens + part for tokens, part in zip(replacements, parts[1:], strict=True))
    growth = [len(tokens) - len(token) for tokens in replacements]

    def moved(position: int) -> int:
        return position + sum(g for place, g in zip(places, growth, strict=True) if place < position)

    earlier_pictures = len(places) - sum(part["type"] == "image" for part in whole.parts(messages[-1]))
    spans = [(moved(start), moved(end)) for start, end in spans]
    for place, tokens in list(zip(places, replacements, strict=True))[earlier_pictures:]:
        spans.append((moved(place), moved(place) + len(tokens)))

    ids, offsets = _tokenize(backbone, expanded)
    query = [first < last and any(first < end and last > start for start, end in spans) for first, last in offsets]
    target: list[int] = []
    if answer is not None:
        # How an answer is tokenized depends on the end of the prompt alone, which all prompts share.
        key = (prompt[-32:], answer)
        words = backbone.encodings.answers.once(key, _answer_ids, backbone, messages, prompt, expanded, ids, answer)
        target = [*words, backbone.tokenizer.eos_token_id]

    front = [backbone.placeholder_id] * prefix_length
    input_ids = torch.tensor(front + ids + target)
    total, before = len(input_ids), prefix_length + len(ids)
    query_mask = torch.zeros(total, dtype=torch.bool)
    query_mask[prefix_length:before] = torch.tensor(query)
    image_mask = input_ids == backbone.image_token_id
    labels = None
    if answer is not None:
        labels = torch.full((total,), -100)
        labels[before:] = input_ids[before:]
    token_types = image_mask.long() if backbone.processor.return_mm_token_type_ids else None
    positions = None
    if (rope_index := getattr(backbone.model.model, "get_rope_index", None)) is not None:
        grids = pictures.inputs.get("image_grid_thw")
        # They depend on where pictures of which size are, not on words.
        layout = (image_mask.numpy().tobytes(), None if grids is None else repr(grids.tolist()))
        row = input_ids[None], token_types[None]
        positions = backbone.encodings.positions.once(layout, _positions, rope_index, *row, image_grid_thw=grids)
    digest = hashlib.blake2b("\0".join([prompt, *pictures.digests]).encode(), digest_size=16).hexdigest()
    encoded = Encoded(
        input_ids=input_ids,
        labels=labels,
        query_mask=query_mask,
        prefix_mask=torch.arange(total) < prefix_length,
        token_types=token_types,
        positions=positions,
        pictures=pictures,
        earlier_pictures=earlier_pictures,
        prompt_digest=digest,
        prompt=prompt,
    )
    backbone.check_length(encoded.taken_positions)
    return encoded


def render(backbone: Backbone, messages: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The prompt as the chat template writes it, generation prompt included, and where the final turn's texts are.

    Returns the prompt, and for each text part of the last message its (start, end) in it, outer blanks left out. Raises
    CollationError if the last message is not the user's or has no text, or the template changes that text.
    """
    parts = whole.parts(messages[-1])
    texts = [part["text"].strip() for part in parts if part["type"] == "text"]
    if messages[-1]["role"] != "user" or not any(texts):
        raise CollationError(f"expected a final user message with text, found {messages[-1]!r}")
    marked, marks = [], (_MARK.format(k) for k in range(len(texts)))
    for part in parts:
        if part["type"] == "text":
            text = part["text"]
            left, right = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            part = {**part, "text": f"{left}{next(marks)}{right}"}
        marked.append(part)
    prompt = _apply_template(backbone, messages)
    content = marked[0]["text"] if isinstance(messages[-1]["content"], str) else marked
    # Questions after the same conversation share the prompt around their texts.
    asked = [*messages[:-1], {**messages[-1], "content": content}]
    key = backbone.processor.chat_template, repr(asked)
    outline = backbone.encodings.outlines.once(key, _apply_template, backbone, asked)
    spans, position, done = [], 0, 0
    for k, text in enumerate(texts):
        found = outline.find(_MARK.format(k), done)
        position += found - done
        done = found + len(_MARK.format(k))
        if found < 0 or not prompt.startswith(text, position):
            name = backbone.entry.name
            raise CollationError(f"the chat template of {name!r} does not show {text!r} as it is: {prompt!r}")
        spans.append((position, position + len(text)))
        position += len(text)
    return prompt, spans


def check_words(backbone: Backbone, encoded: Encoded, words: Sequence[str]) -> None:
    """Raises PromptError if an added word is not in the prompt, or not one token wherever it is."""
    for word in words:
        token = backbone.tokenizer.convert_tokens_to_ids(word)
        written, found = encoded.prompt.count(word), int((encoded.input_ids == token).sum())
        if not written or found != written:
            raise PromptError(
                f"the prompt has {word!r} {written} times, and {found} times as one token of the tokenizer of "
                f"{backbone.entry.name!r}: {encoded.prompt!r}"
            )


def _apply_template(backbone: Backbone, messages: Sequence[dict[str, Any]], generation: bool = True) -> str:
    return backbone.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)


def _tokenize(backbone: Backbone, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and character offsets; special tokens are added unless the template wrote them."""
    bos = backbone.tokenizer.bos_token
    special = not (bos is not None and text.startswith(bos))
    encoded = backbone.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _answer_ids(
    backbone: Backbone,
    messages: Sequence[dict[str, Any]],
    prompt: str,
    expanded: str,
    prompt_ids: list[int],
    answer: str,
) -> list[int]:
    """The answer's tokens as they follow the prompt, with the blank that the template puts between them, if any."""
    content: Any = answer if isinstance(messages[-1]["content"], str) else [{"type": "text", "text": answer}]
    answered = _apply_template(backbone, [*messages, {"role": "assistant", "content": content}], generation=False)
    text = answer
    if answered.startswith(prompt):
        rest = answered[len(prompt) :]
        blank = rest[: len(rest) - len(rest.lstrip())]
        text = blank + answer if rest.lstrip().startswith(answer) else answer
    joined, _ = _tokenize(backbone, expanded + text)
    if joined[: len(prompt_ids)] == prompt_ids and len(joined) > len(prompt_ids):
        return joined[len(prompt_ids) :]
    return backbone.tokenizer(text, add_special_tokens=False)["input_ids"]


def _positions(rope_index: Callable[..., tuple[Tensor, Tensor]], *row: Any, **pictures: Any) -> Tensor:
    """Multimodal positions (3, T) of one row."""
    return rope_index(*row, **pictures)[0][:, 0]
