"""What README and the pages about a user, a method and a backbone of one's own say is run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from prefmoe import asking
from prefmoe.cli import main
from prefmoe.config import DEFAULT_EDITION, load_edition
from prefmoe.data import miniature, sources

REPOSITORY = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in one language, without those that are marked as not run."""
    text = re.sub(rf"^<!-- not run: .*? -->\n```{language}\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """load_benchmark, for the default edition's users with few questions and no pictures of these.

    Answers depend on neither: the portraits are drawn, and before the questions.
    """
    results, portraits = tmp_path_factory.mktemp("results"), miniature._Questions.portraits
    few = {"data.train_per_user": 5, "data.validation_per_user": 1, "data.test_per_user": 5}
    with pytest.MonkeyPatch.context() as patch:

        def portraits_alone(questions: miniature._Questions) -> None:
            portraits(questions)
            for name in ("draw_items", "draw_people"):
                patch.setattr(miniature, name, lambda *_: Image.new("RGB", (160, 160), "grey"))

        patch.setattr(miniature._Questions, "portraits", portraits_alone)
        sources.prepare_data(load_edition(DEFAULT_EDITION).with_settings(few), results)
    return lambda edition: sources.load_benchmark(edition.with_settings(few), results)


@pytest.fixture
def in_a_clone(tmp_path, monkeypatch, drawn):
    """The working directory is one that has docs/examples as the clone has."""
    shutil.copytree(REPOSITORY / "docs" / "examples", tmp_path / "docs" / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asking, "load_benchmark", drawn)


def said(text: str) -> list[float]:
    return [float(share) for share in re.findall(r"P\(yes\) = (\d\.\d+)\)", text)]


@pytest.mark.parametrize(("name", "repeated"), [("README.md", 0), ("docs/own_users.md", 1)])
def test_the_code_about_users_runs_and_answers_as_the_page_says(name, repeated, drawn, in_a_clone, capsys):
    text = page(name)
    space: dict = {"drawn": drawn}
    for block in blocks(text, "python"):
        exec(compile(block.replace("= load_benchmark(", "= drawn("), name, "exec"), space)
    found = said(capsys.readouterr().out)
    expected = said(text)
    assert found == pytest.approx(expected + expected[:repeated], abs=0.03)  # again, after saving and loading


def test_the_commands_about_users_run(in_a_clone, capsys):
    commands = {line for block in blocks(page("docs/own_users.md"), "bash") for line in block.splitlines()}
    assert commands <= {line for block in blocks(page("README.md"), "bash") for line in block.splitlines()}
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert len(said(capsys.readouterr().out)) == 2


def test_the_code_about_backbones_runs_on_a_folder(in_a_clone, tiny_folder, capsys):
    shutil.copytree(tiny_folder("llava"), Path("weights") / "my-model")
    text = page("docs/backbones.md")
    (code,), (commands,) = blocks(text, "python"), blocks(text, "bash")
    exec(compile(code, "docs/backbones.md", "exec"), {})
    assert "4 image tokens; adapters on 18 projections" in capsys.readouterr().out
    assert [main(shlex.split(command)[1:]) for command in commands.splitlines()] == [0, 0, 0]


def apply(block: str, path: Path) -> None:
    """Puts a diff block's new lines where the lines around them are."""
    old = "".join(line[1:] for line in block.splitlines(keepends=True) if not line.startswith("+"))
    new = "".join(line[1:] for line in block.splitlines(keepends=True))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: expected once\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


TRY = """
import sys, torch
from small_world import METHODS, small_backbone, small_benchmark, small_edition
from method_checks import assert_backbone_unchanged, fit, logits, moved_by, trained_names
import yaml
from prefmoe.evaluation import evaluate
from prefmoe.models.methods import Method, build_method

import prefmoe
assert prefmoe.__file__.startswith(sys.argv[1]), prefmoe.__file__
(entry,) = yaml.safe_load(open(sys.argv[1] + "/entry.yaml")).items()
edition = small_edition("tiny", methods=METHODS | dict([entry]), table1=[entry[0]])
config, benchmark = edition.methods[entry[0]], small_benchmark()
build = lambda config: build_method(config, small_backbone(), benchmark, seed=0)
method, plain = build(config), build(edition.methods["NT"].model_copy(update={"profile": "none"}))
torch.testing.assert_close(logits(method), logits(plain))
assert moved_by(method) == trained_names(method) == {"vectors"}
fit(method, 3)
assert_backbone_unchanged(method, small_backbone)
asked = {"turns": 1, "transcripts": benchmark.transcripts, "batch_size": 5, "max_new_tokens": 2}
examples = benchmark.select("test")[:12]
shared, alone = (evaluate(method, examples, reuse_prefixes=reuse, **asked) for reuse in (True, False))
assert (shared["p_allowed"] - alone["p_allowed"]).abs().max() < 1e-4
loaded = Method.from_pretrained(method.save_pretrained(sys.argv[1] + "/saved"), small_backbone(), benchmark)
assert torch.equal(logits(loaded), logits(method)) and not torch.equal(logits(loaded), logits(plain))
print(config.table_type)
"""


def test_the_page_s_method_is_built_trained_asked_saved_and_loaded(tmp_path):
    ignored = shutil.ignore_patterns("weights", "__pycache__")
    package = shutil.copytree(REPOSITORY / "prefmoe", tmp_path / "prefmoe", ignore=ignored)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    text = page("docs/own_method.md")
    settings, method = blocks(text, "python")
    union, imported, entry = blocks(text, "diff")
    config = package / "config.py"
    content = config.read_text(encoding="utf-8")
    config.write_text(content.replace("Method = Annotated[", f"{settings}\n\nMethod = Annotated[", 1), encoding="utf-8")
    apply(union, config)
    apply(imported, package / "models" / "methods.py")
    apply(entry, package / "models" / "methods.py")
    (package / "models" / "user_vector.py").write_text(method, encoding="utf-8")
    (tmp_path / "entry.yaml").write_text(blocks(text, "yaml")[0])
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "PEFT"
