"""Runs single code cells of a notebook with tables of a test's own, and keeps the figures that they show."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from prefmoe import metrics
from prefmoe.figures import style

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


class Cells(dict):
    """The names that cells assigned, the figures that they showed, and what they displayed besides."""

    figures: list[Figure]
    displayed: list[Any]


def cells(notebook: str, *ids: str, folder: Path | None = None, **given: Any) -> Cells:
    """Executes the code cells of these ids, in this order, after the imports of its cell "imports" and the given names.

    Figures are saved only with a folder.

    Args:
        notebook: the beginning of its file name, "07".
    """
    (path,) = NOTEBOOKS.glob(f"{notebook}_*.ipynb")
    sources = {c["id"]: "".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"]}
    found = Cells()
    imports = [node for node in ast.parse(sources["imports"]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), f"{path.name}[imports]", "exec"), found)
    found |= {"folder": folder or Path("nowhere"), **given}
    found.figures, found.displayed = [], []
    found["display"] = found.displayed.append

    def show(figure: Figure, path: str | Path | None = None, *, alt: str = "") -> None:
        assert alt or figure.get_label(), "a figure without an alternative text"
        found.figures.append(figure)
        if path is not None and folder is not None:
            style.save(figure, path)

    shown, style.show = style.show, show
    try:
        for name in ids:
            exec(compile(sources[name], f"{path.name}[{name}]", "exec"), found)
    finally:
        style.show = shown
    return found


SHOWN = {
    "Non-tuned": "profile text", "LoRA": "name", "PrefMoE": "anchors of profile text and picture", "Chance": "nobody",
}  # fmt: skip
TRAINED = ["LoRA", "PrefMoE"]


def table1(seeds: int = 2) -> pd.DataFrame:
    """A table of three methods on one backbone and a reference, every number of it told by its place."""
    rows = []
    methods = (("Non-tuned", "NT", "b"), ("LoRA", "PEFT", "b"), ("PrefMoE", "PEFT", "b"))
    for k, (method, kind, backbone) in enumerate((*methods, ("Chance", "Reference", "none"))):
        for turns in (0, 10):
            for m, metric in enumerate(metrics.METRICS):
                value = 0.2 + 0.1 * k + 0.03 * m - turns / 200
                bounds = {"low": value - 0.04, "high": value + 0.05}
                row = {"method": method, "type": kind, "backbone": backbone, "turns": turns, "metric": metric}
                row |= {"value": value, **bounds, "n": 100 + m, "seeds": seeds, "information": SHOWN[method]}
                rows.append(row)
    return pd.DataFrame(rows)


def text(figure: Figure) -> str:
    """Everything written in a figure, titles, captions, legends and ticks included."""
    words = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text") and a.get_visible())]
    return "\n".join(words)


def one_line(figure: Figure) -> str:
    """The same without line breaks."""
    return " ".join(text(figure).split())


def values(axis) -> list[float]:
    """Where an axis' marks stand, sorted; filled or open, seed ticks included."""
    dots = [c.get_offsets()[:, 0] for c in axis.collections if isinstance(c, PathCollection)]
    return sorted(np.concatenate([*dots, []]))


def ends(axis) -> list[float]:
    """Both ends of an axis' horizontal intervals, sorted."""
    lines = [c for c in axis.collections if isinstance(c, LineCollection)]
    return sorted(float(x) for c in lines for s in c.get_segments() for x in s[:, 0])


def filled(axis) -> list[float]:
    dots = [c for c in axis.collections if isinstance(c, PathCollection)]
    pairs = [(x, face) for c in dots for (x, _), face in zip(c.get_offsets(), c.get_facecolor(), strict=True)]
    return sorted(float(x) for x, face in pairs if to_hex(face) != "#ffffff")


def upright(axis) -> list[float]:
    return [line.get_xdata()[0] for line in axis.lines if line.get_xdata()[0] == line.get_xdata()[-1]]
