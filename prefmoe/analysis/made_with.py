"""What an edition's tables were made with: on which processors, with which weights, when."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from prefmoe.config import Edition, run_folder
from prefmoe.system.run_files import RUN_FILE, read_story

MADE_WITH = "made_with"
"""The table's name. It says what is no result, and is compared with nobody's."""

MADE_WITH_COLUMNS = ("backbone", "weights", "runs", "hardware", "torch", "first", "last")


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
            "hardware": story["hardware"].get("accelerator") or story["hardware"]["processor"],
            "torch": story["versions"]["torch"],
            "day": story["finished"][:10],
        }
        for story in stories
    ]
    table = pd.DataFrame(rows, columns=["backbone", "weights", "hardware", "torch", "day"])
    days = table.groupby(["backbone", "weights", "hardware", "torch"], sort=False)["day"].agg(["size", "min", "max"])
    days = days.rename(columns={"size": "runs", "min": "first", "max": "last"})
    return days.reset_index()[list(MADE_WITH_COLUMNS)]
