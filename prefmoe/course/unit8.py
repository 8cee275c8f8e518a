"""Checks of unit 8: how many questions stand behind the numbers of a published table."""

from collections.abc import Callable
from typing import Any

import numpy as np

from prefmoe.analysis import audit, published
from prefmoe.analysis.published import QUESTIONS
from prefmoe.course import checking


def printed(metric: str) -> np.ndarray:
    """The values of a metric as the paper's Table 1 prints them, with four decimals."""
    table = published.read("table1")
    return table.loc[table["metric"] == metric, "value"].to_numpy()


def fits(function: Callable) -> None:
    """fits(values (V,), n) -> (V,) whether each is k/n for a whole number k, to four decimals."""
    values = np.array([0.5, 0.3333, 0.3334, 0.0, 1.0, 0.1429])
    for n in (3, 7, 750):
        found = checking.called(function, values.copy(), n, name="fits")
        told = checking.array(found, (len(values),), f"fits(values, {n})", "true or false")
        for value, said, expected in zip(values, told, audit.fits(values, n), strict=True):
            if bool(said) != bool(expected):
                nearest = round(value * n)
                raise checking.NotYet(
                    f"fits says {bool(said)} of {value} with n = {n}: expected {bool(expected)}, since the nearest "
                    f"share is {nearest}/{n} = {nearest / n:.6f}, which is printed as {nearest / n:.4f}."
                )
    checking.right("A share of n questions is k/n for a whole number k, and few numbers with four decimals are.")


def excess(function: Callable) -> None:
    """excess(values (V,), n) -> how many standard deviations more fit than by chance."""
    for metric, n in (("preference", 750), ("preference", 751), ("collapse", 219), ("collapse", 20)):
        values = printed(metric)
        value = checking.number(checking.called(function, values.copy(), n, name="excess"), f"excess({metric}, {n})")
        chance = (n + 1) / 10001
        found = int(audit.fits(values, n).sum())
        expected = (found - len(values) * chance) / np.sqrt(len(values) * chance * (1 - chance))
        hint = (
            f"{found} of {len(values)} values fit. By chance one does with probability c = (n + 1)/10001: subtract c "
            "times the number of values, and divide by the square root of that number times c (1 - c)."
        )
        checking.close(value, expected, f"excess({metric}, {n})", hint, tolerance=1e-3 * max(1.0, abs(expected)))
    checking.right("Many n let some values fit; only the true one lets so many.")


def recovered(answer: Any) -> None:
    """{metric: n} found from the printed values."""
    if not isinstance(answer, dict):
        raise checking.NotYet(
            f"recovered is {checking.described(answer)}: expected a number for each of {', '.join(QUESTIONS)}."
        )
    for metric, n in QUESTIONS.items():
        if metric not in answer:
            raise checking.NotYet(f"recovered lacks {metric!r}: expected a number for each of {', '.join(QUESTIONS)}.")
        value = checking.number(answer[metric], f"recovered[{metric!r}]", "a whole number of questions")
        hint = "Try every n from 20 to 3000, and take the one with the largest excess."
        if value != n:
            raise checking.NotYet(f"recovered[{metric!r}] is {value:g}, which is not it. {hint}")
    checking.right(
        ", ".join(f"{n} {metric}" for metric, n in QUESTIONS.items()) + ": three of them the paper says itself."
    )


def constant(answer: Any) -> None:
    """Rows whose three accuracies fall by one and the same amount with small talk: their methods."""
    changes = audit.turn_changes(published.read("table1"))
    expected = set(changes.index[changes["constant"] == 1].get_level_values("method"))
    found = checking.names(answer, "constant", changes.index.unique("method"), "methods")
    hint = "compare how overall, preference and profile change from 0 to 10 turns, to one unit of the fourth decimal."
    checking.same_names(found, expected, "constant", "methods", hint)
    checking.right(
        "Unrelated multiples of 1/750 and 1/1395 rarely agree to four decimals. Read such rows without small talk."
    )


def says(answer: Any) -> None:
    """What a misfit proves."""
    reasons = {
        "a": "A slip of typesetting, a mean of several runs or another test set explain it as well; the numbers "
        "cannot tell.",
        "b": "It says how far a digit may be trusted, and nothing about why.",
        "c": "A mean over several runs would make most values of a row misfit, and a reader should know of it.",
    }
    checking.choice(answer, "says", reasons, "b")
