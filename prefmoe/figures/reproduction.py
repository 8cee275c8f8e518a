"""The figure of a reproduction: every number of Table 1 as committed and as made here, with both intervals."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from prefmoe.figures.old_forms import INK, METRIC_LABELS, MUTED, PALETTE, _canvas, _finish, _light_grid, house_style


@house_style
def draw(cells: pd.DataFrame, title: str, edition: str) -> Figure:
    """A panel per metric; on the diagonal both runs agree.

    Args:
        cells: of a `reproduction.Comparison`. title: its verdict.
    """
    rows = cells[(cells["table"] == "table1") & cells["committed"].notna() & cells["here"].notna()]
    figure, axes = _canvas(8.4, 5.8, 2, 3)
    for axis, (metric, label) in zip(axes.flat, METRIC_LABELS.items(), strict=True):
        shown = rows[rows["cell"].str.endswith(f", {metric}")]
        axis.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, zorder=1)
        far = shown["state"] == "too far"
        for chosen, colour, marker, size in ((~far, PALETTE[0], "o", 14), (far, PALETTE[5], "X", 50)):
            part = shown[chosen]
            below, above = part["committed"] - part["low"], part["high"] - part["committed"]
            axis.errorbar(part["committed"], part["here"], xerr=[below.clip(lower=0), above.clip(lower=0)], fmt="none",
                          ecolor="#BBBBBB", elinewidth=0.8, zorder=1)  # fmt: skip
            axis.scatter(part["committed"], part["here"], s=size, color=colour, marker=marker, linewidths=0, zorder=3)
        axis.set_title(label.replace("\n", " "), color=INK)
        axis.set_xlabel("committed")
        axis.set_ylabel("this machine")
        _light_grid(axis, "both")
    return _finish(
        figure,
        title,
        f"Edition {edition}, Table 1: {len(rows)} numbers, a point per method, backbone and turns. Bars: the committed "
        "95 % interval (cluster bootstrap over users). A brown cross is further off than other seeds would take it.",
    )
