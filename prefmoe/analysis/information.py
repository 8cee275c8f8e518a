"""What each row of the tables rests on: what it is shown of users, how long that is, and what it trains."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from prefmoe.analysis.answers import NO_BACKBONE, REFERENCE, type_of
from prefmoe.config import Edition, is_trained, run_folder
from prefmoe.config.backbone_files import MINIATURE_CARD
from prefmoe.system.files import FileError, read_json
from prefmoe.system.places import known_backbones, weights_folder
from prefmoe.system.run_files import read_story

INFORMATION_COLUMNS = (
    "method", "type", "backbone", "in_training", "at_test", "context_tokens", "trainable_parameters", "practice"
)  # fmt: skip


def information_table(
    edition: Edition, results: str | Path, references: Mapping[str, str] = MappingProxyType({})
) -> pd.DataFrame:
    """A row per run of an edition, and one per reference, whose name says what it is shown: `INFORMATION_COLUMNS`.

    context_tokens: how many tokens of a prompt tell the model of its user, on average, trainable_parameters: both as
    run.json of the first seed has them, empty without it. practice: what the backbone's card says of soft prefixes or
    histories, empty without a card. Of a reference only what it is shown is known.

    Raises RunFileError if a run is not finished.
    """
    practice = {backbone: _practice(backbone) for backbone in edition.backbones}
    rows = []
    for backbone, key in edition.runs():
        method = edition.methods[key]
        story = read_story(run_folder(results, edition.name, backbone, key, edition.seeds_of(key)[0]))
        trainable = story.get("parameters", {}).get("trainable_total", np.nan)
        rows.append({
            "method": method.label, "type": type_of(method), "backbone": backbone,
            "in_training": _in_training(edition, key), "at_test": method.information,
            "context_tokens": story.get("context_tokens", np.nan),
            "trainable_parameters": trainable if is_trained(method) else min(trainable, 0),
            "practice": practice[backbone],
        })  # fmt: skip
    for name, shown in references.items():
        rows.append({"method": name, "type": REFERENCE, "backbone": NO_BACKBONE, "at_test": shown})
    return pd.DataFrame(rows, columns=list(INFORMATION_COLUMNS))


def with_information(table: pd.DataFrame, shown: Mapping[str, str]) -> pd.DataFrame:
    """The table with what its rows are shown of the user, where it does not say so yet: column information for a method
    or condition, baseline_information for what that is compared with. ``shown``: by method or condition."""
    about = {"method": "information", "condition": "information", "baseline": "baseline_information"}
    new = {column: table[key].map(shown) for key, column in about.items() if key in table and column not in table}
    return table if "at_test" in table else table.assign(**new)


def _in_training(edition: Edition, key: str) -> str:
    """What a method was shown in training, and then what the methods were that it begins with."""
    shown, before = [], key
    while before is not None:
        shown.append(edition.methods[before].information_in_training)
        before = getattr(edition.methods[before], "begins_with", None)
    return "; before it: ".join(dict.fromkeys(shown))


def _practice(backbone: str) -> str:
    """What a backbone's card says of soft prefixes or rated histories: whether it has practised them, and how long."""
    folder = weights_folder(backbone) if backbone in known_backbones() else None  # a folder that nobody registered
    try:
        recipe = read_json(folder / MINIATURE_CARD, "the card of a backbone")["recipe"] if folder else {}
    except (FileError, KeyError):
        return ""
    phases = recipe.get("phases", recipe.get("joint", {}).get("phases", []))
    steps = sum(phase["steps"] for phase in phases if "prefix" in phase)
    practice = recipe.get("practice", "anchors") if steps else "none"
    if lessons := recipe.get("words", {}).get("lessons"):
        most = sum(lesson["most"] for lesson in lessons) + recipe.get("joint", {}).get("steps", 0)
        return f"rated histories of random tastes, at most {most} steps"
    kinds = {"anchors": "prefixes like PrefMoE's", "free": "prefixes of free tokens"}
    return f"{kinds[practice]}, {steps} steps" if practice in kinds else "no prefixes" if phases else ""
