"""Scripts that ship what runs gave hand their options on, print what they wrote, and say what went wrong."""

from pathlib import Path

import explorer
import pytest

import course
from prefmoe.config import RESULTS
from prefmoe.course import answers
from prefmoe.system.run_files import RunFileError

SCRIPTS = {"assets": (explorer, "write_assets", explorer.FOLDER), "answers": (course, "write_answers", answers.FOLDER)}


@pytest.mark.parametrize("command", SCRIPTS)
def test_options_reach_what_makes_the_files_and_these_are_printed(command, monkeypatch, capsys):
    script, name, folder = SCRIPTS[command]
    given = []

    def write(*options):
        given.append(options)
        return [Path("one.json"), Path("two.json")]

    monkeypatch.setattr(script, name, write)
    assert script.main([command]) == 0
    assert capsys.readouterr().out.split() == ["one.json", "two.json"]
    assert script.main([command, "--edition", "e", "--backbone", "b", "--folder", "f", "--results", "r"]) == 0
    assert given == [("mini", None, folder, RESULTS), ("e", "b", Path("f"), Path("r"))]


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_run_that_is_missing_is_an_error_without_a_traceback(command, monkeypatch, capsys):
    script, name, _ = SCRIPTS[command]

    def write(*options):
        raise RunFileError("NT/seed0: no finished run")

    monkeypatch.setattr(script, name, write)
    assert script.main([command]) == 1
    assert capsys.readouterr().err == "error: NT/seed0: no finished run\n"


def test_files_that_are_made_of_others_need_no_options(monkeypatch, capsys):
    for name in ("write_exercises", "solve"):
        monkeypatch.setattr(course, name, lambda name=name, **_: [Path(name)])
    assert [course.main(["exercises"]), course.main(["solve"])] == [0, 0]
    assert capsys.readouterr().out.split() == ["write_exercises", "solve"]
