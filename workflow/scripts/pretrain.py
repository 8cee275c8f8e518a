"""Makes a miniature, or a rung of the ladder of readers (can be stopped and goes on): `pretrain.py llava-mini`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefmoe.cli import call
from prefmoe.system.places import CHOICE_MINIATURE, DRAWER, MINIATURES, made_backbones

RUNGS = [name for name, command in made_backbones().items() if "pretrain.py" in command]
LADDER = "ladder"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("backbone", choices=[*MINIATURES, CHOICE_MINIATURE, DRAWER, *RUNGS, LADDER],
                        help="ladder: all of its rungs")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the conversations")
    parser.add_argument(
        "--folder", type=Path, help="where the weights go (for all rungs: what PREFMOE_WEIGHTS will name); of the "
        "miniatures, the package by default"
    )  # fmt: skip
    return call(_pretrain, parser.parse_args(arguments), own=("prefmoe", "pretraining"))


def _pretrain(options: argparse.Namespace) -> None:
    from pretraining.errors import PretrainingError
    from pretraining.place import sole_process, work_folder

    if options.seed < 0:
        raise PretrainingError(f"--seed {options.seed}: expected a whole number from 0")
    with sole_process(work_folder(options.backbone, options.seed)):
        _make(options)


def _make(options: argparse.Namespace) -> None:
    from pretraining import RECIPES, pretrain
    from pretraining.choosing import pretrain_choices
    from pretraining.drawer import pretrain_drawer
    from pretraining.errors import PretrainingError
    from pretraining.ladder import climb
    from pretraining.place import work_folder

    made = {"device": options.device, "seed": options.seed}
    if options.backbone == CHOICE_MINIATURE:
        pretrain_choices(folder=options.folder, **made)
        return
    if options.backbone == DRAWER:
        pretrain_drawer(folder=options.folder, **made)
        return
    if options.backbone in MINIATURES:
        pretrain(options.backbone, folder=options.folder, **made)
        return
    if options.folder is None:
        raise PretrainingError(f"{options.backbone}: expected --folder, as no rung is part of the package")
    for name in RUNGS if options.backbone == LADDER else [options.backbone]:
        folder = options.folder / name if options.backbone == LADDER else options.folder
        work = work_folder("llava-mini", options.seed)
        climb(name, folder, work=work, pool=RECIPES["llava"]["pool"], **made)


if __name__ == "__main__":
    sys.exit(main())
