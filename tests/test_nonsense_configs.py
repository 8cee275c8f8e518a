"""A config.json with words in the place of numbers, or numbers that do not go together: named wherever it is read; and
other settings of another form."""

import json
import re
import shutil
from pathlib import Path

import pytest
from any_models import save_any
from small_world import model_folder, small_benchmark, small_edition
from tiny_drawers import tiny_drawer

from prefmoe.backbones import whole
from prefmoe.backbones.loading import load_backbone
from prefmoe.cli import main
from prefmoe.config.registry import BackboneError
from prefmoe.generation.drawer import Drawer, DrawerError
from prefmoe.generation.reader import AttributeReader, ReaderError, load_reader
from prefmoe.running import asking

WIDE, HEADS, NONE = {"hidden_size": "wide"}, {"num_attention_heads": 10}, {"num_attention_heads": 0}
FEWER = {"num_hidden_layers": -1}, "num_hidden_layers: expected a number from 1, found -1$"

NONSENSE = [
    (WIDE, "'hidden_size' expected int, got str"),
    (HEADS, "is not a multiple of the number of attention heads"),
    (NONE, "text_config.num_attention_heads: expected a number from 1, found 0$"),
    FEWER,
    ({"vocab_size": -5}, "text_config.vocab_size: expected a number from 1, found -5$"),
    ({"max_position_embeddings": 0}, "text_config.max_position_embeddings: expected a number from 1, found 0$"),
    ({"num_key_value_heads": 3}, r"num_key_value_heads: expected a divisor of num_attention_heads \(4\), found 3$"),
]
"""What a config.json may say of a language model, and what is said of it."""


def spoil(path: Path, wrong: dict, part: str | None = None) -> None:
    content = json.loads(path.read_text())
    (content if part is None else content[part]).update(wrong)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The folders of a class that the registry knows, and of one that it does not."""
    return {"llava": model_folder("llava"), "internvl": save_any("internvl", tmp_path_factory.mktemp("any") / "model")}


@pytest.mark.parametrize(("wrong", "said"), NONSENSE)
@pytest.mark.parametrize("kind", ["llava", "internvl"])
def test_a_model_is_refused_before_it_is_asked(folders, tmp_path, capsys, kind, wrong, said):
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    whole.check(whole.find_any(folder))
    spoil(folder / "config.json", wrong, "text_config")
    with pytest.raises(BackboneError, match=rf"model/config.json[:,] .*{said}"):
        whole.check(whole.find_any(folder))
    capsys.readouterr()
    assert main(["mmpb", str(folder), "--edition", "smoke", "--check", "--turns", "0"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.match(f"error: .*config.json[:,] .*{said}", lines[0]), lines


def test_settings_that_no_tower_can_be_built_with_are_refused_where_it_is_counted_by(folders, tmp_path):
    """The processor leaves open how many tokens a picture has."""
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    spoil(folder / "processor_config.json", {"num_additional_image_tokens": None})
    spoil(folder / "config.json", {"hidden_act": "none"}, "vision_config")
    with pytest.raises(BackboneError, match="its processor cannot be loaded from .*model: 'none'"):
        whole.check(whole.find_any(folder))


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_model_is_not_built_without_its_last_layers(folders, tmp_path, part):
    """It would be, and answer in other words, as transformers leaves aside what has no place."""
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    layers = json.loads((folder / "config.json").read_text())[part]["num_hidden_layers"]
    spoil(folder / "config.json", {"num_hidden_layers": layers - 1}, part)
    with pytest.raises(BackboneError, match=rf"weights of layers that config.json leaves out: .*layers.{layers - 1}$"):
        load_backbone(folder)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("kind", ["llava", "internvl"])
def test_settings_in_whose_place_there_is_nothing_are_refused_before_defaults_are_built(
    folders, tmp_path, kind, part, nothing
):
    """The defaults have billions of weights: memory ended before a message."""
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {part: nothing}))
    load = load_backbone if kind == "llava" else lambda place: whole.check(whole.find_any(place))
    with pytest.raises(BackboneError, match=rf"config.json, {part}: expected a mapping, found (None|\[\])"):
        load(folder)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize(("wrong", "said"), [*NONSENSE[:2], FEWER])
def test_a_backbone_is_refused_by_file_and_field(folders, tmp_path, part, wrong, said):
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    spoil(folder / "config.json", wrong, part)
    with pytest.raises(BackboneError, match=rf"model/config.json[:,] .*{said}"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tokenizer", None, "tokenizer.json: expected a tokenizer .Model missing"),
        ("tokenizer", {"model": None}, "tokenizer.json: expected a tokenizer .data did not match"),
        ("tokenizer", {"added_tokens": None}, "tokenizer.json: expected a tokenizer .invalid type: null"),
        ("chat_template", {}, "chat_template.json, chat_template: expected a text, found None"),
        ("chat_template", {"chat_template": ["x"]}, r"chat_template: expected a text, found \['x'\]"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "'broken' cannot be loaded from .*/broken: 'list'"),
        ("added_tokens", {"a": None}, "'broken' cannot be loaded from .*/broken: '<' not supported"),
    ],
)
def test_json_of_another_form_is_refused_by_name(folders, tmp_path, name, changes, message):
    folder = shutil.copytree(folders["llava"], tmp_path / "broken")
    path = folder / f"{name}.json"
    content = json.loads(path.read_text()) if path.is_file() and changes else {}
    path.write_text(json.dumps(content | (changes or {})))
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize("content", ["{}", '{"model": null}', "[]"])
def test_a_tokenizer_that_is_none_is_refused_before_the_model_is_asked(folders, tmp_path, content):
    folder = shutil.copytree(folders["internvl"], tmp_path / "model")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BackboneError, match="model/tokenizer.json: expected a "):
        whole.check(whole.find_any(folder))


def test_the_command_that_asks_says_it_in_one_line(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "load_benchmark", lambda edition: small_benchmark())
    monkeypatch.setattr(asking, "load_edition", lambda name: small_edition(str(name)))
    folder = shutil.copytree(folders["llava"], tmp_path / "model")
    spoil(folder / "config.json", WIDE, "text_config")
    example = small_benchmark().select("test")[0]
    capsys.readouterr()
    assert main(["ask", str(example.image), "Is it?", "--user", example.name, "--backbone", str(folder)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.match("error: .*config.json: .*'hidden_size' expected int", lines[0]), lines


@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        ("text_encoder", WIDE, "text_encoder/config.json: .*'hidden_size' expected int, got str"),
        ("text_encoder", HEADS, "text_encoder/config.json: .*is not a multiple of the number of"),
        ("text_encoder", NONE, "text_encoder/config.json, num_attention_heads: expected a number from 1, found 0$"),
        ("text_encoder", FEWER[0], f"text_encoder/config.json, {FEWER[1]}"),
        ("text_encoder", {"num_hidden_layers": 1}, "text_encoder: its network has no place for the tensors "),
        ("unet", {"cross_attention_dim": "wide"}, "drawer: not the weights of a drawer"),
        ("reader", {"hidden": "wide"}, "reader: expected the folder of an attribute reader"),
    ],
)
def test_a_drawer_and_a_reader_are_refused(tmp_path, part, wrong, said):
    folder = tmp_path / "drawer"
    tiny_drawer().save_pretrained(folder)
    AttributeReader((4, 4, 4, 4), 8).save_pretrained(folder / "reader")
    spoil(folder / part / "config.json", wrong)
    with pytest.raises((DrawerError, ReaderError), match=said):
        load_reader(folder / part) if part == "reader" else Drawer.from_pretrained(folder)
