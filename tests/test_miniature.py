"""The miniature benchmark: deterministic, skewed as it says; splits share neither pictures nor fresh pairs."""

import hashlib
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prefmoe.analysis.references import GROUP, READER, references
from prefmoe.config import MiniatureData
from prefmoe.data import miniature, mmpb, people
from prefmoe.data.benchmark import FACETS
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET, ITEMS, Face, draw_items, draw_people

SMALL = MiniatureData(
    kind="miniature", users=6, unseen_users=1, train_per_user=12, validation_per_user=6, test_per_user=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return miniature.build(SMALL, tmp_path_factory.mktemp("miniature") / "data")


@pytest.fixture(scope="module")
def benchmark(folder):
    return mmpb.read(folder)


UNTOLD = SMALL.model_copy(update={"untold": 2})


@pytest.fixture(scope="module")
def untold(tmp_path_factory):
    """A benchmark with two untold likes per facet and group, its pictures blank."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_items", "draw_people"):
            patch.setattr(miniature, name, lambda *_: Image.new("RGB", (160, 160), "grey"))
        return mmpb.read(miniature.build(UNTOLD, tmp_path_factory.mktemp("untold") / "data"))


def _bytes(folder):
    return {
        str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*")) if p.is_file()
    }  # fmt: skip


def test_the_same_seed_draws_the_same_files_and_another_seed_others(folder, tmp_path):
    tiny = SMALL.model_copy(update={"users": 4, "unseen_users": 1, "train_per_user": 5, "test_per_user": 5})
    first, second = (_bytes(miniature.build(tiny, tmp_path / name)) for name in ("first", "second"))
    other = _bytes(miniature.build(tiny.model_copy(update={"seed": 1}), tmp_path / "other"))
    assert first == second
    assert first["mmpb_clean/sample.csv"] != other["mmpb_clean/sample.csv"]


def test_a_finished_benchmark_is_not_drawn_again_and_foreign_folders_are_left_alone(folder, tmp_path):
    before = (folder / "mmpb_clean/sample.csv").stat().st_mtime_ns
    assert miniature.build(SMALL, folder) == folder
    assert (folder / "mmpb_clean/sample.csv").stat().st_mtime_ns == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        miniature.build(SMALL, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_no_picture_and_no_fresh_pair_of_the_test_is_in_training(benchmark):
    pictures = {split: {e.image for e in benchmark.select(split)} for split in benchmark.splits}
    assert not pictures["train"] & (pictures["test"] | pictures["validation"] | pictures["unseen"])
    items = benchmark.annotations["item"]
    asked = {
        split: {
            (e.name, items[e.index]) for e in benchmark.select(split) if items[e.index] and not e.is_multiple_choice
        }
        for split in benchmark.splits
    }
    seen = benchmark.annotations["seen_pair"]
    for split in ("validation", "test"):
        for example in benchmark.select(split):
            if items[example.index] and not seen[example.index]:
                assert (example.name, items[example.index]) not in asked["train"]
    fresh = {split: {pair for pair in asked[split] if pair not in asked["train"]} for split in ("validation", "test")}
    assert fresh["test"] and not fresh["validation"] & fresh["test"]


def test_unseen_users_are_never_trained(benchmark):
    trained = set(benchmark.trained_users)
    assert len(trained) == SMALL.users
    assert not trained & {e.name for e in benchmark.select("unseen")}


def test_answers_follow_from_the_profiles(benchmark):
    items = benchmark.annotations["item"]
    for example in benchmark.examples.values():
        if example.category != "preference":
            continue
        own = benchmark.users[example.name].preferences[example.concept]
        if example.is_multiple_choice:
            right = own.likes if example.target == "like" else own.dislikes
            assert [option in right for option in example.options].index(True) == example.answer
            assert sum(option in right for option in example.options) == 1
        else:
            likes = items[example.index] in own.likes
            assert example.answer == (4 if likes != example.semantic_invert else 5)
            assert (example.name in example.bucket_names) == likes


def test_without_untold_likes_nothing_is_drawn_otherwise_than_before_there_were_any(folder, untold):
    marker = json.loads((folder / "miniature.json").read_text())
    assert marker["version"] == 3 and "untold" not in marker
    text = hashlib.blake2b(digest_size=16)
    for name in ("sample.csv", "annotations.csv", "split.json"):
        text.update((folder / "mmpb_clean" / name).read_bytes())
    assert text.hexdigest() == "856d6d3cac0e249b64c14d04751f9feb"  # by the code of the time before
    with_untold, _ = people.people(UNTOLD)
    without, _ = people.people(SMALL)
    assert [(p.name, p.face, p.preferences) for p in with_untold] == [(p.name, p.face, p.preferences) for p in without]


def likes_by_group(benchmark) -> dict[tuple, set[str]]:
    """What the questions of a benchmark say is liked, by facet and told preference."""
    found: dict[tuple, set[str]] = {}
    for index, row in benchmark.frame.iterrows():
        item, facet = benchmark.annotations["item"][index], row["concept"]
        yes_no = row["task_family"] == "preference_yesno" and row["l2-category"] == "awareness"
        if yes_no or (row["task_family"] == "preference_mcq" and row["target"] == "like"):
            found.setdefault((facet, benchmark.users[row["name"]].preferences[facet]), set()).add(item)
    return found


def test_untold_likes_are_the_groups_and_told_nowhere(untold):
    told = untold.annotations["told"]
    for (facet, preference), items in likes_by_group(untold).items():
        further = items - set(preference.likes)
        assert len(further) <= 2 and not further & set(preference.dislikes) and items <= set(ITEMS[facet])
    assert all(len(p.likes) == 2 for user in untold.users.values() for p in user.preferences.values())
    for index, row in untold.frame.iterrows():
        item, user = untold.annotations["item"][index], untold.users[row["name"]]
        assert (told[index] == "") == (row["category"] == "recognition")
        if told[index] == "untold":
            words = (row["preference"], user.description, str(user.preferences))
            assert not any(item in text for text in words)
        elif item:
            mentioned = {i for p in user.preferences.values() for i in p.likes + p.dislikes}
            assert told[index] == ("told" if item in mentioned else "other")


def test_no_question_takes_an_untold_like_for_none_and_holders_hold_what_they_do_not_tell(untold):
    everybody = {person.name: person for group in people.people(UNTOLD) for person in group}
    trained = [name for name in everybody if name in untold.trained_users]
    likes = {
        name: {item for facet in FACETS for item in person.preferences[facet].likes + person.untold[facet]}
        for name, person in everybody.items()
    }
    for index, row in untold.frame[untold.frame["category"] == "preference"].iterrows():
        item, own = untold.annotations["item"][index], likes[row["name"]]
        if row["task_family"] == "preference_mcq":
            right = "ABCD"[row["answer"]]
            wrong = [row[letter] for letter in "ABCD" if letter != right]
            assert row[right] == item and (item in own) == (row["target"] == "like")
            assert not set(wrong) & {i for items in everybody[row["name"]].untold.values() for i in items}
            assert row["target"] == "dislike" or not set(wrong) & own
        else:
            assert (row["l2-category"] == "awareness") == (item in own)
            assert (row["answer"] == 4) == ((item in own) != bool(row["preference_semantic_invert"]))
            holders = {name for name in (*trained, row["name"]) if item in likes[name]}
            assert set(untold.examples[index].bucket_names) == holders
        assert untold.annotations["popularity"][index] == sum(item in likes[name] for name in trained)


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_who_knows_what_groups_like_is_always_right_and_the_profile_reader_misses_what_is_untold(untold, split):
    found = references(untold, split)
    asked = {name: found[name][0].query("category == 'preference'") for name in (READER, GROUP)}
    assert asked[GROUP]["hit"].all()
    yes_no = asked[READER].query("`l2-category` != 'inconsistency'")
    assert ((yes_no["told"] == "untold") == (yes_no["hit"] == 0)).all() and (yes_no["told"] == "untold").any()


def test_the_test_asks_about_enough_untold_pairs_that_were_never_asked_in_training(tmp_path, monkeypatch):
    dot = Image.new("RGB", (1, 1))
    monkeypatch.setattr(miniature, "draw_items", lambda *_: dot)
    monkeypatch.setattr(miniature, "draw_people", lambda *_: dot)
    sizes = {"users": 40, "train_per_user": 40, "validation_per_user": 15, "test_per_user": 20, "untold": 2}
    root = miniature.build(MiniatureData(kind="miniature", **sizes), tmp_path / "data") / "mmpb_clean"
    frame = pd.read_csv(root / "sample.csv").merge(pd.read_csv(root / "annotations.csv"), on="index")
    yes_no = frame[frame["task_family"] == "preference_yesno"]
    likes = yes_no[yes_no["l2-category"] == "awareness"]
    [task] = json.loads((root / "split.json").read_text())[0]["tasks"]
    counts = {}
    for split in ("train", "validation", "test"):
        asked = likes[likes["index"].isin(task[f"{split}_idx"])]
        counts[split] = Counter(zip(asked["told"], asked["seen_pair"], strict=True))
    assert counts["test"] == {("untold", 0): 160, ("told", 0): 40, ("told", 1): 40}
    assert counts["train"] == {("told", 0): 240, ("untold", 0): 200}
    trained = yes_no[yes_no["index"].isin(task["train_idx"])]
    pairs = set(zip(trained["name"], trained["item"], strict=True))
    asked = likes[likes["index"].isin(task["test_idx"]) & (likes["told"] == "untold")]
    fresh = list(zip(asked["name"], asked["item"], strict=True))
    assert len(fresh) == len(set(fresh)) == 160 and not pairs & set(fresh)
    # What a group likes untold is trained with others of the group: only pairs are fresh, not items.
    assert set(asked["item"]) <= set(trained["item"])


def test_groups_have_the_stated_shares():
    users, _ = people.people(MiniatureData(kind="miniature", users=40))
    for facet in FACETS:
        sizes = sorted(Counter(user.preferences[facet] for user in users).values(), reverse=True)
        assert np.allclose(np.array(sizes) / 40, people.GROUP_SHARES, atol=0.026)


def test_faces_differ_and_descriptions_name_their_attributes():
    users, unseen = people.people(MiniatureData(kind="miniature", users=40))
    faces = [person.face for person in users + unseen]
    assert all(a.shared(b) <= 4 for i, a in enumerate(faces) for b in faces[:i])
    for face in faces:
        words = face.description()
        for name in ATTRIBUTES:
            value = getattr(face, name)
            assert value in ("shaven", "bare") or value in words


def test_a_lookalike_differs_in_as_many_attributes_as_asked():
    rng = np.random.default_rng(0)
    for changes in (1, 3, 6):
        face = Face.random(rng)
        assert face.shared(face.altered(rng, changes)) == len(ATTRIBUTES) - changes


def test_pictures_vary_but_their_size_does_not():
    rng = np.random.default_rng(0)
    drawn = [
        draw_items(["chess"], rng),
        draw_items(["chess"], rng),
        draw_items(["chess", "cats", "rings", "naps"], rng),
    ]
    drawn += [draw_people([Face.random(rng) for _ in range(n)], rng) for n in (1, 2, 3)]
    assert {picture.size for picture in drawn} == {(160, 160)}
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_every_facet_has_twelve_items_of_its_own():
    assert [len(ITEMS[facet]) for facet in FACETS] == [12] * 5
    assert len(ITEM_FACET) == 60


def test_full_names_are_two_known_words_and_no_two_users_have_the_same_two(tmp_path):
    users, unseen = people.people(MiniatureData(kind="miniature", users=300, full_names=True))
    words = [person.name.split(" ") for person in users + unseen]
    assert all(len(pair) == 2 and set(pair) <= set(people.NAMES) for pair in words)
    assert len({frozenset(pair) for pair in words}) == 308
    few = {"users": 4, "unseen_users": 1, "train_per_user": 5, "test_per_user": 5, "full_names": True}
    benchmark = mmpb.read(miniature.build(SMALL.model_copy(update=few), tmp_path / "data"))
    assert len(benchmark.users) == 5 and all(" " in name for name in benchmark.users)
    assert all(user.image.is_file() for user in benchmark.users.values())
    holders = {name for example in benchmark.examples.values() for name in example.bucket_names}
    assert holders and holders <= set(benchmark.users)


def test_too_many_users_for_the_names_are_refused():
    with pytest.raises(ValueError, match="names"):
        people.people(MiniatureData(kind="miniature", users=200))
