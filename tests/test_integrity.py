"""What happens to the files of a finished run, or of an interrupted one, is noticed; reading them needs no writing."""

import ctypes
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from notebook_cells import cells
from safetensors.torch import load_file
from small_world import lay_out, small_edition

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import run_folder
from prefmoe.inspection import questions
from prefmoe.running import runs
from prefmoe.running.runs import Workbench, run_method
from prefmoe.system.run_files import RunFileError, is_complete, read_predictions, verify

EDITION = small_edition("tiny-llava")
FILES = ("run.json", "predictions.parquet", "losses.parquet", "method/method.json", "method/method.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A folder with the results of a finished run, which tests copy."""
    folder = tmp_path_factory.mktemp("integrity")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run()
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The folder that a run left which was killed when all was answered, and not yet published."""
    folder = tmp_path_factory.mktemp("interrupted")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(runs, "circumstances", lambda device: (_ for _ in ()).throw(Interruption))
        with pytest.raises(Interruption):
            run()
        return run_folder("results", EDITION.name, "tiny-llava", "LoRA", 0).with_name("seed0.partial").absolute()


@pytest.fixture
def finished(reference, tmp_path, monkeypatch) -> Path:
    """The folder of a finished run, below the current folder."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = run_folder("results", EDITION.name, "tiny-llava", "LoRA", 0)
    shutil.copytree(reference / folder, folder)
    return folder


def run() -> Path:
    return run_method(EDITION, "tiny-llava", "LoRA", 0, results="results")


def assert_same(folder: Path, reference: Path) -> None:
    expected = reference / folder
    for name in ("predictions.parquet", "losses.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / name), pd.read_parquet(expected / name))
    ours, theirs = (load_file(path / "method" / "method.safetensors") for path in (folder, expected))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def damages(content: bytes, other: bytes, seed: int) -> Iterator[bytes | None]:
    """What may happen to a file: bits flip, its end is lost, it is emptied, exchanged, or gone."""
    places = random.Random(seed)
    for _ in range(8):
        flipped = bytearray(content)
        flipped[places.randrange(len(content))] ^= 1 << places.randrange(8)
        yield bytes(flipped)
    yield from (content[: len(content) // 2], content[:-2], b"", other, None)


def put(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def test_every_damage_to_every_file_of_a_finished_run_is_noticed_and_named(finished, caplog):
    assert is_complete(finished) and sorted(verify(finished)["files"]) == sorted(FILES[1:])
    for number, name in enumerate(FILES):
        path = finished / name
        content, other = path.read_bytes(), (finished / FILES[number - 1]).read_bytes()
        for damage in damages(content, other, seed=number):
            put(path, damage)
            assert not is_complete(finished), name
            with pytest.raises(RunFileError, match=rf"{name}\b" if damage is not None else "missing"):
                verify(finished)
            if name in ("run.json", "predictions.parquet"):
                with pytest.raises(RunFileError):
                    read_predictions(finished)
        put(path, content)
        assert is_complete(finished)
    assert all(name in caplog.text for name in FILES)


@pytest.mark.parametrize("name", ["predictions.parquet", "method/method.safetensors", "run.json"])
def test_a_damaged_run_is_made_again(finished, reference, name, caplog):
    path = finished / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run() == finished
    assert name in caplog.text and is_complete(finished)
    assert_same(finished, reference)


def test_answers_that_changed_are_not_shown_and_a_large_run_is_asked_for_by_name(finished, monkeypatch):
    path = finished / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame.assign(prediction="yes").to_parquet(path)
    monkeypatch.setattr(questions, "find_backbone", lambda name: load_backbone(name).entry.model_copy(
        update={"hub_id": "large/model"}))  # fmt: skip
    one = EDITION.model_copy(update={"seeds": (0,)})
    with pytest.raises(questions.InspectionError, match="predictions.parquet: changed .*make it with: prefmoe"):
        questions.answers(one, "tiny-llava", "LoRA", results="results")


class Interruption(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize("name", ["answers-0.parquet", "answers-0.json", "inputs.json"])
@pytest.mark.parametrize("damage", [b"null", b"<html>Please log in</html>", None])
def test_a_run_goes_on_over_damaged_leftovers(finished, reference, interrupted, name, damage):
    """The answers to the first questions were kept; something else stands in their place when the run goes on."""
    shutil.rmtree(finished)
    leftovers = shutil.copytree(interrupted, finished.with_name("seed0.partial"))
    assert (leftovers / name).is_file()
    put(leftovers / name, damage)
    run()
    assert is_complete(finished)
    assert_same(finished, reference)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("process", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below a folder can be written, by root either: its rights to pass over modes are laid down meanwhile."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before, paths = sets[0].effective, [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    sets[0].effective &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0
        for path, mode in modes.items():
            path.chmod(mode)


needs_capabilities = pytest.mark.skipif(sys.platform != "linux", reason="root passes over modes")


@needs_capabilities
def test_complete_results_are_read_from_a_folder_that_cannot_be_written(finished):
    from prefmoe.models.base import Method
    from prefmoe.running.evaluation import evaluate

    results = finished.parents[4].resolve()
    assert results.name == "results"
    Path("results/small-world/pictures").unlink()
    shutil.copytree(Path("results/small-world/data").resolve(), "results/data")
    Path("results/small-world/data").unlink()
    Path("results/data").rename("results/small-world/data")
    caching = EDITION.model_copy(update={"seeds": (0,), "cache_images": True})
    Workbench(EDITION, "tiny-llava", results="results").benchmark.select("test")
    with read_only(results):
        assert run() == finished
        (answers,) = questions.answers(caching, "tiny-llava", "LoRA", results="results")
        assert len(answers)
        loss_logs = cells("05", "curves-function", settings=caching, backbone="tiny-llava")["loss_logs"]
        (losses,) = loss_logs("LoRA", results="results")
        assert len(losses) == 4
        # There are neither prepared pictures nor anchors, and none can be kept: this process makes its own.
        workbench = Workbench(caching, "tiny-llava", results="results")
        method = Method.from_pretrained(finished / "method", workbench.backbone(look=True), workbench.benchmark)
        found = evaluate(method, workbench.benchmark.select("unseen"), turns=0, batch_size=16, max_new_tokens=2)
    kept = read_predictions(finished).query("turns == 0 and split == 'unseen'").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, kept, rtol=1e-4)
    assert not list(results.rglob("*.safetensors.sha256"))
