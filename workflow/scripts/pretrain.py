"""Makes a miniature, or a rung of the ladder of readers (can be stopped and goes on): `pretrain.py llava-mini`."""

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
    from pretraining.place import alone, work_folder

    if options.seed < 0:
        raise PretrainingError(f"--seed {options.seed}: expected a whole number from 0")
    whole_ladder = options.backbone == LADDER
    if options.folder is None and (whole_ladder or options.backbone in RUNGS):
        raise PretrainingError(f"{options.backbone}: expected --folder, as no rung is part of the package")
    for name in RUNGS if whole_ladder else [options.backbone]:
        with alone(work_folder(name, options.seed)):
            _make(name, options.folder / name if whole_ladder else options.folder, options.device, options.seed)


def _make(name: str, folder: Path | None, device: str, seed: int) -> None:
    from pretraining import RECIPES, pretrain
    from pretraining.choosing import pretrain_choices
    from pretraining.drawer import pretrain_drawer
    from pretraining.ladder import climb
    from pretraining.place import work_folder

    made = {"folder": folder, "device": device, "seed": seed}
    if name == CHOICE_MINIATURE:
        pretrain_choices(**made)
    elif name == DRAWER:
        pretrain_drawer(**made)
    elif name in MINIATURES:
        pretrain(name, **made)
    else:
        climb(name, work=work_folder("llava-mini", seed), pool=RECIPES["llava"]["pool"], **made)


if __name__ == "__main__":
    sys.exit(main())
