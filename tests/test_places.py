"""Folders that users name are the same for every command, wherever it runs; and what is not there is said by name."""

import shutil
from pathlib import Path

import pretrain as command
import pytest
import yaml
from pretraining import PretrainingError, pretrain
from pretraining.miniatures import FOLDERS
from small_world import model_folder

from prefmoe.backbones import cards
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import MMPBData, load_edition, registry
from prefmoe.config.registry import BackboneError, find_backbone
from prefmoe.data.sources import SourceError, prepare_data
from prefmoe.system import places


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone and a home folder to put things into, while commands run somewhere else."""
    for name in ("clone", "home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(places, "ROOT", tmp_path / "clone")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "clone"


@pytest.mark.parametrize("setting", [True, False], ids=["data.folder", "PREFMOE_DATA"])
@pytest.mark.parametrize("given", ["data/real", "~/data", "{absolute}"])
def test_data_are_found_from_everywhere(clone, monkeypatch, setting, given):
    known = {"data/real": clone / "data/real", "~/data": clone.parent / "home/data"}
    where = known.get(given, clone.parent / "absolute")
    (where / "mmpb_clean").mkdir(parents=True)
    given = given.format(absolute=where)
    monkeypatch.delenv("PREFMOE_DATA", raising=False)
    if not setting:
        monkeypatch.setenv("PREFMOE_DATA", given)
    data = MMPBData(kind="mmpb", folder=given if setting else None)
    assert places.data_folder(data.folder) == where
    assert prepare_data(load_edition("sample").model_copy(update={"data": data})) == where


def test_data_that_are_not_there_are_named_by_the_whole_path(clone, monkeypatch):
    monkeypatch.setenv("PREFMOE_DATA", "data")
    with pytest.raises(SourceError, match=f"PREFMOE_DATA is '{clone}/data', but {clone}/data/mmpb_clean is not"):
        prepare_data(load_edition("sample"))


@pytest.mark.parametrize(("given", "place"), [("weights", "clone/weights"), ("~/w", "home/w")])
def test_weights_are_found_from_everywhere(clone, monkeypatch, given, place):
    shutil.copytree(model_folder(), clone.parent / place / "llava-1.5-7b")
    monkeypatch.setenv("PREFMOE_WEIGHTS", given)
    assert places.weights_folder("llava-1.5-7b") == clone.parent / place / "llava-1.5-7b"
    assert places.weights_folder("llava-1.5-13b") is None
    assert load_backbone("llava-1.5-7b").hidden_size == 32


@pytest.fixture
def own_entry(tmp_path, monkeypatch) -> str:
    """A registry with one more backbone, in a folder outside the package."""
    content = yaml.safe_load(places.REGISTRY.read_text(encoding="utf-8"))
    content["backbones"]["own"] = {"folder": str(model_folder()), "model_class": "LlavaForConditionalGeneration"}
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(content))
    entries = registry.read_registry(path)
    monkeypatch.setattr(registry, "read_registry", lambda: entries)
    monkeypatch.setattr(cards, "read_registry", lambda: entries)
    monkeypatch.setattr(places, "registered", lambda: content["backbones"])
    return "own"


def test_a_folder_in_the_registry_is_a_backbone_but_no_miniature(own_entry, capsys):
    assert find_backbone(own_entry).folder == model_folder() == places.weights_folder(own_entry)
    assert cards.shipped() == list(places.MINIATURES)
    with pytest.raises(SystemExit):
        command.main([own_entry])
    assert "invalid choice: 'own'" in capsys.readouterr().err
    with pytest.raises(PretrainingError, match="there is no recipe for 'own', only for llava-mini, qwen2.5-vl-mini"):
        pretrain(own_entry)


def test_the_miniatures_are_those_with_a_recipe():
    assert tuple(FOLDERS.values()) == places.MINIATURES


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(BackboneError, match="did you mean 'llava-mini'"):
        find_backbone("LLAVA-mini")
