"""Fixtures of tests of the workflow: a copy of the clone, and plans of its editions."""

import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import warm_python
from small_clone import copy_with_small_notebooks
from workflow_clones import snakemake


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Path]:
    """A copy with small notebooks; no process is left over."""
    warm_python.prepare(warm_python.WORKFLOW)
    yield copy_with_small_notebooks(tmp_path_factory.mktemp("workflow") / "clone")
    warm_python.stop()


@pytest.fixture(scope="module")
def plans_of(clone) -> Callable[[str], subprocess.CompletedProcess]:
    """plans_of(edition): what a dry run says of all of it, without its data, the hub and committed tables."""
    return cache(lambda edition: snakemake(clone, "--dry-run", edition=edition, HF_HUB_OFFLINE="1"))
