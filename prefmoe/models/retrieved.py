"""Retrieved statements: an index finds what a question is about, and what the user's profile says of it is shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from prefmoe.analysis.statistics import cluster_bootstrap
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Collator
from prefmoe.backbones.pictures import Picture
from prefmoe.config import RetrievedMethod
from prefmoe.data import prompts
from prefmoe.data.benchmark import FACETS, Benchmark, Example, Turn, User, named_items
from prefmoe.data.prompts import PLAIN, Wording
from prefmoe.models.base import Method
from prefmoe.models.lora import adapt

ENTRIES = (*FACETS, "description")
"""What of a profile is told apart: the statement of each facet, and how the user looks."""

SAMPLE = 256
"""Training questions by which scores are brought to one scale."""

GROUP = 32
"""Pictures that are looked at together."""


class Index:
    """Says which entry of a profile a question is about, by its picture and its words. Nothing is trained.

    An entry's keys are of the frozen backbone. Those of a facet are the word embeddings of what anybody's statement in
    this facet names; its score is the cosine of the nearest pair of a key and a token of the question's picture (late
    interaction: Khattab and Zaharia 2020, arXiv 2004.12832, with the largest in the place of the sum, as one thing is
    asked about). Those of the description are the mean tokens of everybody's profile pictures, with which the
    picture's mean token is compared, both seen from the mean of training pictures. To either comes the similarity of
    the question's words with all that profiles say of the entry (TF-IDF), for questions that name what they are about.

    Keys are everybody's, because a question may be about what the user's own statements leave out: what others
    say of it tells which facet it belongs to. Scores of different entries are compared after each has been
    centred and scaled by what it is for training questions; of which entry these are is not asked.

    Args:
        backbone: freshly loaded, before anything is adapted. benchmark: whose users' profiles are indexed.
    """

    def __init__(self, backbone: Backbone, benchmark: Benchmark) -> None:
        self.backbone = backbone
        self._seen: dict[Path, Tensor] = {}
        self._said: dict[str, Tensor] = {}
        self._to_see = list(dict.fromkeys(example.image for example in benchmark.examples.values()))
        self._place = {picture: place for place, picture in enumerate(self._to_see)}
        users = list(benchmark.users.values())
        named = [named_items(users, facet) for facet in FACETS]
        self._words = [self._tokens(items) for items in named]
        examples = benchmark.select("train")
        examples = examples[:: max(1, len(examples) // SAMPLE)]
        self._centre = torch.cat([self._look(example.image) for example in examples]).mean(0)  # (H,)
        faces = backbone.image_features([picture for user in users for picture in user.images])
        self._faces = normalize(torch.stack([face.float().mean(0) for face in faces]) - self._centre, dim=-1)
        looks = " ".join(user.description for user in users)
        self._reader = TfidfVectorizer()
        self._documents = self._reader.fit_transform([*(" ".join(items) for items in named), looks])
        raw = torch.stack([self._raw(example) for example in examples])  # (N, 6)
        self._mean, self._spread = raw.mean(0), raw.std(0, correction=0).clamp_min(1e-6)

    def scores(self, example: Example) -> Tensor:
        """(6,) how near a question is to each entry, in the order of ENTRIES."""
        return (self._raw(example) - self._mean) / self._spread

    def entries(self, example: Example, count: int) -> tuple[str, ...]:
        """The nearest entries, the nearest first."""
        order = self.scores(example).argsort(descending=True, stable=True)
        return tuple(ENTRIES[k] for k in order[:count].tolist())

    @torch.no_grad()
    def _raw(self, example: Example) -> Tensor:
        tokens = self._look(example.image)  # (N, H)
        unit = normalize(tokens, dim=-1)
        facets = [(unit @ words.T).max() if len(words) else unit.new_tensor(-1.0) for words in self._words]
        face = (self._faces @ normalize(tokens.mean(0) - self._centre, dim=-1)).max()
        return torch.stack([*facets, face]).cpu() + self._read(prompts.question_text(example, " "))

    def _read(self, question: str) -> Tensor:
        """(6,) the cosine of a question's words and what profiles say of each entry."""
        if question not in self._said:
            likeness = (self._reader.transform([question]) @ self._documents.T).toarray()[0]
            self._said[question] = torch.tensor(likeness, dtype=torch.float32)
        return self._said[question]

    def _look(self, picture: Path) -> Tensor:
        """The picture's tokens (N, H), as the language model receives them. Those of the benchmark are looked at in
        groups: whoever asks for one asks for the next ones soon."""
        if picture not in self._seen:
            place = self._place.get(picture)
            group = [picture] if place is None else self._to_see[place : place + GROUP]
            tokens = self.backbone.image_features(group)
            self._seen.update(zip(group, (one.float() for one in tokens), strict=True))
        return self._seen[picture]

    @torch.no_grad()
    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """Directions (K, H) of the word embeddings of all tokens of some texts."""
        tokenizer, weight = self.backbone.tokenizer, self.backbone.embed_tokens.weight
        ids = {i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
        known = sorted(ids - set(tokenizer.all_special_ids))
        return normalize(weight[torch.tensor(known, dtype=torch.long, device=weight.device)].float(), dim=-1)


def entry_of(example: Example) -> str:
    """The entry that a question is about, which is its gold label."""
    return ENTRIES[example.facet_id]  # -1, the last, for recognition


def statement(user: User, entry: str) -> str:
    """What a profile says of an entry, with the name in place; "Unknown preferences" where it says nothing."""
    if entry == "description":
        return prompts.description_text(user)
    return prompts.format_preferences({k: v for k, v in user.preferences.items() if k == entry}, user.name)


class RetrievedCollator(Collator):
    """A collator whose prompts open with what the index finds in the user's profile."""

    def __init__(self, index: Index, count: int, *given: Any, **options: Any) -> None:
        self.index, self.count = index, count
        super().__init__(*given, profile="statement", **options)

    @property
    def form(self) -> tuple[Hashable, ...]:
        return *super().form, "retrieved", self.count

    def told(self, example: Example) -> Hashable:
        return self.index.entries(self.asked(example), self.count)

    def conversation(
        self, example: Example, user: User, transcript: Sequence[Turn]
    ) -> tuple[list[dict[str, Any]], Sequence[Picture]]:
        found = self.index.entries(example, self.count)
        opening = " ".join(_ended(statement(user, entry)) for entry in found)
        words = Wording(opening=opening, name=self.wording.name, answers=self.wording.answers)
        return prompts.messages(example, user, transcript=transcript, wording=words), prompts.images(example, user)


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


class RetrievedLoRA(Method, settings=RetrievedMethod):
    """Retrieval-augmented personalisation (RAP: Hao et al. 2024, arXiv 2410.13360) of a user's statements.

    Every prompt, in training and in test, opens with the entries of the user's profile that the index finds for its
    question; a LoRA learns to read them. The gold label of a question is looked at by `retrieval` alone, which says how
    often the index was right.

    Departures: the paper's database holds concepts with a picture and a text each, finds by a detector which of them
    are in the picture, and compares features of CLIP; here users are named by the question, and what has to be found
    is which part of the profile matters. The index is made of the backbone itself, since no backbone here brings CLIP's
    text tower. Found pictures are not shown, only words; no data set that another model wrote.
    """

    beginning = "question"  # on which depends what is found, and stands in front

    def __init__(self, config: RetrievedMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        self.index = Index(backbone, benchmark)
        super().__init__(config, backbone, benchmark, profile="statement", **options)
        self.adapted = adapt(backbone, config)

    def _make_collator(self, *, wording: Wording = PLAIN, cache: bool) -> RetrievedCollator:
        index, count = self.index, self.config.statements
        return RetrievedCollator(index, count, self.backbone, self.benchmark, wording=wording, cache=cache)

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return self.adapted

    def retrieval(self, split: str) -> dict[str, float]:
        """Of a split's questions: n, the share whose entry is found ``first``, and that whose entry is ``shown`` at
        all, each with the bounds (``_low``, ``_high``) of an interval that resamples users; of one user there is none.
        """
        examples, count = self.benchmark.select(split), self.config.statements
        found = [(entry_of(example), self.index.entries(example, count)) for example in examples]
        told: dict[str, float] = {"n": len(found)}
        for name, k in (("first", 1), ("shown", count)):
            share = cluster_bootstrap([entry in entries[:k] for entry, entries in found], [e.name for e in examples])
            bounds = {f"{name}_{end}": share[end] for end in ("low", "high") if not math.isnan(share[end])}
            told |= {name: share["value"], **bounds}
        return told

    def describe(self) -> dict[str, Any]:
        splits = [split for split, indices in self.benchmark.splits.items() if indices]
        retrieval = {split: self.retrieval(split) for split in splits}
        return {**super().describe(), "profile": self.config.information, "retrieval": retrieval}
