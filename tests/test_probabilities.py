"""Calibration and threshold-free collapse against loops, scikit-learn, and answers whose result is known."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from prefmoe import metrics
from prefmoe.analysis import probabilities

USERS = tuple("abcdefgh")
HOLDERS = {0: "abcdef", 1: "ab", 2: "cdgh", 3: "h"}
"""Preference -> the users who hold it."""

MEASURES = ("distance", "alignment", "auc", "auc_same")


def questions(*, negated: bool = False) -> pd.DataFrame:
    """Every user is asked twice about every preference, the second time in other words, and once whether they are
    seen."""
    rows = []
    for user, (preference, holders), again in product(USERS, HOLDERS.items(), (0, 1)):
        invert = int(negated and again)
        holds = user in holders
        rows.append(
            {
                "name": user, "category": "preference", "l2-category": "awareness" if holds else "overconcept",
                "concept": "travel" if preference < 2 else "fashion", "question": "like?",
                "answer": 4 if holds != bool(invert) else 5, "preference_semantic_invert": invert,
                "preference_bucket_names": " | ".join(holders),
            }
        )  # fmt: skip
    seen = {"category": "recognition", "l2-category": "awareness", "concept": "human", "question": "here?", "answer": 4}
    rows += [{"name": user, "preference_semantic_invert": 0, "preference_bucket_names": "", **seen} for user in USERS]
    frame = pd.DataFrame(rows).assign(**dict.fromkeys("ABCD", ""), prediction="no")
    return metrics.score(frame)


def answered(frame: pd.DataFrame, held: np.ndarray) -> pd.DataFrame:
    """The frame with the probability of answering as if the user held the preference."""
    yes = np.where(metrics.inverted(frame), 1 - held, held)
    options = dict.fromkeys(("p_a", "p_b", "p_c", "p_d"), np.nan)
    return frame.assign(p_yes=yes, p_no=1 - yes, **options)


def truth(frame: pd.DataFrame) -> np.ndarray:
    return ((frame["gt"] == "yes").to_numpy() != metrics.inverted(frame)).astype(float)


def popular(frame: pd.DataFrame) -> np.ndarray:
    return np.array([len(names) / 16 for names in metrics.holders(frame)])


# Calibration


def test_confidence_is_the_largest_allowed_probability():
    shares = {"p_yes": [0.3, np.nan], "p_no": [0.7, np.nan], "p_a": [np.nan, 0.1], "p_b": [np.nan, 0.6]}
    frame = pd.DataFrame({**shares, "p_c": [np.nan, 0.3], "p_d": np.nan, "gt": ["yes", "b"]})
    sure, right = probabilities.confidence(frame)
    assert sure.tolist() == [0.7, 0.6] and right.tolist() == [0, 1]
    with pytest.raises(metrics.ScoringError, match="lack the column.*p_d"):
        probabilities.confidence(frame.drop(columns="p_d"))
    frame.loc[1, ["p_a", "p_b", "p_c"]] = np.nan
    with pytest.raises(metrics.ScoringError, match="row 1: .* all empty"):
        probabilities.confidence(frame)


def test_bins_hold_their_upper_edge():
    assert probabilities.bin_of(np.array([0.0, 0.1, 0.11, 0.5, 0.999, 1.0])).tolist() == [0, 0, 1, 4, 9, 9]


def random_answers(seed: int, shift: float = 0.0, size: int = 600) -> pd.DataFrame:
    """Yes/no answers that are right with their probability plus a shift."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.5, 1, size)
    right = rng.random(size) < sure + shift
    frame = pd.DataFrame({"name": rng.integers(0, 20, size).astype(str), "gt": np.where(right, "yes", "no")})
    return frame.assign(p_yes=sure, p_no=1 - sure, p_a=np.nan, p_b=np.nan, p_c=np.nan, p_d=np.nan)


def sure_answers(copies: list[pd.DataFrame]) -> tuple[list, np.ndarray]:
    return [probabilities.confidence(copy) for copy in copies], copies[0]["name"].to_numpy()


def test_expected_calibration_error_is_that_of_a_loop_and_the_mean_over_seeds():
    copies = [random_answers(seed, -0.2) for seed in (0, 1)]
    values = []
    for copy in copies:
        sure, right = copy["p_yes"].to_numpy(), (copy["gt"] == "yes").to_numpy()
        error = 0.0
        for k in range(10):
            inside = (sure > k / 10) & (sure <= (k + 1) / 10)
            if inside.any():
                error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
        values.append(error)
    found = probabilities.calibration(*sure_answers(copies))
    assert found["value"] == pytest.approx(np.mean(values)) and found["n"] == 600
    assert found["low"] < found["value"] < found["high"]
    assert found["accuracy"] - found["confidence"] == pytest.approx(-0.2, abs=0.04)


def test_a_calibrated_model_is_at_the_floor_and_a_too_sure_one_is_not():
    good, bad = (
        probabilities.calibration(*sure_answers([random_answers(seed, shift) for seed in range(20)]))
        for shift in (0, -0.2)
    )
    assert good["value"] == pytest.approx(good["floor"], rel=0.15)
    assert bad["value"] > 3 * bad["floor"]


def test_reliability_bins_are_scikit_learns():
    from sklearn.calibration import calibration_curve  # two seconds, which all processes that collect tests would pay

    copies = [random_answers(seed) for seed in (3, 4)]
    pooled = pd.concat(copies)
    accuracy, mean = calibration_curve(pooled["gt"] == "yes", pooled["p_yes"], n_bins=10)
    rows = pd.DataFrame(probabilities.reliability(*sure_answers(copies)))
    assert rows["value"].to_numpy() == pytest.approx(accuracy) and rows["confidence"].to_numpy() == pytest.approx(mean)
    assert rows["n"].sum() == 1200 and (rows["bin_low"] >= 0.5).all()
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()


# Collapse without a threshold


@pytest.mark.parametrize("negated", [False, True])
def test_the_truth_is_at_one_and_the_populations_answer_at_zero(negated):
    frame = questions(negated=negated)
    found = probabilities.separation([answered(frame, truth(frame))])
    assert [found[measure]["value"] for measure in MEASURES] == pytest.approx([1, 1, 1, 1])
    found = probabilities.separation([answered(frame, popular(frame))])
    assert [found[m]["value"] for m in ("distance", "alignment", "auc_same")] == pytest.approx([0, 0, 0.5])
    assert found["auc"]["value"] > 0.5  # "yes" to what many hold is right more often than not
    assert (found["distance"]["n"], found["auc"]["n"]) == (len(USERS) * len(HOLDERS), 2 * len(USERS) * len(HOLDERS))


def test_noise_raises_the_distance_but_neither_alignment_nor_auc():
    frame, rng = questions(), np.random.default_rng(0)
    copies = [answered(frame, rng.integers(0, 2, len(frame)).astype(float)) for _ in range(200)]
    found = probabilities.separation(copies, resamples=20)
    assert found["distance"]["value"] > 0.5
    values = [found[measure]["value"] for measure in ("alignment", "auc", "auc_same")]
    assert values == pytest.approx([0, 0.5, 0.5], abs=0.03)


def test_who_always_says_no_has_no_collapse_and_no_alignment():
    frame = questions()
    scored = frame.assign(p_yes=0.01, p_no=0.99)
    assert metrics.summarize(scored)["collapse"]["value"] == 0
    found = probabilities.separation([scored])
    assert [found[measure]["value"] for measure in MEASURES] == pytest.approx([0, 0, 0.5, 0.5])


def test_every_measure_against_loops_and_scikit_learn():
    from sklearn.metrics import roc_auc_score

    frame, rng = questions(negated=True), np.random.default_rng(5)
    held = np.clip(0.3 * truth(frame) + 0.5 * popular(frame) + rng.normal(0, 0.2, len(frame)), 0, 1)
    held = np.round(16 * held) / 16  # with ties, and exact when 1 is subtracted twice
    found = probabilities.separation([answered(frame, held)])
    asked = frame.assign(held=held, truth=truth(frame))[frame["category"] == "preference"]
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(asked["truth"], asked["held"]))

    won = pairs = 0
    absolute = true_absolute = product_sum = square = 0.0
    for _, part in asked.groupby("preference_bucket_names"):
        for inside, outside in product(part[part["truth"] == 1]["held"], part[part["truth"] == 0]["held"]):
            won, pairs = won + (inside > outside) + (inside == outside) / 2, pairs + 1
        for user, own in part.groupby("name"):
            others = part[part["name"] != user].groupby("name")[["held", "truth"]].mean().mean()
            difference, true = (own[["held", "truth"]].mean() - others)[["held", "truth"]]
            absolute, true_absolute = absolute + abs(difference), true_absolute + abs(true)
            product_sum, square = product_sum + difference * true, square + true**2
    assert found["auc_same"]["value"] == pytest.approx(won / pairs)
    assert found["distance"]["value"] == pytest.approx(absolute / true_absolute)
    assert found["alignment"]["value"] == pytest.approx(product_sum / square)


def test_the_interval_of_an_auc_is_that_of_frames_with_resampled_users():
    from sklearn.metrics import roc_auc_score

    frame, rng = questions(), np.random.default_rng(6)
    held = np.clip(0.4 * truth(frame) + rng.normal(0.3, 0.3, len(frame)), 0, 1)
    found = probabilities.separation([answered(frame, held)], resamples=80)["auc"]
    asked = frame.assign(held=held, truth=truth(frame))[frame["category"] == "preference"]
    counts = probabilities.statistics.resample_counts(len(USERS), resamples=80)
    values = []
    for row in counts:
        drawn = pd.concat([asked[asked["name"] == u] for u, c in zip(USERS, row, strict=True) for _ in range(int(c))])
        values.append(roc_auc_score(drawn["truth"], drawn["held"]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_answers_stand_in_for_missing_probabilities_and_nothing_is_compared_without_questions():
    frame = questions(negated=True)
    right = metrics.score(frame.assign(prediction=frame["gt"]).drop(columns=["gt", "pred", "hit"]))
    assert probabilities.separation([right])["auc_same"]["value"] == 1
    empty = probabilities.separation([frame[frame["category"] == "recognition"]])
    assert all(np.isnan(empty[measure]["value"]) and empty[measure]["n"] == 0 for measure in MEASURES)
