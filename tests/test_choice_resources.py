"""The plan of editions about choices: exact bytes of what is trained, upper estimates of what is read, the paper."""

import pytest
from small_choices import METHODS, benchmark, method, model_folder, settings

from prefmoe.cli import main
from prefmoe.config import load_edition
from prefmoe.config.registry import find_backbone
from prefmoe.running.choices import session
from prefmoe.workflow import resources, sessions

RATERS = ("ViPer", "Baseline", "Full")


@pytest.mark.parametrize("name", RATERS)
def test_bytes_of_parameters_gradients_and_optimiser_are_exact(name):
    one, shape = method(name), resources.shape_of(find_backbone(str(model_folder())))
    expected = resources.training_memory(settings(name), shape, users=0, tokens=0, width=4)
    assert sum(p.nbytes for p in one.parameters()) == expected.parameters
    groups = [p for group in one.parameter_groups() for p in group["params"]]
    assert sum(p.nbytes for p in groups) == expected.gradients == expected.optimiser / 2
    assert one.describe()["trainable_total"] == resources.trained_parameters(settings(name), shape, 0)
    held = sum(tensor.nbytes for tensor in one._tensors().values())
    assert held == 4 * resources.held_parameters(settings(name), shape, 0)


def test_a_tower_that_learns_is_kept_in_float32_once():
    shape = resources.shape_of(find_backbone(str(model_folder())))
    one = method("Baseline")
    half = {
        width: resources.training_memory(settings("Baseline"), shape, users=0, tokens=0, width=width)
        for width in (2, 4)
    }
    in_float32 = {id(p) for group in one.parameter_groups() for p in group["params"]}
    expected = sum(p.numel() * (4 if id(p) in in_float32 else 2) for p in one.parameters())
    assert half[2].parameters == expected


@pytest.mark.parametrize("name", ["ZeroShot", *METHODS])
def test_sessions_are_at_most_as_long_as_planned_and_not_much_shorter(name):
    one, shape = method(name), resources.shape_of(find_backbone(str(model_folder())))
    user = list(benchmark().users)[0]
    chosen = [choice for choice in benchmark().select("train") if choice.user == user][:2]
    read = one.collator([session(benchmark(), chosen, n_ref=3, draw=0, pairs=True)])
    planned = sessions.session_tokens(settings(name), shape, 3, 4, sessions.MINIATURE_PROMPT)
    assert planned / 2 < read.input_ids.shape[1] <= planned


def test_the_edition_of_the_paper_has_its_settings():
    edition = load_edition("pick-a-pic")
    training, histories = edition.training, edition.histories
    assert (
        training.batch_size * training.gradient_accumulation == 64
        and training.batch_size == 2 * edition.hardware.processes
    )
    assert (training.weight_decay, training.steps, histories.n_ref) == (1e-2, 5000, 8)
    assert (edition.backbones, edition.hardware.four_bit) == (("idefics2-8b",), True)
    for count in (5, 10, 20):
        full = edition.methods[f"Prototypes{count}"]
        assert (full.prototypes, full.begins_with, full.lr_prototypes) == (count, "Auxiliary", 1e-5)
        assert round(full.steps_factor * training.steps) == 16_000
    baseline, viper = edition.methods["Baseline"], edition.methods["ViPer"]
    assert (baseline.lr, baseline.vision, baseline.max_prompt_tokens) == (1e-5, True, 100)
    ladder = [edition.methods[name] for name in edition.table2]
    assert [(m.prompts, m.auxiliary, m.prototypes) for m in ladder] == [
        (False, False, 0), (True, False, 0), (True, True, 0), (True, True, 10),
    ]  # fmt: skip
    assert viper.objective == "ratings" and not viper.prompts
    same = {"label", "objective"}
    assert viper.model_dump(exclude=same) == baseline.model_dump(exclude=same), "trained as ours, objective apart"


def test_what_the_paper_s_runs_need_follows_from_what_they_read():
    edition = load_edition("pick-a-pic")
    needs = {name: resources.needs(edition, "idefics2-8b", name) for _, name in edition.runs()}
    shape = find_backbone("idefics2-8b").shape
    assert {need.gpus for need in needs.values()} == {8} and {need.download for need in needs.values()} == {
        2 * shape.parameters
    }
    first, second, blind, zero = (needs[name] for name in ("Auxiliary", "Prototypes10", "Baseline", "ZeroShot"))
    # 16,000 steps after 5,000: but no backward pass through the tower, and pictures need not be seen again.
    assert 2 < second.hours / first.hours < 3.2
    assert blind.hours < first.hours and blind.training < first.training, "prompts are tokens"
    assert second.training < first.training < 80e9, "the tower's gradients, moments and activations are the difference"
    assert zero.training == 0 < zero.evaluation < first.evaluation
    trained = resources.trained_parameters(edition.methods["Auxiliary"], shape, 0)
    assert trained - shape.vision == 32 * 8 * (2 * 4096 + 4 * (4096 + 1024) // 2 + 2 * 4096 + 3 * (4096 + 14336))
    assert first.training > 16 * shape.vision, "weights, gradient and two moments of the tower in float32"


def test_more_and_longer_histories_are_more_to_read():
    edition = load_edition("pick-a-pic")
    method_, shape = edition.methods["Auxiliary"], find_backbone("idefics2-8b").shape
    once = sessions.reading(edition, method_, "Auxiliary", shape)
    for changed in ({"histories.draws": 3}, {"training.steps": 6000}, {"histories.n_ref": 9}):
        assert (
            sessions.reading(edition.with_settings(changed), method_, "Auxiliary", shape).operations > once.operations
        )
    assert sessions.reading(edition, method_, "Prompts", shape).operations < once.operations, (
        "asked at one length alone"
    )
    checkpointed = sessions.tower_activations(shape, 18, checkpointing=True)
    assert 4 < sessions.tower_activations(shape, 18, checkpointing=False) / checkpointed < 16


def test_the_plan_is_printed_for_every_method(capsys):
    assert main(["plan", "pick-a-pic"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in load_edition("pick-a-pic").methods)
