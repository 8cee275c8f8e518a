"""The profile for Slurm: docs/cluster.md can be done as it says, and jobs killed on a real one change no number."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from prefmoe.cli import _parser
from prefmoe.config import ROOT, load_edition

SCRIPTS = ROOT / "workflow" / "scripts"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def script(name: str) -> ModuleType:
    """A script as a module."""
    if name not in sys.modules:
        sys.path.insert(0, str(SCRIPTS))
        try:
            importlib.import_module(name)
        finally:
            sys.path.remove(str(SCRIPTS))
    return sys.modules[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_understood(command):
    program, *words = shlex.split(command)
    if program == "python" and words[0].startswith("workflow/"):
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        assert script(Path(words[0]).stem).parser().parse_args(own)
    elif program == "snakemake":
        assert (ROOT / words[words.index("--profile") + 1] / "config.yaml").is_file()
        assert load_edition(words[words.index("--config") + 1].removeprefix("edition="))
    elif program == "prefmoe":
        assert _parser().parse_args(words)
    elif program.startswith("PREFMOE_"):
        assert program == f"{ASKED}=1" and (ROOT / words[1]) == Path(__file__)
    elif program == "hf":
        registry = (ROOT / "prefmoe/config/registry.yaml").read_text(encoding="utf-8")
        assert words[1] in registry and words[words.index("--revision") + 1] in registry
    else:
        assert command in {
            "python -m pip install -e '.[slurm]'", "apt-get install slurm-wlm munge", "export HF_HUB_OFFLINE=1",
            "export PREFMOE_WEIGHTS=$PWD/weights", "export PREFMOE_DATA=$PWD/data",
        }  # fmt: skip


# --- the trial ----------------------------------------------------------------------------------------------------

ASKED = "PREFMOE_TRIALS"


def test_the_trial_sees_a_number_a_row_and_a_file_that_differ():
    differences = script("slurm_trial").differences
    table = pd.DataFrame({"method": ["LoRA", "PrefMoE"], "value": [0.25, 0.5]})
    rounded, changed = table.assign(value=table["value"] * (1 + 1e-7)), table.assign(value=[0.25, 0.501])
    assert differences({"a": table}, {"a": rounded}) == {}
    ours, theirs = dict.fromkeys("abce", table), {"a": changed, "b": table[:1], "d": table, "e": table}
    found = differences(ours, theirs)
    assert set(found) == {"a", "b", "c", "d"}


class _Finished:
    """Snakemake that ends when it was asked so often, and meanwhile lets something happen."""

    def __init__(self, *happens) -> None:
        self.happens = list(happens)

    def poll(self) -> int | None:
        if not self.happens:
            return 0
        self.happens.pop(0)()
        return None


@pytest.mark.parametrize("anew", [False, True])
def test_the_trial_sees_a_run_that_began_anew(tmp_path, monkeypatch, anew):
    trial = script("slurm_trial")
    copy = trial.Copy(tmp_path / "slurm", "tiny", {"PATH": ""})
    (copy.clone / "prefmoe/weights/llava-mini").mkdir(parents=True)
    job = {"backbone": "llava-mini", "method": "LoRA"}
    first = copy.checkpoints(job) / "step-000002"
    first.mkdir(parents=True)
    for name in ("one", "two"):
        (first / name).touch()

    def goes_on() -> None:
        (first / "one").unlink()  # as when it is removed behind the next one
        if anew:
            os.utime(first / "two", (1, 1))

    monkeypatch.setattr(trial, "running", lambda cluster: {"7": "rule_run_wildcards_llava-mini_LoRA"})
    monkeypatch.setattr(trial, "KILLS", [lambda cluster, job: None])
    (killed,) = trial.kill_some(None, copy, _Finished(lambda: None, goes_on, lambda: None))
    assert (killed["method"], killed["step"], killed["went_on"]) == ("LoRA", "step-000002", not anew)


def test_the_trial_takes_its_command_from_readme():
    command = script("slurm_trial").command_of_readme("smoke")
    assert command == ["snakemake", "--profile", "profiles/slurm", "--config", "edition=smoke"]


@pytest.mark.skipif(ASKED not in os.environ, reason=f"takes ten minutes and a Slurm: asked for by {ASKED}=1")
@pytest.mark.parametrize("accounting", [False, True], ids=["without accounting", "with accounting"])
def test_jobs_that_are_killed_on_a_real_slurm_end_in_the_tables_of_a_local_run(tmp_path, accounting):
    if missing := script("one_node_slurm").programs(accounting):
        pytest.skip(f"not installed: {', '.join(missing)}")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("not installed: snakemake-executor-plugin-slurm, as in pip install -e '.[slurm]'")
    command = [sys.executable, SCRIPTS / "slurm_trial.py", tmp_path, "--tiny", *["--accounting"][: int(accounting)]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [one["how"] for one in report["killed"]] == ["cancelled", "out_of_memory", "node_failed"]
    assert report["restarted_by_snakemake"] >= 2 and "table1.csv" in report["tables"]
