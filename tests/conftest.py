"""Fixtures: tiny random models of every architecture, saved like real ones, and a tiny benchmark with pictures.

Fixtures import what they need themselves: this file is also read by the process that only shares the tests out.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prefmoe.backbones.backbone import Backbone
    from prefmoe.data.benchmark import Benchmark

# Tests run side by side, one thread each: here, before torch is imported, and in the processes that they start.
for _threads in ("OMP_NUM_THREADS", "PREFMOE_THREADS"):
    os.environ[_threads] = "1"
# Processes that are started keep freed memory, those that test among them (prefmoe.config.KEEP_FREED_MEMORY): its pages
# would be asked for anew, and filled with zeros, for every batch.
os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**29)}
# The validator of notebooks would build a grammar for two seconds, as in prefmoe.workflow.notebooks.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# Imports and collected tests stay until the end: looking through them for garbage takes a sixth of a process's start.
gc.disable()

LONGEST = (
    "workflow",
    "workflow_reruns",
    "site",
    "choice_miniature",
    "adapters",
    "any_vlm",
    "distributed",
    "every_class",
    "choice_runs",
    "explorer",
    "pretraining",
    "competitors",
    "controls",
    "speed",
    "drawer_recipe",
    "runs",
    "controls_table",
    "protocol",
    "course",
    "tables",
    "evaluation",
    "explorer_numbers",
    "course_answers",
)
"""The files that take longest: begun first, so that none of them is left over when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.freeze()  # nor are they looked through once more when the process ends


@pytest.fixture(scope="session", autouse=True)
def models_are_read_once() -> Iterator[None]:
    """Folders that do not change are read once for all tests (tiny_models.read_once), where there are models at all."""
    with pytest.MonkeyPatch.context() as patch:
        for device in ("cuda", "xpu", "mtia"):  # where it is absent, each of its seeds would keep the stack that set it
            if f"torch.{device}" in sys.modules:
                patch.setattr(f"torch.{device}.traceback", SimpleNamespace(format_stack=list))
        if "prefmoe.backbones.loading" in sys.modules:
            from tiny_models import read_once

            from prefmoe.backbones import loading

            patch.setattr(loading, "_load", read_once(loading._load))
        yield


@pytest.fixture(autouse=True)
def guests_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own backbones are forgotten with it: those of another one may have their names."""
    if registry := sys.modules.get("prefmoe.config.registry"):
        monkeypatch.setattr(registry, "_GUESTS", dict(registry._GUESTS))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of four by four pixels, all of them different."""
    import numpy as np
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_folder(architecture): the folder of a saved tiny model, one of ARCHITECTURES."""
    from tiny_models import save_tiny

    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = save_tiny(kind, tmp_path_factory.mktemp("models") / f"tiny-{kind}")
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder: Callable[[str], Path]) -> Callable[..., Backbone]:
    """tiny_backbone(architecture, **options): a freshly loaded tiny model."""
    from prefmoe.backbones.loading import load_backbone

    return lambda kind="llava", **options: load_backbone(tiny_folder(kind), **options)


@pytest.fixture
def llava(tiny_backbone: Callable[..., Backbone]) -> Backbone:
    """A fresh tiny LLaVA (CLIP tower, Llama)."""
    return tiny_backbone("llava")


@pytest.fixture
def qwen(tiny_backbone: Callable[..., Backbone]) -> Backbone:
    """A fresh tiny Qwen2.5-VL."""
    return tiny_backbone("qwen2_5_vl")


@pytest.fixture(scope="session")
def tiny_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Four users (Ann and Bob share all preferences, Dot has none in fashion), 40 questions, two transcripts."""
    from tiny_benchmark import draw_benchmark

    return draw_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few dots, for tests that only ask whether a file was written or what its artists hold."""
    monkeypatch.setattr("prefmoe.figures.style.DPI", 20)


@pytest.fixture
def forget_own_methods() -> Iterator[Callable[[], None]]:
    """Forgets the own methods that editions named, as a new process has: when it is called, and after the test."""
    from prefmoe.config import method_settings

    def forget() -> None:
        for kind, settings in list(method_settings.KINDS.items()):
            if settings.__module__ in method_settings.OWN_FILES:
                del method_settings.KINDS[kind]
        for name in method_settings.OWN_FILES:
            del sys.modules[name]
        method_settings.OWN_FILES.clear()

    yield forget
    forget()
