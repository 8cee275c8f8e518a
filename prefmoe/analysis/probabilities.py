"""What the answers' probabilities say beyond the answers: calibration, and collapse without a threshold.

Works on scored per-question frames alone (`metrics.score` of predictions.parquet); needs no model.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import pairs, statistics

ANSWERS = ("yes", "no", "a", "b", "c", "d")
"""Column p_<answer> holds the probability of an answer among those the question allows, NaN for the others."""

Answered = Sequence[tuple[NDArray, NDArray]]
"""Of each copy (seed): (N,) probabilities of the most probable answers, and (N,) whether they are right."""

BINS = 10
"""Bins of confidence, of equal width."""


# Calibration


def confidence(scored: pd.DataFrame) -> tuple[NDArray, NDArray]:
    """The probability of each question's most probable answer, and whether that answer is right.

    That answer is nearly always the one that was given; it differs where generation began with something else.

    Raises:
        metrics.ScoringError: naming the missing columns, or the first question without any probability.

    Returns (N,) probabilities and (N,) 0/1.
    """
    columns = [f"p_{answer}" for answer in ANSWERS]
    if missing := [column for column in columns if column not in scored]:
        raise metrics.ScoringError(f"predictions lack the column(s) {', '.join(missing)}")
    shares = scored[columns].to_numpy(dtype=float)
    known = ~np.isnan(shares)
    if not known.any(axis=1).all():
        row = scored.index[int(np.argmin(known.any(axis=1)))]
        raise metrics.ScoringError(f"row {row}: {', '.join(columns)} are all empty, expected a probability")
    best = np.where(known, shares, -1).argmax(axis=1)
    right = np.asarray(ANSWERS, dtype=object)[best] == scored["gt"].to_numpy(dtype=object)
    return shares[np.arange(len(shares)), best], right.astype(float)


def bin_of(probability: NDArray) -> NDArray:
    """The bin of each probability, 0 to BINS - 1; a bin holds its upper edge."""
    return np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)


def calibration(
    answers: Answered, users: NDArray, *, resamples: int | None = None, simulations: int = 200
) -> dict[str, float]:
    """Expected calibration error (Guo et al. 2017, eq. 3) of the most probable answers, mean over copies (seeds).

    ECE = sum over bins |sum over the bin's questions (right - confidence)| / N. It is above 0 even for a calibrated
    model, since finite bins scatter: ``floor`` is its mean when every answer is right with just the probability
    given to it (simulated). For the same reason the bootstrap interval sits a little high.

    Args:
        answers: `confidence` of each copy (seed), about the same N questions.
        users: (N,) who is asked.

    Returns value, low, high, floor, confidence and accuracy (means), n. NaN without questions.
    """
    if not len(users):
        return dict.fromkeys(("value", "low", "high", "floor", "confidence", "accuracy"), np.nan) | {"n": 0}
    rng = np.random.default_rng(0)
    values, floors, samples, means = [], [], [], []
    for probability, right in answers:
        member = np.eye(BINS)[bin_of(probability)]  # (N, bins)
        gaps = (right - probability)[:, None] * member
        values.append(np.abs(gaps.sum(axis=0)).sum() / len(users))
        simulated = (rng.random((simulations, len(users))) < probability) - probability
        floors.append(np.abs(simulated @ member).sum(axis=1).mean() / len(users))
        _, sums = statistics.cluster_sums(np.column_stack([gaps, np.ones(len(users))]), users)
        drawn = statistics.resample_counts(len(sums), resamples=resamples) @ sums
        samples.append(np.abs(drawn[:, :-1]).sum(axis=1) / drawn[:, -1])
        means.append((probability.mean(), right.mean()))
    drawn = statistics.over_seeds(np.stack(samples, axis=1))
    low, high = statistics.interval(drawn, len(sums))
    sure, accuracy = np.mean(means, axis=0)
    return {
        "value": float(np.mean(values)), "low": low, "high": high, "floor": float(np.mean(floors)),
        "confidence": float(sure), "accuracy": float(accuracy), "n": len(users),
    }  # fmt: skip


def reliability(answers: Answered, users: NDArray) -> list[dict[str, float]]:
    """The reliability diagram: accuracy within bins of confidence, the copies' (seeds') answers pooled.

    Args:
        answers, users: as in `calibration`.

    Returns a row per bin that is not empty: bin_low, bin_high, confidence (mean), value (accuracy), low, high (cluster
    bootstrap over users), n (answers of all copies).
    """
    probability, right = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    users = np.tile(users, len(answers))
    bins, rows = bin_of(probability), []
    for number in np.unique(bins):
        inside = bins == number
        estimate = statistics.cluster_bootstrap(right[inside], users[inside])
        edges = {"bin_low": number / BINS, "bin_high": (number + 1) / BINS}
        rows.append({**edges, "confidence": float(probability[inside].mean()), **estimate})
    return rows


# Collapse without a threshold


def separation(
    frames: Sequence[pd.DataFrame], *, resamples: int | None = None, copies: bool = False
) -> dict[str, dict[str, float]]:
    """How far answers about a shared preference follow the user rather than the population; no threshold involved.

    Taken from preference yes/no questions whose holders are known and whose true meaning agrees with them (those of
    collapse and recall). The score of a question is the probability of answering as if the user held the
    preference (negated questions undone; a frame without probabilities counts its answers as 0 or 1). With m(u, k)
    the mean score of user u about preference k (same facet, same holders), t(u, k) the truth, and d the difference
    from the mean over the other users who were asked about k:

    distance: sum |d m| / sum |d t|. The total variation distance between a user's answers and the population's,
        relative to that distance in the truth. 0: everybody gets the same answer; noise raises it.
    alignment: sum (d m)(d t) / sum (d t)^2. The slope of the answers' deviations on the true ones: 1 for the
        truth, 0 for the population's answer and for noise alike.
    auc: probability that a question from inside the group scores higher than one from outside it (ties count half).
        A population's guess may be above or below .5, as the questions' popularity has it.
    auc_same: the same among questions about one and the same item (`pairs.duels`): .5 for any population's guess.

    Intervals resample users and seeds; for distance and alignment the population's means are held fixed.

    ``frames``: scored, of the same questions, one per seed, or copies of a reference (``copies``). Returns measure ->
    {"value", "low", "high", "n"}: means over frames; n counts pairs (u, k) for distance and alignment, questions for
    the others. NaN where nothing can be compared.
    """
    frame = frames[0]
    outside, inside, _, _ = metrics.boundary(frame)
    members = metrics.holders(frame)
    kept = np.flatnonzero((outside | inside) & np.array([bool(names) for names in members], dtype=bool))
    keys = {}
    facets = frame["concept"].tolist()
    preference = np.array([keys.setdefault((facets[i], members[i]), len(keys)) for i in kept], dtype=int)
    names = frame["name"].to_numpy(dtype=object).astype(str)
    users = np.unique(names[kept])
    user = np.searchsorted(users, names)
    truth = inside[kept].astype(float)
    scores = np.stack([pairs.held_probability(copy) for copy in frames], axis=-1)  # (N, S)
    deviations = [
        _deviations(values, user[kept], preference, len(users), len(keys)) for values in (scores[kept], truth[:, None])
    ]
    counts = statistics.resample_counts(len(users), resamples=resamples)
    (model, compared), (true, _) = deviations
    sums = {
        "distance": (np.abs(model).sum(axis=1), np.abs(true).sum(axis=1)),
        "alignment": ((model * true).sum(axis=1), (true**2).sum(axis=1)),
    }  # (U, S) and (U, 1)
    result = {}
    for measure, (numerator, denominator) in sums.items():
        value = statistics.ratio(numerator.sum(axis=0), denominator.sum(axis=0))
        samples = statistics.ratio(counts @ numerator, counts @ denominator)
        low, high = statistics.interval(statistics.over_seeds(samples, copies=copies), len(users))
        result[measure] = {"value": float(value.mean()), "low": low, "high": high, "n": int(compared.sum())}
    every = np.array(np.meshgrid(kept[truth == 1], kept[truth == 0], indexing="ij"), dtype=int).reshape(2, -1)
    same = replace(pairs.duels(frames)[pairs.AUC_SAME], user=user, users=len(users))
    for measure, duels in (("auc", pairs.Duels(*every, scores, user, len(users))), (pairs.AUC_SAME, same)):
        result[measure] = duels.estimate(duels.resampled(resamples=resamples, copies=copies))
    return result


def _deviations(
    values: NDArray, user: NDArray, preference: NDArray, users: int, preferences: int
) -> tuple[NDArray, NDArray]:
    """Each user's mean about each preference minus the mean over the other users who were asked about it.

    Args:
        values: (M, S). user, preference: (M,) rows of users and preferences.

    Returns (U, K, S) differences, 0 where there is nothing to compare, and (U, K) where there is something.
    """
    sums = np.zeros((users, preferences, values.shape[1]))
    asked = np.zeros((users, preferences))
    np.add.at(sums, (user, preference), values)
    np.add.at(asked, (user, preference), 1)
    means = sums / np.maximum(asked, 1)[..., None]
    present = asked > 0
    others = present.sum(axis=0) - present
    compared = present & (others > 0)
    rest = (means.sum(axis=0) - means) / np.maximum(others, 1)[..., None]
    return np.where(compared[..., None], means - rest, 0.0), compared
