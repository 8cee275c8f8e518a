"""Recommenders that see nothing but who liked what in training: popularity, and implicit's ALS and BPR."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

POPULARITY, ALS, BPR = "Popularity", "ALS", "BPR"

KNOWN = {POPULARITY: "population's answers", ALS: "every user's answers", BPR: "every user's answers"}
"""What each is shown of users; of one whom nobody was asked about, the population's answers."""

FACTORS = (8, 16)
REGULARISATION = {ALS: (0.1, 1.0), BPR: (0.01, 0.1)}
"""What is chosen on validation answers, in four trials, as every method of the tables has."""


def fit(training: NDArray, validation: NDArray, seed: int = 0) -> dict[str, NDArray]:
    """Scores (U, I) of every recommender by its name.

    Args:
        training: (U, I) 1 where an answer says that the user likes the item; -1 (does not) and 0 (not asked) are one
            to recommenders, which learn from likes alone.
        validation: the same of other answers, by which factors and regularisation are chosen where training did not
            ask about the item, too.

    Users without a training answer have no factors, and are given what is popular.
    """
    liked = training > 0
    validation = np.where(training == 0, validation, 0)  # what is asked again would reward remembering alone
    popularity = np.broadcast_to(liked.sum(axis=0).astype(float), training.shape)
    found = {POPULARITY: popularity}
    known = liked.any(axis=1)
    for name in (ALS, BPR):
        settings = product(FACTORS, REGULARISATION[name])
        trials = [_scores(_model(name, factors, strength, seed), liked) for factors, strength in settings]
        best = max(trials, key=lambda scores: _told_apart(scores, validation))
        found[name] = np.where(known[:, None], best, popularity)
    return found


def _model(
    name: str, factors: int, strength: float, seed: int
) -> AlternatingLeastSquares | BayesianPersonalizedRanking:
    common = {"regularization": strength, "random_state": seed, "num_threads": 1}
    if name == ALS:
        return AlternatingLeastSquares(factors, iterations=30, dtype=np.float64, **common)
    return BayesianPersonalizedRanking(factors, iterations=100, learning_rate=0.05, **common)


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
