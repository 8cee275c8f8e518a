"""From conversations to tensors: encodes one conversation, pads several into a batch, and remembers both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prefmoe.backbones.prompt_checks import PromptError, check_length, check_words, taken_positions
from prefmoe.data import prompts
from prefmoe.data.benchmark import Benchmark, Example, Turn
from prefmoe.data.pictures import PictureError, as_rgb, open_picture

if TYPE_CHECKING:
    from prefmoe.backbones.backbone import Backbone

Picture = Path | str | Image.Image
"""A picture, or the file that holds it."""

T = TypeVar("T")

REMEMBERED = 4096
"""How many values of one kind a backbone remembers before it forgets them all."""

_MARK = "\u2063{}\u2063"
"""Stands for a text part while its place in a rendered prompt is looked up."""


class CollationError(ValueError):
    """A conversation that cannot be encoded: an unreadable picture, or a template that loses the question."""


# --- pictures -----------------------------------------------------------------------------------------------------


def load_pictures(pictures: Sequence[Picture]) -> list[Image.Image]:
    """The pictures as RGB images, upright and on white; see `prefmoe.data.pictures`.

    Raises:
        CollationError: if a file is missing, truncated or no picture that is opened; the message names it.
    """
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


def process_pictures(backbone: Backbone, images: Sequence[Image.Image]) -> ProcessedPictures:
    """Prepares the RGB pictures of one conversation with the backbone's own processor.

    Raises:
        CollationError: if the processor takes no picture of such a size (Qwen's none 200 times as long as wide).
    """
    if not images:
        return ProcessedPictures({}, (), ())
    try:
        return _processed(backbone, images)
    except ValueError as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        raise CollationError(f"backbone {backbone.entry.name!r} takes no picture of {sizes} pixels: {error}") from error


def _processed(backbone: Backbone, images: Sequence[Image.Image]) -> ProcessedPictures:
    processor = backbone.processor
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
        replacements = tuple(processor.replace_image_token(inputs, image_idx=i) for i in range(len(images)))
    digests = tuple(hashlib.blake2b(i.tobytes() + repr(i.size).encode(), digest_size=16).hexdigest() for i in images)
    return ProcessedPictures(dict(inputs), replacements, digests)


def stack_pictures(processed: Sequence[ProcessedPictures]) -> dict[str, Tensor]:
    """The image tensors of several conversations, concatenated along the pictures; crops are padded with zeros."""
    stacked: dict[str, Tensor] = {}
    shown = [one.inputs for one in processed if one.inputs]
    for key in shown[0] if shown else ():
        values = [inputs[key] for inputs in shown]
        dims = values[0].dim()
        if dims == 5 or key == "pixel_attention_mask":  # (pictures, crops, C, H, W), (pictures, crops, H, W)
            crops = max(value.shape[1] for value in values)
            values = [F.pad(value, (0, 0) * (dims - 2) + (0, crops - value.shape[1])) for value in values]
        stacked[key] = torch.cat(values)
    return stacked


# --- one conversation ---------------------------------------------------------------------------------------------


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

    def __len__(self) -> int:
        return len(self.input_ids)


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

    Raises:
        CollationError: if a picture cannot be read, pictures and image parts disagree in number, or the template
            does not show the final turn's text.
        PromptTooLong: if the model has too few positions.
    """
    prompt, spans = render(backbone, messages)
    key = tuple(map(str, images))
    if memory is not None and key in memory:
        pictures = memory[key]
    else:
        pictures = process_pictures(backbone, load_pictures(images))
        if memory is not None and not any(isinstance(image, Image.Image) for image in images):
            memory[key] = pictures
    token = backbone.entry.image_token
    places = [match.start() for match in re.finditer(re.escape(token), prompt)]
    if len(places) != len(images):
        raise CollationError(f"the prompt has {len(places)} places for pictures, {len(images)} were given: {prompt!r}")

    parts = prompt.split(token)
    expanded = parts[0] + "".join(tokens + part for tokens, part in zip(pictures.replacements, parts[1:], strict=True))
    growth = [len(tokens) - len(token) for tokens in pictures.replacements]

    def moved(position: int) -> int:
        return position + sum(g for place, g in zip(places, growth, strict=True) if place < position)

    earlier_pictures = len(places) - sum(part["type"] == "image" for part in _parts(messages[-1]))
    spans = [(moved(start), moved(end)) for start, end in spans]
    for place, tokens in list(zip(places, pictures.replacements, strict=True))[earlier_pictures:]:
        spans.append((moved(place), moved(place) + len(tokens)))

    ids, offsets = _tokenize(backbone, expanded)
    query = [first < last and any(first < end and last > start for start, end in spans) for first, last in offsets]
    target: list[int] = []
    if answer is not None:
        # How an answer is tokenized depends on the end of the prompt alone, which all prompts share.
        key = (prompt[-32:], answer)
        words = _once(backbone, "answers", key, _answer_ids, backbone, messages, prompt, expanded, ids, answer)
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
        positions = _once(backbone, "positions", layout, rope_index, *row, image_grid_thw=grids)[0][:, 0]
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
    check_length(backbone, taken_positions(encoded))
    return encoded


def render(backbone: Backbone, messages: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The prompt as the chat template writes it, generation prompt included, and where the final turn's texts are.

    Returns:
        the prompt, and for each text part of the last message its (start, end) in it, outer blanks left out.

    Raises:
        CollationError: if the last message is not the user's or has no text, or the template changes that text.
    """
    parts = _parts(messages[-1])
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
    outline = _once(backbone, "outlines", key, _apply_template, backbone, asked)
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


def _once(backbone: Backbone, what: str, key: Hashable, make: Callable[..., T], *args: Any, **options: Any) -> T:
    """``make(*args, **options)``, which depends on the key alone, remembered with the backbone."""
    known = backbone.encoded.setdefault(what, {})
    if key not in known:
        if len(known) >= REMEMBERED:
            known.clear()
        known[key] = make(*args, **options)
    return known[key]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


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


# --- batches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Several conversations, padded on the left.

    Attributes:
        inputs: arguments of model(**inputs) and model.generate(**inputs): input_ids and attention_mask (B, T),
            mm_token_type_ids where the model wants it, position_ids (3, B, T) where it has multimodal positions, and
            the image tensors of its processor.
        labels: (B, T) long, -100 but at the answers; None without answers.
        prefix_mask: (B, T) bool, True at the prefix placeholders (the first positions after the padding).
        query_mask: (B, T) bool, True at the final question's text and image tokens.
        user: (B,) long, row in benchmark.users; -1 outside a benchmark.
        facet: (B,) long, the question's facet, -1 for recognition.
        index: (B,) long, the question's index; -1 outside a benchmark.
        examples: the B questions; none outside a benchmark.
        prompt_digest: a hash of each rendered prompt and its pictures.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    prefix_mask: Tensor
    query_mask: Tensor
    user: Tensor
    facet: Tensor
    index: Tensor
    prompt_digest: list[str]
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.user)

    def to(self, device: str | torch.device) -> Batch:
        """The batch with its tensors on a device."""
        moved: dict[str, Any] = {"inputs": {key: value.to(device) for key, value in self.inputs.items()}}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


def pad(
    encoded: Sequence[Encoded],
    pad_token_id: int,
    *,
    user: Sequence[int] | None = None,
    facet: Sequence[int] | None = None,
    index: Sequence[int] | None = None,
) -> Batch:
    """Pads encoded conversations on the left to the longest one; ids that are not given are -1.

    Raises:
        ValueError: if there is no conversation, or only some have an answer.
    """
    if not encoded:
        raise ValueError("expected at least one conversation")
    answered = [one.labels is not None for one in encoded]
    if any(answered) != all(answered):
        raise ValueError("expected an answer in every conversation of a batch or in none")
    size, length = len(encoded), max(map(len, encoded))
    input_ids = torch.full((size, length), pad_token_id)
    masks = torch.zeros(3, size, length, dtype=torch.bool)  # attention, prefix, query
    labels = torch.full((size, length), -100) if all(answered) else None
    typed = encoded[0].token_types is not None
    token_types = torch.zeros(size, length, dtype=torch.long) if typed else None
    for row, one in enumerate(encoded):
        first = length - len(one)
        input_ids[row, first:] = one.input_ids
        masks[0, row, first:] = True
        masks[1, row, first:] = one.prefix_mask
        masks[2, row, first:] = one.query_mask
        if labels is not None:
            labels[row, first:] = one.labels
        if token_types is not None:
            token_types[row, first:] = one.token_types
    inputs = {"input_ids": input_ids, "attention_mask": masks[0].long()}
    if token_types is not None:
        inputs["mm_token_type_ids"] = token_types
    if encoded[0].positions is not None:
        places = [F.pad(one.positions, (length - len(one), 0)) for one in encoded if one.positions is not None]
        inputs["position_ids"] = torch.stack(places, dim=1)
    inputs |= stack_pictures([one.pictures for one in encoded])
    none = [-1] * size
    return Batch(
        inputs=inputs,
        labels=labels,
        prefix_mask=masks[1],
        query_mask=masks[2],
        user=torch.tensor(list(user) if user is not None else none),
        facet=torch.tensor(list(facet) if facet is not None else none),
        index=torch.tensor(list(index) if index is not None else none),
        prompt_digest=[one.prompt_digest for one in encoded],
    )


class Collator:
    """Turns a benchmark's examples into batches for one backbone.

    Args:
        backbone: whose processor and chat template are used.
        benchmark: of the examples.
        prefix_length: number of prefix placeholders (0 or 13).
        profile: what a prompt shows of the user.
        wording: what the method changes in the words.
        cache: keep every encoded example; collators of one backbone and one benchmark (by digest) share them.
    """

    def __init__(
        self,
        backbone: Backbone,
        benchmark: Benchmark,
        *,
        prefix_length: int = 0,
        profile: prompts.Profile = "none",
        wording: prompts.Wording = prompts.PLAIN,
        cache: bool = True,
    ) -> None:
        self.backbone, self.benchmark = backbone, benchmark
        self.prefix_length, self.profile, self.wording, self.cache = prefix_length, profile, wording, cache
        shared = backbone.encoded.setdefault(benchmark.digest, {}) if cache and benchmark.digest else {}
        self._examples: dict[Any, Encoded] = shared.setdefault((prefix_length, profile, wording), {})
        self._pictures: dict[tuple[str, ...], ProcessedPictures] = shared.setdefault("pictures", {})

    def of(self, benchmark: Benchmark) -> Collator:
        """A collator like this one for another benchmark; pictures that are prepared stay so."""
        other = Collator(
            self.backbone,
            benchmark,
            prefix_length=self.prefix_length,
            profile=self.profile,
            wording=self.wording,
            cache=self.cache,
        )
        other._pictures = self._pictures
        return other

    def __call__(
        self,
        examples: Sequence[Example],
        *,
        transcripts: Sequence[Sequence[Turn]] | None = None,
        with_answer: bool,
    ) -> Batch:
        """The examples as one batch, in their order.

        Args:
            transcripts: for each example, the small talk before its question.
            with_answer: append the true answers and make labels (training).

        Raises:
            CollationError: naming the example, if one cannot be encoded.
            ValueError: if transcripts and examples differ in number.
        """
        if transcripts is None:
            transcripts = [()] * len(examples)
        if len(transcripts) != len(examples):
            raise ValueError(f"expected a transcript per example, found {len(transcripts)} for {len(examples)}")
        encoded = [self.encode(e, t, with_answer) for e, t in zip(examples, transcripts, strict=True)]
        return self.pad(encoded, examples)

    def pad(self, encoded: Sequence[Encoded], examples: Sequence[Example]) -> Batch:
        """Encoded conversations, or parts of them, as a batch about the users and facets of these examples."""
        batch = pad(
            encoded,
            self.backbone.pad_token_id,
            user=[self.benchmark.row(example.name) for example in examples],
            facet=[example.facet_id for example in examples],
            index=[example.index for example in examples],
        )
        return replace(batch, examples=tuple(examples))

    def length(self, example: Example, transcript: Sequence[Turn] = (), with_answer: bool = False) -> int:
        """Number of tokens of an encoded example (to put examples of one length together)."""
        return len(self.encode(example, transcript, with_answer))

    def encode(self, example: Example, transcript: Sequence[Turn] = (), with_answer: bool = False) -> Encoded:
        """One example, unpadded.

        Raises:
            CollationError, PromptError: naming the example, if it cannot be encoded, or the model could not read it.
        """
        transcript = tuple(transcript)
        key = (example, transcript, with_answer)  # not its index, which a question from elsewhere may share
        if key in self._examples:
            return self._examples[key]
        user = self.benchmark.users[example.name]
        try:
            encoded = encode(
                self.backbone,
                prompts.messages(example, user, profile=self.profile, transcript=transcript, wording=self.wording),
                prompts.images(example, user, self.profile),
                example.answer_text if with_answer else None,
                self.prefix_length,
                memory=self._pictures if self.cache else None,
            )
            check_words(self.backbone, encoded, self.wording.added)
        except (CollationError, PromptError) as error:
            raise type(error)(f"question {example.index} ({example.name}): {error}") from error
        if self.cache:
            self._examples[key] = encoded
        return encoded
