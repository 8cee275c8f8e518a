"""What is left of a method when something of the user or the picture is exchanged or taken away: a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd

from prefmoe import metrics
from prefmoe.analysis.answers import Answers, TableError, finished, type_of
from prefmoe.config import ControlKind, Edition
from prefmoe.system.run_files import read_controls

CONTROLS_COLUMNS = ("method", "backbone", "control", "metric", "value", "low", "high", "n", "seeds")

NO_CONTROL = "none"
"""What the column says of the same questions asked as they are."""


def controls_table(edition: Edition, results: str | Path, answers: Sequence[Answers]) -> pd.DataFrame:
    """Every metric of every method and control: the test questions without small talk.

    ``answers``: as `read_runs` read them, of which those of methods with controls stand under `NO_CONTROL`. Returns the
    columns of `CONTROLS_COLUMNS`; without rows where no run was asked under a control. Raises TableError naming the
    run, if its answers under controls are missing or damaged, or seeds differ in them.
    """
    plain = {(a.backbone, a.key): a for a in answers if a.split == "test" and a.turns == 0}
    rows = []
    for backbone, key, found in finished(edition, results, read=read_controls):
        method, frames = edition.methods[key], list(found.values())
        without = [folder for folder, frame in found.items() if frame is None]
        if len(without) == len(found):
            continue
        if without:
            raise TableError(f"{without[0]}: no answers under controls, which the method's other seeds have")
        where = {"backbone": backbone, "key": key, "method": method.label, "type": type_of(method)}
        kinds = [kind for kind in get_args(ControlKind) if (frames[0]["control"] == kind).any()]
        under = {NO_CONTROL: plain[backbone, key]} if (backbone, key) in plain else {}
        for kind in kinds:
            copies = [metrics.score(frame[frame["control"] == kind].sort_values("index")) for frame in frames]
            under[kind] = Answers.of(copies, **where, turns=0, split="test")
        for kind, entry in under.items():
            for metric, estimate in entry.estimates.items():
                row = {"method": method.label, "backbone": backbone, "control": kind, "metric": metric}
                rows.append({**row, **estimate, "seeds": entry.seeds})
    return pd.DataFrame(rows, columns=list(CONTROLS_COLUMNS))
