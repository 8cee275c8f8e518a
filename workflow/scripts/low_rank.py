"""What the frozen features of pictures allow without a rater: users of low rank, fitted to choices: `low_rank.py`.

For edition preference-mini, where matrix factorisation of kinds of pictures ("Taste factors") is below the population's
choice. Here P(liked over disliked) = sigma((w + u B) . d): d is the difference of two pictures' features, w everybody's
weights, u a user's k numbers. Users of the training split have learned ones; anybody's are also found from a history,
by maximum a posteriori under the trained users' spread. Rank and penalties are chosen on validation choices.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from shipping import make
from torch.nn.functional import softplus

from prefmoe.analysis.statistics import cluster_bootstrap
from prefmoe.analysis.tables import write_csv
from prefmoe.config import FIGURES, RESULTS, load_edition
from prefmoe.running.choices import ChoiceWorkbench

EDITION, SCORER = "preference-mini", "Aesthetic"
RANKS, PENALTIES, PRIORS = (2, 4, 8, 32, 64), (3e-2, 1e-1, 3e-1, 1.0, 3.0), (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
STEPS, RATE, SEEDS = 300, 1e-2, (0, 1, 2)
COLUMNS = (
    "method", "users", "value", "low", "high", "n", "seeds", "rank", "penalty", "prior", "validation", "information"
)  # fmt: skip


class LowRank:
    """``differences``: (N, D) liked minus disliked. ``rows``: (N,) the user of each. ``population``: (D,) where w
    begins and is drawn to. ``penalty``: of B, u and of w's way from there."""

    def __init__(
        self, differences: NDArray, rows: NDArray, population: NDArray, *, rank: int, penalty: float, seed: int
    ) -> None:
        drawn = torch.Generator().manual_seed(seed)
        d, whose = torch.tensor(differences, dtype=torch.float32), torch.as_tensor(rows)
        start = torch.tensor(population, dtype=torch.float32)
        w = start.clone().requires_grad_()
        u = (0.1 * torch.randn(int(rows.max()) + 1, rank, generator=drawn)).requires_grad_()
        b = (0.01 * torch.randn(rank, d.shape[1], generator=drawn)).requires_grad_()
        optimiser = torch.optim.Adam([w, u, b], lr=RATE)
        for _ in range(STEPS):
            margins = (d * (w + u[whose] @ b)).sum(1)
            moved = b.square().sum() + u.square().mean() + (w - start).square().sum()
            optimiser.zero_grad()
            (softplus(-margins).mean() + penalty * moved).backward()
            optimiser.step()
        self.w, self.u, self.b = (part.detach().double().numpy() for part in (w, u, b))

    def found(self, history: NDArray, prior: float) -> NDArray:
        """(k,) the u of a history's choices, (E, D) liked minus disliked."""
        base, moves, spread = history @ self.w, history @ self.b.T, self.u.std(0).clip(1e-3)

        def objective(u: NDArray) -> tuple[float, NDArray]:
            margins, size = base + moves @ u, u / spread
            value = np.logaddexp(0, -margins).sum() + prior / 2 * size @ size
            return value, prior * size / spread - expit(-margins) @ moves

        return minimize(objective, np.zeros(len(spread)), jac=True, method="L-BFGS-B").x

    def right(self, differences: NDArray, u: NDArray) -> NDArray:
        """(K,) whether the liked of two pictures is named."""
        return differences @ (self.w + u @ self.b) > 0


def write(folder: Path, results: Path = RESULTS) -> list[Path]:
    """Writes low_rank.csv, the columns of `COLUMNS`; returns its path."""
    edition = load_edition(EDITION)
    bench = ChoiceWorkbench(edition, edition.backbones[0], results=results)
    benchmark, scorer = bench.benchmark, bench.method(edition.methods[SCORER], 0)
    population, n_ref, draws = scorer._population, edition.histories.n_ref, range(edition.histories.draws)

    def differences(choices: Sequence) -> NDArray:
        def rows(side: str) -> NDArray:
            return population.scaler.transform(scorer.seen([(getattr(choice, side), "") for choice in choices]))

        return rows("liked") - rows("disliked")

    by_user = {split: benchmark.by_user(split) for split in ("train", "validation", "test", "unseen")}
    known = {user: row for row, user in enumerate(by_user["train"])}
    asked = {split: {user: differences(some) for user, some in by_user[split].items()} for split in by_user}
    told = {
        split: {(user, draw): differences(benchmark.history(user, n_ref, draw, some)) for user, some in
                by_user[split].items() for draw in draws}
        for split in ("validation", "test", "unseen")
    }  # fmt: skip
    stacked = np.concatenate([*asked["train"].values()])
    whose = np.repeat([*known.values()], [len(rows) for rows in asked["train"].values()])

    def answers(model: LowRank, split: str, prior: float | None) -> tuple[NDArray, NDArray]:
        """(N,) right or wrong and (N,) the user; of a history where a prior is given, else of what was learned."""
        every = [(user, 0) for user in asked[split]] if prior is None else list(told[split])
        us = [model.u[known[one[0]]] if prior is None else model.found(told[split][one], prior) for one in every]
        right = [model.right(asked[split][user], u) for (user, _), u in zip(every, us, strict=True)]
        return np.concatenate(right), np.repeat([user for user, _ in every], [len(rows) for rows in right])

    fitted = {
        (rank, penalty): [LowRank(stacked, whose, population.weights, rank=rank, penalty=penalty, seed=seed)
                          for seed in SEEDS] for rank, penalty in product(RANKS, PENALTIES)
    }  # fmt: skip
    table = []
    learned, read = "the user's choices in training", f"history of {n_ref} rated pictures"
    for name, shown, priors in (("Low rank", learned, (None,)), ("Low rank, of a history", read, PRIORS)):
        tried = {
            (settings, prior): np.mean([answers(model, "validation", prior)[0].mean() for model in models])
            for (settings, models), prior in product(fitted.items(), priors)
        }
        (settings, prior), best = max(tried.items(), key=lambda one: one[1])
        for users, split in (("seen", "test"), ("unseen", "unseen"))[: 1 if prior is None else 2]:
            found = [answers(model, split, prior) for model in fitted[settings]]
            estimate = cluster_bootstrap(np.column_stack([right for right, _ in found]), found[0][1])
            chosen = {"rank": settings[0], "penalty": settings[1], "prior": prior, "validation": best}
            row = {"method": name, "users": users, "information": shown}
            table.append({**row, **estimate, "seeds": len(SEEDS), **chosen})
    return [write_csv(pd.DataFrame(table, columns=list(COLUMNS)), folder / "low_rank.csv")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--folder", type=Path, default=FIGURES / EDITION, help="where to write")
    parser.set_defaults(made=lambda o: write(o.folder))
    return make(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
