"""AUCs over pairs of users asked about the same item, against double loops and what must come out."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from prefmoe import metrics
from prefmoe.analysis import comparisons, pairs, statistics
from prefmoe.analysis.answers import Answers, TableError
from prefmoe.analysis.comparisons import compare

USERS = tuple("abcdefgh")
LIKED = {"tea": "abcdef", "jam": "abcd", "maps": "cdgh", "kites": "h"}
"""Item -> the users who like it; jam has the holders of no other item, tea and maps are of two facets."""

UNTOLD = {("a", "tea"), ("b", "tea"), ("e", "tea"), ("c", "jam"), ("d", "jam"), ("g", "maps"), ("h", "kites")}
TOLD_DISLIKES = {("g", "tea"), ("a", "maps"), ("e", "jam")}


def questions(seed: int = 0) -> pd.DataFrame:
    """Every user is asked about every item twice, the second time negated; a third of the pairs are of the training."""
    rng = np.random.default_rng(seed)
    rows = []
    for user, (item, holders) in product(USERS, LIKED.items()):
        holds, seen = user in holders, int(rng.random() < 1 / 3)
        told = "untold" if (user, item) in UNTOLD else "told" if holds or (user, item) in TOLD_DISLIKES else "other"
        for negated in (0, 1):
            row = {
                "name": user, "category": "preference", "l2-category": "awareness" if holds else "overconcept",
                "concept": "travel" if item in ("tea", "jam") else "fashion", "answer": 4 if holds != negated else 5,
                "preference_semantic_invert": negated, "preference_bucket_names": " | ".join(holders),
                "item": item, "told": told, "seen_pair": seen,
            }  # fmt: skip
            rows.append(row)
    rows += [{**rows[0], "category": "recognition", "preference_bucket_names": "", "item": "", "told": ""}]
    frame = pd.DataFrame(rows).assign(**dict.fromkeys("ABCD", ""), question="?", prediction="no")
    return metrics.score(frame.sample(frac=1, random_state=seed).reset_index(drop=True).rename_axis("row"))


def with_scores(frame: pd.DataFrame, score: Callable[[dict], float]) -> pd.DataFrame:
    """The frame with the probability of answering as if the user liked the item."""
    held = np.array([score(row) for row in frame.to_dict("records")])
    yes = np.where(frame["preference_semantic_invert"] == 1, 1 - held, held)
    return frame.assign(p_yes=yes, p_no=1 - yes, held=held)


def random_scores(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)

    def score(row: dict) -> float:  # in eighths: with ties, and exact when 1 is subtracted twice
        return round(8 * min(1.0, 0.3 * (row["l2-category"] == "awareness") + rng.random())) / 8

    return with_scores(questions(), score)


def fought(frame: pd.DataFrame) -> Iterator[tuple[str, dict, dict]]:
    """(measure, inside, outside) for every pair, by the definitions in docs/scoring.md."""
    asked = [row for row in frame.to_dict("records") if row["category"] == "preference"]
    for inside, outside in product(asked, asked):
        if inside["item"] != outside["item"]:
            continue
        if inside["name"] in LIKED[inside["item"]] and outside["name"] not in LIKED[inside["item"]]:
            yield "auc_same", inside, outside
            if inside["told"] == "told":
                yield "auc_told", inside, outside
            if inside["told"] == "untold" and (outside["name"], outside["item"]) not in TOLD_DISLIKES:
                yield "auc_untold", inside, outside
                if not inside["seen_pair"] and not outside["seen_pair"]:
                    yield "auc_untold_fresh", inside, outside


def by_loop(frame: pd.DataFrame) -> dict[str, float]:
    won, all_of_them = dict.fromkeys(pairs.measures(frame), 0.0), dict.fromkeys(pairs.measures(frame), 0)
    for measure, inside, outside in fought(frame):
        won[measure] += (inside["held"] > outside["held"]) + (inside["held"] == outside["held"]) / 2
        all_of_them[measure] += 1
    return {measure: won[measure] / count for measure, count in all_of_them.items() if count}


def test_every_auc_is_that_of_a_double_loop_over_pairs():
    copies = [random_scores(seed) for seed in (0, 1)]
    found = pairs.duels(copies)
    assert tuple(found) == ("auc_same", "auc_told", "auc_untold", "auc_untold_fresh")
    loops = [by_loop(copy) for copy in copies]
    for measure, duels in found.items():
        assert duels.values == pytest.approx([loop[measure] for loop in loops]), measure
        taking_part = {tuple(sorted(row.items(), key=str)) for m, *both in fought(copies[0]) if m == measure
                       for row in both}  # fmt: skip
        assert duels.n == len(taking_part)
        estimate = duels.estimate()
        assert estimate["value"] == pytest.approx(np.mean([loop[measure] for loop in loops]))
        assert estimate["low"] < estimate["value"] < estimate["high"]
    assert len({round(float(duels.values.mean()), 6) for duels in found.values()}) == 4


def test_without_items_a_pair_is_of_one_facet_with_the_same_holders():
    copy = random_scores(3)
    (same,) = pairs.duels([copy.drop(columns=["item", "told", "seen_pair"])]).values()
    assert same.values == pytest.approx(by_loop(copy)["auc_same"])  # no two items here have the same holders


def test_an_interval_is_that_of_frames_with_resampled_users():
    copy = random_scores(2)
    duels = pairs.duels([copy])["auc_untold"]
    counts = statistics.resample_counts(len(USERS), resamples=40)
    values = []
    for row in counts:
        drawn = dict(zip(USERS, row, strict=True))
        won = total = 0.0
        for measure, inside, outside in fought(copy):
            if measure == "auc_untold":
                weight = drawn[inside["name"]] * drawn[outside["name"]]
                won += weight * ((inside["held"] > outside["held"]) + (inside["held"] == outside["held"]) / 2)
                total += weight
        values.append(won / total if total else np.nan)
    np.testing.assert_allclose(duels.resampled(resamples=40), values)


def test_pairs_of_very_many_users_are_held_as_they_are_and_not_all_against_all():
    users = 200_000  # all against all: 320 GB
    rows = np.arange(2 * users)
    scores = np.random.default_rng(0).random((2 * users, 1))
    many = pairs.Duels(rows[:users], rows[users:], scores, np.tile(np.arange(users), 2), users)
    counts = statistics.resample_counts(users, resamples=2)
    won = scores[:users, 0] > scores[users:, 0]  # both of a pair about one user: drawn twice, it counts four times
    assert many.resampled(resamples=2) == pytest.approx((counts**2 @ won) / (counts**2).sum(1))


def test_who_reads_profiles_is_at_half_in_what_they_do_not_tell_and_who_remembers_answers_in_fresh_pairs():
    frame = questions()
    told = with_scores(frame, lambda row: {"told": float(row["l2-category"] == "awareness")}.get(row["told"], 0.5))
    found = {measure: float(duels.values[0]) for measure, duels in pairs.duels([told]).items()}
    assert found["auc_told"] == 1
    assert found["auc_untold"] == found["auc_untold_fresh"] == 0.5 < found["auc_same"]
    known = {(user, item) for item, users in LIKED.items() for user in users}
    remembers = with_scores(frame, lambda row: float((row["name"], row["item"]) in known) if row["seen_pair"] else 0.5)
    found = {measure: float(duels.values[0]) for measure, duels in pairs.duels([remembers]).items()}
    assert found["auc_untold_fresh"] == 0.5 < found["auc_untold"]
    popular = with_scores(frame, lambda row: len(LIKED.get(row["item"], "")) / 8)
    assert all(duels.values == 0.5 for duels in pairs.duels([popular]).values())


def test_a_pair_is_won_by_the_higher_score_of_the_same_seed_and_halved_where_both_are_the_same():
    copies = [random_scores(seed) for seed in (0, 1)]
    duels = pairs.duels(copies)["auc_same"]
    assert duels.users == len(USERS) and duels.won.shape == (len(duels.inside), 2)
    for seed, copy in enumerate(copies):
        held = copy["held"].tolist()
        for inside, outside, won in zip(duels.inside, duels.outside, duels.won[:, seed], strict=True):
            assert won == (1 if held[inside] > held[outside] else 0.5 if held[inside] == held[outside] else 0)
    assert set(duels.won.ravel()) == {0, 0.5, 1}
    again = replace(duels, scores=-duels.scores)
    np.testing.assert_array_equal(again.won, 1 - duels.won)


def test_an_influence_is_the_slope_of_the_auc_in_a_questions_weight():
    copy = random_scores(4)
    duels = pairs.duels([copy])["auc_same"]

    def auc(weight: np.ndarray) -> float:
        both = weight[duels.inside] * weight[duels.outside]
        return (both * duels.won[:, 0]).sum() / both.sum()

    found = duels.influences()
    for row in range(0, len(copy), 7):
        step = np.zeros(len(copy))
        step[row] = 1e-5
        assert found[row] == pytest.approx((auc(1 + step) - auc(1 - step)) / 2e-5, abs=1e-8)


def answers(*copies: pd.DataFrame) -> Answers:
    where = {"method": "m", "key": "m", "type": "PEFT", "backbone": "b", "turns": 0, "split": "test"}
    return Answers.of([copy.assign(index=range(len(copy))) for copy in copies], **where)


def test_users_exchange_all_their_answers_as_in_a_loop_over_frames():
    """Every seed of one method beside every seed of the other, in frames of ranks whose users have changed places."""
    copies = [random_scores(seed) for seed in (5, 6)], [random_scores(seed) for seed in (7, 8, 9)]
    first, second = (answers(*group) for group in copies)
    rows = {row["metric"]: row for row in compare(first, second, permutations=25)}
    masks = statistics.swap_masks(len(USERS), permutations=25)
    for measure in pairs.measures(copies[0][0]):
        taking_part = sorted({*first.duels[measure].inside, *first.duels[measure].outside})
        ranked = [[copy.assign(held=copy["held"].iloc[taking_part].rank()) for copy in group] for group in copies]

        def difference(mask: np.ndarray, ranked=ranked, measure=measure) -> float:
            moved = ranked[0][0]["name"].map(dict(zip(USERS, mask == 1, strict=True)))
            found = []
            for one, other in product(*ranked):
                mixed = [a.assign(held=a["held"].mask(moved, b["held"])) for a, b in ((one, other), (other, one))]
                found.append(by_loop(mixed[0])[measure] - by_loop(mixed[1])[measure])
            return float(np.mean(found))

        observed = difference(np.zeros(len(USERS)))
        extreme = sum(abs(difference(mask)) >= abs(observed) - 1e-12 for mask in masks)
        assert rows[measure]["difference"] == pytest.approx(observed)
        assert rows[measure]["p_users"] == pytest.approx((extreme + 1) / 26)
        assert rows[measure]["n"] == first.duels[measure].n and np.isnan(rows[measure]["p_questions"])


@pytest.mark.parametrize("known", [0.0, 2.0], ids=["nobody is known", "users are known more or less well"])
def test_two_methods_alike_are_told_apart_as_rarely_as_the_level_says(known):
    """An earlier test, in which users exchanged halves of pairs, told one in five or four apart at .05."""
    rng, users, asked, trials = np.random.default_rng(11), 30, 12, 150
    user = np.repeat(np.arange(users), asked)
    masks = statistics.swap_masks(users, permutations=199)
    rejected = 0
    for _ in range(trials):
        item, likes = rng.integers(0, 24, len(user)), rng.random(len(user)) < 0.5
        alike = (item[:, None] == item) & likes[:, None] & ~likes & (user[:, None] != user)
        inside, outside = np.nonzero(alike)
        scores = [
            rng.normal(size=(len(user), 1)) + ((likes - 0.5) * known * rng.normal(size=users)[user])[:, None]
            for _ in range(2)
        ]
        first, second = (pairs.Duels(inside, outside, one, user, users) for one in scores)
        observed, permuted = comparisons._exchanged(first, second, masks)
        rejected += statistics.permutation_p(observed, permuted) < 0.05
    assert 0 < rejected < 0.11 * trials  # three standard errors above .05


def test_methods_that_were_measured_by_other_metrics_are_not_compared():
    first, second = answers(random_scores(1)), answers(random_scores(2).drop(columns=["told"]))
    assert second.metrics == (*metrics.METRICS, "auc_same")
    with pytest.raises(TableError, match="m has overall, .*auc_untold_fresh, and m has overall, .*auc_same; nothing"):
        compare(first, second)


def test_a_question_without_probabilities_is_named_and_nothing_is_undefined_without_pairs():
    copy = random_scores(0)
    row = int(np.flatnonzero(copy["category"] == "preference")[3])
    with pytest.raises(metrics.ScoringError, match=f"row {row}: p_yes and p_no are empty"):
        pairs.duels([copy.assign(p_yes=copy["p_yes"].where(copy.index != row))])
    nothing = pairs.duels([copy[copy["category"] == "recognition"]])
    assert all(duels.n == 0 and np.isnan(duels.estimate()["value"]) for duels in nothing.values())
    one = replace(pairs.duels([copy])["auc_same"], user=np.zeros(len(copy), dtype=int), users=1)
    assert np.isnan(one.estimate()["low"])
