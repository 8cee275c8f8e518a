"""The kernel that runs a notebook's cells: as ipykernel's own, but it never outlives the process that started it.

ipykernel looks once a second whether its parent is there, from a thread: one that never runs while a cell computes
without letting other threads in, and that takes no notice of a parent that ended before its first look.
"""

import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, on Linux; ends it at once if that has happened."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:
        sys.exit(f"the process {parent} that started this kernel has ended")


if __name__ == "__main__":
    if "JPY_PARENT_PID" in os.environ:
        die_with(int(os.environ["JPY_PARENT_PID"]))
    if Path(sys.path[0]) == Path.cwd():  # as ipykernel_launcher: IPython puts it back when everything is imported
        del sys.path[0]
    from ipykernel import kernelapp

    from prefmoe.system import places

    os.environ.update(places.resolved())  # a cell that reads one sees the folder that commands see
    kernelapp.launch_new_instance()
