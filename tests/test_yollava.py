"""Yo'LLaVA against trained and restored matrices; what prompts say, whose rows move, hard negatives."""

from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits

from prefmoe.backbones.backbone import Backbone
from prefmoe.config import YoLLaVAMethod
from prefmoe.data import prompts
from prefmoe.models.base import MethodError, build_method
from prefmoe.models.yollava import QUESTION, YoLLaVA

TOKENS = 3
WORDS = ["<sks>", "<token0>", "<token1>", "<token2>"]
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def configuration(**changes) -> YoLLaVAMethod:
    return YoLLaVAMethod(
        kind="yollava", label="Yo'LLaVA", **({"lr": 1e-2, "tokens": TOKENS, "recognition": 0.0} | changes)
    )


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    def build(kind: str = "llava", *, benchmark=tiny_benchmark, **changes) -> YoLLaVA:
        return build_method(configuration(**changes), tiny_backbone(kind), benchmark, seed=0)

    return build


def of_user(benchmark, name: str, split: str = "train"):
    return [example for example in benchmark.select(split) if example.name == name]


def resized(backbone: Backbone, method: YoLLaVA, row: int) -> Backbone:
    """The backbone with a larger vocabulary, whose last rows are one user's."""
    backbone.tokenizer.add_tokens(WORDS)
    backbone.model.resize_token_embeddings(len(backbone.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for part, rows in ((backbone.embed_tokens, method.inputs), (backbone.lm_head, method.outputs)):
            part.weight[-len(WORDS) :] = rows.embedding[row]
    return backbone


@BOTH
def test_a_step_equals_training_both_matrices_and_restoring_the_other_rows(build, tiny_backbone, tiny_benchmark, kind):
    method = build(kind)
    row = tiny_benchmark.row("Bob")
    reference = resized(tiny_backbone(kind), method, row)
    batch = batch_of(method, of_user(tiny_benchmark, "Bob")[:3])

    matrices = [reference.embed_tokens.weight, reference.lm_head.weight]
    before = [matrix.detach().clone() for matrix in matrices]
    optimizer = torch.optim.AdamW([matrix.requires_grad_() for matrix in matrices], lr=1e-2, weight_decay=0.0)
    expected = []
    for _ in range(2):
        loss = reference.model(**batch.inputs, labels=batch.labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
        with torch.no_grad():
            for matrix, old in zip(matrices, before, strict=True):
                matrix[: -len(WORDS)] = old[: -len(WORDS)]

    log = fit(method, 2, batch)
    assert [terms["answer"] for terms in log] == pytest.approx(expected, rel=1e-4)
    for users, matrix, old in zip((method.inputs, method.outputs), matrices, before, strict=True):
        assert not torch.allclose(matrix[-len(WORDS) :], old[-len(WORDS) :], atol=1e-3)
        torch.testing.assert_close(users.embedding[row], matrix[-len(WORDS) :], rtol=1e-3, atol=1e-4)
    examples = of_user(tiny_benchmark, "Bob", "test")[:2]
    inputs = batch_of(method, examples, with_answer=False).inputs
    with torch.no_grad():
        torch.testing.assert_close(logits(method, examples), reference.model(**inputs).logits, rtol=1e-3, atol=1e-3)


@BOTH
def test_a_user_s_questions_train_that_user_s_rows_alone(build, tiny_benchmark, kind):
    method = build(kind)
    before = [users.embedding.detach().clone() for users in (method.inputs, method.outputs)]
    fit(method, 2, batch_of(method, of_user(tiny_benchmark, "Cid")[:3]))
    for users, old in zip((method.inputs, method.outputs), before, strict=True):
        assert users.embedding.shape == (4, 1 + TOKENS, method.backbone.hidden_size)
        changed = (users.embedding - old).abs().amax((1, 2)) > 0
        assert changed.tolist() == [name == "Cid" for name in tiny_benchmark.users]


@torch.no_grad()
def test_outside_its_context_the_backbone_is_as_it_was(build, tiny_backbone, tiny_benchmark):
    method, plain = build(), tiny_backbone()
    ids = batch_of(method, with_answer=False).inputs["input_ids"]
    ids = ids.masked_fill(method.added.contains(ids) | (ids == plain.image_token_id), plain.placeholder_id)
    torch.testing.assert_close(method.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)
    batch, other = batch_of(method), batch_of(method, tiny_benchmark.select("test")[:2])
    with method.context(batch):
        alone = method.answer_loss(batch)[0]
        with method.context(other):
            method.answer_loss(other)
        assert torch.equal(method.answer_loss(batch)[0], alone)
    with pytest.raises(IndexError):
        method.answer_loss(batch)


@torch.no_grad()
def test_spare_rows_of_a_padded_vocabulary_give_way_to_the_added_words(tiny_backbone, tiny_benchmark):
    backbone = tiny_backbone()
    size = len(backbone.tokenizer)
    backbone.model.resize_token_embeddings(size + 20, mean_resizing=False)
    method = build_method(configuration(), backbone, tiny_benchmark, seed=0).eval()
    examples = of_user(tiny_benchmark, "Ann", "test")[:2]
    batch = batch_of(method, examples, with_answer=False)
    found = logits(method, examples)
    assert found.shape[-1] == size + 20
    with method.context(batch):
        states = method.model.base_model(**batch.inputs).last_hidden_state
    rows = method.outputs.embedding[tiny_benchmark.row("Ann")]
    torch.testing.assert_close(found[..., size : size + 1 + TOKENS], states @ rows.T)
    plain = states @ backbone.lm_head.weight.T
    torch.testing.assert_close(found[..., :size], plain[..., :size])
    torch.testing.assert_close(found[..., size + 1 + TOKENS :], plain[..., size + 1 + TOKENS :])


@BOTH
def test_prompts_define_the_word_and_use_it(build, tiny_benchmark, kind):
    method = build(kind)
    first = method.added.first
    for example in tiny_benchmark.select("test")[:4]:
        encoded = method.collator.encode(example, tiny_benchmark.transcripts[0])
        assert f"<sks> is {''.join(WORDS[1:])}." in encoded.prompt
        assert prompts.ACKNOWLEDGEMENT in encoded.prompt
        assert example.name not in encoded.prompt
        asked = encoded.prompt.split("how are you?")[1]
        assert example.question in asked
        ids = encoded.input_ids[method.added.contains(encoded.input_ids)].tolist()
        assert ids == [*range(first, first + 1 + TOKENS), first]
    assert method.beginning == "user"


def test_hard_negatives_are_the_users_who_look_most_alike(build, tiny_benchmark):
    method = build(recognition=1.0, hard_negatives=2)
    users = list(tiny_benchmark.users.values())
    features = [method.backbone.image_features([user.image])[0].mean(0) for user in users]
    torch.manual_seed(0)
    by_index = {}
    for row, user in enumerate(users):
        likeness = {
            other: float(torch.cosine_similarity(features[row], features[other], dim=0))
            for other in range(4)
            if other != row
        }
        nearest = sorted(likeness, key=likeness.get, reverse=True)[:2]
        assert method.similar[row] == nearest
        drawn = [method.recognition_example(row) for _ in range(80)]
        assert {e.image for e in drawn if e.answer_text == "yes"} == set(user.images)
        assert {e.image for e in drawn if e.answer_text == "no"} == {p for k in nearest for p in users[k].images}
        assert 20 < sum(e.answer_text == "yes" for e in drawn) < 60
        for example in drawn:
            assert (example.name, example.question) == (user.name, QUESTION)
            assert example.index < 0 and by_index.setdefault(example.index, example) == example
    assert len(by_index) == 4 * 3 * 2  # users, the user and two others, two pictures each


def test_recognition_examples_join_the_mixture(build):
    method = build(recognition=1.0)
    batch = batch_of(method)
    torch.manual_seed(0)
    with method.context(batch), torch.no_grad():
        terms = method.training_losses(batch)
        assert float(terms["answer"]) == pytest.approx(float(method.answer_loss(batch)[0]) / 2)
    assert terms["recognition"] > 0
    log = fit(method, 12, batch)
    assert log[-1]["recognition"] + log[-2]["recognition"] < log[0]["recognition"] + log[1]["recognition"]


def test_users_without_training_questions_share_the_mean_and_are_nobody_s_negative(build, tiny_benchmark):
    train = tuple(i for i in tiny_benchmark.splits["train"] if tiny_benchmark.examples[i].name != "Dot")
    benchmark = replace(tiny_benchmark, splits={**tiny_benchmark.splits, "train": train}, digest="without Dot")
    method = build(benchmark=benchmark, recognition=0.5).eval()
    row = benchmark.row("Dot")
    torch.testing.assert_close(method.inputs(torch.tensor([row])).prefix[0], method.inputs.embedding.mean(0))
    assert len(method.similar) == 3 and not any(row in {*method.similar, *others} for others in method.similar.values())
    assert torch.isfinite(logits(method, of_user(benchmark, "Dot", "test")[:2])).all()
    alone = tuple(i for i in train if tiny_benchmark.examples[i].name == "Ann")
    lonely = replace(benchmark, splits={**benchmark.splits, "train": alone}, digest="Ann")
    with pytest.raises(MethodError, match="two users"):
        build(benchmark=lonely, recognition=0.5)
