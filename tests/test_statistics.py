"""Intervals, paired tests and corrections against loops, closed forms and values worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from prefmoe.analysis import statistics


def test_vectorised_cluster_bootstrap_equals_a_loop_over_resampled_questions():
    rng = np.random.default_rng(3)
    users = rng.integers(0, 7, size=60)
    hits = rng.integers(0, 2, size=60).astype(float)
    labels, sums = statistics.cluster_sums(np.stack([hits, np.ones(60)], axis=1), users)
    fast = statistics.ratio_bootstrap(sums[:, 0], sums[:, 1], resamples=50, seed=9)
    for counts, value in zip(statistics.resample_counts(7, resamples=50, seed=9), fast, strict=True):
        drawn = [
            hit
            for label, count in zip(labels, counts, strict=True)
            for _ in range(int(count))
            for hit in hits[users.astype(str) == label]
        ]
        assert value == pytest.approx(np.mean(drawn))


def test_interval_agrees_with_scipy_on_independent_questions():
    """One question per user: the cluster bootstrap is the ordinary bootstrap."""
    hits = (np.arange(400) % 10 < 3).astype(float)
    estimate = statistics.cluster_bootstrap(hits, np.arange(400), resamples=4000)
    reference = stats.bootstrap((hits,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert estimate["value"] == pytest.approx(0.3) and estimate["n"] == 400
    assert estimate["low"] == pytest.approx(reference.low, abs=0.006)
    assert estimate["high"] == pytest.approx(reference.high, abs=0.006)


def test_interval_width_follows_the_closed_form_for_equal_clusters():
    """Equal clusters: the variance of the mean is the population variance of cluster means over U."""
    rng = np.random.default_rng(0)
    means = rng.uniform(size=60)
    values, users = np.repeat(means, 20), np.repeat(np.arange(60), 20)
    estimate = statistics.cluster_bootstrap(values, users, resamples=8000)
    half = stats.norm.ppf(0.975) * means.std() / np.sqrt(60)
    assert (estimate["high"] - estimate["low"]) / 2 == pytest.approx(half, rel=0.06)
    alone = statistics.cluster_bootstrap(values, np.arange(1200), resamples=8000)
    assert alone["high"] - alone["low"] < 0.35 * (estimate["high"] - estimate["low"])


def test_seeds_widen_the_interval_by_the_variance_of_their_mean():
    """Values that differ by user and by seed: the variances of both means add up, that of the seeds with S - 1."""
    rng = np.random.default_rng(0)
    users, seeds = rng.normal(size=50), np.array([-0.4, 0.1, 0.3])
    values, owners = np.repeat(users[:, None] + seeds, 4, axis=0), np.repeat(np.arange(50), 4)
    estimate = statistics.cluster_bootstrap(values, owners)
    alone = statistics.cluster_bootstrap(values.mean(1), owners)
    assert estimate["value"] == pytest.approx(alone["value"]) and estimate["n"] == alone["n"] == 200
    variance = [((one["high"] - one["low"]) / 3.92) ** 2 for one in (estimate, alone)]
    assert variance[0] - variance[1] == pytest.approx(seeds.var(ddof=1) / 3, rel=0.25)
    assert statistics.cluster_bootstrap(values[:, :1], owners) == statistics.cluster_bootstrap(values[:, 0], owners)


def test_a_share_of_several_seeds_stays_a_share_and_undefined_resamples_stay_undefined():
    values = np.column_stack([np.ones(8), np.ones(8), np.arange(8) > 0])
    estimate = statistics.cluster_bootstrap(values, np.arange(8))
    assert 0 <= estimate["low"] < estimate["value"] < estimate["high"] <= 1
    samples = np.array([[0.2, 0.4], [np.nan, 0.5], [0.3, 0.3]])[:, None]  # (B, 1, S)
    found = statistics.over_seeds(samples, axis=2)
    assert found.shape == (3, 1) and np.isnan(found[:, 0]).tolist() == [False, True, False]
    assert np.isnan(statistics.over_seeds(np.full((4, 2), np.nan))).all()


def test_without_a_row_there_is_no_difference_and_no_error():
    for nothing in (np.zeros(0), np.zeros((0, 3))):
        found = statistics.paired_difference(nothing, [])
        assert found["n"] == 0 and np.isnan([found["difference"], found["low"], found["high"]]).all()


def test_bootstrap_is_seeded():
    hits, users = np.arange(30) % 2, np.arange(30) % 5
    assert statistics.cluster_bootstrap(hits, users, seed=1) == statistics.cluster_bootstrap(hits, users, seed=1)


def test_undefined_resamples_are_left_out():
    samples = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    low, high = statistics.percentile_interval(samples, level=1.0)
    assert (low[0], high[0]) == (0, 1)
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_sign_test_is_mcnemar_for_one_seed():
    first = np.array([1] * 30 + [0] * 12 + [1] * 20 + [0] * 8)
    second = np.array([1] * 30 + [0] * 12 + [0] * 20 + [1] * 8)
    wins, losses, p = statistics.sign_test(first, second)
    assert (wins, losses) == (20, 8)
    assert p == pytest.approx(2 * stats.binom.cdf(8, 28, 0.5))
    assert statistics.sign_test(first, first) == (0, 0, 1.0)


@pytest.mark.parametrize(("wins", "losses"), [(5, 3), (3, 3), (0, 9), (4, 3), (700, 790), (1200, 0)])
def test_sign_test_is_scipys_exact_binomial_test(wins, losses):
    first = np.array([1] * wins + [0] * losses)
    assert statistics.sign_test(first, 1 - first)[2] == pytest.approx(
        stats.binomtest(wins, wins + losses).pvalue, rel=1e-9, abs=0
    )
    assert statistics.sign_test([1] * 5 + [0] * 3, [0] * 5 + [1] * 3)[2] == 93 / 128


def test_sign_test_of_seed_means_ignores_rounding():
    first = np.array([(1 + 0 + 0) / 3, 2 / 3, 1.0])
    second = np.array([1 / 3, 1 - 1 / 3, 0.0])
    assert statistics.sign_test(first, second)[:2] == (1, 0)


def test_holm_against_the_textbook():
    """p = .01 .04 .03 .005 gives .03 .06 .06 .02: .005*4, .01*3, .03*2, then .04*1 raised to .06."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1, 1])
    adjusted = statistics.holm([0.02, np.nan, 0.01])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02]) and np.isnan(adjusted[1])
    assert statistics.holm([]).size == 0


def test_permutation_p_matches_full_enumeration():
    differences = np.array([3.0, 1.0, 2.0, -1.0, 4.0, 2.0])
    signs = 1 - 2 * np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    exact = np.mean(np.abs(signs @ differences) >= differences.sum())
    masks = statistics.swap_masks(6, permutations=20000)
    p = statistics.permutation_p(differences.sum(), (1 - 2 * masks) @ differences)
    assert p == pytest.approx(exact, abs=0.01)
    assert np.isnan(statistics.permutation_p(np.nan, np.array([np.nan, np.nan])))


def test_seed_spread():
    assert statistics.seed_spread([0.1, 0.3]) == pytest.approx(np.sqrt(0.02))
    assert np.isnan(statistics.seed_spread([0.4]))


# Standard errors, detectable differences, closed-form intervals


def test_the_linearised_standard_error_agrees_with_the_bootstrap():
    rng = np.random.default_rng(2)
    counted = rng.integers(5, 30, size=200).astype(float)
    right = rng.binomial(counted.astype(int), rng.beta(4, 3, size=200)).astype(float)
    influences = statistics.influence(right, counted)
    assert influences.sum() == pytest.approx(0, abs=1e-12)
    samples = statistics.ratio_bootstrap(right, counted, resamples=6000)
    assert statistics.standard_error(influences) == pytest.approx(samples.std(), rel=0.05)


def test_the_standard_error_of_a_share_is_the_textbook_one():
    right = np.array([1, 0, 0, 1, 1, 0, 1, 1, 1, 0], dtype=float)
    error = statistics.standard_error(statistics.influence(right, np.ones(10)))
    assert error == pytest.approx(np.std(right, ddof=1) / np.sqrt(10))
    assert np.isnan(statistics.standard_error(np.zeros((1, 2)))).all()
    assert np.isnan(statistics.influence(np.zeros(3), np.zeros(3))).all()


def test_the_design_effect_of_copied_answers_is_the_size_of_a_cluster():
    answers = np.repeat(np.arange(300) % 3 == 0, 8).astype(float)
    single = statistics.influence(answers, np.ones(len(answers)))
    _, by_user = statistics.cluster_sums(single, np.repeat(np.arange(300), 8))
    effect = (statistics.standard_error(by_user) / statistics.standard_error(single)) ** 2
    assert effect == pytest.approx(8, rel=0.01)


def test_a_detectable_difference_is_found_as_often_as_promised():
    error = np.array([0.01, 0.2])
    difference = statistics.detectable_difference(error, alpha=0.01, power=0.9)
    critical = stats.norm.ppf(0.995)
    found = stats.norm.sf(critical - difference / error) + stats.norm.cdf(-critical - difference / error)
    assert found == pytest.approx([0.9, 0.9], abs=1e-6)


def test_wilson_intervals_are_scipys():
    counts, n = np.array([0, 3, 110, 219]), 219
    low, high = statistics.wilson_interval(counts / n, n)
    for k, count in enumerate(counts):
        expected = stats.binomtest(int(count), n).proportion_ci(method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_newcombes_own_example_and_the_z_test():
    """Newcombe 1998, Table II, example (b): 9/10 - 3/10 has the interval .1705 to .8090 by method 10."""
    low, high = statistics.newcombe_interval(0.9, 0.3, 10)
    assert (float(low), float(high)) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    table = [[120, 99], [80, 139]]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert statistics.two_proportions_p(120 / 219, 80 / 219, 219) == pytest.approx(expected)
    assert statistics.two_proportions_p(0.0, 0.0, 10) == 1
