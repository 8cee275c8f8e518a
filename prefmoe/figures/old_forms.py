"""Figures: each function draws one message from tables, arrays or picture files and returns a matplotlib
Figure.

House style: a colour-blind-safe palette with a marker or a hatch beside every colour (readable in grey),
intervals drawn wherever the table has them, the number of questions in the caption under the plot.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from prefmoe import metrics
from prefmoe.analysis import statistics
from prefmoe.data.benchmark import FACETS
from prefmoe.data.pictures import as_rgb, open_picture
from prefmoe.system.files import whole_file

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}
"""The house style; every figure function applies it."""

INK, MUTED, GRID = "#1A1A1A", "#666666", "#DDDDDD"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C4A00", "#999999", "#000000")
"""Okabe and Ito's colours (yellow, illegible on white, replaced by brown), always used with a marker or
a hatch."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "----")

METRIC_LABELS = {
    "overall": "Overall accuracy",
    "preference": "Preference accuracy",
    "profile": "Profile accuracy\n(recognition)",
    "collapse": "Collapse\n(lower is better)",
    "recall": "Recall",
    "sensitivity": "Sensitivity\n(recall − collapse)",
}

_TYPE_STYLE = {
    "NT": ("#7A7A7A", "o"),
    "FFT": ("#E69F00", "s"),
    "PEFT": ("#0072B2", "^"),
    "PrefMoE": ("#A63603", "D"),
}
_INTERVAL = "Bars: 95 % cluster bootstrap over users."

house_style = mpl.rc_context(STYLE)


# Files and frames


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG at 150 dpi without dates or versions in it, under a temporary name that is renamed
    when done."""
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: figures are saved as PNG, expected a name that ends in .png")
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
    return path


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, NDArray]:
    """A figure with a constrained layout and its axes as a (rows, columns) array; pyplot keeps no
    reference to it."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def _finish(figure: Figure, title: str, caption: str, *, legend: Sequence = (), legend_columns: int = 0) -> Figure:
    """Adds a title above the axes, and a legend and a wrapped caption below them.

    Args:
        legend: labelled handles.
        legend_columns: how many stand side by side; all when 0.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, max(20, int(width * 16.5)))
    heading = textwrap.fill(title, max(20, int(width * 10.5)))
    bottom = 0.14 * len(lines) + 0.08
    inset = 0.08 / width
    if legend:
        columns = legend_columns or len(legend)
        anchor = (inset, bottom / height)
        figure.legend(handles=list(legend), loc="lower left", bbox_to_anchor=anchor, ncols=columns, borderpad=0.3)
        bottom += 0.19 * -(-len(legend) // columns) + 0.1
    top = 0.19 * (heading.count("\n") + 1) + 0.06
    figure.get_layout_engine().set(rect=(0, bottom / height, 1, 1 - (bottom + top) / height))
    figure.text(inset, 1 - 0.05 / height, heading, fontsize=10.5, weight="bold", color=INK, va="top", ha="left")
    figure.text(inset, 0.06 / height, "\n".join(lines), fontsize=8, color=MUTED, va="bottom", ha="left")
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, positions: ArrayLike, *, horizontal: bool = True, **options) -> None:
    """Draws the intervals low..high of a table's rows, where there are any."""
    value = rows["value"].to_numpy(dtype=float)
    errors = np.stack([value - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - value])
    errors = np.where(np.isnan(errors), 0, np.maximum(errors, 0))
    style = {"fmt": "none", "elinewidth": 1.2, "capsize": 0, "ecolor": INK, "zorder": 2} | options
    if horizontal:
        axes.errorbar(value, positions, xerr=errors, **style)
    else:
        axes.errorbar(positions, value, yerr=errors, **style)


def _sizes(table: pd.DataFrame, names: Sequence[str]) -> str:
    """ "n = 680 preference, 279 collapse" from a table's n column; a range where methods differ."""
    parts = []
    for metric in names:
        n = table.loc[table["metric"] == metric, "n"]
        if len(n):
            low, high = int(n.min()), int(n.max())
            parts.append(f"{low if low == high else f'{low}–{high}'} {metric}")
    return "n = " + ", ".join(parts) + " questions"


def _method_style(method: str, kind: str) -> tuple[str, str]:
    return _TYPE_STYLE["PrefMoE" if method.startswith("PrefMoE") else kind]


def _light_grid(axes: Axes, axis: str = "x") -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.6)


@house_style
def notice(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure, axes = _canvas(6.0, 1.2)
    axes[0, 0].set_axis_off()
    figure.text(0.02, 0.5, textwrap.fill(text, 90), color=MUTED, va="center")
    return figure


# The published results


@house_style
def published_table1(table: pd.DataFrame) -> Figure:
    """The paper's Table 1 as dots: accuracies of every method at 0 and 10 turns.

    Args:
        table: published/table1.csv (method, type, group, turns, metric, value).
    """
    return _published(
        table,
        ("overall", "preference", "profile"),
        "Published accuracies (Table 1 of the paper) at 0 and 10 turns of small talk",
        "Shares of correct answers as printed; n = 2145 questions overall, 750 preference, 1395 profile "
        "(recognition). The paper gives no intervals.",
    )


@house_style
def published_collapse(table: pd.DataFrame) -> Figure:
    """The paper's collapse (FPout) of every method at 0 and 10 turns; the same input as
    `published_table1`."""
    return _published(
        table,
        ("collapse",),
        "Published group preference collapse at 0 and 10 turns",
        "Share of questions about a preference that the user does not hold, but others do, that are answered as "
        "if the user held it; n = 219 questions. The paper gives neither intervals nor recall.",
    )


def _published(table: pd.DataFrame, names: Sequence[str], title: str, caption: str) -> Figure:
    methods = table[["method", "type"]].drop_duplicates().reset_index(drop=True)
    figure, axes = _canvas(2.6 + 2.5 * len(names), 1.3 + 0.2 * len(methods), 1, len(names), sharey=True)
    rows = np.arange(len(methods))
    for axis, metric in zip(axes[0], names, strict=True):
        values = table[table["metric"] == metric].pivot(index=["method", "type"], columns="turns", values="value")
        values = values.reindex(pd.MultiIndex.from_frame(methods))
        axis.hlines(rows, values[0], values[10], color=GRID, linewidth=2, zorder=1)
        for row, (method, kind) in enumerate(methods.itertuples(index=False)):
            colour, marker = _method_style(method, kind)
            style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5.5, "zorder": 3}
            axis.plot(values[0].iloc[row], row, **style)
            axis.plot(values[10].iloc[row], row, markerfacecolor="white", **style)
        axis.set_xlabel(METRIC_LABELS[metric])
        axis.set_yticks(rows, methods["method"])
        axis.tick_params(axis="y", length=0)
        _light_grid(axis)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    changes = np.flatnonzero(methods["type"].ne(methods["type"].shift()))[1:]
    for axis in axes[0]:
        for change in changes:
            axis.axhline(change - 0.5, color=MUTED, linewidth=0.6)
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    kinds = [kind for kind in _TYPE_STYLE if kind in {*methods["type"], "PrefMoE"}]
    handles = [
        Line2D([], [], color=_TYPE_STYLE[kind][0], marker=_TYPE_STYLE[kind][1], linestyle="none", label=kind)
        for kind in kinds
    ]
    handles += [
        Line2D([], [], color=INK, marker="o", linestyle="none", label="0 turns"),
        Line2D([], [], color=INK, marker="o", linestyle="none", markerfacecolor="white", label="10 turns"),
    ]
    return _finish(figure, title, caption, legend=handles, legend_columns=len(handles) if len(names) > 1 else 3)


# The audit of the published results


@house_style
def published_fits(values: pd.DataFrame, overall: pd.DataFrame) -> Figure:
    """Which printed values are shares of the stated numbers of questions, and which Overall is the mean of its parts.

    Args:
        values: `audit.values` of Table 1. overall: `audit.overall` of it.
    """
    methods = values[["type", "method"]].drop_duplicates().reset_index(drop=True)
    columns = [(metric, turns) for turns in (0, 10) for metric in dict.fromkeys(values["metric"])]
    place = {key: row for row, key in enumerate(methods.itertuples(index=False, name=None))}
    figure, axes = _canvas(6.6, 1.7 + 0.2 * len(methods))
    axis = axes[0, 0]
    y = np.array([place[key] for key in zip(values["type"], values["method"], strict=True)])
    x = np.array([columns.index(key) for key in zip(values["metric"], values["turns"], strict=True)])
    good = values["fits"].to_numpy(dtype=bool)
    handles = axis.plot(x[good], y[good], ".", color="#AAAAAA", markersize=4, label="k/n to four decimals")
    style = {"linestyle": "none", "markersize": 7, "markeredgewidth": 1.8}
    handles += axis.plot(x[~good], y[~good], "x", color="#A63603", label="no k/n", **style)
    off = [key for key, fits in overall["fits"].items() if not fits]
    handles += axis.plot(
        [columns.index(("overall", turns)) for *_, turns in off], [place[kind, method] for kind, method, _ in off],
        "s", markersize=11, markerfacecolor="none", color=PALETTE[0], label="Overall is not the mean of its parts",
        linestyle="none",
    )  # fmt: skip
    n = values.drop_duplicates("metric").set_index("metric")["n"]
    axis.set_xticks(range(len(columns)), [f"{metric}\nn = {n[metric]}" for metric, _ in columns], fontsize=7)
    axis.xaxis.tick_top()
    for start, turns in ((0, 0), (4, 10)):
        axis.text(start + 1.5, -1.9, f"{turns} turns", ha="center", va="bottom", weight="bold", fontsize=8.5)
    axis.axvline(3.5, color=MUTED, linewidth=0.6)
    for change in np.flatnonzero(methods["type"].ne(methods["type"].shift()))[1:]:
        axis.axhline(change - 0.5, color=MUTED, linewidth=0.6)
    axis.set_yticks(range(len(methods)), [f"{method}  {kind}" for kind, method in methods.to_numpy()])
    axis.tick_params(length=0)
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.set_xlim(-0.6, len(columns) - 0.4)
    axis.spines[:].set_visible(False)
    return _finish(
        figure,
        "Printed values against the numbers of questions behind them",
        f"n = {len(values)} printed values; {int((~good).sum())} are no k/n, {len(off)} of {len(overall)} Overall "
        "values differ from the weighted mean of their parts by more than rounding.",
        legend=handles,
    )


@house_style
def published_offsets(changes: pd.DataFrame) -> Figure:
    """What ten turns change in each accuracy, row by row: where all change by one amount, the marks coincide.

    Args:
        changes: `audit.turn_changes` of Table 1, rows in the order to draw.
    """
    figure, axes = _canvas(6.8, 1.5 + 0.19 * len(changes))
    axis = axes[0, 0]
    rows = np.arange(len(changes))
    marks = {"preference": ("s", PALETTE[0]), "profile": ("^", PALETTE[1]), "overall": ("o", INK)}
    accuracies = changes[list(marks)]
    axis.axvline(0, color=MUTED, linewidth=0.9, zorder=0)
    axis.hlines(rows, accuracies.min(axis=1), accuracies.max(axis=1), color=GRID, linewidth=2, zorder=1)
    handles = []
    for metric, (marker, colour) in marks.items():
        style = {"color": colour, "markersize": 3 if metric == "overall" else 6.5, "linestyle": "none"}
        handles += axis.plot(changes[metric], rows, marker, label=metric, **style)
    constant = changes["constant"].to_numpy(dtype=bool)
    for row in np.flatnonzero(constant):
        axis.text(0.01, row, f"{changes['preference'].iloc[row]:+.4f} in each", va="center", fontsize=7.5)
    names = [f"{method}  {kind}" for kind, method in changes.index]
    axis.set_yticks(rows, names)
    for label in np.array(axis.get_yticklabels())[constant]:
        label.set_fontweight("bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(changes) - 0.4, -0.6)
    axis.set_xlabel("Printed accuracy with ten turns of small talk minus without")
    _light_grid(axis)
    return _finish(
        figure,
        "Published change after ten turns of small talk",
        f"n = {len(changes)} rows of Table 1. Bold: the change of all three accuracies is the same to one unit of the "
        f"fourth decimal ({int(constant.sum())} rows).",
        legend=handles,
    )


@house_style
def published_differences(
    table: pd.DataFrame, *, rows: str, series: str, legend: str, title: str, caption: str = ""
) -> Figure:
    """Differences between printed values with the intervals that their numbers of questions allow.

    Args:
        table: `audit.differences`, `audit.small_talk` or `audit.steps`. rows, series: the columns that say which row
            a difference stands in, and which mark it gets there. legend: of a mark, "{}" being the value of ``series``.
    """
    names = list(dict.fromkeys(table["metric"]))
    figure, axes = _canvas(1.9 + 1.75 * len(names), 1.5 + 0.34 * table[rows].nunique(), 1, len(names), sharey=True)
    handles = _difference_panels(axes[0], table, rows, series, names)
    for handle in handles:
        handle.set_label(legend.format(handle.get_label()))
    n = ", ".join(f"{n} {metric}" for metric, n in table.drop_duplicates("metric")[["metric", "n"]].to_numpy())
    note = "Bars: 95 % intervals (Newcombe) for independent questions. Filled: p < .05, Holm-corrected per metric."
    return _finish(figure, title, f"n = {n} questions. {note} {caption}".strip(), legend=handles)


@house_style
def gains(published: pd.DataFrame, measured: pd.DataFrame, *, edition: str, turns: int = 0) -> Figure:
    """PrefMoE's published gains above, an edition's own below: directions can be compared, levels cannot.

    Args:
        published: `audit.differences`. measured: `audit.edition_gains`; without rows after so many turns, the panels
            below stay empty and say so.
    """
    above, below = (table[table["turns"] == turns] for table in (published, measured))
    names = [metric for metric in dict.fromkeys(above["metric"]) if below.empty or metric in set(below["metric"])]
    sizes = [above["backbone"].nunique(), max(1, below["baseline"].nunique())]
    figure, axes = _canvas(
        2.6 + 1.75 * len(names), 2.5 + 0.3 * sum(sizes), 2, len(names), sharex="col", sharey="row",
        height_ratios=sizes,
    )  # fmt: skip
    handles = _difference_panels(axes[0], above, "backbone", "baseline", names)
    ours = _difference_panels(axes[1], below, "baseline", "backbone", names, first_style=len(handles))
    for axis in axes[0]:
        axis.set_xlabel("")
        axis.tick_params(labelbottom=True)
    for axis, heading in zip(axes[:, 0], ("As printed in the paper", f"Measured here, edition {edition}"), strict=True):
        axis.annotate(heading, (0, 1), (-95, 7), xycoords="axes fraction", textcoords="offset points", weight="bold")
    for handle in handles:
        handle.set_label(f"paper: minus {handle.get_label()}")
    n = ", ".join(f"{n} {metric}" for metric, n in above.drop_duplicates("metric")[["metric", "n"]].to_numpy())
    here = "" if below.empty else f"{_sizes(below, names)} here; {_INTERVAL.lower()} "
    return _finish(
        figure,
        f"PrefMoE minus each baseline, {turns} turns: published, and measured in this edition",
        f"n, paper: {n} questions; bars there: 95 % intervals (Newcombe) for independent questions. "
        f"{here}Filled: p < .05, Holm-corrected. Other models, questions "
        "and chance levels: compare directions, not sizes.",
        legend=[*handles, *ours],
        legend_columns=len(handles) + len(ours),
    )


def _difference_panels(
    axes: NDArray, table: pd.DataFrame, rows: str, series: str, names: Sequence[str], *, first_style: int = 0
) -> list[Line2D]:
    """A panel of differences with intervals per metric, filled where clear; returns a handle per series.

    Panels of an empty table say "nothing".
    """
    labels, marks = list(dict.fromkeys(table[rows])) or ["nothing"], list(dict.fromkeys(table[series]))
    step = 0.7 / max(1, len(marks))
    for axis, metric in zip(axes, names, strict=True):
        axis.axvline(0, color=MUTED, linewidth=0.9, zorder=0)
        for k, name in enumerate(marks):
            chosen = table[(table["metric"] == metric) & (table[series] == name)]
            chosen = chosen.rename(columns={"difference": "value"})
            places = np.array([labels.index(row) for row in chosen[rows]]) + (k - (len(marks) - 1) / 2) * step
            colour, marker = PALETTE[first_style + k], MARKERS[first_style + k]
            _bars(axis, chosen, places, ecolor=colour)
            for place, value, clear in zip(places, chosen["value"], chosen["clear"], strict=True):
                face = colour if clear else "white"
                axis.plot(value, place, marker, color=colour, markerfacecolor=face, markersize=5, zorder=3)
        axis.set_xlabel(METRIC_LABELS[metric])
        axis.set_yticks(range(len(labels)), [_wrapped(str(label), 30) for label in labels])
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        _light_grid(axis)
    return [
        Line2D([], [], color=PALETTE[k], marker=MARKERS[k], linestyle="none", label=str(name))
        for k, name in enumerate(marks, first_style)
    ]


# The benchmark


@house_style
def dataset_statistics(table: pd.DataFrame) -> Figure:
    """Questions by type and split.

    Args:
        table: columns question_type, split, count (published/dataset_statistics.csv or
        dataset_statistics).
    """
    counts = table.pivot(index="question_type", columns="split", values="count").fillna(0)
    splits = [split for split in ("train", "validation", "test", "unseen") if split in counts]
    kinds = list(dict.fromkeys(table["question_type"]))
    figure, axes = _canvas(6.4, 1.6 + 0.22 * len(kinds) * len(splits))
    axis = axes[0, 0]
    height = 0.8 / len(splits)
    for k, split in enumerate(splits):
        values = counts.loc[kinds, split]
        places = np.arange(len(kinds)) + (k - (len(splits) - 1) / 2) * height
        axis.barh(places, values, height * 0.92, color=PALETTE[k], hatch=HATCHES[k], edgecolor="white", label=split)
        for place, value in zip(places, values, strict=True):
            axis.text(value + counts.to_numpy().max() * 0.01, place, f"{int(value)}", va="center", fontsize=7.5)
    axis.set_yticks(range(len(kinds)), [_kind_name(kind) for kind in kinds])
    axis.invert_yaxis()
    axis.set_xlabel("Questions")
    axis.margins(x=0.1)
    axis.legend(title="split")
    total = ", ".join(f"{int(counts[split].sum())} {split}" for split in splits)
    return _finish(figure, "Questions by type and split", f"n = {int(table['count'].sum())} questions: {total}.")


def _kind_name(kind: str) -> str:
    return kind.replace("_", " ").replace("mcq", "multiple choice").replace("yesno", "yes/no")


@house_style
def identities(table: pd.DataFrame) -> Figure:
    """Users by what they are (attribute, count)."""
    figure, axes = _canvas(4.6, 2.4)
    axis = axes[0, 0]
    axis.barh(table["attribute"], table["count"], color=PALETTE[0], height=0.65)
    for row, count in enumerate(table["count"]):
        axis.text(count, row, f" {count}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("Users")
    axis.margins(x=0.1)
    return _finish(figure, "Who the users are", f"n = {int(table['count'].sum())} users.")


@house_style
def popularity_skew(popularity: pd.DataFrame, groups: pd.DataFrame) -> Figure:
    """How unequal preferences are: users who like each item, and users who share each annotation, by rank.

    Args:
        popularity: columns facet, item, users (`item_popularity`).
        groups: columns facet, users (`group_sizes`).
    """
    figure, axes = _canvas(8.2, 3.4, 1, 2)
    panels = ((popularity, "Rank of the item within its facet", "Users who like it"),
              (groups, "Rank of the preference group within its facet", "Users who share it"))  # fmt: skip
    for axis, (table, xlabel, ylabel) in zip(axes[0], panels, strict=True):
        for k, facet in enumerate(facet for facet in FACETS if facet in set(table["facet"])):
            users = np.sort(table.loc[table["facet"] == facet, "users"].to_numpy())[::-1]
            axis.plot(
                np.arange(1, len(users) + 1),
                users,
                color=PALETTE[k],
                marker=MARKERS[k],
                markersize=4,
                label=facet,
            )
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.set_ylim(0)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        _light_grid(axis, "y")
    if len(groups):
        axes[0, 1].legend(title="facet")
    users = int(groups.groupby("facet", sort=False)["users"].sum().head(1).sum())
    return _finish(
        figure,
        "Few preferences are shared by many users",
        f"n = {users} users, {len(popularity)} items, {len(groups)} preference groups.",
    )


@house_style
def picture_grid(
    pictures: Sequence[tuple[str | Path | Image.Image, str]], *, columns: int = 4, title: str = ""
) -> Figure:
    """Pictures with a text under each.

    Args:
        pictures: (path or picture, text) pairs, for instance question and answer.
    """
    rows = -(-len(pictures) // columns)
    texts = [_wrapped(text, 27) for _, text in pictures]
    lines = max(text.count("\n") + 1 for text in texts)
    figure, axes = _canvas(1.95 * columns, (1.86 + 0.135 * lines) * rows + 0.6, rows, columns)
    for axis, (path, _), text in zip(axes.flat, pictures, texts, strict=False):
        _show(axis, path)
        axis.set_xlabel(text, fontsize=7.5, loc="left", color=INK)
    for axis in axes.flat[len(pictures) :]:
        axis.set_axis_off()
    return _finish(figure, title or "Questions and their pictures", f"n = {len(pictures)} pictures.")


@house_style
def portraits(users: Sequence[tuple[str, str, Sequence[str | Path | Image.Image]]], *, title: str = "") -> Figure:
    """Users in rows: name, profile text, and their pictures.

    Args:
        users: (name, text, pictures or their paths) per user.
    """
    users = users or [("Nobody", "No user can be shown.", ())]
    columns = max(len(paths) for _, _, paths in users)
    texts = [_wrapped(text, 62) for _, text, _ in users]
    height = max(1.3, 0.15 + 0.132 * max(text.count("\n") + 2 for text in texts))
    figure, axes = _canvas(
        4.2 + 1.15 * columns,
        height * len(users) + 0.6,
        len(users),
        columns + 1,
        width_ratios=[3.9, *[1.1] * columns],
    )
    for row, ((name, _, paths), text) in enumerate(zip(users, texts, strict=True)):
        axes[row, 0].set_axis_off()
        axes[row, 0].text(0, 1, name, weight="bold", va="top", transform=axes[row, 0].transAxes)
        offset = mpl.transforms.offset_copy(axes[row, 0].transAxes, figure, y=-14, units="points")
        axes[row, 0].text(0, 1, text, fontsize=7.5, va="top", transform=offset)
        for axis, path in zip(axes[row, 1:], paths, strict=False):
            _show(axis, path)
        for axis in axes[row, 1 + len(paths) :]:
            axis.set_axis_off()
    return _finish(figure, title or "Users and their pictures", f"n = {sum(bool(p) for *_, p in users)} users.")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def _rgb(picture: str | Path | Image.Image) -> Image.Image:
    return as_rgb(picture) if isinstance(picture, Image.Image) else open_picture(picture)


def _show(axis: Axes, picture: str | Path | Image.Image) -> None:
    axis.imshow(np.asarray(_rgb(picture)))
    axis.set_anchor("N")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(GRID)


# Backbones


@house_style
def backbone_abilities(table: pd.DataFrame) -> Figure:
    """What the backbones can do before any user is known.

    Args:
        table: columns backbone, ability, value (share correct), n and chance; rows in the order to draw.
    """
    abilities = list(dict.fromkeys(table["ability"]))
    backbones = list(dict.fromkeys(table["backbone"]))
    figure, axes = _canvas(7.0, 1.5 + 0.24 * len(abilities) * len(backbones))
    axis = axes[0, 0]
    step = 0.7 / max(1, len(backbones))
    for k, backbone in enumerate(backbones):
        rows = table[table["backbone"] == backbone]
        places = np.array([abilities.index(a) for a in rows["ability"]]) + (k - (len(backbones) - 1) / 2) * step
        low, high = statistics.wilson_interval(rows["value"], rows["n"])
        rows = rows.assign(low=low, high=high)
        _bars(axis, rows, places, ecolor=PALETTE[k])
        axis.plot(
            rows["value"],
            places,
            MARKERS[k],
            color=PALETTE[k],
            markersize=6,
            linestyle="none",
            label=backbone,
            zorder=3,
        )
    chance = table.drop_duplicates("ability").set_index("ability")["chance"]
    for row, ability in enumerate(abilities):
        axis.plot([chance[ability]] * 2, [row - 0.42, row + 0.42], color=MUTED, linestyle=":", zorder=1)
    axis.plot([], [], color=MUTED, linestyle=":", label="chance")
    axis.set_yticks(range(len(abilities)), [_wrapped(ability, 40) for ability in abilities])
    axis.set_ylim(len(abilities) - 0.4, -0.6)
    axis.set_xlim(0, 1.03)
    axis.set_xlabel("Share of correct answers")
    _light_grid(axis)
    n = sorted(table["n"].astype(int).unique())
    sizes = str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"
    return _finish(
        figure,
        "Abilities of the backbones on material without benchmark users",
        f"n = {sizes} questions per ability. Bars: 95 % Wilson intervals.",
        legend=axis.get_legend_handles_labels()[0],
    )


# Collapse


@house_style
def collapse_recall(table: pd.DataFrame, *, backbone: str, turns: int = 0) -> Figure:
    """Collapse against recall, with lines of equal sensitivity: whoever always says no has neither.

    Args:
        table: table1.csv of an edition.
    """
    chosen = table[(table["turns"] == turns) & table["backbone"].isin((backbone, "none"))]
    wide = {metric: rows.set_index("method") for metric, rows in chosen.groupby("metric")}
    everybody = list(dict.fromkeys(chosen["method"]))
    methods = [m for m in everybody if not np.isnan([wide[k].loc[m, "value"] for k in ("collapse", "recall")]).any()]
    missing = ", ".join(method for method in everybody if method not in methods)
    absent = f" Not shown, for want of readable answers: {missing}." if missing else ""
    figure, axes = _canvas(7.6, 5.2)
    axis = axes[0, 0]
    line = np.array([-0.05, 1.05])
    for sensitivity in np.arange(-0.8, 0.81, 0.2).round(1):
        zero = sensitivity == 0
        axis.plot(line, line + sensitivity, color=MUTED if zero else GRID, linewidth=1 if zero else 0.8, zorder=0)
        x, y = (0.985 - sensitivity, 0.985) if sensitivity > 0 else (0.985, 0.985 + sensitivity)
        label = f"{sensitivity:+.1f}" if not zero else "sensitivity 0"
        axis.text(x, y, label, fontsize=7, color=MUTED, rotation=45, rotation_mode="anchor", ha="right", va="bottom")
    axis.annotate(
        'always "no":\nno collapse, no recall', (0, 0), (0.06, 0.05), fontsize=8, color=MUTED,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6},
    )  # fmt: skip
    axis.annotate(
        'always "yes"', (1, 1), (0.79, 0.56), fontsize=8, color=MUTED, ha="center",
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6},
    )  # fmt: skip
    handles, points = [], []
    for number, method in enumerate(methods, 1):
        collapse, recall = wide["collapse"].loc[method], wide["recall"].loc[method]
        kind = collapse["type"]
        colour, marker = (MUTED, "h") if kind == "Reference" else _method_style(method, kind)
        ends = [[collapse["value"] - collapse["low"]], [collapse["high"] - collapse["value"]]]
        tops = [[recall["value"] - recall["low"]], [recall["high"] - recall["value"]]]
        axis.errorbar(
            collapse["value"], recall["value"], xerr=np.nan_to_num(np.maximum(ends, 0)),
            yerr=np.nan_to_num(np.maximum(tops, 0)), fmt="none", ecolor=colour, elinewidth=0.9, zorder=2,
        )  # fmt: skip
        axis.plot(collapse["value"], recall["value"], marker, color=colour, markersize=7, zorder=3)
        points.append((collapse["value"], recall["value"]))
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                linestyle="none",
                markersize=8,
                label=f"{number}  {method}",
            )
        )
    places = _label_places(np.array(points).reshape(-1, 2))
    for number, (point, place) in enumerate(zip(points, places, strict=True), 1):
        axis.annotate(
            str(number), point, place, fontsize=8, ha="center", va="center", zorder=4,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
    axis.set_xlim(-0.06, 1.06)
    axis.set_ylim(-0.06, 1.06)
    axis.set_aspect("equal")
    axis.set_xlabel("Collapse: share answered as if held, user outside the group")
    axis.set_ylabel("Recall: share answered as held, user inside the group")
    figure.legend(handles=handles, loc="outside right center")
    return _finish(
        figure,
        f"Collapse beside recall, {backbone}, {turns} turns",
        f"{_sizes(chosen, ('collapse', 'recall'))}; diagonals: equal sensitivity = recall − collapse. "
        f"{_INTERVAL}{absent}",
    )


def _label_places(points: NDArray, gap: float = 0.05, rounds: int = 300) -> NDArray:
    """(N, 2) places for labels beside N points in the unit square.

    Each label starts on the side that faces away from the neighbouring points; labels are then pushed
    off one another and off the points.
    """
    between = points[:, None] - points[None]
    near = np.exp(-((between / 0.1) ** 2).sum(axis=-1, keepdims=True))
    turn = np.arange(len(points))  # tells points apart that coincide
    outward = (between * near).sum(axis=1) + 1e-3 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    places = points + gap * outward / np.linalg.norm(outward, axis=1, keepdims=True)
    for _ in range(rounds):
        away = places[:, None] - np.concatenate([places, points])[None]
        distance = np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-6)
        push = np.where(distance < gap, away / distance * (gap - distance), 0.0)
        push[np.arange(len(points)), np.arange(len(points))] = 0
        places = np.clip(places + 0.5 * push.sum(axis=1), -0.03, 1.03)
    return places


@house_style
def groups(
    breakdown: pd.DataFrame, *, grouping: str, metric: str = "collapse", backbone: str, turns: int = 0
) -> Figure:
    """One metric within groups of questions, for every method.

    Args:
        breakdown: breakdown.csv of an edition (or rows of it).
        grouping: "bucket", "popularity", "pair", "facet" or "question".
    """
    chosen = breakdown[
        (breakdown["grouping"] == grouping)
        & (breakdown["metric"] == metric)
        & (breakdown["turns"] == turns)
        & breakdown["backbone"].isin((backbone, "none"))
    ].dropna(subset=["value"])
    if chosen.empty:
        return notice(f"No {metric} by {_BY[grouping]}: this benchmark has no questions that are annotated for it.")
    methods = list(dict.fromkeys(chosen["method"]))
    names = list(dict.fromkeys(chosen["group"]))
    figure, axes = _canvas(7.4, 1.5 + 0.12 * len(methods) * (len(names) + 1))
    axis = axes[0, 0]
    step = 0.72 / len(names)
    shades = ("#9EC9E2", "#3C93C2", "#0D4A70", "#8C4A00", "#E69F00") if len(names) <= 3 else PALETTE
    for k, name in enumerate(names):
        rows = chosen[chosen["group"] == name]
        places = np.array([methods.index(m) for m in rows["method"]]) + (k - (len(names) - 1) / 2) * step
        _bars(axis, rows, places, ecolor=shades[k])
        axis.plot(
            rows["value"], places, MARKERS[k], color=shades[k], markeredgecolor=INK, markeredgewidth=0.4,
            markersize=5.5, zorder=3, label=_group_name(name, grouping, rows),
        )  # fmt: skip
    for row in range(1, len(methods)):
        axis.axhline(row - 0.5, color=GRID, linewidth=0.5, zorder=0)
    axis.set_yticks(range(len(methods)), methods)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.set_xlim(left=min(0, axis.get_xlim()[0]))
    axis.set_xlabel(METRIC_LABELS[metric].replace("\n", " "))
    _light_grid(axis)
    head = METRIC_LABELS[metric].split("\n")[0]
    return _finish(
        figure,
        f"{head} by {_BY[grouping]}, {backbone}, {turns} turns",
        f"n: questions per method, seeds averaged. {_INTERVAL}",
        legend=axis.get_legend_handles_labels()[0],
        legend_columns=3 if len(names) < 4 else 2,
    )


_BY = {
    "bucket": "number of users who share the preference",
    "popularity": "popularity of the item",
    "pair": "whether training asked this user about this item",
    "facet": "facet",
    "question": "kind of question",
}


def _group_name(name: str, grouping: str, rows: pd.DataFrame) -> str:
    n = int(rows["n"].max())
    label = {"small_<=4": "at most 4", "middle_5-8": "5 to 8", "large_>=9": "9 or more"}.get(name, name)
    return f"{label} (n = {n})"


# Main table and ablation


@house_style
def ablation_steps(
    table: pd.DataFrame, *, published: pd.DataFrame | None = None, turns: int = 0, backbone: str = ""
) -> Figure:
    """Table 2: every metric as components are added one after the other.

    Args:
        table: table2.csv of an edition, or published/table2.csv (no intervals).
        published: published/table2.csv, drawn behind for comparison of the direction (not of the level).
    """
    chosen = table[table["turns"] == turns]
    steps = list(dict.fromkeys(chosen["components"]))
    names = [m for m in metrics.METRICS if m in set(chosen["metric"])]
    figure, axes = _canvas(1.9 * len(names) + 0.4, 2.9, 1, len(names))
    labels = [steps[0], *(f"+{step[-1]}" for step in steps[1:])]
    for axis, metric in zip(axes[0], names, strict=True):
        if published is not None:
            rows = published[(published["turns"] == turns) & (published["metric"] == metric)]
            places = [steps.index(c) for c in rows["components"] if c in steps]
            values = rows.loc[rows["components"].isin(steps), "value"]
            axis.plot(
                places,
                values,
                color="#999999",
                marker="o",
                markersize=3.5,
                linestyle="--",
                linewidth=1,
                zorder=1,
            )
        rows = chosen[chosen["metric"] == metric]
        places = [steps.index(c) for c in rows["components"]]
        axis.plot(places, rows["value"], color=PALETTE[0], marker="D", markersize=5, zorder=3)
        if {"low", "high"} <= set(rows.columns):
            _bars(axis, rows, places, horizontal=False, ecolor=PALETTE[0])
        axis.set_title(METRIC_LABELS[metric])
        axis.set_xticks(range(len(steps)), labels)
        axis.set_xlim(-0.4, len(steps) - 0.6)
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        _light_grid(axis, "y")
    axes[0, 0].set_ylabel("Share of questions")
    handles = []
    if published is not None:
        handles = [
            Line2D(
                [],
                [],
                color=PALETTE[0],
                marker="D",
                label=f"this edition{f' ({backbone})' if backbone else ''}",
            ),
            Line2D([], [], color="#999999", marker="o", markersize=3.5, linestyle="--", label="published"),
        ]
    switches = "E user embedding, P profile and preference factors, I imbalance-aware term, C counterfactual users, "
    switches += "D decorrelation, M mixture of experts."
    sizes = "As printed in the paper, without intervals; n = 2145 overall, 750 preference, 1395 profile, 219 collapse. "
    if "n" in chosen:
        sizes = f"{_sizes(chosen, [n for n in names if n != 'sensitivity'])}. {_INTERVAL} "
    measured = f"Components added one after the other{f', {backbone}' if backbone else ''}, {turns} turns"
    title = measured if "n" in chosen else f"Published ablation (Table 2 of the paper), {turns} turns"
    return _finish(figure, title, sizes + switches, legend=handles)
