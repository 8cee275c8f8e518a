"""MMD: against a double loop, its expectation, its gradient far away, and the tables' own with its interval."""

import numpy as np
import pytest
import torch

from prefmoe.analysis import distances
from prefmoe.losses import median_bandwidths, mmd

SCALES = (0.5, 1.0, 3.0)


def rows(count: int, seed: int, shift: float = 0.0, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_loops(x: torch.Tensor, y: torch.Tensor, scales: tuple[float, ...]) -> float:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        distance = sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True))
        return sum(np.exp(-distance / (2 * s * s)) for s in scales) / len(scales)

    xx = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    return sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)


@pytest.mark.parametrize("n, m, shift", [(5, 7, 0.0), (2, 3, 1.5), (9, 2, -4.0)])
def test_mmd_is_the_double_loop(n, m, shift):
    x, y = rows(n, 1), rows(m, 2, shift)
    assert float(mmd(x, y, bandwidths=SCALES)) == pytest.approx(by_loops(x, y, SCALES), abs=1e-12)
    assert float(mmd(x, y, bandwidths=torch.tensor(SCALES))) == pytest.approx(by_loops(x, y, SCALES), abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "scales"),
    [
        (rows(8, 3, width=256), rows(8, 4, 0.2, width=256), (0.05, 0.2, 20.0)),
        (rows(12, 5, width=32), rows(9, 6, 5.0, width=32), (0.5, 1.0, 2.0)),
        (100 + 0.1 * rows(7, 7, width=64), 100.03 + 0.1 * rows(9, 8, width=64), (0.5, 1.0)),
    ],
    ids=["narrow beside wide", "far apart", "far from 0"],
)
def test_mmd_in_single_precision_is_the_double_loop(x, y, scales):
    """Squares and products lost up to a fourteenth of it, and all of it far from 0."""
    x, y = x.float(), y.float()
    expected = by_loops(x, y, scales)
    assert float(mmd(x, y, bandwidths=scales)) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_mmd_is_0_in_expectation_for_equal_distributions_and_not_for_others():
    same = np.array([float(mmd(rows(12, 2 * k), rows(9, 2 * k + 1), bandwidths=SCALES)) for k in range(400)])
    assert abs(same.mean()) < 4 * same.std() / len(same) ** 0.5
    assert (same < 0).mean() > 0.2  # unbiased: it is often negative
    other = np.array([float(mmd(rows(12, 2 * k), rows(9, 2 * k + 1, 1.0), bandwidths=SCALES)) for k in range(100)])
    assert other.mean() > 10 * abs(same.mean())


def test_mmd_compares_distributions_and_not_points():
    x, y = rows(8, 1), rows(8, 2)
    assert float(mmd(x, y[torch.randperm(8)], bandwidths=SCALES)) == pytest.approx(float(mmd(x, y, bandwidths=SCALES)))


def test_one_narrow_bandwidth_has_no_gradient_far_away_and_the_mixture_has():
    """What the mixture is for: samples a hundred units apart."""
    x, y = rows(6, 1).requires_grad_(), rows(6, 2, 100.0)
    (narrow,) = torch.autograd.grad(mmd(x, y, bandwidths=[0.5]), x)
    pull = -(narrow * torch.ones_like(x)).sum()
    (wide,) = torch.autograd.grad(mmd(x, y, bandwidths=median_bandwidths(x, y)), x)
    assert abs(float(pull)) < 1e-10 and -(wide.sum()) > 1e-4
    assert median_bandwidths(x, y).requires_grad is False


def test_median_bandwidths_are_multiples_of_the_median_distance_between_different_rows():
    x, y = rows(4, 3), rows(3, 4)
    both = torch.cat([x, y])
    apart = sorted(float((both[i] - both[j]).norm()) for i in range(7) for j in range(i))
    torch.testing.assert_close(
        median_bandwidths(x, y, (1.0, 2.0)), torch.tensor([1.0, 2.0], dtype=x.dtype) * apart[10], rtol=1e-6, atol=0
    )
    assert torch.equal(median_bandwidths(torch.zeros(2, 3), torch.zeros(2, 3), (0.5, 2.0)), torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize(
    "x, y, scales, message",
    [
        (torch.zeros(1, 3), torch.zeros(2, 3), SCALES, "two rows or more"),
        (torch.zeros(2, 3), torch.zeros(2, 4), SCALES, "of one width"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (), "positive bandwidths"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (1.0, 0.0), "positive bandwidths"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1.0, 0.0]), "positive bandwidths"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([float("nan")]), "positive bandwidths"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (-1.0,), "positive bandwidths"),
        (torch.zeros(2, 3), torch.zeros(2, 3), (float("inf"),), "positive bandwidths"),
    ],
)
def test_mmd_refuses_what_has_none(x, y, scales, message):
    with pytest.raises(ValueError, match=message):
        mmd(x, y, bandwidths=scales)


def test_the_tables_distance_is_the_loss_with_a_jackknife_over_users():
    x, there = rows(12, 5, 0.4).numpy(), rows(20, 6).numpy()
    users, scales = np.repeat(list("abcd"), 3), distances.bandwidths(there)
    found = distances.mmd(x, there, users, scales)

    def value(part: np.ndarray) -> float:
        return float(mmd(torch.tensor(part), torch.tensor(there), bandwidths=scales.tolist()))

    left_out = np.array([value(x[users != user]) for user in "abcd"])
    error = np.sqrt(3 / 4 * ((left_out - left_out.mean()) ** 2).sum())
    assert found["value"] == pytest.approx(value(x), abs=1e-9) and found["n"] == 12
    assert (found["low"], found["high"]) == pytest.approx((value(x) - 1.96 * error, value(x) + 1.96 * error), abs=1e-9)
    assert np.isnan(distances.mmd(x[:3], there, users[:3], scales)["low"])


def test_the_distance_of_several_trainings_has_the_error_of_users_and_of_trainings():
    """Many trainings, each with the same users: the interval holds the truth as often as it says."""
    rng, true, own, between, trainings = np.random.default_rng(3), 0.3, 0.04, 0.05, 4
    inside = []
    for _ in range(4000):
        users = own * rng.normal()
        values = true + users + between * rng.normal(size=trainings)
        each = [{"value": v, "low": v - 1.96 * own, "high": v + 1.96 * own, "n": 12} for v in values]
        found = distances.over_seeds(each)
        inside.append(found["low"] <= true <= found["high"])
        assert found["value"] == pytest.approx(values.mean()) and found["n"] == 12
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    alone = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 5}
    assert distances.over_seeds([alone]) == pytest.approx(alone)
