"""Tables about choices, on ratings that are known by construction and against loops by hand."""

import numpy as np
import pandas as pd
import pytest

from prefmoe.analysis import choices
from prefmoe.analysis.answers import TableError
from prefmoe.analysis.choices import Ratings


def frame(scores, *, split="test", n_ref=8, draws=1):
    """A frame with two choices per user, from (choices, candidates) scores."""
    return pd.DataFrame(
        {
            "index": index, "split": split, "user": f"{split} {index // 2}", "n_ref": n_ref, "draw": draw,
            "candidate": candidate, "score": score,
        }
        for index, row in enumerate(scores)
        for draw in range(draws)
        for candidate, score in enumerate(row)
    )  # fmt: skip


def by_hand(row, k, tries=4000):
    """How often the first is among the first k, with ties in an order drawn again and again."""
    rng = np.random.default_rng(0)
    found = [0 in np.lexsort((rng.random(len(row)), -np.array(row)))[:k] for _ in range(tries)]
    return np.mean(found)


@pytest.mark.parametrize("row", [[1, 2, 3, 0], [3, 2, 1, 0], [1, 1, 2, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_ordered_at_random(row, k):
    assert choices.hits(np.array([row], float), k)[0] == pytest.approx(by_hand(row, k), abs=0.03)


def test_the_table_has_every_accuracy_of_every_group():
    seen = frame([[3, 1, 2, 0], [1, 3, 2, 0], [3, 2, 1, 0], [0, 1, 2, 3]])
    unseen = frame([[3, 1, 2, 0]] * 2, split="unseen").assign(index=lambda rows: rows["index"] + 10)
    table = choices.accuracy_table([Ratings("A", "a", (pd.concat([seen, unseen]),))])
    assert tuple(table.columns) == choices.TABLE1_COLUMNS
    found = table.set_index(["users", "candidates", "k"])["value"]
    assert found["seen", 2, 1] == 0.5 and found["unseen", 2, 1] == 1 and found["all", 2, 1] == pytest.approx(4 / 6)
    assert found["seen", 4, 1] == 0.5 and found["seen", 4, 2] == 0.5 and found["seen", 4, 3] == 0.75
    assert table.set_index(["users", "candidates", "k"])["n"]["all", 4, 3] == 6


def test_draws_and_seeds_count_alike():
    right, wrong = [[1, 0]] * 4, [[0, 1]] * 4
    draws = pd.concat([frame(right), frame(wrong).assign(draw=1), frame(wrong).assign(draw=2)])
    assert Ratings("A", "a", (draws,)).values(2, 1)[0].tolist() == pytest.approx([1 / 3] * 4)
    two = Ratings("A", "a", (frame(right), frame(wrong)), 2)
    assert two.values(2, 1).to_numpy().tolist() == [[1, 0]] * 4
    four = Ratings("A", "a", (frame([[1, 0, 0, 0]] * 4), frame([[0, 1, 0, 0]] * 4)), 2)
    assert choices.accuracy_table([four])["value"].tolist()[:2] == [0.5] * 2  # of two, for seen and for all users


def _seeds(shifts, rows=400, seed=5):
    """Ratings of as many seeds as there are shifts of the liked picture's score; two choices of each user."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, 4))
    return Ratings("A", "a", tuple(frame(scores + [shift, 0, 0, 0]) for shift in shifts), len(shifts))


def test_intervals_are_over_users_and_seeds_whose_variances_add_up():
    three = _seeds((-1.0, 0.0, 1.0))
    each = [_seeds((shift,)) for shift in (-1.0, 0.0, 1.0)]
    row = choices.accuracy_table([three]).iloc[0]
    singles = [choices.accuracy_table([one]).iloc[0] for one in each]
    assert row["value"] == pytest.approx(np.mean([one["value"] for one in singles]))
    of_users = three.values(2, 1).mean(axis=1).groupby("user").mean()
    variance = of_users.var() / len(of_users) + np.var([one["value"] for one in singles], ddof=1) / 3
    assert (row["high"] - row["low"]) / (2 * 1.96 * np.sqrt(variance)) == pytest.approx(1, abs=0.15)
    spread = choices.seeds_table([three]).iloc[0]
    assert spread["sd"] == pytest.approx(np.std([one["value"] for one in singles], ddof=1))
    assert (spread["minimum"], spread["maximum"]) == (singles[0]["value"], singles[2]["value"])
    assert np.isnan(choices.seeds_table(each[:1])["sd"].iloc[0])


def test_a_difference_of_groups_moves_with_the_seeds_of_both():
    rng = np.random.default_rng(6)
    seen, unseen = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))

    def both(shift, also):
        parts = frame(seen + [shift, 0]), frame(unseen + [also, 0], split="unseen")
        return pd.concat([parts[0], parts[1].assign(index=lambda rows: rows["index"] + 1000)])

    def width(pairs):
        row = choices.difference_table([Ratings("A", "a", tuple(both(*pair) for pair in pairs), len(pairs))]).iloc[0]
        return row["high"] - row["low"]

    alone, together = width([(0, 0)]), width([(-1, -1), (0, 0), (1, 1)])  # what moves both leaves their difference
    assert width([(-1, 1), (0, 0), (1, -1)]) > 2 * alone and together < 1.3 * alone


def test_seeds_are_paired_and_what_has_one_stands_beside_each():
    three, one = _seeds((0.5, 1.0, 1.5)), _seeds((0.0,))
    other = Ratings("B", "b", three.frames, 3)
    table = choices.comparison_table([(three, other)])
    assert table[["difference", "low", "high"]].iloc[0].tolist() == [0, 0, 0]
    single = Ratings("B", "b", one.frames)
    row = choices.comparison_table([(three, single)]).iloc[0]
    values = three.values(2, 1).to_numpy(), one.values(2, 1).to_numpy()
    assert row["difference"] == pytest.approx((values[0] - values[1]).mean()) and row["low"] < row["high"]
    two = Ratings("B", "b", three.frames[:2], 2)
    with pytest.raises(TableError, match="A has 3 and B has 2 seeds, which cannot be paired"):
        choices.comparison_table([(three, two)])


def test_choices_with_two_candidates_stand_beside_choices_with_four():
    both = pd.concat([frame([[3, 1, 2, 0]] * 2), frame([[1, 0]] * 2).assign(index=lambda rows: rows["index"] + 10)])
    table = choices.accuracy_table([Ratings("A", "a", (both,))]).set_index(["users", "candidates", "k"])
    assert table["n"]["seen", 2, 1] == 4 and table["n"]["seen", 4, 1] == 2


def test_the_difference_is_between_users_who_are_resampled_apart():
    rng = np.random.default_rng(1)
    seen, unseen = rng.normal(size=(80, 2)), rng.normal(size=(60, 2))
    unseen[:, 0] += 1
    both = pd.concat([frame(seen), frame(unseen, split="unseen").assign(index=lambda rows: rows["index"] + 1000)])
    row = choices.difference_table([Ratings("A", "a", (both,))]).iloc[0]
    expected = (unseen[:, 0] > unseen[:, 1]).mean() - (seen[:, 0] > seen[:, 1]).mean()
    assert row["difference"] == pytest.approx(expected) and row["low"] < expected < row["high"]
    # The width against that of independent users, worked out by the formula for the difference of two means.
    users = [pd.Series(part[:, 0] > part[:, 1]).groupby(np.arange(len(part)) // 2).mean() for part in (seen, unseen)]
    error = np.sqrt(sum(of_users.var() / len(of_users) for of_users in users))
    assert (row["high"] - row["low"]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_what_a_method_does_to_another_s_gap_is_of_the_same_choices():
    """The difference of two gaps, with the interval that paired choices have: both rows share their users."""
    rng = np.random.default_rng(7)

    def both(seen, unseen):
        other = frame(unseen, split="unseen").assign(index=lambda rows: rows["index"] + 1000)
        return pd.concat([frame(seen), other])

    seen, unseen = rng.normal(size=(300, 2)), rng.normal(size=(300, 2))
    other = Ratings("B", "b", (both(seen, unseen),))
    (same,) = choices.gap_table([(Ratings("A", "a", (both(seen, unseen),)), other)]).to_dict("records")
    assert (same["difference"], same["low"], same["high"], same["n"]) == (0, 0, 0, 600)
    better = Ratings("A", "a", (both(seen, unseen + [1, 0]),))
    (row,) = choices.gap_table([(better, other)]).to_dict("records")
    gaps = choices.difference_table([better, other]).set_index("method")["difference"]
    assert row["difference"] == pytest.approx(gaps["A"] - gaps["B"]) and row["low"] > 0
    assert (row["method"], row["baseline"], row["seen"]) == ("A", "B", 0)


def test_the_first_of_four_is_compared_in_a_family_of_its_own():
    rng = np.random.default_rng(8)
    mine, theirs, third = (Ratings(name, name, (frame(rng.normal(size=(60, 4))),)) for name in "ABC")
    table = choices.comparison_table([(mine, theirs), (mine, third)])
    assert table[["candidates", "k"]].value_counts().to_dict() == {(2, 1): 2, (4, 1): 2}
    row = table[(table["candidates"] == 4) & (table["baseline"] == "B")].iloc[0]
    expected = (mine.values(4, 1) - theirs.values(4, 1)).to_numpy().mean()
    assert row["difference"] == pytest.approx(expected)
    for _, family in table.groupby("candidates"):
        least, most = sorted(family["p_users"])
        assert sorted(family["p_users_holm"]) == pytest.approx([min(1, 2 * least), min(1, max(2 * least, most))])


def test_methods_are_compared_on_the_same_choices():
    rng = np.random.default_rng(2)
    first, second = frame(rng.normal(size=(60, 2)) + [1, 0]), frame(rng.normal(size=(60, 2)))
    table = choices.comparison_table([(Ratings("A", "a", (first,)), Ratings("B", "b", (second,)))])
    row = table.iloc[0]
    values = [Ratings("", "", (part,)).values(2, 1).to_numpy() for part in (first, second)]
    assert row["difference"] == pytest.approx((values[0] - values[1]).mean()) and row["p_users"] < 0.05
    same = choices.comparison_table([(Ratings("A", "a", (first,)), Ratings("B", "b", (first,)))])
    assert same.iloc[0]["p_users"] == 1 and same.iloc[0]["difference"] == 0


def test_a_method_without_histories_is_compared_at_every_length():
    scores = np.random.default_rng(3).normal(size=(40, 2))
    longer = pd.concat([frame(scores, n_ref=4), frame(scores, n_ref=8)])
    table = choices.comparison_table([(Ratings("A", "a", (longer,)), Ratings("B", "b", (frame(-scores, n_ref=0),)))])
    assert table["n_ref"].tolist() == [4, 8] and (table["n"] == 40).all()


def test_methods_are_compared_after_histories_of_the_same_length_alone():
    scores = np.random.default_rng(4).normal(size=(40, 2))
    longer = pd.concat([frame(scores, n_ref=4), frame(scores, n_ref=8)])
    other = Ratings("B", "b", (frame(-scores, n_ref=8),))
    assert choices.comparison_table([(Ratings("A", "a", (longer,)), other)])["n_ref"].tolist() == [8]
    stranger = Ratings("B", "b", (frame(-scores[:20], n_ref=8),))
    with pytest.raises(TableError, match="B rated other choices than A"):
        choices.comparison_table([(Ratings("A", "a", (longer,)), stranger)])


def test_collapse_counts_where_the_population_likes_another():
    population = Ratings("Population", "", (frame([[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 2, 1], [0, 1, 3, 2]]),))
    follows = choices.collapse_table([population], population).set_index(["users", "measure"])
    assert follows["value"]["seen", "population"] == 1 and follows["value"]["seen", "user"] == 0
    assert follows["n"]["seen", "population"] == 3  # one favourite is the user's
    knows = Ratings("A", "a", (frame([[9, 1, 2, 3]] * 4),))
    found = choices.collapse_table([knows], population).set_index(["users", "measure"])["value"]
    assert found["seen", "population"] == 0 and found["seen", "user"] == 1
    undecided = Ratings("B", "b", (frame([[1, 1, 1, 1]] * 4),))
    found = choices.collapse_table([undecided], population).set_index(["users", "measure"])["value"]
    assert found["seen", "population"] == found["seen", "user"] == 0.25


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "choice 0: candidate 0 is rated twice"),
        (lambda rows: rows.iloc[1:], "choice 0 of test 0 .n_ref 8, draw 0.: a score is missing"),
        (lambda rows: rows.assign(score=np.nan), "a score is missing or not finite"),
        (lambda rows: rows.assign(candidate=rows["candidate"] + 1), "expected candidates 0, 1"),
    ],
)
def test_ratings_that_are_not_whole_are_refused(spoil, message):
    with pytest.raises(TableError, match=message):
        choices.cases(spoil(frame([[1, 0, 0, 0]] * 2)))


def test_the_longest_history_is_compared_with_the_shortest_choice_by_choice():
    users, rng = 12, np.random.default_rng(1)
    short, long, between = (
        [[int(one), 1 - int(one)] for one in rng.random(2 * users) < share] for share in (0.4, 0.9, 0.5)
    )
    lengths = [frame(short, n_ref=1), frame(between, n_ref=4), frame(long, n_ref=8)]
    both = Ratings("A", "a", (pd.concat(lengths).sample(frac=1, random_state=0),))
    alike = Ratings("B", "b", (pd.concat([frame(long, n_ref=1), frame(long, n_ref=8)]),))
    alone = Ratings("C", "c", (frame(long),))
    table = choices.more_history_table([both, alike, alone])
    assert list(table.columns) == list(choices.MORE_HISTORY_COLUMNS) and list(table["method"]) == ["A", "A", "B", "B"]
    row = table[(table["method"] == "A") & (table["users"] == "all")].iloc[0]
    assert (row["n_ref"], row["baseline_n_ref"], row["n"]) == (8, 1, 2 * users)
    first = np.mean([one[0] - other[0] for one, other in zip(long, short, strict=True)])
    assert row["difference"] == pytest.approx(first) and row["low"] < row["difference"] < row["high"]
    same = table[(table["method"] == "B") & (table["users"] == "all")].iloc[0]
    assert same["difference"] == same["low"] == same["high"] == 0 and same["p_users_holm"] == 1
    assert row["p_users_holm"] == pytest.approx(min(1, 2 * row["p_users"]))

