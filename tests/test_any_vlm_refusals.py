"""Models that cannot be asked MMPB's questions, protocols that cannot be put: refused before weights come."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from any_models import folder_of
from small_world import lay_out, small_benchmark, small_edition
from tiny_benchmark import make_picture
from tiny_models import LLAVA_TEMPLATE

from prefmoe.backbones import whole
from prefmoe.cli import main
from prefmoe.config import load_edition
from prefmoe.config.registry import BackboneError, find_backbone, introduce
from prefmoe.data.injection import Protocol
from prefmoe.running import mmpb
from prefmoe.running.evaluation import small_talk
from prefmoe.system import hub
from prefmoe.workflow import resources


@pytest.fixture
def broken(tmp_path):
    """broken(kind, **changes to config.json): a model's folder without weights, which nobody may ask for."""

    def make(kind: str = "internvl", **config) -> Path:
        folder = shutil.copytree(folder_of(kind), tmp_path / "model")
        (folder / "model.safetensors").unlink()
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | config))
        return folder

    return make


def refused(folder: Path, pictures: int = 1) -> str:
    with pytest.raises(BackboneError) as error:
        whole.check(whole.find_any(folder), pictures)
    assert "\n" not in str(error.value).strip() and "model" in str(error.value)
    return str(error.value)


def rewrite(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def without_image_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|image|>", "<|other|>"))
    rewrite(folder / "tokenizer_config.json", image_token=None, extra_special_tokens=None)


def text_only(folder: Path) -> None:
    rewrite(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])


def with_few_positions(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"max_position_embeddings": 20}
    rewrite(folder / "config.json", text_config=text)


def test_a_model_without_a_chat_template_is_refused(broken):
    folder = broken()
    whole.check(whole.find_any(folder), 6)
    without_template(folder)
    assert "no chat template" in refused(folder)


def test_a_text_only_model_is_refused(broken):
    folder = broken("llava", model_type="llama", architectures=["LlamaForCausalLM"])
    assert "a LlamaForCausalLM (model_type llama) is a text-only model" in refused(folder)


def test_a_processor_of_text_alone_is_refused(broken):
    folder = broken()
    (folder / "processor_config.json").unlink()
    assert "its processor cannot be loaded" in refused(folder)


def test_a_model_without_an_image_token_is_refused(broken):
    folder = broken("mllama")
    without_image_token(folder)
    assert "no image token: its tokenizer does not know '<|image|>'" in refused(folder)


def test_a_template_that_loses_the_picture_or_the_words_is_refused(broken):
    folder = broken()
    for lost, template in (
        ("picture", "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"),
        ("words", "<IMG_CONTEXT>"),
    ):
        (folder / "chat_template.jinja").write_text(template)
        assert f"its chat template shows no {lost}" in refused(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content.no.such.thing }}")
    assert "its chat template fails" in refused(folder)


def test_more_pictures_than_it_takes_are_refused(broken):
    folder = broken("llava")
    every = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    one = "{% if 'image' in message['content'] | map(attribute='type') %}{{ '<image>\n' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE.replace(every, one))
    whole.check(whole.find_any(folder), 2)
    assert "of 3 in a conversation, the question's among them, its chat template shows 2" in refused(folder, 3)
    with_few_positions(folder)
    assert "take 2" in (text := refused(folder, 2)) and "positions of 20" in text


TURNS = "{% for m in messages %}{% for p in m.content %}{{ p.text or '<IMG_CONTEXT>' }} {% endfor %}{% endfor %}"


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("messages[-1:]", "shows no words 'somebody' of the user"),
        ("messages if m.role == 'user'", "shows no words 'I got it.' of the assistant"),
        ("messages[:-1]", "shows no words 'a question' of the user"),
    ],
)
def test_a_template_that_drops_a_turn_is_refused(broken, shown, said, pictures):
    folder = broken()
    (folder / "chat_template.jinja").write_text(TURNS)
    whole.check(whole.find_any(folder), pictures)
    (folder / "chat_template.jinja").write_text(TURNS.replace("in messages", f"in {shown}"))
    assert f"its chat template {said}: " in refused(folder, pictures)


def test_a_template_that_takes_no_assistant_or_doubles_a_picture_is_refused(broken):
    folder = broken()
    raising = "{% for m in messages if m.role == 'assistant' %}{{ raise_exception('users only') }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(TURNS + raising)
    assert re.search("its chat template fails on .*: users only$", refused(folder))
    (folder / "chat_template.jinja").write_text(TURNS.replace("'<IMG_CONTEXT>'", "'<IMG_CONTEXT>' * 2"))
    assert "its chat template shows one picture 2 times: " in refused(folder, 3)


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize(
    ("kind", "part", "wrong", "said"),
    [
        ("internvl", "image_processor", {"size": {"height": -1, "width": 16}}, "height and width must be > 0"),
        ("qwen2_vl", "image_processor", {"patch_size": 0}, "division by zero"),
        ("llava", None, {"patch_size": 0}, "integer division or modulo by zero"),
        ("internvl", None, {"image_seq_length": "many"}, "can't multiply sequence by non-int"),
        ("internvl", "image_processor", {"image_mean": [0.5, 0.5]}, r"image_mean: expected three .* \(0.5, 0.5\)$"),
        ("internvl", "image_processor", {"image_mean": "x"}, "image_mean: expected three numbers, found 'x'$"),
    ],
)
def test_a_processor_that_fails_on_one_picture_is_not_said_to_take_fewer(broken, kind, part, wrong, said, pictures):
    folder = broken(kind)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    (content[part] if part else content).update(wrong)
    path.write_text(json.dumps(content))
    text = refused(folder, pictures)
    assert re.search(f"its \\w+Processor fails on a picture: {said}", text) and "fewer" not in text


def test_a_processor_that_takes_one_picture_is_said_to_take_fewer(broken, monkeypatch):
    processed = whole._processed

    def one_alone(processor, messages, images):
        if len(images) > 1:
            raise ValueError("one picture\na prompt")
        return processed(processor, messages, images)

    folder = broken()
    monkeypatch.setattr(whole, "_processed", one_alone)
    whole.check(whole.find_any(folder), 1)
    said = "more pictures than it takes: of 3 .*, its InternVLProcessor takes fewer: one picture a prompt$"
    assert re.search(said, refused(folder, 3))


def test_code_of_a_repository_is_never_run(broken):
    folder = broken(model_type="odd_vlm", auto_map={"AutoConfig": "odd.OddConfig"}, architectures=["OddVLM"])
    (folder / "odd.py").write_text("raise SystemExit('run')")
    assert "needs code of its repository, which is never run" in refused(folder)


def test_a_name_of_the_registry_is_not_given_to_a_folder(tmp_path):
    folder = shutil.copytree(folder_of("internvl"), tmp_path / "llava-mini")
    with pytest.raises(BackboneError, match="the name 'llava-mini' is taken by a backbone of the registry"):
        whole.find_any(folder)
    with pytest.raises(BackboneError, match="'no-such-model' is unknown and no such folder exists"):
        whole.find_any("no-such-model")
    with pytest.raises(BackboneError, match="the name 'llava-mini' is taken"):
        introduce(find_backbone("llava-mini"))


def test_a_folder_whose_name_no_folder_of_results_may_have_is_refused(tmp_path):
    folder = shutil.copytree(folder_of("internvl"), tmp_path / "-rf $(touch pwned)")
    with pytest.raises(BackboneError, match=r"the folder's name '-rf \$\(touch pwned\)' is refused: expected letters"):
        whole.find_any(folder)


def test_two_backbones_of_one_name_are_refused(monkeypatch, tmp_path):
    first, second = (shutil.copytree(folder_of("internvl"), tmp_path / place / "model") for place in "ab")
    assert whole.find_any(first) == whole.find_any(first.parent / "." / "model")
    said = f"'model' is the name of two backbones, {first} and {second}, which would share a folder of results"
    with pytest.raises(BackboneError, match=re.escape(said)):
        whole.find_any(second)
    assert find_backbone("model").folder == first
    rewrite(first / "config.json", architectures=["Other"])
    assert whole.find_any(first).model_class == "Other" == find_backbone("model").model_class
    downloads = [shutil.copytree(first, tmp_path / (digit * 40)) for digit in "01"]
    monkeypatch.setattr(hub, "download", lambda *_, revision, **__: downloads[int(revision)])
    whole.find_any("owner/vlm@0")
    with pytest.raises(BackboneError, match=f"two backbones, owner/vlm@{'0' * 40} and owner/vlm@{'1' * 40}, which"):
        whole.find_any("owner/vlm@1")


def test_of_a_repository_the_small_files_come_first(monkeypatch, tmp_path):
    commit = "0" * 40
    folder = shutil.copytree(folder_of("internvl"), tmp_path / commit, ignore=lambda *_: ["model.safetensors"])
    asked = []
    monkeypatch.setattr(hub, "download", lambda *a, **options: asked.append((a, options)) or folder)
    entry = whole.find_any("owner/some.vlm@main")
    assert (entry.name, entry.hub_id, entry.revision, entry.architecture) == (
        "owner--some.vlm",
        "owner/some.vlm",
        commit,
        None,
    )
    whole.check(entry, 3)
    assert all("*.safetensors" not in options["allow_patterns"] for _, options in asked) and len(asked) == 2


def test_conditions_that_cannot_be_asked_are_named(tmp_path):
    lay_out(tmp_path)
    options = {"edition": small_edition("any"), "results": tmp_path / "results", "splits": ("test",)}
    for wrong, message in (
        ({"conditions": ["txt"]}, "no condition 'txt'; there are text, .*did you mean 'text'"),
        ({"switches": {"pictures": 6}}, "pictures: .*less than or equal to 5"),
        ({"switches": {"portraits": "other"}}, "^portraits: other means pictures of somebody else, and pictures is 0$"),
        ({"switches": {"pictures": 2}, "conditions": ["text"]}, r"^switches \(pictures\) make .*conditions text, too$"),
        ({"conditions": ["text", "blind", "text"]}, "^conditions: expected each once, found text twice$"),
        ({"edition": "preference-mini"}, "is about choices between pictures"),
        ({"turns": (-1,)}, "turns.0: .*greater than or equal to 0"),
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 1"),
        ({"splits": ("tests",)}, "splits.0: Input should be 'train'"),
    ):
        with pytest.raises(mmpb.ProtocolError, match=message):
            mmpb.run(folder_of("internvl"), **options | wrong)
    with pytest.raises(mmpb.ProtocolError, match=r"--switch pictures: expected SETTING=VALUE"):
        mmpb.read_switches(["pictures"])
    with pytest.raises(mmpb.ProtocolError, match=r"a setting of .*; did you mean 'pictures'|did you mean 'pictures'"):
        mmpb.read_switches(["picture=2"])
    with pytest.raises(mmpb.ProtocolError, match="^--switch pictures=3: expected each .* once, found pictures twice"):
        mmpb.read_switches(["pictures=2", "names=own", "pictures=3"])
    with pytest.raises(BackboneError, match="expected a backbone's name, a folder or .*, found an empty name"):
        mmpb.run("", **options)
    assert mmpb.read_switches(["pictures=2", "preferences=false", "names=random"]) == {
        "pictures": 2, "preferences": False, "names": "random"
    }  # fmt: skip


def test_a_profile_that_lacks_what_is_shown_is_named_before_anything_is_asked(tmp_path):
    benchmark = small_benchmark()
    users = {name: user.model_copy(update={"images": user.images[:1]}) for name, user in benchmark.users.items()}
    poor = replace(benchmark, users=users)
    entry = whole.find_any(folder_of("internvl"))
    used = mmpb.edition_for(entry, small_edition("any"), {"two": mmpb.condition(pictures=2)[1]}, splits=("test",))
    with pytest.raises(
        mmpb.ProtocolError, match=r"two, question \d+ \(\w+\): expected 2 pictures of user '\w+' in images, found 1"
    ):
        mmpb.check(entry, used, poor)


def test_the_longest_question_of_a_condition_is_encoded_with_its_pictures_and_talk(broken, tmp_path):
    """A processor that takes two small pictures may have no room for what is said beside them."""
    lay_out(tmp_path)
    folder = broken()
    entry, benchmark = whole.find_any(folder), small_benchmark()
    conditions = {"short": mmpb.condition(preferences=False)[1], "two": mmpb.condition(pictures=2)[1]}
    limits = {"splits": ("test",), "turns": (0, 2)}

    def edition(**more):
        return mmpb.edition_for(entry, small_edition("any"), conditions, **limits, **more)

    mmpb.check(entry, edition(), benchmark)
    processor = whole.check(entry, 3).processor
    longest = max(
        (Protocol(conditions["two"], benchmark).conversation(e, small_talk(e, benchmark.transcripts, 2))
         for e in benchmark.select("test")),
        key=lambda one: len(processor.apply_chat_template(one.messages)),
    )  # fmt: skip
    tokens = whole.check(entry, 3).tokens(longest.messages, longest.pictures)
    config = json.loads((folder / "config.json").read_text())
    answer = edition().evaluation.max_new_tokens
    for room, fits in ((tokens + answer, True), (tokens + answer - 1, False)):
        config["text_config"]["max_position_embeddings"] = room
        (folder / "config.json").write_text(json.dumps(config))
        if fits:
            mmpb.check(entry, edition(), benchmark)
            continue
        with pytest.raises(mmpb.ProtocolError) as error:
            mmpb.check(entry, edition(), benchmark)
        assert re.match(rf"two, question \d+ .*: {tokens:,} tokens with 2 turns .* room", str(error.value))
        said = ["tell a shorter description", "show fewer pictures", "ask after fewer turns or set evaluation.too_long"]
        assert str(error.value).endswith(f"; {'; '.join(said)}")
        mmpb.check(entry, edition(too_long="drop_small_talk"), benchmark)


def test_the_largest_pictures_of_a_condition_are_encoded_too(broken, tmp_path):
    """A picture of many pixels may take more positions than all that is said beside another one."""
    folder, benchmark = broken("qwen2_vl"), small_benchmark()
    first, *others = benchmark.select("test")
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    make_picture(0).save(small)
    make_picture(0, (64, 64)).save(large)
    other = next(one for one in others if one.name == first.name)
    wordy = other.model_copy(update={"image": small, "question": f"{first.question} {'?' * 400}"})
    examples = {one.index: one.model_copy(update={"image": small}) for one in benchmark.examples.values()}
    examples |= {first.index: first.model_copy(update={"image": large}), wordy.index: wordy}
    shown = replace(benchmark, examples=examples)
    entry = whole.find_any(folder)
    used = mmpb.edition_for(entry, small_edition("any"), dict([mmpb.condition()]), splits=("test",), turns=(0,))
    asked, tried = Protocol(used.methods["moderate"], shown), whole.check(entry)
    tokens, fewer = (tried.tokens(*asked.conversation(examples[one.index], ())) for one in (first, wordy))
    assert fewer < tokens
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for missing in (0, 1):
        room = tokens + used.evaluation.max_new_tokens - missing
        rewrite(folder / "config.json", text_config=text | {"max_position_embeddings": room})
        if not missing:
            mmpb.check(entry, used, shown)
            continue
        with pytest.raises(mmpb.ProtocolError) as error:
            mmpb.check(entry, used, shown)
        assert re.match(rf"moderate, question {first.index} .*: {tokens} tokens with 0", str(error.value))
        assert str(error.value).endswith("beside the answer; tell a shorter description")  # nothing else would help
    large.write_bytes(b"no picture")
    with pytest.raises(mmpb.ProtocolError, match=rf"question {first.index} .*large.png: expected a picture"):
        mmpb.check(entry, used, shown)


def test_an_image_token_that_the_model_does_not_look_for_is_refused(broken):
    assert "no image token that its model knows: config.json, image_token_id is 3, and" in refused(
        broken(image_token_id=3)
    )


# --- the edition and the command --------------------------------------------------------------------------------------


def test_the_edition_is_planned_without_a_download(monkeypatch):
    monkeypatch.setattr(hub, "download", None)
    edition, table = load_edition("mmpb"), resources.table("mmpb")
    assert list(dict.fromkeys(table["backbone"])) == list(edition.backbones) and len(edition.backbones) == 11
    assert (table["GPUs"] > 0).all() and (table["download_GB"] > 10).all()
    tokens = {
        name: resources.prompt_tokens(edition.methods[name], resources.shape_of(find_backbone("qwen2-vl-7b")), 0)
        for name in ("nothing", "text", "super-detailed", "five-pictures")
    }
    assert sorted(tokens, key=tokens.get) == list(tokens)
    conditions, everywhere = mmpb.conditions_of("mmpb")
    assert everywhere == ["text", "pictures"] and set(edition.table1) == set(conditions) == set(edition.methods)


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        ("internvl", without_template, "no chat template"),
        ("mllama", without_image_token, "no image token"),
        ("llava", text_only, "a text-only model"),
        ("llava", with_few_positions, "more pictures than it takes: 3 of .*, take 28 positions of 20"),
    ],
)
def test_a_repository_that_cannot_be_asked_is_refused_in_one_line_before_its_weights_come(
    kind, spoil, said, monkeypatch, tmp_path, capsys
):
    lay_out(tmp_path)
    folder = shutil.copytree(folder_of(kind), tmp_path / ("0" * 40), ignore=lambda *_: ["model.safetensors"])
    spoil(folder)
    downloads = []
    monkeypatch.setattr(hub, "download", lambda *a, **options: downloads.append(options["allow_patterns"]) or folder)
    monkeypatch.setattr("prefmoe.running.runs.load_backbone", None)
    monkeypatch.setattr(mmpb, "load_benchmark", lambda *_: small_benchmark())
    capsys.readouterr()  # what saving the model said
    assert main(["mmpb", "owner/some-vlm", "--edition", "smoke", "--switch", "pictures=2", "--turns", "0"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.match(f"error: .*{said}", lines[0]), lines
    assert not [pattern for patterns in downloads for pattern in patterns if "safetensors" in pattern]


def test_the_command_says_what_is_wrong_and_what_can_be_asked(broken, monkeypatch, capsys):
    monkeypatch.setattr(mmpb, "load_benchmark", lambda *_: small_benchmark())
    options = ["--edition", "smoke", "--check", "--turns", "0"]
    assert main(["mmpb", str(broken()), *options, "--switch", "pictures=2"]) == 0
    assert "model can be asked: pictures-2" in capsys.readouterr().out
    assert main(["mmpb", "no-such-model", *options]) == 1
    assert "error: backbone 'no-such-model' is unknown" in capsys.readouterr().err
