"""Makes a miniature's weights again, or the ladder of readers (hours; can be stopped): `pretrain.py llava-mini`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefmoe.cli import call
from prefmoe.system.places import MINIATURES


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("backbone", choices=[*MINIATURES, "ladder"])
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--only", help="one rung of the ladder; all of them by default")
    parser.add_argument("--folder", type=Path, help="where rungs go: what PREFMOE_WEIGHTS will name")
    return call(_pretrain, parser.parse_args(arguments), own=("prefmoe", "pretraining"))


def _pretrain(options: argparse.Namespace) -> None:
    from pretraining import RECIPES, pretrain
    from pretraining.ladder import RUNGS, climb

    from prefmoe.config import RESULTS
    from prefmoe.config.strict import ConfigError

    if options.backbone != "ladder":
        pretrain(options.backbone, device=options.device)
        return
    if options.folder is None or (options.only and options.only not in RUNGS):
        raise ConfigError(f"ladder: expected --folder, and --only one of {', '.join(RUNGS)}")
    for name in [options.only] if options.only else RUNGS:
        work = RESULTS / "pretraining" / "llava-mini"
        climb(name, options.folder / name, work=work, pool=RECIPES["llava"]["pool"], device=options.device)


if __name__ == "__main__":
    sys.exit(main())
