"""Checks of unit 2: the popular choice, and why it has a high sensitivity and tells nobody apart."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from prefmoe.analysis.pairs import AUC_SAME
from prefmoe.analysis.references import POPULAR
from prefmoe.course import answers, checking

TRAINING = pd.DataFrame(
    [
        ("Ada", "kites", False, "yes"), ("Bo", "kites", True, "no"), ("Cy", "kites", False, "no"),
        ("Ada", "hats", False, "no"), ("Bo", "hats", True, "yes"), ("Cy", "rain", False, "yes"),
        ("Di", "rain", False, "no"), ("Di", "snow", True, "yes"),
    ],
    columns=["user", "item", "negated", "truth"],
)  # fmt: skip
ASKED = ["kites", "hats", "rain", "moon"]


def popular(function: Callable) -> None:
    """By hand, then the row of the committed table."""
    test = pd.DataFrame({"user": "Eva", "item": ASKED, "negated": [False, False, True, False]})
    found = checking.called(function, TRAINING.copy(), test.copy(), name="popular")
    values = checking.array(found, (4,), "popular(training, questions)", "true or false")
    told = {
        "kites": (True, "two of three people like them (one was asked the negated question, and said no)"),
        "hats": (False, "nobody likes them"),
        "rain": (False, "one likes it and one does not: a tie counts as dislike"),
        "moon": (
            False,
            "nobody was asked about it, and over all items fewer like than dislike what they are asked about",
        ),
    }
    for value, (item, (expected, why)) in zip(values, told.items(), strict=True):
        if bool(value) != expected:
            raise checking.NotYet(f"popular says {bool(value)} of {item}: expected {expected}, since {why}.")
    questions = answers.preferences(next(iter(answers.methods())))
    likes = checking.called(function, answers.training(), questions.copy(), name="popular")
    likes = checking.array(likes, (len(questions),), "popular(training, questions)", "true or false")
    held = pd.Series([u in h for u, h in zip(questions["user"], questions["holders"], strict=True)])
    truly = (questions["truth"] == "yes") != questions["negated"]
    for metric, part in {"collapse": ~held & ~truly, "recall": held & truly}.items():
        checking.close(likes[part].mean(), value_of(metric), f"{metric} of your popular choice")
    checking.right(f"Collapse {value_of('collapse'):.3f} and recall {value_of('recall'):.3f}, as in the table.")


def value_of(metric: str, method: str = POPULAR) -> float:
    """A value of the committed main table without small talk."""
    rows = answers.table("table1", method=method, turns=0, metric=metric)
    return float(rows["value"].iloc[0])


def popular_choice(questions: pd.DataFrame) -> pd.Series:
    """(N,) what the popular choice says of questions about preferences: true where it means "likes it"."""
    training = answers.training()
    likes = (training["truth"] == "yes") != training["negated"]
    return questions["item"].map(likes.groupby(training["item"]).mean()).fillna(likes.mean()) > 0.5


def auc_same(questions: pd.DataFrame, likes: pd.Series) -> float:
    """The AUC over pairs of users of unit 1, section 4; ``likes``: (N,) how probable "likes it" is said to be."""
    held = pd.Series([u in h for u, h in zip(questions["user"], questions["holders"], strict=True)], questions.index)
    truly = (questions["truth"] == "yes") != questions["negated"]
    rows = questions[["facet", "item", "holders"]].assign(likes=likes.astype(float))
    pairs = rows[held & truly].merge(rows[~held & ~truly], on=["facet", "item", "holders"])
    return float(((pairs["likes_x"] > pairs["likes_y"]) + 0.5 * (pairs["likes_x"] == pairs["likes_y"])).mean())


def auc(answer: Any) -> None:
    """The AUC of the popular choice, as a number."""
    value = checking.number(answer, "auc", "a number between 0 and 1")
    hint = "What does it say of two users who are asked about the same thing? Who wins such a pair?"
    checking.close(value, value_of(AUC_SAME), "auc", hint)
    checking.right("It says the same of both users of every pair: each is a tie.")


def why(answer: Any) -> None:
    """How somebody who knows nobody can have a sensitivity far above zero."""
    reasons = {
        "a": "It never sees a name.",
        "b": "Things that many like are asked about more often of people who do like them. Sensitivity rewards that; "
        "pairs about one and the same thing do not.",
        "c": "It has both questions right and questions wrong, in shares that the table shows with intervals.",
    }
    checking.choice(answer, "why", reasons, "b")


def better(answer: Any) -> None:
    """Which methods are ahead of the popular choice in sensitivity: a set of labels."""
    known = answers.methods()
    bar = value_of("sensitivity")
    backbone = answers.about()["backbone"]
    rows = answers.table("table1", backbone=backbone, turns=0, metric="sensitivity")
    expected = set(rows.loc[(rows["value"] > bar) & rows["method"].isin(list(known)), "method"])
    found = checking.names(answer, "better", known, "labels")
    checking.same_names(found, expected, "better", "methods", f"compare each one's sensitivity with {bar:.3f}.")
    checking.right(f"Of {len(known)} methods, {len(expected)} are ahead of somebody who knows nobody.")
