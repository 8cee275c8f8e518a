"""Training order: as a plain search through all examples gives it, at a cost that grows with their number alone."""

from collections import defaultdict

import numpy as np
import pytest
from work import bytecodes

from prefmoe.data.benchmark import FACETS, Benchmark, Example, Preference, User
from prefmoe.running.order import plan_batches


def population(users: int, questions: int, groups: int, seed: int = 0) -> tuple[list[Example], Benchmark]:
    """Questions of random users, who share few preferences and have none in some facets."""
    rng = np.random.default_rng(seed)
    likes = [Preference(likes=(f"item {k}",), dislikes=()) for k in range(groups)]
    people = {
        f"user {k}": User(
            name=f"user {k}", attribute="human", description="A person.", images=(),
            preferences={f: likes[rng.integers(groups)] for f in FACETS if rng.random() < 0.9},
        )
        for k in range(users)
    }  # fmt: skip
    names, examples = list(people), []
    for index in range(questions):
        choice, recognition = rng.random() < 0.4, rng.random() < 0.3
        examples.append(
            Example(
                index=index, name=names[int(users * rng.random() ** 2)], image="a.png", question="?", target="",
                category="recognition" if recognition else "preference", bucket_names=(), semantic_invert=False,
                concept="" if recognition else FACETS[rng.integers(5)],
                l2_category="inconsistency" if choice else "awareness", options=tuple("abcd") if choice else (),
                answer=0 if choice else 4,
            )
        )  # fmt: skip
    return examples, Benchmark(root=".", frame=None, users=people, examples=dict(enumerate(examples)), splits={})


def searched(examples, benchmark, *, count, batch_size, seed, group_batches) -> list[list[int]]:
    """The plan by its definition: every partner and every unit is searched for among all that are left."""
    pending, batches = [], []
    for epoch in range(count * batch_size // len(examples) + 1):
        rng = np.random.default_rng([seed, epoch])
        order = [int(p) for p in rng.permutation(len(examples))]
        units = [[p] for p in order]
        if group_batches:
            drawn, keys, waiting = rng.integers(5, size=len(examples)), {}, defaultdict(list)
            for p, example in enumerate(examples):
                facet = example.facet_id if example.facet_id >= 0 else int(drawn[p])
                group = benchmark.groups[benchmark.row(example.name)][facet]
                keys[p] = (group, example.is_multiple_choice) if group >= 0 else ("nobody", p)
            for p in order:
                waiting[keys[p]].append(p)
            units, used = [], set()
            for p in order:
                if p not in used:
                    alike = [q for q in waiting[keys[p]] if q not in used and examples[q].name != examples[p].name]
                    units.append([p, *alike[:1]])
                    used |= set(units[-1])
            units = [units[k] for k in rng.permutation(len(units))]
        forms = [[list(u) for u in units if examples[u[0]].is_multiple_choice is choice] for choice in (False, True)]
        room, shown = batch_size - len(pending), []
        while any(sum(map(len, form)) >= room for form in forms):
            sizes = np.array([sum(map(len, form)) for form in forms])
            sizes[sizes < room] = 0
            form, left = forms[int(rng.choice(2, p=sizes / sizes.sum()))], room
            while left:
                fits = next((unit for unit in form if len(unit) <= left), None)
                taken = form.pop(form.index(fits)) if fits else [form[0].pop(0)]
                shown, left = shown + taken, left - len(taken)
            room = batch_size
        pending += shown + [p for form in forms for unit in form for p in unit]
        while len(pending) >= batch_size:
            batches.append(pending[:batch_size])
            pending = pending[batch_size:]
    return batches[:count]


@pytest.mark.parametrize("group_batches", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_plan_is_the_one_that_a_search_finds(batch_size, group_batches):
    for seed in range(8):
        examples, benchmark = population(users=2 + 3 * seed, questions=60 + seed, groups=1 + seed, seed=seed)
        options = dict(count=200 // batch_size, batch_size=batch_size, seed=seed, group_batches=group_batches)
        assert plan_batches(examples, benchmark, **options) == searched(examples, benchmark, **options)


@pytest.mark.parametrize(("users", "groups"), [(1, 1), (3, 1), (40, 1), (40, 30)])
def test_a_plan_costs_what_its_questions_cost_whoever_they_are_about(users, groups):
    """Everybody in one group, or one user alone in it: nobody is passed over again and again."""

    def work(questions: int) -> int:
        examples, benchmark = population(users, questions, groups)
        options = dict(count=questions // 4, batch_size=4, seed=0, group_batches=True)
        benchmark.groups  # noqa: B018  made once for all
        return bytecodes(lambda: plan_batches(examples, benchmark, **options), "order.py")

    assert work(1600) < 6 * work(400)


def test_no_examples_is_an_error():
    _, benchmark = population(1, 1, 1)
    with pytest.raises(ValueError, match="no examples"):
        plan_batches([], benchmark, count=1, batch_size=1, seed=0, group_batches=True)
