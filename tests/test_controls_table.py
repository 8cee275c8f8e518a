"""Answers under controls in a run's folder, and the table that is made of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from small_world import METHODS, PREFMOE, lay_out, small_edition
from test_runs import Interruption, interrupt_at

from prefmoe import metrics
from prefmoe.analysis import tables
from prefmoe.analysis.answers import TableError, read_runs
from prefmoe.analysis.controls import CONTROLS_COLUMNS, controls_table
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import Evaluation, load_edition, run_folder
from prefmoe.models.base import Method
from prefmoe.models.controls import controlled
from prefmoe.running import runs
from prefmoe.running.evaluation import evaluate
from prefmoe.running.runs import Workbench, run_method
from prefmoe.system.run_files import RunFileError, is_complete, read_controls, read_predictions

KINDS = ("other_user", "zero_prefix", "swapped_name")
ASKED = {"batch_size": 16, "turns": [0, 1], "max_new_tokens": 2, "controls": KINDS}
EDITION = small_edition(
    "tiny-llava",
    methods={"NT": METHODS["NT"], "LoRA": METHODS["LoRA"], "EP": {**PREFMOE, "components": "EP"}},
    table1=["NT", "LoRA", "EP"], evaluation=ASKED, training={"steps": 2, "batch_size": 6}, ablation_backbone=None,
)  # fmt: skip
TOLD = {"edition": "small-world", "backbone": "tiny-llava"}


def run(method: str, seed: int = 0, edition=EDITION) -> Path:
    return run_method(edition, "tiny-llava", method, seed, results="results")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with every run of the edition."""
    folder = tmp_path_factory.mktemp("controls")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method, seed in (("NT", 0), ("LoRA", 0), ("LoRA", 1), ("EP", 0), ("EP", 1)):
            run(method, seed)
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.mark.parametrize(("name", "kinds"), [("EP", KINDS), ("NT", ("other_user", "swapped_name")), ("LoRA", ())])
def test_a_run_keeps_the_answers_under_the_controls_that_its_method_has(name, kinds):
    folder = run_folder("results", EDITION.name, "tiny-llava", name, 0)
    assert (folder / "controls.parquet").is_file() == bool(kinds) and is_complete(folder)
    story = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert ("controls.parquet" in story["files"]) == bool(kinds)
    assert story["inputs"]["evaluation"]["controls"] == list(KINDS)
    assert story["seconds"].get("controls", {}).keys() == set(kinds)
    found = read_controls(folder, **TOLD, method=name, seed=0)
    if not kinds:
        assert found is None
        return
    predictions = read_predictions(folder)
    assert list(found.columns) == [*predictions.columns, "control"]
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    method = Method.from_pretrained(folder / "method", load_backbone("tiny-llava"), workbench.benchmark)
    tested = workbench.benchmark.select("test")
    for kind in kinds:
        with controlled(method, kind):
            expected = evaluate(method, tested, turns=0, batch_size=16, max_new_tokens=2)
        rows = found[found["control"] == kind].drop(columns="control").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected, rtol=0, atol=1e-5)
        assert set(rows["turns"]) == {0} and set(rows["split"]) == {"test"}


def test_an_interrupted_run_goes_on_with_the_next_control(place, monkeypatch, tmp_path):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "evaluate", 4)  # after both numbers of turns and the first control
        with pytest.raises(Interruption):
            run("EP")
    with monkeypatch.context() as patch:
        evaluations = interrupt_at(patch, "evaluate", -1)
        folder = run("EP")
    assert len(evaluations) == 2
    found = pd.read_parquet(folder / "controls.parquet")
    uninterrupted = pd.read_parquet(place / folder / "controls.parquet")
    pd.testing.assert_frame_equal(found, uninterrupted)
    assert not list(folder.glob("answers-*"))


def test_answers_under_controls_are_sealed(monkeypatch, tmp_path):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = run("NT")
    file = folder / "controls.parquet"
    pd.read_parquet(file).assign(prediction="yes").to_parquet(file)
    assert not is_complete(folder)
    with pytest.raises(RunFileError, match=r"controls\.parquet: changed since"):
        read_controls(folder)
    with pytest.raises(TableError, match=r"controls\.parquet: changed since"):
        controls_table(EDITION, "results", [])


def test_other_controls_make_another_run_and_none_leaves_no_trace():
    method, asked = EDITION.methods["EP"], EDITION.evaluation.asked
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    plain, controlled_ = (workbench.inputs(method, 0, asked, kinds) for kinds in ((), KINDS))
    assert plain["evaluation"].pop("controls") == [] and controlled_["evaluation"].pop("controls") == list(KINDS)
    assert plain == controlled_


def test_the_table_has_every_metric_of_every_control(place):
    answers = read_runs(EDITION, "results", "test")
    table = controls_table(EDITION, "results", answers)
    assert tuple(table.columns) == CONTROLS_COLUMNS
    expected = {("full", kind) for kind in ("none", *KINDS)}
    expected |= {("non-tuned", kind) for kind in ("none", "other_user", "swapped_name")}
    assert set(zip(table["method"], table["control"], strict=True)) == expected
    assert set(table.loc[table["method"] == "full", "seeds"]) == {2}
    by = table.set_index(["method", "control", "metric"])["value"]
    assert {"overall", "collapse", "auc_same"} <= set(table["metric"])
    for control in ("none", "other_user", "zero_prefix"):
        shares, aucs = [], []
        for seed in (0, 1):
            folder = run_folder("results", EDITION.name, "tiny-llava", "EP", seed)
            frame = read_predictions(folder) if control == "none" else read_controls(folder)
            frame = frame[(frame["split"] == "test") & (frame["turns"] == 0)]
            frame = frame if control == "none" else frame[frame["control"] == control]
            shares.append(metrics.summarize(metrics.score(frame))["overall"]["value"])
            aucs.append(auc_by_loops(frame))
        assert by["full", control, "overall"] == pytest.approx(np.mean(shares))
        assert by["full", control, "auc_same"] == pytest.approx(np.mean(aucs), nan_ok=True)


def auc_by_loops(frame: pd.DataFrame) -> float:
    """Wins of questions about holders over questions about others, of the same item (or the same holders)."""
    rows = frame[(frame["category"] == "preference") & (frame["l2-category"] != "inconsistency")].to_dict("records")
    rows = [row for row in rows if row["preference_bucket_names"]]
    won = []
    for one in rows:
        for other in rows:
            key = ("concept", "preference_bucket_names", *(("item",) if "item" in one else ()))
            names = [part.strip() for part in one["preference_bucket_names"].split(" | ")]
            if any(one[k] != other[k] for k in key) or one["name"] not in names or other["name"] in names:
                continue
            mine, theirs = (r["p_no"] if r["preference_semantic_invert"] else r["p_yes"] for r in (one, other))
            won.append(1.0 if mine > theirs else 0.5 if mine == theirs else 0.0)
    return float(np.mean(won)) if won else float("nan")


def test_a_seed_without_controls_is_named(monkeypatch, tmp_path):
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    run("EP", 0)
    without = EDITION.evaluation.model_copy(update={"controls": ()})
    run("EP", 1, EDITION.model_copy(update={"evaluation": without}))
    only = EDITION.model_copy(update={"table1": ("EP",)})
    with pytest.raises(TableError, match="seed1: no answers under controls"):
        controls_table(only, "results", [])


def test_tables_have_controls_where_an_edition_asks_for_them(place):
    benchmark = Workbench(EDITION, "tiny-llava", results="results").benchmark
    assert "controls" in tables.build(EDITION, benchmark, results="results")
    without = EDITION.model_copy(update={"evaluation": EDITION.evaluation.model_copy(update={"controls": ()})})
    assert "controls" not in tables.build(without, benchmark, results="results")


def test_the_context_is_counted_in_tokens(place):
    """Soft tokens; else what a prompt has more than that of a method that shows the name alone."""
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    benchmark, asked = workbench.benchmark, []
    for split in ("test", "unseen"):
        asked += benchmark.select(split)
    stories = {
        name: json.loads(Path(f"results/small-world/runs/tiny-llava/{name}/seed0/run.json").read_text(encoding="utf-8"))
        for name in ("NT", "LoRA", "EP")
    }
    assert stories["LoRA"]["context_tokens"] == 0 and stories["EP"]["context_tokens"] == 13
    told, plain = (workbench.method(EDITION.methods[name], 0).collator for name in ("NT", "LoRA"))
    more = [told.length(example) - plain.length(example) for example in asked]
    assert stories["NT"]["context_tokens"] == pytest.approx(np.mean(more)) and len(set(more)) > 1
    yollava = {"kind": "yollava", "label": "words", "lr": 1e-2, "tokens": 5}
    settings = small_edition("tiny-llava", methods={"Y": yollava}, table1=["Y"], ablation_backbone=None).methods["Y"]
    method = workbench.method(settings, 0)
    opening = "USER: <sks> is " + "".join(f"<token{k}>" for k in range(5)) + ". ASSISTANT: I got it. "
    expected = len(method.backbone.tokenizer(opening, add_special_tokens=False)["input_ids"])
    assert runs.context_tokens(method, asked) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"controls": ["other_person"]}, "other_user"),
        ({"controls": ["zero_prefix", "zero_prefix"]}, "repeat|twice|once"),
        ({"controls": ["zero_prefix"], "splits": ["validation"]}, "splits does not name test"),
    ],
)
def test_an_edition_with_a_control_that_cannot_be_is_refused(content, said):
    with pytest.raises(ValidationError, match=said):
        Evaluation.model_validate(content)


def test_an_unknown_control_is_named_by_the_file(tmp_path):
    text = Path(load_edition.__globals__["CONFIG_FOLDER"] / "smoke.yaml").read_text(encoding="utf-8")
    assert "evaluation:\n" in text
    file = tmp_path / "mine.yaml"
    text = text.replace("name: smoke", "name: mine").replace("evaluation:\n", "evaluation:\n  controls: [nobody]\n")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"evaluation\.controls\.0: .*other_user.*nobody"):
        load_edition(file)
