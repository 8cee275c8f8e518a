"""Floors and ceilings that need no model: chance, the popular choice, a reader of profiles, and who knows groups."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pandas as pd

from prefmoe import metrics
from prefmoe.analysis.answers import NO_BACKBONE, REFERENCE, Answers
from prefmoe.analysis.groupings import depicted_items, questions
from prefmoe.config import Edition
from prefmoe.data.benchmark import Benchmark, Preference, User

CHANCE, POPULAR, READER, GROUP = "Chance", "Popular choice", "Profile reader", "Group's likes"

KNOWN = {
    CHANCE: "nobody",
    POPULAR: "population's answers",
    READER: "profile text read perfectly",
    GROUP: "everything that the user's groups like",
}
"""What each reference is shown of a user."""


def chance(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Uniform guessing, exactly: twelve copies in which every allowed answer is given equally often.

    The mean of a metric over the copies is its expected value, because 12 is a multiple of 2, 3 and 4 answers.

    ``frame``: questions with the columns of `metrics.COLUMNS`; of multiple choice blank options are no answers.

    Returns twelve frames with a column prediction.
    """
    allowed = [_allowed(row) for row in frame.to_dict("records")]
    return [frame.assign(prediction=[answers[k % len(answers)] for answers in allowed]) for k in range(12)]


def popular_choice(train: pd.DataFrame, frame: pd.DataFrame, items: pd.Series) -> pd.DataFrame:
    """The answer of somebody who knows what people answered in training, but not who is asking.

    It is told the item in the picture (it does not see the picture). Preference yes/no: what the majority of the
    training answers about this item means, or about any item if this one never occurred; negated questions are undone
    and redone. Multiple choice: the option that was right most often in training, for the same wording if there is any.
    Recognition yes/no: the majority answer of training. Ties mean "no" and the first option.

    Args:
        train: training questions with their answers.
        frame: questions to answer.
        items: index -> depicted item ("" if unknown).

    Returns frame with a column prediction. Raises ScoringError for training questions that `metrics.score` refuses.
    """
    truth = metrics.score(train.assign(prediction=""))
    yes_no = truth[truth["l2-category"] != "inconsistency"]
    yes = (yes_no["gt"] == "yes") != yes_no["preference_semantic_invert"].astype(bool)
    tallies: dict[tuple, list[int]] = {}
    for category, item, answer in zip(yes_no["category"], yes_no["index"].map(items), yes, strict=True):
        for key in {(category, item), (category, None)}:
            tally = tallies.setdefault(key, [0, 0])
            tally[int(answer)] += 1
    choices = truth[truth["l2-category"] == "inconsistency"]
    right = [row[row["gt"].upper()] for row in choices.to_dict("records")]
    by_wording = Counter(zip(choices["category"], choices["question"], right, strict=True))
    by_text = Counter(zip(choices["category"], right, strict=True))

    def answer(row: dict) -> str:
        category = row["category"]
        if row["l2-category"] == "inconsistency":
            letters = _allowed(row)
            return max(
                letters,
                key=lambda letter: (by_wording[category, row["question"], row[letter]], by_text[category, row[letter]]),
            )
        item = items.get(row["index"], "")
        known = category == "preference" and item and (category, item) in tallies
        no_count, yes_count = tallies.get((category, item if known else None), [0, 0])
        return "yes" if (yes_count > no_count) != bool(row["preference_semantic_invert"]) else "no"

    return frame.assign(prediction=[answer(row) for row in frame.to_dict("records")])


def profile_reader(
    popular: pd.DataFrame,
    items: pd.Series,
    users: Mapping[str, User],
    untold: Mapping[tuple[str, Preference], set[str]] = MappingProxyType({}),
) -> pd.DataFrame:
    """The answer of somebody who reads the user's profile text and is told the item in the picture.

    Preference yes/no: yes if the item is among the user's likes. Multiple choice: the first option that the user likes
    (or dislikes, when the question's target is "dislike"). The profile text does not show the user's face in the
    picture, so recognition, and whatever the profile does not settle, falls back on `popular_choice`.

    Args:
        popular: the questions, with the `popular_choice` in the column prediction.
        users: name -> User.
        untold: what else is liked by everybody who has a preference in a facet (`untold_likes`).

    Returns the questions with a column prediction.
    """

    def answer(row: dict, guess: str) -> str:
        if row["category"] != "preference":
            return guess
        told = users[row["name"]].preferences
        preferences = told.values()
        likes = {item for preference in preferences for item in preference.likes}
        likes.update(item for group in told.items() for item in untold.get(group, ()))
        if row["l2-category"] == "inconsistency":
            dislikes = {item for preference in preferences for item in preference.dislikes}
            wanted = dislikes if row.get("target") == "dislike" else likes
            return next((letter for letter in _allowed(row) if row[letter] in wanted), guess)
        item = items.get(row["index"], "")
        return guess if not item else "yes" if (item in likes) != bool(row["preference_semantic_invert"]) else "no"

    return popular.assign(prediction=[answer(row, row["prediction"]) for row in popular.to_dict("records")])


def untold_likes(benchmark: Benchmark) -> dict[tuple[str, Preference], set[str]]:
    """What no profile tells of the groups: (facet, preference) -> items that anybody of the group is asked about as
    something that they like; empty where profiles tell everything."""
    found: dict[tuple[str, Preference], set[str]] = {}
    annotated = benchmark.told(list(benchmark.frame.index))
    if "told" in annotated:
        items = annotated.loc[annotated["told"] == "untold", "item"]
        asked = benchmark.frame.loc[items.index]
        for item, name, facet in zip(items, asked["name"], asked["concept"], strict=True):
            found.setdefault((facet, benchmark.users[name].preferences[facet]), set()).add(item)
    return found


def references(benchmark: Benchmark, split: str) -> dict[str, list[pd.DataFrame]]:
    """Scored floors and ceilings of a split: method -> copies, like the seeds of a run.

    The profile reader needs the depicted items of ``annotations.csv`` and is left out without them; the group's likes
    are a ceiling of their own only where profiles do not tell everything.
    """
    frame, items = questions(benchmark, split), depicted_items(benchmark)
    popular = popular_choice(questions(benchmark, "train"), frame, items)
    answers = {CHANCE: chance(frame), POPULAR: [popular]}
    if benchmark.annotations is not None:
        answers[READER] = [profile_reader(popular, items, benchmark.users)]
        if untold := untold_likes(benchmark):
            answers[GROUP] = [profile_reader(popular, items, benchmark.users, untold)]
    return {method: [metrics.score(copy) for copy in copies] for method, copies in answers.items()}


def read_references(edition: Edition, benchmark: Benchmark, split: str) -> list[Answers]:
    """The references' answers, once per number of turns (small talk changes nothing for them)."""
    if not benchmark.splits.get(split):
        return []
    where = {"key": "", "type": REFERENCE, "backbone": NO_BACKBONE, "split": split, "turns": 0}
    answers = (
        Answers.of(copies, method=method, information=KNOWN[method], **where)
        for method, copies in references(benchmark, split).items()
    )
    return [replace(one, turns=turns) for one in answers for turns in edition.evaluation.asked.get(split, ())]


def _allowed(row: Mapping) -> tuple[str, ...]:
    if row["l2-category"] != "inconsistency":
        return ("yes", "no")
    return tuple(letter for letter in "ABCD" if isinstance(row[letter], str) and row[letter].strip())
