"""Cards of backbones: their parts add up, their abilities come with the right level of chance."""

import json

import pytest
from notebook_cells import cells

from prefmoe.backbones import cards
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import BackboneError, find_backbone


@pytest.fixture
def card(monkeypatch, tmp_path):
    """Writes a card for a backbone whose folder is a temporary one."""
    entry = find_backbone("llava-mini").model_copy(update={"folder": tmp_path})
    monkeypatch.setattr(cards, "find_backbone", lambda name: entry)

    def write(**content) -> None:
        (tmp_path / cards.CARD).write_text(json.dumps(content))

    return write


@pytest.mark.parametrize("name", cards.shipped())
def test_parts_of_a_backbone_add_up_to_the_whole(name):
    backbone = load_backbone(name)
    sizes = cells("03", "part-sizes")["part_sizes"](backbone)
    assert sizes.name == name and sizes.sum() == sum(p.numel() for p in backbone.model.parameters())


def test_abilities_come_with_their_level_of_chance(card):
    measured = {"naming an item": 60, "place from portrait": 4, "preference yes/no": 2, "presence from description": 2}
    card(abilities={name: {"accuracy": 0.9, "n": 100} for name in measured})
    table = cards.abilities(["llava-mini"]).set_index("ability")
    assert table["chance"].to_dict() == pytest.approx({name: 1 / answers for name, answers in measured.items()})
    assert set(table["value"]) == {0.9} and set(table["n"]) == {100} and set(table["backbone"]) == {"llava-mini"}


def test_a_card_that_is_missing_or_says_nothing_is_named(card):
    with pytest.raises(BackboneError, match="miniature.json is missing"):
        cards.read_card("llava-mini")
    card(weights_blake2b="0")
    with pytest.raises(BackboneError, match="miniature.json, abilities: expected name"):
        cards.read_card("llava-mini")


def test_a_backbone_without_shipped_weights_has_no_card():
    with pytest.raises(BackboneError, match="not shipped; llava-mini"):
        cards.read_card("llava-1.5-7b")


def test_a_rung_of_the_ladder_has_the_card_beside_its_weights(monkeypatch, tmp_path):
    name = "llava-mini-half"
    monkeypatch.setenv("PREFMOE_WEIGHTS", str(tmp_path))
    with pytest.raises(BackboneError, match=f"{name} does not exist; make it once with"):
        cards.read_card(name)
    (tmp_path / name).mkdir()
    card = {"abilities": {"preference yes/no": {"accuracy": 0.75, "n": 40}}}
    (tmp_path / name / cards.CARD).write_text(json.dumps(card))
    assert cards.abilities([name]).to_dict("records") == [
        {"backbone": name, "ability": "preference yes/no", "value": 0.75, "n": 40, "chance": 0.5}
    ]
