"""Recommenders that see nothing but who liked what in training: popularity, and implicit's ALS and BPR."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

POPULARITY, ALS, BPR = "Popularity", "ALS", "BPR"

KNOWN = {POPULARITY: "population's answers", ALS: "every user's answers", BPR: "every user's answers"}
"""What each is shown of users."""

KNOWN_UNSEEN = "population's answers"
"""What the last two are shown of a user whom nobody was asked about."""

SEEDS = (0, 1, 2)
"""Of the factors' first values: a row is the mean over these, as a trained method's is over its seeds."""

GRIDS = {
    ALS: {"factors": (4, 8, 16, 32), "regularization": (0.3, 1.0, 3.0, 10.0, 30.0), "alpha": (1.0, 5.0, 20.0)},
    BPR: {
        "factors": (4, 8, 16, 32),
        "regularization": (1e-4, 1e-3, 1e-2, 1e-1),
        "learning_rate": (3e-3, 1e-2, 3e-2, 1e-1),
    },
}
"""What is chosen on validation answers: all of it is tried, as a fit takes a moment."""

TRIAL_COLUMNS = ("recommender", "settings", "seeds", "auc", "chosen")

Grids = Mapping[str, Mapping[str, Sequence[float]]]


def fit(
    training: NDArray, validation: NDArray, seeds: Sequence[int] = SEEDS, grids: Grids | None = None
) -> tuple[dict[str, NDArray], pd.DataFrame]:
    """Scores (S, U, I) of every recommender by its name, and what was tried: the columns of `TRIAL_COLUMNS`.

    Args:
        training: (U, I) 1 where an answer says that the user likes the item; -1 (does not) and 0 (not asked) are one
            to recommenders, which learn from likes alone.
        validation: the same of other answers, by which settings are chosen where training did not ask about the item,
            too: by the mean over seeds of the AUC within a user (auc; of popularity as well, to be compared).
        grids: what is tried, by name; `GRIDS` when absent.

    Popularity has one score for all seeds, S = 1. Users without a training answer have no factors, and are given what
    is popular.
    """
    liked = training > 0
    validation = np.where(training == 0, validation, 0)  # what is asked again would reward remembering alone
    popularity = np.broadcast_to(liked.sum(axis=0).astype(float), training.shape)
    found, known = {POPULARITY: popularity[None]}, liked.any(axis=1)
    rows = [(POPULARITY, "", 1, _told_apart(popularity, validation), 1)]
    for name, grid in (grids or GRIDS).items():
        trials = []
        for values in product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            scores = np.stack([_scores(_model(name, settings, seed), liked) for seed in seeds])
            trials.append((float(np.mean([_told_apart(one, validation) for one in scores])), settings, scores))
        best = max(trials, key=lambda trial: trial[0])  # of equals the first
        found[name] = np.where(known[:, None], best[2], popularity)
        rows += [(name, json.dumps(one[1]), len(seeds), one[0], int(one is best)) for one in trials]
    return found, pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))


def _model(
    name: str, settings: Mapping[str, float], seed: int
) -> AlternatingLeastSquares | BayesianPersonalizedRanking:
    common = {**settings, "random_state": seed, "num_threads": 1}
    if name == ALS:
        return AlternatingLeastSquares(iterations=30, dtype=np.float64, **common)
    return BayesianPersonalizedRanking(iterations=100, **common)


def _scores(model: AlternatingLeastSquares | BayesianPersonalizedRanking, liked: NDArray) -> NDArray:
    """(U, I) from factors, and not from recommend(), which fills short lists up with items that it was to leave out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the threads of BLAS
        model.fit(csr_matrix(liked.astype(np.float32)), show_progress=False)
    return np.asarray(model.user_factors, dtype=float) @ np.asarray(model.item_factors, dtype=float).T


def _told_apart(scores: NDArray, answers: NDArray) -> float:
    """The AUC of liked over disliked items within a user, mean over users with both; -inf without any."""
    both = [row for row in range(len(scores)) if {1, -1} <= set(answers[row].tolist())]
    aucs = [roc_auc_score(answers[row][answers[row] != 0], scores[row][answers[row] != 0]) for row in both]
    return float(np.mean(aucs)) if aucs else -np.inf
