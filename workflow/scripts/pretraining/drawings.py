"""The pictures of pre-training, with what each of their 16 image tokens should say."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from PIL import Image
from tqdm.auto import tqdm

from prefmoe.config import MiniatureData
from prefmoe.data import miniature as world
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET, Face, draw_items, draw_people
from prefmoe.system import provenance
from prefmoe.system.files import is_intact, whole_file
from pretraining.miniatures import GRID, IMAGE_SIZE


@dataclass
class Pictures:
    """A pool of drawings with what each of the 16 image tokens should say.

    Attributes:
        pixels: (n, 64, 64, 3) uint8.
        labels: (n, 16, 8) word indices: item, six attributes, place; -1 = none. All -1 = background.
        people: person id -> [(picture, place)]; a place is "left", "middle" or "right".
        faces: person id -> Face.
        items: item word -> pictures that show it alone.
        groups: pictures of people -> person ids from left to right.
    """

    pixels: np.ndarray
    labels: np.ndarray
    items: dict[str, list[int]]
    quarters: dict[int, list[str]]
    groups: dict[int, list[int]]
    faces: list[Face]
    appearances: dict[int, list[tuple[int, str]]] = field(default_factory=dict)


LABEL_WORDS: list[list[str]] = [
    list(ITEM_FACET),
    *(list(w) for w in ATTRIBUTES.values()),
    list(world.PLACE_OPTIONS[:3]),
]
"""The vocabulary of each label column of Pictures.labels."""

_REGIONS = {
    ("item", 1): [[5, 6, 9, 10]],
    ("item", 4): [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    ("people", 1): [[5, 6, 9, 10, 13, 14]],
    ("people", 2): [[8, 9, 12, 13], [10, 11, 14, 15]],
    ("people", 3): [[8, 12], [9, 10, 13, 14], [11, 15]],
}
"""Which of the 4 x 4 image tokens speak for each thing in a picture."""


def _draw(job: tuple[str, list, int]) -> np.ndarray:
    kind, content, seed = job
    rng = np.random.default_rng(seed)
    picture = draw_items(content, rng) if kind == "item" else draw_people(content, rng)
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC))


def drawn_once(
    draw: Callable[[tuple], np.ndarray], jobs: list[tuple], folder: Path | None, code: tuple[str, str]
) -> np.ndarray:
    """The pixels (n, 64, 64, 3) of all jobs, drawn by as many processes as torch has threads.

    Kept in the folder, if there is one, under a name that depends on the jobs and on the code: the file that holds
    ``draw``, and the module of the package that it draws with.
    """
    if folder is None:
        return np.stack([draw(job) for job in jobs])
    file, module = code
    drawing = provenance.digest([Path(file).read_text(encoding="utf-8"), provenance.code_digest((module,))])
    path = folder / f"drawings-{provenance.digest([drawing, IMAGE_SIZE, repr(jobs)])[:16]}.npy"
    if not is_intact(path):
        drawn = Parallel(n_jobs=torch.get_num_threads(), return_as="generator", batch_size=50)(
            delayed(draw)(job) for job in jobs
        )
        pixels = np.stack(list(tqdm(drawn, desc="drawing", total=len(jobs), mininterval=5)))
        with whole_file(path, sealed=True) as partial, partial.open("wb") as file:
            np.save(file, pixels)
    return np.load(path)


def draw_pool(items: int, quarters: int, groups: int, people: int, seed: int, avoid: Collection[Face],
              folder: Path | None = None) -> Pictures:  # fmt: skip
    """Draws the pre-training pictures; people are invented and never have the face of anybody in ``avoid``.

    With a folder the drawings are kept there, in a file named after what is drawn and by which code.
    """
    rng = np.random.default_rng([seed, 11])
    faces: list[Face] = []
    while len(faces) < people:
        face = Face.random(rng)
        if rng.random() < 0.5 and faces:  # half have a lookalike
            face = faces[rng.integers(len(faces))].altered(rng, int(rng.integers(2, 4)))
        if face not in avoid:
            faces.append(face)
    words = list(ITEM_FACET)
    jobs: list[tuple[str, list, int]] = []
    members: list[list] = []
    for k in range(items):
        members.append([words[k % len(words)]])
    for _ in range(quarters):
        members.append([str(w) for w in rng.choice(words, 4, replace=False)])
    for k in range(groups):
        size = 1 if k < 2 * people else int(rng.integers(1, 4))
        first = k % people
        others = [int(p) for p in rng.integers(people, size=size - 1)]
        members.append([int(p) for p in rng.permutation([first, *others])])
    for k, content in enumerate(members):
        kind = "item" if k < items + quarters else "people"
        drawn = content if kind == "item" else [faces[p] for p in content]
        jobs.append((kind, drawn, int(rng.integers(2**62))))
    pixels = drawn_once(_draw, jobs, folder, (__file__, "prefmoe.data.drawing"))
    labels = np.full((len(jobs), GRID * GRID, 8), -1, dtype=np.int64)
    pool = Pictures(pixels, labels, {w: [] for w in words}, {}, {}, faces)
    for k, content in enumerate(members):
        kind = jobs[k][0]
        for place, (region, thing) in enumerate(zip(_REGIONS[kind, len(content)], content, strict=True)):
            if kind == "item":
                labels[k, region, 0] = words.index(thing)
            else:
                values = [list(ATTRIBUTES[a]).index(getattr(faces[thing], a)) for a in ATTRIBUTES]
                where = world.PLACES[len(content)][place]
                labels[k, region, 1:7] = values
                labels[k, region, 7] = world.PLACE_OPTIONS.index(where)
                pool.appearances.setdefault(thing, []).append((k, where))
        if kind == "people":
            pool.groups[k] = content
        elif len(content) == 1:
            pool.items[content[0]].append(k)
        else:
            pool.quarters[k] = content
    return pool


def pool_without_users(sizes: Mapping[str, int], folder: Path) -> Pictures:
    """The drawings of a recipe, the same for every backbone: nobody in them has the face of a benchmark user."""
    trained, unseen = world.people(MiniatureData(kind="miniature"))
    return draw_pool(**sizes, seed=0, avoid={person.face for person in trained + unseen}, folder=folder)


@lru_cache(maxsize=1)
def unseen_pictures() -> Pictures:
    """Drawings of newly invented people and of items that no stage has seen, for measuring the abilities."""
    return draw_pool(items=240, quarters=60, groups=240, people=40, seed=1000, avoid=frozenset())
