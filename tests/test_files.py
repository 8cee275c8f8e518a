"""Files are whole or absent."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from prefmoe.cli import main
from prefmoe.system.files import FileError, is_intact, open_to_readers, read_json, seal_of, whole_file, write_json


def test_a_file_has_its_name_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there_before(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_of_the_umask_whoever_writes_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        for sealed in (False, True):
            with whole_file(tmp_path / f"{sealed}.safetensors", sealed=sealed) as partial:
                save_file({"a": torch.zeros(2)}, partial)
        (tmp_path / "folder" / "inner").mkdir(parents=True)
        save_file({"a": torch.zeros(2)}, tmp_path / "folder" / "inner" / "model.safetensors")
        open_to_readers(tmp_path / "folder")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {mode}
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["inner"]


def test_a_sealed_file_is_intact_until_anything_changes(tmp_path, caplog):
    path = tmp_path / "cache.bin"
    whole = bytes(range(256))

    def write() -> None:
        with whole_file(path, sealed=True) as partial:
            partial.write_bytes(whole)

    assert not is_intact(path) and not caplog.text, "one that was never there is no surprise"
    write()
    assert is_intact(path) and not caplog.text
    subprocess.run(["sha256sum", "--check", "--quiet", seal_of(path).name], cwd=tmp_path, check=True)
    for damage in (
        lambda: path.write_bytes(whole[:100] + b"\xff" + whole[101:]),
        lambda: path.write_bytes(whole[:-1]),
        lambda: path.write_bytes(b""),
        lambda: seal_of(path).unlink(),
        lambda: seal_of(path).write_bytes(b"\xff\xfe"),
        lambda: seal_of(path).write_text(""),
    ):
        write()
        damage()
        assert not is_intact(path)
        assert "cache.bin: damaged" in caplog.text and not path.exists()
        caplog.clear()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"null", "found null"),
        (b"[1, 2]", "found a list"),
        (b'"text"', "found a str"),
        (b"", "found no JSON"),
        (b'{"a": 1', "found no JSON"),
        (b"<!DOCTYPE html><title>Log in</title>", "found no JSON"),
        (b"\xff\xfe{}", "found no JSON"),
        (b"[" * 100_000, "found brackets"),
        (b'{"a": "\\udc00"}', "found no JSON .half a character, .udc00: line 1 column 8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_json_that_is_no_mapping_is_refused_by_name_with_what_was_expected(tmp_path, content, found):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=rf"run\.json: expected the story of a run, .*{found}"):
        read_json(path, "the story of a run")
    path.write_text(json.dumps({"a": [None]}))
    assert read_json(path, "the story of a run") == {"a": [None]}


@pytest.mark.parametrize("command", [["score", "none.csv", "--output"], ["data", "mini"], ["compare", "--output"]])
def test_an_output_that_cannot_be_made_is_refused_before_anything_is_done(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    below = [tmp_path / "file/new", tmp_path / "file/further/new"]
    for output in [tmp_path / "file", *below] if command[0] == "compare" else [tmp_path, *below]:
        assert main([*command, str(output)]) == 1
        expected = "a folder, expected the name of a file" if output == tmp_path else f"{tmp_path}/file is no folder"
        assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [["check"], ["score"], ["convert", "none.csv"]])
def test_what_the_system_says_of_a_file_is_one_line_with_its_name(tmp_path, capsys, command):
    path = tmp_path / f"{'x' * 300}.csv"
    assert main([*command, str(path)]) == 1
    assert capsys.readouterr().err.strip().endswith(f"{path}: File name too long")
