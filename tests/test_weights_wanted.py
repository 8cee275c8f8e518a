"""Weights that can do less than they are made for do not replace the shipped ones, and are said to be so elsewhere."""

import json
import logging

import pretraining
import projector
import pytest
import torch
from pretraining import abilities, choosing, drawer
from pretraining.errors import PretrainingError
from pretraining.judging import judge
from projector import reading, training

from prefmoe.system.places import CHOICE_MINIATURE, DRAWER, MINIATURES, PACKAGE

WANTED = {
    **dict.fromkeys(MINIATURES, abilities.WANTED),
    CHOICE_MINIATURE: choosing.WANTED,
    DRAWER: drawer.WANTED,
}
CARDS = {f"{name}/miniature": wanted for name, wanted in WANTED.items()} | {
    "smollm2-lite/projector": projector.WANTED,
    "smollm2-lite/reading": reading.WANTED,
}


def measured(**accuracies: float) -> dict:
    return {name.replace("_", " "): {"accuracy": value, "n": 100} for name, value in accuracies.items()}


@pytest.mark.parametrize("name", CARDS)
def test_the_shipped_weights_can_what_they_are_made_for(name):
    card = json.loads((PACKAGE / f"weights/{name}.json").read_text(encoding="utf-8"))
    assert min(CARDS[name].values()) > 0.3
    judge(card["abilities"], CARDS[name], name, replaces=True)


def test_what_was_not_learned_is_named_with_what_was_wanted(caplog):
    found, wanted = measured(reading=0.98, knowing_people=0.559), {"reading": 0.9, "knowing people": 0.85}
    message = r"mini has learned too little: knowing people 0.56 \(0.85 was wanted\); another seed may .*: --seed 4"
    with pytest.raises(PretrainingError, match=rf"{message}\. The shipped weights stay, and what was made is kept"):
        judge(found, wanted, "mini", seed=3, replaces=True)
    with caplog.at_level(logging.WARNING):
        judge(found, wanted, "mini", replaces=False)
    assert "knowing people 0.56" in caplog.text and "reading" not in caplog.text and "seed" not in caplog.text
    judge(found, {"reading": 0.98}, "mini", seed=3, replaces=True)


class Weights:
    """Untrained miniatures, measured as ``accuracy`` in everything; where they are written is noted."""

    def __init__(self, monkeypatch, accuracy: float):
        found = {name: {"accuracy": accuracy, "n": 100} for wanted in WANTED.values() for name in wanted}
        self.written: list = []
        for module in (pretraining, choosing, drawer):
            monkeypatch.setattr(module, "finished", lambda *_: 0.0)
        for module, names in (
            (pretraining, ("pool_without_users", "pool_features")), (choosing, ("draw_choice_pool", "all_tokens")),
            (drawer, ("draw_small_pool", "draw_item_masks", "unseen_captions")),
        ):  # fmt: skip
            for name in names:
                monkeypatch.setattr(module, name, lambda *_, **__: ())
        for module, name in ((pretraining, "measure_abilities"), (choosing, "measure_sorting"),
                             (drawer, "measure_drawing"), (drawer, "measure_reading")):  # fmt: skip
            monkeypatch.setattr(module, name, lambda *_, **__: found)
        for module, name, place in ((pretraining, "save", -2), (choosing, "write", 2)):
            monkeypatch.setattr(module, name, lambda *given, place=place: self.written.append(given[place]))


@pytest.mark.parametrize("name", WANTED)
def test_worse_weights_do_not_replace_the_shipped_ones(name, tmp_path, monkeypatch, caplog):
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    monkeypatch.setattr(pretraining, "WEIGHTS", package)
    monkeypatch.setattr(choosing, "FOLDER", package / CHOICE_MINIATURE)
    monkeypatch.setattr(drawer, "FOLDER", package / DRAWER)
    weights = Weights(monkeypatch, accuracy=0.35)
    makers = {CHOICE_MINIATURE: choosing.pretrain_choices, DRAWER: drawer.pretrain_drawer}
    monkeypatch.setattr(pretraining, "adopt_language_model", lambda *_: None)

    def make(**more):
        return makers[name](work=tmp_path / "work", **more) if name in makers else pretraining.pretrain(
            name, work=tmp_path / "work", **more)  # fmt: skip

    with pytest.raises(PretrainingError, match=f"{name} has learned too little: .* The shipped weights stay"):
        make()
    assert not package.exists() and not weights.written
    with caplog.at_level(logging.WARNING):
        assert make(folder=elsewhere) == elsewhere
    assert "has learned too little" in caplog.text and (weights.written == [elsewhere] or elsewhere.is_dir())
    weights = Weights(monkeypatch, accuracy=0.99)
    assert make() == package / name
    assert weights.written == [package / name] or (package / name).is_dir()


def test_a_part_of_the_small_backbone_is_not_replaced_by_a_worse_one(tmp_path, monkeypatch, caplog):
    card, tensors = {"abilities": measured(reading=0.4)}, {"A": torch.ones(2)}
    monkeypatch.setattr(training, "PACKAGE", tmp_path / "package")
    place = tmp_path / "package/weights/part.safetensors"
    with pytest.raises(PretrainingError, match=r"part has learned too little: reading 0.40 .* shipped weights stay"):
        training.ship_part(tensors, card, place, {"reading": 0.9})
    assert not place.exists()
    with caplog.at_level(logging.WARNING):
        assert training.ship_part(tensors, card, tmp_path / "part.safetensors", {"reading": 0.9}).is_file()
    assert "part has learned too little" in caplog.text
    assert training.ship_part(tensors, card, place, {"reading": 0.4}) == place and place.is_file()
