"""Prepared pictures: the same as the processor makes, made once, and never taken for those of something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from prefmoe.data.collation import CollationError, load_pictures, process_pictures
from prefmoe.data.prepared import prepared_pictures
from tests.small_world import small_backbone


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
            expected = process_pictures(backbone, load_pictures([name]))
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


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_kept(files, tmp_path):
    files[3].write_bytes(b"no picture")
    with pytest.raises(CollationError, match="3.png"):
        prepared_pictures(small_backbone(), files, "digest", tmp_path / "kept")
    assert not stored(tmp_path / "kept")
