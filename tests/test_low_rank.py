"""Users of low rank: what they minimise, written once more, and tastes that are found again."""

import numpy as np
import pandas as pd
from low_rank import COLUMNS, LowRank
from scipy.optimize import approx_fprime

from prefmoe.config import FIGURES


def world(users: int = 30, choices: int = 60, size: int = 8, rank: int = 2, seed: int = 0):
    """Differences (U, N, D) whose liked side is that of each user's true weights."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=size) + rng.normal(size=(users, rank)) @ rng.normal(size=(rank, size)) * 2
    drawn = rng.normal(size=(users, choices, size))
    return drawn * np.sign(np.einsum("und,ud->un", drawn, true))[..., None]


def fitted(drawn: np.ndarray, **options) -> LowRank:
    rows = np.repeat(np.arange(len(drawn)), drawn.shape[1])
    options = {"rank": 2, "penalty": 1e-3, "seed": 0} | options
    return LowRank(drawn.reshape(-1, drawn.shape[-1]), rows, drawn.mean((0, 1)), **options)


def test_tastes_are_found_again_of_trained_users_and_of_histories():
    drawn = world(users=60)
    drawn, new = drawn[:30], drawn[30:]
    model = fitted(drawn[:, :40])
    told = np.mean([model.right(rows[40:], u) for rows, u in zip(drawn, model.u, strict=True)])
    everybody = np.mean([model.right(rows[40:], np.zeros(2)) for rows in drawn])
    assert told > 0.85 and told > everybody + 0.1
    read = np.mean([model.right(rows[20:], model.found(rows[:20], 0.3)) for rows in new])
    assert read > everybody + 0.1
    assert model.u.shape == (30, 2) and (fitted(drawn[:, :40], seed=1).u != model.u).any()


def test_a_history_is_read_by_the_most_probable_user():
    drawn = world()
    model, history, prior = fitted(drawn), drawn[3, :8], 0.7
    found = model.found(history, prior)

    def loss(u):
        total = 0.0
        for difference in history:
            total += np.log1p(np.exp(-(difference @ (model.w + u @ model.b))))
        return total + prior / 2 * sum((u[k] / model.u[:, k].std()) ** 2 for k in range(len(u)))

    assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 1e-3
    assert loss(found) < min(loss(np.zeros(2)), loss(found + 0.05), loss(found - 0.05))
    assert np.linalg.norm(model.found(history, 1e6)) < 1e-3


def test_what_is_committed_is_chosen_on_validation_and_above_the_kinds_of_pictures():
    table = pd.read_csv(FIGURES / "preference-mini/low_rank.csv")
    assert tuple(table) == COLUMNS and table["seeds"].eq(3).all() and table["validation"].between(0.5, 1).all()
    rivals = pd.read_csv(FIGURES / "preference-mini/table1.csv")
    kinds = rivals[(rivals["method"] == "Taste factors") & (rivals["users"] == "seen") & (rivals["candidates"] == 2)]
    seen = table[table["users"] == "seen"].set_index("method")
    assert len(seen) == 2 and (seen["low"] > kinds["value"].max()).all()
