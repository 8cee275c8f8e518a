"""What the workflow watches: every file of a benchmark and of a backbone by its content, read only when it changes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from small_world import model_folder
from synthetic_mmpb import make, rows, write_csv
from test_own_data import packed

from prefmoe.backbones.weights import weights_digest
from prefmoe.config.backbone_files import registered_identity
from prefmoe.config.registry import find_backbone
from prefmoe.data import mmpb
from prefmoe.system import file_digests
from prefmoe.system.file_digests import FileDigests, content_digest, content_digests, files_below
from prefmoe.system.places import ROOT, UNPACKED, known_backbones, made_backbones
from prefmoe.workflow.workflow_lock import WorkflowLockError, hold


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "files"
    (folder / "inner/.hidden").mkdir(parents=True)
    for name in ("a.txt", "inner/b.png", "inner/.hidden/c", ".d"):
        (folder / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.json").write_text("e")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "inner/loop").symlink_to(folder, target_is_directory=True)
    (folder / "dead").symlink_to(tmp_path / "nothing")
    return folder


def test_all_files_below_a_folder_are_found_through_links_and_once(files):
    assert [str(path.relative_to(files)) for path in files_below(files)] == ["a.txt", "inner/b.png", "linked/e.json"]
    assert files_below(files / "nothing") == []


def test_a_settled_file_is_read_once_and_again_when_it_changes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED", -1.0)
    read = []
    monkeypatch.setattr(file_digests, "content_digest", lambda path: read.append(path.name) or content_digest(path))
    memory, path = tmp_path / "memory.json", files / "a.txt"
    first = FileDigests(memory).of([path])
    assert FileDigests(memory).of([path]) == first == {path: content_digest(path)}
    assert read == ["a.txt"]
    stat = path.stat()
    path.write_text("b.txt")  # as long as before, and dated back
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert FileDigests(memory).of([path]) == {path: content_digest(path)} != first
    assert read == ["a.txt", "a.txt"]


def test_a_file_that_may_still_change_within_its_time_stamp_is_not_remembered(files, tmp_path):
    FileDigests(tmp_path / "memory.json").of([files / "a.txt"])
    assert not (tmp_path / "memory.json").exists()


@pytest.mark.parametrize("memory", ["", "null", "[]", '{"%s": null}', '{"%s": [1, 2]}', "[" * 10**5])
def test_a_damaged_memory_costs_time_and_nothing_else(files, tmp_path, memory, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED", -1.0)
    path = files / "a.txt"
    (tmp_path / "memory.json").write_text(memory.replace("%s", str(path)))
    for _ in range(2):
        assert FileDigests(tmp_path / "memory.json").of([path]) == {path: content_digest(path)}
    assert list(json.loads((tmp_path / "memory.json").read_text())) == [str(path)]


def test_a_memory_that_cannot_be_written_is_done_without(files, tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED", -1.0)
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert FileDigests(tmp_path / "taken/memory.json").of([files / "a.txt"])


def test_every_file_of_a_benchmark_counts(tmp_path):
    make(tmp_path / "data")
    digests = FileDigests(tmp_path / "memory.json")

    def found() -> str:
        return file_digests.parts_digest(tmp_path / "data", ("mmpb_clean", "multi_turn"), digests)

    seen = {found()}
    changed = (
        "multi_turn/generic_text/talk.json",
        "mmpb_clean/injection/injection_image_3/000004.png",
        "mmpb_clean/images/000004.png",
        "mmpb_clean/annotations.csv",
        "mmpb_clean/sample.csv",
        "mmpb_clean/split.json",
    )
    for name in changed:
        with (tmp_path / "data" / name).open("ab") as file:
            file.write(b" ")
        seen.add(found())
    assert len(seen) == len(changed) + 1
    (tmp_path / "data/download.log").write_text("not the benchmark's")
    for path in (tmp_path / "data").rglob("*"):
        path.touch()
    assert found() in seen


def test_pictures_that_reading_takes_out_of_a_table_change_nothing(tmp_path):
    folder = make(tmp_path / "data")
    write_csv(folder, [packed(folder, row) for row in rows()])
    digests = FileDigests(tmp_path / "memory.json")
    parts = folder, ("mmpb_clean", "multi_turn"), digests
    before, all_before = file_digests.parts_digest(*parts, UNPACKED), file_digests.parts_digest(*parts)
    mmpb.read(folder)
    assert file_digests.parts_digest(*parts, UNPACKED) == before
    assert file_digests.parts_digest(*parts) != all_before
    write_csv(folder, rows())
    assert file_digests.parts_digest(*parts, UNPACKED) != before
    assert "parts_digest(folder, parts, DIGESTS, UNPACKED)" in (ROOT / "workflow/rules/common.smk").read_text()


def test_the_workflow_and_a_run_identify_backbones_alike(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFMOE_WEIGHTS", str(tmp_path))
    for name in ("llava-1.5-7b", *made_backbones()):
        shutil.copytree(model_folder(), tmp_path / name)
    for name in known_backbones():
        assert registered_identity(name, content_digests) == weights_digest(find_backbone(name))


@pytest.mark.parametrize("note", ["", "[]", "{}", "[" * 10**5])
def test_a_workflow_that_holds_a_lock_and_left_no_note_of_itself_is_another_process(tmp_path, note):
    place = tmp_path / "mini"
    place.mkdir()
    (place / ".workflow.json").write_text(note)
    with FileLock(place / ".workflow.lock"), pytest.raises(WorkflowLockError, match="is being made by another process"):
        hold("mini", results=tmp_path)


def test_a_plan_needs_no_torch():
    modules = "prefmoe.config.backbone_files, prefmoe.experiments.protocol, prefmoe.workflow.workflow_lock"
    code = f"import sys, {modules}"
    loaded = f"{code}; print(*(name for name in ('torch', 'transformers', 'pandas') if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {"pandas"}
