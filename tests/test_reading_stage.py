"""How the small edition's language model practises reading profiles; how what it learned is shipped and put back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining.conversations import Conversations
from pretraining.miniatures import vocabulary
from projector import drawings, features, reading, teach
from safetensors.torch import load_file
from tiny_models import save_tiny

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.smollm2_lite import AssemblyError
from prefmoe.data.prompts import message
from prefmoe.system.files import write_json

RECIPE = {
    "drawings": {"items": 60, "quarters": 3, "people": 0},
    "updates": {"rank": 2, "alpha": 6},
    "words": {"lesson": 2, "steps": 2, "lr": 1e-2},
    "pictures": {**reading.FULL, "facets": 2, "questions": 2, "pictures": True, "steps": 2, "lr": 1e-2},
}


@pytest.fixture(scope="module")
def lite_folder(tmp_path_factory) -> Path:
    """A tiny model of the small edition's class that knows the words of conversations, with a card."""
    folder = save_tiny("llava_lite", tmp_path_factory.mktemp("lite") / "model", words=" ".join(vocabulary()))
    write_json(folder / smollm2_lite.CARD, {"language_model": "tiny", "vision_tower": "tiny", "projector": "random"})
    return folder


@pytest.fixture(scope="module")
def backbone(lite_folder: Path) -> Backbone:
    return load_backbone(lite_folder)


@pytest.fixture(scope="module")
def seen(backbone: Backbone, tmp_path_factory) -> tuple[torch.Tensor, list]:
    """Features and lessons of some drawings."""
    lessons = drawings(**RECIPE["drawings"], seed=0, side=2)
    return features(backbone, lessons, tmp_path_factory.mktemp("features")), lessons


def chat(turns) -> list[dict]:
    """A conversation as benchmarks' questions are asked: a line break before and behind what is to be answered."""
    asked = [say.role == "user" and after.learn for say, after in zip(turns, [*turns[1:], turns[-1]], strict=True)]
    texts = [f"\n{say.text.rstrip()}\n" if ask else say.text for say, ask in zip(turns, asked, strict=True)]
    return [message(say.role, text, pictures=len(say.pictures)) for say, text in zip(turns, texts, strict=True)]


@pytest.mark.parametrize("part", [RECIPE["words"], RECIPE["pictures"]], ids=["words", "pictures"])
@torch.no_grad()
def test_conversations_and_their_loss_are_those_of_the_models_own_prompts(backbone, seen, part) -> None:
    """The last question of each as `encode` writes it, and the model's own forward pass behind it."""
    states, lessons = seen
    loss = reading.Reading(backbone, states, lessons, part)
    for turns in loss.conversations(np.random.default_rng(3), 4):
        ids, said, pictures = reading.tokenized(backbone, turns, states.shape[1])
        images = [lessons[index].picture() for index in pictures]
        encoded = encode(backbone, chat(turns[:-1]), images, turns[-1].text)
        assert ids.tolist() == encoded.input_ids.tolist()
        assert said.sum() == 2 * sum(say.learn for say in turns)  # a word and the end of the turn
        logits, wanted = loss.answers([turns])
        whole = backbone.model(**pad([encoded], backbone.pad_token_id).inputs).logits[0, :-1][said[1:]]
        assert wanted.tolist() == ids[said].tolist()
        torch.testing.assert_close(logits, whole, rtol=2e-2, atol=2e-2)  # features are kept in half precision


@torch.no_grad()
def test_neighbours_in_a_batch_change_no_answer(backbone, seen) -> None:
    loss = reading.Reading(backbone, *seen, RECIPE["pictures"])
    talks = loss.conversations(np.random.default_rng(8), 5)
    together, _ = loss.answers(talks)
    alone = torch.cat([loss.answers([turns])[0] for turns in talks])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_parts_ask_what_the_recipe_says(backbone, seen) -> None:
    def asked(**part) -> list[str]:
        loss = reading.Reading(backbone, *seen, {**reading.FULL, **part})
        talks = loss.conversations(np.random.default_rng(0), 40)
        return [say.text for turns in talks for say, after in zip(turns, turns[1:], strict=False) if after.learn]

    plain, turned, four = asked(negated=0, choices=0), asked(negated=1, choices=0), asked(choices=1)
    assert len(plain) == len(four) == 240
    assert not any(" not " in text for text in plain) and all(" not " in text for text in turned)
    assert all("Options:" in text for text in four) and not any("Options:" in text for text in plain)
    default, same = (Conversations(None, np.random.default_rng(5), *share) for share in ((), (0.3,)))
    assert default.preferences(3, 20) == same.preferences(3, 20), "the miniatures' conversations are as they were"


def test_what_is_learned_is_in_the_decoders_weights_alone_and_comes_back_from_the_package(
    lite_folder, tmp_path, monkeypatch
) -> None:
    folder = shutil.copytree(lite_folder, tmp_path / "model")
    card = reading.teach(folder, work=tmp_path / "work", recipe=RECIPE, count=3)
    before, after = (load_file(path / smollm2_lite.WEIGHTS) for path in (lite_folder, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 3 * len(reading.LINEAR) and all(".layers." in name for name in changed)
    assert card["abilities"].keys() == card["abilities before"].keys() and len(card["abilities"]) == 4
    assert all(measured["n"] == 3 for measured in card["abilities"].values())
    shipped = reading.ship(folder, tmp_path / "shipped/reading.safetensors")
    told = json.loads(shipped.with_suffix(".json").read_text())
    assert told["sha256"] == smollm2_lite.sha256(shipped) and told["recipe"]["updates"] == RECIPE["updates"]
    learned = load_file(shipped)
    for name in changed:
        layer = name[name.index("layers.") :].removesuffix(".weight")
        a, b = (learned[f"{layer}.{matrix}"].double() for matrix in "AB")
        assert a.shape[0] == b.shape[1] == 2
        torch.testing.assert_close(after[name].double(), before[name].double() + b @ a, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssemblyError, match="model can read; `prefmoe fetch smollm2 --unread` makes one that cannot"):
        reading.teach(folder, work=tmp_path / "work", recipe=RECIPE, count=3)
    with pytest.raises(AssemblyError, match="model can read; `prefmoe fetch smollm2 --unread` makes one that cannot"):
        teach(folder, "drawings", work=tmp_path / "work")
    again = smollm2_lite.with_reading(before, learned)
    assert all(torch.equal(again[name], after[name]) for name in after)
    with pytest.raises(AssemblyError, match=r"expected one weight of layers.0.mlp.down_proj, found 0"):
        smollm2_lite.with_reading({"other": torch.ones(2)}, {"layers.0.mlp.down_proj.A": torch.ones(1, 2)})


def test_what_is_shipped_is_what_its_recipe_makes() -> None:
    card = json.loads(smollm2_lite.READING.with_suffix(".json").read_text())
    assert card["recipe"] == {**reading.RECIPE, "conversations": reading.CONVERSATIONS}
    assert card["sha256"] == smollm2_lite.sha256(smollm2_lite.READING)
    assert smollm2_lite.READING.stat().st_size < 6e6
    learned, rank = load_file(smollm2_lite.READING), reading.RECIPE["updates"]["rank"]
    assert len(learned) == 2 * 30 * len(reading.LINEAR)  # as many layers as SmolLM2-135M has
    for name, factor in learned.items():
        assert rank == factor.shape[0 if name.endswith(".A") else 1] and factor.float().abs().max() > 0


def test_the_update_that_training_sees_is_the_one_that_is_kept(lite_folder, seen, tmp_path) -> None:
    """alpha / rank is part of what is kept: the folder answers as the model with its updates did."""
    folder = shutil.copytree(lite_folder, tmp_path / "model")
    reading.teach(folder, work=tmp_path / "work", recipe=RECIPE, count=1)
    kept = load_file(folder / smollm2_lite.READING.name)
    backbone = load_backbone(lite_folder)
    updates = reading.low_rank_updates(backbone, **RECIPE["updates"])
    part = RECIPE["pictures"]
    (place,) = (tmp_path / "work").glob("*/pictures.safetensors")
    trained = load_file(place)
    with torch.no_grad():
        for name, parameter in updates.items():
            parameter.copy_(trained[name])
            wanted = parameter * (3 if name.endswith("B") else 1)
            torch.testing.assert_close(kept[name.replace("/", ".")].float(), wanted, rtol=1e-3, atol=1e-6)
        talks = reading.Reading(backbone, *seen, part).conversations(np.random.default_rng(1), 3)
        answers = [reading.Reading(one, *seen, part).answers(talks)[0] for one in (backbone, load_backbone(folder))]
    torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)
