"""How far two sets of pictures are apart in a space of features, with an interval over users; without a model."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

FACTORS = (0.5, 1.0, 2.0)
"""Bandwidths of the kernels, in units of the reference's median distance."""

Z = 1.96


def bandwidths(reference: NDArray) -> NDArray:
    """The median distance between different rows of the reference (N, F), times each of `FACTORS`."""
    distances = cdist(reference, reference)[np.triu_indices(len(reference), 1)]
    return np.median(distances) * np.array(FACTORS)


def mmd(x: NDArray, reference: NDArray, users: Sequence[str], scales: NDArray) -> dict[str, float]:
    """Squared maximum mean discrepancy between pictures and a reference (`prefmoe.losses.mmd`), with an interval by the
    jackknife over users (a resample would hold the same picture twice).

    Args:
        x: (N, F) features. reference: (M, F). users: (N,) whose picture each row of x is. scales: (S,) bandwidths.

    Returns value, low, high and n; the bounds are NaN with fewer than two users.
    """
    owners, row = np.unique(np.asarray(users), return_inverse=True)
    within, across = _kernel(x, x, scales), _kernel(x, reference, scales)
    np.fill_diagonal(within, 0.0)
    other = _kernel(reference, reference, scales)
    constant = (other.sum() - len(reference)) / (len(reference) * (len(reference) - 1))
    one = np.eye(len(owners))[row]  # (N, U)
    between = one.T @ within @ one  # (U, U)
    to_reference, count = one.T @ across.mean(1), one.sum(0)

    def value(total: NDArray, reached: NDArray, n: NDArray) -> NDArray:
        return total / (n * (n - 1)) + constant - 2 * reached / n

    n, total, reached = len(x), between.sum(), to_reference.sum()
    estimate = float(value(total, reached, n))
    low = high = float("nan")
    if len(owners) > 1 and (n - count > 1).all():
        own = between.sum(1) * 2 - np.diag(between)
        left_out = value(total - own, reached - to_reference, n - count)
        error = np.sqrt((len(owners) - 1) / len(owners) * ((left_out - left_out.mean()) ** 2).sum())
        low, high = estimate - Z * error, estimate + Z * error
    return {"value": estimate, "low": float(low), "high": float(high), "n": n}


def over_seeds(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of what `mmd` returns for each of several seeds, whose pictures are of the same users.

    The squared error of a mean over users (the seeds' mean: users are the same) and that of a mean over S seeds (their
    standard deviation, over the root of S) add up, as in `prefmoe.analysis.statistics.over_seeds`.
    """
    values = np.array([one["value"] for one in each])
    half = np.mean([one["high"] - one["low"] for one in each]) / 2
    if len(values) > 1:
        half = np.hypot(half, Z * values.std(ddof=1) / np.sqrt(len(values)))
    value = float(values.mean())
    return {"value": value, "low": float(value - half), "high": float(value + half), "n": each[0]["n"]}


def _kernel(a: NDArray, b: NDArray, scales: NDArray) -> NDArray:
    squared = cdist(a, b, "sqeuclidean")
    return np.mean([np.exp(-squared / (2 * scale**2)) for scale in scales], axis=0)
