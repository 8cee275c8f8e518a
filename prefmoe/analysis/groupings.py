"""Which questions belong together, and what a benchmark asks: by kind, facet, item and group of users."""

from collections import Counter

import numpy as np
import pandas as pd

from prefmoe import metrics
from prefmoe.data.benchmark import FACETS, Benchmark

POPULARITY_GROUPS = ("rare", "middle", "popular")

TOLD_GROUPS = ("told", "untold, pair seen in training", "untold, pair unseen in training")
"""Questions about what users hold, by what profiles tell of it (where there is anything that they do not)."""

PAIR_GROUPS = ("pair unseen in training", "pair seen in training")

QUESTION_GROUPS = (
    "preference yes/no", "preference multiple choice", "recognition yes/no", "recognition multiple choice"
)  # fmt: skip


def questions(benchmark: Benchmark, split: str) -> pd.DataFrame:
    """The questions of a split with their columns, those of `Benchmark.told` and an ``index`` column, in the order of
    the index."""
    indices = sorted(benchmark.splits.get(split, ()))
    told = benchmark.told(indices)
    return benchmark.frame.loc[indices].drop(columns=told.columns, errors="ignore").join(told).reset_index()


def depicted_items(benchmark: Benchmark) -> pd.Series:
    """The item that each question's picture shows, by index: annotated, else MMPB-clean's common items."""
    if benchmark.annotations is not None:
        return benchmark.annotations["item"].reindex(benchmark.frame.index).fillna("")
    return benchmark.frame["preference_common_items"].fillna("").astype(str)


def popularity_groups(benchmark: Benchmark) -> pd.Series:
    """Each annotated question's item as rare, middle or popular (thirds of the items by number of holders)."""
    annotations = benchmark.annotations
    annotations = annotations[annotations["item"].fillna("") != ""]
    holders = annotations.groupby("item")["popularity"].first()
    thirds = np.minimum((holders.rank(method="first") - 1) * 3 // len(holders), 2).astype(int)
    return annotations["item"].map(thirds).map(dict(enumerate(POPULARITY_GROUPS)))


def question_groups(frame: pd.DataFrame) -> pd.Series:
    """The kind (an entry of `QUESTION_GROUPS`) of each question."""
    kind = np.where(frame["l2-category"] == "inconsistency", "multiple choice", "yes/no")
    return frame["category"] + " " + kind


def told_groups(benchmark: Benchmark) -> pd.Series | None:
    """Whether a profile tells what a question is about (`TOLD_GROUPS`), by index: of everything that the user likes,
    and of disliked right options; None where profiles tell everything."""
    frame = benchmark.frame
    held = frame.index[(frame["category"] == "preference") & (frame["l2-category"] != "overconcept")]
    known = benchmark.told(held)
    if "told" not in known:
        return None
    untold = known["seen_pair"].map({1: TOLD_GROUPS[1], 0: TOLD_GROUPS[2]})
    return untold.where(known["told"] == "untold", known["told"].where(known["told"] == TOLD_GROUPS[0], ""))


def breakdowns(benchmark: Benchmark, split: str) -> list[tuple[str, pd.Series, tuple[str, ...], tuple[str, ...]]]:
    """Name, label of each question (by index), labels in their order, and the metrics that are broken down by it."""
    frame = questions(benchmark, split).set_index("index")
    groupings = [
        ("bucket", metrics.group_bucket(frame), metrics.BUCKETS, ("collapse", "recall")),
        ("facet", frame["concept"], FACETS, ("preference",)),
        ("question", question_groups(frame), QUESTION_GROUPS, ("overall",)),
    ]
    measured = {
        "popularity": ("collapse", "recall", "preference"),
        "pair": ("preference", "collapse"),
        "told": ("preference", "recall"),
    }
    return groupings + [(name, *found, measured[name]) for name, found in annotated_groups(benchmark).items()]


def annotated_groups(benchmark: Benchmark) -> dict[str, tuple[pd.Series, tuple[str, ...]]]:
    """By name, the label of each question (by index) and the labels in their order, of what annotations and profiles
    tell of a question: popularity, pair, told; those that the benchmark knows."""
    found = {}
    if benchmark.annotations is not None:
        shown = benchmark.annotations[benchmark.annotations["item"].fillna("") != ""]
        found["popularity"] = popularity_groups(benchmark), POPULARITY_GROUPS
        found["pair"] = shown["seen_pair"].map(dict(enumerate(PAIR_GROUPS))), PAIR_GROUPS
    if (told := told_groups(benchmark)) is not None:
        found["told"] = told, TOLD_GROUPS
    return found


def dataset_statistics(benchmark: Benchmark) -> pd.DataFrame:
    """Questions by type and split: columns question_type, split, count (as in the paper's dataset table)."""
    kind = np.where(benchmark.frame["l2-category"] == "inconsistency", "mcq", "yesno")
    types = benchmark.frame["category"] + "_" + kind
    rows = [
        {"question_type": name, "split": split, "count": int((types.loc[list(indices)] == name).sum())}
        for name in ("preference_mcq", "preference_yesno", "recognition_mcq", "recognition_yesno")
        for split, indices in benchmark.splits.items()
        if indices
    ]
    return pd.DataFrame(rows, columns=["question_type", "split", "count"])


def told_statistics(benchmark: Benchmark) -> pd.DataFrame:
    """Preference questions by split and kind, by whether the user likes the item, whether the user's profile tells
    anything of it, and whether training asked the user about it.

    Returns columns question_type, split, liked (yes or no; of multiple choice: what is asked for), told
    (`Benchmark.told`), fresh (1: the pair is unseen in training), count; no rows where profiles tell everything.
    """
    columns = ["question_type", "split", "liked", "told", "fresh"]
    parts = []
    for split in benchmark.splits:
        frame = questions(benchmark, split)
        if "told" in frame and len(frame):
            asked = frame[frame["category"] == "preference"]
            choice = asked["l2-category"] == "inconsistency"
            liked = np.where(choice, asked["target"] == "like", asked["l2-category"] == "awareness")
            kind = np.where(choice, "preference_mcq", "preference_yesno")
            words = {"question_type": kind, "split": split, "liked": np.where(liked, "yes", "no")}
            parts.append(asked.assign(**words, fresh=1 - asked["seen_pair"])[columns])
    if not parts:
        return pd.DataFrame(columns=[*columns, "count"])
    return pd.concat(parts).value_counts(sort=False).rename("count").reset_index()


def group_sizes(benchmark: Benchmark) -> pd.DataFrame:
    """How many users share each preference annotation: columns facet, group (id in benchmark.groups), users, rank.

    rank counts from 0, the largest group of its facet.
    """
    ids = np.array(benchmark.groups)
    rows = []
    for column, facet in enumerate(FACETS):
        counted = Counter(int(group) for group in ids[:, column] if group >= 0)
        for rank, (group, users) in enumerate(sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))):
            rows.append((facet, group, users, rank))
    return pd.DataFrame(rows, columns=["facet", "group", "users", "rank"])
