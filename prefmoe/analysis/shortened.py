"""How many questions were asked with less small talk than the others, because their prompts were too long."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

SHORTENED_COLUMNS = ("method", "type", "backbone", "turns", "questions", "shortened", "exchanges_left_out")


def shortened_table(answers: Iterable[Any]) -> pd.DataFrame:
    """How many questions were asked with less small talk than the others, and how many exchanges they miss in all.
    ``answers``: `prefmoe.analysis.answers.Answers` of runs. Returns the columns of `SHORTENED_COLUMNS`."""
    rows = []
    for entry in answers:
        missing = entry.frames[0]["turns_left_out"]
        counts = {
            "questions": len(missing),
            "shortened": int((missing > 0).sum()),
            "exchanges_left_out": int(missing.sum()),
        }
        rows.append({**entry.where(), **counts})
    return pd.DataFrame(rows, columns=list(SHORTENED_COLUMNS))
