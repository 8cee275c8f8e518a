"""Runs a notebook in a kernel of the running interpreter, which ends with it whatever happens."""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefmoe.config import KEEP_FREED_MEMORY, ROOT
from prefmoe.config.outputs import NOTEBOOK_FIGURES

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
KERNEL_OPTIONS = (
    "--IPKernelApp.log_level=ERROR",
    "--HistoryManager.enabled=False",
    # Imports make a million objects that stay; to look through them for garbage takes a tenth of a notebook's start.
    "--IPKernelApp.exec_lines=__import__('gc').set_threshold(100_000, 20, 20)",
)
LONGEST_SOCKET = 103
"""Bytes in a socket's path: 107 on Linux, 103 on macOS."""


def run_in_kernel(
    notebook: Path, partial: Path, parameters: dict[str, Any], threads: int | None, figures: Path
) -> None:
    """Executes a notebook into ``partial`` with papermill; no kernel has to be installed under any name. ``threads``:
    see `prefmoe.workflow.notebooks.execute`; ``figures``: where the notebook saves its figures."""
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryDirectory(prefix="prefmoe-kernel-") as folder:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # the kernel imports this prefmoe, no other
        environment = {
            "IPYTHONDIR": folder,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures are outputs, whatever the shell says
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            NOTEBOOK_FIGURES: str(figures),
        }
        if threads is not None:
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PREFMOE_THREADS")
            environment |= dict.fromkeys(names, str(threads))
        environment |= KEEP_FREED_MEMORY
        spec = KernelSpec(
            argv=[sys.executable, "-m", "prefmoe.workflow.kernel", "-f", "{connection_file}", *KERNEL_OPTIONS],
            env=environment,
            **{k: v for k, v in KERNELSPEC.items() if k != "name"},
        )

        class InterpreterKernelManager(AsyncKernelManager):
            """A kernel manager that knows one kernel: the interpreter which runs this module."""

            kernel_spec = spec

            def __init__(self, **options: Any) -> None:
                super().__init__(**options, **_connection(Path(folder)))

        logging.getLogger("papermill").setLevel(logging.WARNING)  # its chatter stays out of the log
        with _signals_as_exits():
            papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters=parameters,
                kernel_name=KERNELSPEC["name"],
                language="python",
                cwd=str(notebook.resolve().parent),
                progress_bar=False,
                kernel_manager_class=InterpreterKernelManager,
                shutdown_kernel="immediate",  # files are complete; taking everything apart would take seconds
                start_timeout=180,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )


def _connection(folder: Path) -> dict[str, str]:
    """How the runner and its kernel talk: by sockets in a folder of their own where its path is short enough for one.
    A TCP port that is free when it is chosen may be taken by another notebook's kernel before this one listens."""
    file = folder / "kernel.json"
    has_room = len(os.fsencode(file)) <= LONGEST_SOCKET - len("-ipc-00")
    return {"connection_file": str(file), "transport": "ipc" if os.name == "posix" and has_room else "tcp"}


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Has a signal that would end this process at once let papermill end the kernel, with all its processes, first. A
    signal that is ignored (nohup), or that somebody handles, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [n for n in (getattr(signal, name) for name in names) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
