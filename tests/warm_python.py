"""Python in processes that need not import others' libraries again: forks of one that has nothing else."""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

WORKFLOW = (
    "PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageOps", "docutils.parsers.rst.directives.images", "filelock", "httpx2",
    "huggingface_hub._snapshot_download", "nbformat", "numpy", "packaging.version", "pandas", "platformdirs",
    "pyarrow.parquet", "pydantic", "python_avatars", "requests", "resvg_py", "smart_open", "snakemake.cli",
    "snakemake.profiles", "snakemake.report.html_reporter", "snakemake.storage", "sqlmodel", "tqdm.auto", "truststore",
    "warm_snakemake", "yaml", "yte",
)  # fmt: skip
"""What a workflow imports of others."""

BOOK = (
    "PIL.ImageDraw", "filelock", "matplotlib.figure", "myst_nb.sphinx_ext", "pandas", "pydantic", "python_avatars",
    "resvg_py", "scipy.stats", "seaborn", "sphinx.cmd.build", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
    "sphinx_book_theme", "yaml",
)  # fmt: skip
"""What the making of the book imports of others, but for those that its pages about code need."""

_forks = multiprocessing.get_context("forkserver")


def prepare(libraries: Sequence[str]) -> None:
    """From now on the process that is forked has these libraries; `stop` it in the end."""
    stop()
    _forks.set_forkserver_preload(["without_grammar", *libraries])


def start(
    arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path | None = None
) -> BaseProcess:
    """Starts `python *arguments` (of the form -m module ... or -c code) as the first of its own process group.

    Args:
        folder: where it works and finds modules first. environment: all of it.
        output: folder for the files stdout and stderr; where absent, they are this process's.

    Returns:
        the process, which `join` waits for.
    """
    process = _forks.Process(target=_python, args=(list(map(str, arguments)), folder, dict(environment), output))
    with mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):  # of the one that is forked, if it starts
        process.start()
    return process


def run(
    arguments: list[str], folder: Path, environment: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess:
    """Like `subprocess.run` with its output captured as text; the arguments are those of `start`."""
    with tempfile.TemporaryDirectory() as output:
        process = start(arguments, folder, environment, Path(output))
        process.join(timeout)
        if process.is_alive():
            os.killpg(process.pid, 9)
            raise subprocess.TimeoutExpired(arguments, timeout)
        texts = [(Path(output) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def stop() -> None:
    """Ends the process that is forked, if there is one, and waits for it."""
    multiprocessing.forkserver._forkserver._stop()


def _python(arguments: list[str], folder: Path, environment: dict[str, str], output: Path | None) -> None:
    assert not any(name.partition(".")[0] in ("prefmoe", "pytest") for name in sys.modules)
    os.setsid()
    if output:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    if constants := sys.modules.get("huggingface_hub.constants"):
        importlib.reload(constants)  # it reads the environment when it is imported
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(Path(__file__).parent)))]
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-c":
        exec(what, {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
