"""A tiny benchmark with pictures, of four users."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from prefmoe.data import prompts
from prefmoe.data.benchmark import FACETS, Benchmark, Example, Preference, User

NAMES = ("Ann", "Bob", "Cid", "Dot")
ITEMS = ("tea", "jazz", "chess", "hats", "surfing", "opera")


def make_picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of coloured blocks, width x height."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def draw_benchmark(root: Path) -> Benchmark:
    """Four users (Ann and Bob share all preferences, Dot has none in fashion), 40 questions, two transcripts."""

    def save(name: str, seed: int) -> Path:
        path = root / f"{name}.png"
        make_picture(seed, (16, 16) if seed % 2 else (32, 16)).save(path)
        return path

    users = {}
    for row, name in enumerate(NAMES):
        group = row // 2 if name != "Dot" else 2
        preferences = {
            facet: Preference(likes=(ITEMS[(group + f) % 6],), dislikes=(ITEMS[(group + f + 3) % 6],))
            for f, facet in enumerate(FACETS)
            if not (name == "Dot" and facet == "fashion")
        }
        hair = "red" if row % 2 else "blue"
        users[name] = User(
            name=name, attribute="human", description=f"A person with {hair} hair.", preferences=preferences,
            images=tuple(save(f"{name}{k}", 100 + 10 * row + k) for k in range(2)),
        )  # fmt: skip
    examples: dict[int, Example] = {}
    for name, user in users.items():
        for k in range(10):
            index = len(examples)
            facet = FACETS[k % 5]
            item = ITEMS[k % 6]
            common = dict(
                index=index, name=name, semantic_invert=False, bucket_names=(), image=save(f"q{index}", index),
                target=name, options=(),
            )  # fmt: skip
            if k < 6 and facet in user.preferences:
                yes = item in user.preferences[facet].likes
                examples[index] = Example(
                    **common, category="preference", concept=facet, l2_category="awareness" if yes else "overconcept",
                    question=f"Does {prompts.PLACEHOLDER} like {item}?", answer=4 if yes else 5,
                )  # fmt: skip
            elif k < 8:
                options = dict(common, options=ITEMS[:4])
                examples[index] = Example(
                    **options, category="recognition", concept="human", l2_category="inconsistency",
                    question=f"Which does {prompts.PLACEHOLDER} like?", answer=k % 4,
                )  # fmt: skip
            else:
                examples[index] = Example(
                    **common, category="recognition", concept="human",
                    l2_category="awareness" if k % 2 else "overconcept",
                    question=f"Is {prompts.PLACEHOLDER} in this picture?", answer=4 + (k + 1) % 2,
                )  # fmt: skip
    indices = tuple(examples)
    transcripts = (
        (("user", "hello, how are you?"), ("assistant", "fine, thanks.")),
        (("user", "the weather is good."), ("assistant", "yes.")),
    )
    frame = pd.DataFrame({"index": indices, "name": [e.name for e in examples.values()]}).set_index("index")
    splits = {"train": indices[::2], "validation": (), "test": indices[1::2], "unseen": ()}
    return Benchmark(
        root=root, frame=frame, users=users, examples=examples, splits=splits, transcripts=transcripts, digest="tiny"
    )
