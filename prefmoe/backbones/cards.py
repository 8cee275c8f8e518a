"""What backbones that have a card can do: their measured abilities."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from prefmoe.backbones.weights import offline_folder
from prefmoe.config.backbone_files import MINIATURE_CARD as CARD
from prefmoe.config.registry import BackboneError, find_backbone, read_registry
from prefmoe.data.drawing import ITEM_FACET
from prefmoe.system.files import read_json
from prefmoe.system.places import CHOICE_MINIATURE

CHANCE = {"choice": 1 / 4, "place": 1 / 4, "yes/no": 1 / 2, "presence": 1 / 2, "naming": 1 / len(ITEM_FACET)}
"""What guessing gets, by a word of the ability's name: four options, two answers, every item of the world."""


def shipped() -> list[str]:
    """Names of the backbones of questions about users whose weights lie inside the package."""
    folders = {name: entry.folder for name, entry in read_registry().backbones.items() if entry.folder is not None}
    inside = [name for name, folder in folders.items() if not folder.expanduser().is_absolute()]
    return [name for name in inside if name != CHOICE_MINIATURE]


def read_card(name: str) -> dict:
    """How a backbone was made that the package ships, or that its recipes put into $PREFMOE_WEIGHTS, and what it was
    measured to do.

    Raises:
        BackboneError: if it is neither, or its card is missing or lists no abilities.
    """
    entry = find_backbone(name)
    if (folder := entry.folder or offline_folder(entry)) is None:
        raise BackboneError(f"backbone {name!r} is not shipped; {', '.join(shipped())} are")
    path = folder / CARD
    if not path.is_file():
        raise BackboneError(f"backbone {name!r}: {path} is missing")
    card = read_json(path, "the card of a backbone", kind=BackboneError)
    if not isinstance(card.get("abilities"), dict) or not card["abilities"]:
        raise BackboneError(f"{path}, abilities: expected name -> accuracy and n, found none")
    return card


def abilities(names: Iterable[str] | None = None) -> pd.DataFrame:
    """The abilities on the cards of backbones (all that are shipped when no names are given).

    Returns:
        columns backbone, ability, value (share of correct answers), n and chance (NaN where unknown).
    """
    rows = []
    for name in shipped() if names is None else names:
        for ability, measured in read_card(name)["abilities"].items():
            chance = next((level for word, level in CHANCE.items() if word in ability), np.nan)
            rows.append((name, ability, measured["accuracy"], measured["n"], chance))
    return pd.DataFrame(rows, columns=["backbone", "ability", "value", "n", "chance"])
