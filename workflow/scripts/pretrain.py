"""Makes a miniature's weights again (hours; can be stopped): `python workflow/scripts/pretrain.py llava-mini`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prefmoe.cli import call
from prefmoe.system.places import MINIATURES


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("backbone", choices=MINIATURES)
    return call(_pretrain, parser.parse_args(arguments), own=("prefmoe", "pretraining"))


def _pretrain(options: argparse.Namespace) -> None:
    from pretraining import pretrain

    pretrain(options.backbone)


if __name__ == "__main__":
    sys.exit(main())
