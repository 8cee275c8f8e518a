"""Rivals without a language model: what a frozen backbone sees of pictures, and a scorer that is fitted to choices.

Whatever has to be chosen (strength of a penalty; numbers of neighbours, clusters, factors) is chosen on validation
choices.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from prefmoe.analysis.choice_baselines import PopulationScorer, TasteFactors, nearest_score, personal_weights
from prefmoe.backbones.histories import HistoryCollator, picture_features
from prefmoe.backbones.pictures import stack_pictures
from prefmoe.config import FactorsMethod, NeighboursMethod, PersonalScorerMethod, ScorerMethod
from prefmoe.data.choices import Choice, ChoiceBenchmark
from prefmoe.models import saved
from prefmoe.models.base import Method

WIDEST = 4096
"""Features of a picture are those of all of its tokens, one behind the other; of more than this their mean."""

Items = Sequence[tuple[Path, str]]
"""Pictures with their prompts."""


class Scorer(Method):
    """What all of them have in common: features of pictures, and predictions in the form of a rater's."""

    benchmark: ChoiceBenchmark
    reads_history = True
    tried: Sequence[Any] = ()
    users_need_training = "a scorer asks about the users of its benchmark"
    _own_users = saved.identify(())  # nobody: what is fitted is fitted anew, to the choices that are there

    def _make_collator(self, **options: Any) -> HistoryCollator:
        return HistoryCollator(self.backbone, pixels=False)

    @cached_property
    def _pictures(self) -> dict[Path, torch.Tensor]:
        """Tokens of every picture of the benchmark, (L, H) each."""
        files = list(dict.fromkeys(p for choice in self.benchmark.choices.values() for p in choice.candidates))
        found: dict[Path, torch.Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(files), 64):
                some = files[start : start + 64]
                inputs = stack_pictures([self.collator.prepared(file) for file in some])
                inputs = {key: value.to(self.backbone.device) for key, value in inputs.items()}
                found.update(zip(some, picture_features(self.backbone, inputs).float().cpu(), strict=True))
        return found

    def seen(self, items: Items) -> NDArray:
        """Features of pictures, (N, D)."""
        tokens = torch.stack([self._pictures[picture] for picture, _ in items])
        return (tokens.flatten(1) if tokens[0].numel() <= WIDEST else tokens.mean(1)).numpy()

    @torch.inference_mode()
    def pooled(self, items: Items) -> tuple[NDArray, NDArray]:
        """Mean tokens of pictures and mean word embeddings of prompts, of unit length, two (N, H)."""
        pictures = torch.stack([self._pictures[picture].mean(0) for picture, _ in items])
        words = {prompt: self._words(prompt) for _, prompt in items}
        prompts = torch.stack([words[prompt] for _, prompt in items])
        pictures, prompts = (torch.nn.functional.normalize(part, dim=-1) for part in (pictures, prompts))
        return pictures.numpy(), prompts.numpy()

    def _words(self, prompt: str) -> torch.Tensor:
        ids = self.backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            return torch.zeros(self.backbone.hidden_size)
        return self.backbone.embed_tokens(torch.tensor(ids, device=self.backbone.device)).mean(0).float().cpu()

    def features(self, items: Items) -> NDArray:
        """What the scorer reads of pictures and prompts, (N, D)."""
        return self.seen(items)

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The number of each user who is trained on."""
        return {name: row for row, name in enumerate(self.benchmark.trained_users)}

    @cached_property
    def _population(self) -> PopulationScorer:
        """The score for everybody, from all choices of training."""
        trained, held = (self.benchmark.select(split) for split in ("train", "validation"))
        return PopulationScorer().fit(*self._sides(trained), self._sides(held) if held else None)

    def _sides(self, choices: Sequence[Choice]) -> tuple[NDArray, NDArray]:
        """Features of liked and of disliked pictures, two (N, D)."""
        sides = ([(c.candidates[side], c.prompt) for c in choices] for side in range(2))
        liked, disliked = (self.features(items) for items in sides)
        return liked, disliked

    def _differences(self, choices: Sequence[Choice]) -> NDArray:
        """Features of the liked picture less those of the disliked one, in the population scorer's scale, (N, D)."""
        liked, disliked = (self._population.scaler.transform(side) for side in self._sides(choices))
        return liked - disliked

    @cached_property
    def _best(self) -> Any:
        """The value tried whose scores are right most often on validation choices, behind their users' whole
        histories; the middle one where there are no such choices."""
        by_user = self.benchmark.by_user("validation")
        if not by_user:
            return self.tried[len(self.tried) // 2]

        def right(value: Any) -> float:
            found = []
            for user, own in by_user.items():
                n_ref = min(8, len(self.benchmark.references[user]))
                history = self.benchmark.history(user, n_ref, 0, own)
                items = [(picture, c.prompt) for c in own for picture in c.candidates[:2]]
                scores = self.scored(value, user, history, items)
                found += list(scores[0::2] > scores[1::2])
            return float(np.mean(found))

        return max(self.tried, key=right)

    def scored(self, value: Any, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        """Scores of pictures for a user, (N,), with a value of those tried."""
        raise NotImplementedError

    def score(self, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        """Scores of pictures for a user, (N,), with the best value."""
        return self.scored(self._best, user, history, items)

    def rate(self, split: str, *, n_ref: int, draw: int) -> pd.DataFrame:
        """Scores of all candidates of a split's choices: a row each, with the columns of predictions. n_ref and draw
        are 0 for what reads no history."""
        rows = []
        for user, own in self.benchmark.by_user(split).items():
            history = self.benchmark.history(user, n_ref, draw, own) if self.reads_history else ()
            items = [(picture, choice.prompt) for choice in own for picture in choice.candidates]
            scores = iter(self.score(user, history, items).tolist())
            told = (n_ref, draw) if self.reads_history else (0, 0)
            rows += [(c.index, split, user, *told, k, next(scores)) for c in own for k in range(len(c.candidates))]
        frame = pd.DataFrame(rows, columns=["index", "split", "user", "n_ref", "draw", "candidate", "score"])
        return frame.assign(plus=np.nan, minus=np.nan)


class Population(Scorer, settings=ScorerMethod):
    """Scorers for everybody, after what the paper compares with.

    picture: aesthetic quality, from everybody's choices. agreement: CLIP-like, how near a picture is to its prompt;
    nothing is trained. both: PickScore-like, from everybody's choices, picture times prompt among its features.
    """

    config: ScorerMethod
    reads_history = False

    def features(self, items: Items) -> NDArray:
        if self.config.reads == "picture":
            return self.seen(items)
        pictures, prompts = self.pooled(items)
        agreement = (pictures * prompts).sum(1, keepdims=True)
        if self.config.reads == "agreement":
            return agreement
        return np.concatenate([self.seen(items), agreement, pictures * prompts], axis=1)

    def score(self, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        features = self.features(items)
        return features[:, 0] if self.config.reads == "agreement" else self._population.score(features)


class Neighbours(Scorer, settings=NeighboursMethod):
    """Nearest neighbours of a picture in the user's history."""

    config: NeighboursMethod

    @property
    def tried(self) -> Sequence[int]:
        return self.config.k

    def scored(self, k: int, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        shown = [(picture, c.prompt) for c in history for picture in c.candidates[:2]]
        return nearest_score(self.features(shown), np.tile([True, False], len(history)), self.features(items), k)


class Personal(Scorer, settings=PersonalScorerMethod):
    """The population's score, moved by the choices of a history."""

    config: PersonalScorerMethod

    @property
    def tried(self) -> Sequence[float]:
        return self.config.penalties

    def scored(self, penalty: float, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        scorer, differences = self._population, self._differences(history)
        weights = personal_weights(differences, scorer.weights, penalty * differences.shape[1] / 100)
        return scorer.scaler.transform(self.features(items)) @ weights


class Factors(Scorer, settings=FactorsMethod):
    """Matrix factorisation of seen users and kinds of picture; it has nothing to say of unseen users' own taste."""

    config: FactorsMethod
    reads_history = False

    @cached_property
    def tried(self) -> Sequence[TasteFactors]:
        choices = self.benchmark.select("train")
        users, sides = [self._rows[choice.user] for choice in choices], self._sides(choices)
        first, *others = self.config.factors
        fitted = [TasteFactors(clusters, first, self.seed).fit(users, *sides) for clusters in self.config.clusters]
        return [model for one in fitted for model in (one, *map(one.with_factors, others))]

    def scored(self, model: TasteFactors, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        return model.score(self._rows.get(user), self.features(items))
