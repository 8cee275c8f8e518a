"""The figure of a reproduction: every number of Table 1 as committed and as made here, with both intervals."""

import pandas as pd
import seaborn.objects as so
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from prefmoe.figures import style


@style.house()
def draw(cells: pd.DataFrame, title: str, edition: str) -> Figure:
    """A panel per metric; on the diagonal both runs agree. ``cells``: of a `reproduction.Comparison`; ``title``: its
    verdict."""
    rows = cells[(cells["table"] == "table1") & cells["committed"].notna() & cells["here"].notna()]
    if rows.empty:
        return style.notice(f"{title}: Table 1 as committed and as made here share no number.")
    rows = rows.assign(far=rows["state"] == "too far")
    names = list(rows["metric"].unique())
    figure = Figure((8.4, 0.2 + 2.8 * -(-len(names) // 3)), dpi=style.DPI, layout="constrained")
    plot = so.Plot(rows, x="committed", y="here").facet("metric", order=names, wrap=3)
    if rows[["low", "high"]].notna().all(axis=1).any():
        plot = plot.add(so.Range(color="#BBBBBB", linewidth=0.8), xmin="low", xmax="high", orient="y")
    near, far = style.SERIES[0], style.SERIES[5]
    plot = plot.add(so.Dot(edgewidth=0), color="far", marker="far", pointsize="far", legend=False).scale(
        color=so.Nominal({False: near.colour, True: far.colour}, order=[False, True]),
        marker=so.Nominal({False: "o", True: "X"}, order=[False, True]),
        pointsize=so.Nominal({False: 4, True: 7}, order=[False, True]),
    )
    plot.share(x=False, y=False).theme(style.STYLE).on(figure).plot()
    for axis, name in zip(figure.axes, names, strict=True):
        axis.set(xscale="linear", yscale="linear")
        for marks in (c for c in axis.collections if isinstance(c, PathCollection)):
            marks.set_zorder(3)  # over the intervals
        axis.axline((0, 0), slope=1, color=style.MUTED, linewidth=0.8, zorder=1)
        axis.set(
            title=style.METRIC_LABELS.get(name, name).replace("\n", " "), xlabel="committed", ylabel="this machine"
        )
        style.light_grid(axis, "both")
    return style.finish(
        figure,
        title,
        f"Edition {edition}, Table 1: {len(rows)} numbers, a point per row. Bars: the committed 95 % interval "
        "(bootstrap over users, and over seeds where there are several). A brown cross is further off than other seeds "
        "would take it.",
        alt="Scatter plots of what this machine made against what is committed, a panel per metric.",
    )
