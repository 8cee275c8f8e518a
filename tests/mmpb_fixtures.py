"""A small folder of questions in MMPB's form, for the tests of what reads it."""

import shutil
from pathlib import Path

import pytest
from synthetic_mmpb import make


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("drawn") / "data")


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))
