"""Snakemake in a copy of the clone, in processes that need not import others' libraries again."""

import os
import re
import subprocess
import time
from pathlib import Path

import warm_python

SNAKEMAKE = ["-m", "snakemake"]
RUN = "results/tiny/notebooks/06_train_and_evaluate/llava-mini"


def environment(**more: str) -> dict[str, str]:
    """Of a process in the clone, whose code is compiled once for all of them."""
    left_out = ("PREFMOE_DATA", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {k: v for k, v in os.environ.items() if k not in left_out} | more


def snakemake(clone: Path, *arguments: str, edition: str = "tiny", **more: str) -> subprocess.CompletedProcess:
    command = [*SNAKEMAKE, "--cores", "2", "--config", f"edition={edition}", *arguments]
    return warm_python.run(command, clone, environment(**more))


def jobs_of(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs per rule that a dry run announces."""
    assert result.returncode == 0, result.stdout + result.stderr
    _, _, table = (result.stdout + result.stderr).partition("Job stats:")
    counts = re.findall(r"^(\w+) +(\d+)$", table.partition("total")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in counts}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
