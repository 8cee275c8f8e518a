"""MMPB's protocol for any vision-language model: six classes, four of which the registry does not know."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from any_models import UNKNOWN, folder_of, wordy
from small_world import lay_out, model_folder, small_benchmark, small_edition
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from prefmoe.analysis.answers import read_runs
from prefmoe.analysis.mmpb_tables import TASKS, as_printed, attributes_table, differences_table
from prefmoe.backbones import whole
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import ROOT, InjectedMethod, LoRAMethod, registry
from prefmoe.config.backbone_files import files_digest
from prefmoe.config.registry import BackboneError
from prefmoe.models.base import build_method
from prefmoe.running import mmpb
from prefmoe.running.evaluation import EvaluationError, evaluate
from prefmoe.system.places import data_folder

KINDS = ("llava", "qwen2_5_vl", *UNKNOWN)


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


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_processor_makes_reaches_the_model_and_a_batch_has_the_logits_of_its_rows(kind, monkeypatch):
    """The logits of the whole vocabulary at every step, of rows of unlike lengths."""
    method, asked, given = method_of(kind, pictures=2), questions(4), []
    generate = method.model.generate

    def watched(**inputs):
        given.append((inputs, generate(**inputs, output_logits=True)))
        return given[-1][1]

    monkeypatch.setattr(method.model, "generate", watched)
    for example in asked:
        evaluate(method, [example], turns=0, batch_size=1, max_new_tokens=3)
        messages, pictures = conversation(method, example, ())
        made = whole._processed(method.backbone.processor, messages, load_pictures(pictures))
        for key, value in made.items():
            torch.testing.assert_close(given[-1][0][key].reshape(value.shape), value)
    alone = {tuple(inputs["input_ids"][0].tolist()): output for inputs, output in given}
    evaluate(method, asked, turns=0, batch_size=len(asked), max_new_tokens=3, reuse_prefixes=False)
    inputs, together = given[-1]
    assert len(set(map(len, alone))) > 2 and len(inputs["input_ids"]) == len(asked)
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)):
        for step, logits in enumerate(alone[tuple(ids[mask].tolist())].logits):
            torch.testing.assert_close(together.logits[step][row], logits[0], rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize(
    ("kind", "wrong", "error", "said"),
    [
        ("llava", {"num_additional_image_tokens": 5}, BackboneError,
         r"config.json, num_additional_image_tokens 5 \(expected 1\): a picture becomes \d+ <image> tokens"),
        ("internvl", {"image_seq_length": 8}, EvaluationError,
         r"backbone 'model': its processor writes another number of image tokens than its model makes .*tokens: \d+"),
    ],
)  # fmt: skip
def test_a_processor_that_counts_otherwise_than_its_model_is_named_before_an_answer(tmp_path, kind, wrong, error, said):
    """When it is loaded, of a class of this package, and else when it is asked."""
    lay_out(tmp_path)
    folder = shutil.copytree(folder_of(kind), tmp_path / "model")
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    options = {"edition": small_edition("any"), "results": tmp_path / "results", "splits": ("test",), "turns": (0,)}
    for conditions in ({"conditions": ["pictures"]}, {"switches": {"description": "none", "preferences": False}}):
        with pytest.raises(error, match=said):
            mmpb.run(folder, **options, **conditions)


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


def test_results_of_a_folder_are_not_taken_for_those_of_another_one_of_its_name(tmp_path, monkeypatch):
    """One after the other in processes of their own, as the command asks them."""
    lay_out(tmp_path)
    options = {"edition": small_edition("any"), "results": tmp_path / "results", "turns": (0,), "splits": ("test",)}
    models = [wordy("internvl", tmp_path / place / "model", seed) for seed, place in enumerate("ab")]
    stories, answers = [], []
    for model in (*models, models[0]):
        monkeypatch.setattr(registry, "_GUESTS", {})
        _, (folder,) = mmpb.run(model, **options, conditions=["text"])
        stories.append(json.loads((folder / "run.json").read_text()))
        assert stories[-1]["inputs"]["weights"] == files_digest(model)
        answers.append(pd.read_parquet(folder / "predictions.parquet")["p_allowed"])
    assert not np.allclose(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-4)
    assert stories[0]["inputs"] == stories[2]["inputs"]


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


# --- torchvision ---


def torchvision_alone() -> list[str]:
    """Classes whose image processor is there for torchvision and not for Pillow, by model_type."""
    return [name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
            if list(IMAGE_PROCESSOR_MAPPING_NAMES.get(name, {})) == ["torchvision"]]  # fmt: skip


def test_the_page_counts_the_classes_that_need_torchvision():
    page = (ROOT / "docs/any_vlm.md").read_text(encoding="utf-8")
    counted = f"{len(torchvision_alone())} of the {len(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)} kinds"
    assert counted in page and "llama4" in torchvision_alone()


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_model_whose_pictures_need_torchvision_is_refused_with_the_extra(tmp_path):
    folder = shutil.copytree(folder_of("internvl"), tmp_path / "model")
    path = folder / "processor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["image_processor"]["image_processor_type"] = "Llama4ImageProcessor"
    path.write_text(json.dumps(content), encoding="utf-8")
    entry = whole.find_any(folder)
    used = mmpb.edition_for(entry, small_edition("any"), dict([mmpb.condition()]), splits=("test",), turns=(0,))
    with pytest.raises(BackboneError, match=r"; its pictures need torchvision: .* -e '\.\[torchvision\]'$"):
        mmpb.check(entry, used, small_benchmark())


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


def test_differences_between_conditions_are_of_the_same_questions(tmp_path):
    lay_out(tmp_path)
    used, folders = mmpb.run(
        folder_of("gemma3"), edition=small_edition("any"), results=tmp_path / "results", turns=(0, 1), splits=("test",),
        conditions=["text", "blind", "pictures"],
    )  # fmt: skip
    answers = read_runs(used, tmp_path / "results", "test")
    table = differences_table(answers)
    assert len(table) == 2 * 2 * 3 and set(table["baseline"]) == {"Text"}
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    keys = ["index", "turns"]
    files = [folder / "predictions.parquet" for folder in folders[:2]]
    text, blind = (pd.read_parquet(file).set_index(keys)["prediction"] for file in files)
    same = text.eq(blind.reindex(text.index)).groupby("turns").all()
    for turns, row in table[(table["method"] == "Blind") & (table["category"] == "all")].set_index("turns").iterrows():
        of = {one.method: one for one in answers if one.turns == turns}
        expected = of["Blind"].right[:, 0, 0].mean() - of["Text"].right[:, 0, 0].mean()
        assert row["difference"] == pytest.approx(expected) and (not same[turns] or row["difference"] == 0)
    for _, family in table.groupby(["turns", "category"]):
        assert len(family) == 2
        least, most = sorted(family["p_users"])
        expected = {min(1, 2 * least), min(1, max(2 * least, most))}
        assert set(family["p_users_holm"].round(9)) == {round(p, 9) for p in expected}
    fewer = [one for one in answers if one.turns == 0 or one.method == "Text"]
    assert set(differences_table(fewer)["turns"]) == {0}


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
