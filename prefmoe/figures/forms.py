"""The forms of figure that several notebooks share, each one call: intervals, curves, heat maps, bars, pictures.

Tables are long: a row per mark, its number in the column value, its interval in low and high where there is one. Every
form returns a matplotlib Figure whose axes can be added to, `style.show` shows and saves it.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from seaborn.utils import relative_luminance

from prefmoe.figures import style
from prefmoe.figures.picture_grid import Picture as Picture
from prefmoe.figures.picture_grid import pictures as pictures
from prefmoe.figures.style import GRID, HATCHES, HEAT, INK, METRIC_LABELS, MUTED, Look

EVEN = (1.05 * 0.05) ** 0.5 - 0.05
"""The relative luminance (WCAG) on which black and white have the same contrast."""


@style.house()
def intervals(
    table: pd.DataFrame,
    *,
    rows: str,
    title: str,
    caption: str,
    panels: str = "",
    by: str = "",
    colour: str = "",
    filled: str = "",
    ticks: Sequence[str] = (),
    references: Mapping[str, float | Mapping[str, float]] | None = None,
    labels: Mapping[str, str] | None = None,
    series: Mapping[str, Look] | None = None,
    panel_width: float = 3.2,
) -> Figure:
    """Values as marks on their intervals: a row each, side by side within a row, a panel per metric.

    Args:
        rows, panels, by, colour: columns: what stands below one another, in panels, beside one another within a row,
            and what colours and markers tell apart (else by, else rows); all in the table's order. filled: a column of
            truth values, marks are open where it is false. ticks: columns of further values, drawn as small ticks.
        references: label -> where a vertical line stands, in every panel or by panel; "" stands in no legend. Lines
            that coincide in a panel are one, named after all of them.
        labels: of panels (else the metrics' own) and of rows. series: looks, where the fixed ones will not do.
    """
    if table.empty:
        return style.notice(f"{title}: there is nothing to draw.")
    colour, texts = colour or by or rows, METRIC_LABELS | dict(labels or {})
    data = _ordered(table, rows, panels, by, colour)
    names = list(data[panels].cat.categories) if panels else [""]
    levels = list(data[by].cat.categories) if by else [""]
    looks = _looks(table, colour)
    looks |= {name: look for name, look in (series or {}).items() if name in looks}
    data["row"] = data[rows].cat.rename_categories(lambda row: style.wrapped(texts.get(row, row), 30))
    data["mark"] = np.where(data[filled].astype(bool), "filled", "open") if filled else "filled"

    count = len(data["row"].cat.categories)
    tallest = max(row.count("\n") + 1 for row in data["row"].cat.categories)
    height = count * max(0.27, 0.06 + 0.12 * len(levels), 0.05 + 0.145 * tallest) + 1.5
    figure = Figure((2.3 + panel_width * len(names), height), dpi=style.DPI, layout="constrained")
    move = [so.Dodge(by=["group"])] if by else []
    group = {"group": by} if by else {}
    plot = so.Plot(data, x="value", y="row", color=colour, marker=colour, **group)
    if panels:
        plot = plot.facet(col=panels).share(x=False)
    if {"low", "high"} <= set(data) and data[["low", "high"]].notna().all(axis=1).any():
        plot = plot.add(so.Range(linewidth=1.3), *move, xmin="low", xmax="high", legend=False)
    plot = plot.add(so.Dot(pointsize=6, edgewidth=1.2), *move, fill="mark", legend=False)
    for column in [name for name in ticks if data[name].notna().any()]:
        plot = plot.add(so.Dot(marker="|", pointsize=5, color=INK), *move, x=column, legend=False)
    draw(plot, looks, figure)

    lines = {label: dict.fromkeys(names, at) if np.isscalar(at) else at for label, at in (references or {}).items()}
    lines = _together(lines, names)
    for axis, name in zip(figure.axes, names, strict=True):
        for label, places in lines.items():
            if name in places:
                axis.axvline(places[name], zorder=0.8, **_reference(label, list(lines)))
        axis.set(title="", ylabel="", xlabel=texts.get(name, name))
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.grid(axis="y", visible=False)
        for row in range(1, count) if by else ():
            axis.axhline(row - 0.5, color=GRID, linewidth=0.5, zorder=0)
        style.light_grid(axis)
    legend = []
    if by and by != colour:
        solid = data.groupby(by, observed=True)["mark"].agg(lambda marks: (marks == "filled").any())
        legend += [style.handle(level, filled=solid[level]) for level in levels]
    if colour != rows:
        legend += [style.handle(texts.get(name, name).replace("\n", " "), look) for name, look in looks.items()]
    legend += [Line2D([], [], label=label, **_reference(label, list(lines))) for label in lines if label]
    alt = _form("Interval plot", data["row"].cat.categories, [texts.get(name, name) for name in names])
    return style.finish(figure, title, caption, legend=legend, alt=alt)


def _together(lines: Mapping[str, Mapping[str, float]], panels: Sequence[str]) -> dict[str, dict[str, float]]:
    """The places of lines by panel; those that coincide in one are one line there, "Chance = Popular choice"."""
    found: dict[str, dict[str, float]] = {}
    for panel in panels:
        labels: dict[tuple[bool, float], list[str]] = {}
        for label, places in lines.items():
            if np.isfinite(place := places.get(panel, np.nan)):
                labels.setdefault((bool(label), round(float(place), 9)), []).append(label)
        for (_, place), names in labels.items():
            found.setdefault(" = ".join(names), {})[panel] = place
    return found


DASHES = (":", "--", "-.", (0, (8, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))


def _reference(label: str, labels: Sequence[str]) -> dict:
    """How the reference line of this label looks; that without a label, 0 for instance, is a plain thin one."""
    dashes = DASHES[[name for name in labels if name].index(label) % len(DASHES)] if label else "-"
    return {"color": MUTED, "linestyle": dashes, "linewidth": 1.2 if label else 0.9}


def _ordered(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A copy whose columns are categories, as texts and in the order in which they appear."""
    data = table.reset_index(drop=True).copy()
    for column in {*columns} - {""}:
        text = data[column].astype(str)
        data[column] = pd.Categorical(text, categories=list(dict.fromkeys(text)))
    return data


def _looks(table: pd.DataFrame, column: str) -> dict[str, Look]:
    """Looks of a column's values, in their order; methods that nobody knows are told by the table's column type."""
    names = table[column].astype(str)
    kinds = dict(zip(names, table["type"], strict=True)) if column == "method" and "type" in table else {}
    return style.looks(dict.fromkeys(names), kinds)


def _form(kind: str, rows: Sequence[str], panels: Sequence[str]) -> str:
    """What a figure looks like, for its alternative text: "Interval plot: LoRA, PrefMoE; Collapse, Recall."."""
    return "; ".join(part for part in (f"{kind}: {_listed(rows)}", _listed(panels)) if part) + "."


def _listed(names: Sequence[str], most: int = 8) -> str:
    names = [" ".join(str(name).split()) for name in names if str(name)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def draw(plot: so.Plot, looks: Mapping[str, Look], target: Figure | Axes) -> None:
    """Draws a plot whose colours and markers are those of the looks; its dots lie above lines, open ones hide them.
    Where a plot has fill=..., its values are "filled" and "open"."""
    colours = so.Nominal({name: look.colour for name, look in looks.items()}, order=list(looks))
    markers = so.Nominal({name: look.marker for name, look in looks.items()}, order=list(looks))
    fill = so.Nominal({"filled": True, "open": False})
    plot.scale(color=colours, marker=markers, fill=fill).theme(style.STYLE).on(target).plot()
    for axis in target.axes if isinstance(target, Figure) else [target]:
        for marks in (c for c in axis.collections if isinstance(c, PathCollection)):
            faces = marks.get_facecolor()
            marks.set(zorder=3, facecolor=np.where(faces[:, 3:] == 0, to_rgba("white"), faces))


@style.house()
def curves(
    table: pd.DataFrame, *, x: str, series: str, title: str, caption: str, panels: str = "", lines: str = "",
    units: str = "", columns: int = 2, shared: bool = True, log: bool = False, xlabel: str = "",
    ylabel: str = "Share of questions", labels: Mapping[str, str] | None = None, markers: bool = True,
    bars: bool = False, levels: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    panel: tuple[float, float] = (3.6, 2.6),
) -> Figure:  # fmt: skip
    """Values along an axis, with their intervals as bands: a line per series, panels in a grid.

    Args:
        x, series, panels: columns; series and panels in the table's order. lines: a column, a row of panels each; then
            all panels of a row share their y axis, else all of the figure do, or none where not shared.
        units: a column, a thin line for each of its values behind the mean of all.
        columns: of panels, where lines is not given. log: doublings of x are equally wide.
        bars: in the place of bands, which cover one another where series are close; on a logarithmic axis.
        levels: label -> panel -> where a horizontal line stands, chance for instance.
        panel: width and height of one, inches.
    """
    if table.empty:
        return style.notice(f"{title}: there is nothing to draw.")
    texts = METRIC_LABELS | dict(labels or {})
    data = _ordered(table, series, panels, lines)
    looks = _looks(table, series)
    places = sorted(data[x].unique())
    if bars:
        aside = {name: 2 ** (0.1 * (k - (len(looks) - 1) / 2)) for k, name in enumerate(looks)}
        data[x] = data[x] * data[series].map(aside).astype(float)
    names = list(data[panels].cat.categories) if panels else [""]
    across = len(names) if lines else min(columns, len(names))
    down = len(data[lines].cat.categories) if lines else -(-len(names) // across)
    figure = Figure((0.6 + panel[0] * across, 1.2 + panel[1] * down), dpi=style.DPI, layout="constrained")
    plot = so.Plot(data, x=x, y="value", color=series, marker=series, linestyle=series)
    if panels or lines:
        facets = {"col": panels} | ({"row": lines} if lines else {"wrap": across})
        plot = plot.facet(**{k: v for k, v in facets.items() if v}).share(y="row" if lines else shared)
    if units:
        plot = plot.add(so.Lines(linewidth=0.6, alpha=0.4), group=units, legend=False)
    if {"low", "high"} <= set(data) and data[["low", "high"]].notna().all(axis=1).any():
        how = so.Range(linewidth=1, linestyle="-") if bars else so.Band(alpha=0.13, edgewidth=0)
        plot = plot.add(how, ymin="low", ymax="high", legend=False)
    mark = so.Line(pointsize=4.5 if markers else 0, edgewidth=0, linewidth=1.4)
    plot = plot.add(mark, *([so.Agg()] if units else []), legend=False)
    dashes = so.Nominal({name: style.dash(k) for k, name in enumerate(looks)}, order=list(looks))
    draw(plot.scale(linestyle=dashes, **({"x": so.Continuous(trans="log2")} if log else {})), looks, figure)

    for number, axis in enumerate(figure.axes):
        column = number % across
        axis.set(title="", xlabel="", ylabel="")
        if panels and (not lines or number < across):
            axis.set_title(style.wrapped(texts.get(names[number], names[number]).replace("\n", " "), 34))
        if number + across >= len(figure.axes):
            axis.set_xlabel(xlabel or x)
            axis.tick_params(labelbottom=True)
        if column == 0:
            axis.set_ylabel(texts[data[lines].cat.categories[number // across]] if lines else ylabel)
        if len(places) <= 8:
            axis.set_xticks(places, [f"{place:g}" for place in places])
            axis.minorticks_off()
        for label, heights in levels.items():
            if (panel_name := names[number % len(names)]) in heights:
                axis.axhline(heights[panel_name], zorder=0.8, **_reference(label, list(levels)))
        axis.grid(axis="x", visible=False)
        style.light_grid(axis, "y")
    handles = []
    for k, (name, look) in enumerate(looks.items()):
        look = look if markers else Look(look.colour, "")
        handles.append(style.handle(texts.get(name, name).replace("\n", " "), look, line=style.dash(k)))
    lines_at = [Line2D([], [], label=label, **_reference(label, list(levels))) for label in levels]
    alt = _form(f"Line plot against {xlabel or x}", looks, [texts.get(name, name) for name in names])
    return style.finish(figure, title, caption, legend=[*(handles if len(handles) > 1 else ()), *lines_at], alt=alt)


NO_TERMS = ["total", "lr_factor", "gradient_norm"]
"""Columns of losses.parquet that are no term of the loss."""


def _fall(seeds: Iterable[pd.Series]) -> str:
    """From what to what a term of several seeds goes, the mean of the first and of the last tenth of the steps."""
    own = pd.concat(seeds).dropna().sort_index()
    tenth = -(-len(own) // 10)
    return f"{own.iloc[:tenth].mean():.2g} to {own.iloc[-tenth:].mean():.2g}" if tenth else ""


def losses(
    logs: Mapping[str, Sequence[pd.DataFrame]], *, window: int = 20, answer: str = "answer", about: str = "answer",
    together: bool = False,
) -> Figure:  # fmt: skip
    """Every weighted term of the loss during training, each on a scale of its own that starts at 0.

    ``logs``: method -> losses.parquet of each seed; ``window``: steps of the running mean; ``answer``: what the term
    "answer" is a loss of, in words; ``about``: the term of which the title tells, for every method that has it;
    ``together``: all terms of one method in one panel instead, on a logarithmic scale, where sizes can be compared.
    """
    parts, fall = [], []
    for method, runs in logs.items():
        for seed, run in enumerate(runs):
            terms = run.drop(columns=NO_TERMS, errors="ignore").set_index("step")
            long = terms.rolling(window, min_periods=1).mean().melt(var_name="term", ignore_index=False)
            parts.append(long.reset_index().assign(method=method, seed=seed))
        told = _fall(run.set_index("step").get(about, pd.Series(dtype=float)) for run in runs)
        fall += [f"{method} {told}"] if told else []
    table = pd.concat(parts, ignore_index=True)
    seeds = max(map(len, logs.values()))
    drawn = f"thick: mean of n = {seeds} seeds, thin: single seeds" if seeds > 1 else "n = 1 seed"
    names = {term: term.replace("_", " ") for term in table["term"].unique()} | {"answer": answer}
    scale, rest = (" Logarithmic scale.", "; all other terms together ") if together else ("", "")
    if together:
        left = [*NO_TERMS, "step", about]
        rest += _fall(run.set_index("step").drop(columns=left, errors="ignore").sum(axis=1) for run in logs[method])
    alone = f"{next(iter(logs))}. " if len(logs) == 1 else ""  # several stand in the legend
    panels = {"series": "method", "panels": "term", "columns": 4, "shared": False, "panel": (2.3, 1.8)}
    figure = curves(
        table, x="step", units="seed", markers=False, labels=names, xlabel="Step", ylabel="Weighted loss",
        caption=f"{alone}Running mean over {window} steps; {drawn}.{scale}",
        title=f"Loss of the {names[about]}, from the first to the last tenth of the steps: {'; '.join(fall)}{rest}",
        **({"series": "term", "panel": (7.0, 3.2)} if together else panels),
    )  # fmt: skip
    for axis in figure.axes:
        if together:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    return figure


def numbers_in_contrast(axis: Axes) -> None:
    """Turns the numbers in a heat map's cells black or white, whichever is told better from the cell's colour."""
    for text, face in zip(axis.texts, axis.collections[0].get_facecolors(), strict=False):  # no texts, no numbers
        text.set_color("black" if relative_luminance(face) > EVEN else "white")


@style.house()
def heat(
    panels: Mapping[str, pd.DataFrame],
    *,
    title: str,
    caption: str,
    label: str,
    limits: tuple[float, float] | None = None,
    numbers: str = "",
    groups: Sequence[int] = (),
    panel_width: float = 4.3,
) -> Figure:
    """Tables as heat maps beside one another, on one scale.

    Args:
        panels: heading -> table, its index and columns the ticks; all with the same index.
        label: of the colour bar. limits: of the colours; from 0 to the largest number when absent.
        numbers: a format, ".2f" or ".0%", writes the numbers into the cells.
        groups: columns in front of which a white line stands.
    """
    low, high = limits or (0.0, max(float(np.nanmax(table.to_numpy())) for table in panels.values()))
    first = next(iter(panels.values()))
    figure, axes = style.canvas(panel_width * len(panels) + 1.6, 2.3 + 0.24 * len(first), 1, len(panels), sharey=True)
    for axis, (heading, table) in zip(axes[0], panels.items(), strict=True):
        sns.heatmap(
            table, ax=axis, cmap=HEAT, vmin=low, vmax=high, cbar=False, annot=bool(numbers), fmt=numbers,
            annot_kws={"fontsize": 7}, xticklabels=True, yticklabels=True,
        )  # fmt: skip
        numbers_in_contrast(axis)
        axis.set_xticks(axis.get_xticks(), axis.get_xticklabels(), rotation=55, ha="right", rotation_mode="anchor")
        axis.tick_params(length=0)
        axis.set(title=heading, xlabel="", ylabel="")
        for place in groups:
            axis.axvline(place, color="white", linewidth=1.4)
    axes[0, 0].tick_params(axis="y", rotation=0)
    figure.colorbar(axes[0, 0].collections[0], ax=axes[0], shrink=0.85, pad=0.02).set_label(label)
    alt = _form(f"Heat map of {label}", [f"{_listed(first.index)} by {_listed(first.columns)}"], list(panels))
    return style.finish(figure, title, caption, alt=alt)


@style.house()
def bars(
    table: pd.DataFrame,
    *,
    rows: str,
    series: str,
    title: str,
    caption: str,
    xlabel: str,
    panels: str = "",
    stacked: bool = False,
    numbers: str = "{:.2f}",
    width: float = 7.4,
    thickness: float = 0.36,
) -> Figure:
    """Horizontal bars, stacked or beside one another, with a colour and a hatch per series and the number on each.

    Args:
        rows, series, panels: columns in the table's order; panels stand below one another, each with a legend of its
            own. Of stacked bars with low and high, a line at the end of a segment is the interval of its length.
        numbers: a format for them; none when empty. width, thickness: of the figure and of a row, inches.
    """
    data = _ordered(table, rows, series, panels)
    names = list(data[panels].cat.categories) if panels else [""]
    parts = [data[data[panels] == name] if panels else data for name in names]
    lists = [[list(dict.fromkeys(part[column])) for column in (rows, series)] for part in parts]
    slots = [len(across) * (1 if stacked else 0.62 * len(kinds)) for across, kinds in lists]
    figure, axes = style.canvas(
        width, 1.2 + thickness * sum(slots) + 0.45 * len(names), len(names), 1, sharex=bool(panels), height_ratios=slots
    )
    handles: list[Patch] = []
    for axis, part, (across, kinds), name in zip(axes[:, 0], parts, lists, names, strict=True):
        looks = style.looks(kinds)
        plot = so.Plot(part, x="value", y=rows, color=series).scale(y=so.Nominal(order=across))
        mark = so.Bar(alpha=1, edgecolor="white", edgewidth=0.6, width=0.72 if stacked else 0.84)
        plot = plot.add(mark, so.Stack() if stacked else so.Dodge(), orient="y", legend=False)
        if stacked and {"low", "high"} <= set(part):
            part = part.sort_values(series)
            before = part.groupby(rows, observed=True)["value"].cumsum() - part["value"]
            inner = part.assign(low=before + part["low"], high=before + part["high"])[part[series] != kinds[-1]]
            line = so.Range(color=INK, linewidth=1.4)
            plot = plot.add(
                line, data=inner, xmin="low", xmax="high", color=None, group=series, orient="y", legend=False
            )
        draw(plot, looks, axis)
        largest = max((bar.get_x() + bar.get_width() for bar in axis.patches), default=1.0)
        found = {to_rgba(look.colour): HATCHES[k % len(HATCHES)] for k, look in enumerate(looks.values())}
        for bar in axis.patches:
            bar.set_hatch(found[bar.get_facecolor()])
            middle = bar.get_y() + bar.get_height() * (0.32 if stacked else 0.5)
            length, text = bar.get_width(), numbers.format(bar.get_width())
            if not stacked:
                axis.text(length + 0.01 * largest, middle, text, va="center", fontsize=8)
            elif length > 0.07 * largest:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9} if text else None
                axis.text(bar.get_x() + length / 2, middle, text, ha="center", va="center", fontsize=7.5, bbox=box)
        handles = [
            Patch(facecolor=look.colour, hatch=HATCHES[k % len(HATCHES)], edgecolor="white", label=kind)
            for k, (kind, look) in enumerate(looks.items())
        ]
        axis.set_yticks(range(len(across)), [style.wrapped(row, 40) for row in across])
        axis.set_ylim(len(across) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.set(xlabel="", ylabel="", xlim=(0, largest * (1 if stacked else 1.1)))
        if panels:
            axis.set_title(name, loc="left")
            axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handleheight=1.1)
    axes[-1, 0].set_xlabel(xlabel)
    kind = "Stacked bars" if stacked else "Bars"
    alt = _form(f"{kind} of {xlabel}", lists[0][0], data[series].cat.categories)
    return style.finish(figure, title, caption, legend=() if panels or len(handles) < 2 else handles, alt=alt)
