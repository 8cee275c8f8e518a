"""Uncertainty: cluster bootstrap over users, paired comparisons, Holm's correction and the spread over seeds.

Questions about one user are not independent, so every interval resamples whole users. The functions work on
sums per user, which makes a bootstrap of every metric of every method one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
"""Bootstrap resamples behind every interval of the tables and figures."""

LEVEL = 0.95
"""Coverage of the intervals."""


def cluster_sums(values: ArrayLike, clusters: Sequence | NDArray) -> tuple[NDArray, NDArray]:
    """Sums rows of values by cluster.

    Args:
        values: (N,) or (N, ...).
        clusters: (N,) labels, for instance users' names.

    Returns:
        (U,) sorted labels and (U, ...) sums.
    """
    values = np.asarray(values, dtype=float)
    labels, row = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(labels), *values.shape[1:]))
    np.add.at(sums, row, values)
    return labels, sums


def resample_counts(clusters: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray:
    """(resamples, clusters) how often each cluster is drawn when as many are drawn with replacement.

    The same arguments give the same draws, so statistics of several methods are resampled together.
    """
    if clusters == 0:
        return np.zeros((resamples, 0))
    return _draws(clusters, resamples, seed)


@lru_cache(maxsize=8)
def _draws(clusters: int, resamples: int, seed: int) -> NDArray:
    draws = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    counts = draws.astype(float)
    counts.setflags(write=False)
    return counts


def ratio(numerator: NDArray, denominator: NDArray) -> NDArray:
    """numerator / denominator, and NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)


def ratio_bootstrap(
    numerator: NDArray, denominator: NDArray, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray:
    """Resampled ratios of sums.

    Args:
        numerator: (U, ...) sums per user.
        denominator: (U, ...) counts per user.

    Returns:
        (resamples, ...) sum of the drawn users' numerators over the sum of their denominators.
    """
    counts = resample_counts(len(numerator), resamples=resamples, seed=seed)
    return ratio(np.tensordot(counts, numerator, axes=1), np.tensordot(counts, denominator, axes=1))


def percentile_interval(samples: NDArray, *, level: float = LEVEL) -> tuple[NDArray, NDArray]:
    """Lower and upper percentile of resampled statistics, (B, ...) -> two (...) arrays.

    Resamples in which a statistic is undefined (NaN) are left out; both bounds are NaN if all are.
    """
    tail = 50 * (1 - level)
    undefined = np.isnan(samples).all(axis=0)
    filled = np.where(undefined, 0.0, samples)
    low, high = np.nanpercentile(filled, [tail, 100 - tail], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence | NDArray,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, float]:
    """Mean of values with an interval that resamples clusters.

    Returns:
        value, n, low and high; the bounds are NaN with fewer than two clusters, value too without any row.
    """
    values = np.asarray(values, dtype=float)
    _, sums = cluster_sums(np.stack([values, np.ones_like(values)], axis=-1), clusters)
    value = float(ratio(sums[:, 0].sum(), sums[:, 1].sum()))
    low, high = np.nan, np.nan
    if len(sums) > 1:
        samples = ratio_bootstrap(sums[:, 0], sums[:, 1], resamples=resamples, seed=seed)
        low, high = (float(bound) for bound in percentile_interval(samples, level=level))
    return {"value": value, "n": int(len(values)), "low": low, "high": high}


def sign_test(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Exact two-sided sign test on paired scores of the same questions.

    With 0/1 hits this is McNemar's exact test; with hits averaged over seeds a question counts for the method
    that answered it correctly in more seeds.

    Returns:
        questions that favour the first, questions that favour the second, p (1 if no question differs).
    """
    from scipy.stats import binomtest  # a second to import, which every notebook would pay at the top of the module

    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    wins, losses = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    p = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    return wins, losses, float(p)


def swap_masks(clusters: int, *, permutations: int = 9999, seed: int = 0) -> NDArray:
    """(permutations, clusters) random 0/1: users whose results two methods exchange under the null."""
    return np.random.default_rng(seed).integers(0, 2, size=(permutations, clusters)).astype(float)


def permutation_p(observed: ArrayLike, permuted: NDArray) -> NDArray:
    """Two-sided permutation p-values, (...) and (permutations, ...) -> (...).

    The observed arrangement counts as one of the permutations, so that p is never 0.
    """
    observed = np.asarray(observed, dtype=float)
    with np.errstate(invalid="ignore"):
        extreme = (np.abs(permuted) >= np.abs(observed) - 1e-12).sum(axis=0)
    defined = (~np.isnan(permuted)).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (extreme + 1) / (defined + 1))


def holm(p: ArrayLike) -> NDArray:
    """Holm's step-down adjusted p-values in the order given; NaN entries are no tests and stay NaN."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def seed_spread(values: ArrayLike) -> float:
    """Sample standard deviation over seeds (NaN with fewer than two)."""
    values = np.asarray(values, dtype=float)
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
