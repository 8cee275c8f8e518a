"""Tables of an edition: reads its runs' predictions, adds floors and ceilings, and writes the CSV files.

Nothing here needs a model. Values are means over seeds; intervals are cluster bootstraps over users of
that mean; the spread over seeds stands apart in table1_seeds.csv.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import probabilities, statistics
from prefmoe.analysis.shortened import shortened_table
from prefmoe.config import (
    COMPONENTS,
    DEFAULT_EDITION,
    FIGURES,
    RESULTS,
    Edition,
    Method,
    PrefMoEMethod,
    is_trained,
    run_folder,
)
from prefmoe.config.outputs import committed_folder, made_folder
from prefmoe.data.benchmark import FACETS, Benchmark, User
from prefmoe.system.files import whole_file
from prefmoe.system.run_files import RunFileError, read_predictions

TABLE1_COLUMNS = ("method", "type", "backbone", "turns", "metric", "value", "low", "high", "n", "seeds")
TABLE2_COLUMNS = ("components", "turns", "metric", "value", "low", "high", "n", "seeds")
SEEDS_COLUMNS = (
    "method", "type", "backbone", "turns", "metric", "value", "sd", "minimum", "maximum", "seeds", "unparsed"
)  # fmt: skip
COMPARISON_COLUMNS = (
    "method", "baseline", "backbone", "turns", "metric", "difference", "low", "high", "n", "seeds", "better",
    "worse", "p_questions", "p_questions_holm", "p_users", "p_users_holm",
)  # fmt: skip
BREAKDOWN_COLUMNS = (
    "method", "type", "backbone", "turns", "metric", "grouping", "group", "value", "low", "high", "n", "seeds"
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "method", "baseline", "backbone", "turns", "metric", "difference", "low", "high", "n", "seeds"
)  # fmt: skip
DETECTABLE_COLUMNS = (
    "backbone", "turns", "metric", "grouping", "group", "n", "users", "methods", "design_effect", "unpaired", "paired",
    "paired_corrected",
)  # fmt: skip
CALIBRATION_COLUMNS = (
    "method", "type", "backbone", "turns", "metric", "value", "low", "high", "floor", "confidence", "accuracy", "n",
    "seeds",
)  # fmt: skip
RELIABILITY_COLUMNS = (
    "method", "type", "backbone", "turns", "metric", "bin_low", "bin_high", "confidence", "value", "low", "high", "n",
    "seeds",
)  # fmt: skip
UNPARSED_COLUMNS = (
    "method", "type", "backbone", "turns", "group", "value", "low", "high", "allowed_mass", "n", "seeds"
)  # fmt: skip
SEPARATION_COLUMNS = ("method", "type", "backbone", "turns", "measure", "value", "low", "high", "n", "seeds")
TURNS_COLUMNS = (*TABLE1_COLUMNS, "change", "change_low", "change_high")

REPORTED_TURNS = (0, 10)
"""Turns of small talk in the paper's tables, and in ours; turns.csv has all that an edition asks after."""

REFERENCE = "Reference"
"""Type of computed floors and ceilings; `type_of` gives those of methods."""
NO_BACKBONE = "none"
"""What the backbone column says for a reference, which has none."""

ALL_BACKBONES = "mean of all"
"""What the backbone column says for a mean over backbones."""

CHANCE, POPULAR, READER = "Chance", "Popular choice", "Profile reader"
LOWER_IS_BETTER = ("collapse",)
POPULARITY_GROUPS = ("rare", "middle", "popular")
PAIR_GROUPS = ("pair unseen in training", "pair seen in training")
QUESTION_GROUPS = (
    "preference yes/no", "preference multiple choice", "recognition yes/no", "recognition multiple choice"
)  # fmt: skip


class TableError(ValueError):
    """Runs from which a table cannot be made; the message names the runs and what was expected."""


# Floors and ceilings


def questions(benchmark: Benchmark, split: str) -> pd.DataFrame:
    """The questions of a split with their columns and an ``index`` column, in the order of the index."""
    return benchmark.frame.loc[sorted(benchmark.splits.get(split, ()))].reset_index()


def depicted_items(benchmark: Benchmark) -> pd.Series:
    """The item that each question's picture shows, by index: annotated, else MMPB-clean's common items."""
    if benchmark.annotations is not None:
        return benchmark.annotations["item"].reindex(benchmark.frame.index).fillna("")
    return benchmark.frame["preference_common_items"].fillna("").astype(str)


def chance(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Uniform guessing, exactly: twelve copies in which every allowed answer is given equally often.

    The mean of a metric over the copies is its expected value, because 12 is a multiple of 2, 3 and 4
    answers.

    Returns:
        Frames with a column prediction.
    """
    allowed = [_allowed(row) for row in frame.to_dict("records")]
    return [frame.assign(prediction=[answers[k % len(answers)] for answers in allowed]) for k in range(12)]


def popular_choice(train: pd.DataFrame, frame: pd.DataFrame, items: pd.Series) -> pd.DataFrame:
    """The answer of somebody who knows what people answered in training, but not who is asking.

    It is told the item in the picture (it does not see the picture). Preference yes/no: what the
    majority of the training answers about this item means, or about any item if this one never occurred;
    negated questions are undone and redone. Multiple choice: the option that was right most often in
    training, for the same wording if there is any. Recognition yes/no: the majority answer of training.
    Ties mean "no" and the first option.

    Args:
        train: training questions with their answers.
        frame: questions to answer.
        items: index -> depicted item ("" if unknown).

    Returns:
        frame with a column prediction.
    """
    truth = _with_truth(train)
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
                key=lambda letter: (
                    by_wording[category, row["question"], row[letter]],
                    by_text[category, row[letter]],
                ),
            )
        item = items.get(row["index"], "")
        known = category == "preference" and item and (category, item) in tallies
        no_count, yes_count = tallies.get((category, item if known else None), [0, 0])
        return "yes" if (yes_count > no_count) != bool(row["preference_semantic_invert"]) else "no"

    return frame.assign(prediction=[answer(row) for row in frame.to_dict("records")])


def profile_reader(
    train: pd.DataFrame, frame: pd.DataFrame, items: pd.Series, users: Mapping[str, User]
) -> pd.DataFrame:
    """The answer of somebody who reads the user's profile text and is told the item in the picture.

    Preference yes/no: yes if the item is among the user's likes. Multiple choice: the first option that
    the user likes (or dislikes, when the question's target is "dislike"). The profile text does not show
    the user's face in the picture, so recognition, and whatever the profile does not settle, falls back
    on `popular_choice`.

    Args:
        users: name -> User.

    Returns:
        frame with a column prediction.
    """
    fallback = popular_choice(train, frame, items)["prediction"].tolist()

    def answer(row: dict, guess: str) -> str:
        if row["category"] != "preference":
            return guess
        preferences = users[row["name"]].preferences.values()
        likes = {item for preference in preferences for item in preference.likes}
        if row["l2-category"] == "inconsistency":
            dislikes = {item for preference in preferences for item in preference.dislikes}
            wanted = dislikes if row.get("target") == "dislike" else likes
            return next((letter for letter in _allowed(row) if row[letter] in wanted), guess)
        item = items.get(row["index"], "")
        return guess if not item else "yes" if (item in likes) != bool(row["preference_semantic_invert"]) else "no"

    rows = zip(frame.to_dict("records"), fallback, strict=True)
    return frame.assign(prediction=[answer(row, guess) for row, guess in rows])


def references(benchmark: Benchmark, split: str) -> dict[str, list[pd.DataFrame]]:
    """Scored floors and ceilings of a split: method -> copies, like the seeds of a run.

    The profile reader needs the depicted items of ``annotations.csv`` and is left out without them.
    """
    train, frame, items = (
        questions(benchmark, "train"),
        questions(benchmark, split),
        depicted_items(benchmark),
    )
    answers = {CHANCE: chance(frame), POPULAR: [popular_choice(train, frame, items)]}
    if benchmark.annotations is not None:
        answers[READER] = [profile_reader(train, frame, items, benchmark.users)]
    return {method: [metrics.score(copy) for copy in copies] for method, copies in answers.items()}


def _allowed(row: Mapping) -> tuple[str, ...]:
    if row["l2-category"] != "inconsistency":
        return ("yes", "no")
    return tuple(letter for letter in "ABCD" if isinstance(row[letter], str) and row[letter].strip())


def _with_truth(train: pd.DataFrame) -> pd.DataFrame:
    return metrics.score(train.assign(prediction=""))


# Runs


@dataclass(frozen=True)
class Answers:
    """What one method answered to the same N questions with each of S seeds.

    Attributes:
        method: label shown in tables.
        key: name in the configuration ("" for a reference).
        index: (N,) question indices, ascending.
        users: (N,) names.
        right, counted: (N, S, 5) per-question contributions to the metrics (`metrics.question_counts`).
        unparsed: answers that could not be read, mean over seeds.
        frames: the S scored frames.
    """

    method: str
    key: str
    type: str
    backbone: str
    turns: int
    index: NDArray
    users: NDArray
    right: NDArray
    counted: NDArray
    unparsed: float
    seeds: int
    frames: tuple[pd.DataFrame, ...]

    @classmethod
    def of(
        cls, copies: Sequence[pd.DataFrame], *, method: str, key: str, type: str, backbone: str, turns: int
    ) -> Answers:
        """Collects scored frames of the same questions."""
        pairs = [metrics.question_counts(copy) for copy in copies]
        return cls(
            method=method,
            key=key,
            type=type,
            backbone=backbone,
            turns=turns,
            index=copies[0]["index"].to_numpy(),
            users=copies[0]["name"].to_numpy(dtype=object).astype(str),
            right=np.stack([right for right, _ in pairs], axis=1),
            counted=np.stack([counted for _, counted in pairs], axis=1),
            unparsed=float(np.mean([metrics.unparsed_counts(copy)["overall"] for copy in copies])),
            seeds=1 if type == REFERENCE else len(copies),
            frames=tuple(copies),
        )

    def user_sums(self) -> tuple[NDArray, NDArray]:
        """Sums per user of right and counted, each (U, S, 5)."""
        _, sums = statistics.cluster_sums(np.stack([self.right, self.counted], axis=-1), self.users)
        return sums[..., 0], sums[..., 1]

    def seed_values(self) -> NDArray:
        """(S, 6) every metric of every seed."""
        return metrics.with_sensitivity(statistics.ratio(self.right.sum(0), self.counted.sum(0)))

    def resampled(self) -> NDArray:
        """(B, 6) every metric, mean over seeds, when users are drawn with replacement; the same draws every time.

        One row of NaN when there are fewer than two users.
        """
        if len(np.unique(self.users)) < 2:
            return np.full((1, len(metrics.METRICS)), np.nan)
        return metrics.with_sensitivity(statistics.ratio_bootstrap(*self.user_sums())).mean(axis=1)

    def influences(self, member: NDArray | None = None) -> NDArray:
        """(N, 6) how much each question moves every metric's mean over seeds (`statistics.influence`).

        Args:
            member: (N,) 0/1, the questions that the metrics are computed on; all when absent.
        """
        chosen = np.ones(len(self.index)) if member is None else member
        weight = chosen[:, None, None]
        return metrics.with_sensitivity(statistics.influence(self.right * weight, self.counted * weight)).mean(axis=1)

    def where(self) -> dict:
        """The columns that say whose values a row holds."""
        return {"method": self.method, "type": self.type, "backbone": self.backbone, "turns": self.turns}


def type_of(method: Method) -> str:
    """The type in Table 1: "NT", "FFT" or "PEFT"."""
    return method.table_type if is_trained(method) else "NT"


def read_runs(edition: Edition, results: str | Path, split: str) -> list[Answers]:
    """Scored answers of every run of an edition to one split, in the order of the configuration.

    A non-tuned model needs one seed, every other method all seeds of the edition.

    Raises:
        TableError: naming every run that is missing, incomplete or damaged, and any that answered other questions.
    """
    missing: list[str] = []
    answers: list[Answers] = []
    expected: dict[int, NDArray] = {}
    probability = [f"p_{answer}" for answer in (*probabilities.ANSWERS, "allowed")]
    columns = [*metrics.COLUMNS, "index", "split", "turns", *probability]
    for backbone, key in edition.runs():
        method = edition.methods[key]
        folders = {s: run_folder(results, edition.name, backbone, key, s) for s in edition.seeds}
        ready, frames, faults = [], [], []
        for seed, folder in folders.items():
            try:
                told = {"edition": edition.name, "backbone": backbone, "method": key, "seed": seed}
                frame = read_predictions(folder, columns, **told)
            except RunFileError as error:
                faults.append(str(error))
                continue
            ready.append(folder)
            frames.append(metrics.score(frame[frame["split"] == split].sort_values(["turns", "index"])))
        if not ready or (is_trained(method) and faults):
            missing += faults
            continue
        for turns in edition.evaluation.asked.get(split, ()):
            copies = [frame[frame["turns"] == turns] for frame in frames]
            for folder, copy in zip(ready, copies, strict=True):
                asked = expected.setdefault(turns, copy["index"].to_numpy())
                if not np.array_equal(asked, copy["index"].to_numpy()):
                    raise TableError(
                        f"{folder / 'predictions.parquet'}: {len(copy)} {split} questions with {turns} turns "
                        f"that differ from the other runs' {len(asked)}; expected the same in every run"
                    )
            if len(copies[0]):
                where = {"backbone": backbone, "type": type_of(method), "turns": turns}
                answers.append(Answers.of(copies, method=method.label, key=key, **where))
    if missing:
        raise TableError(
            f"{len(missing)} run(s) of edition {edition.name!r} are missing, incomplete or damaged:\n  "
            + "\n  ".join(missing)
        )
    return answers


def read_references(edition: Edition, benchmark: Benchmark, split: str) -> list[Answers]:
    """The references' answers, once per number of turns (small talk changes nothing for them)."""
    if not benchmark.splits.get(split):
        return []
    scored = references(benchmark, split)
    where = {"key": "", "type": REFERENCE, "backbone": NO_BACKBONE}
    return [
        Answers.of(copies, method=method, turns=turns, **where)
        for method, copies in scored.items()
        for turns in edition.evaluation.asked.get(split, ())
    ]


# Tables


def estimates_table(answers: Iterable[Answers]) -> pd.DataFrame:
    """One row per method, backbone, turns and metric: the columns of `TABLE1_COLUMNS` and the method's
    key."""
    rows = [
        {**entry.where(), "key": entry.key, "metric": metric, **estimate, "seeds": entry.seeds}
        for entry in answers
        for metric, estimate in metrics.estimates(*entry.user_sums()).items()
    ]
    return pd.DataFrame(rows, columns=[*TABLE1_COLUMNS, "key"])


def main_table(edition: Edition, table: pd.DataFrame) -> pd.DataFrame:
    """Table 1: the edition's methods and the references, from `estimates_table`."""
    chosen = table["key"].isin(edition.table1) | (table["type"] == REFERENCE)
    return table.loc[chosen, list(TABLE1_COLUMNS)].reset_index(drop=True)


def ablation_table(edition: Edition, table: pd.DataFrame) -> pd.DataFrame:
    """Table 2: the ablation on the edition's ablation backbone, from `estimates_table`."""
    rows = table[table["key"].isin(edition.table2) & (table["backbone"] == edition.ablation_backbone)]
    components = {key: getattr(edition.methods[key], "components", key) for key in edition.table2}
    rows = rows.assign(components=rows["key"].map(components))
    order = {value: position for position, value in enumerate(components.values())}
    rows = rows.sort_values(["components", "turns"], key=lambda c: c.map(order) if c.name == "components" else c)
    return rows[list(TABLE2_COLUMNS)].reset_index(drop=True)


def seeds_table(answers: Iterable[Answers]) -> pd.DataFrame:
    """How much every metric differs between seeds (sd, minimum, maximum); unparsed: unreadable answers
    per seed."""
    rows = []
    for entry in answers:
        if entry.type == REFERENCE:
            continue
        for metric, values in zip(metrics.METRICS, entry.seed_values().T, strict=True):
            spread = {"sd": statistics.seed_spread(values), "minimum": values.min(), "maximum": values.max()}
            row = {**entry.where(), "metric": metric, "value": values.mean(), **spread}
            rows.append({**row, "seeds": entry.seeds, "unparsed": entry.unparsed})
    return pd.DataFrame(rows, columns=list(SEEDS_COLUMNS))


def compare(first: Answers, second: Answers, *, permutations: int = 9999) -> list[dict]:
    """Paired comparison of two methods on the same questions, one row per metric.

    difference is first minus second, mean over seeds, with a cluster-bootstrap interval (both methods
    are resampled together). p_questions: exact sign test on the seed means of single questions
    (McNemar's with one seed); it takes questions as independent. p_users: permutation test that
    exchanges the two methods' results of whole users; it does not. better and worse count the questions
    that favour the first and the second.

    Raises:
        TableError: if the questions differ.
    """
    if not np.array_equal(first.index, second.index):
        raise TableError(f"{first.method} and {second.method} answered different questions; nothing to pair")
    sums = [entry.user_sums() for entry in (first, second)]
    values = [entry.seed_values().mean(axis=0) for entry in (first, second)]
    difference = values[0] - values[1]
    users = len(sums[0][0])
    low, high = statistics.percentile_interval(first.resampled() - second.resampled())
    (right_a, counted_a), (right_b, counted_b) = ([part.mean(axis=1) for part in pair] for pair in sums)
    swap = statistics.swap_masks(users, permutations=permutations)

    def shares(right: NDArray, other_right: NDArray, counted: NDArray, other_counted: NDArray) -> NDArray:
        numerator = right.sum(0) + swap @ (other_right - right)
        denominator = counted.sum(0) + swap @ (other_counted - counted)
        return metrics.with_sensitivity(statistics.ratio(numerator, denominator))

    permuted = shares(right_a, right_b, counted_a, counted_b) - shares(right_b, right_a, counted_b, counted_a)
    observed = metrics.with_sensitivity(statistics.ratio(right_a.sum(0), counted_a.sum(0)))
    observed = observed - metrics.with_sensitivity(statistics.ratio(right_b.sum(0), counted_b.sum(0)))
    p_users = statistics.permutation_p(observed, permuted)
    scores = [statistics.ratio(entry.right.sum(1), entry.counted.sum(1)) for entry in (first, second)]
    rows = []
    for column, metric in enumerate(metrics.METRICS):
        row = {
            "method": first.method,
            "baseline": second.method,
            "backbone": first.backbone,
            "turns": first.turns,
        }
        row |= {"metric": metric, "difference": difference[column], "low": low[column], "high": high[column]}
        if column < scores[0].shape[1]:
            pair = [score[:, column] for score in scores]
            both = ~np.isnan(pair[0]) & ~np.isnan(pair[1])
            better, worse, p = statistics.sign_test(pair[0][both], pair[1][both])
            if metric in LOWER_IS_BETTER:
                better, worse = worse, better
            row |= {"n": int(both.sum()), "better": better, "worse": worse}
            row |= {"p_questions": p if both.any() else np.nan}
        else:
            row |= {"n": sum(r["n"] for r in rows if r["metric"] in ("collapse", "recall"))}
            row |= {"better": np.nan, "worse": np.nan, "p_questions": np.nan}
        rows.append(row | {"p_users": p_users[column], "seeds": min(first.seeds, second.seeds)})
    return rows


def focus_method(edition: Edition) -> str | None:
    """The complete PrefMoE of an edition (all components, trained, no facet label), or None."""
    for key in (*edition.table1, *edition.table2):
        method = edition.methods[key]
        complete = isinstance(method, PrefMoEMethod) and method.components == COMPONENTS
        if complete and is_trained(method) and method.facet_label == "none":
            return key
    return None


def comparisons_table(edition: Edition, answers: Sequence[Answers]) -> pd.DataFrame:
    """PrefMoE against every other method of the same backbone and turns.

    Holm's correction runs over all comparisons of the same metric in the edition, for each of the two tests.
    """
    focus = focus_method(edition)
    rows: list[dict] = []
    for first in answers:
        if first.key == focus and focus is not None:
            for second in answers:
                same = (second.backbone, second.turns) == (first.backbone, first.turns)
                if same and second.key != focus:
                    rows += compare(first, second)
    table = pd.DataFrame(rows, columns=[c for c in COMPARISON_COLUMNS if not c.endswith("_holm")])
    for test in ("p_questions", "p_users"):
        table[f"{test}_holm"] = table.groupby("metric")[test].transform(lambda p: statistics.holm(p.to_numpy()))
    return table[list(COMPARISON_COLUMNS)]


def popularity_groups(benchmark: Benchmark) -> pd.Series:
    """Each annotated question's item as rare, middle or popular (thirds of the items by number of
    holders)."""
    annotations = benchmark.annotations
    annotations = annotations[annotations["item"].fillna("") != ""]
    holders = annotations.groupby("item")["popularity"].first()
    thirds = np.minimum((holders.rank(method="first") - 1) * 3 // len(holders), 2).astype(int)
    return annotations["item"].map(thirds).map(dict(enumerate(POPULARITY_GROUPS)))


def question_groups(frame: pd.DataFrame) -> pd.Series:
    """The kind (an entry of `QUESTION_GROUPS`) of each question."""
    kind = np.where(frame["l2-category"] == "inconsistency", "multiple choice", "yes/no")
    return frame["category"] + " " + kind


def _groupings(benchmark: Benchmark, split: str) -> list[tuple[str, pd.Series, tuple[str, ...], tuple[str, ...]]]:
    """Name, label of each question (by index), labels in their order, and the metrics that are broken down by it."""
    frame = questions(benchmark, split).set_index("index")
    groupings = [
        ("bucket", metrics.group_bucket(frame), metrics.BUCKETS, ("collapse", "recall")),
        ("facet", frame["concept"], FACETS, ("preference",)),
        ("question", question_groups(frame), QUESTION_GROUPS, ("overall",)),
    ]
    if benchmark.annotations is not None:
        shown = benchmark.annotations[benchmark.annotations["item"].fillna("") != ""]
        pairs = shown["seen_pair"].map(dict(enumerate(PAIR_GROUPS)))
        groupings += [
            (
                "popularity",
                popularity_groups(benchmark),
                POPULARITY_GROUPS,
                ("collapse", "recall", "preference"),
            ),
            ("pair", pairs, PAIR_GROUPS, ("preference", "collapse")),
        ]
    return groupings


def breakdown_table(benchmark: Benchmark, answers: Sequence[Answers], split: str) -> pd.DataFrame:
    """Metrics within groups of questions, with intervals.

    Groupings: bucket (size of the sharing group; collapse, recall), popularity (of the item; collapse, recall,
    preference), pair (whether this user was asked about this item in training; preference, collapse),
    facet (preference), question (kind of question; overall). popularity and pair need annotations.
    """
    groupings = _groupings(benchmark, split)
    rows = []
    for entry in answers:
        for grouping, labels, groups, chosen in groupings:
            label = labels.reindex(entry.index).to_numpy(dtype=object)
            member = np.stack([label == group for group in groups], axis=-1).astype(float)
            for metric in chosen:
                column = metrics.METRICS.index(metric)
                stacked = np.stack([entry.right[..., column], entry.counted[..., column]], axis=-1)
                _, sums = statistics.cluster_sums(
                    np.einsum("ng,nsc->ngsc", member, stacked), entry.users
                )  # (U, groups, seeds, 2)
                numerator, denominator = sums[..., 0], sums[..., 1]
                value = statistics.ratio(numerator.sum(0), denominator.sum(0)).mean(axis=-1)
                samples = statistics.ratio_bootstrap(numerator, denominator).mean(axis=-1)
                low, high = statistics.percentile_interval(samples)
                n = np.rint(denominator.sum(0).mean(axis=-1)).astype(int)
                for g, group in enumerate(groups):
                    row = {**entry.where(), "metric": metric, "grouping": grouping, "group": group}
                    row |= {
                        "value": value[g],
                        "low": low[g],
                        "high": high[g],
                        "n": n[g],
                        "seeds": entry.seeds,
                    }
                    rows.append(row)
    return pd.DataFrame(rows, columns=list(BREAKDOWN_COLUMNS))


# Uncertainty


def turns_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Every metric after every number of turns, and its change from the fewest turns on the same questions.

    Returns:
        the columns of `TURNS_COLUMNS`; the change's interval resamples users.
    """
    start: dict[tuple[str, str], Answers] = {}
    for entry in sorted(answers, key=lambda entry: entry.turns):
        start.setdefault((entry.backbone, entry.method), entry)
    rows = []
    for entry in answers:
        first = start[entry.backbone, entry.method]
        if not np.array_equal(entry.index, first.index):
            raise TableError(f"{entry.method}: other questions after {entry.turns} turns than after {first.turns}")
        change = (entry.seed_values() - first.seed_values()).mean(axis=0)
        low, high = statistics.percentile_interval(entry.resampled() - first.resampled())
        for column, (metric, estimate) in enumerate(metrics.estimates(*entry.user_sums()).items()):
            bounds = {"change": change[column], "change_low": low[column], "change_high": high[column]}
            rows.append({**entry.where(), "metric": metric, **estimate, "seeds": entry.seeds, **bounds})
    return pd.DataFrame(rows, columns=list(TURNS_COLUMNS))


def forest_table(edition: Edition, answers: Sequence[Answers]) -> pd.DataFrame:
    """PrefMoE minus every other method on the same questions: each backbone, and the mean over the backbones.

    All backbones answer the same questions about the same users, so the mean's interval resamples users in all of
    them together; it does not say how other backbones would scatter.

    Returns:
        the columns of `DIFFERENCE_COLUMNS`; backbone is `ALL_BACKBONES` for the mean, which needs all of them.
    """
    focus = focus_method(edition)
    rows = []
    keys = dict.fromkeys((entry.key, entry.turns) for entry in answers if entry.key != focus and entry.key)
    for key, turns in keys if focus is not None else ():
        here = {(entry.key, entry.backbone): entry for entry in answers if entry.turns == turns}
        pairs = [(first, here[key, b]) for (k, b), first in here.items() if k == focus and (key, b) in here]
        values = [first.seed_values().mean(axis=0) - second.seed_values().mean(axis=0) for first, second in pairs]
        samples = [first.resampled() - second.resampled() for first, second in pairs]
        estimates = list(zip([first.backbone for first, _ in pairs], values, samples, strict=True))
        if len(pairs) == len(edition.backbones) > 1:
            estimates.append((ALL_BACKBONES, np.mean(values, axis=0), np.mean(samples, axis=0)))
        for backbone, value, sample in estimates:
            low, high = statistics.percentile_interval(sample)
            first, second = pairs[0]
            for column, (metric, estimate) in enumerate(metrics.estimates(*first.user_sums(), resamples=1).items()):
                row = {"method": first.method, "baseline": second.method, "backbone": backbone, "turns": turns}
                row |= {"metric": metric, "difference": value[column], "low": low[column], "high": high[column]}
                rows.append(row | {"n": estimate["n"], "seeds": min(first.seeds, second.seeds)})
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def detectable_table(
    edition: Edition, benchmark: Benchmark, answers: Sequence[Answers], split: str, *, power: float = 0.8
) -> pd.DataFrame:
    """The smallest true difference that each number of questions would show with probability ``power``, at p < .05.

    From linearised standard errors over users (`statistics.standard_error`), medians over the methods of a backbone.

    Returns:
        the columns of `DETECTABLE_COLUMNS`, for all questions and for the groups of `breakdown_table`. n: questions,
        users: those asked any of them, design_effect: variance over that of independent questions, unpaired: between
        two methods that answer different questions of as many other users, paired: between PrefMoE and another
        method on the same questions, paired_corrected: the same at .05 / (comparisons of the metric in the edition),
        the first step of Holm's correction. NaN where there is nothing to compare.
    """
    focus = focus_method(edition)
    whole = pd.Series("all", index=list(benchmark.splits[split]))
    groupings = [("all", whole, ("all",), metrics.METRICS), *_groupings(benchmark, split)]
    tested = sum(a.backbone == b.backbone and a.turns == b.turns for a in answers if a.key == focus
                 for b in answers if b.key != focus)  # fmt: skip
    rows = []
    for backbone, turns in dict.fromkeys((entry.backbone, entry.turns) for entry in answers):
        entries = [entry for entry in answers if (entry.backbone, entry.turns) == (backbone, turns)]
        for grouping, labels, groups, chosen in groupings:
            label = labels.reindex(entries[0].index).to_numpy(dtype=object)
            for group in groups:
                member = (label == group).astype(float)
                single = {entry.key: entry.influences(member) for entry in entries}
                by_user = {k: statistics.cluster_sums(v, entries[0].users)[1] for k, v in single.items()}
                errors = np.stack([statistics.standard_error(v) for v in by_user.values()])
                naive = np.stack([statistics.standard_error(v) for v in single.values()])
                effect = statistics.ratio(errors**2, naive**2)
                pairs = [statistics.standard_error(by_user[focus] - v) for k, v in by_user.items()
                         if k != focus] if focus in by_user else []  # fmt: skip
                paired = _median(np.stack(pairs)) if pairs else np.full(len(metrics.METRICS), np.nan)
                unpaired = np.sqrt(2) * _median(errors)
                for metric in chosen:
                    column = metrics.METRICS.index(metric)
                    asked = _asked(entries[0], metric) * member
                    row = {"backbone": backbone, "turns": turns, "metric": metric, "grouping": grouping}
                    row |= {"group": group, "n": round(asked.sum()), "methods": len(entries)}
                    row |= {"users": len(np.unique(entries[0].users[asked > 0]))}
                    row |= {"design_effect": _median(effect)[column]}
                    for name, error, alpha in (
                        ("unpaired", unpaired, 0.05),
                        ("paired", paired, 0.05),
                        ("paired_corrected", paired, 0.05 / max(1, tested)),
                    ):
                        row[name] = float(statistics.detectable_difference(error[column], alpha=alpha, power=power))
                    rows.append(row)
    return pd.DataFrame(rows, columns=list(DETECTABLE_COLUMNS))


def _asked(entry: Answers, metric: str) -> NDArray:
    """(N,) in how large a share of the seeds each question counts for a metric."""
    counted = entry.counted.mean(axis=1)
    parts = ("collapse", "recall") if metric == "sensitivity" else (metric,)
    return sum(counted[:, metrics.METRICS.index(part)] for part in parts)


def _median(values: NDArray) -> NDArray:
    """Median over the rows that are defined; NaN in columns without any."""
    undefined = np.isnan(values).all(axis=0)
    return np.where(undefined, np.nan, np.nanmedian(np.where(undefined, 0.0, values), axis=0))


CATEGORIES = {"overall": ("preference", "recognition"), "preference": ("preference",), "profile": ("recognition",)}
"""The questions' categories behind each accuracy."""


def calibration_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Expected calibration error of every method whose probabilities are known (`probabilities.calibration`)."""
    rows = [
        {**entry.where(), "metric": metric, **probabilities.calibration(copies), "seeds": entry.seeds}
        for entry, metric, copies in _with_probabilities(answers)
    ]
    return pd.DataFrame(rows, columns=list(CALIBRATION_COLUMNS))


def reliability_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Accuracy within bins of confidence, a row per bin; n counts the answers of all seeds."""
    rows = [
        {**entry.where(), "metric": metric, **row, "seeds": entry.seeds}
        for entry, metric, copies in _with_probabilities(answers)
        for row in probabilities.reliability(copies)
    ]
    return pd.DataFrame(rows, columns=list(RELIABILITY_COLUMNS))


def _with_probabilities(answers: Sequence[Answers]) -> Iterable[tuple[Answers, str, list[pd.DataFrame]]]:
    for entry in answers:
        if entry.type != REFERENCE:
            for metric, categories in CATEGORIES.items():
                copies = [frame[frame["category"].isin(categories)] for frame in entry.frames]
                if len(copies[0]):
                    yield entry, metric, copies


def unparsed_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Share of answers that could not be read, by kind of question; they count as wrong everywhere else.

    Returns:
        the columns of `UNPARSED_COLUMNS`. Intervals are cluster bootstraps over users, except Wilson's over questions
        where every answer or none could be read (resampling cannot leave 0 or 1). allowed_mass: the mean probability
        that the first token begins an allowed answer.
    """
    rows = []
    for entry in answers:
        if entry.type == REFERENCE:
            continue
        labels = question_groups(entry.frames[0]).to_numpy(dtype=object)
        unread = np.mean([metrics.unreadable(frame) for frame in entry.frames], axis=0)
        mass = np.mean([frame["p_allowed"].to_numpy(dtype=float) for frame in entry.frames], axis=0)
        for group in ("all", *QUESTION_GROUPS):
            inside = np.ones(len(labels), dtype=bool) if group == "all" else labels == group
            if not inside.any():
                continue
            estimate = statistics.cluster_bootstrap(unread[inside], entry.users[inside])
            if estimate["value"] in (0.0, 1.0):
                low, high = statistics.wilson_interval(estimate["value"], estimate["n"])
                estimate |= {"low": float(low), "high": float(high)}
            row = {**entry.where(), "group": group, **estimate, "allowed_mass": mass[inside].mean()}
            rows.append(row | {"seeds": entry.seeds})
    return pd.DataFrame(rows, columns=list(UNPARSED_COLUMNS))


def separation_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Collapse without a threshold, for every method and reference: the measures of `probabilities.separation`."""
    rows = [
        {**entry.where(), "measure": measure, **estimate, "seeds": entry.seeds}
        for entry in answers
        for measure, estimate in probabilities.separation(entry.frames).items()
    ]
    return pd.DataFrame(rows, columns=list(SEPARATION_COLUMNS))


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


def item_popularity(benchmark: Benchmark) -> pd.DataFrame:
    """How many users like each item that anybody mentions: columns facet, item, users."""
    likes: Counter[tuple[str, str]] = Counter()
    for user in benchmark.users.values():
        for facet, preference in user.preferences.items():
            likes.update({(facet, item): 1 for item in preference.likes})
            likes.update({(facet, item): 0 for item in preference.dislikes})
    rows = [(facet, item, users) for (facet, item), users in sorted(likes.items(), key=lambda x: (-x[1], x[0]))]
    return pd.DataFrame(rows, columns=["facet", "item", "users"])


def group_sizes(benchmark: Benchmark) -> pd.DataFrame:
    """How many users share each preference annotation: columns facet, group (id in benchmark.groups),
    users, rank.

    rank counts from 0, the largest group of its facet.
    """
    ids = np.array(benchmark.groups)
    rows = []
    for column, facet in enumerate(FACETS):
        counted = Counter(int(group) for group in ids[:, column] if group >= 0)
        for rank, (group, users) in enumerate(sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))):
            rows.append((facet, group, users, rank))
    return pd.DataFrame(rows, columns=["facet", "group", "users", "rank"])


def gates_table(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean gates of every router by kind of question and facet, with cluster-bootstrap intervals over users.

    Args:
        runs: predictions of the same questions, one frame per seed, with columns gate_<router>_<position>.

    Returns:
        Columns router, group, expert (position), value, low, high, n (questions); gates are averaged
        over seeds.

    Raises:
        TableError: if there are no gates.
    """
    columns = [column for column in runs[0].columns if column.startswith("gate_")]
    if not columns:
        raise TableError("the predictions have no gates; expected those of a method with the mixture (gate_* columns)")
    first = runs[0].sort_values("index")
    gates = np.mean([run.sort_values("index")[columns].to_numpy(dtype=float) for run in runs], axis=0)
    kind = np.where(first["l2-category"] == "inconsistency", "multiple choice", "yes/no")
    preference = (first["category"] == "preference").to_numpy()
    label = np.where(preference, "preference, " + first["concept"].astype(str), "recognition, " + kind.astype(object))
    order = [
        *(f"preference, {facet}" for facet in FACETS),
        *(f"recognition, {k}" for k in ("yes/no", "multiple choice")),
    ]
    rows = []
    for column, values in zip(columns, gates.T, strict=True):
        router, position = column.removeprefix("gate_").rsplit("_", 1)
        for group in order:
            inside = label == group
            if inside.any():
                estimate = statistics.cluster_bootstrap(values[inside], first["name"].to_numpy()[inside])
                rows.append({"router": router, "group": group, "expert": int(position), **estimate})
    return pd.DataFrame(rows, columns=["router", "group", "expert", "value", "low", "high", "n"])


def build(
    edition: Edition,
    benchmark: Benchmark,
    *,
    results: str | Path = RESULTS,
) -> dict[str, Path]:
    """Reads all runs of an edition and writes its tables to ``<results>/<edition>/figures/``.

    Only the test split enters them, after `REPORTED_TURNS` of small talk, but for turns.csv (after all that the
    edition asks) and unseen.csv (questions about users without training questions, if the benchmark has any).

    Returns:
        Table name -> file.

    Raises:
        TableError: see `read_runs`.
    """
    everything = read_runs(edition, results, "test"), read_references(edition, benchmark, "test")
    runs, reference = ([entry for entry in part if entry.turns in REPORTED_TURNS] for part in everything)
    table = estimates_table([*runs, *reference])
    tables = {
        "table1": main_table(edition, table),
        "table2": ablation_table(edition, table),
        "table1_seeds": seeds_table(runs),
        "comparisons": comparisons_table(edition, runs),
        "breakdown": breakdown_table(benchmark, [*runs, *reference], "test"),
        "turns": turns_table([*everything[0], *everything[1]]),
        "forest": forest_table(edition, runs),
        "detectable": detectable_table(edition, benchmark, runs, "test"),
        "calibration": calibration_table(runs),
        "reliability": reliability_table(runs),
        "unparsed": unparsed_table(runs),
        "separation": separation_table([*runs, *reference]),
        "dataset_statistics": dataset_statistics(benchmark),
    }
    if edition.evaluation.too_long != "refuse":
        tables["shortened"] = shortened_table(runs)
    if benchmark.splits.get("unseen") and "unseen" in edition.evaluation.splits:
        unseen = [*read_runs(edition, results, "unseen"), *read_references(edition, benchmark, "unseen")]
        unseen = [entry for entry in unseen if entry.turns in REPORTED_TURNS]
        tables["unseen"] = estimates_table(unseen)[list(TABLE1_COLUMNS)]
    folder = made_folder(edition.name, results)
    return {name: write_csv(content, folder / f"{name}.csv") for name, content in tables.items()}


def write_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """Writes a table with six decimals under a temporary name, then renames it."""
    path = Path(path)
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    return path


def read_table(path: str | Path) -> pd.DataFrame:
    """Reads a table written by `build`; names like "none" stay text."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


# Text


def readable(table: pd.DataFrame, *, rows: str | Sequence[str] = "method", columns: str = "metric") -> pd.DataFrame:
    """A table to read: cells are "value [low, high]", rows and columns in the order of the table.

    Args:
        table: rows of a CSV file of `build` (or any with a column value; low and high are optional).
    """
    keys = [rows] if isinstance(rows, str) else list(rows)
    value = "value" if "value" in table else "difference"
    cells = table[[*keys, columns]].assign(cell=[_interval(row, value) for row in table.to_dict("records")])
    grid = cells.pivot(index=keys, columns=columns, values="cell").fillna("–")
    order = pd.MultiIndex.from_frame(cells[keys].drop_duplicates()) if len(keys) > 1 else cells[keys[0]].unique()
    return grid.loc[order, cells[columns].unique()].rename_axis(columns=None)


def _interval(row: Mapping, value: str) -> str:
    if pd.isna(row[value]):
        return "–"
    text = f"{round(float(row[value]), 3) + 0.0:.3f}"  # no "-0.000"
    if pd.isna(row.get("low")) or pd.isna(row.get("high")):
        return text
    return f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


BETTER, WORSE, UNDECIDED = "better", "worse", "not told apart"


def verdicts(comparisons: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """What the paired tests of comparisons.csv allow to say, in words.

    Returns:
        one line per backbone, method and baseline, a column per metric: the method is "better" or "worse" than
        the baseline where the corrected p of the permutation test over users is below ``alpha``, else "not told
        apart"; "–" where there is nothing to test.
    """
    direction = np.sign(comparisons["difference"]) * np.where(comparisons["metric"].isin(LOWER_IS_BETTER), -1, 1)
    words = np.where(direction > 0, BETTER, WORSE)
    words = np.where(comparisons["p_users_holm"] < alpha, words, UNDECIDED)
    words = np.where(comparisons["p_users_holm"].isna(), "–", words)
    keys = ["backbone", "method", "baseline"]
    grid = comparisons.assign(word=words).pivot(index=keys, columns="metric", values="word")
    order = list(comparisons[keys].drop_duplicates().itertuples(index=False, name=None))
    return grid.loc[order, comparisons["metric"].unique()].rename_axis(columns=None)


def group_rises(breakdown: pd.DataFrame) -> pd.DataFrame:
    """Whether a metric rises from rare to popular items, and from small to large sharing groups.

    Args:
        breakdown: rows of breakdown.csv for one backbone and number of turns.

    Returns:
        one line per method; "rises" or "falls" where the 95 % intervals of the two groups do not touch, else "not
        told apart"; "–" where one of the groups has no questions.
    """
    groupings = {"popularity": POPULARITY_GROUPS, "bucket": metrics.BUCKETS}
    names = {"popularity": "rare → popular items", "bucket": "small → large groups"}
    cells = {}
    for grouping, (first, *_, last) in groupings.items():
        for metric in ("collapse", "recall"):
            rows = breakdown[(breakdown["grouping"] == grouping) & (breakdown["metric"] == metric)]
            low, high = (rows[rows["group"] == group].set_index("method") for group in (first, last))
            words = [_change(low.loc[method], high.loc[method]) for method in low.index]
            cells[names[grouping], metric] = pd.Series(words, index=low.index, dtype=object)
    return pd.DataFrame(cells).reindex(breakdown["method"].unique()).fillna("–")


def _change(before: pd.Series, after: pd.Series) -> str:
    if before[["low", "high"]].isna().any() or after[["low", "high"]].isna().any():
        return "–"
    return "rises" if after["low"] > before["high"] else "falls" if after["high"] < before["low"] else UNDECIDED


# Markdown


def markdown(edition: str, *, figures: str | Path = FIGURES, turns: int = 0) -> str:
    """Tables 1 and 2 of an edition as Markdown, from the committed ``figures/<edition>/table1.csv`` and
    ``table2.csv`` alone.

    A cell is value ± half the width of its 95 % interval; n and seeds stand in the caption of each table.
    """
    folder = committed_folder(edition, figures)
    main = read_table(folder / "table1.csv")
    main = main[main["turns"] == turns]
    parts = []
    reference = main[main["type"] == REFERENCE]
    for backbone in main.loc[main["type"] != REFERENCE, "backbone"].unique():
        rows = pd.concat([main[main["backbone"] == backbone], reference])
        title = f"**{backbone}, {turns} turns of small talk.** {_sizes(rows)}"
        parts.append(title + "\n\n" + _grid(rows, ["method", "type"]))
    path = folder / "table2.csv"
    ablation = read_table(path) if path.is_file() else pd.DataFrame(columns=list(TABLE2_COLUMNS))
    ablation = ablation[ablation["turns"] == turns]
    if len(ablation):
        title = f"**Ablation, {turns} turns of small talk.** {_sizes(ablation)}"
        parts.append(title + "\n\n" + _grid(ablation, ["components"]))
    return "\n\n".join(parts) + "\n"


README_BEGIN, README_END = "<!-- tables: begin -->", "<!-- tables: end -->"


def with_tables(readme: str, edition: str, *, figures: str | Path = FIGURES) -> str:
    """The text of README.md with `markdown` of all turns between its two markers.

    Raises:
        TableError: if README.md shows another edition, or the markers are not there, once and in order.
    """
    if edition != DEFAULT_EDITION:
        raise TableError(f"README.md shows the tables of edition {DEFAULT_EDITION!r}, and not those of {edition!r}")
    before, begin, rest = readme.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not begin or not end or README_BEGIN in after or README_END in after:
        raise TableError(f"README.md: expected one {README_BEGIN} and, after it, one {README_END}")
    turns = sorted(read_table(committed_folder(edition, figures) / "table1.csv")["turns"].unique())
    tables = "\n".join(markdown(edition, figures=figures, turns=int(turn)) for turn in turns)
    return f"{before}{begin}\n\n{tables}\n{end}{after}"


def _sizes(rows: pd.DataFrame) -> str:
    counts = rows.groupby("metric")["n"].max()
    sizes = ", ".join(f"{metric} {counts[metric]}" for metric in metrics.METRICS[:-1] if metric in counts)
    trained = rows if "type" not in rows else rows[~rows["type"].isin((REFERENCE, "NT"))]
    seeds = sorted(trained["seeds"].unique())
    return f"Questions: {sizes}. Trained methods: mean of {'/'.join(map(str, seeds)) or 1} seeds."


def _grid(rows: pd.DataFrame, keys: list[str]) -> str:
    heads = [*keys, *(f"{m} ↓" if m in LOWER_IS_BETTER else m for m in metrics.METRICS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(keys) + "--:|" * len(metrics.METRICS)]
    for key, group in rows.groupby(keys, sort=False):
        cells = group.set_index("metric")
        values = [_cell(cells.loc[metric]) if metric in cells.index else "" for metric in metrics.METRICS]
        lines.append("| " + " | ".join([*map(str, key), *values]) + " |")
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return "–"
    value = round(float(row["value"]), 3) + 0.0  # no "-0.000"
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{value:.3f}"
    return f"{value:.3f} ± {(row['high'] - row['low']) / 2:.3f}"
