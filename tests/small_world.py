"""A very small edition for tests: the miniature benchmark with seven users, and a random tiny model."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tiny_models import save_tiny

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import Edition, MiniatureData
from prefmoe.data import miniature, mmpb
from prefmoe.data.benchmark import Benchmark

DATA = MiniatureData(
    kind="miniature", users=6, unseen_users=1, train_per_user=8, validation_per_user=5, test_per_user=6
)
PREFMOE = {
    "kind": "prefmoe",
    "label": "full",
    "lr": 3e-3,
    "lr_user": 1e-2,
    "preference_rank": 2,
    "user_rank": 4,
    "profile_rank": 2,
    "counterfactual_users": 4,
}
METHODS = {
    "NT": {"kind": "nontuned", "label": "non-tuned", "profile": "text"},
    "FFT": {"kind": "fft", "label": "fine-tuned", "lr": 1e-3},
    "LoRA": {"kind": "lora", "label": "adapter", "lr": 1e-3, "rank": 4, "alpha": 4},
    "PrefMoE": PREFMOE,
}
_FOLDER = TemporaryDirectory()


@cache
def data_folder() -> Path:
    """The folder of the benchmark, drawn once for all tests of a process."""
    return miniature.build(DATA, Path(_FOLDER.name) / "data")


@cache
def pictures_folder() -> Path:
    """Where the pictures of that benchmark are kept prepared, as they are for all runs of one edition."""
    folder = Path(_FOLDER.name) / "pictures"
    folder.mkdir()
    return folder


def lay_out(folder: Path, *models: str, results: tuple[str, ...] = ("results",)) -> None:
    """A folder to run the small edition in: "tiny-llava" is a model, the benchmark is drawn, pictures are prepared."""
    for name in models or ("llava",):
        (folder / f"tiny-{name}").symlink_to(model_folder(name), target_is_directory=True)
    for edition in (folder / name / "small-world" for name in results):
        edition.mkdir(parents=True)
        (edition / "data").symlink_to(data_folder(), target_is_directory=True)
        (edition / "pictures").symlink_to(pictures_folder(), target_is_directory=True)


@cache
def small_benchmark() -> Benchmark:
    """The benchmark in that folder."""
    return mmpb.read(data_folder())


@cache
def model_folder(kind: str = "llava") -> Path:
    """The folder of a random model that knows the benchmark's words."""
    benchmark = small_benchmark()
    words = [column for name in ("question", "preference", "description_moderate") for column in benchmark.frame[name]]
    words += [text for transcript in benchmark.transcripts for _, text in transcript]
    return save_tiny(kind, Path(_FOLDER.name) / f"tiny-{kind}", words=" ".join([*benchmark.users, *words]))


def small_backbone(kind: str = "llava", **options: object) -> Backbone:
    """That model, loaded anew."""
    return load_backbone(model_folder(kind), **options)


def small_edition(backbone: str, **changes: object) -> Edition:
    """An edition on a backbone that may be a folder's name, which no edition of the registry could name."""
    content = {
        "name": "small-world",
        "purpose": "tests",
        "seeds": [0, 1],
        "backbones": ["llava-mini"],
        "ablation_backbone": "llava-mini",
        "data": DATA.model_dump(),
        "training": {"steps": 4, "batch_size": 6, "checkpoint_every": 2},
        "evaluation": {"batch_size": 16, "turns": [0, 1], "max_new_tokens": 2},
        "methods": METHODS,
        "table1": list(METHODS),
        **changes,
    }
    return Edition.model_validate(content).model_copy(update={"backbones": (backbone,)})
