"""What each row of an interval plot is shown of the user, written beside it: rows that are told more may do better."""

import pandas as pd
from matplotlib.figure import Figure

from prefmoe.analysis.text import counted
from prefmoe.figures import style

HEADING = "is shown of the user:"
MOST_NAMED = 4
"""Rows that an alternative text names; of more it counts how many are shown what."""


def beside(figure: Figure, table: pd.DataFrame, rows: str = "method") -> Figure:
    """Writes the column information right of the last panel of a figure of `forms.intervals`, and into its
    alternative text.

    ``table``, ``rows``: as the form was given them.
    """
    if table.empty or "information" not in table:
        return figure
    known = table.drop_duplicates(rows).set_index(rows)["information"].fillna("")
    axis = figure.axes[-1]
    transform = axis.get_yaxis_transform()
    for place, text in ((-1, HEADING), *enumerate(known)):
        axis.annotate(
            text, (1.02, place), xycoords=transform, fontsize=7.5, va="center", color=style.MUTED, annotation_clip=False
        )
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + 0.065 * max(len(text) for text in (HEADING, *known)), height)
    kinds = {text: who for text, who in known.index.groupby(known).items() if text}
    named = len(known) <= MOST_NAMED
    told = "; ".join(f"{text} ({', '.join(who) if named else counted(len(who), 'row')})" for text, who in kinds.items())
    figure.set_label(f"{figure.get_label()} Shown of the user: {told}.")
    return figure
