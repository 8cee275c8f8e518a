"""Checks of unit 5: the mixture of experts by two products, and whether its routers route."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from prefmoe.course import answers, checking
from prefmoe.inspection.routing import EXPERTS

FREE = 1.5
"""So many times the loop's floating point operations are let pass, for gates that are spread by a product, say."""

ROUTED = 0.1
"""By so much some mean gate would differ between kinds of question in a router that tells them apart."""


class _Work(TorchFunctionMode):
    """Notes the floating point operations of every call of torch that multiplies matrices while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        with FlopCounterMode(display=False) as counter:
            found = function(*args, **(kwargs or {}))
        if work := counter.get_total_flops():
            self.products.append(work)
        return found


def loop(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """What is meant, one expert after the other. x (batch, tokens, in), A (experts, rank, in), B (experts, out, rank),
    gate (batch, experts); returns (batch, tokens, out)."""
    return sum(gate[:, e, None, None] * (x @ A[e].T @ B[e].T) for e in range(len(A)))


def mixture(function: Callable) -> None:
    """mixture(x, A, B, gate): equal to the loop, by two products of matrices, and with no more work.

    Work is counted in floating point operations, of which the loop needs 2 * batch * tokens * experts * rank *
    (in + out): the two largest products of an answer do that many, and all together not more than `FREE` times as many.
    """
    hint = (
        "Write all A below one another, (experts * rank, in), multiply once; scale each expert's part by its gate; "
        "write all B beside one another, (out, experts * rank), and multiply once."
    )
    batch, tokens, rank, width, out = 3, 4, 2, 48, 40
    for experts in (1, 5, 8):
        generator = torch.Generator().manual_seed(experts)
        x = torch.randn(batch, tokens, width, generator=generator)
        gate = torch.rand(batch, experts, generator=generator)
        A, B = (torch.randn(experts, *s, generator=generator) / 8 for s in ((rank, width), (out, rank)))
        with _Work() as work:
            found = checking.called(function, x.clone(), A.clone(), B.clone(), gate.clone(), name="mixture")
        named = f"{experts} expert{'s' * (experts > 1)}"
        y = checking.tensor(found, (batch, tokens, out), f"mixture(...) of {named}")
        checking.close(y, loop(x, A, B, gate), "mixture(...)", hint, tolerance=1e-5)
        needed = 2 * batch * tokens * experts * rank * (width + out)
        right = f"mixture is right (difference {float((y - loop(x, A, B, gate)).abs().max()):.0e})"
        if sum(work.products) > FREE * needed:
            raise checking.NotYet(
                f"{right}, with {sum(work.products) / needed:.1f} times the floating point operations that the loop "
                f"takes for {named}: expected as many. An (out, in) matrix is never needed, and no expert meets "
                f"another's part. {hint}"
            )
        if sum(sorted(work.products)[-2:]) < needed:
            raise checking.NotYet(
                f"{right}, by {len(work.products)} products of matrices with {named}: expected 2, which do all the "
                f"work. {hint}"
            )
    checking.right("Two products, however many experts there are, and no more work than the loop's.")


def widest(function: Callable) -> None:
    """widest(gates) -> router: the largest difference that an expert's mean gate makes between kinds of question."""
    gates = gate_table()
    found = checking.called(function, gates.copy(), name="widest")
    if not isinstance(found, dict | pd.Series):
        raise checking.NotYet(f"widest(gates) is {checking.described(found)}: expected a number for every router.")
    for router, rows in gates.groupby("router"):
        if router not in found:
            raise checking.NotYet(
                f"widest(gates) lacks {router!r}: expected one of {sorted(gates['router'].unique())} each."
            )
        means = rows.groupby("expert")["value"]
        value = checking.number(found[router], f"widest(gates)[{router!r}]")
        hint = (
            "Per router and expert: the largest value over the groups minus the smallest; then the largest "
            "over experts."
        )
        checking.close(value, (means.max() - means.min()).max(), f"widest(gates)[{router!r}]", hint)
    checking.right("Gates sum to one: a router that told kinds of question apart would have differences near one.")


def widest_difference() -> float:
    """The largest difference that any expert's mean gate makes between kinds of question, over all routers."""
    means = gate_table().groupby(["router", "expert"])["value"]
    return float((means.max() - means.min()).max())


def gate_table() -> pd.DataFrame:
    """Mean gates by router, group of questions and expert, of the default edition."""
    rows = answers.table("routing_gates")
    named = [EXPERTS[router][k] for router, k in zip(rows["router"], rows["expert"], strict=True)]
    return rows.assign(expert=named)


def routes(answer: Any) -> None:
    """Whether anything routes; which answer is right is read off the table."""
    most = widest_difference()
    reasons = {
        "a": "Look at the differences: a gate of .24 for everybody is a fixed weight, however much it differs "
        "from 1/5.",
        "b": f"Look again: no mean gate differs by more than {most:.2f} between kinds of question, and facets are some "
        "of these.",
        "c": f"The largest difference of a mean gate between kinds of question is {most:.2f}. The experts are weighed, "
        "hardly routed.",
    }
    if most >= ROUTED:
        reasons |= {key: f"A mean gate differs by {most:.2f} between kinds of question." for key in ("b", "c")}
    checking.choice(answer, "routes", reasons, "c" if most < ROUTED else "b")
