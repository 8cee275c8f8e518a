"""What every method that draws has in common: which pictures are asked for, from which noise, how they are drawn."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prefmoe.backbones.backbone import Backbone
from prefmoe.config import Edition, Generation, MethodSettings
from prefmoe.data.choice_drawing import content_of
from prefmoe.data.choices import ChoiceBenchmark
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.sampling import sample
from prefmoe.models import saved
from prefmoe.models.base import Method

REQUEST = ("split", "user", "prompt", "noise", "n_ref", "draw", "scale")
"""What is asked for, a row per picture: n_ref and draw say which history is told (0 choices: none), scale how strongly
guidance follows the user (0 where there is no such guidance)."""

SPLITS = ("test", "unseen")
"""Of whose users pictures are drawn: the first ones who are trained on, and the first of the others."""


def drawn_users(benchmark: ChoiceBenchmark, count: int) -> dict[str, list[str]]:
    """The users of each split for whom pictures are drawn, in the benchmark's order."""
    asked = {split: set(benchmark.by_user(split)) for split in SPLITS if benchmark.splits.get(split)}
    return {split: [user for user in benchmark.users if user in own][:count] for split, own in asked.items()}


def check_prompts(edition: Edition, benchmark: ChoiceBenchmark) -> None:
    """Raises ValueError if a prompt is none of the benchmark's world; where attributes are unknown any may be."""
    for prompt in edition.generation.prompts if benchmark.attributes is not None else ():
        content_of(prompt)


def requests(edition: Edition, name: str, benchmark: ChoiceBenchmark) -> pd.DataFrame:
    """What a method of an edition is asked to draw: `REQUEST`."""
    settings, method = edition.generation, edition.methods[name]
    lengths: Sequence[int] = edition.histories.asked(name) if method.reads_history else (0,)
    usual, scales = settings.user_scale, (settings.scales if name in settings.at_scales else ())
    if method.is_guided:
        asked = [(length, usual) for length in lengths]
        asked += [(edition.histories.n_ref, scale) for scale in scales if scale != usual]
    else:
        asked = [(length, 0.0) for length in lengths]
    rows = [
        (split, user, prompt, noise, n_ref, 0, float(scale))
        for n_ref, scale in asked
        for split, users in drawn_users(benchmark, settings.users).items()
        for user, prompt, noise in product(users, settings.prompts, range(settings.noises))
    ]
    return pd.DataFrame(rows, columns=list(REQUEST))


def noise_seeds(asked: pd.DataFrame, prompts: Sequence[str], users: Mapping[str, int]) -> list[int]:
    """The seed of each picture's noise: another for every user, prompt and number, and the same whatever the method and
    the seed it was trained with, so that all are paired. ``users``: the benchmark's, with their rows."""
    where = {prompt: place for place, prompt in enumerate(prompts)}
    rows = zip(asked["user"], asked["prompt"], asked["noise"], strict=True)
    return [1000 * (users[user] * len(where) + where[prompt]) + number for user, prompt, number in rows]


class Drawing(Method):
    """A way of drawing pictures for users.

    Args:
        config, backbone, benchmark, seed, cache: as of `Method`; the backbone is that of the rater behind it.
        drawer: frozen. generation: the edition's.
    """

    users_need_training = "a user is known by a history of rated pictures, and is drawn for without being added"
    _own_users = saved.identify(())  # nobody: what is learned is no one user's

    def __init__(
        self, config: MethodSettings, backbone: Backbone, benchmark: ChoiceBenchmark, *, drawer: Drawer,
        generation: Generation, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(config, backbone, benchmark, **options)
        self.drawer, self.generation = drawer, generation

    def _make_collator(self, **options: Any) -> None:
        """No questions are asked."""

    def prompts(self, asked: pd.DataFrame) -> list[str]:
        """What the drawer is told in words, for each picture."""
        return list(asked["prompt"])

    def user_tokens(self, asked: pd.DataFrame) -> Tensor | None:
        """What its user branch is told, (N, T, D); None where there is none."""
        return None

    @torch.inference_mode()
    def draw(self, asked: pd.DataFrame) -> Tensor:
        """The pictures, (N, 3, size, size) in [0, 1], on the CPU; so many at once as the edition says."""
        settings, found = self.generation, []
        for scale, own in asked.groupby("scale", sort=False):
            for start in range(0, len(own), settings.batch_size):
                found.append((own.index[start : start + settings.batch_size], self._batch(own, start, float(scale))))
        order = np.argsort(np.concatenate([index for index, _ in found]))
        return torch.cat([pictures for _, pictures in found])[torch.from_numpy(order)]

    def _batch(self, own: pd.DataFrame, start: int, scale: float) -> Tensor:
        settings = self.generation
        some = own.iloc[start : start + settings.batch_size]
        noise = noise_seeds(some, settings.prompts, self.benchmark.users)
        pictures = sample(
            self.drawer, self.prompts(some), noise=noise, steps=settings.steps, text_scale=settings.text_scale,
            user_tokens=self.user_tokens(some), user_scale=scale,
        )  # fmt: skip
        return pictures.float().cpu()
