"""Rivals without a language model, on choices drawn from known tastes and against loops by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from prefmoe.analysis import choice_baselines
from prefmoe.analysis.choice_baselines import (
    STRENGTHS,
    PopulationScorer,
    TasteFactors,
    nearest_score,
    personal_weights,
)


def chosen(rng, weights, n):
    """n choices by the logistic rule: features of the liked and of the other picture."""
    pair = rng.normal(size=(n, 2, len(weights)))
    first = rng.random(n) < 1 / (1 + np.exp(-(pair[:, 0] - pair[:, 1]) @ weights))
    pick = np.where(first, 0, 1)
    return pair[np.arange(n), pick], pair[np.arange(n), 1 - pick]


def test_the_population_s_scorer_finds_the_weights_that_choices_were_drawn_with():
    rng, weights = np.random.default_rng(0), np.array([2.0, -1.0, 0.0, 0.5])
    scorer = PopulationScorer().fit(*chosen(rng, weights, 3000), chosen(rng, weights, 500))
    found = scorer.weights / scorer.scaler.scale_
    assert np.corrcoef(found, weights)[0, 1] > 0.98
    liked, disliked = chosen(rng, weights, 2000)
    best = (liked @ weights > disliked @ weights).mean()
    assert (scorer.score(liked) > scorer.score(disliked)).mean() > best - 0.02


def test_the_penalty_is_the_one_that_other_choices_ask_for(monkeypatch):
    """Few choices, told by one of many features, now and then otherwise."""
    rng = np.random.default_rng(1)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = rng.normal(size=(2, count, 60))
        swap = (first[:, :1] < second[:, :1]) ^ (rng.random((count, 1)) < 0.2)
        return np.where(swap, second, first), np.where(swap, first, second)

    (liked, disliked), held = drawn(60), drawn(400)

    def fitted(*strengths: float) -> tuple[float, np.ndarray]:
        monkeypatch.setattr(choice_baselines, "STRENGTHS", strengths)
        scorer = PopulationScorer().fit(liked, disliked, held)
        return float((scorer.score(held[0]) > scorer.score(held[1])).mean()), scorer.weights

    alone = {strength: fitted(strength) for strength in (*STRENGTHS, 1e8)}
    accuracies = [accuracy for accuracy, _ in alone.values()]
    found, weights = fitted(*alone)
    assert found == max(accuracies) > min(accuracies)
    strongest = min(strength for strength, (accuracy, _) in alone.items() if accuracy == found)  # of equals
    assert np.array_equal(weights, alone[strongest][1])


def test_neighbours_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    history, targets = rng.normal(size=(9, 5)), rng.normal(size=(4, 5))
    liked = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    for k in (1, 3, 20):
        expected = []
        for target in targets:
            near = {side: [] for side in (True, False)}
            for picture, like in zip(history, liked, strict=True):
                near[like].append(cosine(target, picture))
            sides = [sorted(near[side], reverse=True) for side in (True, False)]
            expected.append(np.mean(sides[0][:k]) - np.mean(sides[1][:k]))
        assert nearest_score(history, liked, targets, k) == pytest.approx(expected)
    assert nearest_score(history, np.ones(9, bool), targets, 1).shape == (4,)  # nothing was disliked


def test_a_user_s_weights_lie_between_the_population_s_and_the_user_s_own_choices():
    rng, prior = np.random.default_rng(3), np.array([1.0, 0.0, -1.0])
    differences = rng.normal(size=(40, 3))
    differences *= np.sign(differences @ np.array([-1.0, 2.0, 0.0]))[:, None]
    assert personal_weights(differences, prior, 1e9) == pytest.approx(prior, abs=1e-5)
    # Without a prior it is scikit-learn's regression on both orders of every pair, each counted half.
    both, side = np.concatenate([differences, -differences]), np.repeat([1, 0], 40)
    model = LogisticRegression(C=0.5 / 0.7, fit_intercept=False, tol=1e-10, max_iter=5000).fit(both, side)
    assert personal_weights(differences, np.zeros(3), 0.7) == pytest.approx(model.coef_[0], abs=1e-3)


def test_factors_know_the_tastes_of_users_they_were_trained_on():
    rng = np.random.default_rng(4)
    kinds = np.array([[5.0, 0], [0, 5.0], [-5.0, 0], [0, -5.0]])
    users, liked, disliked = [], [], []
    for user in range(40):  # even ones like the first two kinds
        for _ in range(8):
            a, b = rng.integers(2, size=2) + 2 * np.array([user % 2, 1 - user % 2])
            users.append(user)
            liked.append(kinds[a] + rng.normal(size=2) * 0.3)
            disliked.append(kinds[b] + rng.normal(size=2) * 0.3)
    model = TasteFactors(4, 3, seed=0).fit(users, np.array(liked), np.array(disliked))
    fresh = kinds + rng.normal(size=kinds.shape) * 0.3
    right = [(model.score(user, fresh)[:2].mean() > model.score(user, fresh)[2:].mean()) == (user % 2 == 0)
             for user in range(40)]  # fmt: skip
    assert np.mean(right) > 0.95
    again = TasteFactors(4, 2, seed=0).fit(users, np.array(liked), np.array(disliked)).with_factors(3)
    assert again.score(0, fresh) == pytest.approx(model.score(0, fresh)) and again.model.factors == 3
