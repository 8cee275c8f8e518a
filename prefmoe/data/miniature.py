"""The embedded miniature benchmark: users, preferences and questions drawn from a seed, in MMPB-clean's layout.

The world has what makes group preference collapse possible: preference annotations are shared by groups of very
different size, and items differ in popularity, so that a guess of the popular answer pays; "no" questions lean to
what other users hold, and there it is wrong.

With `MiniatureData.untold`, groups have further likes that are asked about like the others and that no profile tells:
only who has learned from answers what people of this taste also like can know them.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from prefmoe.config import MiniatureData
from prefmoe.data.benchmark import Turn, join_holders
from prefmoe.data.columns import COLUMNS
from prefmoe.data.drawing import ITEM_FACET, ITEMS, Face, draw_items, draw_people
from prefmoe.data.made_once import make_once
from prefmoe.data.people import Person, people
from prefmoe.data.prompts import format_preferences

VERSION = 3
"""Raised whenever the same configuration would draw another benchmark."""

LIKES_QUESTIONS = ("Would <sks> like this?", "Does this suit <sks>?", "Is this for <sks>?")
NEGATED_QUESTIONS = ("Would <sks> not like this?", "Does this not suit <sks>?", "Is this not for <sks>?")
CHOICE_QUESTIONS = {"like": "Which would <sks> pick?", "dislike": "Which would <sks> avoid?"}
PRESENCE_QUESTIONS = ("Is <sks> here?", "Can you see <sks>?", "Does this show <sks>?")
PLACE_QUESTION = "Where is <sks>?"
PLACES = {1: ("middle",), 2: ("left", "right"), 3: ("left", "middle", "right")}
PLACE_OPTIONS = ("left", "middle", "right", "absent")
"""Where somebody may be; always offered in this order."""

NEGATED_SHARE = 0.3
UNSEEN_PAIR_SHARE = 2 / 3
UNTOLD_SHARE = 0.6
"""Share of untold items among the liked ones that validation and test ask about (yes/no), where there are any."""

KIND_SHARES = {"preference_yesno": 0.55, "preference_mcq": 0.125, "recognition_yesno": 0.225, "recognition_mcq": 0.1}


def small_talk(rng: np.random.Generator, exchanges: int = 10) -> list[Turn]:
    """A neutral conversation of ``exchanges`` questions and answers (two utterances each)."""
    text = files("prefmoe.data").joinpath("small_talk.json").read_text(encoding="utf-8")
    pool = json.loads(text)["exchanges"]
    chosen = rng.choice(len(pool), size=exchanges, replace=False)
    return [turn for k in chosen for turn in (("user", pool[k][0]), ("assistant", pool[k][1]))]


@dataclass(frozen=True)
class _Pairs:
    """The items that one split may ask a user about: never trained for this user, and trained. untold_share: of untold
    items among the liked ones asked about; as many as there are of them when None."""

    fresh: frozenset[str]
    known: frozenset[str] = frozenset()
    untold_share: float | None = UNTOLD_SHARE


class _Questions:
    """Draws the questions of one benchmark; its pictures are written meanwhile. ``writer``: of one thread, to which
    pictures are handed in their order."""

    def __init__(self, config: MiniatureData, folder: Path, writer: Executor):
        self.config, self.folder, self._writer = config, folder, writer
        self.written: list[Future] = []
        self.rng = np.random.default_rng([config.seed, 2])
        self.users, self.unseen = people(config)
        self.holders = {item: [u.name for u in self.users if item in u.likes] for item in ITEM_FACET}
        self.rows: list[dict] = []
        self.annotations: list[dict] = []

    def _deal(self, items: list[str], count: int, weights: dict[str, float], pairs: _Pairs) -> Iterator[str]:
        """``count`` of ``items`` by weight, UNSEEN_PAIR_SHARE of them fresh where there are fresh and known ones."""
        fresh = [i for i in items if i in pairs.fresh]
        known = [i for i in items if i in pairs.known]
        share = round(count * UNSEEN_PAIR_SHARE) if fresh and known else count * bool(fresh)
        for pool, n in ((fresh, share), (known, count - share)):
            if n:
                p = np.array([weights[i] for i in pool])
                yield from (str(i) for i in self.rng.choice(pool, n, p=p / p.sum(), replace=n > len(pool)))

    def _liked(self, person: Person, count: int, weights: dict[str, float], pairs: _Pairs) -> list[str]:
        """``count`` liked items; untold ones are asked about once before any is asked about again, fresh ones first."""
        untold = sorted(person.untold_likes)
        if not untold or pairs.untold_share is None:
            return list(self._deal(sorted(person.likes), count, weights, pairs))
        pools = [sorted(pool.intersection(untold)) for pool in (pairs.fresh, pairs.known)]
        order = [str(item) for pool in pools for item in self.rng.permutation(pool)]
        further = round(count * pairs.untold_share)
        return [*self._deal(sorted(person.told_likes), count - further, weights, pairs), *(order * further)[:further]]

    def _save(self, picture: Image.Image, path: str) -> None:
        self.written.append(self._writer.submit(picture.save, self.folder / path))

    def _add(self, person: Person, picture: Image.Image, **fields) -> int:
        index = len(self.rows)
        path = f"mmpb_clean/images/{index:06d}.png"
        self._save(picture, path)
        item, seen = fields.pop("item", ""), fields.pop("seen", False)
        description = person.face.description()
        answer = fields["answer"]
        row = dict.fromkeys(COLUMNS, "") | {
            "index": index, "name": person.name, "attribute": "human", "image_path": path,
            "answer_text": ("a", "b", "c", "d", "yes", "no")[answer],
            "preference": format_preferences(person.preferences), "preference_semantic_invert": 0,
            "description_simple": description, "description_moderate": description,
            "description_detailed": description, "description_super_detailed": description,
        }  # fmt: skip
        portrait = "mmpb_clean/injection/injection_image_{k}/{name}.png"
        row |= {f"injection_image_{k}": portrait.format(k=k, name=person.name) for k in range(1, 6)}
        self.rows.append(row | fields)
        holders = len(self.holders.get(item, ())) if item else 0
        annotation = {"index": index, "item": item, "popularity": holders, "seen_pair": int(seen)}
        if self.config.untold:
            annotation["told"] = person.told(item) if item else ""
        self.annotations.append(annotation)
        return index

    def _holders(self, item: str, person: Person) -> list[str]:
        """The trained users who like an item, and the asked person if that is an unseen user who does."""
        asked = [person.name] if item in person.likes and person.name not in self.holders[item] else []
        return self.holders[item] + asked

    def _preference_yesno(self, person: Person, count: int, pairs: _Pairs) -> None:
        liked = sorted(person.likes)
        others = [i for i in ITEM_FACET if i not in person.likes]
        positives = count // 2
        # "No" questions lean to what other users hold, but less than "yes" questions do: what many like is more often
        # to be answered "yes" than not, and a guess of the popular answer pays over the population.
        weights = {i: 1 + 6 * len(self.holders[i]) / len(self.users) for i in others} | dict.fromkeys(liked, 1.0)
        chosen = [(i, True) for i in self._liked(person, positives, weights, pairs)]
        chosen += [(i, False) for i in self._deal(others, count - positives, weights, pairs)]
        for item, holds in chosen:
            negated = self.rng.random() < NEGATED_SHARE
            templates = NEGATED_QUESTIONS if negated else LIKES_QUESTIONS
            yes = holds != negated
            self._add(
                person, draw_items([item], self.rng), item=item, seen=item in pairs.known,
                category="preference", concept=ITEM_FACET[item], question=str(self.rng.choice(templates)),
                **{"l2-category": "awareness" if holds else "overconcept"}, task_family="preference_yesno",
                answer=4 if yes else 5, polarity="reverse" if negated else "positive",
                preference_semantic_invert=int(negated),
                preference_bucket_kind="positive_bucket" if holds else "negative_bucket",
                preference_common_items=item, preference_bucket_names=join_holders(self._holders(item, person)),
            )  # fmt: skip

    def _preference_mcq(self, person: Person, count: int, pairs: _Pairs) -> None:
        askable = [
            (facet, target, item)
            for facet, own in person.preferences.items()
            for target, held in (("like", own.likes + person.untold[facet]), ("dislike", own.dislikes))
            for item in held
        ]
        for item in self._deal([a[2] for a in askable], count, dict.fromkeys(ITEM_FACET, 1.0), pairs):
            facet, target, right = next(a for a in askable if a[2] == item)
            own = person.preferences[facet]
            wrong_pool = own.dislikes if target == "like" else own.likes
            # One contrary item of the same user, and two of the facet's items that only other people mention.
            neutral = [i for i in ITEMS[facet] if person.told(i) == "other"]
            options = [right, str(self.rng.choice(wrong_pool)), *map(str, self.rng.choice(neutral, 2, replace=False))]
            options = [str(o) for o in self.rng.permutation(options)]
            self._add(
                person, draw_items(options, self.rng), item=right, seen=right in pairs.known,
                category="preference", concept=facet, target=target, question=CHOICE_QUESTIONS[target],
                **{"l2-category": "inconsistency"}, task_family="preference_mcq", answer=options.index(right),
                **dict(zip("ABCD", options, strict=True)),
            )  # fmt: skip

    def _company(self, person: Person, present: bool) -> tuple[list[Face], int]:
        """Faces of a picture with one to three people and the target's place in it (-1 when absent)."""
        size = int(self.rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]))
        strangers: list[Face] = []
        while len(strangers) < size:
            draw = self.rng.random()
            if draw < 0.4:
                other = self.users[self.rng.integers(len(self.users))].face
            elif draw < 0.7:
                other = person.face.altered(self.rng, 3)
            else:
                other = Face.random(self.rng)
            if other.shared(person.face) <= 4:
                strangers.append(other)
        place = int(self.rng.integers(size)) if present else -1
        if present:
            strangers[place] = person.face
        return strangers, place

    def _recognition_yesno(self, person: Person, count: int) -> None:
        for k in range(count):
            present = k % 2 == 0
            faces, _ = self._company(person, present)
            self._add(
                person, draw_people(faces, self.rng), category="recognition",
                question=str(self.rng.choice(PRESENCE_QUESTIONS)), answer=4 if present else 5,
                **{"l2-category": "awareness" if present else "overconcept"}, task_family="recognition_yesno",
                target="Single" if len(faces) == 1 else "Multi",
                recognition_bucket_type="all_yes_only" if present else "all_no_only",
            )  # fmt: skip

    def _recognition_mcq(self, person: Person, count: int) -> None:
        for _ in range(count):
            faces, place = self._company(person, present=self.rng.random() < 0.75)
            right = "absent" if place < 0 else PLACES[len(faces)][place]
            self._add(
                person, draw_people(faces, self.rng), category="recognition", question=PLACE_QUESTION,
                **{"l2-category": "inconsistency"}, task_family="recognition_mcq", answer=PLACE_OPTIONS.index(right),
                target="Single" if len(faces) == 1 else "Multi", **dict(zip("ABCD", PLACE_OPTIONS, strict=True)),
            )  # fmt: skip

    def ask(self, person: Person, count: int, pairs: _Pairs) -> list[int]:
        """``count`` questions about one person, mixed by KIND_SHARES; returns their indices."""
        first = len(self.rows)
        counts = {kind: max(1, round(count * share)) for kind, share in KIND_SHARES.items()}
        counts["preference_yesno"] = max(2, count - sum(n for k, n in counts.items() if k != "preference_yesno"))
        self._preference_yesno(person, counts["preference_yesno"], pairs)
        self._preference_mcq(person, counts["preference_mcq"], pairs)
        self._recognition_yesno(person, counts["recognition_yesno"])
        self._recognition_mcq(person, counts["recognition_mcq"])
        return list(range(first, len(self.rows)))

    def portraits(self) -> None:
        """Five pictures per user in which the user is alone."""
        for k in range(1, 6):
            (self.folder / f"mmpb_clean/injection/injection_image_{k}").mkdir(parents=True)
            for person in self.users + self.unseen:
                picture = draw_people([person.face], self.rng)
                self._save(picture, f"mmpb_clean/injection/injection_image_{k}/{person.name}.png")


def build(config: MiniatureData, folder: Path) -> Path:
    """Draws the benchmark into ``folder`` unless the same benchmark is already there.

    Args:
        config: seed and sizes; the same configuration always draws the same files.
        folder: becomes the data folder (holds mmpb_clean/ and multi_turn/); written under a temporary name first.

    Returns ``folder``. Raises FileExistsError if ``folder`` holds something that is not a miniature benchmark.
    """
    # A benchmark without untold likes is what it was before there were any, and is not drawn again.
    made_from = {"version": VERSION, **config.model_dump(exclude=None if config.untold else {"untold"})}
    return make_once(folder, "miniature.json", made_from, "a miniature benchmark", partial(_write, config))


def _split_items(person: Person, rng: np.random.Generator) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Items to ask a user about in training (60 %), and fresh ones for validation and test (20 % each).

    Liked, disliked and other items are split apart; tuning on validation therefore sees none of the test's pairs. Of
    untold likes half are for training, a tenth for validation and two fifths for the test: a pair asked about twice
    says little more than once.
    """
    parts: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    others = set(ITEM_FACET) - person.likes - person.dislikes
    tenths = [(kind, 2, 2) for kind in (person.told_likes, person.dislikes, others)]
    for kind, validation, test in [*tenths, (person.untold_likes, 1, 4)]:
        order = [str(i) for i in rng.permutation(sorted(kind))]
        first = len(order) * validation // 10
        second = first + len(order) * test // 10
        parts[1].update(order[:first])
        parts[2].update(order[first:second])
        parts[0].update(order[second:])
    return frozenset(parts[0]), frozenset(parts[1]), frozenset(parts[2])


def _write(config: MiniatureData, folder: Path) -> None:
    splits: dict[str, list[int]] = {"train_idx": [], "validation_idx": [], "test_idx": [], "unseen_idx": []}
    (folder / "mmpb_clean/images").mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=1) as writer:
        questions = _Questions(config, folder, writer)
        questions.portraits()
        for person in questions.users:
            trained, validation, test = _split_items(person, questions.rng)
            splits["train_idx"] += questions.ask(person, config.train_per_user, _Pairs(trained, untold_share=None))
            splits["validation_idx"] += questions.ask(person, config.validation_per_user, _Pairs(validation, trained))
            splits["test_idx"] += questions.ask(person, config.test_per_user, _Pairs(test, trained))
        for person in questions.unseen:
            splits["unseen_idx"] += questions.ask(person, config.test_per_user, _Pairs(frozenset(ITEM_FACET)))
    for picture in questions.written:
        picture.result()
    root = folder / "mmpb_clean"
    pd.DataFrame(questions.rows, columns=COLUMNS).to_csv(root / "sample.csv", index=False)
    pd.DataFrame(questions.annotations).to_csv(root / "annotations.csv", index=False)
    (root / "split.json").write_text(json.dumps([{"tasks": [splits]}]))
    talk = folder / "multi_turn/generic_text"
    talk.mkdir(parents=True)
    for k in range(1, 5):
        turns = small_talk(np.random.default_rng([config.seed, 3, k]))
        content = [{"role": role, "content": text} for role, text in turns]
        (talk / f"multi_turn_conversation_{k}.json").write_text(json.dumps(content, indent=1))
