"""The miniature of choices: deterministic, apart by split, and chosen by the rule that it states."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from choice_worlds import TINY, without_drawing
from PIL import Image

from prefmoe.config import ChoicesData
from prefmoe.data import choice_folder, choice_world
from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.data.choice_world import FEATURES, GROUP_SHARES, PER_PROMPT, Tastes, features

LARGE = ChoicesData(kind="choices", seed=7, users=200, unseen_users=40, train_prompts=100, test_prompts=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return choice_world.build(TINY, tmp_path_factory.mktemp("choices") / "data")


@pytest.fixture(scope="module")
def benchmark(folder):
    return choice_folder.read(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return without_drawing(LARGE, tmp_path_factory.mktemp("large") / "data")


def _bytes(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _utilities(benchmark, targets, candidates):
    """Those of each target's user of its candidates, summed by words: (targets, candidates)."""
    tastes, said = benchmark.utilities.to_dict("index"), benchmark.attributes.to_dict("index")
    return np.array(
        [
            [
                sum(tastes[target.user].get(value, 0.0) for value in said[benchmark.relative(picture)].values())
                for picture in target.candidates[:candidates]
            ]
            for target in targets
        ]
    )


def test_the_same_seed_draws_the_same_files_and_another_seed_others(folder, benchmark, tmp_path):
    again = choice_world.build(TINY, tmp_path / "again")
    assert _bytes(again) == _bytes(folder)
    assert choice_folder.read(again).digest == benchmark.digest
    other = choice_world.build(TINY.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not {k: v for k, v in _bytes(other).items() if _bytes(folder)[k] == v}
    assert choice_folder.read(other).digest != benchmark.digest


def test_a_finished_benchmark_is_not_drawn_again_and_foreign_folders_are_left_alone(folder, tmp_path):
    before = (folder / "choices.csv").stat().st_mtime_ns
    assert choice_world.build(TINY, folder) == folder
    assert (folder / "choices.csv").stat().st_mtime_ns == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else than a miniature benchmark of choices"):
        choice_world.build(TINY, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_there_are_as_many_users_and_choices_as_the_settings_say(benchmark):
    sizes = {split: len(targets) for split, targets in benchmark.splits.items()}
    assert sizes == {"train": 60, "validation": 10, "test": 20, "unseen": 15}
    assert len(benchmark.users) == 15 and len(benchmark.trained_users) == 10
    assert Counter(len(owned) for owned in benchmark.references.values()) == {6: 10, 5: 5}
    assert {len(benchmark.choices[i].others) for i in benchmark.splits["train"]} == {0}
    assert {len(c.others) for split in ("validation", "test", "unseen") for c in benchmark.select(split)} == {2}
    assert not set(benchmark.trained_users) & {choice.user for choice in benchmark.select("unseen")}


def test_targets_share_no_picture_with_training_and_histories_and_unseen_users_none_with_training(benchmark):
    def pictures(indices):
        return {picture for i in indices for picture in benchmark.choices[i].candidates}

    trained = pictures(benchmark.splits["train"])
    histories = pictures(i for owned in benchmark.references.values() for i in owned)
    for split in ("validation", "test", "unseen"):
        assert not pictures(benchmark.splits[split]) & (trained | histories)
    assert histories - trained and trained < histories
    assert pictures(benchmark.splits["test"]) & pictures(benchmark.splits["unseen"])
    for user in benchmark.users:
        shown = [p for c in benchmark.choices.values() if c.user == user for p in c.candidates]
        assert len(shown) == len(set(shown))


def test_groups_have_their_shares_of_seen_users(large):
    groups = large.utilities.loc[large.trained_users, "group"]
    assert np.bincount(groups).tolist() == [round(share * LARGE.users) for share in GROUP_SHARES]


def test_prompts_name_what_pictures_show_unless_they_are_said_to_contradict(large):
    said, rows = large.attributes, large.attributes.to_dict("index")
    for choice in large.choices.values():
        for picture in choice.candidates:
            row = rows[large.relative(picture)]
            words = f"{row['number']} {row['item']}".removesuffix("s" if row["number"] == "one" else "")
            assert (words == choice.prompt) == (row["agreement"] == "agrees")
    share = (said["agreement"] == "contradicts").mean()
    assert abs(share - choice_world.CONTRADICTING) < 4 * math.sqrt(0.15 * 0.85 / len(said))


def test_what_is_left_open_is_uniform(large):
    for name in ("palette", "background", "style", "size", "place", "tilt", "shadow"):
        shares = large.attributes[name].value_counts(normalize=True)
        assert shares.index.isin(ATTRIBUTES[name]).all() and len(shares) == len(ATTRIBUTES[name])
        assert abs(shares - 1 / len(shares)).max() < 4 * math.sqrt(0.25 / len(large.attributes))


def test_pictures_show_their_attributes(benchmark):
    """A night sky is dark around the items, every other ground is not."""
    for path, row in benchmark.attributes.iterrows():
        grey = np.asarray(Image.open(benchmark.root / path).convert("L")).astype(float)
        assert grey.shape == (128, 128)
        assert (np.median(np.concatenate([grey[:2], grey[-2:]])) < 110) == (row["background"] == "night"), path


def test_pairs_follow_the_logistic_rule(large):
    """Of the pairs, the better picture was liked as often as sigma says: in each half of the range of differences."""
    targets = [choice for split in ("train", "test", "unseen") for choice in large.select(split)]
    difference = np.subtract(*_utilities(large, targets, 2).T)
    chance = 1 / (1 + np.exp(-np.abs(difference)))
    for part in (chance < np.median(chance), chance >= np.median(chance)):
        surplus = (difference[part] > 0).sum() - chance[part].sum()
        assert abs(surplus) < 4 * np.sqrt((chance * (1 - chance))[part].sum())


def test_favourites_of_four_follow_the_softmax(large):
    targets = [choice for split in ("test", "unseen") for choice in large.select(split)]
    utility = _utilities(large, targets, PER_PROMPT)
    chance = np.exp(utility) / np.exp(utility).sum(1, keepdims=True)
    best = chance.max(1)
    assert abs((chance[:, 0] == best).sum() - best.sum()) < 4 * np.sqrt((best * (1 - best)).sum())
    # The one that is shown as disliked is any of the three others, whatever its utility.
    ranks = (utility[:, 1:2] > utility[:, 2:]).sum(1)
    assert (np.abs(np.bincount(ranks, minlength=3) / len(ranks) - 1 / 3) < 4 * np.sqrt(2 / 9 / len(ranks))).all()


def test_users_deviate_from_their_group_and_groups_from_one_another(large):
    tastes = Tastes.of(LARGE.seed).groups
    own = large.utilities[list(FEATURES)].to_numpy() - tastes[large.utilities["group"]]
    assert abs(own.std() - choice_world.DEVIATION) < 0.01 and abs(own.mean()) < 0.02
    opened = [FEATURES.index(value) for name in choice_world.OPEN for value in ATTRIBUTES[name]]
    for k, group in enumerate(tastes):
        strong = np.abs(group[opened]) >= choice_world.STRENGTH - choice_world.COMMON_STRENGTH - 1e-9
        assert strong.sum() == 2 * choice_world.CARED_ABOUT
        assert not any(np.allclose(group[opened], other[opened]) for other in tastes[:k])


def test_features_are_one_of_each_attribute_and_agreement(benchmark):
    found = features(benchmark.attributes)
    agrees = benchmark.attributes["agreement"] == "agrees"
    assert (found.sum(1) == len(ATTRIBUTES) + agrees).all() and (found[:, -1] == agrees).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_per_user": 13}, "train_per_user is more than 12 prompts"),
        ({"unseen_references": 7}, "unseen_references is more than 6 test_prompts"),
    ],
)
def test_more_choices_than_prompts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ChoicesData.model_validate(TINY.model_dump() | change)
