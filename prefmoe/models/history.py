"""A user is what the user answered: an embedder reads the answered questions, led by the one that is asked."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import HistoryMethod
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.data.prompts import fill, question_text
from prefmoe.models.base import Method, MethodError
from prefmoe.models.given_answers import check_given
from prefmoe.models.growing import with_rows
from prefmoe.models.lora import pooled_lora
from prefmoe.models.prefix import masked_mean


class History(Method, settings=HistoryMethod):
    """Persona-Plug (PPlug: Liu et al. 2024, arXiv 2409.11901): one personal embedding in front of a frozen model.

    A user's history is the questions of the training split about this user, with their answers. Each is a fixed
    feature (question, picture, answer; `features`). For a question x with picture, ``w_j = softmax_j (q(x) . k(h_j))``
    over the history's questions and pictures, and the personal embedding is ``sum_j w_j v(h_j)`` of what is asked and
    answered. Before it stands one vector for everybody, the paper's instruction embedding. q, k, v and this vector are
    trained, through the frozen model.

    What is asked for is never shown: a question is left out of its own user's history, in training and afterwards, and
    questions of other splits belong to no history. Who has none is shown the mean of all entries; `give_history` gives
    one to a user without training questions, and nothing is trained for that.

    Departures: a LoRA may learn beside it that everybody shares (``pooled_rank``; the paper's model is frozen);
    features are mean embeddings of the backbone itself (words, projected picture tokens) instead of those
    of a text encoder, whose input half the paper trains; the softmax is taken with 1/sqrt(width); values come from a
    network of one hidden layer, because whether something was liked is told by question and answer together.
    """

    token_controls = ("zero_prefix",)
    kept = ("entries", "places", "questions")
    beginning = "question"  # on which the soft tokens at the front depend

    def __init__(self, config: HistoryMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=2, **options)
        self.pooled = pooled_lora(backbone, config)
        hidden, width, device = backbone.hidden_size, config.width, backbone.device
        self.query, self.key = (nn.Linear(2 * hidden, width, bias=False) for _ in range(2))
        self.value = nn.Sequential(nn.Linear(3 * hidden, width), nn.GELU(), nn.Linear(width, hidden))
        self.instruction = nn.Parameter(torch.randn(hidden))
        self.rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
        self.to(device)
        examples = benchmark.select("train")
        entries = features(backbone, examples)
        # The last row is the mean of all, and what -1 points to.
        entries = torch.cat([entries, entries.mean(0, keepdim=True)])
        self.register_buffer("entries", entries, persistent=False)  # (N + 1, 3, H)
        self.register_buffer("places", entries.new_zeros(0, 0, dtype=torch.long), persistent=False)
        self.register_buffer("questions", torch.tensor([e.index for e in examples] + [-1], device=device), False)
        rows: list[list[int]] = [[] for _ in benchmark.users]
        for place, example in enumerate(examples):
            rows[benchmark.row(example.name)].append(place)
        self._set_places(rows)
        self._active: Batch | None = None
        backbone.language_model.register_forward_pre_hook(self._show, with_kwargs=True)

    def _set_places(self, rows: Sequence[Sequence[int]]) -> None:
        """(U, L) rows of ``entries``, -1 behind the last of a history."""
        length = max(1, *map(len, rows))
        padded = [[*row, *[-1] * (length - len(row))] for row in rows]
        self.places = torch.tensor(padded, device=self.entries.device)

    # --- training and asking

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        self._active = batch
        try:
            yield
        finally:
            self._active = None

    def _show(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Puts the user's tokens in front when a prompt enters the language model; steps of decoding have them."""
        batch, embeddings = self._active, kwargs.get("inputs_embeds")
        if batch is None or embeddings is None or embeddings.shape[1] != batch.prefix_mask.shape[1]:
            return None
        pictured = batch.query_mask & (batch.inputs["input_ids"] == self.backbone.image_token_id)
        asked = torch.stack([masked_mean(embeddings, mask) for mask in (batch.query_mask & ~pictured, pictured)], dim=1)
        tokens = self.tokens(batch.user, asked, batch.index)
        if batch.control is not None and batch.control.kind == "zero_prefix":
            tokens = torch.zeros_like(tokens)
        mask = batch.prefix_mask.unsqueeze(-1).to(embeddings.device)
        return args, {**kwargs, "inputs_embeds": embeddings.masked_scatter(mask, tokens.to(embeddings))}

    def tokens(self, rows: Tensor, asked: Tensor, index: Tensor) -> Tensor:
        """The instruction and the personal embedding of users, (B, 2, H).

        Args:
            rows: (B,) whose. asked: (B, 2, H) mean embeddings of the question's words and of its picture.
            index: (B,) of the questions, which are left out of the history.
        """
        places = self.places[rows]  # (B, L)
        shown = (places >= 0) & (self.questions[places] != index[:, None])
        nothing = ~shown.any(1, keepdim=True)
        places = torch.cat([places, places.new_full((len(rows), 1), -1)], dim=1)
        shown = torch.cat([shown, nothing], dim=1)
        history = _unit(self.entries[places])  # (B, L + 1, 3, H)
        query, key = self.query(_unit(asked).flatten(1)), self.key(history[:, :, :2].flatten(2))
        scores = torch.einsum("bd,bld->bl", query, key) / math.sqrt(query.shape[1])
        weights = scores.masked_fill(~shown, -torch.inf).softmax(1)
        personal = torch.einsum("bl,blh->bh", weights, self.value(history.flatten(2)))
        return self.rms * torch.stack([self.instruction.expand_as(personal), personal], dim=1)

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        parts = (self.query, self.key, self.value)
        embedder = [*(p for part in parts for p in part.parameters()), self.instruction]
        return {"embedder": (embedder, self.config.lr), **self.pooled}

    # --- users

    @torch.no_grad()
    def give_history(self, name: str, examples: Sequence[Example]) -> None:
        """Gives a user without training questions answered ones, and takes the earlier ones away.

        Raises MethodError if the user is unknown or has training questions, or a question is about somebody else.
        """
        check_given(self.benchmark, name, examples, "the history")
        if not examples:
            raise MethodError(f"user {name!r}: expected at least one answered question")
        new, first = features(self.backbone, examples), len(self.entries) - 1
        self.entries = torch.cat([self.entries[:-1], new.to(self.entries), self.entries[-1:]])
        index = torch.tensor([example.index for example in examples], device=self.questions.device)
        self.questions = torch.cat([self.questions[:-1], index, self.questions[-1:]])
        places = pad(self.places, (0, max(0, len(examples) - self.places.shape[1])), value=-1)
        places[self.benchmark.row(name)] = -1
        places[self.benchmark.row(name), : len(examples)] = torch.arange(first, first + len(examples))
        self.places = places

    def _append_user(self, groups: list[int], encoded: Any) -> None:
        self.places = with_rows(self, "places", self.places.new_full((1, self.places.shape[1]), -1))

    def _load_tensors(self, path: Path) -> None:
        """Makes room for the histories of the file, which may be longer or of more users than the benchmark's."""
        with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
            for name in set(self.kept) & set(file.keys()):
                if len(shape := file.get_slice(name).get_shape()) == (own := getattr(self, name)).dim():
                    setattr(self, name, own.new_zeros(shape))
        super()._load_tensors(path)


@torch.no_grad()
def features(backbone: Backbone, examples: Sequence[Example]) -> Tensor:
    """(N, 3, H) of answered questions: mean embeddings of the question's words, of the picture, and of the answer's
    words (the option that was chosen, or yes or no)."""
    questions = [question_text(example) for example in examples]
    answers = [answer(example) for example in examples]
    distinct = list(dict.fromkeys(questions + answers))
    words = dict(zip(distinct, backbone.text_anchors(distinct, kind="embedding").float(), strict=True))
    pictures = list(dict.fromkeys(example.image for example in examples))
    means = [tokens.float().mean(0) for tokens in backbone.image_features(pictures)]
    seen = dict(zip(pictures, means, strict=True))
    return torch.stack(
        [
            torch.stack([words[question], seen[example.image].to(words[question]), words[said]])
            for example, question, said in zip(examples, questions, answers, strict=True)
        ]
    )


def answer(example: Example) -> str:
    """The answer in words: the option that was chosen, or yes or no."""
    return fill(example.options[example.answer], example.name) if example.is_multiple_choice else example.answer_text


def _unit(values: Tensor) -> Tensor:
    """(..., H) brought to an rms of 1, in float32: scales of words and pictures differ between backbones."""
    return rms_norm(values.float(), values.shape[-1:], eps=1e-12)
