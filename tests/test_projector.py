"""How the small edition's projector learns from drawings and photographs, and what of it is shipped."""

import json
import shutil
from pathlib import Path

import numpy as np
import projector
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny
from torch import nn

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.smollm2_lite import AssemblyError
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET
from prefmoe.system.files import write_json


def test_places_of_a_drawing_are_named_by_what_is_drawn_there() -> None:
    items, four, one, two, three = projector.drawings(1, 1, 3, seed=5)
    words = list(ITEM_FACET)
    assert items.answer == words[0] and (items.labels[..., 0] == 0).all() and (items.labels[..., 1:] == -1).all()
    corners = [four.labels[row, column, 0] for row in (0, 6) for column in (0, 6)]
    assert four.answer == "{}, {}, {} and {}".format(*(words[index] for index in corners))
    assert (four.labels[3] == -1).all() and (four.labels[:, 3] == -1).all()
    for lesson, count in ((one, 1), (two, 2), (three, 3)):
        seen = {tuple(row) for row in lesson.labels[0, :, 1:].tolist() if row[0] >= 0}
        assert len(seen) == count and (lesson.labels[..., 0] == -1).all()
        for values in seen:
            for words_of, value in zip(ATTRIBUTES.values(), values, strict=True):
                word = list(words_of)[value]
                assert word in lesson.answer or word in ("shaven", "bare")
    assert three.answer.startswith("On the left is a person") and "On the right is a person" in three.answer
    assert np.array_equal(np.asarray(two.picture()), np.asarray(two.picture()))


@pytest.fixture(scope="module")
def lite_folder(tmp_path_factory) -> Path:
    """A tiny model of the small edition's class that knows the words of drawings, with a card."""
    lessons = projector.drawings(60, 3, 9, seed=0)
    words = " ".join([f"{lesson.question} {lesson.answer}" for lesson in lessons])
    words += " ".join(word for column in projector.COLUMNS for word in column)
    folder = save_tiny("llava_lite", tmp_path_factory.mktemp("lite") / "model", words=words)
    write_json(folder / smollm2_lite.CARD, {"language_model": "tiny", "vision_tower": "tiny", "projector": "random"})
    return folder


@torch.no_grad()
def test_the_loss_of_captions_is_the_models_own(lite_folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(lite_folder)
    lessons = projector.drawings(2, 1, 2, seed=3, side=2)
    states = projector.features(backbone, lessons, tmp_path / "features")
    found = projector.Captions(backbone, states, lessons, batch=5)(np.random.default_rng(0))
    encoded = [
        encode(
            backbone,
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"\n{lesson.question}\n"}]}],
            [lesson.picture()],
            lesson.answer,
        )
        for lesson in lessons
    ]
    batch = pad(encoded, backbone.pad_token_id)
    logits = backbone.model(**batch.inputs).logits[:, :-1]
    target = batch.labels[:, 1:]
    chosen = logits.log_softmax(-1).gather(-1, target.clamp_min(0).unsqueeze(-1))[..., 0]
    torch.testing.assert_close(found, -chosen[target != -100].mean(), rtol=5e-3, atol=5e-3)  # features are rounded


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    inputs, target = torch.randn(64, 5), torch.randn(64, 3)

    def train(path: Path, stop: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))
        seen = 0

        def loss(rng: np.random.Generator) -> torch.Tensor:
            nonlocal seen
            seen += 1
            if stop is not None and seen > stop:
                raise KeyboardInterrupt
            rows = torch.from_numpy(rng.integers(64, size=8))
            return nn.functional.mse_loss(module(inputs[rows]), target[rows])

        spent[path.stem] = projector.fit(module, loss, path, steps=12, lr=1e-2, every=4)
        return module

    spent: dict[str, float] = {}
    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.safetensors", stop=6)
    resumed = train(tmp_path / "cut.safetensors")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    took = spent["whole"]
    assert (whole[0].weight - train(tmp_path / "whole.safetensors", stop=0)[0].weight).abs().max() == 0
    assert spent["whole"] == pytest.approx(took, abs=0.1) and took > 0, "what is finished takes no more time"


def test_the_first_stage_changes_the_projector_alone(lite_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lite_folder, tmp_path / "model")
    recipe = {
        "drawings": {"items": 60, "quarters": 3, "people": 9},
        "words": {"steps": 60, "batch": 64, "lr": 1e-2},
        "captions": {"steps": 3, "batch": 4, "lr": 1e-3},
    }
    unseen = {"items": 6, "quarters": 0, "people": 3}
    card = projector.teach(folder, "drawings", work=tmp_path / "work", recipe=recipe, unseen=unseen)
    assert {name: measured["n"] for name, measured in card["abilities"].items()}.keys() == {
        "naming items of unseen drawings", "nearest word of unseen items", "attributes said of unseen people"
    }  # fmt: skip
    before, after = (load_file(path / "model.safetensors") for path in (lite_folder, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("projector" in name for name in changed)
    backbone = load_backbone(folder)
    lessons = projector.drawings(**recipe["drawings"], seed=0, side=2)
    states = projector.features(backbone, lessons, tmp_path / "features")
    labels = np.stack([lesson.labels for lesson in lessons]).reshape(len(lessons), 4, -1)
    losses, trained = [], {name: value.clone() for name, value in backbone.projector.state_dict().items()}
    for weights in (smollm2_lite.new_projector(backbone.model.config, 0), trained):
        backbone.projector.load_state_dict(weights)
        with torch.no_grad():
            losses.append(float(projector.Words(backbone, states, labels, batch=256)(np.random.default_rng(9))))
    assert losses[1] < losses[0]
    shipped = projector.ship(folder, tmp_path / "shipped/projector.safetensors")
    assert shipped.stat().st_size < 6e6
    for name, value in load_file(shipped).items():
        assert torch.equal(value.float(), next(v for key, v in after.items() if key.endswith(f"projector.{name}")))
    assert json.loads(shipped.with_suffix(".json").read_text())["sha256"] == smollm2_lite.sha256(shipped)


def test_what_photographs_taught_is_not_shipped(lite_folder: Path, tiny_benchmark, tmp_path: Path, monkeypatch) -> None:
    folder = shutil.copytree(lite_folder, tmp_path / "model")
    monkeypatch.setattr(projector, "load_benchmark", lambda edition: tiny_benchmark)
    recipe = {"photographs": {"steps": 2, "batch": 4, "lr": 1e-2}}
    unseen = {"items": 1, "quarters": 0, "people": 1}
    card = projector.teach(folder, "photographs", work=tmp_path / "work", recipe=recipe, unseen=unseen)
    shown = projector.photographs(tiny_benchmark)
    assert card["pictures"] == len(shown) and {lesson.question for lesson in shown} == {"Describe this picture."}
    assert {lesson.answer for lesson in shown} == {f"A person with {hair} hair." for hair in ("red", "blue")}
    with pytest.raises(AssemblyError, match="holds no projector that was made from drawings alone"):
        projector.ship(folder, tmp_path / "shipped.safetensors")
    assert not (tmp_path / "shipped.safetensors").exists()
