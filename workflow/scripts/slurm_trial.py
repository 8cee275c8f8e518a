"""Makes an edition on a one-node Slurm as README.md says, kills jobs, and compares its tables with a local run's.

    python workflow/scripts/slurm_trial.py /tmp/slurm-trial               the smoke edition (half an hour on two cores)
    python workflow/scripts/slurm_trial.py /tmp/slurm-trial --tiny        one backbone, four methods, four users

Three jobs are killed once their run has a checkpoint: one is cancelled, one loses its largest process to SIGKILL as to
a machine out of memory, and one dies with its node. All have to go on from their checkpoint, and every CSV file has to
be that of the local run, up to rounding. Both work in copies of this clone's sources inside the folder; what was found
is written to report.json there. Needs what one_node_slurm.py needs, and `pip install -e '.[slurm]'`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from one_node_slurm import ACCOUNT, Cluster, SlurmError, one_node_slurm, wait_for

ROOT = Path(__file__).resolve().parents[2]
TINY = {"backbones": ["llava-mini"], "table1": ["NT", "FFT", "LoRA", "PrefMoE"], "table2": []}
TINY_DATA = {"users": 4, "unseen_users": 0, "train_per_user": 5, "validation_per_user": 1, "test_per_user": 5}
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
"""What numbers of two runs on one machine may differ by: answers and steps come in the same order."""

AWAY = 40
"""Seconds until a node that died is back. Of jobs younger than 20 s Slurm would go on believing that they run."""


class TrialError(RuntimeError):
    """A workflow that failed, a job that did not go on, or tables that differ."""


def copy_sources(target: Path) -> Path:
    """A copy of the files that git knows or does not ignore, as they are now."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def add_tiny(clone: Path) -> str:
    """Writes a smaller smoke edition; returns its name."""
    edition = yaml.safe_load((clone / "config/smoke.yaml").read_text(encoding="utf-8"))
    edition |= TINY | {"name": "tiny", "data": edition["data"] | TINY_DATA}
    (clone / "config/tiny.yaml").write_text(yaml.safe_dump(edition), encoding="utf-8")
    return "tiny"


def command_of_readme(edition: str) -> list[str]:
    """README.md's command for a cluster, for another edition."""
    (line,) = re.findall(r"^snakemake --profile profiles/slurm .*$", (ROOT / "README.md").read_text("utf-8"), re.M)
    return re.sub(r"edition=\S+", f"edition={edition}", line).split()


class Copy:
    """A copy of the clone in which an edition is made.

    Attributes:
        clone: the copy. edition: name of the edition. log: what snakemake printed.
    """

    def __init__(self, folder: Path, edition: str, environment: dict[str, str]) -> None:
        self.clone, self.edition, self.log = folder, edition, folder.with_suffix(".log")
        programs = Path(sys.executable).parent
        self.environment = environment | {
            "PYTHONPATH": str(folder), "PATH": f"{programs}:{environment['PATH']}", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    @contextmanager
    def snakemake(self, command: list[str]) -> Iterator[subprocess.Popen]:
        """Snakemake in the copy, whose package comes before the installed one; ends with the block. Raises TrialError
        if it fails."""
        with self.log.open("a") as log:
            process = subprocess.Popen(command, cwd=self.clone, env=self.environment, stdout=log, stderr=log)
        try:
            yield process
            if process.wait():
                raise TrialError(f"{' '.join(command)} failed: see {self.log}")
        finally:
            process.terminate()
            process.wait()

    def run(self, command: list[str]) -> None:
        """Calls snakemake in the copy."""
        with self.snakemake(command):
            pass

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every CSV file of the edition, by its name below the folder of the figures."""
        folders = [self.clone / "results" / self.edition / "figures", self.clone / "figures" / self.edition]
        found = {str(path.relative_to(f)): pd.read_csv(path) for f in folders for path in sorted(f.rglob("*.csv"))}
        if not found:
            raise TrialError(f"no CSV file in {' or '.join(map(str, folders))}")
        return found

    def checkpoints(self, one: dict[str, Any]) -> Path:
        """Where a run's checkpoints of its first seed are, while it is unfinished."""
        run = self.clone / "results" / self.edition / "runs" / one["backbone"] / one["method"]
        return run / "seed0.partial" / "checkpoint"

    def checkpoint(self, one: dict[str, Any]) -> Path:
        """The checkpoint that a killed run had: one that goes on leaves it as it is, one that starts anew writes it."""
        return self.checkpoints(one) / one["step"]


# --- jobs that are killed -----------------------------------------------------------------------------------------


def cancelled(cluster: Cluster, job: str) -> None:
    """Somebody cancels the job."""
    cluster.ask("scancel", job)


def out_of_memory(cluster: Cluster, job: str) -> None:
    """The job's largest process is killed without a word."""
    sizes = {}
    for process in cluster.processes_of_jobs():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job:
                sizes[process] = process.memory_info().rss
    max(sizes, key=sizes.__getitem__).kill()


def node_failed(cluster: Cluster, job: str) -> None:
    """The node dies with all its jobs, and comes back."""
    cluster.fail_node()
    time.sleep(AWAY)
    cluster.start_slurmd()


KILLS: tuple[Callable[[Cluster, str], None], ...] = (cancelled, out_of_memory, node_failed)


def running(cluster: Cluster) -> dict[str, str]:
    """The comment that the executor gives a job, which names rule and wildcards, for every running job."""
    lines = cluster.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i|%k").splitlines()
    return dict(line.split("|", 1) for line in lines if "|" in line)


def kill_some(cluster: Cluster, copy: Copy, process: subprocess.Popen) -> list[dict[str, Any]]:
    """Kills one job in each of the ways while snakemake works; what was killed, at which step, whether it went on."""
    waiting, done = list(KILLS), []
    while process.poll() is None:
        time.sleep(0.2)
        for one in done:
            now = written(copy.checkpoint(one))
            one["went_on"] &= all(now.get(name, then) == then for name, then in one["written"].items())
        for job, comment in running(cluster).items() if waiting else ():
            if "rule_run_" not in comment or any(comment == one["job"] for one in done):
                continue
            name = comment.partition("wildcards_")[2]
            backbone = next((b for b in os.listdir(copy.clone / "prefmoe/weights") if name.startswith(f"{b}_")), "")
            one = {"job": comment, "backbone": backbone, "method": name.removeprefix(f"{backbone}_")}
            if steps := sorted(copy.checkpoints(one).glob("step-??????")):
                kill = waiting.pop(0)
                one |= {"how": kill.__name__, "step": steps[-1].name, "at": time.strftime("%H:%M:%S"), "went_on": True}
                one["written"] = written(steps[-1])
                kill(cluster, job)
                done.append(one)
                print(f"{one['at']} {comment}: {kill.__doc__} Last checkpoint: {one['step']}", flush=True)
                break
    return [{key: value for key, value in one.items() if key != "written"} for one in done]


def written(folder: Path) -> dict[str, int]:
    """When each file of a folder was written, as far as they are there."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            found[path.name] = path.stat().st_mtime_ns
    return found


# --- the trial ----------------------------------------------------------------------------------------------------


def differences(ours: dict[str, pd.DataFrame], theirs: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What is different, by file; empty when all numbers are equal up to rounding and the rest is equal."""
    found = {name: "only one of the two has it" for name in ours.keys() ^ theirs.keys()}
    for name in ours.keys() & theirs.keys():
        try:
            pd.testing.assert_frame_equal(ours[name], theirs[name], check_exact=False, **ROUNDING)
        except AssertionError as error:
            found[name] = str(error)
    return found


def trial(folder: Path, *, tiny: bool = False, accounting: bool = False, kill: bool = True) -> dict[str, Any]:
    """Makes an edition with Slurm and without; what was killed, which tables were compared, and how long it took.
    Raises SlurmError, TrialError if Slurm does not start, or anything is not as it should be."""
    copies = {}
    for name in ("slurm", "local"):
        shutil.rmtree(folder / name, ignore_errors=True)
        copies[name] = copy_sources(folder / name)
        edition = add_tiny(copies[name]) if tiny else "smoke"
    report: dict[str, Any] = {"edition": edition, "accounting": accounting}
    with one_node_slurm(folder / "cluster", accounting=accounting) as cluster:
        copy, command = Copy(copies["slurm"], edition, cluster.environment), command_of_readme(edition)
        copy.log.unlink(missing_ok=True)
        if accounting:
            command += ["--default-resources", f"slurm_account={ACCOUNT}", "runtime=120", "mem_mb=16000"]
        report |= {"command": " ".join(command), "slurm": cluster.ask("sbatch", "--version").strip()}
        started = time.monotonic()
        with copy.snakemake(command) as process:
            report["killed"] = kill_some(cluster, copy, process) if kill else []
        report["seconds_slurm"] = round(time.monotonic() - started)
        copy.run([*command, "--dry-run"])
        wait_for(lambda: not running(cluster), "jobs to end")
    text = copy.log.read_text(encoding="utf-8")
    report["restarted_by_snakemake"] = text.count("Trying to restart job")
    if "Nothing to be done" not in text:
        raise TrialError(f"the finished edition does not rest: see {copy.log}")
    if kill and [one["how"] for one in report["killed"]] != [way.__name__ for way in KILLS]:
        raise TrialError(f"too few runs lived long enough to be killed: {report['killed']}")
    if again := [one["job"] for one in report["killed"] if not one["went_on"]]:
        raise TrialError(f"started from the beginning after a kill: {', '.join(again)}")
    local = Copy(copies["local"], edition, dict(os.environ))
    local.log.unlink(missing_ok=True)
    started = time.monotonic()
    local.run(["snakemake", "--cores", "2", "--config", f"edition={edition}"])
    report["seconds_local"] = round(time.monotonic() - started)
    report["tables"] = sorted(local.tables())
    if found := differences(copy.tables(), local.tables()):
        raise TrialError("tables differ:\n" + "\n".join(f"{name}: {what}" for name, what in found.items()))
    return report


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the copies of the clone and the cluster's state")
    parser.add_argument("--tiny", action="store_true", help="an edition smaller than smoke")
    parser.add_argument("--accounting", action="store_true", help="a cluster with slurmdbd, and jobs of an account")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="leave all jobs alone")
    return parser


def main() -> int:
    options = parser().parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = trial(folder, tiny=options.tiny, accounting=options.accounting, kill=options.kill)
    except (SlurmError, TrialError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
