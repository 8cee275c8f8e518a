"""Linear probes: which layers of a rater know the user, and which know the taste?

Intra-user: is a picture that the rater has not been told of liked or disliked? One logistic regression on the state
behind it, for all users; learned on training choices outside the history, judged on others. Inter-user: whose history
is it? A logistic regression over users on the mean states of liked and disliked pictures; a user's choices are halved,
and histories of one half are learned from, of the other judged.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefmoe.config import ProbesMethod
from prefmoe.data.choices import Choice, ChoiceBenchmark, HistoryError
from prefmoe.generation.states import History, target_states, user_states
from prefmoe.models.raters import Rater
from prefmoe.running.choices import session

COLUMNS = ("layer", "task", "split", "user", "case", "value")
"""Of what probes say: value is 1 where a case was right."""

LEARNED_ON = 4
"""Choices of a user outside the history, of which the intra-user probe learns."""


def probe(rater: Rater, settings: ProbesMethod, *, n_ref: int, seed: int) -> pd.DataFrame:
    """What the probes of all layers say: `COLUMNS`, layers from 1. Split validation chooses layers; test is reported.

    Raises HistoryError if users have too few choices.
    """
    parts = [*intra(rater, settings, n_ref=n_ref, seed=seed), *inter(rater, settings, n_ref=n_ref, seed=seed)]
    return pd.DataFrame(parts, columns=list(COLUMNS))


def chosen_layer(found: pd.DataFrame, layers: Sequence[int]) -> int:
    """Of some layers the one whose validation accuracies of both tasks are best together, each over its own best."""
    table = found[(found["split"] == "validation") & found["layer"].isin(layers)]
    means = table.groupby(["layer", "task"])["value"].mean().unstack("task")
    return int((means / means.max().clip(lower=1e-9)).mean(axis=1).idxmax())


def _classifier(settings: ProbesMethod, seed: int):
    regression = LogisticRegression(C=settings.penalty, max_iter=300, random_state=seed)
    return make_pipeline(StandardScaler(), regression)


def intra(rater: Rater, settings: ProbesMethod, *, n_ref: int, seed: int) -> list[tuple]:
    """Liked or disliked, behind the history of the same user; rows of `COLUMNS`."""
    benchmark = rater.benchmark
    groups: list[tuple[str, list[Choice]]] = []
    for user in benchmark.trained_users:
        own = [benchmark.choices[index] for index in benchmark.references[user]]
        order = np.random.default_rng([seed, benchmark.users[user]]).permutation(len(own))
        groups.append(("train", [own[k] for k in order[: min(LEARNED_ON, len(own) - n_ref)]]))
    for split, name in (("validation", "validation"), ("test", "test"), ("unseen", "test")):
        groups += [(name, own) for own in benchmark.by_user(split).values()]
    groups = [(name, own) for name, own in groups if own]
    sessions = [session(benchmark, own, n_ref=n_ref, draw=0, pairs=True) for _, own in groups]
    states = target_states(rater, sessions)  # the liked and the disliked picture of each choice in turn
    where = np.repeat([name for name, _ in groups], [len(one) for one in states])
    users = np.repeat([own[0].user for _, own in groups], [len(one) for one in states])
    cases = np.concatenate([np.repeat([c.index for c in own], 2) for _, own in groups])
    x, y = torch.cat(states).numpy(), np.concatenate([np.arange(len(one)) % 2 == 0 for one in states])
    rows = []
    for layer in range(x.shape[1]):
        fitted = _classifier(settings, seed).fit(x[where == "train", layer], y[where == "train"])
        right = fitted.predict(x[:, layer]) == y
        for name in ("validation", "test"):
            kept = where == name
            rows += [
                (layer + 1, "intra", name, *row)
                for row in zip(users[kept], cases[kept], right[kept].astype(float), strict=True)
            ]
    return rows


def inter(rater: Rater, settings: ProbesMethod, *, n_ref: int, seed: int) -> list[tuple]:
    """Whose history it is, among so many seen users; rows of `COLUMNS`. Validation and test are of other users."""
    benchmark, rows = rater.benchmark, []
    for split, chosen in _inter_users(benchmark, settings.users).items():
        told, kinds = [], []
        for user in chosen:
            own = [benchmark.choices[index] for index in benchmark.references[user]]
            order = np.random.default_rng([seed, benchmark.users[user]]).permutation(len(own))
            halves = [tuple(own[k] for k in order[start::2]) for start in (0, 1)]
            length = min(n_ref, *map(len, halves))
            for half in range(2):  # of one half the histories to learn from, of the other those to tell
                told += [History(user, length, draw, halves[1 - half]) for draw in range(settings.draws)]
                kinds += [half] * settings.draws
        x = user_states(rater, told).transpose(1, 2).flatten(2).numpy()  # (N, L, 2 H)
        y, kind = np.array([one.user for one in told]), np.array(kinds)
        for layer in range(x.shape[1]):
            fitted = _classifier(settings, seed).fit(x[kind == 0, layer], y[kind == 0])
            right = fitted.predict(x[kind == 1, layer]) == y[kind == 1]
            rows += [
                (layer + 1, "inter", split, user, case, float(value))
                for case, (user, value) in enumerate(zip(y[kind == 1], right, strict=True))
            ]
    return rows


def _inter_users(benchmark: ChoiceBenchmark, count: int) -> dict[str, list[str]]:
    """Users of the validation part and, after them, as many others for the test."""
    users = benchmark.trained_users
    count = min(count, len(users) // 2)
    if count < 2:
        raise HistoryError(
            f"{benchmark.root}: expected four users or more in the split train, of whom two are told from one another "
            f"by their histories and two are tested; found {len(users)}"
        )
    return {"validation": users[:count], "test": users[count : 2 * count]}
