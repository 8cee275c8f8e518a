"""Runs: complete or absent, untouched when unchanged, continued when interrupted, each from a pristine backbone."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from small_world import lay_out, small_edition

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import ConfigError, run_folder
from prefmoe.running import answers, runs
from prefmoe.running.checkpoints import TrainingError
from prefmoe.running.runs import RunError, Workbench, is_complete, run_all_seeds, run_method
from prefmoe.running.shortening import TooLongError
from prefmoe.system.run_files import RunFileError, verify


@pytest.fixture(autouse=True)
def beside_the_model(tmp_path, monkeypatch):
    """Runs start in a folder where "tiny-llava" is the model and the benchmark is drawn already."""
    lay_out(tmp_path, "llava", "qwen2_5_vl", results=("results", "elsewhere"))
    monkeypatch.chdir(tmp_path)


EDITION = small_edition("tiny-llava")


def run(method: str = "LoRA", seed: int = 0, edition=EDITION, **options) -> Path:
    return run_method(edition, "tiny-llava", method, seed, results="results", **options)


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def changed(**parts: dict) -> object:
    return EDITION.model_copy(
        update={name: getattr(EDITION, name).model_copy(update=values) for name, values in parts.items()}
    )


@pytest.mark.parametrize("method", list(EDITION.methods))
def test_a_run_holds_predictions_losses_the_method_and_its_story(method):
    folder = run(method)
    assert folder == run_folder("results", EDITION.name, "tiny-llava", method, 0)
    trained = method != "NT"
    assert {path.name for path in folder.iterdir()} == {"run.json", "predictions.parquet", "method"} | (
        {"losses.parquet"} if trained else set()
    )
    frame = pd.read_parquet(folder / "predictions.parquet")
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    asked = [*workbench.benchmark.splits["test"], *workbench.benchmark.splits["unseen"]]
    again = [*workbench.benchmark.splits["test"]]  # after small talk; new users are asked without any
    assert frame["index"].tolist() == asked + again
    assert frame.groupby(["turns", "split"]).size().to_dict() == {
        (turns, split): len(workbench.benchmark.splits[split])
        for turns, split in ((0, "test"), (0, "unseen"), (1, "test"))
    }
    story = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (story["edition"], story["backbone"], story["method"], story["seed"]) == (
        "small-world", "tiny-llava", method, 0,
    )  # fmt: skip
    assert story["config"]["method"] == EDITION.methods[method].model_dump(mode="json")
    assert story["inputs"]["data"] == workbench.benchmark.digest
    assert story["inputs"]["weights"] == load_backbone("tiny-llava").digest
    assert story["steps"] == (4 if trained else 0)
    assert story["context_tokens"] == 13 if method == "PrefMoE" else (story["context_tokens"] > 20) == (method == "NT")
    assert story["seconds"]["evaluate"].keys() == {"0", "1"}
    assert story["peak_memory_bytes"] > 1e7 and story["versions"]["torch"] == torch.__version__
    assert story["parameters"]["trainable_total"] == 0 or trained
    assert {"git_commit", "hardware"} < story.keys()


def test_an_unchanged_run_is_left_alone_and_a_changed_one_is_replaced():
    folder = run()
    before = tree(folder)
    assert run() == folder and tree(folder) == before
    assert run(edition=EDITION.model_copy(update={"purpose": "another"})) == folder and tree(folder) == before
    run(edition=changed(training={"steps": 3}))
    assert len(pd.read_parquet(folder / "losses.parquet")) == 3
    after = tree(folder)
    run(edition=changed(training={"steps": 3, "checkpoint_every": 1}))
    assert tree(folder) == after


class Interruption(Exception):
    """Stands for a killed process."""


def interrupt_at(monkeypatch, name: str, count: int):
    """Makes the count-th call of a function of runs, or of its answers, fail; returns the calls that were made."""
    module = runs if hasattr(runs, name) else answers
    original, calls = getattr(module, name), []

    def limited(*arguments, **options):
        calls.append(options)
        if len(calls) == count:
            raise Interruption
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, limited)
    return calls


def assert_same_result(folder: Path, reference: Path) -> None:
    for name in ("predictions.parquet", "losses.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / name), pd.read_parquet(reference / name))
    ours, theirs = (load_file(path / "method" / "method.safetensors") for path in (folder, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run("PrefMoE").absolute()


@pytest.mark.parametrize(("name", "count"), [("evaluate", 1), ("evaluate", 2), ("circumstances", 1), ("_publish", 1)])
def test_a_run_killed_anywhere_is_absent_and_then_ends_like_any_other(monkeypatch, uninterrupted, name, count):
    with monkeypatch.context() as patch:
        interrupt_at(patch, name, count)
        with pytest.raises(Interruption):
            run("PrefMoE")
    folder = run_folder("results", EDITION.name, "tiny-llava", "PrefMoE", 0)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        evaluations = interrupt_at(patch, "evaluate", -1)
        assert run("PrefMoE") == folder
    assert len(evaluations) == {"evaluate": 3 - count, "circumstances": 0, "_publish": 0}[name]
    assert_same_result(folder, uninterrupted)


def test_what_an_interrupted_run_of_other_inputs_left_is_cleared(monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, "evaluate", 1)
        with pytest.raises(Interruption):
            run()
    folder = run(edition=changed(training={"steps": 2}))
    assert len(pd.read_parquet(folder / "losses.parquet")) == 2


def test_the_old_result_stays_until_the_new_one_is_complete(monkeypatch):
    folder = run()
    before = tree(folder)
    interrupt_at(monkeypatch, "evaluate", 2)
    with pytest.raises(Interruption):
        run(edition=changed(training={"steps": 2}))
    assert tree(folder) == before and is_complete(folder)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("FFT", "tiny-llava"), ("FFT", "tiny-qwen2_5_vl"), ("LoRA", "tiny-llava"), ("PrefMoE", "tiny-llava")],
)
def test_a_second_seed_on_a_used_workbench_starts_from_a_pristine_backbone(method, backbone):
    edition = small_edition(
        backbone, training={"steps": 2, "batch_size": 6},
        evaluation={"batch_size": 16, "turns": [0], "max_new_tokens": 2},
    )  # fmt: skip
    together = run_all_seeds(edition, backbone, method, results="results")
    assert [folder.name for folder in together] == ["seed0", "seed1"]
    alone = run_method(edition, backbone, method, 1, results="elsewhere")
    assert_same_result(together[1], alone)
    first, second = (pd.read_parquet(folder / "losses.parquet") for folder in together)
    assert not first["answer"].equals(second["answer"])


def test_workbench_hands_caches_on_but_no_weights():
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    first = workbench.method(EDITION.methods["FFT"], seed=0)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.zero_()
    first.collator(workbench.benchmark.select("test")[:2], transcripts=None, with_answer=True)
    second = workbench.method(EDITION.methods["LoRA"], seed=0)
    assert second.backbone.encodings is first.backbone.encodings and first.backbone.encodings.benchmarks
    plain = load_backbone("tiny-llava").model.state_dict()
    kept = {name.replace(".base_layer", ""): value for name, value in second.model.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in plain.items())


def test_nothing_random_is_not_repeated():
    assert EDITION.seeds_of("NT") == (0,)
    assert EDITION.seeds_of("LoRA") == (0, 1)
    untrained = EDITION.methods["PrefMoE"].model_copy(update={"steps_factor": 0.0})
    edition = EDITION.model_copy(update={"methods": {**EDITION.methods, "PrefMoE": untrained}})
    assert edition.seeds_of("PrefMoE") == (0,)
    assert [folder.name for folder in run_all_seeds(EDITION, "tiny-llava", "NT", results="results")] == ["seed0"]


def test_a_loss_that_is_not_a_number_leaves_no_run():
    edition = EDITION.model_copy(
        update={"methods": {"FFT": EDITION.methods["FFT"].model_copy(update={"lr": float("inf")})}}
    )
    with pytest.raises(TrainingError, match="not finite"):
        run("FFT", edition=edition)
    assert not run_folder("results", EDITION.name, "tiny-llava", "FFT", 0).exists()


@pytest.mark.parametrize("method", ["FFT", "LoRA", "PrefMoE"])
def test_data_that_nothing_can_be_learned_from_are_named(method, tmp_path):
    """`prefmoe convert` makes them of a table without splits; every method that learns ended in another traceback."""
    benchmark = Workbench(EDITION, "tiny-llava", results="results").benchmark
    untold = replace(benchmark, splits=benchmark.splits | {"train": ()})
    bench = Workbench(EDITION, "tiny-llava", results="results", benchmark=untold)
    label = EDITION.methods[method].label
    with pytest.raises(RunError, match=f"expected rows of the split train, of which {label} learns"):
        bench.run_method(method, 0)


def test_a_remedy_makes_the_seed_that_is_damaged():
    """Only the first seed is made by default, and the sentence named a command that leaves the others as they are."""
    folder = run("LoRA", seed=1)
    (folder / "predictions.parquet").write_bytes(b"")
    with pytest.raises(RunFileError, match="make it again: PREFMOE_SEEDS=all prefmoe run small-world tiny-llava LoRA"):
        verify(folder)


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ConfigError, match="no method 'Lora'; it has NT, FFT, LoRA, PrefMoE; did you mean 'LoRA'"):
        run("Lora")
    with pytest.raises(RunError, match="no backbone 'tiny'; it has tiny-llava"):
        run_method(EDITION, "tiny", "LoRA", 0, results="results")
    monkeypatch.setenv("PREFMOE_THREADS", "two")
    with pytest.raises(RunError, match="PREFMOE_THREADS is 'two'"):
        run()


def test_two_processes_never_write_one_run():
    folder = run_folder("results", EDITION.name, "tiny-llava", "LoRA", 0)
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_name(".seed0.lock")), pytest.raises(RunError, match="another process"):
        run()


def test_a_saved_method_answers_like_the_run():
    from prefmoe.models.base import Method
    from prefmoe.running.evaluation import evaluate

    folder = run("PrefMoE")
    workbench = Workbench(EDITION, "tiny-llava", results="results")
    method = Method.from_pretrained(folder / "method", workbench.backbone(), workbench.benchmark)
    frame = evaluate(method, workbench.benchmark.select("unseen"), turns=0, batch_size=16, max_new_tokens=2)
    kept = pd.read_parquet(folder / "predictions.parquet").query("turns == 0 and split == 'unseen'")
    pd.testing.assert_frame_equal(frame, kept.reset_index(drop=True), rtol=1e-4)


def test_too_long_questions_are_refused_before_training_or_counted_in_the_story(monkeypatch):
    train, trained = runs.train, []
    monkeypatch.setattr(runs, "train", lambda *args, **options: trained.append(1) or train(*args, **options))
    method = Workbench(EDITION, "tiny-llava", results="results").method(EDITION.methods["LoRA"], 0)
    examples, talks = method.benchmark.select("test"), method.benchmark.transcripts
    lengths = sorted(
        method.collator.length(example, runs.small_talk(example, talks, 1)) + EDITION.evaluation.max_new_tokens - 1
        for example in examples
    )
    too_long = sum(length > lengths[len(lengths) // 2] for length in lengths)
    assert 0 < too_long < len(lengths)
    monkeypatch.setattr(Backbone, "max_positions", lengths[len(lengths) // 2])
    with pytest.raises(TooLongError, match=f"^{too_long} of {len(lengths)} questions after 1 turns"):
        run()
    assert not trained
    folder = run(edition=changed(evaluation={"too_long": "drop_small_talk"}))
    story = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert story["shortened_questions"] == {"0": 0, "1": too_long} and trained
