"""What tests do with a method of any kind: some questions, a few steps of training, logits, and where gradients go."""

from collections.abc import Callable, Sequence

import torch

from prefmoe.backbones.batches import Batch
from prefmoe.data.benchmark import Example
from prefmoe.models.base import Method


def batch_of(method: Method, examples: Sequence[Example] | None = None, with_answer: bool = True) -> Batch:
    """A few training questions of several users, or the given ones."""
    return method.collator(examples or method.benchmark.select("train")[::3][:6], with_answer=with_answer)


def fit(method: Method, steps: int, batch: Batch | None = None, lr: float | None = None) -> list[dict[str, float]]:
    """Some steps of plain AdamW on one batch; the terms of each step."""
    groups = method.parameter_groups()
    if lr is not None:
        groups = [{**group, "lr": lr} for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
    batch, log = batch or batch_of(method), []
    method.train()
    for _ in range(steps):
        with method.context(batch):
            terms = method.training_losses(batch)
            sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        log.append({name: float(term.detach()) for name, term in terms.items()})
    method.eval()
    return log


@torch.no_grad()
def logits(method: Method, examples: Sequence[Example] | None = None) -> torch.Tensor:
    """What the method answers to some test questions."""
    batch = batch_of(method, examples or method.benchmark.select("test")[:4], with_answer=False)
    with method.context(batch):
        return method.model(**batch.inputs).logits


def moved_by(method: Method, batch: Batch | None = None) -> set[str]:
    """Names of the parameters that get a gradient other than zero."""
    batch = batch or batch_of(method)
    method.train()
    with method.context(batch):
        sum(method.training_losses(batch).values()).backward()
    moved = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    method.zero_grad()
    method.eval()
    return moved


def trained_names(method: Method) -> set[str]:
    """Names of the parameters that the optimiser gets."""
    trained = {id(p) for group in method.parameter_groups() for p in group["params"]}
    return {name for name, p in method.named_parameters() if id(p) in trained}


def assert_backbone_unchanged(method: Method, fresh: Callable[[], object]) -> None:
    """Every weight of the backbone is as in a freshly loaded one; adapters beside them do not count."""
    plain = fresh().model.state_dict()
    own = {k: p for k, p in method.model.state_dict().items() if "lora_" not in k and not k.endswith((".A", ".B"))}
    found = {name.replace(".base_layer.", ".").replace(".base.", "."): p for name, p in own.items()}
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value), name
