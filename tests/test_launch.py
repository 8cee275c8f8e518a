"""A run that the workflow gives to two processes of `accelerate launch` on the CPU ends like that of one process."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from accelerate.commands import launch
from small_clone import copy_of_the_repository

from prefmoe.config import CONFIG_FOLDER, ROOT
from prefmoe.running.runs import run_method

RUN = ("shared", "llava-mini", "PrefMoE")


REPORTING = """\
import sys
from prefmoe.system import distributed
with open(f"{sys.argv[1]}/{distributed.state().process_index}", "w") as file:
    print(distributed.processes(), distributed.state().device.type, distributed.sharding(), file=file)
"""


def test_the_launchers_configuration_for_cpus_starts_processes_that_work_together(tmp_path, capfd):
    """accelerate's own kind for CPUs would start one process alone, and say nothing."""
    (tmp_path / "report.py").write_text(REPORTING, encoding="utf-8")
    arguments = ["--config_file", ROOT / "config/accelerate/cpu.yaml", "--num_processes", "2"]

    def launched() -> None:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        sys.argv = ["accelerate-launch", *map(str, (*arguments, tmp_path / "report.py", tmp_path))]
        launch.main()

    process = multiprocessing.get_context("fork").Process(target=launched)  # torch is there already
    process.start()
    process.join(600)
    assert process.exitcode == 0, capfd.readouterr().err
    assert {name: (tmp_path / name).read_text().split() for name in "01"} == dict.fromkeys("01", ["2", "cpu", "False"])


@pytest.mark.skipif("PREFMOE_TRIALS" not in os.environ, reason="half a minute: asked for by PREFMOE_TRIALS=1")
def test_two_processes_from_the_workflow_end_like_one(tmp_path):
    clone = copy_of_the_repository(tmp_path / "clone", "figures")
    edition = yaml.safe_load((CONFIG_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
    edition |= {"name": RUN[0], "backbones": [RUN[1]], "table1": [RUN[2]], "table2": []}
    edition["data"] |= {"users": 4, "unseen_users": 0, "train_per_user": 5}
    edition["data"] |= {"validation_per_user": 1, "test_per_user": 5}
    edition["training"] |= {"steps": 2}
    edition["evaluation"] |= {"turns": [0], "batch_size": 5}
    alone = tmp_path / "shared.yaml"
    alone.write_text(yaml.safe_dump(edition), encoding="utf-8")
    two = edition | {"hardware": {"launch": "ddp", "processes": 2}}
    (clone / "config/shared.yaml").write_text(yaml.safe_dump(two), encoding="utf-8")

    notebook = Path("results") / RUN[0] / "notebooks/06_train_and_evaluate" / RUN[1] / f"{RUN[2]}.ipynb"
    (clone / "results" / RUN[0]).mkdir(parents=True)
    (clone / "results" / RUN[0] / "data.json").write_text("{}")  # the sign that the data were checked
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "edition=shared", "--", str(notebook)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PREFMOE_DATA", "PYTHONPATH")}
    result = subprocess.run(command, cwd=clone, capture_output=True, text=True, env=environment, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (clone / notebook).is_file()

    found = clone / "results" / RUN[0] / "runs" / RUN[1] / RUN[2] / "seed0"
    expected = run_method(alone, RUN[1], RUN[2], 0, results=tmp_path / "results")
    ours, theirs = (json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (found, expected))
    assert (ours["hardware"]["processes"], theirs["hardware"]["processes"]) == (2, 1)
    assert ours["inputs"] == theirs["inputs"], "the notebook would not find the run complete"
    for name in ("losses.parquet", "predictions.parquet"):
        ours, theirs = (pd.read_parquet(folder / name) for folder in (found, expected))
        numbers = theirs.select_dtypes("number").columns
        pd.testing.assert_frame_equal(ours.drop(columns=numbers), theirs.drop(columns=numbers))
        pd.testing.assert_frame_equal(ours[numbers], theirs[numbers], rtol=2e-2, atol=2e-3)
