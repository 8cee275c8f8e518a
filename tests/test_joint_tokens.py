"""Joint tokens: two users in one prompt, each in either place, whose tokens begin as their pictures' centres."""

from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits

from prefmoe.config import JointTokensMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import build_method
from prefmoe.models.controls import controlled
from prefmoe.models.joint_tokens import JointTokens, centres, words_of

BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
TOKENS = 3


def build(backbone, benchmark: Benchmark, **changes) -> JointTokens:
    config = JointTokensMethod(
        kind="joint_tokens", label="Joint", **({"lr": 1e-2, "tokens": TOKENS, "together": 2} | changes)
    )
    return build_method(config, backbone, benchmark, seed=0).eval()


def without(benchmark: Benchmark, name: str) -> Benchmark:
    train = tuple(i for i in benchmark.splits["train"] if benchmark.examples[i].name != name)
    return replace(benchmark, splits={**benchmark.splits, "train": train}, digest=f"without {name}")


def shown(method: JointTokens, examples) -> tuple[torch.Tensor, torch.Tensor]:
    """ids of a batch's prompts (B, T), and what the input embedding makes of them (B, T, H)."""
    batch = batch_of(method, examples, with_answer=False)
    ids = batch.inputs["input_ids"]
    with torch.no_grad(), method.context(batch):
        return ids, method.backbone.embed_tokens(ids)


@BOTH
def test_a_prompt_holds_the_tokens_of_both_users_and_names_the_asked_one(tiny_backbone, tiny_benchmark, kind):
    method = build(tiny_backbone(kind), tiny_benchmark)
    with torch.no_grad():
        method.learned.normal_()
    examples = tiny_benchmark.select("train")[:2] + tiny_benchmark.select("test")[8:12]
    ids, embedded = shown(method, examples)
    places = set()
    for row, example in enumerate(examples):
        place, user = example.index % 2, tiny_benchmark.row(example.name)
        places.add(place)
        prompt = method.collator.encode(example).prompt
        words = [words_of(slot, TOKENS) for slot in range(2)]
        assert all(prompt.count("".join(one[1:])) == 1 for one in words)
        assert (prompt.count(words[place][0]), prompt.count(words[1 - place][0])) == (2, 1)
        assert example.name not in prompt
        companion = method.companions[user, 1].item()
        assert companion != user
        for slot in range(2):
            whose = user if slot == place else companion
            expected = method.start[whose] + method.learned[whose]
            for word, vector in zip(words[slot], expected, strict=True):
                found = embedded[row][ids[row] == method.backbone.tokenizer.convert_tokens_to_ids(word)]
                assert len(found) and torch.allclose(found, vector.expand_as(found))
    assert places == {0, 1}


def test_companions_are_the_next_on_one_circle_of_all_trained_users(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), without(tiny_benchmark, "Bob"), together=2)
    following = dict(method.companions.tolist())
    trained = [0, 2, 3]
    user, seen = 0, []
    for _ in trained:
        seen.append(user)
        user = following[user]
    assert sorted(seen) == trained and user == 0
    assert following[1] in trained
    everybody = build(tiny_backbone(), tiny_benchmark, together=9)
    assert everybody.companions.shape == (4, 4)
    assert all(sorted(row) == [0, 1, 2, 3] for row in everybody.companions.tolist())


def test_a_question_trains_both_users_of_its_prompt_and_nobody_else(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    ann = [e for e in tiny_benchmark.select("train") if e.name == "Ann"][:3]
    fit(method, 2, batch_of(method, ann))
    moved = (method.learned.abs().amax((1, 2)) > 0).nonzero()[:, 0].tolist()
    assert moved == sorted([0, method.companions[0, 1].item()])


@torch.no_grad()
def test_tokens_begin_as_the_centres_of_what_the_pictures_show(tiny_backbone, tiny_benchmark):
    """Centres are means of the tokens nearest to them, as k-means leaves them, the largest group first."""
    method = build(tiny_backbone(), tiny_benchmark)
    assert not method.learned.any()
    for row, user in enumerate(tiny_benchmark.users.values()):
        tokens = torch.cat(tiny_backbone().image_features(list(user.images)))
        word, found = method.start[row, 0], method.start[row, 1:]
        nearest = torch.cdist(tokens, found).argmin(1)
        sizes = nearest.bincount(minlength=TOKENS)
        assert (sizes > 0).all() and sizes.tolist() == sorted(sizes.tolist(), reverse=True)
        means = torch.stack([tokens[nearest == k].mean(0) for k in range(TOKENS)])
        torch.testing.assert_close(found, means, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(word, found.mean(0))
    repeated = centres(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 3, 0)
    torch.testing.assert_close(repeated[1:], torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))


def test_who_has_no_training_questions_is_what_the_pictures_show(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), without(tiny_benchmark, "Bob"))
    fit(method, 2)
    bob = [e for e in tiny_benchmark.select("test") if e.name == "Bob"][:1]
    ids, embedded = shown(method, bob)
    word = words_of(bob[0].index % 2, TOKENS)[1]
    found = embedded[ids == method.backbone.tokenizer.convert_tokens_to_ids(word)]
    torch.testing.assert_close(found[0], method.start[1, 1])
    row = method.add_user(tiny_benchmark.users["Bob"].model_copy(update={"name": "Eve"}))
    torch.testing.assert_close(method.start[row], method.start[1])
    assert torch.isfinite(logits(method, [bob[0].model_copy(update={"name": "Eve"})])).all()


def test_under_a_control_the_other_user_stands_in_the_asked_one_s_place(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    question = tiny_benchmark.select("test")[0]
    ids, _ = shown(method, [question])
    with controlled(method, "other_user"):
        stand_in = tiny_benchmark.row(method.collator.whose(question))
        others, embedded = shown(method, [question])
    assert torch.equal(others, ids) and stand_in != tiny_benchmark.row(question.name)
    word = words_of(question.index % 2, TOKENS)[1]
    found = embedded[ids == method.backbone.tokenizer.convert_tokens_to_ids(word)]
    torch.testing.assert_close(found[0], method.start[stand_in, 1])
