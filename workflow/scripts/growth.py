"""What users cost as they become many: adding one, planning an epoch of their questions, counterfactual users."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefmoe.backbones.backbone import Backbone
from prefmoe.data import counterfactual
from prefmoe.data.benchmark import FACETS, Benchmark, Example, Preference, User
from prefmoe.data.sizes import ANCHORS
from prefmoe.models.anchors import encode_counterfactual_users
from prefmoe.models.base import Method
from prefmoe.running.order import plan_batches

COUNTERFACTUAL_USERS, ROUNDS = 100, 4

MOST, MOST_ADDED = 100_000, 1000
"""Larger numbers of users are left out: in all, and where they are encoded and added one by one."""


def population(count: int, seed: int = 0) -> Benchmark:
    """A benchmark of random users, each with a preference in every facet and one training question."""
    rng = np.random.default_rng(seed)
    items = [f"item {k}" for k in range(20)]
    users, examples = {}, {}
    for index in range(count):
        preferences = {}
        for facet in FACETS:
            a, b, c, d = (items[k] for k in rng.permutation(len(items))[:4])
            preferences[facet] = Preference(likes=(a, b), dislikes=(c, d))
        name = f"User {index}"
        users[name] = User(
            name=name,
            attribute="human",
            preferences=preferences,
            images=(),
            description=f"A person, with hair {index % 97}, with hats {index % 89}, with shoes {index % 83}.",
        )
        examples[index] = Example(
            index=index, name=name, category="preference", concept=FACETS[index % 5], l2_category="awareness",
            target="", question="?", options=(), answer=4, image="none.png", semantic_invert=False, bucket_names=(),
        )  # fmt: skip
    splits = {"train": tuple(examples), "validation": (), "test": (), "unseen": ()}
    return Benchmark(root=".", frame=pd.DataFrame(), users=users, examples=examples, splits=splits)


def _row(variant: str, users: int, times: Sequence[float]) -> dict[str, Any]:
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {
        "variant": f"{variant}, {users} users", "users": users, "median_ms": 1000 * median, "low_ms": 1000 * low,
        "high_ms": 1000 * high, "rounds": len(times),
    }  # fmt: skip


def _timed(function: Callable[[], Any], rounds: int | None = None) -> list[float]:
    times = []
    for _ in range(rounds or ROUNDS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def adding(method: Method, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One call of add_user, encoding included, with so many users added: the last tenth of them, ten at least.

    Args:
        method: that can add users; it has them all in the end. counts: rising.
    """
    someone, times = next(user for user in method.benchmark.users.values() if user.images), []
    for count in counts:
        while len(times) < count:
            user = someone.model_copy(update={"name": f"New {len(times)}"})
            times += _timed(lambda user=user: method.add_user(user), rounds=1)
        yield _row("add_user", count, times[-max(10, count // 10) :])


def planning(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The plan of an epoch with a question per user, in batches of pairs from preference groups."""
    for count in counts:
        crowd = population(count)
        examples = crowd.select("train")
        options = {"count": max(1, count // 16), "batch_size": 16, "seed": 0, "group_batches": True}
        plan_batches(examples, crowd, **options)  # groups are made once
        yield _row("an epoch's plan", count, _timed(lambda: plan_batches(examples, crowd, **options)))  # noqa: B023


def counterfactuals(backbone: Backbone, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Making `COUNTERFACTUAL_USERS` from so many real users, and encoding them."""
    for count in counts:
        crowd = population(count)
        anchors = torch.randn(count, len(ANCHORS), backbone.hidden_size, device=backbone.device)

        def make(crowd: Benchmark = crowd, anchors: torch.Tensor = anchors) -> None:
            pseudo = counterfactual.generate(crowd, COUNTERFACTUAL_USERS)
            encode_counterfactual_users(backbone, pseudo, "hidden", anchors)
            counterfactual.groups(pseudo, crowd)

        yield _row(f"{COUNTERFACTUAL_USERS} counterfactual users", count, _timed(make))


def growth(method: Method, counts: Sequence[int]) -> pd.DataFrame:
    """`adding`, `planning` and `counterfactuals` for growing numbers of users.

    Args:
        method: to add users to. counts: those beyond `MOST` and `MOST_ADDED` are left out.

    Returns a row each as `speed.measure` gives it. The ratio is that of the time per user whom the work passes over
    (one in add_user, all of them otherwise) to that of the smallest number: 1 where the time is proportional.
    """
    counts = sorted(count for count in counts if count <= MOST)
    added = [count for count in counts if count <= MOST_ADDED]
    tables = []
    for rows, per_user in ((adding(method, added), False), (planning(counts), True),
                           (counterfactuals(method.backbone, counts), True)):  # fmt: skip
        table = pd.DataFrame(list(rows))
        if len(table):
            times = table["median_ms"] / (table["users"] if per_user else 1)
            tables.append(table.assign(ratio=times / times.iloc[0]))
    return pd.concat(tables, ignore_index=True)
