"""Recommenders that see nothing but training answers: popularity, implicit's ALS and cornac's BPR."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from prefmoe.analysis import statistics

POPULARITY, ALS, BPR = "Popularity", "ALS", "BPR"

KNOWN = {POPULARITY: "population's answers", ALS: "every user's answers", BPR: "every user's likes"}
"""What each is shown of users."""

KNOWN_UNSEEN = "population's answers"
"""What the last two are shown of a user whom nobody was asked about."""

SEEDS = (0, 1, 2)
"""Of the factors' first values: a row is the mean over these, as a trained method's is over its seeds."""

GRIDS = {
    ALS: {
        "factors": (4, 8, 16, 32),
        "regularization": (10.0, 30.0, 100.0, 300.0),
        "alpha": (5.0, 20.0, 80.0, 320.0),
        "dislikes": (0.0, 1.0, 2.0, 4.0),
    },
    BPR: {
        "k": (2, 4, 8),
        "lambda_reg": (0.03, 0.1, 0.3),
        "learning_rate": (0.03, 0.1, 0.3),
        "max_iter": (300, 1000, 3000),
    },
}
"""What is chosen on validation answers: all of it is tried, as a fit takes a moment."""

TRIAL_COLUMNS = ("recommender", "settings", "seeds", "auc", "low", "high", "n", "chosen")

Grids = Mapping[str, Mapping[str, Sequence[float]]]


def fit(
    training: NDArray, validation: NDArray, seeds: Sequence[int] = SEEDS, grids: Grids | None = None
) -> tuple[dict[str, NDArray], pd.DataFrame]:
    """Scores (S, U, I) of every recommender by its name, and what was tried: the columns of `TRIAL_COLUMNS`.

    Args:
        training: (U, I) 1 where an answer says that the user likes the item, -1 where one says the opposite, 0 where
            nobody asked. Popularity and BPR see likes alone; ALS both, if that is better on validation.
        validation: the same of other answers, by which settings are chosen where training did not ask about the item,
            too: by the mean over seeds of the AUC within a user (auc; of popularity as well, to be compared), with its
            interval over users and seeds, of n users.
        grids: what is tried, by name; `GRIDS` when absent.

    Popularity has one score for all seeds, S = 1. Users without a training answer have no factors, and are given what
    is popular.
    """
    liked = training > 0
    validation = np.where(training == 0, validation, 0)  # what is asked again would reward remembering alone
    popularity = np.broadcast_to(liked.sum(axis=0).astype(float), training.shape)
    found, known = {POPULARITY: popularity[None]}, liked.any(axis=1)
    rows = [{"recommender": POPULARITY, "settings": "", "chosen": 1} | _told_apart(popularity[None], validation)]
    for name, grid in (grids or GRIDS).items():
        trials = []
        for values in product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            scores = np.stack([_SCORES[name](training, seed, **settings) for seed in seeds])
            row = {"recommender": name, "settings": json.dumps(settings)} | _told_apart(scores, validation)
            trials.append((row, scores))
        best, chosen = max(trials, key=lambda trial: trial[0]["auc"])  # of equals the first
        found[name] = np.where(known[:, None], chosen, popularity)
        rows += [row | {"chosen": int(row is best)} for row, _ in trials]
    return found, pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))


def _als(training: NDArray, seed: int, *, dislikes: float, **settings: float) -> NDArray:
    """(U, I) products of factors, and not recommend(), which fills short lists up with items that it was to leave out.
    ``dislikes``: confidence in a dislike beside that in a like; 0 leaves dislikes out, as if nobody had been asked."""
    answers = np.where(training > 0, 1.0, np.where(training < 0, -dislikes, 0.0))
    model = AlternatingLeastSquares(iterations=30, dtype=np.float64, random_state=seed, num_threads=1, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the threads of BLAS
        model.fit(csr_matrix(answers), show_progress=False)
    return np.asarray(model.user_factors) @ np.asarray(model.item_factors).T


def _bpr(training: NDArray, seed: int, **settings: float) -> NDArray:
    """(U, I) scores; what nobody liked is not in cornac's data, and stands last, where drawn evenly it would go."""
    from cornac.data import Dataset  # here, as importing it imports all of its models
    from cornac.models import BPR as PairwiseRanking

    likes = [(int(user), int(item), 1.0) for user, item in np.argwhere(training > 0)]
    model = PairwiseRanking(num_threads=1, seed=seed, verbose=False, **settings).fit(Dataset.from_uir(likes))
    users, items = (np.array(list(known), dtype=int) for known in (model.train_set.uid_map, model.train_set.iid_map))
    found = np.stack([model.score(row) for row in range(len(users))])
    scores = np.full(training.shape, found.min() - 1)
    scores[np.ix_(users, items)] = found
    return scores


_SCORES = {ALS: _als, BPR: _bpr}


def _told_apart(scores: NDArray, answers: NDArray) -> dict[str, float]:
    """auc: of liked over disliked items within a user, mean over seeds (scores are (S, U, I)) and users with both (n),
    -inf without any; low, high: its interval."""
    both = [row for row in range(len(answers)) if {1, -1} <= set(answers[row].tolist())]
    asked = [(row, answers[row] != 0) for row in both]
    aucs = [[roc_auc_score(answers[row][where], one[row][where]) for one in scores] for row, where in asked]
    mean = statistics.cluster_bootstrap(np.array(aucs).reshape(len(both), len(scores)), both)
    auc = mean["value"] if both else -np.inf
    return {"seeds": len(scores), "auc": auc, **{name: mean[name] for name in ("low", "high", "n")}}
