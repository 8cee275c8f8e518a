"""Scores anybody's predictions: every measure of the tables from one file, and what could not be read in it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe import metrics
from prefmoe.analysis import pairs
from prefmoe.analysis.groupings import QUESTION_GROUPS, question_groups
from prefmoe.data.rows import MMPBError, read_text
from prefmoe.metrics import ScoringError
from prefmoe.system.files import RepeatedKeyError, parsed_json
from prefmoe.system.places import expanded

REQUIRED = ("name", "category", "l2-category", "answer", "prediction")
"""Columns without which nothing can be scored."""

HOLDERS, NEGATED, OPTIONS = "preference_bucket_names", "preference_semantic_invert", ("A", "B")
"""Who holds the preference asked about (for collapse, recall and sensitivity); whether the question is negated; the
options without which there is no choice (C and D may be absent)."""

SEPARATE = ("split", "turns")
"""Columns whose values are scored apart unless something else is asked for: those of this package's predictions."""

OWN_COLUMNS = ("index", *pairs.PROBABILITIES, *pairs.TOLD)
"""Further columns that are read where a file has them: which question it is, and those of `pairs`."""

SCORE_COLUMNS = ("measure", "group", "value", "low", "high", "n", "unread")

SHOWN_UNREAD = 5


@dataclass(frozen=True)
class Report:
    """What a file of predictions says.

    Attributes:
        table: the columns asked to be told apart and `SCORE_COLUMNS`; value, low and high are NaN where nothing was
            counted, unread is the number of answers that could not be read.
        unread: answer (as it stands in the file) -> how often it could not be read, the commonest first.
        questions, users: how many there are.
        notes: what was not computed or was taken for granted, and why.
    """

    table: pd.DataFrame
    unread: dict[str, int]
    questions: int
    users: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        unread = sum(self.unread.values())
        lines = [f"{self.questions} answers about {self.users} users.", "", self.table.to_string(index=False), ""]
        lines += [f"Unread answers: {unread} of {self.questions} ({unread / self.questions:.1%}); they count as wrong,"
                  " but for collapse and recall, which leave them out (docs/scoring.md)."]  # fmt: skip
        commonest = list(self.unread.items())[:SHOWN_UNREAD]
        lines += [f"  {count:>6} x {_short(answer)}" for answer, count in commonest]
        if rest := len(self.unread) - len(commonest):
            lines.append(f"  and {rest} others")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def read_predictions(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSON Lines or parquet file, numbered from 1; empty cells are missing, and text is kept
    as it is ("None" and "NA" are answers). Categories of a parquet file are read as what they hold.

    Raises ScoringError if there is no such file, it is of another kind or damaged, a column or key occurs twice, or it
    has no rows.
    """
    path = expanded(path)
    readers = {".csv": _read_text, ".tsv": _read_text, ".jsonl": _read_lines, ".parquet": pd.read_parquet}
    if path.suffix.lower() not in readers:
        raise ScoringError(f"{path}: expected a file named *{', *'.join(readers)}")
    if not path.is_file():
        raise ScoringError(f"{path}: no such file")
    try:
        frame = readers[path.suffix.lower()](path)
    except MMPBError as error:
        raise ScoringError(str(error)) from error
    except (ValueError, OSError) as error:
        raise ScoringError(f"{path}: cannot be read as {path.suffix}: {error}") from error
    if frame.empty:
        raise ScoringError(f"{path}: no rows")
    for column in frame.select_dtypes("category"):
        frame[column] = np.asarray(frame[column])
    return frame.set_axis(range(1, len(frame) + 1))


def _read_text(path: Path) -> pd.DataFrame:
    header, records = read_text(path)
    return pd.DataFrame(records, columns=header, dtype=str).replace("", np.nan)


def _read_lines(path: Path) -> pd.DataFrame:
    """The rows of a JSON Lines file. Raises ValueError naming the first line that is no mapping, or has a key twice."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                rows.append(parsed_json(line, once=True))
            except RepeatedKeyError as error:
                twice = ", ".join(map(repr, sorted(error.keys)))
                raise ValueError(f"line {number}: repeated key(s): {twice}") from error
            except (ValueError, RecursionError) as error:
                where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise ValueError(f"line {number}{where}: {getattr(error, 'msg', error)}") from error
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number}: expected a mapping of columns to values, found {line.strip()[:60]}")
    return pd.DataFrame(rows)


def complete(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The frame with empty columns in the place of those that its questions do not need and names as they are compared
    (`metrics.user_name`), and notes on what is lacking. Raises ScoringError naming the columns that are missing or
    misspelt, or the first row without a user's name."""
    missing = [column for column in REQUIRED if column not in frame]
    choices = "l2-category" in frame and (frame["l2-category"] == "inconsistency").any()
    likely = {str(column): str(column).strip().upper() for column in frame} if choices else {}
    misspelt = [
        f"{column} (did you mean {letter}?)" for column, letter in likely.items()
        if letter in tuple("ABCD") and letter not in frame
    ]  # fmt: skip
    if misspelt:
        raise ScoringError(f"misspelt column(s): {', '.join(map(repr, misspelt))}")
    absent = [column for column in OPTIONS if column not in frame] if choices else []
    if missing or absent:
        why = " (the options of multiple-choice questions)" if absent else ""
        expected = f"{', '.join(REQUIRED)}; further {', '.join(OPTIONS)}, C, D, {HOLDERS}, {NEGATED} where they apply"
        found = ", ".join(map(repr, frame)) + (": is it separated by something else?" if frame.shape[1] == 1 else "")
        raise ScoringError(f"no column {', '.join([*missing, *absent])}{why}; expected {expected}; found {found}")
    names = frame["name"]
    nameless = names.isna() | (names.astype(str).str.strip() == "")
    if nameless.any():
        raise ScoringError(f"row {nameless.idxmax()}: name is empty, expected the user whom the question is about")
    notes = []
    if (frame["category"] == "preference").any():
        if HOLDERS not in frame:
            notes.append(f"collapse, recall and sensitivity are not computed: no column {HOLDERS}")
        if NEGATED not in frame:
            notes.append(f"no column {NEGATED}: no question is taken to be negated")
    added = [column for column in metrics.COLUMNS if column not in frame]
    return frame.assign(name=names.map(metrics.user_name), **dict.fromkeys(added)), notes


def _with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with numbers for the AUCs, which text files have as text. Raises ScoringError naming the first row
    whose probability is none."""
    columns = {}
    for column in (*pairs.PROBABILITIES, "seen_pair"):
        if column in frame:
            columns[column] = pd.to_numeric(frame[column], errors="coerce")
            wrong = (columns[column].isna() & frame[column].notna()) | ~columns[column].fillna(0).between(0, 1)
            if wrong.any():
                found = frame.loc[wrong.idxmax(), column]
                raise ScoringError(f"row {wrong.idxmax()}: {column} is {found!r}, expected a number from 0 to 1")
    return frame.assign(**columns, **{column: frame[column].fillna("") for column in ("item",) if column in frame})


def measures(scored: pd.DataFrame, *, holders: bool = True, resamples: int | None = None) -> pd.DataFrame:
    """Every measure of scored predictions, with intervals: the six of the tables, the AUCs (`pairs.duels`) where there
    are probabilities, collapse by size of the group that shares the preference, and accuracy by kind of question. A
    share of one user's questions has no interval.

    ``holders``: whether it is known who holds the preferences asked about. Returns columns `SCORE_COLUMNS`.
    """
    rows = [
        {"measure": measure, "group": "all", **row, "unread": row["unparsed"]}
        for measure, row in metrics.summarize(scored, resamples=resamples).items()
        if holders or measure in ("overall", "preference", "profile")
    ]
    asked_about = (metrics.user_counts([scored])[1] > 0).sum(axis=(0, 1))  # users behind each share
    users = dict(zip(metrics.METRICS, asked_about, strict=False))
    users["sensitivity"] = min(users["recall"], users["collapse"])
    rows = [row if users[row["measure"]] > 1 else row | {"low": np.nan, "high": np.nan} for row in rows]
    unread = metrics.unreadable(scored)
    if holders and set(pairs.PROBABILITIES) <= set(scored):
        for measure, duels in pairs.duels([scored]).items():
            row = duels.estimate(duels.resampled(resamples=resamples))
            rows.append({"measure": measure, "group": "all", **row, "unread": int(unread[duels.questions].sum())})
    if holders:
        buckets = metrics.group_bucket(scored)
        for row in metrics.collapse_by(scored, buckets, metrics.BUCKETS, resamples=resamples).to_dict("records"):
            asked = metrics.boundary(scored)[0] & (buckets == row["group"]).to_numpy()
            rows.append({"measure": "collapse", **row, "unread": int((unread & asked).sum())})
    kinds = question_groups(scored)
    for kind in QUESTION_GROUPS:
        inside = (kinds == kind).to_numpy()
        if inside.any():
            row = metrics.summarize(scored[inside], resamples=resamples)["overall"]
            rows.append({"measure": "accuracy", "group": kind, **row, "unread": row["unparsed"]})
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def report(
    path: str | Path, *, by: Sequence[str] | None = None, auc: bool = False, resamples: int | None = None
) -> Report:
    """Scores a file of predictions (`read_predictions`).

    Args:
        by: columns whose values are scored apart; None for those of `SEPARATE` that the file has.
        auc: refuse a file from which the AUCs cannot be computed, rather than leave them out.
        resamples: of the bootstrap over users behind the intervals.

    Returns a `Report`. Raises ScoringError naming the file, and the missing columns or the row, the field and what was
    expected.
    """
    try:
        read = read_predictions(path)
        read = metrics.single_values(read, (*metrics.COLUMNS, *OWN_COLUMNS, *SEPARATE, *(by or ())))
        frame, notes = complete(read)
        apart = [column for column in SEPARATE if column in read] if by is None else list(by)
        if unknown := [column for column in apart if column not in read]:
            raise ScoringError(f"no column {', '.join(unknown)}; there are {', '.join(map(str, read))}")
        if taken := [column for column in apart if column in SCORE_COLUMNS]:
            raise ScoringError(f"scored apart by {', '.join(taken)}, which the table of scores has too: rename it")
        if repeated := sorted({column for column in apart if apart.count(column) > 1}):
            raise ScoringError(f"scored apart by {', '.join(repeated)} more than once")
        if auc and HOLDERS not in read:
            raise ScoringError(f"no column {HOLDERS}: {pairs.AUC_SAME} tells who holds a preference from who does not")
        if auc:
            pairs.require_probabilities(read)
        scored = metrics.score(_with_numbers(frame))
        try:
            pairs.held_probability(scored)
        except ScoringError as error:
            if auc:
                raise
            scored = scored.drop(columns=list(pairs.PROBABILITIES))
            notes.append(f"{pairs.AUC_SAME} is not computed: {error}")
    except ScoringError as error:
        place = "" if str(error).startswith(str(path)) else f"{path}: "
        raise ScoringError(f"{place}{error}") from error
    holders = not any(HOLDERS in note for note in notes)
    users = set(scored["name"])
    named = [group for group in metrics.holders(scored) if group]
    if holders and named and not any(group & users for group in named):
        as_found = f"{min(named[0])!r} of {HOLDERS} is none of {len(users)} in name, such as {min(users)!r}"
        notes.append(f"no holder of any preference is a user of the file ({as_found}): nothing is left for recall")
    tables = []
    if "index" in scored and (again := int(scored.duplicated([*apart, "index"]).sum())):
        notes.append(f"{again} rows repeat a question (column index): are several runs in one file? See --by")
    for values, rows in scored.groupby(apart, dropna=False, sort=False) if apart else [((), scored)]:
        table = measures(rows, holders=holders, resamples=resamples)
        for column, value in reversed(list(zip(apart, values, strict=True))):
            table.insert(0, column, value)
        tables.append(table)
        if rows["name"].nunique() < 2:
            where = f" ({', '.join(f'{c} {v}' for c, v in zip(apart, values, strict=True))})" if apart else ""
            notes.append(f"one user{where}: no intervals, which are taken over users")
    said = scored.loc[metrics.unreadable(scored), "prediction"]
    unread = Counter("" if pd.isna(text) else str(text).strip() for text in said)
    return Report(
        table=pd.concat(tables, ignore_index=True),
        unread=dict(unread.most_common()),
        questions=len(scored),
        users=scored["name"].nunique(),
        notes=tuple(notes),
    )


def _short(answer: str, length: int = 60) -> str:
    """An answer on one line, for people."""
    line = " ".join(answer.split())
    return "(empty)" if not line else repr(line if len(line) <= length else f"{line[:length]}...")
