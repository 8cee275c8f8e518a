"""Trains a part of a `prefmoe fetch smollm2` folder: `python workflow/scripts/align.py FOLDER drawings`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from prefmoe.cli import call


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "stage", choices=["drawings", "reading", "photographs"],
        help="drawings: the projector; reading: the language model; photographs: the projector, with PREFMOE_DATA",
    )  # fmt: skip
    parser.add_argument("--edition", default="small-sample", help="whose photographs (default: small-sample)")
    parser.add_argument("--ship", action="store_true", help="also put it into the package (not after photographs)")
    return call(_align, parser.parse_args(arguments), own=("prefmoe", "pretraining"))


def _align(options: argparse.Namespace) -> None:
    import projector
    from pretraining.place import alone
    from projector import reading

    from prefmoe.config import load_edition
    from prefmoe.running.runs import use_threads

    use_threads()
    edition = load_edition(options.edition) if options.stage == "photographs" else None
    with alone(options.folder):
        if options.stage == "reading":
            card, ship = reading.teach(options.folder), reading.ship
        else:
            card, ship = projector.teach(options.folder, options.stage, edition=edition), projector.ship
        print(json.dumps(card["abilities"], indent=1))
        if options.ship:
            print(ship(options.folder))


if __name__ == "__main__":
    sys.exit(main())
