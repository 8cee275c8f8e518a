"""Progress bars of work that takes a while."""

import sys

from tqdm import tqdm


def progress_bar(total: int, description: str, done: int = 0) -> tqdm:
    """A progress bar in a terminal or a notebook; silent where the output goes to a file."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    quiet = {} if notebook or sys.stderr.isatty() else {"disable": True}
    return tqdm(total=total, initial=done, desc=description, leave=False, mininterval=1.0, **quiet)
