"""A very small edition of choices for tests: the world of choices with ten seen users, and a random tiny Idefics2."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from choice_worlds import TINY
from pydantic import TypeAdapter
from tiny_models import save_tiny

from prefmoe import config
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import Edition
from prefmoe.data import choice_folder, choice_world
from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.data.choices import ChoiceBenchmark
from prefmoe.models.base import build_method
from prefmoe.models.raters import Rater

LEARNED = {"kind": "prototypes", "lr": 1e-3, "rank": 4, "alpha": 4}
METHODS: dict[str, dict[str, Any]] = {
    "ZeroShot": {"kind": "zero_shot", "label": "Zero-shot"},
    "ViPer": {
        "label": "ViPer", **LEARNED, "objective": "ratings", "prompts": False, "auxiliary": False, "vision": False,
    },
    "Baseline": {"label": "Baseline", **LEARNED, "prompts": False, "auxiliary": False},
    "Ranked": {"label": "Prompts and ranking", **LEARNED},
    "Full": {
        "label": "Prototypes", **LEARNED, "prototypes": 5, "lr_prototypes": 1e-2,
        "begins_with": "Ranked", "steps_factor": 1.25,
    },
}  # fmt: skip
_FOLDER = TemporaryDirectory()


@cache
def data_folder() -> Path:
    """The folder of the choices, drawn once for all tests of a process."""
    return choice_world.build(TINY, Path(_FOLDER.name) / "data")


@cache
def benchmark() -> ChoiceBenchmark:
    return choice_folder.read(data_folder())


@cache
def model_folder() -> Path:
    """The folder of a random Idefics2 that knows the benchmark's prompts and both labels."""
    prompts = " ".join(sorted({choice.prompt for choice in benchmark().choices.values()}))
    values = " ".join(" ".join((name, *values)) for name, values in ATTRIBUTES.items())
    words = f"The prompt is Score for this image {prompts} {values} + -"
    return save_tiny("idefics2", Path(_FOLDER.name) / "tiny", words=words)


def backbone(**options: Any) -> Backbone:
    return load_backbone(model_folder(), **options)


def settings(name: str, **changes: Any) -> config.Method:
    return TypeAdapter(config.Method).validate_python(METHODS[name] | changes)


def method(name: str, seed: int = 0, on: Backbone | None = None, **changes: Any) -> Rater:
    """An untrained method; one that begins with another's weights has its own instead."""
    return build_method(settings(name, **changes), on or backbone(), benchmark(), seed=seed)


def lay_out(folder: Path) -> None:
    """A folder to run the small edition in: "tiny" is the model, and the benchmark is drawn."""
    (folder / "tiny").symlink_to(model_folder(), target_is_directory=True)
    made = folder / "results" / "small-choices"
    made.mkdir(parents=True)
    (made / "data").symlink_to(data_folder(), target_is_directory=True)


def content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small-choices",
        "purpose": "tests",
        "seeds": [0],
        "backbones": ["llava-mini"],
        "ablation_backbone": "llava-mini",
        "data": TINY.model_dump(),
        "training": {"steps": 4, "batch_size": 6, "checkpoint_every": 2},
        "histories": {"n_ref": 3, "draws": 2, "targets": 2, "lengths": [1], "at_lengths": ["Full"]},
        "methods": METHODS,
        "table1": list(METHODS),
        **changes,
    }


def small_edition(**changes: Any) -> Edition:
    """The edition, on the model in the folder "tiny"."""
    return Edition.model_validate(content(**changes)).model_copy(update={"backbones": ("tiny",)})
