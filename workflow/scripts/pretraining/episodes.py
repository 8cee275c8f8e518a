"""What a model learns to sort pictures from: episodes, each with a rule and two label words of its own.

A rule weighs the attributes of pictures, isotropically and anew in every episode. There is no user, no group of users
who share a taste, and no picture of the benchmark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefmoe.data.choice_drawing import ATTRIBUTES, PROMPTED

NAMES = tuple(ATTRIBUTES)
SIZES = np.array([len(values) for values in ATTRIBUTES.values()])
STARTS = np.concatenate([[0], np.cumsum(SIZES)[:-1]])
"""Where each attribute's values begin among all values."""


@dataclass(frozen=True)
class Episodes:
    """B episodes of n pictures, all of one kind.

    Attributes:
        values: (B, n, 9) the value of each attribute, by its number in ATTRIBUTES.
        told: (B, n, 2) number and item that each picture's prompt tells, which may not be what it shows.
        labels: (B, n) 0 or 1, the side of the rule on which a picture is.
        pictures: (B, n) which picture of a pool it is, or None.
    """

    values: np.ndarray
    told: np.ndarray
    labels: np.ndarray
    pictures: np.ndarray | None = None


def rules(rng: np.random.Generator, relevant: np.ndarray) -> np.ndarray:
    """A weight for every value of the attributes that matter, (B, V); its mean over an attribute's values is 0.

    Args:
        relevant: (B, 9) bool, the attributes that matter.
    """
    weights = rng.standard_normal((len(relevant), SIZES.sum()))
    for name, (start, size) in enumerate(zip(STARTS, SIZES, strict=True)):
        part = weights[:, start : start + size]
        part -= part.mean(1, keepdims=True)
        part *= (relevant[:, name] * rng.uniform(0.5, 1.5, len(relevant)) / part.std(1))[:, None]
    return weights


def utilities(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of a rule's weights (B, V) over the values (B, n, 9) that pictures have: (B, n)."""
    places = (values + STARTS).reshape(len(values), -1)
    return np.take_along_axis(weights, places, 1).reshape(values.shape).sum(-1)


def some(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """As many of the nine attributes as counts (B,) says, drawn for each row: (B, 9) bool."""
    return rng.random((len(counts), len(NAMES))).argsort(1).argsort(1) < counts[:, None]


def repeated(rng: np.random.Generator, rows: int, entries: int, changes: int) -> Episodes:
    """No rule: half of the pictures have random labels, and come once more with theirs, a few attributes changed."""
    half = entries // 2
    first, label = rng.integers(0, SIZES, (rows, half, len(NAMES))), rng.integers(0, 2, (rows, half))
    order = rng.permuted(np.tile(np.arange(half), (rows, 1)), axis=1)
    again = np.take_along_axis(first, order[..., None], 1)
    changed = some(rng, np.full(rows * half, changes)).reshape(again.shape)
    again = np.where(changed, rng.integers(0, SIZES, again.shape), again)
    values = np.concatenate([first, again], 1)
    labels = np.concatenate([label, np.take_along_axis(label, order, 1)], 1)
    return Episodes(values, values[..., : len(PROMPTED)], labels)


def ruled(rng: np.random.Generator, rows: int, entries: int, varying: int, relevant: Sequence[int]) -> Episodes:
    """Pictures that differ in so many attributes alone, some of which (from ... to, at most all of them) matter."""
    varies = some(rng, np.full(rows, varying))
    values = rng.integers(0, SIZES, (rows, entries, len(NAMES)))
    values = np.where(varies[:, None], values, values[:, :1])
    count = np.minimum(rng.integers(relevant[0], relevant[1] + 1, rows), varying)
    order = np.where(varies, rng.random(varies.shape), 2.0).argsort(1).argsort(1)
    labels = utilities(rules(rng, order < count[:, None]), values) > 0
    return Episodes(values, values[..., : len(PROMPTED)], labels.astype(int))


CONTRADICTED = 0.15
"""Share of pictures for whose prompt the number or the item is drawn anew, so that it may be another one."""


class PoolEpisodes:
    """Draws episodes from pictures of a pool.

    Args:
        values: (n, 9) what each picture shows.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        content = values[:, 0] * SIZES[1] + values[:, 1]  # number and item, which prompts tell
        self._order = np.argsort(content, kind="stable")
        self._first = np.searchsorted(content[self._order], np.arange(SIZES[0] * SIZES[1] + 1))
        self._content = content

    def __call__(
        self, rng: np.random.Generator, rows: int, entries: int, relevant: Sequence[int], rivals: float
    ) -> Episodes:
        """Episodes of pictures that differ in everything; in three of ten a prompt that is not true counts as well.

        Args:
            relevant: how many attributes matter, from ... to.
            rivals: the share of episodes in which a label says whether a picture is better than another one of its
                content; in the others, whether it is better than the average picture.
        """
        pictures = rng.integers(0, len(self.values), (rows, entries))
        values = self.values[pictures]
        weights = rules(rng, some(rng, rng.integers(relevant[0], relevant[1] + 1, rows)))
        first, behind = self._first[self._content[pictures]], self._first[self._content[pictures] + 1]
        rival = self._order[first + (rng.random(pictures.shape) * (behind - first)).astype(int)]
        against = np.where(rng.random(rows)[:, None] < rivals, utilities(weights, self.values[rival]), 0.0)
        gain = utilities(weights, values) - against
        told = values[..., : len(PROMPTED)].copy()
        other = rng.integers(0, SIZES[: len(PROMPTED)], told.shape)
        untrue = rng.random(told.shape[:2]) < CONTRADICTED
        which = rng.permuted(np.tile([True, False], (*told.shape[:2], 1)), axis=-1)  # the number or the item
        told = np.where(untrue[..., None] & which, other, told)
        contradicted = (told != values[..., : len(PROMPTED)]).any(-1)
        gain += rng.normal(0, 1, (rows, 1)) * (rng.random((rows, 1)) < 0.3) * (contradicted - CONTRADICTED)
        labels = np.where(gain == 0, rng.integers(0, 2, gain.shape), gain > 0)
        return Episodes(values, told, labels.astype(int), pictures)
