"""Users of low rank: what they minimise, written once more, and tastes that are found again."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime
from small_choices import backbone, benchmark

from prefmoe.config import FIGURES, LowRankMethod
from prefmoe.models.base import build_method
from prefmoe.models.low_rank import LowRankUsers


def world(users: int = 30, choices: int = 60, size: int = 8, rank: int = 2, seed: int = 0):
    """Differences (U, N, D) whose liked side is that of each user's true weights."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=size) + rng.normal(size=(users, rank)) @ rng.normal(size=(rank, size)) * 2
    drawn = rng.normal(size=(users, choices, size))
    return drawn * np.sign(np.einsum("und,ud->un", drawn, true))[..., None]


def fitted(drawn: np.ndarray, **options) -> LowRankUsers:
    rows = np.repeat(np.arange(len(drawn)), drawn.shape[1])
    options = {"rank": 2, "penalty": 1e-3, "seed": 0} | options
    return LowRankUsers(drawn.reshape(-1, drawn.shape[-1]), rows, drawn.mean((0, 1)), **options)


def right(model: LowRankUsers, differences: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Whether the liked of two pictures is named."""
    return model.score(differences, u) > 0


def test_tastes_are_found_again_of_trained_users_and_of_histories():
    drawn = world(users=60)
    drawn, new = drawn[:30], drawn[30:]
    model = fitted(drawn[:, :40])
    told = np.mean([right(model, rows[40:], u) for rows, u in zip(drawn, model.u, strict=True)])
    everybody = np.mean([right(model, rows[40:], np.zeros(2)) for rows in drawn])
    assert told > 0.85 and told > everybody + 0.1
    read = np.mean([right(model, rows[20:], model.found(rows[:20], 0.3)) for rows in new])
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


def low_rank(reads: str, **changes):
    """The method on the tiny world of choices."""
    tried = {"ranks": [2], "penalties": [0.1], "priors": [1e-2], **changes}
    settings = LowRankMethod.model_validate({"kind": "low_rank", "label": "Low rank", "reads": reads, **tried})
    return build_method(settings, backbone(), benchmark(), seed=0)


def test_what_it_reads_is_what_it_scores_by():
    learned, read, everybody = low_rank("training"), low_rank("history"), low_rank("history", priors=[1e9])
    target = benchmark().select("unseen")[0]
    items = [(picture, target.prompt) for picture in target.candidates]
    told = benchmark().history(target.user, 3, 0, (target,))
    alone = learned.score(target.user, (), items)
    assert alone == pytest.approx(everybody.score(target.user, told, items), abs=1e-3), "nobody was trained on them"
    assert np.abs(read.score(target.user, told, items) - alone).max() > 1e-3
    known = benchmark().trained_users[0]
    assert np.abs(learned.score(known, (), items) - alone).max() > 1e-3
    seen = learned._population.scaler.transform(learned.features(items))
    model = learned.tried[0][0]
    assert learned.score(known, (), items) == pytest.approx(seen @ model.w + seen @ model.b.T @ model.u[0])
    assert set(learned.rate("test", n_ref=3, draw=1)["n_ref"]) == {0}
    assert set(read.rate("test", n_ref=3, draw=1)["n_ref"]) == {3}
    assert (learned.config.information, read.config.information) == (
        "the user's choices in training", "history of rated pictures"
    )  # fmt: skip


def test_the_committed_rows_know_users_and_are_above_the_kinds_of_pictures():
    table = pd.read_csv(FIGURES / "preference-mini/table1.csv")
    rows = table[(table["candidates"] == 2) & (table["k"] == 1) & table["n_ref"].isin((0, 8))]
    by = rows.set_index(["method", "users"])
    for name in ("Low rank", "Low rank, learned"):
        assert by.loc[(name, "seen"), "low"] > by.loc[("Taste factors", "seen"), "value"]
    assert by.loc[("Low rank", "unseen"), "low"] > by.loc[("Population's choice", "unseen"), "value"]
