"""Anchors on disk: equal to computed ones, made again when anything they depend on changes, safe when cut off."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from tiny_benchmark import make_picture

from prefmoe.backbones.backbone import Backbone
from prefmoe.data.benchmark import User
from prefmoe.models import anchors as encoding
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import build_method


@pytest.fixture
def users(tiny_benchmark):
    return list(tiny_benchmark.users.values())


@pytest.fixture
def cached(tiny_backbone, tmp_path):
    """A fresh backbone with a cache, and the list of its passes through the language model."""

    def build(**options) -> tuple[Backbone, list[int]]:
        backbone = tiny_backbone(**options, anchors=tmp_path / "anchors")
        passes: list[int] = []
        backbone.language_model.register_forward_pre_hook(lambda module, args: passes.append(1))
        return backbone, passes

    return build


def changed(user: User, **fields) -> User:
    return user.model_copy(update=fields)


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "anchors").iterdir() if path.suffix != ".sha256"}


def test_anchors_are_computed_once_and_read_by_the_next_process(cached, tiny_backbone, users, tmp_path):
    expected, expected_known = encode_users(tiny_backbone(), users, "hidden")
    for count, turn in enumerate(("computed", "read")):
        backbone, passes = cached()
        anchors, known = encode_users(backbone, users, "hidden")
        assert torch.equal(anchors, expected) and torch.equal(known, expected_known)
        assert bool(passes) == (turn == "computed"), count
    assert len(files(tmp_path)) == 1


def test_users_are_encoded_and_kept_in_groups(cached, users, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "USERS_AT_ONCE", 3)
    anchors, known = encode_users(cached()[0], users, "hidden")
    assert len(files(tmp_path)) == 2
    backbone, passes = cached()
    again, _ = encode_users(backbone, users[:3], "hidden")
    assert passes == [] and torch.equal(again, anchors[:3]) and known.shape == (4, 5)


def test_whatever_anchors_depend_on_has_a_file_of_its_own(cached, tiny_backbone, users, tmp_path):
    encode_users(cached()[0], users, "hidden")
    ann = users[0]
    other_face = tmp_path / "face.png"
    make_picture(999).save(other_face)
    variants = {
        "kind": (cached()[0], users, "embedding"),
        "description": (cached()[0], [changed(ann, description="A person with red hair."), *users[1:]], "hidden"),
        "preference": (cached()[0], [changed(ann, preferences=users[2].preferences), *users[1:]], "hidden"),
        "picture": (cached()[0], [changed(ann, images=(other_face,)), *users[1:]], "hidden"),
        "order": (cached()[0], users[::-1], "hidden"),
        "precision": (cached(dtype=torch.bfloat16)[0], users, "hidden"),
        "weights": (cached(kind="qwen2_5_vl")[0], users, "hidden"),
    }
    for count, (name, (backbone, people, kind)) in enumerate(variants.items(), 2):
        backbone_alone = tiny_backbone("qwen2_5_vl" if name == "weights" else "llava", dtype=backbone.dtype)
        expected, _ = encode_users(backbone_alone, people, kind)
        torch.testing.assert_close(encode_users(backbone, people, kind)[0], expected, msg=name)
        assert len(files(tmp_path)) == count, name
    same_face = tmp_path / "copy.png"
    same_face.write_bytes(Path(ann.image).read_bytes())
    backbone, passes = cached()
    encode_users(backbone, [changed(ann, images=(same_face,)), *users[1:]], "hidden")
    assert passes == [], "a picture counts by its content"


def test_a_damaged_file_is_named_and_made_again(cached, users, tmp_path, caplog):
    """Cut off, a bit of a number or of the header flipped, or whole and with other tensors in it."""
    expected, _ = encode_users(cached()[0], users, "hidden")
    (name,) = files(tmp_path)
    path = tmp_path / "anchors" / name
    complete = path.read_bytes()
    damages = [complete[: len(complete) // 2], b""]
    for place in (20, len(complete) // 2, len(complete) - 3):
        flipped = bytearray(complete)
        flipped[place] ^= 16
        damages.append(bytes(flipped))
    damages.append(save({"anchors": torch.full_like(expected, torch.nan)}))
    for damage in damages:
        path.write_bytes(damage)
        backbone, passes = cached()
        anchors, _ = encode_users(backbone, users, "hidden")
        assert passes and torch.equal(anchors, expected) and f"{name}: damaged" in caplog.text
        assert path.read_bytes() == complete
        caplog.clear()


def test_a_process_killed_while_writing_leaves_no_half_file_under_its_name(cached, users, tmp_path, monkeypatch):
    def killed(tensors, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prefmoe.backbones.anchor_cache.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            encode_users(cached()[0], users, "hidden")
    assert files(tmp_path) == set()
    encode_users(cached()[0], users, "hidden")
    (name,) = files(tmp_path)
    assert load_file(tmp_path / "anchors" / name)["anchors"].shape == (4, 8, 32)


def test_anchors_of_weights_that_are_being_trained_are_not_kept(cached, tiny_benchmark, users, tmp_path):
    from prefmoe.config import FullFineTuningMethod

    backbone, _ = cached()
    build_method(FullFineTuningMethod(kind="fft", label="FFT", lr=1e-3), backbone, tiny_benchmark, seed=0)
    encode_users(backbone, users, "hidden")
    assert not (tmp_path / "anchors").exists()
