"""Checks of unit 7: a bootstrap over users, a permutation test, and a correction for many tests."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from prefmoe.analysis import statistics
from prefmoe.course import answers, checking

METHOD, RIVAL, METRIC = "Non-tuned with profile", "Non-tuned without profile", "preference"
"""Two rows without training, of one run each: the interval of a row of several trainings has seeds in it as well."""


def hits(method: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Questions about preferences in the default edition: (N,) 1 where a method is right, and (N,) the user."""
    rows = answers.scored(method, seed)
    rows = rows[rows["category"] == "preference"]
    return rows["hit"].to_numpy(dtype=float), rows["name"].to_numpy(dtype=object).astype(str)


def draws(users: int) -> np.ndarray:
    """(1000, users) how often each user, in alphabetical order, is drawn: the same draws as behind the tables."""
    return statistics.resample_counts(users)


def interval(function: Callable) -> None:
    """interval(values (N,), users (N,), counts (1000, U)) -> low, high."""
    values, users = np.array([1.0, 0.0, 1.0, 1.0]), np.array(["b", "a", "b", "c"])
    counts = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3]] * 5)
    low, high = _bounds(checking.called(function, values, users, counts, name="interval"))
    shares = np.array([3 / 4, 2 / 4, 6 / 6, 3 / 3] * 5)
    hint = (
        "For every row of counts: add up the values of the users that were drawn, each as often as drawn, and divide "
        "by the number of their questions. Users are in alphabetical order. Then the percentiles 2.5 and 97.5."
    )
    checking.close([low, high], np.percentile(shares, [2.5, 97.5]), "interval of four questions", hint)
    values, users = hits(METHOD)
    found = _bounds(checking.called(function, values, users, draws(len(set(users))), name="interval"))
    row = answers.table("table1", method=METHOD, backbone=answers.about()["backbone"], turns=0, metric=METRIC).iloc[0]
    checking.close(found, [row["low"], row["high"]], f"interval of {METHOD}", hint)
    checking.right(f"[{row['low']:.3f}, {row['high']:.3f}], the interval of figures/mini/table1.csv.")


def _bounds(found: Any) -> tuple[float, float]:
    ordered = isinstance(found, Sequence | np.ndarray | torch.Tensor) and not isinstance(found, str)
    if not ordered or getattr(found, "ndim", 1) == 0 or len(found) != 2:
        raise checking.NotYet(f"interval is {checking.described(found)}: expected two numbers, low and high.")
    low, high = (checking.number(bound, "a bound of interval") for bound in found)
    return low, high


def permuted(function: Callable) -> None:
    """permuted(first (N,), second (N,), users (N,), swaps (P, U)) -> p."""
    first, second, users = np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 1]), np.array(["a", "a", "b", "c"])
    swaps = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]])
    value = checking.number(checking.called(function, first, second, users, swaps, name="permuted"), "permuted(...)")
    hint = (
        "In every row of swaps, users with a 1 exchange the two methods' results, which turns the sign of their "
        "differences. p is (1 + the number of rows whose total difference is at least as large as the observed one, in "
        "size) / (1 + rows)."
    )
    # observed 2 - 1 = 1; the rows give 1, -3, 3, -1, 1, none of them smaller in size
    checking.close(value, 6 / 6, "permuted(...) of four questions", hint)
    first, second = np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 1, 0])
    value = checking.number(checking.called(function, first, second, users, swaps, name="permuted"), "permuted(...)")
    # observed 2 + 1 = 3; the rows give 3, -1, 1, -3, 3
    checking.close(value, 4 / 6, "permuted(...) of four questions", hint)
    # who has more questions weighs more: observed 3 - 1 + 1 = 3 (a mean per user: 1); the rows give 5, 1, -3, 3
    first, second, users = np.array([1.0, 1, 1, 0, 1]), np.array([0.0, 0, 0, 1, 0]), np.array(["a", "a", "a", "b", "c"])
    swaps = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    value = checking.number(checking.called(function, first, second, users, swaps, name="permuted"), "permuted(...)")
    checking.close(value, 4 / 5, "permuted(...) of five questions", hint)
    (mine, users), (theirs, _) = hits(METHOD), hits(RIVAL)
    masks = statistics.swap_masks(len(set(users)))
    value = checking.number(checking.called(function, mine, theirs, users, masks, name="permuted"), "permuted(...)")
    _, sums = statistics.cluster_sums(mine - theirs, users)
    expected = float(statistics.permutation_p(sums.sum(), (1 - 2 * masks) @ sums))
    checking.close(value, expected, f"p of {METHOD} against {RIVAL}", hint)
    checking.right(
        f"p = {expected:.4f}: who exchanges whole users does not count a user's fourteen questions fourteen times."
    )


def holm(function: Callable) -> None:
    """holm(p (T,)) -> adjusted p (T,), in the order given."""
    for p in ([0.01, 0.04, 0.03], [0.2, 0.001, 0.5, 0.04, 0.04], [0.6, 0.7]):
        found = checking.called(function, np.array(p), name="holm")
        values = checking.array(found, (len(p),), "holm(p)")
        hint = (
            "The smallest p is multiplied by the number of tests, the next by one less, and so on; none is smaller "
            "than the one before, none above 1."
        )
        checking.close(values, statistics.holm(p), f"holm({p})", hint)
    checking.right("With twenty comparisons, one in twenty is below .05 by chance; corrected, one family in twenty is.")


def clusters(answer: Any) -> None:
    """Why users are drawn, and not questions."""
    reasons = {
        "a": "It is hardly slower to draw questions; it would be wrong.",
        "b": "Whoever is misjudged in one question may be misjudged in the next, or be judged rightly just there. "
        "Fourteen questions about one user can be fewer than fourteen pieces of evidence, or more, as here.",
        "c": "Users have equally many questions here, and it would make no difference to the reason if they had not.",
    }
    checking.choice(answer, "clusters", reasons, "b")
