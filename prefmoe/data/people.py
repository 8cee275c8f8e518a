"""Who lives in the miniature's world: names, faces, and preferences that groups of very different size share."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefmoe.config import MiniatureData
from prefmoe.data.benchmark import FACETS, Preference
from prefmoe.data.drawing import ITEMS, Face

NAMES = tuple(
    "Ada Akira Alma Amir Ana Anouk Arjun Asha Bela Bruno Carla Chen Clara Cora Dario Dina Eitan Elif Elsa Emil Enzo "
    "Esra Farid Faye Finn Flora Gita Greta Hana Hugo Ida Imani Inez Iris Ivan Jonas Jun Kaya Kenji Kofi Lara Leila "
    "Leo Lina Luca Mai Malik Mara Mei Mila Milo Mina Nadia Nils Nina Nora Omar Otto Paula Petra Priya Rafa Rana Ravi "
    "Rosa Runa Sami Sana Selma Sofia Stella Sven Talia Tara Theo Timo Uma Vera Viktor Wanda Wren Yara Yuki Yusuf Zara "
    "Zeno Zoe".split()
)
"""First names for benchmark users and for the invented people of the backbones' pre-training."""

GROUP_SHARES = (0.44, 0.20, 0.13, 0.09, 0.08, 0.06)
"""Share of the users that hold each of a facet's six preference annotations."""

ZIPF = 0.9
"""Exponent of item popularity within a facet."""


@dataclass(frozen=True)
class Person:
    """Somebody of the drawing world.

    Attributes:
        preferences: what the profile tells, by facet.
        untold: what the person likes besides, by facet.
    """

    name: str
    face: Face
    preferences: dict[str, Preference]
    untold: dict[str, tuple[str, ...]]

    @property
    def told_likes(self) -> set[str]:
        return {item for p in self.preferences.values() for item in p.likes}

    @property
    def untold_likes(self) -> set[str]:
        return {item for items in self.untold.values() for item in items}

    @property
    def likes(self) -> set[str]:
        return self.told_likes | self.untold_likes

    @property
    def dislikes(self) -> set[str]:
        return {item for p in self.preferences.values() for item in p.dislikes}

    def told(self, item: str) -> str:
        """What the profile says of an item, as annotations.csv has it: "told", "untold" or "other"."""
        if item in self.untold_likes:
            return "untold"
        return "told" if item in self.told_likes | self.dislikes else "other"


def _annotations(
    rng: np.random.Generator, further: np.random.Generator, untold: int
) -> dict[str, list[tuple[Preference, tuple[str, ...]]]]:
    """Six different annotations per facet: two liked items by Zipf popularity, two disliked among the others; and,
    beside each, ``untold`` further likes by the same popularity among what it does not mention.

    ``further``: what untold likes are drawn from, so that the others are the same however many there are.
    """
    popularity = 1.0 / np.arange(1, 13) ** ZIPF
    result: dict[str, list[tuple[Preference, tuple[str, ...]]]] = {}
    for facet in FACETS:
        items = rng.permutation(list(ITEMS[facet]))
        pairs: list[Preference] = []
        while len(pairs) < len(GROUP_SHARES):
            likes = tuple(sorted(rng.choice(items, 2, replace=False, p=popularity / popularity.sum())))
            if all(likes != p.likes for p in pairs):
                others = [item for item in items if item not in likes]
                pairs.append(Preference(likes=likes, dislikes=tuple(sorted(rng.choice(others, 2, replace=False)))))
        result[facet] = []
        for told in pairs:
            mentioned = np.isin(items, told.likes + told.dislikes)
            share = np.where(mentioned, 0.0, popularity)
            more = further.choice(items, untold, replace=False, p=share / share.sum())
            result[facet].append((told, tuple(sorted(map(str, more)))))
    return result


def _names(config: MiniatureData) -> Sequence[str]:
    """The names that users may have: one word, or two different ones (in one order, since word order is lost in the
    mean of their embeddings, from which a name's anchor may be made)."""
    return [" ".join(pair) for pair in itertools.combinations(NAMES, 2)] if config.full_names else NAMES


def people(config: MiniatureData) -> tuple[list[Person], list[Person]]:
    """The benchmark's users and the held-out unseen users; every two faces differ in at least two attributes. Group
    sizes follow GROUP_SHARES exactly (rounded), in an order drawn anew for every facet."""
    rng = np.random.default_rng([config.seed, 1])
    total = config.users + config.unseen_users
    if total > len(_names(config)):
        advice = "" if config.full_names else "; set full_names for more"
        raise ValueError(f"users + unseen_users is {total}, but there are only {len(_names(config))} names{advice}")
    annotations = _annotations(rng, np.random.default_rng([config.seed, 4]), config.untold)
    bounds = np.cumsum(GROUP_SHARES)
    columns = {}
    for facet in FACETS:
        trained = np.searchsorted(bounds, (np.arange(config.users) + 0.5) / config.users * bounds[-1])
        unseen = rng.choice(len(GROUP_SHARES), config.unseen_users, p=np.array(GROUP_SHARES) / bounds[-1])
        columns[facet] = np.concatenate([rng.permutation(trained), unseen])
    faces: list[Face] = []
    while len(faces) < total:
        face = Face.random(rng)
        if all(face.shared(other) <= 4 for other in faces):
            faces.append(face)
    names = rng.permutation(_names(config))[:total]
    everybody = []
    for i in range(total):
        held = {facet: annotations[facet][columns[facet][i]] for facet in FACETS}
        told, untold = ({facet: parts[k] for facet, parts in held.items()} for k in (0, 1))
        everybody.append(Person(str(names[i]), faces[i], told, untold))
    return everybody[: config.users], everybody[config.users :]
