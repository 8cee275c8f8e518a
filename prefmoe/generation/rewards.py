"""The drawer's noise guided by what a rater likes or dislikes (Figures 6 and 8 of arXiv 2508.08220).

Either the best of several noises by the rater's word, or, as ReNO (arXiv 2406.04312) does with other rewards, ascent on
the noise along the reward's gradient, through a sampler of few steps and through the rater's eyes.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefmoe.config import RewardedMethod
from prefmoe.generation.drawing import Drawing, noise_seeds
from prefmoe.generation.judging import judged
from prefmoe.generation.sampling import drawn, noise_of, sample
from prefmoe.models.lora import merged_lora
from prefmoe.models.raters import Rater

NEXT = 10**9
"""From the seed of a noise to that of a new one, where there are more candidates than users."""

AT_ONCE = 32
"""Pictures whose gradient is kept in memory at once."""


class Rewarded(Drawing, settings=RewardedMethod):
    """Draws without a user branch, from noise that a rater has chosen: "like" (M+) is to rise, "dislike" (M-) to
    fall, or, to displease, to rise."""

    config: RewardedMethod

    def judge(self, rater: Rater) -> None:
        """Takes the rater that guides; its weights are not this method's."""
        self._rater = [rater]

    def said(self, asked: pd.DataFrame, pictures: Tensor) -> Tensor:
        """What is to rise of every picture, (N,): M+ to please by like, -M- by dislike, M- to displease."""
        n_ref, draw = int(asked["n_ref"].iloc[0]), int(asked["draw"].iloc[0])
        plus, minus = judged(self._rater[0], asked, pictures, n_ref=n_ref, draw=draw).unbind(-1)
        return {"like": plus, "dislike": -minus, "displease": minus}[self.config.by]

    def _batch(self, own: pd.DataFrame, start: int, scale: float) -> Tensor:
        batch = slice(start, start + self.generation.batch_size)
        some, seeds = own.iloc[batch], np.array(noise_seeds(own, self.generation.prompts, self.benchmark.users))
        if self.config.how == "best":
            return self._best(some, self._candidates(own, seeds)[:, batch])
        noise = noise_of(self.drawer, seeds[batch])
        parts = range(0, len(some), AT_ONCE)
        return torch.cat([self._ascent(some.iloc[k : k + AT_ONCE], noise[k : k + AT_ONCE]) for k in parts])

    def _sample(self, asked: pd.DataFrame, noise: Tensor) -> Tensor:
        wanted = {"steps": self.generation.steps, "text_scale": self.generation.text_scale}
        return sample(self.drawer, self.prompts(asked), noise=noise, **wanted)

    def _candidates(self, asked: pd.DataFrame, seeds: NDArray) -> NDArray:
        """(candidates, N) the noises among which each picture is chosen: its own, and those of the users behind its own
        for the same prompt and number, so that each picture is drawn once. Who has too few behind gets new ones."""
        tried = np.repeat(seeds[None], self.config.candidates, axis=0)
        for rows in asked.reset_index(drop=True).groupby(["n_ref", "draw", "prompt", "noise"]).indices.values():
            for number in range(1, len(tried)):
                tried[number, rows] = np.roll(seeds[rows], -number) + NEXT * (number // len(rows))
        return tried

    def _best(self, asked: pd.DataFrame, seeds: NDArray) -> Tensor:
        """Of the pictures from so many noises, (candidates, N), the one that the rater likes most."""
        every = pd.concat(len(seeds) * [asked], ignore_index=True)
        tried = self._sample(every, noise_of(self.drawer, seeds.ravel().tolist()))
        with merged_lora(self._rater[0].model):
            best = self.said(every, tried).view(len(seeds), -1).argmax(0)
        return tried.cpu()[best.cpu() * seeds.shape[1] + torch.arange(seeds.shape[1])]

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _ascent(self, asked: pd.DataFrame, noise: Tensor) -> Tensor:
        """The pictures of noise that has followed the gradient, drawn with the edition's steps. A penalty, the log
        density of a Gaussian's length, keeps the noise as long as noise is."""
        settings = self.config
        start, size = noise.clone().requires_grad_(), noise[0].numel()
        for _ in range(settings.candidates):
            wanted = {"steps": settings.few_steps, "text_scale": self.generation.text_scale}
            said = self.said(asked, drawn(self.drawer, self.prompts(asked), noise=start, **wanted))
            length = start.flatten(1).norm(dim=1)
            stays = (size - 1) * length.log() - length.square() / 2
            (gradient,) = torch.autograd.grad((said + settings.stay * stays).sum(), start)
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-8)[:, None, None, None]
            start = (start + settings.step_size * gradient / norm).detach().requires_grad_()
        return self._sample(asked, start.detach()).cpu()
