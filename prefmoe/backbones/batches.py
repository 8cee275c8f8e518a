"""Batches: several conversations padded to one length, and a benchmark's examples as such batches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from prefmoe.backbones import whole
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.conversations import check_words, encode
from prefmoe.backbones.encodings import BenchmarkEncodings, Encoded
from prefmoe.backbones.errors import CollationError, PromptError
from prefmoe.backbones.pictures import Picture, stack_pictures
from prefmoe.data import prompts
from prefmoe.data.benchmark import Benchmark, Example, Turn, User
from prefmoe.data.controls import Control


class OnDevice:
    """A dataclass of tensors that goes to a device as they do."""

    def to(self, device: str | torch.device) -> Self:
        """The same with its tensors on a device; those in dictionaries, and in batches that it holds, too."""

        def there(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: there(part) for key, part in value.items()}
            return value.to(device) if hasattr(value, "to") else value

        return replace(self, **{field.name: there(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Batch(OnDevice):
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
        examples: the B questions as they are put; none outside a benchmark.
        control: what is exchanged or taken away of what they show (`prefmoe.models.controls`), if anything is.
        prompt_digest: a hash of each rendered prompt and its pictures.
        answer_span: so many positions at the end of every row hold all that predict a token of an answer.
        question_span: so many hold these and the final question's text and image tokens.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    prefix_mask: Tensor
    query_mask: Tensor
    user: Tensor
    facet: Tensor
    index: Tensor
    prompt_digest: list[str]
    answer_span: int
    question_span: int
    examples: tuple[Example, ...] = ()
    control: Control | None = None

    def __len__(self) -> int:
        return len(self.user)


def pad(
    encoded: Sequence[Encoded],
    pad_token_id: int,
    *,
    user: Sequence[int] | None = None,
    facet: Sequence[int] | None = None,
    index: Sequence[int] | None = None,
) -> Batch:
    """Pads encoded conversations on the left to the longest one; ids that are not given are -1. Raises ValueError if
    there is no conversation, or only some have an answer."""
    if not encoded:
        raise ValueError("expected at least one conversation")
    answered = [one.labels is not None for one in encoded]
    if any(answered) != all(answered):
        raise ValueError("expected an answer in every conversation of a batch or in none")
    lengths = torch.tensor([len(one) for one in encoded])
    length = int(lengths.max())
    attention = torch.arange(length) >= length - lengths[:, None]  # (B, T)

    def column(name: str, padding: int = 0) -> Tensor:
        """One tensor of every conversation, (B, T, ...)."""
        values = [getattr(one, name) for one in encoded]
        return pad_sequence(values, batch_first=True, padding_value=padding, padding_side="left")

    labels, query_mask = column("labels", -100) if all(answered) else None, column("query_mask")
    inputs = {"input_ids": column("input_ids", pad_token_id), "attention_mask": attention.long()}
    if encoded[0].token_types is not None:
        inputs["mm_token_type_ids"] = column("token_types")
    if encoded[0].positions is not None:
        places = [F.pad(one.positions, (length - len(one), 0)) for one in encoded if one.positions is not None]
        inputs["position_ids"] = torch.stack(places, dim=1)
    inputs |= stack_pictures([one.pictures for one in encoded])
    inputs |= whole.stacked([one.inputs for one in encoded], length)
    none = [-1] * len(encoded)
    answer_span = 1 if labels is None else _span(labels != -100) + 1  # a token is predicted where the one before it is
    return Batch(
        inputs=inputs,
        labels=labels,
        prefix_mask=column("prefix_mask"),
        query_mask=query_mask,
        user=torch.tensor(list(user) if user is not None else none),
        facet=torch.tensor(list(facet) if facet is not None else none),
        index=torch.tensor(list(index) if index is not None else none),
        prompt_digest=[one.prompt_digest for one in encoded],
        answer_span=answer_span,
        question_span=max(answer_span, _span(query_mask)),
    )


def _span(mask: Tensor) -> int:
    """How many positions there are from the first that is marked in some row of mask (B, T) to the end."""
    columns = mask.any(0)
    return int(columns.any()) * (len(columns) - int(columns.int().argmax()))


class Collator:
    """Turns a benchmark's examples into batches for one backbone.

    Args:
        backbone: whose processor and chat template are used.
        benchmark: of the examples.
        prefix_length: number of prefix placeholders (0 or 13).
        profile: what a prompt shows of the user.
        wording: what the method changes in the words.
        cache: keep every encoded example; collators of one backbone and one benchmark (by digest) share them.

    Raises PromptError if statements are to be shown, and no user of the benchmark has one.
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
        if profile == "statement" and not any(user.preferences for user in benchmark.users.values()):
            raise PromptError(
                f"profile: statement shows the statement that a question is about, and none of the "
                f"{len(benchmark.users)} users of {benchmark.root} has a preference in any facet"
            )
        self.backbone, self.cache = backbone, cache
        self.prefix_length, self.profile, self.wording = prefix_length, profile, wording
        self._take(benchmark)
        self._pictures = self._known.pictures

    def _take(self, benchmark: Benchmark) -> None:
        self.benchmark, shared = benchmark, self.cache and benchmark.digest
        self._known = self.backbone.encodings.benchmarks[benchmark.digest] if shared else BenchmarkEncodings()
        self._examples = self._known.examples[self.form]

    @property
    def form(self) -> tuple[Hashable, ...]:
        """What the encoding of a question depends on beside the question: equal forms share what they have encoded."""
        return self.prefix_length, self.profile, self.wording

    def of(self, benchmark: Benchmark) -> Self:
        """A collator like this one for another benchmark of the same users; pictures that are prepared stay so."""
        other = copy(self)
        other._take(benchmark)
        return other

    def __call__(
        self, examples: Sequence[Example], *, transcripts: Sequence[Sequence[Turn]] | None = None, with_answer: bool
    ) -> Batch:
        """The examples as one batch, in their order.

        Args:
            transcripts: for each example, the small talk before its question.
            with_answer: append the true answers and make labels (training).

        Raises CollationError naming the example, if one cannot be encoded; ValueError if transcripts and examples
        differ in number.
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
            user=[self.benchmark.row(self.whose(example)) for example in examples],
            facet=[example.facet_id for example in examples],
            index=[example.index for example in examples],
        )
        return replace(batch, examples=tuple(map(self.asked, examples)))

    def whose(self, example: Example) -> str:
        """The name of the user whose profile and soft tokens a question is shown with."""
        return example.name

    def asked(self, example: Example) -> Example:
        """A question as it is put."""
        return example

    def told(self, example: Example) -> Hashable:
        """What names the part of the profile that a question is shown with: prompts that show the same part of one
        profile are longer by the same number of tokens."""
        return example.facet_id if self.profile == "statement" else None

    def conversation(
        self, example: Example, user: User, transcript: Sequence[Turn]
    ) -> tuple[list[dict[str, Any]], Sequence[Picture]]:
        """The messages of a question as it is put, and the pictures of their image parts in order."""
        words = {"profile": self.profile, "transcript": transcript, "wording": self.wording}
        return prompts.messages(example, user, **words), prompts.images(example, user, self.profile)

    def untold(self) -> Collator:
        """A collator that shows nothing of the user: what its prompts are longer by tells the model of somebody."""
        wording = replace(self.wording, opening="", added=())
        return Collator(self.backbone, self.benchmark, wording=wording, cache=self.cache)

    def length(self, example: Example, transcript: Sequence[Turn] = (), with_answer: bool = False) -> int:
        """Number of tokens of an encoded example (to put examples of one length together)."""
        return len(self.encode(example, transcript, with_answer))

    def encode(self, example: Example, transcript: Sequence[Turn] = (), with_answer: bool = False) -> Encoded:
        """One example, unpadded. Raises CollationError, PromptError naming the example, if it cannot be encoded, or the
        model could not read it."""
        transcript = tuple(transcript)
        key = (example, transcript, with_answer)  # not its index, which a question from elsewhere may share
        if key in self._examples:
            return self._examples[key]
        user, asked = self.benchmark.users[self.whose(example)], self.asked(example)
        try:
            encoded = encode(
                self.backbone,
                *self.conversation(asked, user, transcript),
                self.wording.said(example.answer_text) if with_answer else None,
                self.prefix_length,
                memory=self._pictures if self.cache else None,
            )
            check_words(self.backbone, encoded, self.wording.added)
        except ValueError as error:
            kind = type(error) if isinstance(error, CollationError | PromptError) else PromptError
            raise kind(f"question {example.index} ({example.name}): {error}") from error
        if self.cache:
            self._examples[key] = encoded
        return encoded
