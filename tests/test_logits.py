"""Recording what a backbone says, and checking it against a record."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from logits import PROMPTS, LogitsError, check, fixed_picture, main, record
from tiny_models import DEEPSEEK_VL2

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import load_pictures

KINDS = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", *DEEPSEEK_VL2])


@pytest.fixture(scope="module")
def recorded(tiny_backbone: Callable[..., Backbone], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a small DeepSeek-VL2."""
    file = tmp_path_factory.mktemp("recorded") / "record.json"
    record(tiny_backbone("deepseek_vl2_small"), file)
    return file


@KINDS
def test_a_backbone_agrees_with_its_own_record(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    file = tmp_path / "record.json"
    assert main(["record", str(tiny_folder(kind)), str(file)]) == 0
    assert main(["check", str(tiny_folder(kind)), str(file), "--tolerance", "1e-4"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROMPTS)


@torch.no_grad()
def test_the_recorded_logits_are_those_of_a_forward_pass(
    tiny_backbone: Callable[..., Backbone], recorded: Path
) -> None:
    backbone = tiny_backbone("deepseek_vl2_small")
    found = json.loads(recorded.read_text())["prompts"]
    for name, (messages, sizes) in PROMPTS.items():
        prompt = backbone.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = load_pictures([fixed_picture(*size) for size in sizes])
        shown = {"images": [images]} if images else {}
        inputs = backbone.processor(text=[prompt], return_tensors="pt", add_special_tokens=False, **shown)
        assert found[name]["input_ids"] == inputs["input_ids"][0].tolist()
        logits = backbone.model(**inputs).logits[0, -1]
        order = logits.argsort(descending=True)[:50]
        assert found[name]["ids"] == order.tolist()
        torch.testing.assert_close(torch.tensor(found[name]["values"]), logits[order], rtol=1e-4, atol=1e-5)
        assert found[name]["log_total"] == pytest.approx(float(logits.exp().sum().log()), rel=1e-4)
        assert found[name]["answer"][0] == int(order[0])


def test_other_weights_are_found_out(tiny_backbone: Callable[..., Backbone], recorded: Path) -> None:
    backbone = tiny_backbone("deepseek_vl2_small")
    with torch.no_grad():
        backbone.projector.image_newline += 1.0
    with pytest.raises(LogitsError) as error:
        check(backbone, recorded)
    message = str(error.value)
    assert "picture: logits differ" in message and "turns: logits differ" in message and "text:" not in message


def test_other_tokens_and_pictures_are_found_out(
    tiny_backbone: Callable[..., Backbone], recorded: Path, tmp_path: Path
) -> None:
    backbone, file = tiny_backbone("deepseek_vl2_small"), tmp_path / "record.json"
    content = json.loads(recorded.read_text())
    content["prompts"]["text"]["input_ids"][1] += 1
    content["prompts"]["turns"]["input_ids"].append(0)
    content["prompts"]["picture"]["pixel_squares"] *= 1.01
    file.write_text(json.dumps(content))
    with pytest.raises(LogitsError) as error:
        check(backbone, file)
    message = str(error.value)
    for expected in ("text: token 1 of the prompt is", "turns: the prompt has", "picture: pixel_squares of"):
        assert expected in message
    assert "('<|User|>'), recorded" in message and "logits" not in message


@pytest.mark.parametrize("content", ["{", "[]", '{"prompts": {"text": {}}}', None])
def test_a_file_that_is_no_record_is_refused(
    tiny_backbone: Callable[..., Backbone], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "record.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LogitsError, match="record.json: expected a record of logits.py record"):
        check(tiny_backbone("llava"), file)


def test_the_picture_is_what_its_description_says() -> None:
    picture = fixed_picture(640, 480)
    assert picture.size == (640, 480)
    corners = [(0, 0), (639, 0), (0, 479), (639, 479), (32, 0), (32, 32)]
    assert [picture.getpixel(place) for place in corners[:2]] == [(0, 0, 0), (255, 0, 255)]
    assert picture.getpixel((0, 479))[:2] == (0, 255) and picture.getpixel((639, 479))[:2] == (255, 255)
    assert [picture.getpixel(place)[2] for place in corners[4:]] == [255, 0]
