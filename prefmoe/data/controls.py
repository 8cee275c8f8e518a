"""Controls: who stands in for whom when something of a question's user is exchanged, from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from prefmoe.config import ControlKind
from prefmoe.data.benchmark import FACETS, Benchmark

T = TypeVar("T")


@dataclass(frozen=True)
class Control:
    """One control: a kind, and the seed of who or what is exchanged with whom or what."""

    kind: ControlKind
    seed: int = 0

    @cached_property
    def facet_order(self) -> tuple[int, ...]:
        """For each facet the one whose residual takes its place, never its own."""
        places = derangement(range(len(FACETS)), self.seed)
        return tuple(places[facet] for facet in range(len(FACETS)))

    def stand_ins(self, benchmark: Benchmark) -> dict[str, str]:
        """For each user's name somebody else's, each of whom stands in for one.

        Users with training questions stand in for each other, and so do those without; whoever is alone of a sort is
        not in it.
        """
        trained = set(benchmark.trained_users)
        sorts = ([name for name in benchmark.users if (name in trained) is asked] for asked in (True, False))
        return {name: other for some in sorts if len(some) > 1 for name, other in derangement(some, self.seed).items()}


def derangement(items: Sequence[T], seed: int) -> dict[T, T]:
    """A derangement: each item's next one when they sit in a circle in random order."""
    order = [items[k] for k in np.random.default_rng(seed).permutation(len(items))]
    return dict(zip(order, [*order[1:], order[0]], strict=True))
