"""The form of figures of pictures: a grid of pictures and texts."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from prefmoe.data.pictures import as_rgb, open_picture
from prefmoe.figures import style
from prefmoe.figures.style import GRID

Picture = str | Path | Image.Image

FEW, MOST = 20, 120
"""Texts of a grid that its alternative text repeats, and characters of each."""


@style.house()
def pictures(
    rows: Sequence[Sequence[Picture | tuple[Picture, str] | str | None]],
    *,
    title: str,
    caption: str,
    widths: Sequence[float] = (),
    text_width: int = 27,
) -> Figure:
    """Pictures and texts in a grid.

    Args:
        rows: of cells, each a picture or its path, a pair of a picture and the text below it, a text alone (its first
            line bold), or None. A text alone is a str, so paths are Path objects.
        widths: of the columns, inches. text_width: of a text below a picture, characters.
    """
    across = max(1, max((len(row) for row in rows), default=1))
    widths = [*widths, *[1.95] * across][:across]
    tall = [
        max((_height(cell, width, text_width) for cell, width in zip(row, widths, strict=False)), default=1)
        for row in rows
    ]
    figure, axes = style.canvas(
        sum(widths) + 0.2, sum(tall) + 0.6, max(1, len(rows)), across, width_ratios=widths, height_ratios=tall or [1]
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows, strict=False):
        for axis, cell, width in zip(line, row, widths, strict=False):
            if isinstance(cell, str):
                first, _, rest = cell.partition("\n")
                axis.text(0, 1, first, weight="bold", va="top", transform=axis.transAxes)
                axis.annotate(
                    style.wrapped(rest, int(15.5 * width)), (0, 1), (0, -14), xycoords="axes fraction",
                    textcoords="offset points", fontsize=8, va="top",
                )  # fmt: skip
            elif cell is not None:
                picture, text = cell if isinstance(cell, tuple) else (cell, "")
                axis.imshow(np.asarray(as_rgb(picture) if isinstance(picture, Image.Image) else open_picture(picture)))
                axis.set_axis_on()
                axis.set_anchor("N")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, color=GRID)
                axis.set_xlabel(style.wrapped(text, text_width), fontsize=8, loc="left")
    shown = [cell[1] if isinstance(cell, tuple) else cell for row in rows for cell in row]
    texts = [textwrap.shorten(text, MOST, placeholder=" …") for text in shown if isinstance(text, str)]
    more = f" and {len(texts) - FEW} texts more" * (len(texts) > FEW)
    return style.finish(figure, title, caption, alt=f"Pictures: {'; '.join(texts[:FEW])}{more}".rstrip(": ") + ".")


def _height(cell: object, width: float, text_width: int) -> float:
    """Inches that a cell of `pictures` needs."""
    if isinstance(cell, str):
        return max(1.0, 0.15 + 0.145 * (style.wrapped(cell, int(15.5 * width)).count("\n") + 2))
    text = style.wrapped(cell[1], text_width).count("\n") + 1 if isinstance(cell, tuple) and cell[1] else 0
    return width - 0.02 + 0.145 * text
