"""Fixtures of tests of tables: the made-up benchmark, its finished runs, and their tables."""

import shutil
from pathlib import Path

import pytest
from table_world import EDITION, made_up_benchmark, write_run

from prefmoe.analysis import tables
from prefmoe.data.benchmark import Benchmark


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return made_up_benchmark()


@pytest.fixture(scope="module")
def finished(benchmark, tmp_path_factory) -> Path:
    """A results folder with every run of the edition."""
    folder = tmp_path_factory.mktemp("finished")
    write_run(benchmark, folder, "nt", 0, 0.5)
    for key, skill in (("fft", 0.6), ("e", 0.4), ("full", 0.9)):
        for seed in (0, 1):
            write_run(benchmark, folder, key, seed, skill)
    return folder


@pytest.fixture
def results(finished, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def built(benchmark, finished, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """Another copy, with all tables, and their paths by name."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("built"), dirs_exist_ok=True)
    return folder, tables.build(EDITION, benchmark, results=folder)
