"""Several users' tokens in one prompt, trained together, which begin as what the tower sees in profile pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch, Collator
from prefmoe.backbones.pictures import Picture
from prefmoe.config import JointTokensMethod
from prefmoe.data import prompts
from prefmoe.data.benchmark import Benchmark, Example, Turn, User
from prefmoe.data.prompts import Wording
from prefmoe.models.added_tokens import AddedTokens
from prefmoe.models.base import Method
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import UserTokens, trained_rows
from prefmoe.models.growing import with_rows


def words_of(slot: int, tokens: int) -> tuple[str, ...]:
    """The user's word in a place of the prompt, and the tokens that say what it means."""
    return (f"<sks{slot}>", *(f"<s{slot}t{k}>" for k in range(tokens)))


class JointCollator(Collator):
    """A collator whose prompts open with a sentence about each of so many users, and call the asked one by its word.

    In which place this user stands depends on the question alone, so that everybody stands in all of them.
    """

    def __init__(self, together: int, *given: Any, **options: Any) -> None:
        self.together = together
        super().__init__(*given, **options)

    def conversation(
        self, example: Example, user: User, transcript: Sequence[Turn]
    ) -> tuple[list[dict[str, Any]], Sequence[Picture]]:
        (word,) = words_of(example.index % self.together, 0)
        wording = replace(self.wording, name=word)
        return prompts.messages(example, user, transcript=transcript, wording=wording), prompts.images(example, user)


class JointTokens(Method, settings=JointTokensMethod):
    """MC-LLaVA (An et al. 2024, arXiv 2411.11706): the tokens of several concepts in one prompt, learned jointly.

    Every conversation opens with ``<sks0> is <s0t0> ... . <sks1> is <s1t0> ... .``: the user who is asked about and
    companions, from whom the model has to tell this user; the question says the user's word. A user's tokens begin as
    the centres of k-means over the projected tokens of the user's profile pictures, the word as their mean. What is
    learned is added to that, and starts at zero: users without training questions are what their pictures show.

    Departures: companions are neighbours on a circle of users, drawn once, instead of people of one scene; the
    opening is an acknowledged turn (as Yo'LLaVA's here); rows of the output layer are not trained, since no answer says
    a user's word; no attention maps as visual prompts, and no conversations that another model wrote.
    """

    token_controls = ("zero_prefix",)
    kept = ("start", "companions")
    beginning = "question"  # on which the place of the user among the companions depends

    def __init__(self, config: JointTokensMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        self.together = min(config.together, len(benchmark.trained_users))
        words = [words_of(place, config.tokens) for place in range(self.together)]
        opening = " ".join(f"{word} is {''.join(latent)}." for word, *latent in words)
        added = tuple(word for one in words for word in one)
        wording = Wording(opening=opening, name=prompts.PLACEHOLDER, added=added)
        super().__init__(config, backbone, benchmark, wording=wording, **options)
        self.added = AddedTokens(backbone, added)
        start = torch.cat([self._start(user) for user in benchmark.users.values()])
        self.register_buffer("start", start, persistent=False)  # (U, 1 + k, H)
        trained = trained_rows(benchmark, backbone.device)
        # (U,) a user's place among what is learned, the last one for those of whom nothing is
        self.register_buffer("slot", torch.where(trained, trained.cumsum(0) - 1, int(trained.sum())), persistent=False)
        drawn = torch.Generator().manual_seed(self.seed)
        rows = trained.nonzero()[:, 0]
        self.register_buffer("circle", rows[torch.randperm(len(rows), generator=drawn).to(rows)], persistent=False)
        together = self._companions(torch.arange(len(start), device=start.device))
        self.register_buffer("companions", together, persistent=False)  # (U, S) the user first
        self.learned = nn.Parameter(start.new_zeros(int(trained.sum()), *start.shape[1:]))

    def _companions(self, rows: Tensor) -> Tensor:
        """(N, S) users (N,) and the next ones on the circle; of somebody who is not on it, its first ones."""
        place = rows.new_full((max(len(self.start), int(rows.max())) + 1,), -1)
        place[self.circle] = torch.arange(len(self.circle), device=rows.device)
        after = place[rows, None] + 1 + torch.arange(self.together - 1, device=rows.device)
        return torch.cat([rows[:, None], self.circle[after % max(1, len(self.circle))]], dim=1)

    def _make_collator(self, *, wording: Wording, cache: bool) -> JointCollator:
        return JointCollator(self.together, self.backbone, self.benchmark, wording=wording, cache=cache)

    def _start(self, user: User) -> Tensor:
        """(1, 1 + k, H): the mean of the k-means centres of all tokens of the user's pictures, and the centres."""
        tokens = torch.cat([tokens.float() for tokens in self.backbone.image_features(list(user.images))])
        return centres(tokens, self.config.tokens, self.seed)[None].to(self.backbone.device)

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """The words of the batch's users and of their companions, (B, S (1 + k), H)."""
        places = torch.arange(self.together, device=batch.index.device) - batch.index[:, None]
        rows = self.companions[batch.user].gather(1, places.remainder(self.together))  # (B, S), the user at index mod S
        nothing = self.learned.new_zeros(1, *self.learned.shape[1:])
        words = self.start[rows] + torch.cat([self.learned, nothing])[self.slot[rows]]  # (B, S, 1 + k, H)
        shown = controlled_tokens(UserTokens(words.flatten(1, 2)), batch.control)
        with self.added.active(shown.prefix):
            yield

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"tokens": ([self.learned], self.config.lr)}

    def _encode_user(self, user: User) -> Tensor:
        return self._start(user)

    def _append_user(self, groups: list[int], encoded: Tensor | None) -> None:
        start = self.start.new_zeros(1, *self.start.shape[1:]) if encoded is None else encoded
        self.start, self.slot, self.companions = (
            with_rows(self, "start", start),
            with_rows(self, "slot", self.slot.new_full((1,), len(self.learned))),
            with_rows(self, "companions", self._companions(self.circle.new_tensor([len(self.start)]))),
        )


def centres(tokens: Tensor, count: int, seed: int) -> Tensor:
    """(1 + count, H) the mean of the centres of k-means over tokens (N, H), and the centres, ordered by their size; the
    largest are repeated where there are fewer different tokens."""
    different = len(tokens.unique(dim=0))
    fitted = KMeans(min(count, different), n_init=4, random_state=seed).fit(tokens.cpu().numpy())
    found = torch.from_numpy(fitted.cluster_centers_).to(tokens.dtype)
    order = torch.from_numpy(fitted.labels_).long().bincount(minlength=len(found)).argsort(descending=True, stable=True)
    chosen = found[order[torch.arange(count) % len(found)]]
    return torch.cat([chosen.mean(0, keepdim=True), chosen])
