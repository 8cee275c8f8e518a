"""Small benchmarks of choices for tests."""

from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from prefmoe.config import ChoicesData
from prefmoe.data import choice_folder, choice_world
from prefmoe.data.choices import ChoiceBenchmark

TINY = ChoicesData(
    kind="choices", users=10, unseen_users=5, train_per_user=6, validation_per_user=1, test_per_user=2,
    unseen_per_user=3, unseen_references=5, train_prompts=12, test_prompts=6,
)  # fmt: skip


def without_drawing(config: ChoicesData, folder: Path) -> ChoiceBenchmark:
    """The benchmark of a configuration, with a dot in the place of every picture, each of another colour."""
    numbers = count()

    def dot(attributes, rng) -> Image.Image:
        return Image.frombytes("RGB", (1, 1), next(numbers).to_bytes(3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_world, "draw_choice_picture", dot)
        return choice_folder.read(choice_world.build(config, folder))
