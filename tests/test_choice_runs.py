"""Training and asking about choices: what is drawn, exact resumption, and runs that begin with another's weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_choices import METHODS, benchmark, content, lay_out, method, small_edition

from prefmoe.config import Edition, Histories, Training, run_folder
from prefmoe.data.choices import HistoryError
from prefmoe.running import choices, runs
from prefmoe.running.checkpoints import CheckpointError, TrainingError
from prefmoe.running.choices import ChoiceWorkbench, choice_batches, plan_sessions, rate, run_all_seeds, told
from prefmoe.running.evaluation import EvaluationError
from prefmoe.running.runs import RunError
from prefmoe.running.training import train

SETTINGS = Histories(n_ref=3, draws=2, targets=2)
TRAINING = Training(steps=4, batch_size=6, checkpoint_every=2, gradient_accumulation=2, warmup=0)
EDITION = small_edition()


class Interruption(Exception):
    """Stands for a killed process."""


def train_choices():
    return benchmark().select("train")


def sessions(name: str = "Ranked", seed: int = 1, settings: Histories = SETTINGS):
    """The sessions of every batch of a training."""
    one, found = method(name), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "collate", found.append)
        batches = choice_batches(settings)(one, train_choices(), TRAINING, seed)
        for number in range(len(batches.plan)):
            batches.collate(number, 0, 1)
    return batches.plan, found


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_a_session_shows_other_choices_of_the_user_and_no_picture_of_its_targets():
    plan, found = sessions()
    assert len(found) == 8
    for places, batch in zip(plan, found, strict=True):
        for row, one in enumerate(batch):
            chosen = [train_choices()[place] for place in places[2 * row : 2 * row + 2]]
            assert len({choice.user for choice in chosen}) == 1
            assert [file for file, _ in one.targets] == [f for choice in chosen for f in choice.candidates[:2]]
            hidden = {file for choice in chosen for file in choice.candidates}
            own = [benchmark().choices[i] for i in benchmark().references[chosen[0].user]]
            told_of = {"+": {choice.liked for choice in own}, "-": {choice.disliked for choice in own}}
            assert len(one.history) == 6 and not hidden & {entry.picture for entry in one.history}
            assert all(entry.picture in told_of[entry.label] for entry in one.history)
            assert [entry.label for entry in one.history].count("+") == 3


def test_an_epoch_has_every_choice_once_and_a_longer_plan_begins_like_a_shorter_one():
    """Sixty choices are ten batches of six."""
    options = {"batch_size": 6, "targets": 2, "seed": 1}
    whole = plan_sessions(train_choices(), count=20, **options)
    shown = [place for batch in whole for place in batch]
    assert sorted(shown[:60]) == sorted(shown[60:]) == list(range(60)) and shown[:60] != shown[60:]
    assert plan_sessions(train_choices(), count=3, **options) == whole[:3]
    assert plan_sessions(train_choices(), count=3, **options | {"seed": 2}) != whole[:3]


def test_all_methods_of_one_seed_learn_from_the_same_sessions_and_other_seeds_from_others():
    assert sessions("ViPer")[1] == sessions("Ranked")[1][: len(sessions("ViPer")[1])]
    assert sessions(seed=2)[1] != sessions()[1]


def test_processes_share_the_sessions_of_a_batch():
    one, found = method("Ranked"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "collate", found.append)
        batches = choice_batches(SETTINGS)(one, train_choices(), TRAINING, 1)
        for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3)):
            batches.collate(2, rank, world)
    whole, *parts = found
    assert [len(part) for part in parts] == [1, 1, 1] and [part[0] for part in parts] == whole


def test_histories_that_are_too_long_are_refused_before_the_first_step():
    """A user of the tiny world has six training choices: beside two targets there are four."""
    for n_ref, targets, there in ((6, 1, 5), (5, 2, 4)):
        settings = SETTINGS.model_copy(update={"n_ref": n_ref, "targets": targets})
        with pytest.raises(HistoryError, match=f"u0.*has {there} choices.*expected at least n_ref = {n_ref}"):
            choice_batches(settings)(method("Ranked"), train_choices(), TRAINING, 1)
    with pytest.raises(HistoryError, match="n_ref = 9"):
        rate(method("ZeroShot"), "test", n_ref=9, draw=0, batch_size=2)


def test_a_shorter_history_has_the_first_choices_of_a_longer_one():
    for user in list(benchmark().users)[:4]:
        long, short = (told(benchmark(), user, n, 1, ()) for n in (5, 2))
        assert set(short) < set(long) and len(short) == 4
        assert told(benchmark(), user, 5, 1, ()) == long
        assert len({frozenset(told(benchmark(), user, 2, draw, ())) for draw in range(8)}) > 1


# --- training -----------------------------------------------------------------------------------------------------


def learn(one, folder: Path, stop: int | None = None):
    def on_step(step: int, terms: dict[str, float]) -> None:
        if step == stop:
            raise Interruption

    options = {"folder": folder, "seed": 1, "on_step": on_step, "make_batches": choice_batches(SETTINGS)}
    return train(one, train_choices(), TRAINING, **options)


def weights(one) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in one.named_parameters()}


@pytest.mark.parametrize(
    ("name", "moves"), [("Ranked", ("lora_", "vision_model")), ("ViPer", ("lora_",)), ("Full", ("prototypes",))]
)
def test_training_moves_what_its_stage_says_and_ends_bit_for_bit_alike_when_it_is_resumed(tmp_path, name, moves):
    whole = method(name)
    before = weights(whole)
    result = learn(whole, tmp_path / "whole")
    assert result.steps == (5 if name == "Full" else 4)
    expected, losses = weights(whole), result.losses
    changed = {key for key, value in expected.items() if not torch.equal(value, before[key])}
    assert changed and all(any(part in key for part in moves) for key in changed)
    assert all(any(part in key for key in changed) for part in moves)
    terms = ["answer"] if name == "ViPer" else ["answer", "plus", "minus"]
    assert np.allclose(losses["total"], losses[terms].sum(axis=1))
    with pytest.raises(Interruption):
        learn(method(name), tmp_path / "parts", stop=3)  # after the checkpoint of step 2
    resumed = method(name, seed=0 if name == "Full" else 9)  # what a second stage does not train is no checkpoint's
    again = learn(resumed, tmp_path / "parts")
    assert again.resumed_from == 2
    pd.testing.assert_frame_equal(again.losses, losses)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    learn(method("Ranked"), tmp_path)
    with pytest.raises(CheckpointError, match="method"):
        learn(method("Ranked", auxiliary=False), tmp_path)


def test_a_training_without_choices_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no training examples"):
        train(method("Ranked"), [], TRAINING, folder=tmp_path, seed=0, make_batches=choice_batches(SETTINGS))


# --- asking -------------------------------------------------------------------------------------------------------


def test_ratings_do_not_depend_on_the_batch_and_say_all_of_every_candidate():
    one = method("ZeroShot")
    frame = rate(one, "test", n_ref=2, draw=1, batch_size=4)
    for size in (1, 7):
        again = rate(method("ZeroShot"), "test", n_ref=2, draw=1, batch_size=size)
        pd.testing.assert_frame_equal(again, frame, rtol=1e-4, atol=1e-4)
    assert list(frame) == ["index", "split", "user", "n_ref", "draw", "candidate", "plus", "minus", "score"]
    asked = [(choice.index, k) for choice in benchmark().select("test") for k in range(len(choice.candidates))]
    assert sorted(zip(frame["index"], frame["candidate"], strict=True)) == sorted(asked)
    shares = torch.softmax(torch.tensor(frame[["plus", "minus"]].to_numpy()), dim=1)[:, 0]
    assert np.allclose(frame["score"], shares.numpy())


def test_ratings_that_were_kept_are_read(tmp_path, monkeypatch):
    one = method("ZeroShot")
    first = rate(one, "test", n_ref=2, draw=0, batch_size=4, folder=tmp_path)
    monkeypatch.setattr(one, "rate", lambda batch: (_ for _ in ()).throw(Interruption))
    pd.testing.assert_frame_equal(rate(one, "test", n_ref=2, draw=0, batch_size=4, folder=tmp_path), first)
    with pytest.raises(Interruption):
        rate(one, "test", n_ref=2, draw=1, batch_size=4, folder=tmp_path)


def test_a_rating_that_is_no_number_is_refused_by_its_choice():
    one = method("ZeroShot")
    with torch.no_grad():
        one.backbone.lm_head.weight.fill_(torch.nan)
    with pytest.raises(EvaluationError, match=r"choice \d+: a rating is not a number"):
        rate(one, "test", n_ref=2, draw=0, batch_size=4)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside_the_model(tmp_path, monkeypatch) -> Path:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str = "Full", edition: Edition = EDITION) -> Path:
    bench = ChoiceWorkbench(edition, "tiny", results="results")
    return bench.run_method(name, 0)


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def folder_of(results: Path | str, name: str) -> Path:
    return run_folder(results, EDITION.name, "tiny", name, 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The results of all methods; whoever changes them copies them."""
    folder = tmp_path_factory.mktemp("finished")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in METHODS:
            run(name)
    return folder


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path / "copied", symlinks=True)
    monkeypatch.chdir(tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize("name", list(METHODS))
def test_a_run_holds_ratings_losses_the_method_and_its_story(finished, name):
    folder = folder_of(finished / "results", name)
    trained = name != "ZeroShot"
    assert {path.name for path in folder.iterdir()} == {"run.json", "predictions.parquet", "method"} | (
        {"losses.parquet"} if trained else set()
    )
    frame = pd.read_parquet(folder / "predictions.parquet")
    candidates = sum(len(choice.candidates) for split in ("test", "unseen") for choice in benchmark().select(split))
    assert frame.groupby("n_ref").size().to_dict() == dict.fromkeys((1, 3) if name == "Full" else (3,), 2 * candidates)
    story = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (story["edition"], story["backbone"], story["method"], story["seed"]) == (EDITION.name, "tiny", name, 0)
    assert story["steps"] == {"ZeroShot": 0, "Full": 5}.get(name, 4)
    assert story["inputs"]["data"] == benchmark().digest and story["seconds"]["evaluate"] > 0
    assert story["parameters"]["trainable_total"] > 0 or not trained
    assert story["parameters"]["prefix_length"] == (5 if name == "Full" else 0)
    assert story["context_tokens"] > 6 * 10


def test_prototypes_and_their_place_are_counted_among_what_tells_of_the_user(finished):
    counts = {n: json.loads((folder_of(finished / "results", n) / "run.json").read_text()) for n in ("Ranked", "Full")}
    assert counts["Full"]["context_tokens"] == counts["Ranked"]["context_tokens"] + 5


def test_a_method_is_run_after_what_it_begins_with_and_both_are_left_alone_then(beside_the_model):
    folder = run()
    trained, own = (
        load_file(path / "method" / "method.safetensors") for path in (folder_of("results", "Ranked"), folder)
    )
    assert all(torch.equal(value, own[key]) for key, value in trained.items())
    assert set(own) - set(trained) == {"prototypes"}
    before = tree(Path("results"))
    assert run() == folder and run_all_seeds(EDITION, "tiny", "Full", results="results") == [folder]
    assert tree(Path("results")) == before


def test_another_first_stage_is_another_second_one(copied):
    story = json.loads((folder_of("results", "Full") / "run.json").read_text())
    first = json.loads((folder_of("results", "Ranked") / "run.json").read_text())
    assert story["inputs"]["begins_with"] == first["inputs_digest"]
    run("Full", small_edition(training={"steps": 3, "batch_size": 6, "checkpoint_every": 2}))
    again = json.loads((folder_of("results", "Full") / "run.json").read_text())
    assert again["inputs"]["begins_with"] != story["inputs"]["begins_with"] and again["steps"] == 4


def test_damaged_weights_are_made_again_before_anything_begins_with_them(copied):
    weights_file = folder_of("results", "Ranked") / "method" / "method.safetensors"
    tensors = load_file(weights_file)
    save_file({name: value + 1 for name, value in tensors.items()}, weights_file)
    shutil.rmtree(folder_of("results", "Full"))
    own = load_file(run() / "method" / "method.safetensors")
    assert all(torch.equal(value, own[key]) for key, value in tensors.items())


@pytest.mark.parametrize(("module", "name"), [(choices, "rate"), (runs, "circumstances"), (runs, "_publish")])
def test_a_run_killed_anywhere_is_absent_and_then_ends_like_any_other(copied, finished, monkeypatch, module, name):
    folder = folder_of("results", "Full")
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *args, **options: (_ for _ in ()).throw(Interruption))
        with pytest.raises(Interruption):
            run()
    assert not folder.exists()
    run()
    reference = folder_of(finished / "results", "Full")
    for file in ("predictions.parquet", "losses.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / file), pd.read_parquet(reference / file))
    ours, theirs = (load_file(path / "method" / "method.safetensors") for path in (folder, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not [path for path in folder.iterdir() if path.name.startswith("answers")]


def test_without_room_for_pictures_a_run_says_the_same(beside_the_model, finished):
    """As large backbones do it: every batch encodes what it shows."""
    folder = run("ViPer", small_edition(cache_images=False))
    frames = [
        pd.read_parquet(path / "predictions.parquet") for path in (folder, folder_of(finished / "results", "ViPer"))
    ]
    pd.testing.assert_frame_equal(*frames, rtol=1e-3, atol=1e-3)


def test_a_history_longer_than_users_have_stops_a_run_before_its_training(beside_the_model):
    edition = small_edition(histories=content()["histories"] | {"lengths": [7], "at_lengths": ["Ranked"]})
    with pytest.raises(HistoryError, match="n_ref = 7"):
        run("Ranked", edition)
    assert not (folder_of("results", "Ranked").with_name("seed0.partial") / "checkpoint").exists()


def test_a_run_without_anything_to_ask_is_refused(beside_the_model):
    bench = ChoiceWorkbench(EDITION, "tiny", results="results")
    bench.benchmark = replace(benchmark(), splits=benchmark().splits | {"test": (), "unseen": ()})
    with pytest.raises(RunError, match=r"no choices in the split\(s\) test, unseen"):
        bench.run_method("ZeroShot", 0)


# --- settings -----------------------------------------------------------------------------------------------------


SCORERS = {
    "Near": {"kind": "neighbours", "label": "Neighbours", "k": [1]},
    "Own": {"kind": "personal_scorer", "label": "Personal", "penalties": [1.0]},
    "Kinds": {"kind": "factors", "label": "Factors", "clusters": [4]},
    "Low": {"kind": "low_rank", "label": "Low rank", "ranks": [2]},
}


def changed(**methods) -> dict:
    known = METHODS | SCORERS
    return content(methods=known | {name: known[name] | new for name, new in methods.items()})


@pytest.mark.parametrize(
    ("edition", "complaint"),
    [
        (
            changed(Full={"begins_with": "Rankd"}),
            r"methods\.Full\.begins_with: no method 'Rankd'; did you mean 'Ranked'",
        ),
        (changed(Ranked={"begins_with": "Full", "prototypes": 5}), "method of this kind without prototypes"),
        (changed(Full={"begins_with": "Full"}), r"Full\.begins_with: Full < Full is a circle"),
        (changed(Full={"begins_with": "ZeroShot"}), r"Full\.begins_with: 'ZeroShot': expected a method of this kind"),
        (changed(Full={"begins_with": "Baseline"}), "'Baseline': expected the same prompts"),
        (changed(Full={"rank": 2}), "'Ranked': expected the same rank"),
        (changed(Full={"prototypes": 0}), "prototypes are trained in stage 2 and need begins_with"),
        (content(more_seeds={"Full": [0, 1]}), "Full begins with Ranked, which has no seed 1"),
        (content(histories={"n_ref": 3, "targets": 4}), "batch_size 6 is not a multiple of histories.targets 4"),
        (
            content(histories={"n_ref": 3, "targets": 2, "at_lengths": ["Fll"]}),
            "histories.at_lengths names methods .*Fll",
        ),
        *[(changed(Near={"k": k}), r"Near\.neighbours\.k") for k in ([], [0], [-1], [3, 3])],
        *[(changed(Own={"penalties": p}), r"Own\.personal_scorer\.penalties") for p in ([], [0.0], [-1.0], [1.0, 1.0])],
        *[(changed(Kinds={"clusters": c}), r"Kinds\.factors\.clusters") for c in ([], [0], [8, 8])],
        *[(changed(Kinds={"factors": f}), r"Kinds\.factors\.factors") for f in ([], [0])],
        *[(changed(Low={"ranks": r}), r"Low\.low_rank\.ranks") for r in ([], [0], [2, 2])],
        *[(changed(Low={n: v}), rf"Low\.low_rank\.{n}") for n in ("penalties", "priors") for v in ([], [0.0], [-1.0])],
        (changed(Low={"reads": "nothing"}), r"Low\.low_rank\.reads"),
    ],
)
def test_mistakes_of_an_edition_are_named(edition, complaint):
    with pytest.raises(ValueError, match=complaint):
        Edition.model_validate(edition)


def test_what_a_method_begins_with_is_needed_by_it_and_run_before_it():
    edition = small_edition(table1=["ZeroShot", "Full"])
    assert (edition.needs("Full"), edition.needs("Ranked")) == (("Ranked",), ())
    assert edition.runs() == [("tiny", "ZeroShot"), ("tiny", "Ranked"), ("tiny", "Full")]
    assert edition.histories.asked("Full") == (1, 3) and edition.histories.asked("Ranked") == (3,)


def test_settings_are_chosen_after_whole_histories_whatever_else_a_method_is_asked_after(copied):
    """Also where a trial has just the edition's settings."""
    workbench = ChoiceWorkbench(EDITION, "tiny", results="results")
    assert workbench.asked("Full") == {"test": (1, 3), "unseen": (1, 3)}
    assert workbench.validation() == {"validation": (3,)}
    folder = workbench.run(EDITION.methods["Full"], 0, copied / "trial", asked=workbench.validation(), about={})
    assert set(pd.read_parquet(folder / "predictions.parquet")["n_ref"]) == {3}
