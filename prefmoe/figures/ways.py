"""Where a user enters: prompts as strips of tokens, and the model that reads them."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from prefmoe.figures import style

COLOURS = {"words": "#CFE3F3", "soft": "#F6C89F", "picture": "#E4E4E4", "question": "#F4F4F4", "weights": "#CDE9D6"}

LEGEND = {"words": "words", "soft": "vectors in the place of words", "weights": "adapted weights",
          "picture": "the same for all"}  # fmt: skip


class Way(NamedTuple):
    """One way of knowing a user: its name, the strip before the question (kind, text, width), what of the model is
    adapted, and what the user is made of."""

    name: str
    strip: Sequence[tuple[str, str, float]]
    model: str
    source: str


WAYS = {
    "retrieved": Way("Retrieved statements", [("words", "the two statements\nfound", 3.0)], "LoRA, everybody's",
                     "an index over profiles picks by the question's picture"),
    "user_lora": Way("One LoRA per user", [], "LoRA, everybody's,\nand the user's own", "the user's training answers"),
    "history": Way("Embedder of answers", [("soft", "", 0.5), ("soft", "", 0.5)], "frozen",
                   "attention over the user's answered questions, led by the question"),
    "embedding_prefix": Way("Embedding to prefix", [("soft", "", 0.5)], "frozen",
                            "one fixed vector of the profile, through a small network"),
    "graph_experts": Way("Graph and experts", [], "eight LoRAs, mixed\nby the user's gate",
                         "a graph of users and kinds of things they like or not"),
    "joint_tokens": Way("Joint tokens", [("soft", "user", 1.6), ("soft", "somebody else", 1.6)], "frozen",
                        "tokens that begin as what pictures show, learned side by side"),
}  # fmt: skip
"""By kind of method."""


@style.house()
def draw(kinds: Sequence[str], title: str, caption: str) -> Figure:
    """A row for each kind of method: where it comes from, the prompt, and the model."""
    figure, axes = style.canvas(9.4, 0.8 + 0.82 * len(kinds), len(kinds), 1)
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        way = WAYS[kind]
        axis.set(xlim=(0, 16), ylim=(0, 1))
        axis.axis("off")
        axis.text(0, 0.72, way.name, fontweight="bold", fontsize=9, va="center")
        axis.text(0, 0.3, style.wrapped(way.source, 38), fontsize=7.5, va="center", color=style.MUTED)
        left = 5.0
        for part, text, width in [*way.strip, ("picture", "picture", 1.1), ("question", "question", 1.3)]:
            _box(axis, left, width, text, COLOURS[part])
            left += width + 0.12
        axis.annotate("", (12.1, 0.5), (left + 0.1, 0.5), arrowprops={"arrowstyle": "->", "color": style.MUTED})
        colour = "#FFFFFF" if way.model == "frozen" else COLOURS["weights"]
        _box(axis, 12.3, 3.6, f"language model\n{way.model}", colour)
    legend = [Patch(facecolor=COLOURS[part], edgecolor="#777777", label=text) for part, text in LEGEND.items()]
    return style.finish(figure, title=title, caption=caption, legend=legend)


def _box(axis, left: float, width: float, text: str, colour: str) -> None:
    look = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": colour, "edgecolor": "#777777", "linewidth": 0.7}
    axis.add_patch(FancyBboxPatch((left, 0.14), width, 0.72, **look))
    axis.text(left + width / 2, 0.5, text, ha="center", va="center", fontsize=7.2, linespacing=1.25)
