"""One question from Python and from the command line: users of an edition and new ones, adapters, errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_world import model_folder, small_backbone, small_benchmark, small_edition

import prefmoe
from prefmoe.backbones.errors import CollationError
from prefmoe.cli import main
from prefmoe.models import saved
from prefmoe.models.base import MethodError, build_method
from prefmoe.running import asking
from prefmoe.running.asking import AskError, Assistant, assistant, read_profile
from prefmoe.running.evaluation import evaluate
from prefmoe.system.run_files import seal

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
LIKES, DISLIKES = {"travel": ["camping"]}, {"travel": ["flights"], "lifestyle": ["pizza"]}


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """The small world in the place of the default edition."""
    monkeypatch.setattr(asking, "load_benchmark", lambda edition: small_benchmark())
    monkeypatch.setattr(asking, "load_edition", lambda name: small_edition(str(name)))
    names = ("llava-mini", small_backbone().entry.name)
    monkeypatch.setattr(asking, "known_backbones", lambda: names)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory) -> Path:
    """A run's folder with an adapter in it."""
    method = build_method(small_edition("tiny").methods["PrefMoE"], small_backbone(), small_benchmark(), seed=3)
    folder = tmp_path_factory.mktemp("runs") / "seed0"
    method.save_pretrained(folder / "method")
    (folder / "predictions.parquet").touch()
    seal(folder, {"edition": "small"})
    return folder


def test_a_question_is_answered_as_the_evaluation_answers_it():
    model, example = assistant(model_folder()), small_benchmark().select("test")[0]
    answer = model.ask(example.image, example.question, example.name)
    row = evaluate(model.method, [example], turns=0, batch_size=1, max_new_tokens=8).iloc[0]
    assert answer.text == row["prediction"] and answer.p_yes == pytest.approx(row["p_yes"], rel=1e-5)
    assert sum(answer.probabilities.values()) == pytest.approx(1) and "P(yes) = " in str(answer)
    chosen = model.ask(example.image, "Which would <sks> pick?", example.name, ["tea", "jazz", "hats", "chess"])
    assert set(chosen.probabilities) == set("ABCD") and chosen.p_yes is None


def test_a_picture_that_was_overwritten_is_looked_at_again(tmp_path):
    """Whoever asks in a notebook saves the next picture under the same name."""
    model, shown = assistant(model_folder()), tmp_path / "shown.png"
    user, answers = model.users[0], []
    for colour in ("black", "orange"):
        Image.new("RGB", (64, 64), colour).save(shown)
        answers.append(model.ask(shown, "Does this suit <sks>?", user).p_yes)
        assert answers[-1] == pytest.approx(assistant(model_folder()).ask(shown, "Does this suit <sks>?", user).p_yes)
    assert answers[0] != answers[1]


def test_somebody_new_is_known_by_name_picture_and_likes():
    model = assistant(model_folder())
    model.add_user("Ada", EXAMPLES / "ada.png", "<sks> is a person.", LIKES, DISLIKES)
    user = model.method.benchmark.users["Ada"]
    assert user.preferences["travel"].likes == ("camping",) and user.preferences["lifestyle"].dislikes == ("pizza",)
    assert "Ada" in model.users and 0 < model.ask(EXAMPLES / "camping.png", "Does this suit Ada?", "Ada").p_yes < 1
    with pytest.raises(MethodError, match="Ada"):
        model.add_user("Ada", EXAMPLES / "ada.png")


@pytest.mark.parametrize("inside", ["", "method"])
def test_an_adapter_is_found_in_its_run_and_brings_its_backbone(trained_folder, monkeypatch, inside):
    loaded = []
    monkeypatch.setattr(asking, "load_backbone", lambda name, **_: loaded.append(name) or small_backbone())
    model = assistant(trained_folder / inside)
    assert loaded == [small_backbone().entry.name]
    example = small_benchmark().select("test")[0]
    other = assistant(trained_folder / inside, backbone="somewhere/else", edition="small")
    assert loaded[1] == "somewhere/else"
    answers = [one.ask(example.image, example.question, example.name) for one in (model, other)]
    assert answers[0] == answers[1]


def test_an_adapter_of_the_hub_is_downloaded(trained_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(saved.hub, "download", lambda name, **_: asked.append(name) or trained_folder / "method")
    monkeypatch.setattr(asking, "load_backbone", lambda name, **_: small_backbone())
    assert isinstance(assistant("someone/adapter"), Assistant) and asked == ["someone/adapter"]


@pytest.mark.parametrize("source", ["nothing", "./no/such", "a/b/c", "/a"])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(AskError, match=f"^{source}: expected a folder with method.json .* llava-mini"):
        assistant(source)


def test_a_name_nearly_right_is_told_the_right_one():
    with pytest.raises(AskError, match="did you mean 'llava-mini'"):
        assistant("lava-mini")


def test_a_damaged_method_json_is_named(tmp_path):
    (tmp_path / "method.json").write_text("null")
    with pytest.raises(AskError, match="expected what save_pretrained writes .*method.json"):
        assistant(tmp_path)


@pytest.mark.parametrize("name", [None, 3, [], "../x"])
def test_an_adapter_names_no_other_folder_as_its_backbone(trained_folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(asking, "load_backbone", lambda name, **_: small_backbone())
    folder = shutil.copytree(trained_folder / "method", tmp_path / "method")
    content = json.loads((folder / "method.json").read_text())
    (folder / "method.json").write_text(json.dumps(content | {"backbone": content["backbone"] | {"name": name}}))
    with pytest.raises(AskError, match=r"method.json: backbone.name: expected one of llava-mini, .* --backbone"):
        assistant(folder)


@pytest.mark.parametrize("name", ["{}/own.yaml", "own.yaml", "own", "../config/mini", 3, ["mini"], {"name": "mini"}])
def test_a_run_names_no_file_as_its_edition(trained_folder, tmp_path, monkeypatch, name):
    """Own methods of an edition's file are run, and run.json may have come with somebody else's adapter."""
    monkeypatch.setattr(asking, "load_backbone", lambda name, **_: small_backbone())
    monkeypatch.setattr(asking, "load_edition", lambda name: pytest.fail(f"{name} is read"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("own_methods: [own.py]")
    folder = shutil.copytree(trained_folder, tmp_path / "seed0")
    named = name.format(tmp_path) if isinstance(name, str) else name
    seal(folder, {"edition": named})
    with pytest.raises(AskError, match=r"seed0/run.json, edition: expected one of config/, .* --edition .*; found"):
        assistant(folder)
    monkeypatch.setattr(asking, "load_edition", lambda name: small_edition(str(name)))
    assert isinstance(assistant(folder, edition="small"), Assistant)


@pytest.mark.parametrize("name", ["run.json", "method/method.json", "method/method.safetensors"])
@pytest.mark.parametrize("inside", ["", "method", "."])
def test_a_run_whose_files_have_changed_is_not_asked(trained_folder, tmp_path, monkeypatch, inside, name):
    monkeypatch.setattr(asking, "load_backbone", lambda name, **_: small_backbone())
    folder = shutil.copytree(trained_folder, tmp_path / "seed0")
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    monkeypatch.chdir(folder / "method")
    with pytest.raises(AskError, match=f"{name}: (changed since the run was finished|expected)"):
        assistant("." if inside == "." else folder / inside)
    with pytest.raises(AskError, match="seed0"):
        assistant(folder, edition="small")


@pytest.mark.parametrize("kind", ["PrefMoE", "NT", "LoRA"])
def test_pictures_are_ranked_by_the_answers_to_single_questions(kind):
    model = Assistant(build_method(small_edition("tiny").methods[kind], small_backbone(), small_benchmark(), seed=0))
    model.add_user("Ada", EXAMPLES / "ada.png", "<sks> is a person.", LIKES, DISLIKES)
    pictures = [EXAMPLES / "camping.png", str(EXAMPLES / "flights.png"), small_benchmark().select("test")[0].image]
    ranked = model.rank(pictures, "Ada")
    assert {picture for picture, _ in ranked} == set(pictures) and [p for _, p in ranked] == sorted(
        (p for _, p in ranked), reverse=True
    )
    for picture, p_yes in ranked:
        assert p_yes == pytest.approx(model.ask(picture, "Would <sks> like this?", "Ada").p_yes, abs=1e-4)
    assert model.rank([EXAMPLES / "ada.png"] * 2, "Ada", "Is Ada here?")[0][1] == pytest.approx(
        model.ask(EXAMPLES / "ada.png", "Is Ada here?", "Ada").p_yes, abs=1e-4
    )


def test_what_cannot_be_ranked_is_named():
    model = assistant(model_folder())
    known, picture = model.users[0], EXAMPLES / "camping.png"
    with pytest.raises(AskError, match="nobody is called 'Eve' here"):
        model.rank([picture], "Eve")
    for nothing in ([], picture, str(picture)):
        with pytest.raises(AskError, match="expected a list of pictures, found"):
            model.rank(nothing, known)
    with pytest.raises(AskError, match="the question is empty"):
        model.rank([picture], known, " ")
    with pytest.raises(AskError, match=r"^the question: .*positions"):
        model.rank([picture], known, "Does this suit you? " * 2000)
    with pytest.raises(AskError, match="expected the file of a picture, found PngImageFile"):
        model.rank([picture, Image.open(picture)], known)
    with pytest.raises(CollationError, match="none.png: no such picture"):
        model.rank([picture, "none.png"], known)


def test_mistakes_are_named_and_leave_nobody_half_known():
    model = assistant(model_folder())
    known, picture = model.users, EXAMPLES / "camping.png"
    with pytest.raises(AskError, match="facet 'travels' is unknown, expected one of .*did you mean 'travel'"):
        model.add_user("Ada", EXAMPLES / "ada.png", likes={"travels": ["camping"]})
    with pytest.raises(AskError, match="Ada, travel: expected a list of items, found 'camping'"):
        model.add_user("Ada", EXAMPLES / "ada.png", likes={"travel": "camping"})
    for likes in ({"travel": None}, {"travel": 3}):
        with pytest.raises(AskError, match="Ada, travel: expected a list of items, found (None|3)"):
            model.add_user("Ada", EXAMPLES / "ada.png", likes=likes)
    with pytest.raises(AskError, match="Ada, travel, item: expected words, found 3"):
        model.add_user("Ada", EXAMPLES / "ada.png", dislikes={"travel": ["camping", 3]})
    with pytest.raises(AskError, match=r"Ada: expected items by facet, .* found \['camping'\]"):
        model.add_user("Ada", EXAMPLES / "ada.png", likes=["camping"])
    with pytest.raises(AskError, match="Ada, travel: 'camping, sailing' would read as several items"):
        model.add_user("Ada", EXAMPLES / "ada.png", likes={"travel": ["camping, sailing"]})
    for wrong, message in (
        ({"attribute": "robot"}, "Ada, attribute: expected one of human, animal, object, character; found 'robot'$"),
        ({"description": None}, "Ada, description: expected words, found None$"),
        ({"likes": {"travel": ["\udc80"]}}, r"Ada, travel, item: expected words, found '\\udc80', which is half"),
    ):
        with pytest.raises(AskError, match=message):
            model.add_user("Ada", EXAMPLES / "ada.png", **wrong)
    with pytest.raises(AskError, match="the name: expected words, found None$"):
        model.add_user(None, EXAMPLES / "ada.png")
    with pytest.raises(AskError, match="expected a name without"):
        model.add_user("A | B", EXAMPLES / "ada.png")
    with pytest.raises(CollationError, match="none.png: no such picture"):
        model.add_user("Ada", "none.png")
    assert model.users == known
    with pytest.raises(AskError, match="nobody is called 'Ada' here"):
        model.ask(picture, "Does this suit Ada?", "Ada")
    with pytest.raises(CollationError, match="none.png: no such picture"):
        model.ask("none.png", "Does this suit you?", known[0])
    with pytest.raises(AskError, match="the question is empty"):
        model.ask(picture, " ", known[0])
    with pytest.raises(AskError, match=r"^the question: the prompt takes [\d,]+ positions"):
        model.ask(picture, "Does this suit you? " * 2000, known[0])
    with pytest.raises(AskError, match="expected the file of a picture, found PngImageFile"):
        model.ask(Image.open(picture), "Who?", known[0])
    with pytest.raises(AskError, match="expected the file of a picture, found PngImageFile"):
        model.add_user("Ada", Image.open(picture))
    for options, message in (
        (list("xyz"), "no options, or 4; found 3$"),
        ([1, 2, 3, 4], "^option A: expected words, found 1$"),
        (["a", " ", "c", "d"], "^option B is empty$"),
        ("abcd", "expected a list of options, found 'abcd'$"),
        (None, "expected a list of options, found None$"),
    ):
        with pytest.raises(AskError, match=message):
            model.ask(picture, "Which?", known[0], options)
    for question, found in ((None, "None"), ("Does \udc80 suit?", r"'\\udc80', which is half a character")):
        with pytest.raises(AskError, match=f"^the question: expected words, found {found}$"):
            model.ask(picture, question, known[0])
    with pytest.raises(AskError, match=r"^the user: expected words, found \['Ada'\]$"):
        model.rank([picture], ["Ada"])
    with pytest.raises(AskError, match="is a backbone; expected an adapter"):
        assistant(model_folder(), backbone="llava-mini")


def test_the_command_asks_for_known_and_for_new_users(tmp_path, capsys, monkeypatch):
    shutil.copy(EXAMPLES / "ada.png", tmp_path)
    profile = {"name": "Ada", "picture": "ada.png", "likes": LIKES, "dislikes": DISLIKES}
    (tmp_path / "ada.yaml").write_text(yaml.safe_dump(profile))
    picture, backbone = str(EXAMPLES / "camping.png"), ["--backbone", str(model_folder())]
    known = next(iter(small_benchmark().users))
    assert main(["ask", picture, f"Does this suit {known}?", "--user", known, *backbone]) == 0
    assert main(["ask", picture, "Does this suit Ada?", "--profile", str(tmp_path / "ada.yaml"), *backbone]) == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(model_folder())
    (tmp_path / "below").mkdir()
    (tmp_path / "below/ada.yaml").write_text(yaml.safe_dump(profile | {"picture": "~/ada.png"}))
    at_home = ["--profile", "~/below/ada.yaml", "--backbone=~/model"]
    assert main(["ask", picture, "Does this suit Ada?", *at_home]) == 0
    assert capsys.readouterr().out.count("P(yes) = ") == 3
    assert main(["ask", picture, "Does this suit Ada?", *backbone]) == 1
    assert "for whom?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--adapter", ""], "error: : expected a folder with method.json"),
        (["--backbone", ""], "error: : expected a folder with method.json"),
        (["--device", "gpu"], "error: device 'gpu': expected one of this machine, such as cpu, cuda or auto (Expected"),
        (["--device", "meta"], "error: device 'meta': expected one of this machine"),
    ],
)
def test_a_word_that_means_nothing_is_refused_and_no_other_model_is_asked(capsys, words, expected):
    """Such as that of a variable which the shell does not know."""
    known = next(iter(small_benchmark().users))
    assert main(["ask", str(EXAMPLES / "camping.png"), "Is it?", "--user", known, *words]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: Ada", r"ada.yaml has 1 mistake.*\n +picture: Field required"),
        ("name: Ada\npicture: a.png\nhobbies: x", r"ada.yaml has 1 mistake.*\n +hobbies: Extra inputs"),
        ("[", "ada.yaml: not valid YAML"),
        ("", "ada.yaml: expected a mapping"),
        ("name: Ada\npicture: a.png\nname: Eve", r"ada.yaml has 1 mistake.*\n +name: given twice, again in line 3"),
        (None, "ada.yaml: cannot be read"),
    ],
)
def test_a_profile_s_mistakes_are_named(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "ada.yaml").write_text(content)
    with pytest.raises(AskError, match=expected):
        read_profile(tmp_path / "ada.yaml")


def test_a_profile_in_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ada.yaml")
    with pytest.raises(AskError, match="ada.yaml: cannot be read: Not a regular file"):
        read_profile(tmp_path / "ada.yaml")


def test_importing_the_package_stays_quick():
    script = "import sys, prefmoe; assert 'torch' not in sys.modules; assert not hasattr(prefmoe, 'nothing')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert prefmoe.assistant is assistant
