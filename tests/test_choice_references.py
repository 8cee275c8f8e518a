"""References of choices: each is what its definition says, computed another way, and ordered as what it knows."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from choice_worlds import without_drawing
from notebook_cells import cells as of_notebook
from scipy.special import expit

from prefmoe.analysis.answers import TableError
from prefmoe.analysis.choice_references import (
    BEST,
    CHANCE,
    GROUP,
    KNOWN,
    POPULATION,
    READER,
    posterior_means,
    prior_users,
    references,
)
from prefmoe.analysis.choices import cases
from prefmoe.config import ChoicesData
from prefmoe.data import choice_world
from prefmoe.data.choice_world import FEATURES, Tastes, features
from prefmoe.data.choices import HistoryError

SETTINGS = ChoicesData(kind="choices", seed=3, train_prompts=60, test_prompts=40)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return without_drawing(SETTINGS, tmp_path_factory.mktemp("world") / "data")


@pytest.fixture(scope="module")
def found(benchmark):
    return references(benchmark, Tastes.of(SETTINGS.seed), n_refs=(1, 8), draws=2)


def _expected_best(found):
    return of_notebook("16", "best-function")["expected_best"](found)


def _accuracy(ratings, n_ref=0):
    values = ratings.values(2, 1)
    return values[values.index.get_level_values("n_ref") == n_ref].to_numpy().mean()


def test_the_ideal_reader_is_bayes_rule_summed_by_hand():
    """Four kinds of user who differ in two attributes, and histories of up to three choices."""
    kinds = [(2.0, 0.5), (-1.0, 0.5), (0.3, -2.0), (0.0, 0.0)]
    choices = [(1.0, -1.0), (0.0, 1.0), (-1.0, 0.0)]
    histories = [picked for picked in itertools.product((0, 1), repeat=3)]
    means = posterior_means(np.array(choices), np.array(histories, float), np.array(kinds))
    for picked, mean in zip(histories, means, strict=True):
        weights = []
        for kind in kinds:
            weight = 1.0
            for (dx, dy), there in zip(choices, picked, strict=True):
                weight *= 1 / (1 + math.exp(-(kind[0] * dx + kind[1] * dy))) if there else 1
            weights.append(weight)
        by_hand = [sum(w * kind[k] for w, kind in zip(weights, kinds, strict=True)) / sum(weights) for k in (0, 1)]
        assert mean == pytest.approx(by_hand, abs=1e-12)


def test_users_drawn_from_the_prior_stand_for_the_prior():
    """Against numerical integration over a Gaussian deviation in two features, the group known to be one of two."""
    centres, deviation = np.array([[1.5, -0.5], [-1.5, 1.0]]), 0.7
    rng = np.random.default_rng(0)
    prior = centres[rng.choice(2, 200_000, p=(0.7, 0.3))] + rng.normal(0, deviation, (200_000, 2))
    choices = np.array([[1.0, 0.0], [0.0, -1.0], [-1.0, 1.0]])
    (mean,) = posterior_means(choices, np.ones((1, 3)), prior)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(40)
    total, moment = 0.0, np.zeros(2)
    for centre, share in zip(centres, (0.7, 0.3), strict=True):
        for (x, wx), (y, wy) in itertools.product(zip(nodes, node_weights, strict=True), repeat=2):
            user = centre + deviation * np.array([x, y])
            weight = share * wx * wy * np.prod(1 / (1 + np.exp(-choices @ user)))
            total, moment = total + weight, moment + weight * user
    assert mean == pytest.approx(moment / total, abs=0.02)


def test_the_prior_has_the_groups_shares_and_deviations():
    tastes = Tastes.of(0)
    drawn = prior_users(tastes, 40_000)
    expected = np.array(choice_world.GROUP_SHARES) @ tastes.groups
    assert np.abs(drawn.mean(0) - expected).max() < 0.05
    between = np.array(choice_world.GROUP_SHARES) @ (tastes.groups - expected) ** 2
    assert np.abs(drawn.var(0) - between - choice_world.DEVIATION**2).max() < 0.05


def test_scores_are_those_of_the_definitions(benchmark, found):
    """One target, by words."""
    target = benchmark.select("unseen")[5]
    said = [benchmark.attributes.loc[benchmark.relative(picture)] for picture in target.candidates]
    trained = benchmark.utilities.loc[benchmark.trained_users].mean()
    own = benchmark.utilities.loc[target.user]
    theirs = dict(zip(FEATURES, Tastes.of(SETTINGS.seed).groups[int(own["group"])], strict=True))
    for name, known in ((BEST, own), (POPULATION, trained), (GROUP, theirs), (CHANCE, {})):
        frame = found[name].frames[0]
        frame = frame[frame["index"] == target.index].sort_values("candidate")
        assert frame["candidate"].tolist() == [0, 1, 2, 3] and (frame[["n_ref", "draw"]] == 0).all(axis=None)
        by_words = [sum(known.get(value, 0.0) for value in row) for row in said]
        assert frame["score"].to_numpy() == pytest.approx(by_words, abs=1e-9)


def test_the_ideal_reader_reads_the_histories_that_methods_see(benchmark, found):
    target = benchmark.select("test")[7]
    frame = found[READER].frames[0].query("index == @target.index and n_ref == 8 and draw == 1")
    history = benchmark.history(target.user, 8, 1)
    prior = prior_users(Tastes.of(SETTINGS.seed))
    weights = np.ones(len(prior))
    for choice in history:
        liked, disliked = (prior @ _values(benchmark, picture) for picture in (choice.liked, choice.disliked))
        weights *= np.exp(liked) / (np.exp(liked) + np.exp(disliked))
    mean = weights @ prior / weights.sum()
    expected = [mean @ _values(benchmark, picture) for picture in target.candidates]
    assert frame.sort_values("candidate")["score"].to_numpy() == pytest.approx(expected, abs=1e-9)


def _values(benchmark, picture):
    said = set(benchmark.attributes.loc[benchmark.relative(picture)])
    return np.array([float(value in said) for value in FEATURES])


def test_a_posterior_mean_decides_as_the_probability_of_the_choice_does(benchmark):
    """The mean of sigma(u . d) over the posterior is what no reader can beat; the two differ in few pairs."""
    prior = prior_users(Tastes.of(SETTINGS.seed), 2048)
    same = []
    for target in benchmark.select("test")[::9]:
        history = benchmark.history(target.user, 8, 0)
        rows = [_values(benchmark, c.liked) - _values(benchmark, c.disliked) for c in history]
        weights = expit(np.array(rows) @ prior.T).prod(0)
        asked = _values(benchmark, target.liked) - _values(benchmark, target.disliked)
        probability = weights @ expit(prior @ asked) / weights.sum()
        same.append((probability > 0.5) == (weights @ prior @ asked > 0))
    assert np.mean(same) > 0.97


def test_who_knows_more_is_right_more_often(benchmark, found):
    assert list(found) == list(KNOWN)
    order = [_accuracy(found[name]) for name in (CHANCE, POPULATION, GROUP, BEST)]
    assert order == sorted(order) and order[0] == 0.5
    short, long = (_accuracy(found[READER], n_ref) for n_ref in (1, 8))
    assert _accuracy(found[POPULATION]) < short < long < _accuracy(found[BEST])
    assert found[CHANCE].values(4, 1).to_numpy().mean() == 0.25


def test_the_best_possible_accuracy_is_what_the_rule_expects(benchmark, found):
    """A sum over words as the oracle, and the choices that were drawn are around it."""
    chances = []
    for split in ("test", "unseen"):
        for target in benchmark.select(split):
            own = benchmark.utilities.loc[target.user].to_dict()
            liked, disliked = (
                sum(own.get(value, 0.0) for value in benchmark.attributes.loc[benchmark.relative(picture)])
                for picture in (target.liked, target.disliked)
            )
            chances.append(1 / (1 + math.exp(-abs(liked - disliked))))
    assert _expected_best(found) == pytest.approx(np.mean(chances), abs=1e-9)
    spread = math.sqrt(sum(p * (1 - p) for p in chances)) / len(chances)
    assert abs(_accuracy(found[BEST]) - np.mean(chances)) < 4 * spread


def test_the_world_is_as_hard_as_it_is_meant_to_be(benchmark, found):
    """Room between what everybody likes and what is possible, and a history tells most of it."""
    best, population, reader = _expected_best(found), _accuracy(found[POPULATION]), _accuracy(found[READER], 8)
    assert 0.83 < best < 0.9 and 0.57 < population < 0.68
    assert population + 0.6 * (best - population) < reader < best


def test_predictions_have_every_candidate_of_every_case(benchmark, found):
    targets = len(benchmark.select("test")) + len(benchmark.select("unseen"))
    assert len(cases(found[READER].frames[0])) == targets * 2 * 2
    assert len(cases(found[BEST].frames[0])) == targets


def test_without_histories_there_is_no_reader_of_them(benchmark, found):
    without = references(benchmark, Tastes.of(SETTINGS.seed), n_refs=(), draws=0)
    assert list(without) == [name for name in KNOWN if name != READER]
    assert without[BEST].frames[0].equals(found[BEST].frames[0])


def test_without_true_tastes_and_with_short_histories_references_are_refused(benchmark):
    with pytest.raises(TableError, match="true tastes of its users are not known"):
        references(replace(benchmark, utilities=None), Tastes.of(0), n_refs=(1,), draws=1)
    with pytest.raises(TableError, match="true tastes"):
        references(replace(benchmark, attributes=None), Tastes.of(0), n_refs=(), draws=0)
    with pytest.raises(HistoryError, match="n_ref = 25"):
        references(benchmark, Tastes.of(0), n_refs=(25,), draws=1)


def test_references_of_a_world_of_two_attributes_need_no_other_columns():
    table = pd.DataFrame({"colour": ["red", "blue"], "shape": ["round", "square"]})
    assert features(table, ("red", "square")).tolist() == [[1, 0], [0, 1]]
