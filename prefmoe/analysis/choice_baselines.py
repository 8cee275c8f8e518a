"""Rivals without a language model: scorers of the population, neighbours in the history, and factors of users.

All read features of pictures that some frozen encoder made. D = features, N = choices, E = rated pictures of a history,
K = targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from implicit.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse penalties that are tried on validation choices."""


class PopulationScorer:
    """A score for all users, from everybody's choices: w . x, by Bradley and Terry's model (1952). P(liked over
    disliked) = sigma(w . (x_liked - x_disliked)), with a penalty chosen on other choices, and the middle one of those
    that are tried where there are none."""

    def fit(self, liked: NDArray, disliked: NDArray, validation: tuple[NDArray, NDArray] | None) -> PopulationScorer:
        """
        Args:
            liked, disliked: (N, D) features of training choices. validation: the same of others, where there are any.
        """
        self.scaler = StandardScaler().fit(np.concatenate([liked, disliked]))
        difference = self.scaler.transform(liked) - self.scaler.transform(disliked)
        both, side = np.concatenate([difference, -difference]), np.repeat([1, 0], len(difference))

        def fitted(strength: float) -> NDArray:
            return LogisticRegression(C=strength, fit_intercept=False, max_iter=2000).fit(both, side).coef_[0]

        if validation is None:
            self.weights = fitted(STRENGTHS[len(STRENGTHS) // 2])
            return self
        held = self.scaler.transform(validation[0]) - self.scaler.transform(validation[1])
        tried = {strength: fitted(strength) for strength in STRENGTHS}
        best = max(STRENGTHS, key=lambda strength: (np.mean(np.sign(held @ tried[strength])), -strength))
        self.weights = tried[best]
        return self

    def score(self, features: NDArray) -> NDArray:
        """(K, D) -> (K,)."""
        return self.scaler.transform(features) @ self.weights


def nearest_score(history: NDArray, liked: NDArray, targets: NDArray, k: int) -> NDArray:
    """How near the liked pictures of a history are, less how near the others: means over the k nearest of each.

    Args:
        history: (E, D). liked: (E,) bool. targets: (K, D).

    Returns (K,) difference of mean cosines; a side without pictures counts as 0.
    """

    def unit(rows: NDArray) -> NDArray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    cosines = unit(targets) @ unit(history).T
    sides = (np.sort(cosines[:, side], axis=1)[:, -k:] for side in (liked, ~liked))
    above, below = (side.mean(axis=1) if side.shape[1] else np.zeros(len(targets)) for side in sides)
    return above - below


def personal_weights(differences: NDArray, prior: NDArray, penalty: float) -> NDArray:
    """A user's weights from the choices of a history: the population's, moved as far as these choices ask.

    Minimises -sum log sigma(w . d) + penalty / 2 |w - prior|^2 (logistic regression with a Gaussian prior).

    ``differences``: (N_ref, D) liked minus disliked, in the scorer's scale; ``prior``: (D,) `PopulationScorer.weights`.
    """

    def objective(weights: NDArray) -> tuple[float, NDArray]:
        margin, moved = differences @ weights, weights - prior
        value = np.logaddexp(0, -margin).sum() + penalty / 2 * moved @ moved
        return value, penalty * moved - expit(-margin) @ differences

    return minimize(objective, prior, jac=True, method="L-BFGS-B").x


class TasteFactors:
    """Matrix factorisation of who liked what (implicit's ALS), for users whose choices it was trained on.

    Pictures that nobody has rated have no factors: what is rated is the kind of a picture, a cluster of its features.

    ``clusters``: kinds of picture; ``factors``: their number; ``seed``: of clusters and factors.
    """

    def __init__(self, clusters: int, factors: int, seed: int) -> None:
        self.kinds, self.factors, self.seed = KMeans(clusters, n_init=4, random_state=seed), factors, seed

    def fit(self, users: Sequence[int], liked: NDArray, disliked: NDArray) -> TasteFactors:
        """
        Args:
            users: (N,) row of the user of each choice. liked, disliked: (N, D).
        """
        both = np.concatenate([liked, disliked])
        self.scaler = StandardScaler().fit(both)
        self.kinds.set_params(n_clusters=min(self.kinds.n_clusters, len(np.unique(both, axis=0))))
        self.kinds.fit(self.scaler.transform(both))
        shape = (max(users) + 1, self.kinds.n_clusters)
        counts = [
            csr_matrix((np.ones(len(users)), (users, self._kind(rows))), shape).toarray() for rows in (liked, disliked)
        ]
        # As sure of a like as the kind was liked more often than not; ALS takes no dislikes.
        self.likes = csr_matrix(np.maximum(counts[0] - counts[1], 0))
        return self._factorised()

    def with_factors(self, factors: int) -> TasteFactors:
        """The same kinds and likes, once fitted, with another number of factors."""
        other = copy(self)
        other.factors = factors
        return other._factorised()

    def _factorised(self) -> TasteFactors:
        self.model = AlternatingLeastSquares(
            self.factors, regularization=0.1, iterations=30, random_state=self.seed, num_threads=1, dtype=np.float64
        )
        self.model.fit(self.likes, show_progress=False)
        return self

    def _kind(self, features: NDArray) -> NDArray:
        return self.kinds.predict(self.scaler.transform(features))

    def score(self, user: int | None, features: NDArray) -> NDArray:
        """(K, D) -> (K,): the user's factors (the mean user's if None) times those of the pictures' kinds."""
        factors = self.model.user_factors
        return self.model.item_factors[self._kind(features)] @ (factors.mean(0) if user is None else factors[user])
