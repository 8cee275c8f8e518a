"""What README and the pages about a user, a method and a backbone of one's own say is run as it stands there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import logits as logits_script
import pytest
import torch
import yaml
from method_checks import assert_backbone_unchanged, fit, logits, moved_by, trained_names
from PIL import Image
from small_world import data_folder, model_folder, small_backbone, small_benchmark, small_edition

from prefmoe import assistant
from prefmoe.analysis import tables
from prefmoe.cli import main
from prefmoe.config import DEFAULT_EDITION, NonTunedMethod, load_edition
from prefmoe.data import miniature, sources
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.running import asking
from prefmoe.running.evaluation import evaluate
from prefmoe.running.runs import run_all_seeds
from prefmoe.system import hub

PLAIN = NonTunedMethod(kind="nontuned", label="plain", profile="none")
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
def test_the_code_about_users_runs_and_answers_as_the_page_says(
    name, repeated, drawn, in_a_clone, monkeypatch, tmp_path, capsys
):
    """What stands as "owner/name" is, where the hub cannot be reached, what the page's first model saves."""
    text = page(name)
    space: dict = {"drawn": drawn}
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *_, **__: space["model"].method.save_pretrained(tmp_path / "a")
    )
    for block in blocks(text, "python"):
        exec(compile(block.replace("= load_benchmark(", "= drawn("), name, "exec"), space)
    if name == "README.md":
        assert [user.name for user in space["method"].added_users] == ["Ada"]
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
    done = []
    for program, *words in map(shlex.split, commands.splitlines()):
        assert program == "prefmoe" or [program, words.pop(0)] == ["python", "workflow/scripts/logits.py"]
        done.append((main if program == "prefmoe" else logits_script.main)(words))
    assert done == [0, 0, 0]


@pytest.fixture
def own_edition(tmp_path, monkeypatch) -> Path:
    """An edition's file with the page's method beside it, named as the page says, on a model that is random."""
    text = page("docs/own_method.md")
    ((code,), (entry,)) = blocks(text, "python"), blocks(text, "yaml")
    (tmp_path / "user_vector.py").write_text(code, encoding="utf-8")
    said = yaml.safe_load(entry)
    edition = small_edition("tiny").model_dump(mode="json") | {"name": "own", "backbones": ["llava-mini"], "seeds": [0]}
    methods = {name: edition["methods"][name] for name in ("NT", "LoRA")} | said["methods"]
    edition |= said | {"methods": methods, "table1": list(methods), "table2": []}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(edition), encoding="utf-8")
    (tmp_path / "tiny-llava").symlink_to(model_folder(), target_is_directory=True)
    (tmp_path / "results" / "own").mkdir(parents=True)
    (tmp_path / "results" / "own" / "data").symlink_to(data_folder(), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asking, "load_benchmark", lambda edition: small_benchmark())
    return tmp_path / "own.yaml"


def test_the_page_s_method_is_one_file_that_is_trained_asked_saved_loaded_and_in_the_table(
    own_edition, forget_own_methods
):
    edition = load_edition(own_edition).model_copy(update={"backbones": ("tiny-llava",)})
    config, benchmark = edition.methods["UserVector"], small_benchmark()
    method, plain = (build_method(c, small_backbone(), benchmark, seed=0) for c in (config, PLAIN))
    torch.testing.assert_close(logits(method), logits(plain))
    assert moved_by(method) == trained_names(method) == {"vectors"}
    fit(method, 3)
    assert_backbone_unchanged(method, small_backbone)
    asked = {"turns": 1, "transcripts": benchmark.transcripts, "batch_size": 5, "max_new_tokens": 2}
    examples = benchmark.select("test")[:12]
    shared, alone = (evaluate(method, examples, reuse_prefixes=reuse, **asked) for reuse in (True, False))
    assert (shared["p_allowed"] - alone["p_allowed"]).abs().max() < 1e-4

    folders = {name: run_all_seeds(edition, "tiny-llava", name, results="results")[0] for name in edition.methods}
    story = json.loads((folders["UserVector"] / "run.json").read_text(encoding="utf-8"))
    assert story["steps"] == edition.training.steps and story["parameters"]["trainable"].keys() == {"vectors"}
    table = tables.read_table(tables.build(edition, benchmark, results="results")["table1"])
    rows = table[table["method"] == "User vector"]
    assert set(rows["type"]) == {"PEFT"} and {"overall", "collapse"} <= set(rows["metric"])

    forget_own_methods()  # as a program does that has read no edition
    adapter = folders["UserVector"] / "method"
    with pytest.raises(MethodError, match=r"method.json: .*unknown kind of method 'user_vector'; known kinds: .*non"):
        Method.from_pretrained(adapter, small_backbone(), benchmark)
    loaded = assistant(folders["UserVector"], backbone="tiny-llava", edition=own_edition).method
    assert type(loaded).__name__ == "UserVector" and not torch.equal(logits(loaded), logits(plain))
    again = Method.from_pretrained(adapter, small_backbone(), benchmark)
    assert torch.equal(logits(again), logits(loaded))
