"""A linear reader of pictures: everybody's weights of a picture's features, moved along a few directions by each user.

P(liked over disliked) = sigma((w + u B) . d), d = x(liked) - x(disliked): probabilistic matrix factorisation
(Salakhutdinov and Mnih, 2008) whose items are features of a frozen encoder. N = choices, D = features, k = rank.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch.nn.functional import softplus

from prefmoe.config import LowRankMethod
from prefmoe.data.choices import Choice
from prefmoe.models.scorers import Items, Scorer

STEPS, RATE = 300, 1e-2


class LowRankUsers:
    """w, B and each user's u: `STEPS` of Adam from random u and B, and the population's w, downhill on mean
    -log sigma(...) + penalty (|B|^2 + mean |u|^2 + |w - population|^2).

    Attributes:
        w: (D,). b: (k, D). u: (U, k).
    """

    def __init__(
        self, differences: NDArray, rows: NDArray, population: NDArray, *, rank: int, penalty: float, seed: int
    ) -> None:
        """
        Args:
            differences: (N, D) d of each choice. rows: (N,) the user of each. population: (D,) where w begins.
        """
        drawn = torch.Generator().manual_seed(seed)
        d, whose = torch.tensor(differences, dtype=torch.float32), torch.as_tensor(rows)
        start = torch.tensor(population, dtype=torch.float32)
        w = start.clone().requires_grad_()
        u = (0.1 * torch.randn(int(rows.max()) + 1, rank, generator=drawn)).requires_grad_()
        b = (0.01 * torch.randn(rank, d.shape[1], generator=drawn)).requires_grad_()
        optimiser = torch.optim.Adam([w, u, b], lr=RATE)
        for _ in range(STEPS):
            margins = d @ w + (d @ b.T * u[whose]).sum(1)
            moved = b.square().sum() + u.square().mean() + (w - start).square().sum()
            optimiser.zero_grad()
            (softplus(-margins).mean() + penalty * moved).backward()
            optimiser.step()
        self.w, self.u, self.b = (part.detach().double().numpy() for part in (w, u, b))

    def found(self, history: NDArray, prior: float) -> NDArray:
        """(k,) the u of who made a history's choices, (E, D), by least -log sigma(...) + prior / 2 |u / spread|^2.
        spread: the standard deviation of the trained users' u. With a great prior u is 0, everybody."""
        base, moves, spread = history @ self.w, history @ self.b.T, self.u.std(0).clip(1e-3)

        def objective(u: NDArray) -> tuple[float, NDArray]:
            margins, size = base + moves @ u, u / spread
            value = np.logaddexp(0, -margins).sum() + prior / 2 * size @ size
            return value, prior * size / spread - expit(-margins) @ moves

        return minimize(objective, np.zeros(len(spread)), jac=True, method="L-BFGS-B").x

    def score(self, features: NDArray, u: NDArray) -> NDArray:
        """(K, D) -> (K,)."""
        return features @ (self.w + u @ self.b)


Fitted = tuple[LowRankUsers, float]
"""What was learned of users, and how strongly a history's reading is drawn to 0, everybody."""


class LowRank(Scorer, settings=LowRankMethod):
    """Of a history it finds u, of training it takes the learned one; u = 0 is everybody."""

    config: LowRankMethod

    @property
    def reads_history(self) -> bool:
        return self.config.reads == "history"

    @cached_property
    def tried(self) -> Sequence[Fitted]:
        choices = self.benchmark.select("train")
        rows, differences = np.array([self._rows[choice.user] for choice in choices]), self._differences(choices)
        fitted = [
            LowRankUsers(differences, rows, self._population.weights, rank=rank, penalty=penalty, seed=self.seed)
            for rank, penalty in product(self.config.ranks, self.config.penalties)
        ]
        return list(product(fitted, self.config.priors if self.reads_history else (0.0,)))

    def scored(self, value: Fitted, user: str, history: tuple[Choice, ...], items: Items) -> NDArray:
        model, prior = value
        if self.reads_history:
            u = model.found(self._differences(history), prior)
        else:
            u = model.u[self._rows[user]] if user in self._rows else np.zeros(model.u.shape[1])
        return model.score(self._population.scaler.transform(self.features(items)), u)
