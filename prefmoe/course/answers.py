"""What the course reads in the place of a training: every test question with the answers of a few methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe import metrics
from prefmoe.config import FIGURES, ROOT
from prefmoe.data.benchmark import split_holders
from prefmoe.system.files import read_json

FOLDER = ROOT / "course" / "answers"
QUESTIONS, ANSWERS, EXCHANGES, ABOUT = "questions.parquet", "answers.parquet", "exchanges.parquet", "about.json"

ASKED = (
    "index", "split", "name", "category", "l2-category", "concept", "question", "A", "B", "C", "D", "answer",
    "preference_bucket_names", "preference_semantic_invert", "item", "told", "seen_pair",
)  # fmt: skip
"""Columns of a question, as the runs have them."""

ANSWERED = ("index", "method", "seed", "control", "p_yes", "p_no", "prediction")
"""Columns of an answer; control is "none" where nothing was exchanged."""

EXCHANGED = ("user", "counterpart", "facet", "item", "told", "own", "asked_facet", "other_facets")
"""Columns of `exchanges`."""


class CourseFileError(ValueError):
    """A file of the course that is missing or of another shape, or something asked for that it lacks."""


def methods(folder: Path = FOLDER) -> dict[str, list[int]]:
    """Label of every method with answers -> its seeds."""
    rows = _read(folder, ANSWERS, ANSWERED)
    return {label: sorted(map(int, group.unique())) for label, group in rows.groupby("method", sort=False)["seed"]}


def scored(method: str, seed: int = 0, *, control: str = "none", folder: Path = FOLDER) -> pd.DataFrame:
    """All test questions with a method's answers, as `prefmoe.metrics.score` returns them. Raises CourseFileError if
    there are no such answers; the message lists those that there are."""
    rows = _read(folder, ANSWERS, ANSWERED)
    chosen = rows[(rows["method"] == method) & (rows["seed"] == seed) & (rows["control"] == control)]
    if chosen.empty:
        known = rows[["method", "seed", "control"]].drop_duplicates().itertuples(index=False)
        listed = "; ".join(f"{label}, seed {number}, control {kind}" for label, number, kind in known)
        asked = f"{method}, seed {seed}, control {control}"
        raise CourseFileError(f"{folder / ANSWERS}: no answers of {asked}; expected one of {listed}")
    questions = _read(folder, QUESTIONS, ASKED)
    together = questions.merge(chosen.drop(columns=["method", "seed", "control"]), on="index", validate="1:1")
    return metrics.score(together.assign(turns=0, user=together["name"]))


def preferences(method: str, seed: int = 0, *, control: str = "none", folder: Path = FOLDER) -> pd.DataFrame:
    """Yes/no questions about preferences with a method's answers, in plain words.

    Returns columns user (who is asked about), facet, item (what the picture shows), holders (a tuple: the users who
    hold the preference asked about), negated (whether "yes" means dislike), truth and answer ("yes", "no", or ""
    where it cannot be read), p_yes and p_no. Raises CourseFileError: see `scored`.
    """
    return plain(scored(method, seed, control=control, folder=folder)).reset_index(drop=True)


def training(folder: Path = FOLDER) -> pd.DataFrame:
    """Yes/no questions about preferences that were asked in training: the columns of `preferences` up to truth."""
    questions = _read(folder, QUESTIONS, ASKED)
    asked = metrics.score(questions[questions["split"] == "train"].assign(prediction=""))
    return plain(asked)[["user", "facet", "item", "holders", "negated", "truth"]].reset_index(drop=True)


def plain(scored: pd.DataFrame) -> pd.DataFrame:
    """The yes/no questions about preferences of a scored frame, with the columns of `preferences`."""
    asked = scored[(scored["category"] == "preference") & (scored["l2-category"] != "inconsistency")]
    columns = {
        "user": asked["name"], "facet": asked["concept"], "item": asked["item"],
        "holders": asked["preference_bucket_names"].map(lambda names: tuple(split_holders(names or ""))),
        "negated": asked["preference_semantic_invert"].astype(bool), "truth": asked["gt"],
        "answer": asked["pred"].where(asked["pred"].isin(["yes", "no"]), ""),
    }  # fmt: skip
    return pd.DataFrame(columns | {name: asked[name] for name in ("p_yes", "p_no") if name in asked})


def exchanges(folder: Path = FOLDER) -> pd.DataFrame:
    """Questions about something that the user likes, asked three times of PrefMoE.

    Returns columns user, counterpart (somebody who does not like it), facet, item, told, and the probability that the
    model says the user likes it: own (with the user's own residuals), asked_facet (with the counterpart's residual in
    the facet that is asked about), other_facets (with the counterpart's residuals in the four others).
    """
    return _read(folder, EXCHANGES, EXCHANGED)


def table(name: str, **where: object) -> pd.DataFrame:
    """Rows of a committed table of the edition that the answers are of, ``name`` without .csv."""
    rows = pd.read_csv(FIGURES / str(about()["edition"]) / f"{name}.csv")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def about(folder: Path = FOLDER) -> Mapping[str, object]:
    """Of which edition, backbone and runs the answers are."""
    return read_json(folder / ABOUT, "what the answers of the course are of")


def compact(questions: Sequence[pd.DataFrame], answers: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames of questions and of answers in the form in which they are shipped: small types, each question once."""
    asked = pd.concat(questions, ignore_index=True).reindex(columns=list(ASKED))
    asked = asked.drop_duplicates("index").sort_values("index")
    given = pd.concat(answers, ignore_index=True)[list(ANSWERED)]
    given = given.astype({"index": "int32", "seed": "int8", "p_yes": "float32", "p_no": "float32"})
    return asked.reset_index(drop=True), given.astype({"method": "category", "control": "category"})


def _read(folder: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    path = folder / name
    if not path.is_file():
        command = "python workflow/scripts/course.py answers"
        raise CourseFileError(f"{path}: no such file; it ships with the repository, or is made by `{command}`")
    rows = pd.read_parquet(path)
    if missing := [column for column in columns if column not in rows]:
        raise CourseFileError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    categories = {column: object for column in rows if isinstance(rows[column].dtype, pd.CategoricalDtype)}
    return rows.astype(categories).replace({None: np.nan}) if categories else rows
