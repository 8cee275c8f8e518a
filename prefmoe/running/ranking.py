"""Ranks all items of the miniature world for every user: P(yes) to one question about a picture of each item."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefmoe.analysis import ranking
from prefmoe.config import RESULTS, Edition, load_edition, run_folder
from prefmoe.data.benchmark import Example
from prefmoe.data.drawing import ITEM_FACET, draw_items
from prefmoe.data.made_once import make_once
from prefmoe.data.miniature import LIKES_QUESTIONS
from prefmoe.models.base import Method
from prefmoe.running.runs import Workbench
from prefmoe.running.together import score
from prefmoe.system.run_files import METHOD_FOLDER, verify

GALLERIES = 4
"""Sets of pictures that everything is ranked in."""


def item_pictures(folder: Path, seed: int = 0) -> dict[str, Path]:
    """A gallery: one picture of every item, the same for all users, none of the benchmark's; drawn into ``folder``
    once."""

    def write(place: Path) -> None:
        for number, item in enumerate(ITEM_FACET):
            draw_items([item], np.random.default_rng([seed, 6, number])).save(place / f"{item}.png")

    made_from = {"version": 1, "seed": seed}
    make_once(folder, "pictures.json", made_from, "pictures of items", write)
    return {item: folder / f"{item}.png" for item in ITEM_FACET}


def questions(users: Sequence[str], pictures: dict[str, Path]) -> list[Example]:
    """For every user, and for each of them every item, whether the user would like what a picture shows."""
    asked = [(user, item) for user in users for item in pictures]
    return [
        Example(
            index=index, name=user, category="preference", l2_category="awareness", concept=ITEM_FACET[item], target="",
            question=LIKES_QUESTIONS[0], options=(), answer=4, image=pictures[item], semantic_invert=False,
            bucket_names=(),
        )
        for index, (user, item) in enumerate(asked)
    ]  # fmt: skip


def rank(
    edition: Edition | str,
    *,
    results: str | Path = RESULTS,
    depths: Sequence[int] = ranking.DEPTHS,
    galleries: int = GALLERIES,
) -> list[Path]:
    """Ranks all items for all users with every finished run of an edition, once in each of several galleries, beside
    recommenders that see the same training answers; writes and returns the tables of `ranking.write`.

    Raises RankingError if the edition is not about the miniature; RunFileError naming a run that is not finished, or
    whose saved method is missing or changed.
    """
    edition = load_edition(edition)
    ranking.check(edition, depths, galleries)
    places = {
        (backbone, key, seed): run_folder(results, edition.name, backbone, key, seed)
        for backbone, key in edition.runs()
        for seed in edition.seeds_of(key)
    }
    for folder in places.values():
        verify(folder)
    scores: dict[tuple[str, str], dict[int, NDArray]] = {}
    for name in edition.backbones:
        bench = Workbench(edition, name, results=results)
        taste, items = ranking.taste_of(edition, bench.benchmark), Path(results) / edition.name / "items"
        seeds = range(edition.data.seed, edition.data.seed + galleries)
        asked = [questions(taste.users, item_pictures(items / f"{seed}", seed)) for seed in seeds]
        for (backbone, key, seed), folder in places.items():
            if backbone == name:
                method = Method.from_pretrained(folder / METHOD_FOLDER, bench.backbone(), bench.benchmark)
                found = [score(method, gallery).reshape(taste.told.shape) for gallery in asked]
                scores.setdefault((backbone, key), {})[seed] = np.stack(found)
    return ranking.write(edition, taste, scores, results=results, depths=depths)
