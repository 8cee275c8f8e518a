"""The embedder of answers: attention over a history entry by entry, in any order, and blind to what is asked for."""

import math
from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits
from torch.nn.functional import gelu

from prefmoe.config import HistoryMethod
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.data.prompts import question_text
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.models.controls import controlled
from prefmoe.models.history import History, answer, features

CONFIG = HistoryMethod(kind="history", label="History", lr=1e-2, width=8)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def build(backbone, benchmark: Benchmark) -> History:
    return build_method(CONFIG, backbone, benchmark, seed=0).eval()


def turned(example: Example) -> Example:
    """The same question with another answer."""
    other = (example.answer + 1) % 4 if example.is_multiple_choice else 9 - example.answer
    return example.model_copy(update={"answer": other})


def changed(benchmark: Benchmark, split: str, names: tuple[str, ...] | None = None) -> Benchmark:
    """The benchmark with other answers in a split, of some users or all."""
    chosen = {i for i in benchmark.splits[split] if names is None or benchmark.examples[i].name in names}
    examples = {i: turned(e) if i in chosen else e for i, e in benchmark.examples.items()}
    return replace(benchmark, examples=examples, digest=f"other answers in {split}, {names}")


def without(benchmark: Benchmark, name: str) -> Benchmark:
    train = tuple(i for i in benchmark.splits["train"] if benchmark.examples[i].name != name)
    return replace(benchmark, splits={**benchmark.splits, "train": train}, digest=f"without {name}")


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.square().mean().sqrt()


@BOTH
@torch.no_grad()
def test_a_personal_embedding_is_that_of_its_entries_one_by_one(tiny_backbone, tiny_benchmark, kind):
    method, plain = build(tiny_backbone(kind), tiny_benchmark), tiny_backbone(kind)

    def entry(example: Example) -> list[torch.Tensor]:
        texts = plain.text_anchors([question_text(example), answer(example)], kind="embedding")
        return [unit(v) for v in (texts[0], plain.image_features([example.image])[0].mean(0), texts[1])]

    asked = torch.randn(3, 2, method.backbone.hidden_size)
    examples = [tiny_benchmark.select("train")[k] for k in (0, 7)] + [tiny_benchmark.select("test")[9]]
    rows = torch.tensor([tiny_benchmark.row(e.name) for e in examples])
    found = method.tokens(rows, asked, torch.tensor([e.index for e in examples]))
    first, _, second = method.value
    for row, example in enumerate(examples):
        history = [e for e in tiny_benchmark.select("train") if e.name == example.name and e.index != example.index]
        query = method.query.weight @ torch.cat([unit(part) for part in asked[row]])
        parts = [entry(one) for one in history]
        scores = [float(query @ (method.key.weight @ torch.cat(part[:2]))) / math.sqrt(8) for part in parts]
        total = sum(math.exp(score) for score in scores)
        expected = 0.0
        for score, part in zip(scores, parts, strict=True):
            value = second.weight @ gelu(first.weight @ torch.cat(part) + first.bias) + second.bias
            expected = expected + math.exp(score) / total * value
        rms = plain.embed_tokens.weight.square().mean().sqrt()
        torch.testing.assert_close(found[row, 1], rms * expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[row, 0], rms * method.instruction)


@BOTH
def test_the_order_of_a_history_changes_nothing(tiny_backbone, tiny_benchmark, kind):
    train = tuple(reversed(tiny_benchmark.splits["train"]))
    other = replace(tiny_benchmark, splits={**tiny_benchmark.splits, "train": train}, digest="backwards")
    found, expected = (logits(build(tiny_backbone(kind), one)) for one in (other, tiny_benchmark))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_answers_that_are_asked_for_are_never_seen(tiny_backbone, tiny_benchmark):
    """Test answers change nothing; a training answer changes what is said to the user's other questions alone."""
    method = build(tiny_backbone(), tiny_benchmark)
    test, train = tiny_benchmark.select("test")[::3], tiny_benchmark.select("train")
    before = logits(method, test)
    assert torch.equal(logits(build(tiny_backbone(), changed(tiny_benchmark, "test")), test), before)
    assert not torch.allclose(logits(build(tiny_backbone(), changed(tiny_benchmark, "train")), test), before)
    one = train[0]
    examples = {**tiny_benchmark.examples, one.index: turned(one)}
    again = build(tiny_backbone(), replace(tiny_benchmark, examples=examples, digest="one answer"))
    same = [e for e in train if e.name == one.name]
    assert torch.equal(logits(again, [one]), logits(method, [one]))
    assert not torch.allclose(logits(again, same[1:2]), logits(method, same[1:2]))
    others = [e for e in train if e.name != one.name][:3]
    assert torch.equal(logits(again, others), logits(method, others))


def test_what_is_asked_leads_the_attention(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    rows, index = torch.tensor([0, 0]), torch.tensor([-5, -5])
    asked = torch.randn(2, 2, method.backbone.hidden_size)
    found = method.tokens(rows, asked, index).detach()
    assert torch.equal(found[0, 0], found[1, 0]) and not torch.allclose(found[0, 1], found[1, 1])
    with torch.no_grad():
        method.query.weight.zero_()
    found = method.tokens(rows, asked, index).detach()
    torch.testing.assert_close(found[0, 1], found[1, 1])


def test_users_without_a_history_get_the_mean_entry_and_may_be_given_one(tiny_backbone, tiny_benchmark, tmp_path):
    benchmark = without(tiny_benchmark, "Dot")
    method = build(tiny_backbone(), benchmark)
    asked, row = torch.randn(1, 2, method.backbone.hidden_size), torch.tensor([benchmark.row("Dot")])
    expected = features(tiny_backbone(), benchmark.select("train")).mean(0)
    normed = torch.stack([unit(part) for part in expected]).flatten()
    found = method.tokens(row, asked, torch.tensor([-1]))[0, 1]
    torch.testing.assert_close(found, method.rms * method.value(normed), rtol=1e-3, atol=1e-5)

    given = [e for e in tiny_benchmark.select("train") if e.name == "Dot"]
    question = [e for e in tiny_benchmark.select("test") if e.name == "Dot"][:1]
    before = logits(method, question)
    method.give_history("Dot", given)
    after = logits(method, question)
    assert not torch.allclose(after, before)
    method.give_history("Dot", list(reversed(given)))
    torch.testing.assert_close(logits(method, question), after)
    others = [e for e in tiny_benchmark.select("test") if e.name != "Dot"][:3]
    assert torch.equal(logits(method, others), logits(build(tiny_backbone(), benchmark), others))

    fit(method, 1)
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, tiny_backbone(), benchmark)
    assert torch.equal(logits(loaded, question), logits(method, question))


@pytest.mark.parametrize(("name", "whose", "message"), [
    ("Eve", "Dot", "add_user"), ("Ann", "Ann", "has training questions"),
    ("Dot", "Ann", "is not about 'Dot'"), ("Dot", "", "at least one"),
])  # fmt: skip
def test_histories_that_cannot_be_given_are_refused(tiny_backbone, tiny_benchmark, name, whose, message):
    method = build(tiny_backbone(), without(tiny_benchmark, "Dot"))
    with pytest.raises(MethodError, match=message):
        method.give_history(name, [e for e in tiny_benchmark.select("train") if e.name == whose])


def test_padding_and_company_change_nothing(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    examples = tiny_benchmark.select("test")[2:5]
    together = logits(method, examples)[:, -1]
    for row, example in enumerate(examples):
        torch.testing.assert_close(together[row], logits(method, [example])[0, -1], rtol=1e-3, atol=1e-4)


def test_under_a_control_somebody_else_s_answers_are_read(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    question = tiny_benchmark.select("test")[0]
    with controlled(method, "other_user"):
        batch = batch_of(method, [question], with_answer=False)
        other = logits(method, [question])
    assert batch.user.item() != tiny_benchmark.row(question.name)
    assert not torch.allclose(other, logits(method, [question]))
    with controlled(method, "zero_prefix"):
        zero = logits(method, [question])
    with torch.no_grad():
        for parameter in (method.instruction, *method.value[2].parameters()):
            parameter.zero_()
    torch.testing.assert_close(logits(method, [question]), zero)
