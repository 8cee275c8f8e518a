"""A Slurm of one node in a scratch folder, for as long as a command runs: to try the cluster profile without a cluster.

    python workflow/scripts/one_node_slurm.py /tmp/slurm-trial -- squeue

Needs Debian's packages slurm-wlm and munge, no systemd and no rights beyond one's own: munged, slurmctld and slurmd run
as the user who starts this, from configuration, state and logs in the folder, and end with the command. With
``--accounting`` a slurmdbd with its database (packages slurmdbd and mariadb-server) stands behind them. The node claims
more memory than the machine may have and two GPUs that are none, so that jobs of every kind can be submitted.
"""

import argparse
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

WAIT = 60.0
"""Seconds that a daemon may take to answer."""

CLUSTER, ACCOUNT = "trial", "companion"

SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=5
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=60
KillWait=10
GresTypes=gpu
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=batch Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""

ACCEPT_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS slurm@127.0.0.1 IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO slurm@127.0.0.1;
"""


class SlurmError(RuntimeError):
    """A program that is missing, or a daemon that does not come up."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT) -> None:
    """Returns when the condition holds. Raises SlurmError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SlurmError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


def programs(accounting: bool = False) -> list[str]:
    """Programs that are needed and not installed."""
    needed = ["munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol"]
    if accounting:
        needed += ["slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db"]
    return [name for name in needed if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


@dataclass
class Cluster:
    """A running one-node Slurm.

    Attributes:
        folder: configuration, state and logs. environment: what a command needs to speak to it.
    """

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def ask(self, *command: str) -> str:
        """What a client program (squeue, scontrol ...) prints; empty when it fails."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=WAIT)
        return result.stdout if result.returncode == 0 else ""

    def start(self, name: str, *arguments: str | Path) -> None:
        """Starts a daemon in the foreground of its own process group."""
        with (self.folder / f"{name}.out").open("a") as out:
            self.daemons[name] = subprocess.Popen(
                [_program(name), *map(str, arguments)], env=self.environment, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def up(self) -> bool:
        """Whether the node takes jobs."""
        state = self.ask("sinfo", "--noheader", "--format=%T", "--partition=batch").strip()
        return state in ("idle", "mixed", "allocated")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends a daemon, and waits until it has gone."""
        process = self.daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_slurmd(self) -> None:
        """Brings the node up."""
        self.start("slurmd", "-D")
        wait_for(self.up, f"the node; see {self.folder}/slurmd.log")

    def processes_of_jobs(self) -> list[psutil.Process]:
        """What runs on this node for jobs, their steps' managers included; nothing of another Slurm on the machine."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found[process.pid] = process
                    parent = process.parent()
                    if parent and parent.name() == "slurmstepd":
                        found[parent.pid] = parent
        return list(found.values())

    def fail_node(self) -> None:
        """The node dies with all that runs on it, at once and without a word."""
        self.stop("slurmd", signal.SIGKILL)
        for process in self.processes_of_jobs():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def one_node_slurm(folder: str | Path, *, cpus: int = 2, accounting: bool = False) -> Iterator[Cluster]:
    """A Slurm of one node with two partitions, `batch` (the default) and `gpu`; ends with the block. Raises SlurmError
    if programs are missing or a daemon does not come up."""
    if missing := programs(accounting):
        raise SlurmError(f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge; slurmdbd, mariadb-server)")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    names = {"cluster": CLUSTER, "host": socket.gethostname().partition(".")[0], "user": getpass.getuser(),
             "folder": folder, "cpus": cpus, **_free_ports("slurmctld", "slurmd", "slurmdbd", "mariadbd")}  # fmt: skip
    storage = "AccountingStorageType=accounting_storage/none"
    if accounting:
        storage = (
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
            "AccountingStoragePort={slurmdbd}\nAccountingStoragePass={folder}/munge.socket\nAccountingStorageEnforce=associations\n"
            "JobAcctGatherType=jobacct_gather/linux"
        ).format(**names)
    _write(folder / "slurm.conf", SLURM_CONF.format(accounting=storage, **names))
    _write(folder / "slurmdbd.conf", SLURMDBD_CONF.format(**names))
    _write(folder / "gres.conf", f"NodeName={names['host']} Name=gpu File=/dev/null,/dev/zero\n")
    conf, own = folder / "slurm.conf", folder / "bin"
    own.mkdir(exist_ok=True)
    # snakemake's jobs call srun without SLURM_CONF; a cluster's nodes have theirs in /etc/slurm.
    _write(own / "srun", f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(conf))} exec {_program("srun")} "$@"\n', 0o700)
    path = f"{own}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    cluster = Cluster(folder, {**os.environ, "SLURM_CONF": str(conf), "PATH": path})
    with ExitStack() as stack:
        # A killed trial leaves no daemons behind.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)))
        stack.callback(_stop_all, cluster)
        _start_all(cluster, names, accounting)
        yield cluster


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """The owner's alone, as slurmdbd insists."""
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def _start_all(cluster: Cluster, names: dict[str, object], accounting: bool) -> None:
    folder = cluster.folder
    key = folder / "munge.key"
    if not key.exists():
        subprocess.run([_program("mungekey"), "--create", f"--keyfile={key}"], check=True, timeout=WAIT)
    files = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    cluster.start("munged", "--foreground", "--force", f"--key-file={key}",
                  *(f"--{option}={folder / name}" for option, name in files.items()))  # fmt: skip
    wait_for((folder / "munge.socket").exists, f"munged; see {folder}/munged.log")
    if accounting:
        _start_accounting(cluster, names)
    cluster.start("slurmctld", "-D")
    wait_for(lambda: "UP" in cluster.ask("scontrol", "ping"), f"slurmctld; see {folder}/slurmctld.log")
    cluster.start_slurmd()


def _start_accounting(cluster: Cluster, names: dict[str, object]) -> None:
    folder, user = cluster.folder, getpass.getuser()
    data = folder / "database"
    if not data.exists():
        command = [_program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", f"--user={user}"]
        subprocess.run(command, check=True, capture_output=True, timeout=5 * WAIT)
    accept = folder / "accept.sql"
    _write(accept, ACCEPT_SQL)
    cluster.start("mariadbd", "--no-defaults", f"--datadir={data}", f"--user={user}", f"--port={names['mariadbd']}",
                  "--bind-address=127.0.0.1", "--skip-name-resolve", f"--socket={folder}/mariadb.socket",
                  f"--pid-file={folder}/mariadbd.pid", f"--init-file={accept}")  # fmt: skip
    wait_for(lambda: _listens(names["mariadbd"]), f"mariadbd; see {folder}/mariadbd.out")
    cluster.start("slurmdbd", "-D")
    wait_for(lambda: _listens(names["slurmdbd"]), f"slurmdbd; see {folder}/slurmdbd.log")
    for command in (["cluster", CLUSTER], ["account", ACCOUNT], ["user", user, f"account={ACCOUNT}"]):
        cluster.ask("sacctmgr", "--immediate", "add", *command)
    wait_for(lambda: ACCOUNT in cluster.ask("sacctmgr", "-n", "list", "user", user, "withassoc"), "the account")


def _listens(port: object) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(str(port)))) == 0


def _stop_all(cluster: Cluster) -> None:
    if "slurmctld" in cluster.daemons:
        cluster.ask("scancel", f"--user={getpass.getuser()}")
    with suppress(SlurmError):
        wait_for(lambda: not cluster.processes_of_jobs(), "jobs to end", 30)
    for name in reversed(list(cluster.daemons)):
        cluster.stop(name)


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--cpus N] [--accounting] folder -- command ...", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="for configuration, state and logs")
    parser.add_argument("--cpus", type=int, default=2, help="that the node claims to have (default: 2)")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd, and an account for this user")
    return parser


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, command = parser().parse_args(words[:cut]), words[cut + 1 :]
    if not command:
        parser().error("no command; give one behind --")
    try:
        with one_node_slurm(options.folder, cpus=options.cpus, accounting=options.accounting) as cluster:
            return subprocess.run(command, env=cluster.environment).returncode
    except SlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
