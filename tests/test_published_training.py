"""How the published method's training differs: its schedule, its ramp, its batches, its letters."""

from dataclasses import replace

import pytest
import torch
from test_prefmoe import configuration
from test_published_method import PUBLISHED

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import LoRAMethod, Training
from prefmoe.models.base import build_method
from prefmoe.models.prefmoe import PrefMoE
from prefmoe.running import training
from prefmoe.running.evaluation import first_tokens
from prefmoe.running.order import plan_batches


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    """build(): the published method, untrained."""
    settings = configuration("EPICDM", **PUBLISHED)
    return lambda: build_method(settings, tiny_backbone(), tiny_benchmark, seed=0)


def settings(**changes) -> Training:
    return Training(**{"steps": 20, "batch_size": 4, "warmup": 0.0} | changes)


def test_the_schedule_is_a_straight_line_to_zero():
    chosen = settings(schedule="linear")
    found = [training.learning_rate_factor(step, 20, chosen) for step in range(20)]
    assert found == pytest.approx([1 - step / 20 for step in range(20)])
    parameter = torch.nn.Parameter(torch.zeros(1))
    warm = settings(schedule="linear", warmup=0.25)
    rising = [training.learning_rate_factor(step, 20, warm) for step in range(20)]
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    line = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (20 - step) / 15))
    for step in range(20):
        if step >= 5:
            assert rising[step] == pytest.approx(line.get_last_lr()[0])
        optimizer.step()
        line.step()
    assert rising[:6] == sorted(rising[:6])


def test_auxiliary_losses_rise_over_the_ramp_and_the_answers_loss_does_not(build, tmp_path):
    assert [training.auxiliary_factor(s, 20, settings(auxiliary_ramp=0.2)) for s in range(6)] == [
        0,
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]
    assert training.auxiliary_factor(0, 20, settings()) == 1

    def rows(folder, **changes):
        method = build()
        examples = method.benchmark.select("train")
        return training.train(method, examples, settings(steps=8, **changes), folder=tmp_path / folder, seed=0).losses

    plain, ramped = rows("plain"), rows("ramped", auxiliary_ramp=0.5)
    auxiliary = sorted(PrefMoE.auxiliary)
    assert (ramped.loc[0, auxiliary] == 0).all() and (plain.loc[0, auxiliary] > 0).any()
    assert ramped.loc[0, "answer"] == pytest.approx(plain.loc[0, "answer"])
    assert ramped.loc[0, "total"] == pytest.approx(plain.loc[0, "answer"])
    # the decorrelation of users hardly moves in a step
    assert ramped.loc[1, "decorrelation"] == pytest.approx(plain.loc[1, "decorrelation"] / 4, rel=0.2)


def test_a_resumed_training_has_the_ramp_and_the_schedule_of_one_that_was_not_interrupted(build, tmp_path):
    chosen = settings(steps=8, schedule="linear", auxiliary_ramp=0.75, checkpoint_every=3, group_batches=False)

    class Interrupted(Exception):
        pass

    def stop(step, row):
        if step == 5:
            raise Interrupted

    def run(folder, on_step=None):
        method = build()
        examples = method.benchmark.select("train")
        result = training.train(method, examples, chosen, folder=tmp_path / folder, seed=0, on_step=on_step)
        return method, result

    whole, expected = run("whole")
    with pytest.raises(Interrupted):
        run("resumed", stop)
    resumed, found = run("resumed")
    assert found.resumed_from == 3 and found.losses.equals(expected.losses)
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_letters_are_learned_in_lower_case_and_asked_for_in_it(tiny_benchmark):
    backbone = load_backbone("llava-mini")
    tokenizer, examples = backbone.tokenizer, tiny_benchmark.select("train")
    for case, written in (("lower", str.lower), ("upper", str)):
        method = build_method(LoRAMethod(kind="lora", label="LoRA", lr=1e-3, rank=2, alpha=2, answers=case),
                              load_backbone("llava-mini"), tiny_benchmark, seed=0)  # fmt: skip
        for example in examples:
            encoded = method.collator.encode(example, with_answer=True)
            assert tokenizer.decode(encoded.input_ids[encoded.labels != -100][:-1]) == written(example.answer_text)
        tokens = first_tokens(tokenizer, letters=case)
        assert tokens["B"] == tokenizer(written("B"), add_special_tokens=False)["input_ids"]
        assert tokens["yes"] == first_tokens(tokenizer)["yes"]
    assert {example.is_multiple_choice for example in examples} == {True, False}
    assert method.collator.wording.said("In a B") == replace(method.collator.wording, answers="lower").said("In a B")


def test_random_batches_mix_forms(tiny_benchmark):
    examples = tiny_benchmark.select("train")
    options = dict(count=60, batch_size=4, seed=0, group_batches=False)

    def mixed(batches):
        return sum(len({examples[p].is_multiple_choice for p in batch}) == 2 for batch in batches)

    random = plan_batches(examples, tiny_benchmark, **options, one_form=False)
    assert mixed(random) > mixed(plan_batches(examples, tiny_benchmark, **options))
    flat = [p for batch in random for p in batch]
    assert sorted(flat[: len(examples)]) == list(range(len(examples)))
