"""How figures look and are shown: one look per method, title and caption, files, outputs with an alternative text."""

import base64
import html
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image, ImageChops

from prefmoe.system.files import whole_file

# seaborn 0.13.2 says copy=False to pandas, which pandas 3 deprecates; nothing a reader of a notebook could change.
warnings.filterwarnings("ignore", message="The copy keyword is deprecated", module="seaborn")

INK, MUTED, GRID = "#1A1A1A", "#666666", "#DDDDDD"
DPI = 100
"""Of a figure on the screen; files and outputs have twice as many dots."""

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8, "axes.grid": False, "axes.axisbelow": True, "axes.facecolor": "white",
    "xtick.labelsize": 8, "ytick.labelsize": 8.5, "legend.fontsize": 8, "legend.frameon": False,
    "lines.linewidth": 1.4, "figure.dpi": DPI, "savefig.dpi": 2 * DPI, "figure.facecolor": "white",
}  # fmt: skip


class Look(NamedTuple):
    """A colour (contrast with white at least 3:1) and a marker that tells it apart in grey."""

    colour: str
    marker: str


METHODS = {
    "Non-tuned with profile": Look("#4D4D4D", "o"),
    "Non-tuned with profile picture": Look("#6B6B6B", "p"),
    "Non-tuned with the statement asked about": Look("#5C5C5C", "X"),
    "Non-tuned without profile": Look("#8A8A8A", "8"),
    "PrefMoE before training": Look("#D2691E", "d"),
    "Full fine-tuning with profile": Look("#5E4100", "d"),
    "Full fine-tuning": Look("#A87400", "s"),
    "LoRA with profile": Look("#002F4A", "v"),
    "LoRA with the statement asked about": Look("#4A7FA7", "H"),
    "LoRA": Look("#0072B2", "^"),
    "LoRA matched in parameters": Look("#2E8BC9", "v"),
    "LoRA matched in training time": Look("#00466E", ">"),
    "Soft prompt": Look("#007A5A", "P"),
    "Yo'LLaVA": Look("#2A9C74", "X"),
    "LOVA3": Look("#B0568C", "<"),
    "TG-LLaVA": Look("#7B3294", "h"),
    "LoRA that reads frozen anchors": Look("#D2466E", "X"),
    "Free user embedding": Look("#3F6212", "P"),
    "User embedding only": Look("#6B7F0E", "*"),
    "+ profile and preference factors": Look("#867312", "H"),
    "+ imbalance-aware term": Look("#97651A", "p"),
    "+ counterfactual users": Look("#A5571C", "8"),
    "+ decorrelation": Look("#AE481A", "s"),
    "PrefMoE with published routers": Look("#7F2704", ">"),
    "PrefMoE": Look("#A63603", "D"),
    "Retrieved statements": Look("#5B2A86", "*"),
    "One LoRA per user": Look("#3949AB", ">"),
    "Embedder of answers": Look("#8E1B4F", "<"),
    "Embedding to prefix": Look("#6A6A00", "p"),
    "Embedder of answers with LoRA": Look("#8E1B4F", ">"),
    "Embedding to prefix with LoRA": Look("#6A6A00", "h"),
    "Graph and experts": Look("#00695C", "s"),
    "Joint tokens": Look("#B23A48", "P"),
    "Popularity": Look(INK, "s"),
    "ALS": Look("#946200", "v"),
    "BPR": Look("#007C89", "^"),
    "Chance": Look(MUTED, "o"),
    "Popular choice": Look(MUTED, "s"),
    "Profile reader": Look(MUTED, "^"),
    "Group's likes": Look(MUTED, "D"),
}
"""Every method's look, in all notebooks, under the label that the editions give it. Two forms of one method, before a
frozen model and before a LoRA, share a colour and differ in the marker; so do references, which are lines elsewhere."""

RATERS = {
    "Aesthetic scorer": Look("#7A7A7A", "o"),
    "Agreement with the prompt": Look("#5C5C5C", "X"),
    "Population scorer": Look("#4D4D4D", "p"),
    "Neighbours in the history": Look("#B0568C", "<"),
    "Personal scorer": Look("#7B3294", "h"),
    "Taste factors": Look("#D2466E", "P"),
    "Low rank": Look("#B5179E", "H"),
    "Low rank, learned": Look("#8F1D4F", "*"),
    "Untrained backbone": Look("#8A8A8A", "8"),
    "Untrained backbone, no prompts": Look("#6E6E6E", "d"),
    "Untuned backbone": Look("#757575", "v"),
    "Preference VQA": Look("#3F6212", "h"),
    "ViPer-like": Look("#2A9C74", "X"),
    "Choices alone": Look("#0072B2", "^"),
    "+ prompts": Look("#2E8BC9", "v"),
    "+ losses of pairs": Look("#00466E", ">"),
    "Prototypes": Look("#A63603", "D"),
    "Prototypes (5)": Look("#D2691E", "d"),
    "Prototypes (20)": Look("#7A3E00", "s"),
    "Chance": Look(MUTED, "o"),
    "True agreement with the prompt": Look(MUTED, "P"),
    "Population's choice": Look(MUTED, "s"),
    "Ideal reader of the history": Look(INK, "^"),
    "Group's taste": Look(MUTED, "D"),
    "Best possible": Look(MUTED, "*"),
}
"""The same of the methods and references of editions about choices, which never stand beside the others."""

DRAWERS = {
    "Drawings at random": Look(MUTED, "o"),
    "Drawings of the favourites": Look(MUTED, "*"),
    "No user": Look("#4D4D4D", "p"),
    "Favourites in the prompt": Look(INK, "^"),
    "Three favourites in the prompt": Look(INK, "v"),
    "Words of the history in the prompt": Look("#7B3294", "h"),
    "Words read off the history": Look("#9C4FB5", "H"),
    "e_img (IP-Adapter)": Look("#2A9C74", "X"),
    "e_sem, MMD": Look("#0072B2", "^"),
    "e_core": Look("#2E8BC9", "v"),
    "All, not aligned": Look("#D2691E", "d"),
    "All, MSE": Look("#7A3E00", "s"),
    "All, cosine": Look("#B26A00", "P"),
    "All, MMD": Look("#A63603", "D"),
    "Another user's history": Look("#D2466E", "8"),
    "Best of 4 by like": Look("#B0568C", "<"),
    "Best of 4 by dislike": Look("#6B7F0E", ">"),
    "Best of 4 by displeasing": Look("#8A6D00", "d"),
    "Noise led by like": Look("#3F6212", "H"),
    "Noise led by dislike": Look("#5C6B5A", "P"),
}
"""The same of the conditions of editions that draw for users."""

STEPS = {
    "E": "User embedding only", "EP": "+ profile and preference factors", "EPI": "+ imbalance-aware term",
    "EPIC": "+ counterfactual users", "EPICD": "+ decorrelation", "EPICDM": "PrefMoE",
}  # fmt: skip
"""The methods of Table 2, by the components that they have."""

KINDS = {
    "NT": Look("#7A7A7A", "o"),
    "FFT": METHODS["Full fine-tuning"],
    "PEFT": METHODS["LoRA"],
    "Reference": Look(MUTED, "h"),
}
"""Looks of methods that are not in `METHODS`, by the tables' column type."""

SERIES = tuple(
    Look(colour, marker)
    for colour, marker in zip(
        ("#0072B2", "#B26A00", "#00805F", "#A8508A", "#3D8DBD", "#7A3E00", "#7A7A7A", "#000000"),
        "os^DvPX*",
        strict=True,
    )
)
"""Looks of whatever is no method: backbones, facets, splits, measures; after Okabe and Ito, darkened for contrast."""

LINES = ("-", "--", "-.", ":", (0, (8, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 3)))
HATCHES = ("", "////", "....", "xxxx", "----")
HEAT = "cividis"
"""Colour map of heat maps: monotone in grey and safe for colour-blind readers."""

METRIC_LABELS = {
    "overall": "Overall accuracy",
    "preference": "Preference accuracy",
    "profile": "Profile accuracy\n(recognition)",
    "collapse": "Collapse\n(lower is better)",
    "recall": "Recall",
    "sensitivity": "Sensitivity\n(recall − collapse)",
    "auc_same": "AUC, same preference\n(population = 0.5)",
    "auc_told": "AUC, told in the profile\n(population = 0.5)",
    "auc_untold": "AUC, told to nobody\n(profile reader = 0.5)",
    "auc_untold_fresh": "AUC, told to nobody, never\nasked in training (0.5)",
}
METRIC_NAMES = {
    "overall": "overall accuracy",
    "preference": "preference accuracy",
    "profile": "recognition",
    "auc_same": "AUC",
    "auc_told": "AUC of told likes",
    "auc_untold": "AUC of untold likes",
    "auc_untold_fresh": "AUC of likes never asked about",
}
"""What titles and captions call a metric, where that is not its own name."""
INTERVAL = "Bars: 95 % bootstrap over users, and over seeds where there are several."
BANDS = "Bands: 95 % bootstrap over users, and over seeds where there are several."


def house():
    """The house style, for a `with` block or as a decorator; nothing of it stays afterwards."""
    return mpl.rc_context(STYLE)


def look(method: str, kind: str = "") -> Look | None:
    """A method's look: its own, PrefMoE's on any published backbone, else its kind's; None for what is no method."""
    if method.startswith("PrefMoE ("):
        method = "PrefMoE"
    return METHODS.get(method) or RATERS.get(method) or DRAWERS.get(method, KINDS.get(kind))


def looks(names: Iterable[str], kinds: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Looks of the names of one legend: methods have theirs, all others take those of `SERIES` in order, and once these
    are used up their colours with the marker of the next."""
    found, others = {}, 0
    for name in names:
        own, (again, place) = look(name, (kinds or {}).get(name, "")), divmod(others, len(SERIES))
        found[name] = own or Look(SERIES[place].colour, SERIES[(place + again) % len(SERIES)].marker)
        others += own is None or own in SERIES
    return found


PLAIN = Look(INK, "o")


def handle(label: str, look: Look = PLAIN, *, filled: bool = True, line: str = "none") -> Line2D:
    """An entry of a legend."""
    face = look.colour if filled else "white"
    return Line2D([], [], color=look.colour, marker=look.marker, markerfacecolor=face, linestyle=line, label=label)


def dash(place: int) -> str | tuple:
    """The line of a legend's so many-th entry; as many places apart as there are lines, it is another one."""
    return LINES[(place + 2 * (place // len(LINES))) % len(LINES)]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, NDArray]:
    """A figure of so many inches and its (rows, columns) axes; pyplot does not know it."""
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finish(
    figure: Figure, title: str, caption: str, *, legend: Sequence = (), legend_columns: int = 0, alt: str = ""
) -> Figure:
    """Adds the message above the axes, and a legend and a wrapped caption below them.

    The figure's height has room for a line of each; for every further line it grows.

    Args:
        legend: labelled handles. legend_columns: how many stand side by side; as many as fit when 0.
        alt: what a reader who does not see the figure needs beside title and caption: which form, which axes.
    """
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, max(20, int(width * 16.5)), break_on_hyphens=False)
    heading = textwrap.wrap(title, max(20, int(width * 11.3)), break_on_hyphens=False)
    columns, below = len(legend), 0
    dashed = any(getattr(entry, "get_linestyle", str)() in LINES[1:] for entry in legend)
    if legend:
        widest = 0.55 + 0.2 * dashed + 0.068 * max(len(entry.get_label()) for entry in legend)
        columns = legend_columns or max(1, min(columns, int(width / widest)))
        below = -(-len(legend) // columns)
    height += 0.19 * (max(1, len(heading)) - 1) + 0.14 * (max(1, len(lines)) - 1) + 0.19 * (max(1, below) - 1)
    figure.set_size_inches(width, height)
    bottom, inset = 0.14 * len(lines) + 0.08, 0.08 / width
    if legend:
        anchor = (inset, bottom / height)
        place = {"loc": "lower left", "bbox_to_anchor": anchor, "ncols": columns, "borderpad": 0.3}
        if dashed:
            place |= {"handlelength": 5.5, "markerscale": 0.75}  # so that the dashes can be seen beside the marker
        figure.legend(handles=list(legend), **place)
        bottom += 0.19 * below + 0.1
    top = 0.19 * len(heading) + 0.06
    figure.get_layout_engine().set(rect=(0, bottom / height, 1, 1 - (bottom + top) / height))
    heading = "\n".join(heading)
    figure.text(inset, 1 - 0.05 / height, heading, fontsize=10.5, weight="bold", color=INK, va="top", ha="left")
    figure.text(inset, 0.06 / height, "\n".join(lines), fontsize=8, color=MUTED, va="bottom", ha="left")
    said = title if title.endswith((".", "?", "!")) else f"{title}."
    figure.set_label(" ".join(part for part in (said, alt, caption) if part))
    return figure


def notice(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    with house():
        figure, axes = canvas(6.0, 0.5 + 0.2 * len(textwrap.wrap(text, 80)))
        axes[0, 0].set_axis_off()
        figure.text(0.02, 0.5, textwrap.fill(text, 80), color=MUTED, va="center")
    figure.set_label(text)
    return figure


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many characters; its own line breaks stay."""
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def light_grid(axis: Axes, which: str = "x") -> None:
    """Thin grey lines behind what is drawn."""
    axis.grid(axis=which, color=GRID, linewidth=0.6)


def named(metric: str) -> str:
    """A metric in a sentence."""
    return METRIC_NAMES.get(metric, metric)


def minus(names: Iterable[str], what: str) -> dict[str, str]:
    """Labels of panels with differences in these metrics: without the value that a guess has in the metric itself."""
    plain = {name: re.sub(r"\s\([^)]*0\.5\)", "", METRIC_LABELS.get(name, name)) for name in names}
    return {name: f"{label}\n{what}".strip() for name, label in plain.items()}


def sizes(table: pd.DataFrame, names: Sequence[str]) -> str:
    """ "n = 680 preference, 406 AUC questions" from the columns metric and n; a range where rows differ."""
    parts = []
    for metric in names:
        n = table.loc[table["metric"] == metric, "n"]
        if len(n) and metric != "sensitivity":  # a difference of two shares has no questions of its own
            low, high = int(n.min()), int(n.max())
            said = named(metric) if metric.startswith("auc") else metric
            said = f"({said})" if " " in said else said
            parts.append(f"{low if low == high else f'{low}–{high}'} {said}")
    return "n = " + ", ".join(parts) + " questions"


def _drawn(figure: Figure) -> Image.Image:
    """The figure with twice the dots of the screen."""
    drawn = io.BytesIO()
    with house():
        figure.savefig(drawn, format="png", dpi=2 * DPI)
    return Image.open(drawn, formats=["PNG"]).convert("RGB")


def png(figure: Figure) -> bytes:
    """The figure with twice the dots of the screen; without dates and versions, so the same from run to run. Without
    pictures in it, 256 colours are more than enough and make a third of the bytes."""
    return _png(_drawn(figure), figure)


def _png(image: Image.Image, figure: Figure) -> bytes:
    packed = io.BytesIO()
    if not any(axis.images for axis in figure.axes):
        image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(packed, "PNG", optimize=True, dpi=(2 * DPI, 2 * DPI))
    return packed.getvalue()


def webp(image: Image.Image, colours: int = 64, error: int = 16) -> bytes:
    """The picture as WebP: in few colours if none of its dots then changes visibly, else dot by dot as it is.
    ``error``: the largest change of red, green or blue, of 255, that is not visible."""
    packed = io.BytesIO()
    fewer = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
    if max(highest for _, highest in ImageChops.difference(image, fewer).getextrema()) <= error:
        image = fewer
    image.save(packed, "WEBP", lossless=True, quality=60)
    return packed.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Writes `png` under a temporary name that is renamed when done. Raises ValueError for a name that does not end in
    .png."""
    return _write(png(figure), path)


def _write(content: bytes, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: figures are saved as PNG, expected a name that ends in .png")
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path


def show(figure: Figure, path: str | Path | None = None, *, alt: str = "") -> None:
    """Shows a figure as a notebook's output, with an alternative text, and saves it as PNG if a path is given.

    JupyterLab gives pictures of its own making no alternative text; an <img> keeps it there, in papermill's files and
    in HTML made from them. The picture in it is a WebP, of six tenths of the PNG's bytes.

    Raises:
        ValueError: without any alternative text.

    ``alt``: else what `finish` was told, with title and caption.
    """
    from IPython.display import display

    alt = alt or figure.get_label()
    if not alt:
        raise ValueError("a figure is shown with an alternative text: finish() it, or say alt=...")
    picture = _drawn(figure)
    if path is not None:
        _write(_png(picture, figure), path)
    code, width = base64.b64encode(webp(picture)).decode("ascii"), round(figure.get_size_inches()[0] * DPI)
    image = f'<img src="data:image/webp;base64,{code}" width="{width}" alt="{html.escape(alt)}">'
    display({"text/html": image, "text/plain": alt}, raw=True)
