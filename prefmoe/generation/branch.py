"""Drawing with a user branch: cross-attention to user tokens beside that to the prompt, trained on liked pictures.

The denoiser, its text encoder and the rater are frozen; the branch, the tokens' projections and the MLP learn to
denoise pictures that a user liked, told the prompt and e_u of a history without that picture. Without a user the drawer
is what it was before, so that user tokens need no dropping for guidance; the prompt is left out now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import OnDevice
from prefmoe.config import Training, UserTokensMethod, WrongUserMethod
from prefmoe.data.choice_tastes import TasteError, excess, words
from prefmoe.data.choices import Choice, ChoiceBenchmark, HistoryError
from prefmoe.generation.denoising import denoising_loss
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.drawing import Drawing, drawn_users
from prefmoe.generation.pictures import small_pictures
from prefmoe.generation.states import History
from prefmoe.generation.user_branch import add_user_branch, drawer_digest
from prefmoe.generation.user_tokens import Known, UserTokens, alignment
from prefmoe.models.base import MethodError
from prefmoe.running.training import Batches, total_steps

FOLDS = 3
"""Parts of a user's training choices: the pictures of one part are denoised behind histories of the others."""

TRAINING_DRAWS = 2**20
"""Histories for training are drawn under numbers from here."""


@dataclass(frozen=True)
class LikedBatch(OnDevice):
    """Liked pictures with what is known of who liked them.

    Attributes:
        pictures: (B, 3, S, S) in [-1, 1]. text: (B, W, D) what their prompts say.
        known: of their users.
        liked, disliked: (B, V, D) text embeddings of words for the users' attributes; (B, 0, D) if nothing is aligned.
    """

    pictures: Tensor
    text: Tensor
    known: Known
    liked: Tensor
    disliked: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


def training_histories(
    benchmark: ChoiceBenchmark, *, n_ref: int, lengths: Sequence[int], draws: int
) -> tuple[list[History], dict[int, list[int]]]:
    """Histories of all trained users, and for each training choice (by index) the places of those without it.

    A user's choices are parted; for each part there are so many histories of the others, of n_ref choices and of every
    further length in turn. Raises HistoryError if a user has too few choices.
    """
    found, fitting = [], {}
    own: dict[str, list[Choice]] = benchmark.by_user("train")
    for user, choices in own.items():
        references = len(benchmark.references[user])
        if references <= n_ref:
            raise HistoryError(
                f"{benchmark.root}: user {user!r} has {references} choices, expected more than n_ref = {n_ref}"
            )
        size = max(1, min(-(-len(choices) // FOLDS), references - n_ref))
        turns = [n_ref, *lengths]
        for part, start in enumerate(range(0, len(choices), size)):
            left_out = tuple(choices[start : start + size])
            places = []
            for draw in range(draws):
                places.append(len(found))
                length = turns[(part + draw) % len(turns)] if draw else n_ref
                found.append(History(user, length, TRAINING_DRAWS + part * draws + draw, left_out))
            fitting |= {choice.index: places for choice in left_out}
    return found, fitting


class UserBranch(Drawing, settings=UserTokensMethod):
    """The complete method and its ablations.

    Args:
        core_layer, layers, picture_width: the layer that the probes chose, how many the rater has, width of what it
            sees; others as of `Drawing`.
    """

    config: UserTokensMethod
    auxiliary = frozenset({"alignment"})
    kept = ("tokens.mean", "tokens.spread", "drawn_with")

    def __init__(
        self, config: UserTokensMethod, backbone: Backbone, benchmark: ChoiceBenchmark, *, core_layer: int, layers: int,
        picture_width: int, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(config, backbone, benchmark, **options)
        with torch.no_grad():
            empty = self.drawer.encode_prompts([""])
        self.empty = empty[0]
        self.tokens = UserTokens(
            config, core_layer=core_layer, layers=layers, hidden=backbone.hidden_size, picture_width=picture_width,
            width=self.drawer.width, scale=float(empty.square().mean().sqrt()),
        )  # fmt: skip
        self.branch = add_user_branch(self.drawer, seed=self.seed)
        digest = torch.tensor(list(bytes.fromhex(drawer_digest(self.drawer))), dtype=torch.uint8)
        self.register_buffer("drawn_with", digest)
        self._asked: dict[tuple[str, int, int], int] = {}
        self._known: Known | None = None

    def tell(self, histories: Sequence[History], known: Known) -> None:
        """Notes what is known of the users that will be drawn for."""
        self._asked = {(one.user, one.n_ref, one.draw): place for place, one in enumerate(histories)}
        self._known = known.to(self.backbone.device)

    def histories(self, asked: pd.DataFrame) -> list[History]:
        """The histories that have to be told before these pictures are drawn."""
        return [History(*key) for key in sorted(set(map(self._whose, asked.itertuples())))]

    def _whose(self, row: Any) -> tuple[str, int, int]:
        return row.user, row.n_ref, row.draw

    def user_tokens(self, asked: pd.DataFrame) -> Tensor:
        """e_u for each picture, (N, T, D)."""
        places = [self._asked[self._whose(row)] for row in asked.itertuples()]
        return self.tokens(self._known.rows(places))

    def training_losses(self, batch: LikedBatch) -> dict[str, Tensor]:
        """Terms by name: answer (of the denoiser), and alignment times its weight where there is one."""
        size, known = len(batch), batch.known
        semantic = self.tokens.semantic(known) if self.tokens.sem is not None else None
        user = self.tokens(known, semantic)
        left_out = torch.rand(size, device=user.device) < self.config.drop_prompt
        text = torch.where(left_out[:, None, None], self.empty.to(user.device), batch.text)
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        losses = {"answer": denoising_loss(self.drawer, batch.pictures, text, rng, user, earliest=self.config.earliest)}
        if self.config.alignment != "none":
            apart = alignment(semantic, batch.liked, batch.disliked, self.config.alignment)
            losses["alignment"] = self.config.alignment_weight * apart
        return losses

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            "tokens": (list(self.tokens.parameters()), self.config.lr),
            "branch": (list(self.branch.parameters()), self.config.lr),
        }

    def load(self, path: Path) -> None:
        """Takes what a finished run has trained. Raises MethodError if the file is damaged, another method's, or of
        another drawer."""
        own = self.drawn_with.clone()
        self._load_tensors(path)
        if not torch.equal(own, self.drawn_with):
            there, here = (bytes(one.tolist()).hex() for one in (self.drawn_with, own))
            raise MethodError(f"{path}: trained beside the drawer {there}, and this one is {here}")

    def words(self, histories: Sequence[History]) -> tuple[Tensor, Tensor]:
        """Text embeddings of what a user's liked pictures show more often than the disliked ones, and of the reverse,
        for each history's user: (N, V, D) each, of a word each. They are read off the training choices; of who has
        none, off all that a history may hold. Raises TasteError if attributes are unknown, or choices show too few."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        trained = self.benchmark.by_user("train")
        for user in dict.fromkeys(one.user for one in histories):
            own = trained.get(user) or [self.benchmark.choices[k] for k in self.benchmark.references[user]]
            seen = excess(self.benchmark, own)
            found[user] = tuple(list(words(seen, self.config.words, liked=side).values()) for side in (True, False))
        if short := [user for user, sides in found.items() if min(map(len, sides)) < self.config.words]:
            wanted = f"{self.config.words} liked and as many disliked attributes"
            raise TasteError(f"user {short[0]!r}: expected choices that show {wanted}")
        named = sorted({word for sides in found.values() for side in sides for word in side})
        carrier = min({choice.prompt for choice in self.benchmark.select("train")})
        embedded = dict(zip(named, embed_words(self.drawer, named, carrier), strict=True))  # (D,) each
        table = {u: [torch.stack([embedded[w] for w in side]) for side in sides] for u, sides in found.items()}
        liked, disliked = zip(*(table[one.user] for one in histories), strict=True)
        return torch.stack(liked), torch.stack(disliked)


@torch.no_grad()
def embed_words(drawer: Drawer, words: Sequence[str], carrier: str) -> Tensor:
    """Text embeddings of words behind a prompt, (N, D): the mean over each word's own tokens. ``carrier``: the prompt.
    Raises DrawerError if the drawer does not know a word."""
    prompts = [f"{carrier}, {word}" for word in words]
    ids, embedded = drawer.token_ids(prompts), drawer.encode_prompts(prompts)
    plain = drawer.token_ids([carrier])[0]
    begins = int((plain != ids[:1]).any(0).nonzero()[0])  # where the word stands in the place of the end
    stops = torch.tensor([len(drawer.tokenizer(prompt)["input_ids"]) - 1 for prompt in prompts])
    places = torch.arange(ids.shape[1])[None]
    own = ((places >= begins) & (places < stops[:, None])).to(embedded)
    return (embedded * own[..., None]).sum(1) / own.sum(1, keepdim=True)


def liked_batches(method: UserBranch, histories: list[History], fitting: dict[int, list[int]], known: Known) -> Any:
    """What `train` makes batches of liked pictures with, each behind one of the histories that do not hold it."""
    method.tokens.standardise(known.states)
    width = method.drawer.width
    if method.config.alignment == "none":
        liked = disliked = torch.zeros(len(histories), 0, width)
    else:
        liked, disliked = method.words(histories)

    def make(method: UserBranch, choices: Sequence[Choice], training: Training, seed: int) -> Batches:
        steps = total_steps(training, method.config) * training.gradient_accumulation
        rng = np.random.default_rng(seed)
        epochs = -(-steps * training.batch_size // len(choices))
        order = np.concatenate([rng.permutation(len(choices)) for _ in range(epochs)])[: steps * training.batch_size]
        plan = order.reshape(steps, training.batch_size).tolist()
        which = rng.integers(2**31, size=(steps, training.batch_size))
        pictures = 2 * small_pictures([choice.liked for choice in choices], method.drawer.size) - 1
        prompts = sorted({choice.prompt for choice in choices})
        with torch.no_grad():
            texts = method.drawer.encode_prompts(prompts)
        text_of = {prompt: number for number, prompt in enumerate(prompts)}

        def collate(number: int, rank: int, world: int) -> LikedBatch:
            places = plan[number][rank::world]
            drawn = which[number][rank::world]
            behind = [fitting[choices[place].index] for place in places]
            mine = [some[draw % len(some)] for some, draw in zip(behind, drawn.tolist(), strict=True)]
            said = texts[[text_of[choices[place].prompt] for place in places]]
            return LikedBatch(pictures[places], said, known.rows(mine), liked[mine], disliked[mine])

        return Batches(plan, collate)

    return make


class WrongUser(UserBranch, settings=WrongUserMethod):
    """A trained branch that is given the history of another user. (Its settings are those of the branch; the workbench
    gives it this class's.)"""

    def other(self, user: str) -> str:
        """Whose history is told."""
        return self._others[user]

    @cached_property
    def _others(self) -> dict[str, str]:
        """By user, somebody else of the same split: nobody twice, of another taste group wherever that can be (groups
        are a miniature's; without them anybody)."""
        found: dict[str, str] = {}
        for users in drawn_users(self.benchmark, self.generation.users).values():
            if len(users) == 1:
                raise TasteError(f"user {users[0]!r}: nobody else's history can be told, for nobody else is drawn for")
            utilities = self.benchmark.utilities
            groups = np.arange(len(users)) if utilities is None else utilities.loc[users, "group"].to_numpy()
            count, place = len(users), np.arange(len(users))
            further = (place[None] - place[:, None] - count // 2) % count  # half a list on, if all else is equal
            cost = further / count**2 + (groups[None] == groups[:, None]) + count * np.eye(count)
            _, others = linear_sum_assignment(cost)
            found |= {user: users[k] for user, k in zip(users, others, strict=True)}
        return found

    def _whose(self, row: Any) -> tuple[str, int, int]:
        return self.other(row.user), row.n_ref, row.draw
