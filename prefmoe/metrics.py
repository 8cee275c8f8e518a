"""Scoring: from free-text answers to hits, and on to accuracy, collapse, recall and sensitivity."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe.analysis import statistics
from prefmoe.data.benchmark import HOLDER_SEPARATOR, in_brackets_or_lines, listed_holders, split_holders

QuestionKind = Literal["yes_no", "multiple_choice"]

METRICS = ("overall", "preference", "profile", "collapse", "recall", "sensitivity")
"""Metrics of every table, in the order of its rows."""

LOWER_IS_BETTER = ("collapse",)

BUCKETS = ("small_<=4", "middle_5-8", "large_>=9")
"""Sizes of the group of users who share the preference that a question asks about."""

COLUMNS = (
    "name", "category", "l2-category", "concept", "question", "A", "B", "C", "D", "answer", "prediction",
    "preference_bucket_names", "preference_semantic_invert",
)  # fmt: skip
"""Columns that `score` needs; others are kept as they are."""

UNPARSED_OPTION = "z"
"""What a multiple-choice answer without exactly one recognisable option is parsed to."""

_KINDS: Mapping[str, QuestionKind] = {
    "awareness": "yes_no", "overconcept": "yes_no", "inconsistency": "multiple_choice",
}  # fmt: skip
_ANSWER_CODES = ("a", "b", "c", "d", "yes", "no")
_YES = frozenset(("yes", "y", "yeah", "yep", "sure", "affirmative", "ok", "okay"))
_NO = frozenset(("no", "n", "nope", "nah", "negative", "0", "false"))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILURE = "Failed to obtain answer via API"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_JOINED = re.compile(r" and | & |/", re.IGNORECASE)
_COUNTED = ("overall", "preference", "profile", "collapse", "recall")


class ScoringError(ValueError):
    """A frame that cannot be scored; the message names the column, or the row and what was expected."""


def parse_answer(text: str | None, kind: QuestionKind, options: Sequence[str] = ()) -> str:
    """What a free-text answer says.

    Multiple choice: the only option letter among the tokens (``.()[],:;!*#{}`` separate, either case), else
    the only option whose text the answer contains (ignoring case), else "z". As in the published parser, an
    answer with one of four refusals, or with a token Z and no option's letter, is "z" at once, and no letter is
    looked for in the report of a failed request. Yes/no: "yes" or "no" when the first word, punctuation stripped,
    is a synonym, else that word. What reads oddly: docs/scoring.md.

    Args:
        text: the answer; None and NaN read as empty.
        kind: "yes_no" or "multiple_choice".
        options: texts of A, B, C, ...; blank or missing ones do not exist.

    Returns "yes", "no", "a" ... "d", "z", or the first word in lower case ("" for an empty answer). Raises ValueError
    for another kind.
    """
    if kind not in ("yes_no", "multiple_choice"):
        raise ValueError(f"question kind {kind!r} is unknown; expected 'yes_no' or 'multiple_choice'")
    text = "" if _missing(text) else str(text)
    if kind == "yes_no":
        return _parse_yes_no(text)
    return _parse_option(text, tuple("" if _missing(option) else str(option) for option in options))


def is_parsed(prediction: str, kind: QuestionKind) -> bool:
    """Whether a parsed answer is one that the question allows."""
    return prediction in ("yes", "no") if kind == "yes_no" else prediction != UNPARSED_OPTION


def single_values(frame: pd.DataFrame, columns: Iterable[str] = COLUMNS) -> pd.DataFrame:
    """The frame with one value in every cell of these columns: a list of holders becomes their cell.

    Raises ScoringError naming the first row and column with a list or a mapping elsewhere, and what was expected.
    """
    joined = {}
    for column in dict.fromkeys(columns):
        if column not in frame or frame[column].dtype != object:
            continue
        cells = frame[column].tolist()
        several = [k for k, cell in enumerate(cells) if isinstance(cell, bytes) or not pd.api.types.is_scalar(cell)]
        for position in several:
            cell = cells[position]
            if column != "preference_bucket_names" or not isinstance(cell, list | tuple | np.ndarray):
                _fail(frame, position, column, cell, "one value")
            try:
                cells[position] = listed_holders(cell)
            except ValueError as error:
                _fail(frame, position, column, cell, str(error).removeprefix("expected "))
        if several:
            joined[column] = pd.Series(cells, index=frame.index, dtype=object)
    return frame.assign(**joined) if joined else frame


def user_name(value: object) -> str:
    """A user's name as it is compared: composed (NFC), without blanks at its ends, and a whole number without the
    decimals that a column with floats gives it."""
    return _composed(value).strip()


def holders(frame: pd.DataFrame) -> list[frozenset[str]]:
    """The users of each question's ``preference_bucket_names`` cell, as `user_name` has them.

    Names are separated by `HOLDER_SEPARATOR`. A cell without it that is no user's name either is read as other hands
    write lists, separated by ``|``, ``;`` or ``,``: a name may hold a comma, as long as the cell does not consist of
    it alone, or its user is among those who are asked about.
    """
    known = {user_name(name) for name in frame["name"].unique()}
    texts = ["" if _missing(cell) else _composed(cell) for cell in frame["preference_bucket_names"].tolist()]
    return [_names(text, text.strip() in known) for text in texts]


def score(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns gt (true answer), pred (parsed answer) and hit (0/1) to a copy of the frame.

    ``frame``: one row per question with the columns of `COLUMNS`; `answer` holds 0-3 = A-D, 4 = yes, 5 = no, or the
    letter or word itself; `preference_bucket_names` a cell of names or a list of them. Raises ScoringError naming the
    missing columns, or the first row with an unknown l2-category, category, answer or negation flag, an answer whose
    option has no text, holders listed in another way, or a list elsewhere, and what was expected.

    Returns the copy: gt and pred as `parse_answer` writes them ("yes", "no", "a" ... "d", ...), hit 1 where they agree.
    """
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        names, expected = ", ".join(missing), ", ".join(COLUMNS)
        raise ScoringError(f"predictions lack the column(s) {names}; expected {expected}")
    frame = single_values(frame)
    truth, parsed = [], []
    columns = (frame[column].tolist() for column in ("l2-category", "category", "answer", "prediction"))
    options = zip(*(frame[letter].tolist() for letter in "ABCD"), strict=True)
    flags = frame["preference_semantic_invert"].tolist()
    rows = zip(*columns, options, flags, strict=True)
    for position, (l2_category, category, answer, prediction, texts, flag) in enumerate(rows):
        if l2_category not in _KINDS:
            _fail(frame, position, "l2-category", l2_category, ", ".join(_KINDS))
        if category not in ("preference", "recognition"):
            _fail(frame, position, "category", category, "preference or recognition")
        if _flag(flag) is None:
            _fail(frame, position, "preference_semantic_invert", flag, "0, 1 or empty")
        kind = _KINDS[l2_category]
        allowed = _ANSWER_CODES[4:] if kind == "yes_no" else _ANSWER_CODES[:4]
        gt = _answer_text(answer)
        if gt not in allowed:
            codes = "4 (yes) or 5 (no)" if kind == "yes_no" else "0-3 or A-D"
            _fail(frame, position, "answer", answer, f"{codes} for a question of l2-category {l2_category}")
        if kind == "multiple_choice" and (_missing(text := texts["abcd".index(gt)]) or not str(text).strip()):
            _fail(frame, position, "answer", answer, f"an option with a text, and {gt.upper()} has none")
        truth.append(gt)
        parsed.append(parse_answer(prediction, kind, texts))
    _check_holders(frame)
    scored = frame.copy()
    scored["gt"] = pd.Series(truth, index=frame.index, dtype=object)
    scored["pred"] = pd.Series(parsed, index=frame.index, dtype=object)
    scored["hit"] = (scored["gt"] == scored["pred"]).astype(int)
    return scored


def summarize(scored: pd.DataFrame, *, resamples: int | None = None) -> dict[str, dict[str, float]]:
    """Every metric of `METRICS` with its n and a 95 % cluster-bootstrap interval over users.

    overall, preference and profile (recognition) are accuracies. Collapse (FPout; PrefMoE, Lyu et al. 2026),
    recall and sensitivity = recall - collapse are defined in `question_counts`.

    Returns metric -> {"value", "n", "low", "high", "unparsed"}: n is the number of questions counted (of sensitivity:
    those of recall and collapse together), unparsed the number of answers that could not be read; collapse and recall
    leave them out of their n, every other metric counts them as wrong. Without questions value, low and high are NaN,
    and with fewer than two users low and high are.
    """
    rows = estimates(*user_counts([scored]), resamples=resamples)
    unparsed = unparsed_counts(scored)
    return {metric: {**rows[metric], "unparsed": unparsed[metric]} for metric in METRICS}


def collapse_by_bucket(scored: pd.DataFrame) -> pd.DataFrame:
    """Collapse by the number of users who share the preference. Returns columns bucket, value and n, one row per entry
    of `BUCKETS`; value is NaN where n is 0."""
    table = collapse_by(scored, group_bucket(scored), BUCKETS, resamples=1)  # no interval is asked for
    return table.rename(columns={"group": "bucket"})[["bucket", "value", "n"]]


def collapse_by(
    scored: pd.DataFrame, groups: Sequence | pd.Series, order: Iterable, *, resamples: int | None = None
) -> pd.DataFrame:
    """Collapse (`question_counts`) within groups of N scored questions, with 95 % intervals.

    Args:
        groups: (N,) a label per question. order: the labels to report.
        resamples: of the bootstrap over users.

    Returns columns group, value (a share), n (questions counted), low and high; value is NaN where n is 0.
    """
    hit, counted = question_counts(scored)
    labels, column = np.asarray(groups, dtype=object), _COUNTED.index("collapse")
    rows = []
    for label in order:
        inside = counted[:, column].astype(bool) & (labels == label)
        users = scored["name"].to_numpy()[inside]
        row = statistics.cluster_bootstrap(hit[inside, column], users, resamples=resamples)
        rows.append({"group": label, **row})
    return pd.DataFrame(rows, columns=["group", "value", "n", "low", "high"])


def group_bucket(frame: pd.DataFrame) -> pd.Series:
    """The bucket (an entry of `BUCKETS`) of each question, by the number of users who hold its preference."""
    sizes = map(len, holders(frame))
    labels = [BUCKETS[0] if size <= 4 else BUCKETS[1] if size <= 8 else BUCKETS[2] for size in sizes]
    return pd.Series(labels, index=frame.index, dtype=object)


def question_counts(scored: pd.DataFrame) -> tuple[NDArray, NDArray]:
    """What each question adds to the metrics that are shares.

    Only preference yes/no questions enter collapse and recall. S is the set of users who hold the preference
    asked about; true and answered meaning are the literal answers, exchanged when the question is negated.
    Collapse: target user outside S and true meaning "no"; the share whose answered meaning is "yes". Recall:
    target user inside S and true meaning "yes"; the share whose answered meaning is "yes". Both leave
    unreadable answers out, as the published code does of collapse: sensitivity is a difference of like things.

    Returns numerator and denominator, each (N, 5) 0/1 for overall, preference, profile, collapse and recall.
    """
    external, internal, answered_yes, readable = boundary(scored)
    hit = scored["hit"].to_numpy(dtype=float)
    preference = (scored["category"] == "preference").to_numpy()
    everything = np.ones(len(scored), dtype=bool)
    counted = np.stack([everything, preference, ~preference, external & readable, internal & readable], axis=-1)
    right = np.stack([hit, hit, hit, answered_yes, answered_yes], axis=-1) * counted
    return right, counted.astype(float)


def user_counts(runs: Sequence[pd.DataFrame]) -> tuple[NDArray, NDArray]:
    """Sums of `question_counts` per user and run (seed), of runs with the same questions in the same order. Returns
    numerator and denominator, each (U, runs, 5)."""
    counts = np.stack([np.stack(question_counts(run), axis=-1) for run in runs], axis=1)  # (N, runs, 5, 2)
    _, sums = statistics.cluster_sums(counts, runs[0]["name"])
    return sums[..., 0], sums[..., 1]


def with_sensitivity(shares: NDArray) -> NDArray:
    """Appends sensitivity = recall - collapse: (..., 5) shares to (..., 6) in the order of `METRICS`."""
    sensitivity = shares[..., _COUNTED.index("recall")] - shares[..., _COUNTED.index("collapse")]
    return np.concatenate([shares, sensitivity[..., None]], axis=-1)


def estimates(
    numerator: NDArray, denominator: NDArray, *, resamples: int | None = None, copies: bool = False
) -> dict[str, dict[str, float]]:
    """Mean over seeds of every metric, with an interval of that mean: users are resampled, and seeds (`over_seeds`).

    Args:
        numerator, denominator: (U, seeds, 5) of `user_counts`. copies: see `statistics.over_seeds`.

    Returns metric -> {"value", "n", "low", "high"}; n is the number of questions counted in one seed (their mean,
    rounded, where unreadable answers make it differ between seeds).
    """
    value = with_sensitivity(statistics.ratio(numerator.sum(0), denominator.sum(0))).mean(axis=0)
    low, high = np.full((2, len(METRICS)), np.nan)
    if len(numerator) > 1:
        samples = statistics.ratio_bootstrap(numerator, denominator, resamples=resamples)
        low, high = statistics.percentile_interval(statistics.over_seeds(with_sensitivity(samples), copies=copies))
    counted = denominator.sum(0).mean(axis=0)
    n = [*counted, counted[_COUNTED.index("collapse")] + counted[_COUNTED.index("recall")]]
    rows = zip(METRICS, value.tolist(), n, low.tolist(), high.tolist(), strict=True)
    return {name: {"value": mean, "n": int(round(count)), "low": a, "high": b} for name, mean, count, a, b in rows}


def unreadable(scored: pd.DataFrame) -> NDArray:
    """(N,) whether each answer could not be read as one that the question allows."""
    kinds = scored["l2-category"].map(_KINDS)
    return np.array([not is_parsed(pred, kind) for pred, kind in zip(scored["pred"], kinds, strict=True)], dtype=bool)


def unparsed_counts(scored: pd.DataFrame) -> dict[str, int]:
    """metric -> number of answers to its questions that could not be read as an allowed answer."""
    external, internal, _, _ = boundary(scored)
    unread = unreadable(scored)
    preference = (scored["category"] == "preference").to_numpy()
    everything = np.ones(len(scored), dtype=bool)
    questions = (everything, preference, ~preference, external, internal, external | internal)
    return {metric: int((unread & asked).sum()) for metric, asked in zip(METRICS, questions, strict=True)}


def inverted(frame: pd.DataFrame) -> NDArray:
    """(N,) whether each question is negated."""
    return np.array([bool(_flag(value)) for value in frame["preference_semantic_invert"].tolist()], dtype=bool)


def boundary(scored: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Which of N scored questions collapse and recall are about, and how they were answered.

    Returns (N,) masks: preference yes/no with the user outside the group and truly "no"; inside and truly "yes";
    answered "yes"; readable. All but the last undo negated questions.
    """
    asked = ((scored["category"] == "preference") & (scored["l2-category"] != "inconsistency")).to_numpy()
    negated = inverted(scored)
    members = holders(scored)
    names = map(user_name, scored["name"].tolist())
    inside = np.array([name in group for name, group in zip(names, members, strict=True)], dtype=bool)
    truly_yes = (scored["gt"] == "yes").to_numpy(dtype=bool) ^ negated
    said_yes, said_no = ((scored["pred"] == word).to_numpy(dtype=bool) for word in ("yes", "no"))
    answered_yes = np.where(negated, said_no, said_yes)
    return asked & ~inside & ~truly_yes, asked & inside & truly_yes, answered_yes, said_yes | said_no


def _check_holders(frame: pd.DataFrame) -> None:
    """Raises ScoringError naming the first preference question whose holders are a list of a kind that is not read."""
    known = {user_name(name) for name in frame["name"].unique()}
    categories, read = frame["category"].tolist(), set()
    for position, cell in enumerate(frame["preference_bucket_names"].tolist()):
        if categories[position] == "preference" and not _missing(cell) and cell not in read:
            read.add(cell)
            if _is_another_list(_composed(cell), known):
                expected = f"the users' names with {HOLDER_SEPARATOR!r} between them"
                _fail(frame, position, "preference_bucket_names", cell, expected)


def _is_another_list(text: str, known: set[str]) -> bool:
    """Whether a cell of holders lists them in brackets, quotation marks or lines, or joins a user's name to others by
    "and", an ampersand or a slash: a stranger's name may have these in it."""
    cell = text.strip()
    if HOLDER_SEPARATOR in f"{text} " or cell in known:
        return False
    if in_brackets_or_lines(cell):
        return True
    joined = (name for name in _names(text, False) if name not in known and _JOINED.search(name))
    return any(part.strip() in known for name in joined for part in _JOINED.split(name))


@lru_cache(maxsize=65536)
def _names(text: str, is_user: bool) -> frozenset[str]:
    if HOLDER_SEPARATOR in f"{text} " or is_user:
        return frozenset(split_holders(text))
    return frozenset(name for name in (part.strip() for part in re.split(r"[|;,]", text)) if name)


@lru_cache(maxsize=65536)
def _parse_yes_no(text: str) -> str:
    words = text.lower().split()
    word = re.sub(r"[^\w]", "", words[0]) if words else ""
    return "yes" if word in _YES else "no" if word in _NO else word


@lru_cache(maxsize=65536)
def _parse_option(text: str, options: tuple[str, ...]) -> str:
    available = {letter: option for letter, option in zip("abcd", options, strict=False) if option.strip()}
    if _FAILURE not in text:
        tokens = {token.lower() for token in text.translate(_SEPARATORS).split()}
        letters = [letter for letter in available if letter in tokens]
        if any(refusal in text for refusal in _REFUSALS) or (not letters and UNPARSED_OPTION in tokens):
            return UNPARSED_OPTION
        if len(letters) == 1:
            return letters[0]
    named = [letter for letter, option in available.items() if option.strip().lower() in text.lower()]
    return named[0] if len(named) == 1 else UNPARSED_OPTION


def _answer_text(answer: object) -> str | None:
    """A ground-truth cell as "a" ... "d", "yes", "no", or None when it is no answer code."""
    if _missing(answer) or isinstance(answer, bool):
        return None
    text = str(answer).strip().lower()
    if text in _ANSWER_CODES:
        return text
    code = re.fullmatch(r"([0-5])(\.0*)?", text)
    return _ANSWER_CODES[int(code.group(1))] if code else None


def _flag(value: object) -> bool | None:
    """A negation cell: 0/1, true/false, empty = False; None when it is something else."""
    if _missing(value):
        return False
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    return False if text in ("0", "0.0", "false", "") else None


def _composed(value: object) -> str:
    """A cell as text in composed form (NFC); a whole number without decimals."""
    whole = isinstance(value, float | np.floating) and value.is_integer()
    return unicodedata.normalize("NFC", str(int(value) if whole else value))


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _fail(frame: pd.DataFrame, position: int, column: str, value: object, expected: str) -> None:
    row = f"row {frame.index[position]}"
    if "index" in frame.columns:
        row += f" (question {frame['index'].iloc[position]})"
    raise ScoringError(f"{row}: {column} is {value!r}, expected {expected}")
