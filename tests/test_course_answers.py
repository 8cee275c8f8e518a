"""What the course ships is what finished runs answered, and an exchange changes the residuals that it names alone."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from small_world import PREFMOE, lay_out, small_backbone, small_benchmark, small_edition

from course import main, residuals_of, write_answers
from prefmoe.analysis.pairs import held_probability
from prefmoe.config import run_folder
from prefmoe.course import answers
from prefmoe.metrics import score
from prefmoe.models.base import build_method
from prefmoe.models.free_users import prefix_of
from prefmoe.running.runs import run_all_seeds
from prefmoe.system.run_files import RunFileError

EDITION = small_edition(
    "tiny-llava",
    seeds=[0],
    more_seeds={"PrefMoE": [0, 1]},
    training={"steps": 1, "batch_size": 6},
    evaluation={"batch_size": 64, "turns": [0], "max_new_tokens": 1, "controls": ["other_user", "zero_prefix"]},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with runs of three methods, and what was written from them."""
    folder = tmp_path_factory.mktemp("course")
    lay_out(folder, "llava")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("NT", "LoRA", "PrefMoE"):
            run_all_seeds(EDITION, "tiny-llava", method, results="results")
        written = write_answers(EDITION, None, folder / "shipped", folder / "results")
        yield folder, written


def test_answers_are_those_of_the_runs(world):
    folder, written = world
    shipped = folder / "shipped"
    assert written == [
        shipped / name for name in ("questions.parquet", "answers.parquet", "exchanges.parquet", "about.json")
    ]
    assert answers.methods(shipped) == {"non-tuned": [0], "adapter": [0], "full": [0, 1]}
    for label, method, seed in (("adapter", "LoRA", 0), ("full", "PrefMoE", 0)):
        run = pd.read_parquet(run_folder("results", EDITION.name, "tiny-llava", method, seed) / "predictions.parquet")
        run = run[(run["split"] == "test") & (run["turns"] == 0)].set_index("index").sort_index()
        found = answers.scored(label, seed, folder=shipped).set_index("index")
        assert found["prediction"].tolist() == run["prediction"].tolist()
        assert found["p_yes"].to_numpy() == pytest.approx(run["p_yes"].to_numpy(), abs=1e-6, nan_ok=True)
        assert found["hit"].tolist() == score(run.reset_index())["hit"].tolist()
    assert answers.about(shipped)["backbone"] == "tiny-llava" and len(answers.about(shipped)["runs"]) == 4


def test_controls_of_the_focus_are_shipped_too(world):
    shipped = world[0] / "shipped"
    plain, other = (answers.scored("full", 1, control=kind, folder=shipped) for kind in ("none", "other_user"))
    assert plain["index"].tolist() == other["index"].tolist()
    assert (plain["p_yes"] - other["p_yes"]).abs().max() > 1e-6


def test_training_questions_are_of_the_training_split_and_say_what_was_true(world):
    shipped, benchmark = world[0] / "shipped", small_benchmark()
    rows = answers.training(shipped)
    asked = [e for e in benchmark.select("train") if e.category == "preference" and not e.is_multiple_choice]
    assert rows["user"].tolist() == [e.name for e in sorted(asked, key=lambda e: e.index)]
    assert rows["truth"].tolist() == [e.answer_text for e in sorted(asked, key=lambda e: e.index)]


def test_exchanges_begin_with_what_the_run_answered(world):
    shipped = world[0] / "shipped"
    rows = answers.exchanges(shipped)
    run = answers.scored("full", 0, folder=shipped)
    known = {(n, i): p for n, i, p in zip(run["name"], run["item"], held_probability(run).round(4), strict=True)}
    assert len(rows) > 3
    same = [
        abs(known[user, item] - own) < 2e-4
        for user, item, own in zip(rows["user"], rows["item"], rows["own"], strict=True)
    ]
    assert sum(same) / len(same) > 0.8  # a user may be asked about one thing twice
    assert (rows["own"] - rows["asked_facet"]).abs().max() > 0 and (rows["own"] - rows["other_facets"]).abs().max() > 0


@pytest.mark.parametrize("facets", [(), (0,), (1, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_an_exchange_touches_the_named_residuals_and_nothing_else(facets):
    config = small_edition("tiny-llava", methods={"PrefMoE": PREFMOE}, table1=["PrefMoE"]).methods["PrefMoE"]
    state = build_method(config, small_backbone(), small_benchmark(), seed=0).user_state
    rows = torch.tensor([0, 2, 3])
    before, other = state(rows), state(torch.tensor([1]))
    with residuals_of(state, 1, lambda facet: facet in facets):
        found = state(rows)
    expected = before.residuals.clone()
    for facet in facets:
        expected[:, facet] = other.residuals[0, facet]
    wanted = replace(before, residuals=expected, prefix=prefix_of(before.profile, before.prototypes, expected))
    for name in ("prefix", "profile", "prototypes", "residuals"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(state(rows).prefix, before.prefix)


def test_a_run_that_is_missing_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, "llava")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFileError, match="NT/seed0: no finished run"):
        write_answers(EDITION, None, tmp_path / "shipped", tmp_path / "results")
    assert not (tmp_path / "shipped").exists()
    assert main(["answers", "--edition", "nowhere"]) != 0
    assert "nowhere" in capsys.readouterr().err
