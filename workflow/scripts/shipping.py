"""Command lines of the scripts that make what the repository ships, from finished runs or from other files of it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from prefmoe.cli import call
from prefmoe.config import RESULTS

MadeOfRuns = Callable[[str, str | None, Path, Path], list[Path]]
"""Makes files of an edition's finished runs: edition, backbone (None: the edition's first), folder, results."""


def of_runs(command: argparse.ArgumentParser, write: MadeOfRuns, folder: Path) -> None:
    """Gives a command the options of what is made of runs. ``folder``: where its files are shipped."""
    command.add_argument("--edition", default="mini", help="whose runs (default: mini)")
    command.add_argument("--backbone", help="default: the edition's first")
    command.add_argument("--folder", type=Path, default=folder, help="where to write (default: where it is shipped)")
    command.add_argument("--results", type=Path, default=RESULTS, help="of the runs (default: the clone's)")
    command.set_defaults(made=lambda o: write(o.edition, o.backbone, o.folder, o.results))


def make(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Makes the files of the command that was asked for (its default ``made``) and prints them; returns the exit
    status."""

    def run(options: argparse.Namespace) -> None:
        for path in options.made(options):
            print(path)

    return call(run, parser.parse_args(arguments))
