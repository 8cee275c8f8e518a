"""Floors and ceilings on a benchmark small enough to answer by hand, and how items are grouped in it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from notebook_cells import cells
from table_world import DISLIKES, EDITION, LIKES, TEST, TRAIN, UNSEEN, keep, key_of

from prefmoe import metrics
from prefmoe.analysis import statistics, tables
from prefmoe.analysis.answers import read_runs
from prefmoe.analysis.groupings import dataset_statistics, depicted_items, group_sizes, popularity_groups, questions
from prefmoe.analysis.references import (
    CHANCE,
    GROUP,
    POPULAR,
    READER,
    chance,
    popular_choice,
    profile_reader,
    read_references,
    references,
    untold_likes,
)
from prefmoe.data.benchmark import Benchmark, Preference

pytest_plugins = ["table_fixtures"]


def test_popular_choice_answers_what_training_answered_most(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    answers = popular_choice(train, test, depicted_items(benchmark))
    assert answers["prediction"].tolist() == ["yes", "yes", "no", "no", "no", "no", "B", "A", "B", "yes"]


def test_popular_choice_never_looks_at_the_answers_it_predicts(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    items = depicted_items(benchmark)
    hidden = test.drop(columns="answer")
    expected = popular_choice(train, test, items)["prediction"]
    assert popular_choice(train, hidden, items)["prediction"].equals(expected)


def test_the_profile_reader_knows_every_preference_and_no_face(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    popular = popular_choice(train, test, depicted_items(benchmark))
    answers = profile_reader(popular, depicted_items(benchmark), benchmark.users)
    scored = metrics.score(answers)
    assert scored.loc[scored["category"] == "preference", "hit"].all()
    assert answers["prediction"].iloc[-1] == popular["prediction"].iloc[-1]


def test_chance_is_the_exact_expectation(benchmark):
    test = questions(benchmark, "test")
    test.loc[6, "D"] = ""  # a question with three options
    copies = [metrics.score(copy) for copy in chance(test)]
    expected = np.array([1 / 2] * 6 + [1 / 3, 1 / 4, 1 / 4] + [1 / 2])
    assert np.mean([copy["hit"] for copy in copies], axis=0) == pytest.approx(expected)
    estimates = metrics.estimates(*metrics.user_counts(copies))
    values = [estimates[metric]["value"] for metric in ("collapse", "recall", "sensitivity")]
    assert values == pytest.approx([0.5, 0.5, 0])


def test_the_reader_is_left_out_without_annotations(benchmark):
    bare = Benchmark(
        root=benchmark.root, frame=benchmark.frame, users=benchmark.users, examples={}, splits=benchmark.splits
    )
    assert list(references(bare, "test")) == [CHANCE, POPULAR]
    assert list(references(benchmark, "test")) == [CHANCE, POPULAR, READER]


@pytest.fixture(scope="module")
def secret(benchmark) -> Benchmark:
    """The benchmark with kites, which cid and dan like, told by no profile."""
    users = {}
    for name, user in benchmark.users.items():
        likes = tuple(item for item in LIKES[name] if item != "kites")
        told = {"travel": Preference(likes=likes, dislikes=DISLIKES[name])}
        users[name] = user.model_copy(update={"preferences": told})
    names = benchmark.frame["name"]
    told = [
        "" if not item else "untold" if item == "kites" and item in LIKES[name] else
        "told" if item in (*LIKES[name], *DISLIKES[name]) else "other"
        for name, item in zip(names, benchmark.annotations["item"], strict=True)
    ]  # fmt: skip
    return replace(benchmark, users=users, annotations=benchmark.annotations.assign(told=told))


def test_rows_by_what_is_told_stand_in_every_table_and_only_where_profiles_do_not_tell_everything(
    benchmark, secret, built, results
):
    for path in results.rglob("predictions.parquet"):
        frame = pd.read_parquet(path)
        backbone, method, seed = key_of(path)
        keep(frame.merge(secret.told(list(secret.frame.index)), on="index"), results, backbone, method, seed)
    made = {name: tables.read_table(path) for name, path in tables.build(EDITION, secret, results=results).items()}
    before = {name: tables.read_table(path) for name, path in built[1].items()}
    split = ["auc_told", "auc_untold", "auc_untold_fresh"]
    for name in ("table1", "table2", "table1_seeds", "turns", "comparisons", "forest"):
        assert set(made[name]["metric"]) == {*metrics.METRICS, "auc_same", *split}, name
        assert not set(split) & set(before[name]["metric"]), name
    assert {"told_statistics"} == set(made) - set(before)
    told = made["breakdown"].query("grouping == 'told' and method == 'Profile reader' and turns == 0")
    found = told.set_index(["metric", "group"])["value"]
    assert found["preference", "told"] == 1 and found["recall", "untold, pair unseen in training"] == 0
    assert told.set_index(["metric", "group"])["n"].loc["preference"].tolist() == [5, 0, 1]
    counted = made["told_statistics"].query("split == 'test' and told == 'untold'")
    assert counted[["question_type", "liked", "fresh", "count"]].to_numpy().tolist() == [
        ["preference_yesno", "yes", 1, 1]
    ]


def test_who_knows_the_groups_likes_knows_what_no_profile_tells(benchmark, secret):
    assert references(benchmark, "test").keys() == {CHANCE, POPULAR, READER}
    assert untold_likes(benchmark) == {} and untold_likes(secret) == {
        ("travel", secret.users["dan"].preferences["travel"]): {"kites"}
    }  # nobody is asked about cid's
    found = references(secret, "test")
    wrong = {name: found[name][0].query("category == 'preference' and hit == 0") for name in (READER, GROUP)}
    assert wrong[GROUP].empty and wrong[READER]["name"].tolist() == ["dan"]
    assert wrong[READER]["item"].tolist() == ["kites"]


def test_the_popular_choice_is_tested_like_every_other_row(benchmark, results, built):
    table = tables.read_table(built[1]["comparisons"])
    assert set(table["baseline"]) == {"Non-tuned", "Full fine-tuning", "Embedding", "Popular choice"}
    popular = [entry for entry in read_references(EDITION, benchmark, "test") if entry.method == POPULAR]
    runs = read_runs(EDITION, results, "test")
    for turns in (0, 10):
        first = next(entry for entry in runs if (entry.key, entry.turns) == ("full", turns))
        second = next(entry for entry in popular if entry.turns == turns)
        here = table[(table["baseline"] == POPULAR) & (table["turns"] == turns)].set_index("metric")
        for metric in first.metrics:
            difference = first.estimates[metric]["value"] - second.estimates[metric]["value"]
            assert here.loc[metric, "difference"] == pytest.approx(difference, abs=2e-6)
    assert table.query("metric == 'auc_same'")["p_users_holm"].notna().all()
    tests = table.query("metric == 'auc_same'")
    assert tests["p_users_holm"].to_numpy() == pytest.approx(statistics.holm(tests["p_users"]), abs=2e-6)


def test_popularity_groups_are_thirds_of_the_items(benchmark):
    groups = popularity_groups(benchmark)
    items = depicted_items(benchmark)
    by_item = {items[index]: group for index, group in groups.items()}
    assert by_item["tea"] == "popular" and by_item["maps"] == "rare" and by_item["ice"] == "rare"


def test_popularity_and_group_sizes(benchmark):
    items = cells("02", "item-likes", benchmark=benchmark)["items"]
    assert items.set_index("item")["users"].to_dict() == {"tea": 3, "jam": 2, "kites": 2, "ice": 1, "maps": 0}
    sizes = group_sizes(benchmark)
    assert sizes["users"].tolist() == [2, 1, 1] and sizes["rank"].tolist() == [0, 1, 2]


def test_dataset_statistics(benchmark):
    table = dataset_statistics(benchmark).set_index(["question_type", "split"])["count"]
    assert table["preference_yesno", "train"] == 8 and table["preference_mcq", "test"] == 3
    assert table.sum() == len(TRAIN) + len(TEST) + len(UNSEEN)
