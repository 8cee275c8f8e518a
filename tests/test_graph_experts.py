"""The graph: convolution against a loop over edges, signs from training answers alone, gates that are the users'."""

import math
from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, logits
from torch.nn.functional import cosine_similarity

from prefmoe.config import GraphExpertsMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import MethodError, build_method
from prefmoe.models.graph_experts import LIKENESS, GraphExperts, edges, normalised, verdict
from prefmoe.models.moe_lora import MixtureOfLoRA, expert_mixture

SETTINGS = {"kinds": 5, "size": 6, "experts": 3, "expert_rank": 2, "pooled_rank": 2, "neighbours": 2}
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def build(backbone, benchmark: Benchmark, **changes) -> GraphExperts:
    config = GraphExpertsMethod(kind="graph_experts", label="Graph", lr=1e-2, **(SETTINGS | changes))
    return build_method(config, backbone, benchmark, seed=0).eval()


def dense_shares(method: GraphExperts) -> torch.Tensor:
    """(U, T) the share of every trained user."""
    return torch.zeros(len(method.shares), len(method.signs)).scatter_add(1, method.made_of, method.shares)


def without(benchmark: Benchmark, name: str) -> Benchmark:
    train = tuple(i for i in benchmark.splits["train"] if benchmark.examples[i].name != name)
    return replace(benchmark, splits={**benchmark.splits, "train": train}, digest=f"without {name}")


def test_convolution_is_a_loop_over_edges(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    torch.manual_seed(0)
    method.signs = torch.randint(-1, 2, (4, 5)).float()
    method.adjacency = normalised(method.signs)
    with torch.no_grad():
        method.things = torch.nn.Parameter(torch.randn(5, 6))
    pairs = [(u, k, float(method.signs[u, k])) for u in range(4) for k in range(5) if method.signs[u, k]]
    degree = [sum(u == v for v, _, _ in pairs) for u in range(4)], [sum(k == j for _, j, _ in pairs) for k in range(5)]
    layers = [(method.people.detach(), method.things.detach())]
    for _ in range(2):
        people, things = torch.zeros(4, 6), torch.zeros(5, 6)
        for u, k, sign in pairs:
            weight = sign / math.sqrt(degree[0][u] * degree[1][k])
            people[u] += weight * layers[-1][1][k]
            things[k] += weight * layers[-1][0][u]
        layers.append((people, things))
    for side, found in enumerate(method.convolved()):
        torch.testing.assert_close(found.detach(), sum(layer[side] for layer in layers) / 3)


def test_edges_are_what_training_answers_say_more_often_than_not(tiny_backbone, tiny_benchmark):
    examples = dict(tiny_benchmark.examples)
    first = next(e for e in tiny_benchmark.select("train") if verdict(e))
    examples[first.index] = first.model_copy(update={"semantic_invert": True})
    benchmark = replace(tiny_benchmark, examples=examples, digest="one asked the other way")
    found, _ = edges(tiny_backbone(), benchmark, 100, 0)  # as many kinds as pictures: each question has its own
    judged = [e for e in benchmark.select("train") if e.category == "preference" and not e.options]
    assert found.shape == (4, len({e.image for e in judged})) and judged
    for name, row in zip(benchmark.users, found, strict=True):
        own = [e for e in judged if e.name == name]
        likes = sum((e.answer == 4) != e.semantic_invert for e in own)
        assert (int((row > 0).sum()), int((row < 0).sum())) == (likes, len(own) - likes)
    few, centres = edges(tiny_backbone(), benchmark, 2, 0)
    assert few.shape == (4, 2) and len(centres) == 2 and set(few.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_no_test_answer_is_an_edge(tiny_backbone, tiny_benchmark):
    tested = set(tiny_benchmark.splits["test"])
    examples = {i: e.model_copy(update={"answer": 9 - e.answer}) if i in tested and e.answer > 3 else e
                for i, e in tiny_benchmark.examples.items()}  # fmt: skip
    other = build(tiny_backbone(), replace(tiny_benchmark, examples=examples, digest="other test answers"))
    method = build(tiny_backbone(), tiny_benchmark)
    assert method.signs.any() and torch.equal(other.signs, method.signs)
    assert torch.equal(logits(other), logits(method))


@BOTH
@torch.no_grad()
def test_layers_are_a_mixture_of_each_user_s_gate_beside_a_plain_lora(tiny_backbone, tiny_benchmark, kind):
    method = build(tiny_backbone(kind), tiny_benchmark)
    layer = next(module for module in method.model.modules() if isinstance(module, MixtureOfLoRA))
    layer.B.normal_()
    method.gate.weight.mul_(20)
    batch = batch_of(method, tiny_benchmark.select("test")[::5], with_answer=False)
    x = torch.randn(len(batch), 3, layer.base.in_features)
    people = method.convolved()[0]
    asked = people[batch.user]
    gate = method.gate(asked / asked.square().mean(1, keepdim=True).sqrt()).softmax(1)
    A, B = layer.A[2:].view(3, 2, -1), layer.B[:, 2:].reshape(-1, 3, 2).transpose(0, 1)
    expected = layer.base(x) + x @ layer.A[:2].T @ layer.B[:, :2].T
    expected = expected + expert_mixture(x, A, B, 3 * gate)
    with method.context(batch):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.gates()["experts"], gate, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), layer.base(x))
    assert (gate.amax(1) > 0.4).any()


@BOTH
def test_untrained_it_is_the_backbone(tiny_backbone, tiny_benchmark, kind):
    method = build(tiny_backbone(kind), tiny_benchmark)
    batch = batch_of(method, tiny_benchmark.select("test")[:4], with_answer=False)
    with torch.no_grad():
        plain = tiny_backbone(kind).model(**batch.inputs).logits
    torch.testing.assert_close(logits(method), plain)


def test_the_graph_s_loss_is_the_mean_over_its_edges(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark, graph_weight=0.3)
    batch = batch_of(method)
    with torch.no_grad(), method.context(batch):
        found = method.training_losses(batch)["graph"]
        people, things = method.convolved()
    terms = []
    for u in range(4):
        for k in range(things.shape[0]):
            if sign := float(method.signs[u, k]):
                terms.append(math.log1p(math.exp(-sign * float(people[u] @ things[k]))))
    assert float(found) == pytest.approx(0.3 * sum(terms) / len(terms), rel=1e-4)


@torch.no_grad()
def test_an_unseen_user_is_made_of_those_with_the_most_alike_profiles(tiny_backbone, tiny_benchmark):
    benchmark = without(tiny_benchmark, "Bob")
    method = build(tiny_backbone(), benchmark)
    assert method.signs.shape[0] == 3 and torch.equal(dense_shares(method)[[0, 2, 3]], torch.eye(3))
    profiles = encode_users(tiny_backbone(), list(benchmark.users.values()), "embedding")[0][:, 3:].flatten(1)
    known = profiles[[0, 2, 3]]
    likeness = [float(cosine_similarity(profiles[1] - known.mean(0), one - known.mean(0), dim=0)) for one in known]
    best = sorted(range(3), key=lambda place: -likeness[place])[:2]
    weights = torch.tensor([likeness[place] for place in best]).div(LIKENESS).softmax(0)
    expected = torch.zeros(3)
    expected[best] = weights
    found = dense_shares(method)
    torch.testing.assert_close(found[1], expected, rtol=1e-3, atol=1e-4)
    assert found[1].argmax() == 0  # Ann, whose preferences are Bob's
    row = method.add_user(benchmark.users["Bob"].model_copy(update={"name": "Eve"}))
    torch.testing.assert_close(dense_shares(method)[row], found[1])
    assert method.made_of.shape == method.shares.shape == (5, 2)
    people = method.convolved()[0]
    asked = dense_shares(method) @ people
    expected = method.gate(asked / asked.square().mean(1, keepdim=True).sqrt()).softmax(1)
    torch.testing.assert_close(method.user_gates(torch.arange(5)), expected, rtol=1e-4, atol=1e-5)


def answers_as(benchmark: Benchmark, name: str, other: str, *, turned: bool = False) -> list:
    """The training answers of somebody, or their opposites, as another user's."""
    judged = [e for e in benchmark.select("train") if e.name == other and verdict(e)]
    return [e.model_copy(update={"name": name, "answer": 9 - e.answer if turned else e.answer}) for e in judged]


@torch.no_grad()
def test_a_user_s_answers_make_it_of_those_who_answer_alike_and_change_nobody_else(tiny_backbone, tiny_benchmark):
    benchmark = without(tiny_benchmark, "Bob")
    method = build(tiny_backbone(), benchmark)
    method.add_user(benchmark.users["Bob"].model_copy(update={"name": "Eve"}))
    method.gate.weight.mul_(20)
    for module in method.model.modules():
        if isinstance(module, MixtureOfLoRA):
            module.B.normal_(generator=torch.Generator().manual_seed(1))
    others = [e for e in benchmark.select("test") if e.name != "Bob"]
    eve = [e.model_copy(update={"name": "Eve"}) for e in benchmark.select("test")[:3]]

    def gates() -> torch.Tensor:
        return method.user_gates(torch.arange(5))

    before, said, of_eve = gates(), logits(method, others[::4]), logits(method, eve)
    assert dense_shares(method)[4].argmax() == 0  # Ann, whose profile it is
    method.give_answers("Eve", answers_as(benchmark, "Eve", "Cid"))
    shares, cid = dense_shares(method)[4], list(benchmark.trained_users).index("Cid")
    assert shares.argmax() == cid and float(shares.sum()) == pytest.approx(1)
    cosines = [float(cosine_similarity(method.signs[cid], one, dim=0)) for one in method.signs]
    best = sorted(range(3), key=lambda place: -cosines[place])[:2]
    torch.testing.assert_close(shares[best], torch.tensor([cosines[k] for k in best]).div(LIKENESS).softmax(0))
    after = gates()
    assert torch.equal(after[:4], before[:4]) and torch.equal(logits(method, others[::4]), said)
    assert (after[4] - before[2]).norm() < (before[4] - before[2]).norm()  # nearer to Cid, in row 2
    assert not torch.allclose(logits(method, eve), of_eve)
    method.give_answers("Eve", answers_as(benchmark, "Eve", "Cid", turned=True))
    assert dense_shares(method)[4, cid] < 0.5


def test_answers_that_say_nothing_of_an_unseen_user_are_refused(tiny_backbone, tiny_benchmark):
    benchmark = without(tiny_benchmark, "Bob")
    method = build(tiny_backbone(), benchmark)
    own = answers_as(benchmark, "Bob", "Cid")
    recognised = [e for e in tiny_benchmark.select("train") if e.name == "Bob" and not verdict(e)]
    for name, examples, said in (
        ("Zoe", own, "'Zoe' is unknown"),
        ("Ann", answers_as(benchmark, "Ann", "Cid"), "'Ann' has training questions"),
        ("Bob", answers_as(benchmark, "Eve", "Cid"), "is not about 'Bob'"),
        ("Bob", recognised, "expected yes/no answers"),
        ("Bob", [], "expected yes/no answers"),
    ):
        with pytest.raises(MethodError, match=said):
            method.give_answers(name, examples)
    method.signs = -method.signs
    with pytest.raises(MethodError, match="other answers than this benchmark's"):
        method.give_answers("Bob", own)
