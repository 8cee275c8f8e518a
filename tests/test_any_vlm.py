"""MMPB's protocol for any vision-language model: six classes, four of which the registry does not know."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from any_models import UNKNOWN, save_any
from small_world import _FOLDER, lay_out, model_folder, small_benchmark, small_edition
from tiny_models import LLAVA_TEMPLATE

from prefmoe.analysis.answers import read_runs
from prefmoe.analysis.mmpb_tables import TASKS, as_printed, attributes_table
from prefmoe.backbones import whole
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.cli import main
from prefmoe.config import ROOT, InjectedMethod, LoRAMethod, load_edition
from prefmoe.config.registry import BackboneError, find_backbone, introduce
from prefmoe.models.base import build_method
from prefmoe.running import mmpb
from prefmoe.running.evaluation import evaluate
from prefmoe.system import hub
from prefmoe.system.places import data_folder
from prefmoe.workflow import resources

KINDS = ("llava", "qwen2_5_vl", *UNKNOWN)


@cache
def folder_of(kind: str) -> Path:
    """The folder of a random model that knows the benchmark's words."""
    if kind not in UNKNOWN:
        return model_folder(kind)
    frame = small_benchmark().frame
    words = [*frame["question"], *frame["preference"], *frame["description_moderate"], *small_benchmark().users]
    words += [text for transcript in small_benchmark().transcripts for _, text in transcript]
    return save_any(kind, Path(_FOLDER.name) / f"any-{kind}", words=" ".join(words))


def settings(**switches) -> InjectedMethod:
    return InjectedMethod(kind="injected", label="condition", **switches)


def method_of(kind: str, **switches):
    backbone = load_backbone(whole.find_any(folder_of(kind)).name)
    return build_method(settings(**switches), backbone, small_benchmark(), seed=0, cache=False)


def questions(count: int = 9):
    examples = small_benchmark().select("test")
    return examples[:: len(examples) // count][:count]


def conversation(method, example, talk):
    return method.collator.conversation(example, small_benchmark().users[example.name], talk)


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_answer_like_single_questions_and_see_the_pictures(kind):
    """Pictures of the user and of the question, text of unlike lengths, left padding, small talk."""
    method = method_of(kind, pictures=2)
    options = {"turns": 1, "transcripts": small_benchmark().transcripts, "max_new_tokens": 3}
    asked = questions()
    together = evaluate(method, asked, batch_size=5, **options)
    alone = evaluate(method, asked, batch_size=1, **options)
    probabilities = [column for column in together if column.startswith("p_")]
    np.testing.assert_allclose(together[probabilities], alone[probabilities], atol=2e-5)
    assert (together["prediction"] == alone["prediction"]).all() and len(together) == len(asked)
    for blind in ({"question_picture": "blank"}, {"portraits": "other"}):
        other = evaluate(method_of(kind, pictures=2, **blind), asked, batch_size=5, **options)
        assert (np.log(other["p_allowed"]) - np.log(together["p_allowed"])).abs().max() > 1e-2, blind


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_known_class_reads_the_same_by_its_own_processor(kind):
    """What this package encodes for classes that it knows is what the processor and its template make."""
    backbone = load_backbone(model_folder(kind))
    method = build_method(settings(pictures=2), backbone, small_benchmark(), seed=0)
    for example in questions(4):
        messages, pictures = conversation(method, example, small_benchmark().transcripts[0][:4])
        expected = encode(backbone, messages, pictures)
        found = whole.encode(backbone, messages, pictures, expected.prompt)
        assert torch.equal(found.input_ids, expected.input_ids) and found.prompt_digest == expected.prompt_digest
        for key, value in expected.pictures.inputs.items():
            torch.testing.assert_close(found.pictures.inputs[key].reshape(value.shape), value)


def _vip_llava(folder: Path) -> Path:
    """A class of LLaVA's kind that the registry does not know."""
    shutil.copytree(model_folder("llava"), folder)
    known = transformers.LlavaConfig.from_pretrained(folder)
    config = transformers.VipLlavaConfig(
        vision_config=known.vision_config, text_config=known.text_config, image_token_id=known.image_token_id,
        vision_feature_layers=[-2, -1],
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.VipLlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("left_out", [whole.IMAGE_TOKEN_SETTINGS[2:], whole.IMAGE_TOKEN_SETTINGS[::2]])
@pytest.mark.parametrize("kind", ["llava", "vip_llava"])
def test_a_processor_that_leaves_open_how_many_tokens_a_picture_has_takes_it_from_the_model(tmp_path, kind, left_out):
    """As transformers 4.46 and earlier versions saved them; checked before there are weights, and asked."""
    folder = tmp_path / f"old-{kind}"
    shutil.copytree(model_folder("llava"), folder) if kind == "llava" else _vip_llava(folder)
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    expected = {name: saved.pop(name) for name in left_out}
    path.write_text(json.dumps(saved))
    entry = whole.find_any(folder)
    whole.check(entry, 2)
    processor = whole.load_processor(entry, folder)
    assert {name: getattr(processor, name) for name in left_out} == expected
    method = build_method(settings(), load_backbone(entry.name), small_benchmark(), seed=0)
    assert evaluate(method, questions(2), turns=0, batch_size=2, max_new_tokens=1)["p_allowed"].notna().all()


def test_nothing_can_be_put_on_a_model_whose_parts_are_unknown():
    backbone = load_backbone(whole.find_any(folder_of("internvl")).name)
    lora = LoRAMethod(kind="lora", label="LoRA", lr=1e-3, rank=2, alpha=2)
    with pytest.raises(
        BackboneError, match=r"does not say where the parts of a InternVLFor.* are, so that it can be asked"
    ):
        build_method(lora, backbone, small_benchmark(), seed=0)


def test_a_run_is_kept_read_and_left_alone(tmp_path, monkeypatch):
    lay_out(tmp_path)
    options = {"edition": small_edition("any"), "results": tmp_path / "results", "turns": (0, 1), "splits": ("test",)}
    conditions = {"conditions": ["text", "five-pictures"]}
    used, folders = mmpb.run(folder_of("mllama"), **options, **conditions)
    answers = read_runs(used, tmp_path / "results", "test")
    asked = small_benchmark().splits["test"]
    assert [len(entry.index) for entry in answers] == [len(asked)] * 4
    assert {entry.information for entry in answers} == {
        "name, moderate description, preferences", "name, preferences, 5 pictures"
    }  # fmt: skip
    monkeypatch.setattr("prefmoe.running.runs.load_backbone", None)  # nothing is loaded again
    assert mmpb.run(folder_of("mllama"), **options, **conditions)[1] == folders
    story = json.loads((folders[1] / "run.json").read_text())
    assert story["context_tokens"] > 5 and story["backbone"] == "any-mllama"


@pytest.fixture(scope="module")
def real_results(tmp_path_factory):
    """Where it is remembered that the photographs are complete."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.skipif(data_folder(None) is None, reason="PREFMOE_DATA does not point to the real rows")
@pytest.mark.parametrize("kind", KINDS)
def test_real_photographs_and_words_are_asked_about(kind, real_results):
    """The longest description, two photographs of the user and that of the question."""
    used, (folder,) = mmpb.run(
        folder_of(kind), edition="sample", results=real_results, turns=(0,), splits=("test",), max_new_tokens=2,
        switches={"description": "super_detailed", "pictures": 2},
    )  # fmt: skip
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert len(frame) == 40 and frame["prompt_digest"].nunique() == 40 and frame["p_allowed"].between(0, 1).all()
    assert (
        read_runs(used, real_results, "test")[0].information
        == "name, super detailed description, preferences, 2 pictures"
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_by_task_and_attribute_is_that_of_a_plain_count(tmp_path):
    lay_out(tmp_path)
    used, folders = mmpb.run(
        folder_of("gemma3"), edition=small_edition("any"), results=tmp_path / "results", turns=(0, 1), splits=("test",),
        conditions=["text"],
    )  # fmt: skip
    benchmark, results = small_benchmark(), tmp_path / "results"
    table = attributes_table(benchmark, read_runs(used, results, "test"))
    frame = pd.read_parquet(folders[0] / "predictions.parquet")
    frame["right"] = [
        {"yes": 4, "no": 5, "a": 0, "b": 1, "c": 2, "d": 3}.get(text.lower()) == answer
        for text, answer in zip(frame["prediction"], frame["answer"], strict=True)
    ]
    for turns in (0, 1):
        some = frame[(frame["turns"] == turns) & (frame["split"] == "test")]
        cell = table[(table["turns"] == turns) & (table["attribute"] == "all")].set_index(["category", "task"])
        for (category, l2), expected in some.groupby(["category", "l2-category"]):
            found = cell.loc[(category, TASKS[l2])]
            assert found["n"] == len(expected) and found["users"] == expected["name"].nunique()
            assert found["value"] == pytest.approx(expected["right"].mean())
        assert cell.loc[("all", "all"), "unread"] == some["unparsed"].sum()
    change = table[(table["turns"] == 1) & (table[["category", "attribute", "task"]] == "all").all(axis=1)].iloc[0]
    hits = [frame[(frame["turns"] == k) & (frame["split"] == "test")]["right"].mean() for k in (0, 1)]
    assert change["change"] == pytest.approx(hits[1] - hits[0])
    assert (table["low"].isna() | (table["low"] <= table["value"])).all()
    assert "answers unread" in as_printed(table)


def test_the_page_s_script_asks_and_reads_what_was_answered(tmp_path, monkeypatch):
    page = (ROOT / "docs/any_vlm.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    used, places = small_edition("any"), {"llava-mini": folder_of("llava").as_posix()}
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    plain = mmpb.run
    monkeypatch.setattr(mmpb, "run", lambda model, **options: plain(
        places[model], **options | {"edition": used, "results": tmp_path / "results", "max_new_tokens": 2}
    ))  # fmt: skip
    monkeypatch.setattr("prefmoe.data.sources.load_benchmark", lambda *_: small_benchmark())
    space: dict = {}
    exec(compile(script, "docs/any_vlm.md", "exec"), space)
    assert set(space["table"]["turns"]) == {0, 1} and space["table"]["method"].nunique() == 2
    assert len(space["wrong"]) == space["answers"]["unparsed"].sum()


# --- what can be wrong ------------------------------------------------------------------------------------------------


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
        ({"switches": {"portraits": "other"}}, "portraits: other means pictures of somebody else"),
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
    assert mmpb.read_switches(["pictures=2", "preferences=false", "names=random"]) == {
        "pictures": 2, "preferences": False, "names": "random"
    }  # fmt: skip


def test_a_profile_that_lacks_what_is_shown_is_named_before_anything_is_asked(tmp_path):
    benchmark = small_benchmark()
    users = {name: user.model_copy(update={"images": user.images[:1]}) for name, user in benchmark.users.items()}
    poor = replace(benchmark, users=users)
    entry = whole.find_any(folder_of("internvl"))
    used = mmpb.edition_for(entry, small_edition("any"), {"two": settings(pictures=2)}, splits=("test",))
    with pytest.raises(
        mmpb.ProtocolError, match=r"two, question \d+ \(\w+\): expected 2 pictures of user '\w+' in images, found 1"
    ):
        mmpb.check(entry, used, poor)


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
