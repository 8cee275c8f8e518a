"""What a rater knows of users, and the probes on it: states one by one, layers that are known to know something."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter
from small_choices import benchmark, method

from prefmoe import config
from prefmoe.backbones.histories import Session
from prefmoe.data.choices import HistoryError
from prefmoe.generation import probes
from prefmoe.generation.states import History, target_states, user_states
from prefmoe.models.raters import Rater
from prefmoe.running.choices import session

PROBES = TypeAdapter(config.Method).validate_python(
    {"kind": "probes", "label": "Probes", "begins_with": "Ranked", "users": 4, "draws": 3}
)


@pytest.fixture(scope="module")
def rater() -> Rater:
    return method("Ranked").eval()


def histories(count: int = 3, n_ref: int = 3) -> list[History]:
    return [History(user, n_ref - k % 2, k) for k, user in enumerate(list(benchmark().users)[:count])]


@torch.no_grad()
def test_states_are_hidden_states_at_each_target_alone(rater):
    own = list(benchmark().by_user("test").values())
    sessions = [
        session(benchmark(), own[0], n_ref=3, draw=0, pairs=True),
        session(benchmark(), own[1][:1], n_ref=2, draw=1, pairs=True),
    ]
    found = target_states(rater, sessions)
    layers = rater.backbone.model.config.text_config.num_hidden_layers
    for one, states in zip(sessions, found, strict=True):
        assert states.shape == (len(one.targets), layers, rater.backbone.hidden_size)
        for k, target in enumerate(one.targets):
            batch = rater.collator([Session(one.history, (target,))])
            torch.testing.assert_close(states[k, -1], rater.hidden(batch)[0, batch.target[0, 0]], rtol=1e-4, atol=1e-5)


def test_a_user_is_the_means_over_liked_and_over_disliked_pictures_of_the_history(rater):
    told = histories()
    found = user_states(rater, told)
    for one, states in zip(told, found, strict=True):
        entries = one.entries(benchmark())
        for side, label in enumerate("+-"):
            targets = tuple((entry.picture, entry.prompt) for entry in entries if entry.label == label)
            (alone,) = target_states(rater, [Session(entries, targets)])
            torch.testing.assert_close(states[side], alone.mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0, 0], found[0, 1])
    assert torch.equal(user_states(rater, told[:1]), user_states(rater, told[:1]))


def test_a_user_without_liked_pictures_and_one_with_too_few_are_refused(rater):
    name = next(iter(benchmark().users))
    with pytest.raises(HistoryError, match=f"user '{name}' without liked pictures"):
        user_states(rater, [History(name, 0, 0)])
    with pytest.raises(HistoryError, match=f"user '{name}' has 6 choices.*n_ref = 7"):
        user_states(rater, [History(name, 7, 0)])


def test_the_first_liked_picture_of_a_history_is_one_of_it():
    one = histories()[0]
    liked = {choice.liked for choice in benchmark().history(one.user, one.n_ref, one.draw)}
    assert one.liked(benchmark()) in liked


# --- probes


def planted(kind: str, layers: int = 3, width: int = 6):
    """States of which only layer 2 knows something: taste (the sign of a liked picture's states) or identity."""
    generator = torch.Generator().manual_seed(3)
    numbers = {user: torch.randn(width, generator=generator) for user in benchmark().users}

    def targets(rater, sessions):
        found = []
        for one in sessions:
            states = torch.randn(len(one.targets), layers, width, generator=generator)
            sign = torch.tensor([3.0, -3.0]).repeat(len(one.targets) // 2)
            states[:, 1] = 0.3 * states[:, 1] + sign[:, None]
            found.append(states)
        return found

    def users(rater, told):
        states = torch.randn(len(told), 2, layers, width, generator=generator)
        known = torch.stack([numbers[one.user] for one in told])
        states[:, :, 1] = 0.05 * states[:, :, 1] + 3 * known[:, None]
        return states

    return targets if kind == "targets" else users


def test_probes_find_the_layer_that_knows(monkeypatch, rater):
    monkeypatch.setattr(probes, "target_states", planted("targets"))
    monkeypatch.setattr(probes, "user_states", planted("users"))
    found = probes.probe(rater, PROBES, n_ref=3, seed=0)
    assert list(found.columns) == list(probes.COLUMNS)
    means = found.groupby(["task", "split", "layer"])["value"].mean().unstack("layer")
    assert (means[2] == 1).all() and (means[[1, 3]] < 0.8).all(axis=None)
    assert probes.chosen_layer(found, [1, 2, 3]) == 2 and probes.chosen_layer(found, [3]) == 3


def test_probes_judge_pictures_and_histories_that_they_did_not_learn_from(monkeypatch, rater):
    learned, shown = [], []
    monkeypatch.setattr(probes, "target_states", lambda r, some: shown.extend(some) or planted("targets")(r, some))
    monkeypatch.setattr(probes, "user_states", lambda r, told: learned.extend(told) or planted("users")(r, told))
    found = probes.probe(rater, PROBES, n_ref=3, seed=0)
    for one in shown:
        assert not {file for file, _ in one.targets} & {entry.picture for entry in one.history}
    by_user: dict[str, dict[frozenset, set]] = {}
    for one in learned:
        pictures = {entry.picture for entry in one.entries(benchmark())}
        by_user.setdefault(one.user, {}).setdefault(frozenset(c.index for c in one.without), set()).update(pictures)
    assert len(by_user) == 8  # four users to choose layers with, four others to report on
    for halves in by_user.values():
        first, second = halves.values()
        assert not first & second
    assert set(found.loc[found["task"] == "intra", "split"]) == {"validation", "test"}
    seen = {choice.index for choice in benchmark().select("test")} | {c.index for c in benchmark().select("unseen")}
    assert set(found[(found["task"] == "intra") & (found["split"] == "test")]["case"]) == seen


def test_too_few_users_to_tell_apart_are_named():
    few = replace(benchmark(), splits=benchmark().splits | {"train": benchmark().splits["train"][:2]})
    with pytest.raises(HistoryError, match=r"expected four users or more in the split train.*; found \d"):
        probes._inter_users(few, 4)


def test_a_layer_is_chosen_by_validation_alone():
    rows = [(layer, task, split, "u", 0, value) for layer, task, split, value in (
        (1, "intra", "validation", 0.6), (2, "intra", "validation", 0.9), (1, "inter", "validation", 0.5),
        (2, "inter", "validation", 0.4), (1, "intra", "test", 1.0), (2, "intra", "test", 0.0),
    )]  # fmt: skip
    assert probes.chosen_layer(pd.DataFrame(rows, columns=list(probes.COLUMNS)), [1, 2]) == 2


def test_probes_on_a_real_rater_are_right_more_often_than_never(rater):
    found = probes.probe(rater, PROBES, n_ref=3, seed=0)
    assert np.isin(found["value"], [0.0, 1.0]).all() and 0.3 < found.loc[found["task"] == "intra", "value"].mean() < 0.8
