"""The miniature benchmark: deterministic, skewed as it says; splits share neither pictures nor fresh pairs."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from prefmoe.config import MiniatureData
from prefmoe.data import miniature, mmpb
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


def test_groups_have_the_stated_shares():
    users, _ = miniature.people(MiniatureData(kind="miniature", users=40))
    for facet in FACETS:
        sizes = sorted(Counter(user.preferences[facet] for user in users).values(), reverse=True)
        assert np.allclose(np.array(sizes) / 40, miniature.GROUP_SHARES, atol=0.026)


def test_faces_differ_and_descriptions_name_their_attributes():
    users, unseen = miniature.people(MiniatureData(kind="miniature", users=40))
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
    users, unseen = miniature.people(MiniatureData(kind="miniature", users=300, full_names=True))
    words = [person.name.split(" ") for person in users + unseen]
    assert all(len(pair) == 2 and set(pair) <= set(miniature.NAMES) for pair in words)
    assert len({frozenset(pair) for pair in words}) == 308
    few = {"users": 4, "unseen_users": 1, "train_per_user": 5, "test_per_user": 5, "full_names": True}
    benchmark = mmpb.read(miniature.build(SMALL.model_copy(update=few), tmp_path / "data"))
    assert len(benchmark.users) == 5 and all(" " in name for name in benchmark.users)
    assert all(user.image.is_file() for user in benchmark.users.values())
    holders = {name for example in benchmark.examples.values() for name in example.bucket_names}
    assert holders and holders <= set(benchmark.users)


def test_too_many_users_for_the_names_are_refused():
    with pytest.raises(ValueError, match="names"):
        miniature.people(MiniatureData(kind="miniature", users=200))
