"""Figures of notebooks 7 and 14 of tables that say little: the committed small ones, and without preferences."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from notebook_cells import TRAINED, cells, one_line, table1
from test_figures_tables import differences, uncertain

from prefmoe.analysis import tables

pytestmark = pytest.mark.usefixtures("coarse_pictures")


def test_the_cells_of_these_notebooks_draw_with_the_committed_small_tables():
    """One backbone, one seed, no small talk: nothing of what the cells say may need more."""
    folder = Path(__file__).resolve().parent.parent / "figures" / "small"
    content = {path.stem: tables.read_table(path) for path in folder.glob("*.csv")}
    few = ("PrefMoE", "LoRA", "Non-tuned with profile", "Chance", "Profile reader")
    for name, table in content.items():
        rows = np.all([table[column].isin(few) for column in ("method", "baseline") if column in table], axis=0)
        content[name] = table[rows].reset_index(drop=True) if "method" in table else table
    backbone = content["table1"]["backbone"].iloc[0]
    edition = SimpleNamespace(backbones=[backbone], ablation_backbone=backbone)
    shown = cells(
        "07", "main-function", "main-figure", "detail-figure", "paired-function", "paired-figure",
        table1=content["table1"], seeds=content["table1_seeds"], comparisons=content["comparisons"], turns=0,
        settings=edition, trained=TRAINED,
    ).figures  # fmt: skip
    ids = [c["id"] for c in json.loads(next(Path(folder.parent.parent, "notebooks").glob("14_*")).read_text())["cells"]]
    ids = [i for i in ids if i.endswith(("-figure", "-function", "-detail", "-curves", "-diagrams"))]
    shown += cells(
        "14",
        *ids,
        content=content,
        main_rows=content.get,
        first=backbone,
        turns=0,
        seeds="one seed for all",
    ).figures
    assert len(shown) >= 12 and all(figure.axes and figure.get_label() for figure in shown)


def test_an_edition_where_nobody_has_a_preference_still_has_its_figures():
    undefined = ["preference", "collapse", "recall", "sensitivity"]

    def without(table: pd.DataFrame) -> pd.DataFrame:
        blank = [c for c in ("value", "difference", "low", "high", "unpaired", "p_users_holm") if c in table]
        return table.assign(**{c: table[c].mask(table["metric"].isin(undefined)) for c in blank})

    edition = {"settings": SimpleNamespace(backbones=["b"]), "turns": 0, "trained": TRAINED}
    compared = without(differences(backbones=(("b", 0.0, 0.04),)))
    ids = ("main-function", "main-figure", "detail-figure", "paired-function", "paired-figure", "paired-detail")
    seeds = table1().assign(minimum=np.nan, maximum=np.nan)
    shown = cells("07", *ids, table1=without(table1()), seeds=seeds, comparisons=compared, **edition).figures
    assert len(shown[0].axes) == 1 and len(shown[1].axes) == 1 and "nothing to draw" in one_line(shown[2])
    assert len(shown) == 6

    detectable = pd.DataFrame(
        [{"backbone": "b", "turns": 0, "metric": m, "grouping": "all", "group": "all", "n": 9, "users": 3, "methods": 2,
          "unpaired": 0.2, "paired": 0.1, "paired_corrected": np.nan} for m in undefined]
    )  # fmt: skip
    turns = without(table1().assign(change=0.0, change_low=0.0, change_high=0.0))
    calibration = pd.DataFrame(
        columns=["method", "type", "backbone", "turns", "metric", "value", "low", "high", "floor", "n"]
    )
    separation = pd.DataFrame(columns=["method", "type", "backbone", "turns", "measure", "value", "low", "high", "n"])
    names = {
        "forest": compared, "detectable": without(detectable), "turns": turns, "calibration": calibration,
        "reliability": calibration.assign(confidence=[]), "separation": separation,
    }  # fmt: skip
    shown = uncertain(
        "forest-function", "forest-figure", "asked-function", "detectable-figure", "turns-figure", "turns-curves",
        "calibration-figure", "reliability-diagrams", "separation-function", "separation-figure", names=names,
    ).figures  # fmt: skip
    assert len(shown) == 7 and all(figure.get_label() for figure in shown)
