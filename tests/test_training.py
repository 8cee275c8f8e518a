"""Training: batches with recurring groups, exact resumption, errors that leave nothing behind."""

import math
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_world import small_backbone, small_benchmark, small_edition

from prefmoe.config import Training
from prefmoe.models.base import build_method
from prefmoe.running.checkpoints import CheckpointError, TrainingError
from prefmoe.running.training import learning_rate_factor, plan_batches, total_steps, train

TRAINING = Training(steps=5, batch_size=6, checkpoint_every=2, gradient_accumulation=2)


class Interruption(Exception):
    """Stands for a killed process."""


def fresh(backbone, name: str, seed: int = 0):
    return build_method(small_edition("tiny").methods[name], backbone, small_benchmark(), seed=seed)


def trained(method) -> list[torch.Tensor]:
    return [p.detach().clone() for group in method.parameter_groups() for p in group["params"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[torch.Tensor]]:
    """The folder of a finished training of LoRA with seed 1, and its weights; whoever changes the folder copies it."""
    folder, method = tmp_path_factory.mktemp("finished"), fresh(small_backbone(), "LoRA")
    train(method, small_benchmark().select("train"), TRAINING, folder=folder, seed=1)
    return folder, trained(method)


def plan(count: int, **changes) -> list[list[int]]:
    options = {"batch_size": 6, "seed": 3, "group_batches": True} | changes
    return plan_batches(small_benchmark().select("train"), small_benchmark(), count=count, **options)


@pytest.mark.parametrize("group_batches", [True, False])
def test_every_epoch_shows_each_example_once_in_full_batches(group_batches):
    batches = plan(24, group_batches=group_batches)
    assert {len(batch) for batch in batches} == {6}
    shown = [position for batch in batches for position in batch]
    size = len(small_benchmark().select("train"))
    assert 24 * 6 == 3 * size
    for epoch in range(3):
        assert sorted(shown[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_odd_batches_split_a_pair_and_lose_nobody():
    batches = plan(16, batch_size=3)
    assert Counter(position for batch in batches for position in batch) == Counter(range(48))


@pytest.mark.parametrize("group_batches", [True, False])
def test_batches_are_of_one_form_but_for_the_last_of_an_epoch(group_batches):
    examples = small_benchmark().select("train")
    for size in (3, 6, 7):
        batches = plan(len(examples) // size * 3, batch_size=size, group_batches=group_batches)
        mixed = [len({examples[p].is_multiple_choice for p in batch}) > 1 for batch in batches]
        assert {examples[p].is_multiple_choice for batch in batches for p in batch} == {True, False}
        assert sum(mixed) <= 3 * 2


def test_a_longer_plan_begins_like_a_shorter_one_and_depends_on_the_seed():
    assert plan(20)[:7] == plan(7)
    assert plan(7) != plan(7, seed=4)


def test_group_batches_bring_other_users_of_the_asked_preference_group():
    benchmark, examples = small_benchmark(), small_benchmark().select("train")

    def share(batches: list[list[int]]) -> float:
        met = []
        for batch in batches:
            members = [(examples[p].name, benchmark.groups[benchmark.row(examples[p].name)]) for p in batch]
            for position in batch:
                example = examples[position]
                if example.facet_id >= 0:
                    own = benchmark.groups[benchmark.row(example.name)][example.facet_id]
                    met.append(any(n != example.name and g[example.facet_id] == own for n, g in members))
        return sum(met) / len(met)

    assert share(plan(80, batch_size=2)) > 2 * share(plan(80, batch_size=2, group_batches=False))


def test_learning_rate_warms_up_and_follows_the_cosine():
    training = Training(steps=100, batch_size=1, warmup=0.1)
    factors = [learning_rate_factor(step, 100, training) for step in range(100)]
    assert factors[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert factors[10:] == pytest.approx([(1 + math.cos(math.pi * k / 90)) / 2 for k in range(90)])
    constant = Training(steps=100, batch_size=1, warmup=0.1, schedule="constant")
    assert {learning_rate_factor(step, 100, constant) for step in range(10, 100)} == {1.0}


def test_a_time_matched_baseline_gets_its_factor_of_steps():
    lora = small_edition("tiny").methods["LoRA"]
    assert total_steps(TRAINING, lora) == 5
    assert total_steps(TRAINING, lora.model_copy(update={"steps_factor": 2.5})) == 12
    assert total_steps(TRAINING, small_edition("tiny").methods["FFT"]) == 5


@pytest.mark.parametrize("name", ["FFT", "LoRA", "PrefMoE"])
def test_resuming_ends_in_the_very_weights_of_an_uninterrupted_run(tmp_path, name):
    examples = small_benchmark().select("train")
    whole = fresh(small_backbone(), name)
    before = trained(whole)
    result = train(whole, examples, TRAINING, folder=tmp_path / "whole", seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(before, trained(whole), strict=True))

    def interrupt(step: int, terms: dict[str, float]) -> None:
        if step == 3:
            raise Interruption

    with pytest.raises(Interruption):
        train(fresh(small_backbone(), name), examples, TRAINING, folder=tmp_path / "cut", seed=1, on_step=interrupt)
    assert not (tmp_path / "cut" / "losses.parquet").exists()
    torch.manual_seed(99)  # what the process drew before resuming must not matter
    second = fresh(small_backbone(), name)
    resumed = train(second, examples, TRAINING, folder=tmp_path / "cut", seed=1)
    assert resumed.resumed_from == 2 and resumed.steps == result.steps == 5
    for ours, theirs in zip(trained(second), trained(whole), strict=True):
        assert torch.equal(ours, theirs)
    pd.testing.assert_frame_equal(resumed.losses, result.losses)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "cut" / "losses.parquet"), result.losses)


@pytest.mark.parametrize("name", ["LoRA", "PrefMoE"])
def test_mixed_precision_multiplies_in_half_the_bits_and_keeps_what_is_trained_whole(tmp_path, name):
    examples, losses, weights = small_benchmark().select("train"), {}, {}
    for precision in ("no", "bf16"):
        method = fresh(small_backbone(), name)
        training = TRAINING.model_copy(update={"mixed_precision": precision})
        losses[precision] = train(method, examples, training, folder=tmp_path / precision, seed=1).losses["answer"]
        weights[precision] = trained(method)
    assert {tensor.dtype for tensor in weights["bf16"]} == {torch.float32}
    assert (losses["no"] != losses["bf16"]).any(), "nothing was rounded"
    assert losses["bf16"].iloc[0] == pytest.approx(losses["no"].iloc[0], rel=0.03)  # 8 bits in each product
    with pytest.raises(CheckpointError, match="mixed_precision"):
        train(fresh(small_backbone(), name), examples, TRAINING, folder=tmp_path / "bf16", seed=1)


def test_a_finished_training_is_only_loaded(tmp_path):
    examples = small_benchmark().select("train")
    first = fresh(small_backbone(), "LoRA")
    train(first, examples, TRAINING, folder=tmp_path, seed=1)
    seen: list[int] = []
    second = fresh(small_backbone(), "LoRA", seed=5)
    result = train(second, examples, TRAINING, folder=tmp_path, seed=1, on_step=lambda step, _: seen.append(step))
    assert seen == [] and result.resumed_from == 5
    assert all(torch.equal(a, b) for a, b in zip(trained(first), trained(second), strict=True))


def test_losses_are_logged_per_term_and_sum_to_the_total(tmp_path):
    steps: dict[int, dict[str, float]] = {}
    result = train(
        fresh(small_backbone(), "PrefMoE"),
        small_benchmark().select("train"),
        TRAINING,
        folder=tmp_path,
        seed=1,
        on_step=steps.__setitem__,
    )
    table = result.losses.set_index("step")
    assert list(table.index) == [1, 2, 3, 4, 5] == list(steps)
    terms = [c for c in table.columns if c not in ("lr_factor", "total", "gradient_norm")]
    assert "answer" in terms and len(terms) > 3
    assert table[terms].sum(axis=1).tolist() == pytest.approx(table["total"].tolist())
    assert table.loc[2, terms].to_dict() == steps[2]


def test_accumulated_batches_give_the_gradient_of_their_mean(tmp_path):
    examples = small_benchmark().select("train")
    method = fresh(small_backbone(), "FFT")
    start = trained(method)
    batches = plan_batches(examples, small_benchmark(), count=2, batch_size=6, seed=1, group_batches=True)
    for positions in batches:
        batch = method.collator([examples[p] for p in positions], transcripts=None, with_answer=True)
        with method.context(batch):
            (sum(method.training_losses(batch).values()) / 2).backward()
    parameters = [p for group in method.parameter_groups() for p in group["params"]]
    squares = sum(p.grad.square().sum() for p in parameters if p.grad is not None)
    one = TRAINING.model_copy(update={"steps": 1})
    other = fresh(small_backbone(), "FFT")
    assert all(torch.equal(a, b) for a, b in zip(start, trained(other), strict=True))
    losses = train(other, examples, one, folder=tmp_path, seed=1).losses
    assert losses["gradient_norm"][0] == pytest.approx(squares.sqrt().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed is 1 there, 2 here"),
        ({"backbone": "qwen2_5_vl"}, "backbone is 'tiny-llava' there, 'tiny-qwen2_5_vl' here"),
        ({"name": "FFT"}, "method"),
        ({"steps": 6}, "training"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, finished, change, named):
    examples = small_benchmark().select("train")
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    method = fresh(small_backbone(change.get("backbone", "llava")), change.get("name", "LoRA"))
    training = TRAINING.model_copy(update={"steps": change.get("steps", 5)})
    with pytest.raises(CheckpointError, match=named):
        train(method, examples, training, folder=tmp_path, seed=change.get("seed", 1))


FILES_OF_A_CHECKPOINT = ("parameters.safetensors", "optimizer.safetensors", "losses.parquet", "state.json")


@pytest.mark.parametrize("damage", ["flipped", "cut", "absent", "without digest"])
def test_a_damaged_checkpoint_is_named_and_training_starts_again(tmp_path, finished, caplog, damage):
    examples = small_benchmark().select("train")
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for name in FILES_OF_A_CHECKPOINT if damage == "flipped" else FILES_OF_A_CHECKPOINT[:1]:
        path = tmp_path / "checkpoint" / "step-000005" / name
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) * 2 // 3] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(content[:-4])
        else:
            path.with_name(name + (".sha256" if damage == "without digest" else "")).unlink()
        second = fresh(small_backbone(), "LoRA")
        assert train(second, examples, TRAINING, folder=tmp_path, seed=1).resumed_from == 0
        assert "step-000005: damaged" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(trained(second), finished[1], strict=True))
        caplog.clear()


def test_an_earlier_checkpoint_is_taken_where_the_newest_is_damaged(tmp_path, caplog):
    examples = small_benchmark().select("train")
    whole = fresh(small_backbone(), "LoRA")

    def copy(step: int, terms: dict[str, float]) -> None:
        if step == 4:
            shutil.copytree(tmp_path / "checkpoint" / "step-000004", tmp_path / "step-000004")

    train(whole, examples, TRAINING, folder=tmp_path, seed=1, on_step=copy)
    (tmp_path / "step-000004").rename(tmp_path / "checkpoint" / "step-000004")
    (tmp_path / "checkpoint" / "step-000005" / "optimizer.safetensors").write_bytes(b"not tensors")
    second = fresh(small_backbone(), "LoRA")
    assert train(second, examples, TRAINING, folder=tmp_path, seed=1).resumed_from == 4
    assert all(torch.equal(a, b) for a, b in zip(trained(second), trained(whole), strict=True))


@pytest.mark.parametrize("step", [4, 5])
def test_weights_that_are_not_numbers_never_replace_a_good_checkpoint(tmp_path, monkeypatch, step):
    """The loss and the gradient were finite; the optimiser's step spoils a weight. Step 5 is the last."""
    examples = small_benchmark().select("train")
    original, calls = torch.optim.AdamW.step, []

    def spoiling(self, *arguments, **options):
        original(self, *arguments, **options)
        calls.append(1)
        if len(calls) == step:
            with torch.no_grad():
                self.param_groups[0]["params"][3].view(-1)[1] = torch.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    with pytest.raises(TrainingError, match=f"step {step}: weights or moments that are NaN or infinite: .*lora_"):
        train(fresh(small_backbone(), "LoRA"), examples, TRAINING, folder=tmp_path, seed=1)
    monkeypatch.setattr(torch.optim.AdamW, "step", original)
    kept = {4: 2, 5: 4}[step]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == [f"step-{kept:06d}"]
    assert not (tmp_path / "losses.parquet").exists()
    assert train(fresh(small_backbone(), "LoRA"), examples, TRAINING, folder=tmp_path, seed=1).resumed_from == kept


def test_a_half_written_checkpoint_is_never_read(tmp_path, finished):
    examples = small_benchmark().select("train")
    broken = tmp_path / "cut" / "checkpoint" / "step-000004.partial"
    broken.mkdir(parents=True)
    (broken / "parameters.safetensors").write_bytes(b"cut off here")
    second = fresh(small_backbone(), "LoRA")
    assert train(second, examples, TRAINING, folder=tmp_path / "cut", seed=1).resumed_from == 0
    assert all(torch.equal(a, b) for a, b in zip(trained(second), finished[1], strict=True))
    assert [path.name for path in (tmp_path / "cut" / "checkpoint").iterdir()] == ["step-000005"]


def test_a_loss_that_is_not_a_number_stops_and_names_step_terms_and_questions(tmp_path):
    benchmark = small_benchmark()
    examples = benchmark.select("train")
    method = fresh(small_backbone(), "LoRA")

    def spoil(step: int, terms: dict[str, float]) -> None:
        if step == 1:
            with torch.no_grad():
                method.backbone.lm_head.weight[5] = torch.nan

    with pytest.raises(TrainingError, match="step 2 of 5: .*'answer': nan.*question indices") as caught:
        train(method, examples, TRAINING, folder=tmp_path, seed=1, on_step=spoil)
    positions = plan_batches(examples, benchmark, count=4, batch_size=6, seed=1, group_batches=True)[2]
    assert str(examples[positions[0]].index) in str(caught.value)
    assert not (tmp_path / "losses.parquet").exists()
    assert not list(tmp_path.glob("checkpoint/step-*"))


def test_nothing_to_train_is_said(tmp_path):
    with pytest.raises(TrainingError, match="no trainable parameters"):
        train(fresh(small_backbone(), "NT"), small_benchmark().select("train"), TRAINING, folder=tmp_path, seed=1)
    with pytest.raises(TrainingError, match="no training examples"):
        train(fresh(small_backbone(), "LoRA"), [], TRAINING, folder=Path(tmp_path), seed=1)
