"""Who is most alike, in blocks: what all against all gives, without any tensor of that size."""

import math
from dataclasses import replace

import pytest
import torch
from method_checks import batch_of
from tiny_benchmark import draw_benchmark
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefmoe.config import GraphExpertsMethod, YoLLaVAMethod
from prefmoe.models import likeness
from prefmoe.models.base import build_method
from prefmoe.models.likeness import most_alike


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.found |= {tuple(leaf.shape) for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)}
        return made


@pytest.mark.parametrize("block", [1, 7, 40, 1024])
def test_blocks_give_what_all_against_all_gives(monkeypatch, block):
    monkeypatch.setattr(likeness, "BLOCK", block)
    torch.manual_seed(0)
    asked, known = torch.randn(40, 5), torch.randn(23, 5)
    for count in (1, 4, 23):
        values, rows = most_alike(asked, known, count)
        expected = (asked @ known.T).sort(dim=1, descending=True)
        torch.testing.assert_close(values, expected.values[:, :count])
        assert torch.equal(rows, expected.indices[:, :count])
    own = torch.arange(23).flip(0)
    _, rows = most_alike(known.flip(0), known, 22, own=own)
    for row, found in zip(own.tolist(), rows.tolist(), strict=True):
        products = {other: float(known[row] @ known[other]) for other in range(23) if other != row}
        assert found == sorted(products, key=products.get, reverse=True)
    empty = most_alike(asked[:0], known, 4)
    assert [tuple(part.shape) for part in empty] == [(0, 4), (0, 4)]


def test_the_largest_tensor_grows_as_the_users_do(monkeypatch):
    monkeypatch.setattr(likeness, "BLOCK", 8)
    found = {}
    for users in (200, 400, 800):
        faces = torch.randn(users, 4)
        with Shapes() as shapes:
            most_alike(faces, faces, 3, own=torch.arange(users))
        found[users] = max(map(math.prod, shapes.found))
    assert found == {users: 8 * users for users in found}


def many_users(folder, count: int):
    """A benchmark with so many more users, half of them with a training question, who all look like the four."""
    drawn = draw_benchmark(folder)
    users, examples = dict(drawn.users), dict(drawn.examples)
    first = drawn.select("train")[0]
    train = list(drawn.splits["train"])
    for k in range(count):
        like = list(drawn.users.values())[k % 4]
        users[f"U{k}"] = like.model_copy(update={"name": f"U{k}"})
        if k % 2:
            index = 1000 + k
            examples[index] = first.model_copy(update={"index": index, "name": f"U{k}"})
            train.append(index)
    splits = {**drawn.splits, "train": tuple(train)}
    return replace(drawn, users=users, examples=examples, splits=splits, digest=f"{count} more")


METHODS = {
    "graph_experts": GraphExpertsMethod(
        kind="graph_experts", label="Graph", lr=1e-2, kinds=2, size=2, experts=2, expert_rank=2, pooled_rank=2,
        neighbours=2,
    ),
    "yollava": YoLLaVAMethod(kind="yollava", label="Yo'LLaVA", lr=1e-2, tokens=1, recognition=0.5, hard_negatives=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
def test_no_method_makes_a_tensor_of_all_users_against_all(tiny_backbone, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(likeness, "BLOCK", 1)
    benchmark, backbone = many_users(tmp_path, 71), tiny_backbone()
    users, trained = len(benchmark.users), len(benchmark.trained_users)
    assert (users, trained) == (75, 39)
    with Shapes() as shapes:
        method = build_method(METHODS[kind], backbone, benchmark, seed=0)
        batch = batch_of(method, benchmark.select("train")[:2])
        with method.context(batch):
            sum(method.training_losses(batch).values()).backward()
    sides = {users, trained, users - trained}
    assert not {shape for shape in shapes.found if len(shape) == 2 and set(shape) <= sides}
    kept = {name: tuple(tensor.shape) for name, tensor in method._buffers_to_save().items()}
    assert not {name: shape for name, shape in kept.items() if len(shape) > 1 and set(shape) <= sides}
