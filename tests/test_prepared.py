"""Prepared pictures: the same as the processor makes, made once, and never taken for those of something else."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_world import small_backbone

from prefmoe.backbones.errors import CollationError
from prefmoe.backbones.pictures import stack_pictures
from prefmoe.backbones.prepared import prepared_pictures, seen_pictures


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for k, path in enumerate(paths):
        Image.effect_noise((40 + 8 * k, 60), 50).convert("RGB").save(path)
    return paths


def stored(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_5_vl"])
def test_pictures_are_what_the_processor_makes_whether_made_or_read(kind, files, tmp_path):
    backbone = small_backbone(kind)
    for _ in range(2):
        found = prepared_pictures(backbone, [*files, files[0]], "digest", tmp_path / "kept")
        assert list(found) == [(str(path),) for path in files]
        for (name,), picture in found.items():
            expected = backbone.process_pictures([name])
            assert (picture.replacements, picture.digests) == (expected.replacements, expected.digests)
            assert picture.inputs.keys() == expected.inputs.keys()
            assert all(torch.equal(picture.inputs[key], expected.inputs[key]) for key in expected.inputs)


def test_pictures_are_made_once_and_again_for_another_benchmark(files, tmp_path):
    backbone, folder = small_backbone(), tmp_path / "kept"
    prepared_pictures(backbone, files, "first", folder)
    first = stored(folder)
    assert len(first) == 1
    (folder / "unfinished.partial").write_bytes(b"half of a file")
    prepared_pictures(backbone, files, "first", folder)
    assert stored(folder) == first
    prepared_pictures(backbone, files, "second", folder)
    prepared_pictures(backbone, files[:3], "first", folder)
    assert len(stored(folder)) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "of others"])
def test_damaged_files_are_named_and_made_again(files, tmp_path, caplog, damage):
    """Of prepared pictures and of what the tower saw."""
    for path in files:
        Image.open(path).resize((40, 40)).save(path)

    def make(folder: Path, chosen: list[Path]) -> dict[str, torch.Tensor]:
        backbone = small_backbone(cache_images=True)
        pictures = prepared_pictures(backbone, chosen, "digest", folder)
        seen_pictures(backbone, pictures.values(), folder)
        inputs = stack_pictures(list(pictures.values()))
        return inputs | {"seen": torch.stack(list(backbone.vision_cache._states.values()))}

    folder, other = tmp_path / "kept", tmp_path / "other"
    expected = make(folder, files)
    make(other, files[:4])
    for path, foreign in zip(*(sorted(place.glob("*.safetensors")) for place in (folder, other)), strict=True):
        content = bytearray(path.read_bytes())
        content[-5] ^= 64
        whole = path.read_bytes()
        path.write_bytes({"flipped": content, "cut": whole[:-9], "of others": foreign.read_bytes()}[damage])
        found = make(folder, files)
        assert f"{path.name}: damaged" in caplog.text
        assert all(torch.equal(found[name], expected[name]) for name in expected) and found.keys() == expected.keys()
        assert path.read_bytes() == whole
        caplog.clear()


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_kept(files, tmp_path):
    files[3].write_bytes(b"no picture")
    with pytest.raises(CollationError, match="3.png"):
        prepared_pictures(small_backbone(), files, "digest", tmp_path / "kept")
    assert not stored(tmp_path / "kept")


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_the_tower_looks_at_pictures_once_and_later_processes_see_the_same(kind, files, tmp_path):
    for path in files:
        Image.open(path).resize((40, 40)).save(path)  # of one size: as many tokens for each
    folder, backbone = tmp_path / "kept", small_backbone(kind)
    pictures = list(prepared_pictures(backbone, files, "digest", folder).values())
    inputs = stack_pictures(pictures)
    expected = backbone.model.get_image_features(**inputs, return_dict=True).pooler_output
    seen_pictures(small_backbone(kind, cache_images=True), pictures, folder, batch_size=2)
    assert len(list(folder.glob("*.seen.safetensors"))) == 1
    later = small_backbone(kind, cache_images=True)
    layers = [module for module in later.vision_tower.modules() if module is not later.vision_tower]
    inside = set(map(id, later.projector.modules()))
    for layer in layers:
        if id(layer) not in inside:
            layer.register_forward_hook(lambda *_: pytest.fail("the tower looked again"))
    seen_pictures(later, pictures, folder)
    found = later.model.get_image_features(**inputs, return_dict=True).pooler_output
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_a_tower_saw_is_not_taken_for_what_another_one_sees(files, tmp_path):
    backbone = small_backbone(cache_images=True)
    pictures = list(prepared_pictures(backbone, files, "digest", tmp_path).values())
    seen_pictures(backbone, pictures, tmp_path)
    other = small_backbone(cache_images=True)
    other.digest = "other weights"
    seen_pictures(other, pictures, tmp_path)
    seen_pictures(small_backbone(cache_images=True), pictures[:3], tmp_path)
    assert len(list(tmp_path.glob("*.seen.safetensors"))) == 3


def test_pictures_of_different_numbers_of_tokens_are_looked_at_every_time(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path, size in zip(paths, ((56, 56), (112, 56)), strict=True):
        Image.effect_noise(size, 50).convert("RGB").save(path)
    backbone = small_backbone("qwen2_5_vl", cache_images=True)
    pictures = list(prepared_pictures(backbone, paths, "digest", tmp_path).values())
    for _ in range(2):
        seen_pictures(backbone, pictures, tmp_path)
    assert not list(tmp_path.glob("*.seen.safetensors"))
