"""Checks of unit 1: the answer's meaning, collapse, recall, and the AUC over pairs of users."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from prefmoe.course import answers, checking

BY_HAND = pd.DataFrame(
    [
        # user, facet, item, holders, negated, truth, answer, p_yes, p_no
        ("Ada", "travel", "kites", ("Ada", "Bo"), False, "yes", "yes", 0.9, 0.1),
        ("Bo", "travel", "kites", ("Ada", "Bo"), True, "no", "yes", 0.6, 0.4),
        ("Cy", "travel", "kites", ("Ada", "Bo"), False, "no", "yes", 0.7, 0.3),
        ("Di", "travel", "kites", ("Ada", "Bo"), True, "yes", "yes", 0.8, 0.2),
        ("Ed", "travel", "kites", ("Ada", "Bo"), False, "no", "", 0.4, 0.4),
        ("Cy", "fashion", "hats", ("Bo", "Cy"), False, "yes", "no", 0.2, 0.8),
        ("Ada", "fashion", "hats", ("Bo", "Cy"), False, "no", "no", 0.2, 0.8),
        ("Flo", "travel", "kites", ("Ada", "Bo"), True, "yes", "no", 0.3, 0.7),
        ("Gus", "travel", "kites", ("Ada", "Bo"), True, "yes", "yes", 0.6, 0.4),
        ("Bo", "fashion", "hats", ("Bo", "Cy"), False, "no", "no", 0.1, 0.9),
    ],
    columns=["user", "facet", "item", "holders", "negated", "truth", "answer", "p_yes", "p_no"],
)
"""Ten questions with everything that can go wrong: negated ones, one without a readable answer, a holder who does not
like the thing after all, ties."""


def said_likes(function: Callable) -> None:
    """(N,) true where the answer means that the user likes the thing."""
    found = checking.called(function, BY_HAND.copy(), name="said_likes")
    unread = (BY_HAND["answer"] == "").tolist()
    values = checking.array(found, (len(BY_HAND),), "said_likes(questions)", "true or false", ignored=unread)
    expected = [True, False, True, False, False, False, False, True, False, False]
    wrong = [k for k in range(len(expected)) if bool(values[k]) != expected[k] and BY_HAND["answer"][k]]
    if wrong:
        row = BY_HAND.iloc[wrong[0]]
        asked = "is not liked" if row["negated"] else "is liked"
        raise checking.NotYet(
            f"said_likes(questions)[{wrong[0]}] is {bool(values[wrong[0]])}: {row['user']} was asked whether it "
            f"{asked}, and the answer is {row['answer']!r}; expected {expected[wrong[0]]}."
        )
    checking.right("A negated question turns the meaning of yes round.")


def collapse(function: Callable) -> None:
    """By hand, and against the committed table."""
    hint = (
        "Count the questions whose user is not among the holders and of which the truth means dislike (`yes` where the "
        "question is negated); leave out answers that cannot be read. Of these, the share that was answered as if the "
        "user liked it (`no` where the question is negated)."
    )
    _share(function, "collapse", 2 / 5, hint)


def recall(function: Callable) -> None:
    """By hand, and against the committed table."""
    hint = (
        "Count the questions whose user is among the holders and of which the truth means like (`no` where the "
        "question is negated); leave out answers that cannot be read. Of these, the share that was answered as if the "
        "user liked it."
    )
    _share(function, "recall", 1 / 3, hint)


def auc_same(function: Callable) -> None:
    """By hand, and against the committed table."""
    hint = (
        "Pair every question of somebody who holds the preference and likes the thing with every one about the same "
        "thing of somebody who does neither; count the pairs in which the first has the higher probability of `likes "
        "it` (p_no where the question is negated), and a tie as one half."
    )
    _share(function, "auc_same", 7.5 / 11, hint)


def _share(function: Any, name: str, by_hand: float, hint: str) -> None:
    found = checking.called(function, BY_HAND.copy(), name=name)
    value = checking.number(found, f"{name} of the ten questions", "a number between 0 and 1")
    checking.close(value, by_hand, f"{name} of the ten questions", hint)
    known = answers.methods()
    for label, seeds in known.items():
        values = [checking.called(function, answers.preferences(label, seed), name=name) for seed in seeds]
        values = [checking.number(one, f"{name} of {label}") for one in values]
        row = answers.table("table1", method=label, backbone=answers.about()["backbone"], turns=0, metric=name)
        checking.close(np.mean(values), row["value"][0], f"{name} of {label}, mean over seeds", hint)
    checking.right(f"The values of {len(known)} methods are those of figures/mini/table1.csv.")


def quiet(answer: Any) -> None:
    """Why a low collapse alone says little."""
    reasons = {
        "a": "A model that knows everybody has no collapse, but so has another one that knows nobody.",
        "b": "Whoever says no to everything has none. That is why recall stands beside it.",
        "c": "The number of questions does not depend on what is answered, but for answers that cannot be read.",
    }
    checking.choice(answer, "quiet", reasons, "b")


def whom(answer: Any) -> None:
    """What an AUC of one half says."""
    reasons = {
        "a": "Whatever is the same for both users of a pair cancels out, the item's popularity too.",
        "b": "A model that is right half of the time in yes/no questions may tell users apart very well.",
        "c": "Ties count one half, but so do pairs that are won and lost equally often.",
    }
    checking.choice(answer, "whom", reasons, "a")
