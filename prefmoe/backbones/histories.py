"""A user as a history of rated pictures, and the pictures to rate after it: encoded once, however many they are.

Many targets of one user stand behind one history, each blind to the others, and a picture that is shown several times
is looked at once. What comes out is what each target would get alone in a plain sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import OnDevice
from prefmoe.backbones.errors import CollationError, PromptError
from prefmoe.backbones.pictures import ProcessedPictures, mean_picture, stack_pictures
from prefmoe.config.registry import BackboneError

LABELS = ("+", "-")
"""Liked and disliked."""

MEMORY = 2**29
"""Bytes of prepared pictures that a collator keeps."""


class Rated(NamedTuple):
    """A picture that a user has rated; the label is a word of one token."""

    picture: Path
    prompt: str
    label: str


class Question(NamedTuple):
    """A question behind a history, about it or about pictures of its own, each in the place of one ``{image}``."""

    text: str
    answer: str
    pictures: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Session:
    """Pictures with their prompts that are rated after a history, and questions with answers that are learned from:
    each as if it stood alone behind the history."""

    history: tuple[Rated, ...]
    targets: tuple[tuple[Path, str], ...]
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class HistoryBatch(OnDevice):
    """Several sessions, padded on the left.

    A row reads: prefix, beginning of sequence, rated pictures with their labels, targets without, questions with their
    answers. A target or question sees prefix, history and itself, and its positions go on from the history's end.

    Attributes:
        input_ids, position_ids: (B, T) long.
        attention: (B, 1, T, T) bool, True where a query (third dimension) sees a key; padding sees itself alone.
        prefix_mask: (B, T) bool, True at the prefix placeholders.
        pictures: what the image processor made of the U different pictures, a row each; empty without pixels.
        files: the U pictures' files.
        slots: (S,) long, which of them each place for a picture shows, row by row in reading order.
        rated: (B, E) long, the position that predicts the label of each entry of the history; -1 where there is none.
        target: (B, K) long, the position that predicts each target's label; -1 where there is none.
        target_image: (B, K, L) long, the positions of each target's image tokens; -1 where there is none.
        answers: (4, A) long, of every token of an answer to a question: its row, the position that predicts it, the
            token's id, and the place of the question in its session.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention: Tensor
    prefix_mask: Tensor
    pictures: dict[str, Tensor]
    files: tuple[Path, ...]
    slots: Tensor
    rated: Tensor
    target: Tensor
    target_image: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)


class HistoryCollator:
    """Turns sessions into batches for one backbone.

    Args:
        backbone: whose processor and tokenizer are used.
        prefix_length: how many placeholders stand before everything else.
        prompts: whether the prompts of the pictures are told.
        max_prompt_tokens: where a prompt is cut.
        pixels: whether batches hold the pictures themselves; without, whoever has features needs no file.

    Raises BackboneError if the model gives pictures positions in rows and columns, or the processor writes another
    number of tokens for a picture than the model makes of it.
    """

    def __init__(
        self, backbone: Backbone, *, prefix_length: int = 0, prompts: bool = True, max_prompt_tokens: int = 100,
        pixels: bool = True,
    ) -> None:  # fmt: skip
        name, model = backbone.entry.name, backbone.model
        if hasattr(model.model, "get_rope_index"):
            raise BackboneError(f"backbone {name!r}: histories need one position per token, and its pictures have more")
        self.image = image_text(backbone)
        self.tokens = self.image.count(backbone.entry.image_token)
        perceiver = getattr(model.config, "perceiver_config", None)
        if perceiver is not None and perceiver.resampler_n_latents != self.tokens:
            raise BackboneError(
                f"backbone {name!r}: its processor writes {self.tokens} tokens for a picture, of which the model makes "
                f"{perceiver.resampler_n_latents} latents"
            )
        self.backbone, self.prefix_length, self.prompts = backbone, prefix_length, prompts
        self.max_prompt_tokens, self.pixels = max_prompt_tokens, pixels
        self._front = backbone.tokenizer("")["input_ids"]  # the beginning of a sequence, if the tokenizer writes one
        self._questions: dict[str, list[int]] = {}
        self._pictures: dict[Path, ProcessedPictures] = {}
        self._held = 0

    def __call__(self, sessions: Sequence[Session]) -> HistoryBatch:
        """The sessions as one batch, in their order.

        Raises CollationError, PromptError naming the session, if there is none, it has no target, a picture cannot be
        read, a label is not one token, or the model has too few positions.
        """
        if not sessions:
            raise CollationError("expected at least one session, found none")
        rows = []
        for number, session in enumerate(sessions):
            try:
                rows.append(self._row(session))
            except ValueError as error:
                kind = type(error) if isinstance(error, CollationError | PromptError) else CollationError
                raise kind(f"session {number}: {error}") from error
        length = max(len(row.ids) for row in rows)
        files: dict[Path, int] = {}
        slots = [files.setdefault(file, len(files)) for session in sessions for file in shown(session)]
        return HistoryBatch(
            input_ids=_left_padded([row.ids for row in rows], self.backbone.pad_token_id),
            position_ids=_left_padded([row.positions for row in rows], 0),
            attention=torch.stack([row.attention(length) for row in rows])[:, None],
            prefix_mask=_left_padded([[k < self.prefix_length for k in range(len(row.ids))] for row in rows], False),
            pictures=self._prepared(files, sessions) if self.pixels else {},
            files=tuple(files),
            slots=torch.tensor(slots),
            rated=_places([row.rated for row in rows], [length - len(row.ids) for row in rows]),
            target=_places([row.target for row in rows], [length - len(row.ids) for row in rows]),
            target_image=_places(
                [[p for place in row.image for p in range(place, place + self.tokens)] for row in rows],
                [length - len(row.ids) for row in rows],
            ).unflatten(1, (-1, self.tokens)),
            answers=torch.tensor(
                [
                    (number, place + length - len(row.ids), token, question)
                    for number, row in enumerate(rows)
                    for place, token, question in row.answers
                ],
                dtype=torch.long,
            )
            .reshape(-1, 4)
            .T,
        )

    def question(self, prompt: str) -> list[int]:
        """Token ids of an entry up to its label: the picture's tokens, its prompt (if prompts are told), the question.
        Raises PromptError if the prompt holds what stands for a picture."""
        if not self.prompts:
            prompt = ""
        if prompt not in self._questions:
            told = f" The prompt is {self._cut(prompt)}." if self.prompts else ""
            text = f"{self.image}{told} Score for this image?"
            ids = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids.count(self.backbone.image_token_id) != self.tokens:
                token = self.backbone.entry.image_token
                raise PromptError(f"the prompt {prompt[:60]!r} holds {token}, which stands for a picture")
            self._questions[prompt] = ids
        return self._questions[prompt]

    def _cut(self, prompt: str) -> str:
        """The prompt's first tokens, as text."""
        read = self.backbone.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in read["offset_mapping"]]
        return prompt if len(ends) <= self.max_prompt_tokens else prompt[: ends[self.max_prompt_tokens - 1]]

    def _row(self, session: Session) -> _Row:
        if not session.targets:
            raise CollationError("expected at least one target, found none")
        ids, rated = [self.backbone.placeholder_id] * self.prefix_length + self._front, []
        for entry in session.history:
            ids += self.question(entry.prompt)
            rated.append(len(ids) - 1)
            ids += label_ids(self.backbone, (entry.label,))
        asked = [self.question(prompt) for _, prompt in session.targets]
        questions = [self._with_answer(question) for question in session.questions]
        parts = [*asked, *(before + answer[:-1] for before, answer in questions)]
        start, ends = len(ids), list(accumulate(map(len, parts)))
        longest = start + max(map(len, parts))
        self.backbone.check_length(longest, f"a history of {len(session.history)} pictures with its longest target")
        starts = [start + end - len(one) for one, end in zip(parts, ends, strict=True)]
        first = asked[0].index(self.backbone.image_token_id)  # the same in all questions: it comes before any prompt
        return _Row(
            ids=ids + [token for one in parts for token in one],
            positions=list(range(start)) + [start + k for one in parts for k in range(len(one))],
            starts=starts,
            rated=rated,
            target=[start + end - 1 for end in ends[: len(asked)]],
            image=[place + first for place in starts[: len(asked)]],
            answers=[
                (place + len(before) - 1 + k, token, number)
                for number, (place, (before, answer)) in enumerate(zip(starts[len(asked) :], questions, strict=True))
                for k, token in enumerate(answer)
            ],
        )

    def _with_answer(self, question: Question) -> tuple[list[int], list[int]]:
        """The token ids of a question and of its answer. Raises PromptError if the text has another number of places
        than there are pictures, the answer is empty, or the tokenizer does not part the two."""
        text, tokens = question.text.replace("{image}", self.image), self.backbone.tokenizer
        before, whole = (
            tokens(part, add_special_tokens=False)["input_ids"] for part in (text, f"{text} {question.answer}")
        )
        if before.count(self.backbone.image_token_id) != self.tokens * len(question.pictures):
            raise PromptError(f"question {question.text!r}: expected a place {{image}} for each picture")
        if whole[: len(before)] != before or len(whole) == len(before):
            answer = question.answer
            raise PromptError(f"question {question.text!r}: expected an answer that follows it, found {answer!r}")
        return before, whole[len(before) :]

    def _prepared(self, files: dict[Path, int], sessions: Sequence[Session]) -> dict[str, Tensor]:
        """The pictures as the image processor prepares them, a row each."""
        prepared = []
        for file in files:
            try:
                prepared.append(self.prepared(file))
            except CollationError as error:
                number = next(k for k, session in enumerate(sessions) if file in shown(session))
                raise CollationError(f"session {number}: {error}") from error
        return stack_pictures(prepared)

    def prepared(self, file: Path) -> ProcessedPictures:
        """A picture as the image processor prepares it; kept while there is room. Raises CollationError if it cannot be
        read."""
        picture = self._pictures.get(file)
        if picture is None:
            picture = self.backbone.process_pictures([file])
            size = sum(value.numel() * value.element_size() for value in picture.inputs.values())
            if self._held + size <= MEMORY:
                self._pictures[file], self._held = picture, self._held + size
        return picture


@dataclass(frozen=True)
class _Row:
    """One session, unpadded: what it says, and where. starts: the first position of each target and question; answers:
    position that predicts a token, the token, the question."""

    ids: list[int]
    positions: list[int]
    starts: list[int]
    rated: list[int]
    target: list[int]
    image: list[int]
    answers: list[tuple[int, int, int]]

    def attention(self, length: int) -> Tensor:
        """Which of ``length`` positions sees which, (T, T) bool, with the padding at the left."""
        padding, places = length - len(self.ids), torch.arange(length)
        part = torch.zeros(length, dtype=torch.long)  # 0: prefix and history; 1, 2, ...: targets and questions
        part[[start + padding for start in self.starts]] = 1
        part = part.cumsum(0)
        causal = places[:, None] >= places
        seen = causal & ((part == 0) | (part[:, None] == part)) & (places >= padding) & (places[:, None] >= padding)
        return seen | torch.eye(length, dtype=torch.bool)


def shown(session: Session) -> Iterator[Path]:
    """The pictures of a session in reading order."""
    yield from (entry.picture for entry in session.history)
    yield from (picture for picture, _ in session.targets)
    yield from (picture for question in session.questions for picture in question.pictures)


def image_text(backbone: Backbone) -> str:
    """What a prompt says in the place of a picture; histories are for models that say the same of every picture."""
    blank = mean_picture(backbone.processor, (64, 64))
    return backbone.process_pictures([blank]).replacements[0]


def _left_padded(rows: Sequence[Sequence[Any]], padding: Any) -> Tensor:
    values = [torch.tensor(row) for row in rows]
    return pad_sequence(values, batch_first=True, padding_value=padding, padding_side="left")


def _places(rows: Sequence[Sequence[int]], paddings: Sequence[int]) -> Tensor:
    """Positions of rows of different numbers, moved by each row's padding, (B, most of them); -1 behind the last."""
    moved = [torch.tensor(row, dtype=torch.long) + padding for row, padding in zip(rows, paddings, strict=True)]
    return pad_sequence(moved, batch_first=True, padding_value=-1)


def label_ids(backbone: Backbone, labels: Sequence[str] = LABELS) -> list[int]:
    """The token id of each label. Raises PromptError if the tokenizer makes more than one token of a label, or does not
    know it."""
    tokenizer, found = backbone.tokenizer, []
    for label in labels:
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] in (tokenizer.unk_token_id, backbone.image_token_id):
            name, tokens = backbone.entry.name, tokenizer.convert_ids_to_tokens(ids)
            raise PromptError(f"expected a label of one known token, found {label!r}, which {name!r} reads as {tokens}")
        found += ids
    return found


def picture_features(backbone: Backbone, pictures: dict[str, Tensor]) -> Tensor:
    """What the language model sees of U prepared pictures, (U, L, H); gradients flow into tower and projector."""
    found = backbone.model.get_image_features(**pictures, return_dict=True).pooler_output
    return torch.stack([one.flatten(0, -2) for one in found])


def hidden_states(backbone: Backbone, batch: HistoryBatch, *, features: Tensor | None = None) -> Tensor:
    """The last hidden states (B, T, H); every picture is encoded once, and a history once for all of its targets.

    ``features``: (U, L, H), what `picture_features` says of ``batch.files``; computed when None. Raises ValueError if
    neither features nor pixels are there.
    """
    return _read(backbone, batch, features).last_hidden_state


def layer_states(backbone: Backbone, batch: HistoryBatch, *, features: Tensor | None = None) -> tuple[Tensor, ...]:
    """`hidden_states` behind each decoder layer, (B, T, H) each; the last one's is normalised."""
    return _read(backbone, batch, features, output_hidden_states=True).hidden_states[1:]


def _read(backbone: Backbone, batch: HistoryBatch, features: Tensor | None, **named: Any) -> Any:
    if features is None:
        if not batch.pictures:
            raise ValueError("a batch without pixels needs the features of its pictures")
        features = picture_features(backbone, batch.pictures)
    embedded = backbone.embed_tokens(batch.input_ids)
    places = batch.input_ids == backbone.image_token_id
    embedded = embedded.masked_scatter(places[..., None], features[batch.slots].to(embedded.dtype))
    attention = batch.attention
    if backbone.language_model.config._attn_implementation == "eager":  # which adds the mask to the scores
        least = torch.finfo(embedded.dtype).min
        attention = torch.zeros_like(attention, dtype=embedded.dtype).masked_fill(~attention, least)
    return backbone.language_model(
        inputs_embeds=embedded, attention_mask=attention, position_ids=batch.position_ids, use_cache=False, **named
    )


def label_logits(backbone: Backbone, hidden: Tensor, positions: Tensor, labels: Sequence[str] = LABELS) -> Tensor:
    """The labels' logits (B, K, len(labels)) at some positions (B, K) of hidden states (B, T, H); 0 where these are -1.
    Only these rows of the head are multiplied."""
    head, ids = backbone.lm_head, label_ids(backbone, labels)
    where = positions.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
    logits = F.linear(hidden.gather(1, where), head.weight[ids], None if head.bias is None else head.bias[ids])
    return logits.masked_fill(positions[..., None] < 0, 0.0)
