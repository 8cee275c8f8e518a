"""What is shown of the rivals is what they compute: counted, multiplied out or compared in another way."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from notebook_cells import cells
from torch.nn.functional import cosine_similarity

from prefmoe.config import GraphExpertsMethod, RetrievedMethod, UserLoRAMethod
from prefmoe.data.benchmark import FACETS, Benchmark
from prefmoe.models.base import build_method
from prefmoe.models.retrieved import ENTRIES
from prefmoe.models.user_lora import LinearPerUser

RETRIEVED = RetrievedMethod(
    kind="retrieved", label="Retrieved", lr=1e-2, rank=2, alpha=2.0, dropout=0.0, statements=2
)  # fmt: skip
ADAPTERS = UserLoRAMethod(kind="user_lora", label="LoRA per user", lr=1e-2, rank=2, alpha=3.0, pooled_rank=2)
GRAPH = GraphExpertsMethod(
    kind="graph_experts", label="Graph", lr=1e-2, kinds=5, size=6, experts=3, expert_rank=2, pooled_rank=2, neighbours=2
)  # fmt: skip


def without(benchmark: Benchmark, name: str) -> Benchmark:
    """The benchmark in which one user has no training questions."""
    train = tuple(i for i in benchmark.splits["train"] if benchmark.examples[i].name != name)
    return replace(benchmark, splits={**benchmark.splits, "train": train}, digest=f"without {name}")


def layers(method) -> list[LinearPerUser]:
    return [module for module in method.model.modules() if isinstance(module, LinearPerUser)]


@pytest.fixture
def adapters(tiny_backbone, tiny_benchmark):
    """One LoRA per user, nobody's zero; of a benchmark in which Bob has no training questions."""
    method = build_method(ADAPTERS, tiny_backbone(), without(tiny_benchmark, "Bob"), seed=0).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in layers(method):
            layer.lora_B.normal_()
    return method


def test_an_entry_s_row_is_what_the_highest_score_says_of_its_questions(tiny_backbone, tiny_benchmark):
    method = build_method(RETRIEVED, tiny_backbone(), tiny_benchmark, seed=0).eval()
    found = cells("28", "retrieval-function")["found_entries"](method, "test")
    assert list(found.index) == list(found.columns) == list(ENTRIES)
    examples = tiny_benchmark.select("test")
    about = [e.concept if e.category == "preference" else "description" for e in examples]
    first = [ENTRIES[int(np.argmax(method.index.scores(e).numpy()))] for e in examples]
    for entry in ENTRIES:
        own = [hit for hit, right in zip(first, about, strict=True) if right == entry]
        expected = [own.count(other) / len(own) if own else 0 for other in ENTRIES]
        assert found.loc[entry].tolist() == pytest.approx(expected), entry
    assert 0 < len(set(about)) < len(ENTRIES)  # an entry that no question is about is a row of zeros


def test_how_often_the_index_is_right_is_the_diagonal_of_what_it_finds(tiny_backbone, tiny_benchmark, tmp_path):
    method = build_method(RETRIEVED, tiny_backbone(), tiny_benchmark, seed=0).eval()
    given = {"method_of": lambda kind: method, "backbone": "b", "folder": tmp_path}
    made = cells("28", "retrieval-function", "retrieval", **given)
    table = made["retrieval"].set_index("split")
    assert list(table.index) == ["train", "test"]  # the others have no questions
    for split, row in table.iterrows():
        examples = tiny_benchmark.select(split)
        about = [e.concept if e.category == "preference" else "description" for e in examples]
        diagonal = made["found_entries"](method, split).to_numpy().diagonal()
        right = sum(share * about.count(entry) for entry, share in zip(ENTRIES, diagonal, strict=True))
        assert (row["n"], row["n"] * row["first"]) == (len(examples), pytest.approx(right))
        assert row["first"] <= row["shown"] <= 1


@torch.no_grad()
def test_likeness_is_the_cosine_of_updates_that_are_multiplied_out(adapters):
    pairs = cells("28", "adapters-function")["likeness_of_adapters"](adapters)
    names = ["Ann", "Cid", "Dot"]  # those who were trained
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == list(combinations(names, 2))
    updates = torch.stack([
        torch.cat([(layer.lora_B[row] @ layer.lora_A[row]).flatten() for layer in layers(adapters)])
        for row in range(3)
    ])  # fmt: skip
    for (one, other), cosine in zip(combinations(range(3), 2), pairs["cosine"], strict=True):
        assert cosine == pytest.approx(float(cosine_similarity(updates[one], updates[other], dim=0)), abs=1e-5)


@torch.no_grad()
def test_likeness_does_not_depend_on_how_an_update_is_factorised(adapters):
    likeness_of_adapters = cells("28", "adapters-function")["likeness_of_adapters"]
    before = likeness_of_adapters(adapters)["cosine"].tolist()
    for layer in layers(adapters):
        turn = torch.linalg.qr(torch.randn(2, 2))[0] * 2
        layer.lora_A[1] = turn @ layer.lora_A[1]
        layer.lora_B[1] = layer.lora_B[1] @ torch.linalg.inv(turn)
    assert likeness_of_adapters(adapters)["cosine"].tolist() == pytest.approx(before, abs=1e-5)
    for layer in layers(adapters):
        layer.lora_A[2], layer.lora_B[2] = layer.lora_A[0], -3 * layer.lora_B[0]
        layer.lora_B[1] = 0
    again = likeness_of_adapters(adapters).set_index(["first", "second"])["cosine"]
    assert again["Ann", "Dot"] == pytest.approx(-1, abs=1e-5)
    assert again["Ann", "Cid"] == 0  # who has learned nothing is like nobody


def test_shared_facets_are_those_with_equal_preferences_that_both_have(tiny_benchmark):
    users = dict(tiny_benchmark.users)
    bare = {k: v for k, v in users["Cid"].preferences.items() if k != "fashion"}  # Dot has none in fashion either
    users["Cid"] = users["Cid"].model_copy(update={"preferences": bare})
    benchmark = replace(tiny_benchmark, users=users, digest="Cid without fashion")
    shared = cells("28", "adapters-function")["facets_shared"]
    for first, second in combinations(users, 2):
        one, other = users[first].preferences, users[second].preferences
        expected = sum(facet in one and one.get(facet) == other.get(facet) for facet in FACETS)
        assert shared(benchmark, first, second) == shared(benchmark, second, first) == expected
    assert shared(benchmark, "Ann", "Bob") == len(FACETS) and shared(benchmark, "Cid", "Dot") < 4


@torch.no_grad()
def test_gates_are_each_user_s_own_with_the_alike_beside_one_another(tiny_backbone, tiny_benchmark):
    method = build_method(GRAPH, tiny_backbone(), without(tiny_benchmark, "Ann"), seed=0).eval()
    method.gate.weight.mul_(20)
    table = cells("28", "gates-function")["gates_of_users"](method)
    assert list(table.columns) == ["expert 1", "expert 2", "expert 3"]
    assert table.index[-1] == "Ann" and sorted(table.index) == sorted(tiny_benchmark.users)
    people = method.convolved()[0]
    for name, gates in table.iterrows():
        row = tiny_benchmark.row(name)
        vector = sum(share * people[one] for share, one in zip(method.shares[row], method.made_of[row], strict=True))
        scores = method.gate.weight @ (vector / vector.square().mean().sqrt()) + method.gate.bias
        expected = scores.exp() / scores.exp().sum()
        assert gates.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
    foremost = table.to_numpy().argmax(1)[:-1]
    assert (np.diff(foremost) >= 0).all()
