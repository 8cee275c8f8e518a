"""The miniature of choices between pictures: users, their tastes and what they choose, drawn from a seed.

A prompt names number and item and leaves the rest open; four pictures are made for it, some of which contradict it. A
user's utility of a picture is linear in its attributes: what everybody likes, what the user's taste group likes (few
things, strongly), what is the user's own, and a little for agreement with the prompt. The favourite of the four is
drawn by a softmax of utilities, so that each of the pairs it makes follows the logistic rule

    P(a liked, b disliked | a and b) = sigma(u(a) - u(b)),

and what can be known of choices at best is known.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe.config import ChoicesData
from prefmoe.data.choice_drawing import ATTRIBUTES, PROMPTED, draw_choice_picture, prompt_of, random_attributes
from prefmoe.data.choice_folder import ATTRIBUTE_FILE, COLUMNS, TABLE, UTILITY_FILE
from prefmoe.data.made_once import make_once

VERSION = 1
"""Raised whenever the same configuration would draw another benchmark."""

PER_PROMPT = 4
"""Pictures made for a prompt."""

AGREEMENT, AGREES, CONTRADICTS = "agreement", "agrees", "contradicts"
"""The attribute that says whether a picture shows what its prompt names, and its values."""

FEATURES = (*(value for values in ATTRIBUTES.values() for value in values), AGREES)
"""Values of attributes that utilities are linear in, in the order of every taste."""

OPEN = tuple(name for name in ATTRIBUTES if name not in PROMPTED)

GROUP_SHARES = (0.4, 0.25, 0.2, 0.1, 0.05)
"""Of users in each taste group."""
CARED_ABOUT = 3
"""Open attributes that a group cares about: it likes one value of each, and dislikes another."""
STRENGTH = 1.3
"""Utility of what a group likes, and disutility of what it dislikes."""
ITEMS_CARED_ABOUT, ITEM_STRENGTH = 2, 0.8
"""Items that a group likes, as many that it dislikes, and how much."""
COMMON_STRENGTH = 0.3
"""By which everybody likes or dislikes each value of an open attribute."""
DEVIATION = 0.35
"""Standard deviation of what is a user's own, in every feature."""
AGREEMENT_UTILITY = 0.6
"""Mean utility of agreement with the prompt."""
CONTRADICTING = 0.15
"""Share of pictures that show another number, or another item, than their prompt names."""


@dataclass(frozen=True)
class Tastes:
    """Where users' tastes come from: the distribution that they are drawn from.

    Attributes:
        groups: what users of each taste group like on average, (groups, features).
    """

    groups: np.ndarray

    @classmethod
    def of(cls, seed: int) -> Tastes:
        """The tastes of a world. A group likes, of an attribute that it cares about, what larger groups like least: no
        opinion is everybody's."""
        rng = np.random.default_rng([seed, 0])
        column = {value: k for k, value in enumerate(FEATURES)}
        shares, groups = np.array(GROUP_SHARES), np.zeros((len(GROUP_SHARES), len(FEATURES)))
        for group in groups:
            for attribute in rng.choice(OPEN, CARED_ABOUT, replace=False):
                values = [column[value] for value in rng.permutation(ATTRIBUTES[attribute])]
                order = sorted(values, key=lambda k: shares @ groups[:, k])  # stable: ties stay in random order
                group[order[0]] += STRENGTH
                group[order[-1]] -= STRENGTH
            cared = [column[item] for item in rng.choice(ATTRIBUTES["item"], 2 * ITEMS_CARED_ABOUT, replace=False)]
            group[cared[:ITEMS_CARED_ABOUT]] += ITEM_STRENGTH
            group[cared[ITEMS_CARED_ABOUT:]] -= ITEM_STRENGTH
        opened = [column[value] for attribute in OPEN for value in ATTRIBUTES[attribute]]
        groups[:, opened] += COMMON_STRENGTH * rng.choice((-1, 1), len(opened))
        groups[:, column[AGREES]] = AGREEMENT_UTILITY
        return cls(groups)

    def draw(self, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Utilities of users of these groups (users,), each with a deviation of their own: (users, features)."""
        return self.groups[groups] + rng.normal(0, DEVIATION, (len(groups), len(FEATURES)))


def features(attributes: pd.DataFrame, values: Sequence[str] = FEATURES) -> np.ndarray:
    """Which values of attributes pictures have: (pictures, values) of 0 and 1."""
    table = attributes.to_numpy(str)
    return np.stack([(table == value).any(axis=1) for value in values], axis=1).astype(float)


def build(config: ChoicesData, folder: Path) -> Path:
    """Draws the benchmark into ``folder`` unless the same benchmark is already there.

    Args:
        config: seed and sizes; the same configuration always draws the same files.
        folder: as `prefmoe.data.choice_folder.read` reads it; written under a temporary name first.

    Returns ``folder``. Raises FileExistsError if ``folder`` holds something that is not a benchmark of choices.
    """
    made_from = {"version": VERSION, **config.model_dump()}
    return make_once(folder, "choices.json", made_from, "a miniature benchmark of choices", partial(_write, config))


@dataclass(frozen=True)
class _Pool:
    """Prompts with their pictures, from which the choices of one kind are made.

    Attributes:
        attributes: one row per picture, PER_PROMPT to a prompt, with the columns of ATTRIBUTES and AGREEMENT.
    """

    name: str
    prompts: Sequence[str]
    attributes: pd.DataFrame

    @cached_property
    def features(self) -> np.ndarray:
        """(prompts, PER_PROMPT, features)"""
        return features(self.attributes).reshape(len(self.prompts), PER_PROMPT, len(FEATURES))

    def picture(self, prompt: int, place: int) -> str:
        """A picture's path in the folder."""
        return f"pictures/{self.name}/{prompt:04d}{'abcd'[place]}.png"

    @property
    def pictures(self) -> list[str]:
        """All of them, in the order of `attributes`."""
        return [self.picture(prompt, place) for prompt in range(len(self.prompts)) for place in range(PER_PROMPT)]


def _pool(name: str, prompts: int, rng: np.random.Generator) -> _Pool:
    rows, texts = [], []
    for _ in range(prompts):
        named = {part: str(rng.choice(ATTRIBUTES[part])) for part in PROMPTED}
        texts.append(prompt_of(**named))
        for _ in range(PER_PROMPT):
            shown, agreement = dict(named), AGREES
            if rng.random() < CONTRADICTING:
                part, agreement = str(rng.choice(PROMPTED)), CONTRADICTS
                shown[part] = str(rng.choice([value for value in ATTRIBUTES[part] if value != named[part]]))
            rows.append({**random_attributes(rng, **shown), AGREEMENT: agreement})
    return _Pool(name, texts, pd.DataFrame(rows))


def _pools(config: ChoicesData) -> dict[str, _Pool]:
    """The pool of each split: test targets of seen and of unseen users are about the same pictures."""
    sizes = {"train": config.train_prompts}
    sizes |= dict.fromkeys(("validation", "test", "reference"), config.test_prompts)
    rngs = (np.random.default_rng([config.seed, 2, k]) for k in range(len(sizes)))
    made = {name: _pool(name, size, rng) for (name, size), rng in zip(sizes.items(), rngs, strict=True)}
    return made | {"unseen": made["test"]}


def _groups(users: int, rng: np.random.Generator) -> np.ndarray:
    """The taste group of each user (users,), in random order; as many of each as GROUP_SHARES says, rounded."""
    wanted = users * np.array(GROUP_SHARES)
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: users - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(GROUP_SHARES)), counts))


def _choices(
    user: str, utility: np.ndarray, split: str, pool: _Pool, count: int, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Rows of choices.csv, without their index."""
    for prompt in rng.choice(len(pool.prompts), count, replace=False):
        scores = pool.features[prompt] @ utility
        chances = np.exp(scores - scores.max())
        liked = rng.choice(PER_PROMPT, p=chances / chances.sum())
        rest = rng.permutation([place for place in range(PER_PROMPT) if place != liked])
        shown = rest[: 1 if split in ("train", "reference") else None]
        paths = [pool.picture(prompt, place) for place in (liked, *shown)]
        yield [user, pool.prompts[prompt], *paths, *[""] * (PER_PROMPT - len(paths)), split]


def _write(config: ChoicesData, folder: Path) -> None:
    pools = _pools(config)
    drawn = [pool for split, pool in pools.items() if split == pool.name]
    for pool in drawn:
        (folder / "pictures" / pool.name).mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=2) as writers:
        list(writers.map(partial(_draw, config.seed, folder), range(len(drawn)), drawn))
    rng, rows = np.random.default_rng([config.seed, 1]), []
    names = [f"u{k:03d}" for k in range(config.users + config.unseen_users)]
    group = np.concatenate([_groups(count, rng) for count in (config.users, config.unseen_users)])
    utilities = Tastes.of(config.seed).draw(group, rng).round(6)  # as the file says them
    seen = {"train": config.train_per_user, "validation": config.validation_per_user, "test": config.test_per_user}
    unseen = {"reference": config.unseen_references, "unseen": config.unseen_per_user}
    for k, name in enumerate(names):
        for split, count in (seen if k < config.users else unseen).items():
            rows += _choices(name, utilities[k], split, pools[split], count, rng)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *([k, *row] for k, row in enumerate(rows))])
    table = pd.concat([pool.attributes.set_axis(pool.pictures) for pool in drawn])
    table.rename_axis("picture").to_csv(folder / ATTRIBUTE_FILE, lineterminator="\n")
    tastes = pd.DataFrame(utilities, index=pd.Index(names, name="user"), columns=list(FEATURES))
    tastes.insert(0, "group", group)
    tastes.to_csv(folder / UTILITY_FILE, lineterminator="\n")


def _draw(seed: int, folder: Path, number: int, pool: _Pool) -> None:
    rng = np.random.default_rng([seed, 3, number])
    for picture, attributes in zip(pool.pictures, pool.attributes[list(ATTRIBUTES)].to_dict("records"), strict=True):
        draw_choice_picture(attributes, rng).save(folder / picture)
