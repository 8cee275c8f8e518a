"""Scorers without a language model: each reads what its row of the tables says, and is fitted to that alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.optimize import approx_fprime
from small_choices import backbone, benchmark

from prefmoe.analysis.choice_baselines import nearest_score, personal_weights
from prefmoe.config import Method
from prefmoe.models.base import build_method
from prefmoe.models.scorers import Scorer

KINDS: dict[str, dict[str, Any]] = {
    "picture": {"kind": "population_scorer", "reads": "picture"},
    "agreement": {"kind": "population_scorer", "reads": "agreement"},
    "both": {"kind": "population_scorer", "reads": "both"},
    "neighbours": {"kind": "neighbours", "k": [1]},
    "personal": {"kind": "personal_scorer", "penalties": [0.3]},
    "factors": {"kind": "factors", "clusters": [3], "factors": [2]},
}


def scorer(name: str, world=None) -> Scorer:
    settings = TypeAdapter(Method).validate_python({"label": name, **KINDS[name]})
    return build_method(settings, backbone(), world or benchmark(), seed=0)


def items_of(choices, prompt: str = "") -> list:
    return [(picture, prompt or choice.prompt) for choice in choices for picture in choice.candidates]


@pytest.mark.parametrize("name", KINDS)
def test_what_a_row_says_that_it_reads_is_what_it_scores_by(name: str) -> None:
    one, targets = scorer(name), benchmark().select("test")
    first, *others = [user for user in benchmark().trained_users if user != targets[0].user]
    prompts = {choice.prompt for choice in benchmark().choices.values()}
    history, other = (benchmark().history(user, 3, 0, ()) for user in (first, others[0]))
    items = items_of(targets)
    scores = one.score(first, history, items)
    told = one.config.information
    moved = {
        "prompt": one.score(first, history, items_of(targets, max(prompts - {targets[0].prompt}))),
        "history": one.score(first, other, items),
        "choices in training": one.score(others[0], history, items),
    }
    assert "picture" in told or "choices" in told
    for shown, again in moved.items():
        changed = np.abs(again - scores).max() > 1e-6
        assert changed == (shown in told), (name, shown)


@pytest.mark.parametrize("name", KINDS)
def test_what_training_shows_is_what_a_row_says(name: str) -> None:
    """With the liked and the disliked of all training choices exchanged, those that learn from them score otherwise."""
    world = benchmark()
    turned = {i: replace(c, liked=c.disliked, disliked=c.liked) for i, c in world.choices.items()}
    other = replace(world, choices=world.choices | {i: turned[i] for i in world.splits["train"]})
    target = world.select("unseen")[0]
    history = world.history(target.user, 3, 0, (target,))  # of an unseen user, hence no choice of training
    scores, again = (scorer(name, one).score(target.user, history, items_of([target])) for one in (world, other))
    assert (np.abs(scores - again).max() > 1e-6) == ("choices" in scorer(name).config.information_in_training)


def test_agreement_is_the_cosine_of_picture_and_prompt_and_nothing_else() -> None:
    one, (target, *_) = scorer("agreement"), benchmark().select("test")
    items = items_of([target])
    pictures, prompts = one.pooled(items)
    cosines = [np.dot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(pictures, prompts, strict=True)]
    assert one.score(target.user, (), items) == pytest.approx(cosines, abs=1e-6)


def test_the_nearest_of_a_history_decides() -> None:
    one, (target, *_) = scorer("neighbours"), benchmark().select("test")
    history = benchmark().history(target.user, 3, 0, (target,))
    shown = [picture for choice in history for picture in choice.candidates[:2]]
    features = one.seen([(picture, "") for picture in shown])
    for picture in target.candidates:
        found = one.score(target.user, history, [(picture, "")])
        asked = one.seen([(picture, "")])
        assert found == pytest.approx(nearest_score(features, np.tile([True, False], 3), asked, 1))
    liked, disliked = (one.score(target.user, history, [(picture, "")])[0] for picture in shown[:2])
    assert liked > disliked, "a picture is nearest to itself"


def test_a_person_is_the_population_moved_to_the_least_loss_of_the_history() -> None:
    one, (target, *_) = scorer("personal"), benchmark().select("test")
    history = benchmark().history(target.user, 3, 0, (target,))
    differences, shared = one._differences(history), one._population.weights
    penalty = 0.3 * differences.shape[1] / 100
    items = items_of([target])
    seen = one._population.scaler.transform(one.features(items))
    found = personal_weights(differences, shared, penalty)
    assert seen @ found == pytest.approx(one.score(target.user, history, items)), "of this penalty"
    strong = np.abs(one.scored(1e9, target.user, history, items) - seen @ shared).max()
    assert strong < 1e-3 < np.abs(one.score(target.user, history, items) - seen @ shared).max()

    def loss(along: np.ndarray) -> float:
        moved = shared + along @ differences
        return np.log1p(np.exp(-(differences @ moved))).sum() + penalty / 2 * ((moved - shared) ** 2).sum()

    along = np.linalg.lstsq(differences.T, found - shared, rcond=None)[0]
    assert shared + along @ differences == pytest.approx(found, abs=1e-6)
    assert loss(along) < loss(np.zeros(3)) and np.abs(approx_fprime(along, loss, 1e-6)).max() < 1e-2


def test_factors_know_nothing_of_users_who_were_not_trained_on() -> None:
    one, targets = scorer("factors"), benchmark().select("unseen")
    scores = [one.score(user, (), items_of(targets[:2])) for user in {target.user for target in targets}]
    assert len(scores) > 1 and all(np.array_equal(scores[0], other) for other in scores[1:])


@pytest.mark.parametrize("name", KINDS)
def test_few_choices_and_none_of_validation_are_scored_all_the_same(name: str) -> None:
    """docs/choices.md asks for no validation split, and three users have fewer pictures than there are kinds to try."""
    world = benchmark()
    world = replace(world, splits=world.splits | {"validation": ()})
    settings = KINDS[name] | {"clusters": [500]} if name == "factors" else KINDS[name]
    config = TypeAdapter(Method).validate_python({"label": name, **settings})
    one, targets = build_method(config, backbone(), world, seed=0), world.select("test")
    history = world.history(targets[0].user, 3, 0, targets[:1])
    assert np.isfinite(one.score(targets[0].user, history, items_of(targets))).all()
