"""What an edition's tables were made with: on which processors, with which weights, when."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from prefmoe.config import Edition, run_folder
from prefmoe.system.run_files import RUN_FILE, read_story

MADE_WITH = "made_with"
"""The table's name. It says what is no result, and is compared with nobody's."""

WITH = ("backbone", "weights", "hardware", "torch")
"""What runs are counted by."""


def made_with_table(edition: Edition, results: str | Path) -> pd.DataFrame:
    """A row per backbone, its weights, the hardware and torch's version: how many runs, and the days (UTC) on which the
    first and the last of them were finished. weights: their identity (`prefmoe.config.backbone_files.identity`).

    Raises RunFileError if a run is damaged.
    """
    folders = [
        run_folder(results, edition.name, backbone, key, seed)
        for backbone, key in edition.runs()
        for seed in edition.seeds_of(key)
    ]
    stories = [read_story(folder) for folder in folders if (folder / RUN_FILE).is_file()]
    rows = [
        {
            "backbone": story["backbone"],
            "weights": story["inputs"]["weights"],
            "hardware": _processor(story["hardware"]),
            "torch": story["versions"]["torch"],
            "day": story["finished"][:10],
        }
        for story in stories
    ]
    days = pd.DataFrame(rows, columns=[*WITH, "day"]).groupby(list(WITH), sort=False)["day"]
    return days.agg(runs="size", first="min", last="max").reset_index()


def _processor(hardware: Mapping[str, Any]) -> str:
    """The accelerator, or the processor; of runs that are older than this table, only the processor's kind is known."""
    return hardware.get("accelerator") or hardware.get("processor") or hardware["machine"]
