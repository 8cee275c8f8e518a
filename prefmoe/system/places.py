"""Where the clone, the user's data and the backbones' weights are, for every command alike; needs no torch."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).resolve().parent.parent

ROOT = PACKAGE.parent
"""The clone: where config/, notebooks/, results/ and figures/ are, whatever the working directory."""

REGISTRY = PACKAGE / "config" / "registry.yaml"

MINIATURES = ("llava-mini", "qwen2.5-vl-mini")
"""The backbones of questions about users that workflow/scripts/pretrain.py makes, in their order: the second starts
from the first."""

CHOICE_MINIATURE = "idefics2-mini"
"""The backbone of choices between pictures, which it makes as well."""

DRAWER = "drawer-mini"
"""The text-to-image model that draws such pictures; no backbone."""

DATA_VARIABLE, WEIGHTS_VARIABLE = "PREFMOE_DATA", "PREFMOE_WEIGHTS"


UNPACKED = "mmpb_clean/unpacked"
"""Where reading puts the pictures, from the data folder, that a table holds itself."""


def expanded(path: str | Path) -> Path:
    """A path that users gave, in which ``~`` is their home; as it stands where nobody is called so."""
    return Path(os.path.expanduser(path))


def absolute(path: str | Path) -> Path:
    """A path that users gave: ``~`` is their home, and a relative one starts at the clone, wherever a command runs."""
    return ROOT / expanded(path)


def from_environment(variable: str) -> Path | None:
    """The folder that an environment variable names, absolute; None where it is not set, or empty."""
    given = os.environ.get(variable)
    return absolute(given) if given else None


def resolved() -> dict[str, str]:
    """The variables that are set, with absolute folders: for a process that works elsewhere, as notebooks do."""
    found = {variable: from_environment(variable) for variable in (DATA_VARIABLE, WEIGHTS_VARIABLE)}
    return {variable: str(folder) for variable, folder in found.items() if folder is not None}


def data_folder(given: str | None) -> Path | None:
    """The folder with mmpb_clean/ of real data: the edition's own setting, or else PREFMOE_DATA; None without both."""
    return absolute(given) if given else from_environment(DATA_VARIABLE)


@cache
def registered() -> dict[str, dict[str, Any]]:
    """The backbones of config/registry.yaml, as they stand there."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["backbones"]


def known_backbones() -> tuple[str, ...]:
    """Names in config/registry.yaml."""
    return tuple(registered())


def made_backbones() -> dict[str, str]:
    """Those whose weights a command makes in a folder of the user's, with that command."""
    return {name: entry["made_by"] for name, entry in registered().items() if "made_by" in entry}


def is_miniature(name: str) -> bool:
    """Whether a registered backbone is as small as the shipped ones, so that no job needs an accelerator for it."""
    return registered()[name].get("parameters") == "miniature"


def drawer_folder(named: str) -> Path:
    """The folder of a drawer: of the package's weights or of $PREFMOE_WEIGHTS by its name, or the folder given."""
    given = (PACKAGE / "weights" / named, (from_environment(WEIGHTS_VARIABLE) or PACKAGE) / named)
    return next((folder for folder in given if folder.is_dir()), absolute(named))


def weights_folder(name: str) -> Path | None:
    """The folder with a registered backbone's files: its entry's, or $PREFMOE_WEIGHTS/<name> if that is there.

    None where they come from the hub, or have not been made.
    """
    if folder := registered()[name].get("folder"):
        return PACKAGE / Path(folder).expanduser()
    return given_weights(name)


def given_weights(name: str) -> Path | None:
    """The folder $PREFMOE_WEIGHTS/<name>, where there is one."""
    root = from_environment(WEIGHTS_VARIABLE)
    return root / name if root is not None and (root / name).is_dir() else None
