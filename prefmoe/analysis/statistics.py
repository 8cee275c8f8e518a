"""Uncertainty: cluster bootstrap over users, paired comparisons, corrections, detectable differences, seeds' spread.

Questions about one user are not independent, so every interval resamples whole users. The functions work on
sums per user, which makes a bootstrap of every metric of every method one matrix product.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

RESAMPLES = 20_000
"""Bootstrap resamples behind every interval of the tables and figures: their bounds move by about .02 standard errors
from one draw to the next (with a thousand by .08, which turned verdicts). See `resample_counts`."""

LEVEL = 0.95
"""Coverage of the intervals."""


def cluster_sums(values: ArrayLike, clusters: Sequence | NDArray) -> tuple[NDArray, NDArray]:
    """Sums rows of values by cluster.

    Args:
        values: (N,) or (N, ...).
        clusters: (N,) labels, for instance users' names.

    Returns (U,) sorted labels and (U, ...) sums.
    """
    values = np.asarray(values, dtype=float)
    labels, row = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(labels), *values.shape[1:]))
    np.add.at(sums, row, values)
    return labels, sums


def resample_counts(clusters: int, *, resamples: int | None = None, seed: int = 0) -> NDArray:
    """(resamples, clusters) how often each cluster is drawn when as many are drawn with replacement. The same arguments
    give the same draws, so statistics of several methods are resampled together. Without ``resamples``: `RESAMPLES`,
    and of more than a thousand clusters fewer, so that the draws fit into memory, but a thousand at least."""
    resamples = resamples or max(1000, min(RESAMPLES, 1000 * RESAMPLES // max(clusters, 1)))
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
    numerator: NDArray, denominator: NDArray, *, resamples: int | None = None, seed: int = 0
) -> NDArray:
    """Resampled ratios of sums.

    Args:
        numerator: (U, ...) sums per user.
        denominator: (U, ...) counts per user.

    Returns (resamples, ...) sum of the drawn users' numerators over the sum of their denominators.
    """
    counts = resample_counts(len(numerator), resamples=resamples, seed=seed)
    return ratio(np.tensordot(counts, numerator, axes=1), np.tensordot(counts, denominator, axes=1))


def over_seeds(samples: NDArray, *, axis: int = 1, seed: int = 0, copies: bool = False) -> NDArray:
    """Resampled statistics of each of S seeds as those of their mean, (B, ..., S, ...) to (B, ..., ...).

    What the same users say in every seed is averaged, and in every resample the mean moves as it does when seeds are
    drawn with replacement: the variances of both add up. (Drawing seeds and users at once, as Owen, 2007, does, counts
    what is chance in a seed's single answers several times.) Few seeds seem to differ less than they do: S - 1 are
    drawn at a time, which makes up for it (McCarthy and Snowden, 1985). The same S gives the same draws, so that
    methods are resampled together. ``copies``: of a reference, which are no seeds: their mean alone.
    """
    if copies:
        return samples.mean(axis=axis)
    last = np.moveaxis(samples, axis, -1)
    seeds = last.shape[-1]
    if seeds == 1:
        return last[..., 0]
    drawn = np.random.default_rng([seed, seeds]).multinomial(seeds - 1, np.full(seeds, 1 / seeds), len(last))
    defined = ~np.isnan(last).any(axis=-1, keepdims=True)
    each = ratio(np.where(defined, last, 0).sum(axis=0), np.broadcast_to(defined, last.shape).sum(axis=0))  # (..., S)
    moved = np.einsum("bs,...s->b...", drawn / (seeds - 1), each - each.mean(axis=-1, keepdims=True))
    lowest = np.where(defined, last, np.inf).min(axis=(0, -1))  # a share stays between 0 and 1
    highest = np.where(defined, last, -np.inf).max(axis=(0, -1))
    return np.clip(last.mean(axis=-1) + moved, lowest, highest)


def percentile_interval(samples: NDArray, *, level: float = LEVEL) -> tuple[NDArray, NDArray]:
    """Lower and upper percentile of resampled statistics, (B, ...) -> two (...) arrays. Resamples in which a statistic
    is undefined (NaN) are left out; both bounds are NaN if all are."""
    tail = 50 * (1 - level)
    undefined = np.isnan(samples).all(axis=0)
    filled = np.where(undefined, 0.0, samples)
    low, high = np.nanpercentile(filled, [tail, 100 - tail], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def interval(samples: NDArray, clusters: int) -> tuple[float, float]:
    """`percentile_interval` of one statistic, (B,), as numbers; NaN with fewer than two clusters to draw from."""
    low, high = percentile_interval(samples) if clusters > 1 else (np.nan, np.nan)
    return float(low), float(high)


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence | NDArray, *, resamples: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Mean of values with an interval that resamples clusters and, of values (N, S), the S seeds too (`over_seeds`).

    ``values``: (N,) or (N, S). Returns value, n (N), low and high; the bounds are NaN with fewer than two clusters,
    value too without any row.
    """
    values = np.asarray(values, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    seeds = values.shape[1]
    _, sums = cluster_sums(np.column_stack([values, np.ones(len(values))]), clusters)
    value = float(ratio(sums[:, :-1].sum() / seeds, sums[:, -1].sum()))
    samples = ratio_bootstrap(sums[:, :-1], sums[:, -1:], resamples=resamples, seed=seed)
    low, high = interval(over_seeds(samples, seed=seed), len(sums))
    return {"value": value, "n": int(len(values)), "low": low, "high": high}


def influence(numerator: NDArray, denominator: NDArray) -> NDArray:
    """How much each row moves a ratio of sums, to first order: (x - R y) / sum(y), with R = sum(x) / sum(y).

    Args:
        numerator, denominator: (N, ...) contributions of questions, or of users.

    Returns (N, ...); NaN where the denominator's sum is 0.
    """
    total = denominator.sum(axis=0)
    return ratio(numerator - ratio(numerator.sum(axis=0), total) * denominator, np.broadcast_to(total, numerator.shape))


def standard_error(influences: NDArray) -> NDArray:
    """Linearised standard error of a ratio (or of a sum or difference of ratios) over independent rows.

    With users' `influence` it is that of a cluster sample (Taylor linearisation), with questions' the one that takes
    questions as independent; the ratio of their squares is the design effect (Kish 1965).

    ``influences``: (N, ...) they sum to 0. Returns (...); NaN with fewer than two rows.
    """
    rows = len(influences)
    if rows < 2:
        return np.full(influences.shape[1:], np.nan)
    return np.sqrt(rows / (rows - 1) * (influences**2).sum(axis=0))


def detectable_difference(error: ArrayLike, *, alpha: ArrayLike = 0.05, power: float = 0.8) -> NDArray:
    """The smallest true difference that a two-sided test at ``alpha`` finds with probability ``power``. ``error``:
    standard error of the difference; (z(1 - alpha/2) + z(power)) times it is returned."""
    return (special.ndtri(1 - np.asarray(alpha) / 2) + special.ndtri(power)) * np.asarray(error, dtype=float)


def wilson_interval(share: ArrayLike, n: ArrayLike) -> tuple[NDArray, NDArray]:
    """Wilson's score interval (1927) of a share of n independent questions, at 95 %: (...) -> two (...) arrays, low and
    high in [0, 1]; NaN where n is 0."""
    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    z = special.ndtri(0.5 + LEVEL / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


def newcombe_interval(first: ArrayLike, second: ArrayLike, n: ArrayLike) -> tuple[NDArray, NDArray]:
    """Newcombe's hybrid score interval (1998, method 10) of first - second, two shares of n questions each.

    The two shares are taken as independent; of the same questions they are usually positively correlated, and the
    interval is then too wide. Returns low and high at 95 %, two (...) arrays in [-1, 1].
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    (low_a, high_a), (low_b, high_b) = (wilson_interval(share, n) for share in (first, second))
    difference = first - second
    below = np.hypot(first - low_a, high_b - second)
    return difference - below, difference + np.hypot(high_a - first, second - low_b)


def two_proportions_p(first: ArrayLike, second: ArrayLike, n: ArrayLike) -> NDArray:
    """Two-sided p, (...), of the pooled z test that two independent shares (...) of n questions each are equal."""
    first, second, n = (np.asarray(value, dtype=float) for value in (first, second, n))
    pooled = (first + second) / 2
    error = np.sqrt(2 * pooled * (1 - pooled) / n)
    z = np.where(error > 0, np.abs(first - second) / np.where(error > 0, error, 1), 0.0)
    return 2 * special.ndtr(-z)


def sign_test(first: ArrayLike, second: ArrayLike) -> tuple[int, int, float]:
    """Exact two-sided sign test on paired scores of the same questions.

    With 0/1 hits this is McNemar's exact test; with hits averaged over seeds a question counts for the method
    that answered it correctly in more seeds.

    Returns questions that favour the first, questions that favour the second, p (1 if no question differs).
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    wins, losses = int((difference > 1e-12).sum()), int((difference < -1e-12).sum())
    n = wins + losses
    tail = sum(accumulate(range(min(wins, losses)), lambda ways, k: ways * (n - k) // (k + 1), initial=1))
    return wins, losses, min(1.0, 2 * tail / 2**n)  # whole numbers: a p of 93/128 is written as just that


def swap_masks(clusters: int, *, permutations: int = 9999, seed: int = 0) -> NDArray:
    """(permutations, clusters) random 0/1: users whose results two methods exchange under the null."""
    return np.random.default_rng(seed).integers(0, 2, size=(permutations, clusters)).astype(float)


def permutation_p(observed: ArrayLike, permuted: NDArray) -> NDArray:
    """Two-sided permutation p-values, (...) and (permutations, ...) -> (...). The observed arrangement counts as one of
    the permutations, so that p is never 0."""
    observed = np.asarray(observed, dtype=float)
    with np.errstate(invalid="ignore"):
        extreme = (np.abs(permuted) >= np.abs(observed) - 1e-12).sum(axis=0)
    defined = (~np.isnan(permuted)).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (extreme + 1) / (defined + 1))


def paired_difference(differences: ArrayLike, clusters: Sequence | NDArray) -> dict[str, float]:
    """The mean of paired differences, (N,) or (N, S) of S seeds, with the interval of `cluster_bootstrap`, and p_users
    of the test in which whole clusters exchange the two sides (of the trainings that there are: it knows of no others).
    Returns difference, n, low, high and p_users."""
    values = np.asarray(differences, dtype=float)
    estimate = cluster_bootstrap(values, clusters)
    _, sums = cluster_sums(values.mean(axis=1) if values.ndim > 1 else values, clusters)
    swap = 1 - 2 * swap_masks(len(sums))
    p = float(permutation_p(sums.sum(), swap @ sums))
    return {"difference": estimate.pop("value"), **estimate, "p_users": p}


def holm(p: ArrayLike) -> NDArray:
    """Holm's (1979) step-down adjusted p-values, (T,) in the order given: of the i-th smallest the largest of
    (T + 1 - j) p_j over j <= i, and at most 1. NaN entries are no tests and stay NaN."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def corrected(table: pd.DataFrame, family: Sequence[str], test: str = "p_users") -> pd.DataFrame:
    """The table with a column of p values corrected (`holm`) among the rows that agree in these columns."""
    return table.assign(**{f"{test}_holm": table.groupby(list(family))[test].transform(holm)})


def seed_spread(values: ArrayLike) -> float:
    """Sample standard deviation over seeds (NaN with fewer than two)."""
    values = np.asarray(values, dtype=float)
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def spread_over_seeds(values: NDArray | pd.Series) -> dict[str, float]:
    """How much the values of single seeds differ: sd (`seed_spread`), minimum and maximum."""
    return {"sd": seed_spread(values), "minimum": values.min(), "maximum": values.max()}
