"""The order of the training questions: equal batches for all methods, planned in time proportional to their number."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count as count_up
from itertools import islice

import numpy as np

from prefmoe.data.benchmark import FACETS, Benchmark, Example


def plan_batches(
    examples: Sequence[Example],
    benchmark: Benchmark,
    *,
    count: int,
    batch_size: int,
    seed: int,
    group_batches: bool,
    one_form: bool = True,
) -> list[list[int]]:
    """The positions (into ``examples``) of every batch of a training run.

    A function of the examples, the seed and the batch size alone, so that all methods of an edition see the same
    questions in the same order, and a longer run begins like a shorter one. With ``one_form`` batches are of one form
    (with options or without) as far as the numbers allow, because the two differ in length. With ``group_batches`` an
    example comes, where possible, with one about another user of its preference group: the residual contrast (PrefMoE,
    Lyu et al. 2026, residual losses) has no positives otherwise. With neither, batches are random.

    Raises ValueError if there are no examples.
    """
    if not examples:
        raise ValueError("no examples to make batches of")
    stream = _stream(
        examples, benchmark, batch_size=batch_size, seed=seed, group_batches=group_batches, one_form=one_form
    )
    return list(islice(stream, count))


def _stream(
    examples: Sequence[Example],
    benchmark: Benchmark,
    *,
    batch_size: int,
    seed: int,
    group_batches: bool,
    one_form: bool,
) -> Iterator[list[int]]:
    """Endless batches of positions; every epoch shows each example once, and batches run on across epochs."""
    pending: list[int] = []
    for epoch in count_up():
        rng = np.random.default_rng([seed, epoch])
        if group_batches:
            units = _pairs(examples, benchmark, rng)
        else:
            units = [[int(position)] for position in rng.permutation(len(examples))]
        if one_form:
            pending += _epoch(units, examples, batch_size - len(pending), batch_size, rng)
        else:
            pending += [position for unit in units for position in unit]
        whole = len(pending) // batch_size * batch_size
        yield from (pending[start : start + batch_size] for start in range(0, whole, batch_size))
        pending = pending[whole:]


# --- pairs --------------------------------------------------------------------------------------------------------


def _pairs(examples: Sequence[Example], benchmark: Benchmark, rng: np.random.Generator) -> list[list[int]]:
    """One epoch as units: two examples of one form whose different users share a preference group, or a single one.

    The group is that of the asked facet; for recognition, of a facet drawn at random. The form is that of the
    answer: a choice between options, or yes and no.
    """
    order = rng.permutation(len(examples)).tolist()
    drawn = rng.integers(len(FACETS), size=len(examples)).tolist()
    users = [benchmark.row(example.name) for example in examples]
    keys: list[tuple[int, bool] | None] = []
    for position, example in enumerate(examples):
        facet = example.facet_id if example.facet_id >= 0 else drawn[position]
        group = benchmark.groups[users[position]][facet]
        keys.append((group, example.is_multiple_choice) if group >= 0 else None)
    queues: dict[tuple[int, bool], dict[int, deque[int]]] = defaultdict(lambda: defaultdict(deque))
    for rank, position in enumerate(order):
        if (key := keys[position]) is not None:
            queues[key][users[position]].append(rank)
    # Of each user of a group the first rank left; in rising order, which is a heap.
    heaps = {key: [(ranks[0], user) for user, ranks in of_users.items()] for key, of_users in queues.items()}
    used = [False] * len(order)  # by rank, the place in the order
    units = []
    for rank, position in enumerate(order):
        if used[rank]:
            continue
        units.append([position])
        if (key := keys[position]) is not None:
            heap, own = heaps[key], queues[key]
            for found, user in [heappop(heap) for _ in heap[:2]]:  # this one, and the first of somebody else
                own[user].popleft()
                used[found] = True
                if own[user]:
                    heappush(heap, (own[user][0], user))
                if found != rank:
                    units[-1].append(order[found])
    return [units[i] for i in rng.permutation(len(units))]


# --- batches of one form ------------------------------------------------------------------------------------------


class _Form:
    """The units of one form, pairs and single positions, in their order."""

    def __init__(self, units: Sequence[list[int]]) -> None:
        self.left = sum(map(len, units))
        self.queues = {size: deque((i, unit) for i, unit in enumerate(units) if len(unit) == size) for size in (1, 2)}

    def take(self, size: int) -> list[int]:
        """Up to ``size`` positions: whole units from the front that fit; a pair is split only when none does."""
        taken: list[int] = []
        singles, pairs = self.queues[1], self.queues[2]
        while (singles or pairs) and (room := size - len(taken)):
            if room >= 2 and pairs and (not singles or pairs[0] < singles[0]):
                taken += pairs.popleft()[1]
            elif singles:
                taken += singles.popleft()[1]
            else:
                place, (first, second) = pairs.popleft()
                taken.append(first)
                singles.append((place, [second]))
        self.left -= len(taken)
        return taken


def _epoch(
    units: list[list[int]], examples: Sequence[Example], first: int, batch_size: int, rng: np.random.Generator
) -> list[int]:
    """The positions of an epoch in order: batches of one form each, drawn in turn, and what is left of either last.

    A question with options is half as long again as one without; a batch that holds both pads the others up to it.

    ``first``: the room that is left in the batch that the last epoch began.
    """
    of_form = ([unit for unit in units if examples[unit[0]].is_multiple_choice is choice] for choice in (False, True))
    forms = [_Form(some) for some in of_form]
    order: list[int] = []
    while any(form.left >= (size := batch_size if order else first) for form in forms):
        counts = np.array([form.left for form in forms])
        counts[counts < size] = 0
        order += forms[int(rng.choice(len(forms), p=counts / counts.sum()))].take(size)
    return order + forms[0].take(forms[0].left) + forms[1].take(forms[1].left)
