"""LOVA3: what is asked and assessed, of which questions, how the tasks are mixed, and LoRA underneath."""

import re
from collections import Counter

import pytest
import torch
from method_checks import batch_of, logits
from pretraining.miniatures import vocabulary

from prefmoe.config import LoRAMethod, LOVA3Method, NonTunedMethod, Training
from prefmoe.data import prompts
from prefmoe.data.prompts import PLACEHOLDER
from prefmoe.models.base import build_method
from prefmoe.models.lova3 import ASK, ASSESS, asking, assessing, candidates
from prefmoe.models.yollava import QUESTION
from prefmoe.running.training import train

ADAPTER = dict(label="x", lr=3e-3, rank=2, alpha=2, dropout=0.0)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def lova3(**shares) -> LOVA3Method:
    return LOVA3Method(kind="lova3", **ADAPTER, **({"asking": 0.5, "assessing": 0.5} | shares))


def said(method, example) -> tuple[str, str]:
    """The prompt that a task shows, and what the model is trained to say, both decoded."""
    batch, tokenizer = batch_of(method, [example]), method.backbone.tokenizer
    ids, labels = batch.inputs["input_ids"][0], batch.labels[0]
    return tuple(tokenizer.decode(ids[mask], skip_special_tokens=True) for mask in (labels == -100, labels != -100))


@BOTH
def test_asking_shows_the_picture_and_wants_the_question_and_its_answer(tiny_backbone, tiny_benchmark, kind):
    method = build_method(lova3(), tiny_backbone(kind), tiny_benchmark, seed=0)
    tokenizer = method.backbone.tokenizer
    for example in tiny_benchmark.select("train")[:8]:
        prompt, target = said(method, asking(example))
        text = prompts.question_text(example) + example.answer_text
        assert target == tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        question = tokenizer.decode(tokenizer(prompts.question_text(example))["input_ids"], skip_special_tokens=True)
        assert example.name in prompt and question in said(method, example)[0] and question not in prompt
        task = batch_of(method, [asking(example)]).inputs
        question = batch_of(method, [example]).inputs
        assert torch.equal(task["pixel_values"], question["pixel_values"])


def test_assessing_shows_a_candidate_and_wants_the_verdict(tiny_backbone, tiny_benchmark):
    method = build_method(lova3(), tiny_backbone(), tiny_benchmark, seed=0)
    chosen = [e for e in tiny_benchmark.examples.values() if e.is_multiple_choice][:2]
    chosen += [e for e in tiny_benchmark.examples.values() if not e.is_multiple_choice][:2]
    for example in chosen:
        allowed = ["A", "B", "C", "D"] if example.is_multiple_choice else ["yes", "no"]
        assert candidates(example) == len(allowed)
        task = assessing(example, 0, right=True)
        assert task.question.startswith(prompts.question_text(example))
        assert task.question.endswith(f"Is it {example.answer_text}?")
        prompt, reply = said(method, task)
        assert said(method, example)[0].split(" ASSISTANT")[0] in prompt
        assert reply == f"yes, it is {example.answer_text}"
        shown = Counter()
        for draw in range(6):
            task = assessing(example, draw, right=False)
            assert task.answer_text == f"no, it is {example.answer_text}"
            (candidate,) = [c for c in allowed if task.question.endswith(f"Is it {c}?")]
            shown[candidate] += 1
        assert set(shown) == set(allowed) - {example.answer_text}
        assert len(set(shown.values())) == 1


def test_an_index_names_one_task_of_one_question(tiny_benchmark):
    tasks = {}
    for example in tiny_benchmark.examples.values():
        for task in [asking(example), assessing(example, 0, right=True)] + [
            assessing(example, draw, right=False) for draw in range(candidates(example) - 1)
        ]:
            assert task.index < 0 and task.index not in tasks
            tasks[task.index] = task
    assert len(tasks) == sum(2 + candidates(e) - 1 for e in tiny_benchmark.examples.values())


def test_the_instructions_are_words_to_the_miniature():
    known = set(vocabulary())
    for text in (ASK, ASSESS, QUESTION, "yes, it is no"):
        words = set(re.findall(r"[A-Za-z]+", text.replace(PLACEHOLDER, "").replace("{answer}", "")))
        assert words and words <= known


@BOTH
def test_without_shares_it_is_lora(tiny_backbone, tiny_benchmark, kind):
    methods = [
        build_method(config, tiny_backbone(kind), tiny_benchmark, seed=3)
        for config in (lova3(asking=0, assessing=0), LoRAMethod(kind="lora", **ADAPTER))
    ]
    ours, lora = (method.training_losses(batch_of(method)) for method in methods)
    torch.testing.assert_close(ours["answer"], lora["answer"])  # the sums are taken in another order
    assert not ours["asking"].any() and not ours["assessing"].any()
    plain = NonTunedMethod(kind="nontuned", label="x", profile="none")
    untouched = build_method(plain, tiny_backbone(kind), tiny_benchmark, seed=0)
    torch.testing.assert_close(logits(methods[0].eval()), logits(untouched))


@torch.no_grad()
def test_each_task_weighs_by_its_examples(tiny_backbone, tiny_benchmark):
    method = build_method(lova3(asking=1, assessing=0), tiny_backbone(), tiny_benchmark, seed=0).eval()
    examples = tiny_benchmark.select("train")[:6]
    batch = batch_of(method, examples)
    terms = method.training_losses(batch)

    def loss(batch) -> torch.Tensor:
        return method.model(**batch.inputs, labels=batch.labels).loss

    torch.testing.assert_close(terms["answer"], loss(batch) / 2)
    torch.testing.assert_close(terms["asking"], loss(batch_of(method, [asking(e) for e in examples])) / 2)


class Recorder:
    """A collator that remembers what it was given."""

    def __init__(self, collator) -> None:
        self.collator, self.seen, self.cache = collator, [], False

    def __call__(self, examples, **options):
        self.seen += examples
        return self.collator(examples, **options)


def test_tasks_are_made_from_training_questions_in_the_shares_asked_for(tiny_backbone, tiny_benchmark, tmp_path):
    method = build_method(lova3(asking=0.7, assessing=0.3), tiny_backbone(), tiny_benchmark, seed=0)
    method.collator = recorder = Recorder(method.collator)
    steps, size = 30, 8
    training = Training(steps=steps, batch_size=size, checkpoint_every=steps)
    train(method, tiny_benchmark.select("train"), training, folder=tmp_path, seed=0)
    answered = [example for example in recorder.seen if example.index >= 0]
    tasks = [example for example in recorder.seen if example.index < 0]
    assert len(answered) == 2 * steps * size  # in the batch, and once more beside the tasks
    assert {(-1 - task.index) // 7 for task in tasks} <= set(tiny_benchmark.splits["train"])
    kinds = Counter((-1 - task.index) % 7 > 0 for task in tasks)
    assert kinds[False] / (steps * size) == pytest.approx(0.7, abs=0.1)
    assert kinds[True] / (steps * size) == pytest.approx(0.3, abs=0.1)
    right = [task.answer_text.startswith("yes") for task in tasks if (-1 - task.index) % 7 > 0]
    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.2)
