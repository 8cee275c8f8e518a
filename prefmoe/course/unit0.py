"""Checks of unit 0: one picture, two users, what several methods answer about both, and whom they take for whom.

Every right answer is computed from the answers that ship with the repository.
"""

from typing import Any

import pandas as pd

from prefmoe.course import answers, checking
from prefmoe.course.one_picture import chosen

COLLAPSES = "LoRA"
"""The method whose answers are looked at more closely: it is shown names alone."""


def _yes() -> pd.DataFrame:
    """(users, methods) true where the answer is "yes"."""
    return chosen().table > 0.5


def guess(answer: Any) -> None:
    """{method: the users to whom it says yes}: a prediction, before looking."""
    pair, known = (chosen().likes, chosen().other), list(answers.methods())
    if not isinstance(answer, dict):
        raise checking.NotYet(f"guess is {checking.described(answer)}: expected a set of users for every method.")
    if missing := [label for label in known if label not in answer]:
        raise checking.NotYet(f"guess lacks {missing[0]!r}: expected a set of users for each of {', '.join(known)}.")
    said = {label: checking.names(answer[label], f"guess[{label!r}]", pair, "users") for label in known}
    yes = _yes()
    found = sum((name in said[label]) == bool(yes.loc[name, label]) for label in known for name in pair)
    print(f"Noted: {found} of {2 * len(known)} answers are as you expect. Which ones, the next cell shows.")


def both_right(answer: Any) -> None:
    """How many methods are right about both."""
    yes = _yes()
    expected = int((yes.loc[chosen().likes] & ~yes.loc[chosen().other]).sum())
    value = checking.number(answer, "both_right", "a number of methods")
    hint = f"Right about both: above .5 for {chosen().likes}, who likes {chosen().item}, and not for {chosen().other}."
    checking.close(value, expected, "both_right", hint)
    checking.right(f"{expected} of {len(answers.methods())} methods tell these two apart by what they answer.")


def alike(answer: Any) -> None:
    """The methods that give both users the same answer."""
    yes = _yes()
    expected = set(yes.columns[yes.loc[chosen().likes] == yes.loc[chosen().other]])
    found = checking.names(answer, "alike", answers.methods(), "methods")
    hint = "expected those with both probabilities above .5, or neither."
    checking.same_names(found, expected, "alike", "methods", hint)
    checking.right("Whoever is asked about, they say the same here.")


def strangers(answer: Any) -> None:
    """Of those who do not like the thing, the share to whom the collapsing method says yes."""
    value = checking.number(answer, "strangers", "a share between 0 and 1")
    rows = _yes().loc[~chosen().truly, COLLAPSES]
    hint = f"{len(rows)} users do not like {chosen().item}: of these, the share above .5 in the column {COLLAPSES}."
    checking.close(value, rows.mean(), "strangers", hint, tolerance=0.005)
    checking.right("This share, over all things and users, is called collapse.")


def pairs(answer: Any) -> None:
    """In how many pairs does whoever likes the thing have the higher probability, by another method."""
    table, truly = chosen().table, chosen().truly
    value = checking.number(answer, "pairs", "a number of pairs")
    first, second = table.loc[truly, "PrefMoE"].to_numpy(), table.loc[~truly, "PrefMoE"].to_numpy()
    hint = f"Compare each of {len(first)} users who like {chosen().item} with each of {len(second)} who do not."
    won, of = int((first[:, None] > second).sum()), first.size * second.size
    checking.close(value, won, "pairs", hint)
    checking.right(f"{won} of {of}. No threshold has a part in it. Unit 1 calls the share, over all things, an AUC.")


def silent(answer: Any) -> None:
    """The share of `strangers` for somebody who always says no, and the share of likes that it finds."""
    values = checking.array(answer, (2,), "silent", "two shares")
    checking.close(values, [0.0, 0.0], "silent", "It says yes to nobody, whether they like it or not.")
    checking.right("Without any collapse, and of no use: a low collapse alone says little.")


def whom(answer: Any) -> None:
    """What the collapsing method's answers about this thing go by."""
    shown, yes = chosen(), _yes()[COLLAPSES]
    held, of = shown.holders
    reasons = {
        "a": f"It says yes to {yes[shown.truly].mean():.0%} of those who like {shown.item}, and to "
        f"{yes[~shown.truly].mean():.0%} of those who do not.",
        "b": f"{held} of {of} users like {shown.item}, and that is its answer whoever is asked about: "
        "group preference collapse.",
        "c": f"It says yes to {int(yes.sum())} of {len(yes)} users here.",
    }
    checking.choice(answer, "whom", reasons, _goes_by(yes[shown.truly].mean(), yes[~shown.truly].mean()))


def _goes_by(recall: float, collapse: float) -> str:
    """The letter that fits two shares: a) tells users apart, b) says yes to most of either kind, c) to few."""
    if recall - collapse > 0.5:
        return "a"
    return "b" if collapse > 0.5 else "c"
