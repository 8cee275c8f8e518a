"""Benchmarks of choices: histories that are drawn from references, and splits that are asked about."""

from pathlib import Path

import pytest

from prefmoe.data.choices import Choice, ChoiceBenchmark, HistoryError

ROOT = Path("folder")


def _choice(index: int, user: str, *pictures: str) -> Choice:
    liked, disliked, *others = (ROOT / picture for picture in pictures)
    return Choice(index, user, "two hats", liked, disliked, tuple(others))


@pytest.fixture
def benchmark() -> ChoiceBenchmark:
    """Ann with ten references, of which the second shows a picture of the first again; Bob with one."""
    choices = [_choice(k, "Ann", f"{k}a.png", f"{k}b.png") for k in range(10)]
    choices[1] = _choice(1, "Ann", "1a.png", "0b.png")
    choices += [_choice(10, "Ann", "ta.png", "tb.png", "tc.png", "td.png"), _choice(11, "Bob", "ba.png", "bb.png")]
    choices += [_choice(12, "Bob", "ua.png", "ub.png")]
    return ChoiceBenchmark(
        root=ROOT,
        choices={choice.index: choice for choice in choices},
        users={"Ann": 0, "Bob": 1},
        references={"Ann": tuple(range(10)), "Bob": (11,)},
        splits={"train": tuple(range(10)), "validation": (), "test": (10,), "unseen": (12,)},
    )


def test_histories_are_random_and_a_shorter_one_begins_a_longer_one(benchmark):
    whole = [benchmark.history("Ann", 10, draw) for draw in range(20)]
    for draw, history in enumerate(whole):
        assert sorted(choice.index for choice in history) == list(range(10))
        assert benchmark.history("Ann", 4, draw) == history[:4]
    firsts = {history[0].index for history in whole}
    assert len(firsts) > 4 and len(set(whole)) == 20


def test_a_history_holds_neither_the_target_nor_a_picture_of_it(benchmark):
    target = benchmark.choices[0]
    histories = [benchmark.history("Ann", 8, draw, (target,)) for draw in range(20)]
    assert {choice.index for history in histories for choice in history} == set(range(2, 10))
    assert benchmark.history("Ann", 3, 5, (target,)) == benchmark.history("Ann", 8, 5, (target,))[:3]


def test_other_users_do_not_change_a_history(benchmark):
    alone = ChoiceBenchmark(
        ROOT, benchmark.choices, {"Bob": 0, "Ann": 1}, {"Ann": tuple(range(10))}, {**benchmark.splits, "unseen": ()}
    )
    assert alone.history("Ann", 5, 3) == benchmark.history("Ann", 5, 3)


def test_a_history_that_is_too_long_is_refused_with_user_and_numbers(benchmark):
    with pytest.raises(HistoryError, match=r"'Ann' has 8 choices for a history beside target 0, .* n_ref = 9"):
        benchmark.history("Ann", 9, 0, (benchmark.choices[0],))
    with pytest.raises(HistoryError, match=r"'Bob' has 1 choices .* target 12, .* n_ref = 2"):
        benchmark.check_histories(2, ("test", "unseen"))
    with pytest.raises(HistoryError, match=r"target 0, .*and 9 more targets"):
        benchmark.check_histories(10, ("train",))
    benchmark.check_histories(1)
    with pytest.raises(KeyError, match="'Zoe' is unknown"):
        benchmark.history("Zoe", 1, 0)


def test_splits_are_selected_in_order_and_users_who_are_trained_on_are_known(benchmark):
    assert [choice.index for choice in benchmark.select("train")] == list(range(10))
    assert benchmark.trained_users == ["Ann"]
    with pytest.raises(KeyError, match="'dev' is unknown; this benchmark has train"):
        benchmark.select("dev")


def test_candidates_are_numbered_and_pictures_named_from_the_root(benchmark):
    (target,) = benchmark.select("test")
    assert [benchmark.relative(picture) for picture in target.candidates] == ["ta.png", "tb.png", "tc.png", "td.png"]
