"""The drawer's noise guided by what a rater likes or dislikes (Figures 6 and 8 of arXiv 2508.08220).

Either the best of several noises by the rater's word, or, as ReNO (arXiv 2406.04312) does with other rewards, ascent on
the noise along the reward's gradient, through a sampler of few steps and through the rater's eyes.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from prefmoe.config import RewardedMethod
from prefmoe.generation.drawing import Drawing, noise_seeds
from prefmoe.generation.judging import judged
from prefmoe.generation.sampling import drawn, noise_of, sample
from prefmoe.models.lora import merged_lora
from prefmoe.models.raters import Rater

NEXT = 10**6
"""From the seed of a picture's noise to that of the next noise that is tried for it."""

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
        some = own.iloc[start : start + self.generation.batch_size]
        seeds = noise_seeds(some, self.generation.prompts)
        if self.config.how == "best":
            return self._best(some, seeds)
        noise = noise_of(self.drawer, seeds)
        parts = range(0, len(some), AT_ONCE)
        return torch.cat([self._ascent(some.iloc[k : k + AT_ONCE], noise[k : k + AT_ONCE]) for k in parts])

    def _sample(self, asked: pd.DataFrame, noise: Tensor) -> Tensor:
        wanted = {"steps": self.generation.steps, "text_scale": self.generation.text_scale}
        return sample(self.drawer, self.prompts(asked), noise=noise, **wanted)

    def _best(self, asked: pd.DataFrame, seeds: Sequence[int]) -> Tensor:
        """Of so many pictures, the first from the noise itself, the one that the rater likes most. All users choose
        among the same, each of which is drawn once."""
        every = pd.concat(self.config.candidates * [asked], ignore_index=True)
        others = [seed + NEXT * number for number in range(self.config.candidates) for seed in seeds]
        tried = self._sample(every, noise_of(self.drawer, others))
        with merged_lora(self._rater[0].model):
            best = self.said(every, tried).view(-1, len(seeds)).argmax(0)
        return tried.cpu()[best.cpu() * len(seeds) + torch.arange(len(seeds))]

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
