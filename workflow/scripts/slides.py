"""The slides for 90 minutes: what they say in numbers and show, from what is committed, and how they are built.

`python workflow/scripts/publish.py pages` fills what stands between ``<!-- said: NAME -->`` and ``<!-- end -->`` in
site/slides/index.md. As at the end of the notebooks, a sentence that concludes something says under which condition.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from committed import Tables, around, dot, holds
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from prefmoe.analysis.answers import NO_BACKBONE, TableError
from prefmoe.analysis.text import told_apart
from prefmoe.config import ROOT
from prefmoe.course import one_picture
from prefmoe.course.unit3 import BY_HAND
from prefmoe.data.benchmark import FACETS
from prefmoe.figures import forms, style
from prefmoe.system.files import whole_file

SOURCE = Path("site/slides")
PAGE = SOURCE / "index.md"
MADE = "made"
"""The folder of pictures that are drawn while the slides are built."""

ROWS = ("LoRA", "Popular choice", "LoRA that reads frozen anchors", "PrefMoE", "Non-tuned with profile",
        "LoRA with profile")  # fmt: skip
"""Of the main table, those that the slides compare: from who is shown a name to who is shown the text."""

KEPT = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "dist/theme/white.css",
        "dist/theme/fonts/source-sans-pro", "plugin/notes/notes.js", "LICENSE")  # fmt: skip
"""What slides need of reveal.js; other themes would ask others for their fonts."""

_MARKED = re.compile(r"(<!-- said: ([\w() -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


# What is said


def _row(t: Tables, method: str, metric: str) -> pd.Series:
    return t.main(method, metric, NO_BACKBONE if method == "Popular choice" else "llava-mini")


def _answers(t: Tables) -> str:
    """The probability of yes about two users, a row per method."""
    both = one_picture.both()
    first, second = both.columns
    rows = [f"| {label} | {dot(row[first])} | {dot(row[second])} |" for label, row in both.iterrows()]
    return "\n".join([f'| P("yes") | {first} | {second} |', "|---|--:|--:|", *rows])


def _collapse(t: Tables) -> str:
    shown = one_picture.chosen()
    said = (shown.table["LoRA"] > 0.5).groupby(shown.truly).sum()
    of = shown.truly.value_counts()
    holds(said[False] > of[False] / 2, "LoRA says yes to most of those who do not like the thing")
    held, users = shown.holders
    return (
        f"{held} of {users} users like {shown.item}. LoRA, which is shown names alone, says yes to {said[True]} of "
        f"{of[True]} who do, and to {said[False]} of {of[False]} who do not."
    )


def _measures(t: Tables) -> str:
    lines = ["| | is shown | collapse | recall | AUC |", "|---|---|--:|--:|--:|"]
    for method in ROWS:
        values = [_row(t, method, metric) for metric in ("collapse", "recall", "auc_same")]
        shown = [method, values[0]["information"], *(dot(row["value"]) for row in values)]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _popular(t: Tables) -> str:
    popular, full = (_row(t, method, "sensitivity") for method in ("Popular choice", "PrefMoE"))
    accuracy, other = (_row(t, method, "preference")["value"] for method in ("Popular choice", "PrefMoE"))
    auc = _row(t, "Popular choice", "auc_same")["value"]
    holds(auc == 0.5 and popular["low"] > 0, "the popular choice is sensitive and tells nobody apart")
    holds(not told_apart(t.paired("Popular choice", "sensitivity")), "PrefMoE's sensitivity is not told apart")
    near = not told_apart(t.paired("Popular choice", "preference"))
    holds(near, "the popular choice's preference accuracy is not told apart from PrefMoE's")
    return "\n".join(
        [
            f"- Its recall minus its collapse is {around(popular)}: far from zero. PrefMoE's, {around(full)}, is not "
            "told apart from it.",
            f"- Its accuracy in questions about preferences is {dot(accuracy, 3)}, PrefMoE's {dot(other, 3)}: not told "
            "apart.",
            f"- Its AUC is {dot(auc)}: of two users who are asked about one thing it says the same.",
            "",
            "What many like is asked about more often of people who like it. Whoever knows what is popular wins there, "
            "and knows nobody.",
        ]
    )


def _gates(t: Tables) -> str:
    gates = t.rows("mini/routing_gates", router="preference")
    gates = gates[gates["group"].str.startswith("preference")]
    widest = gates.groupby("expert")["value"].agg(np.ptp).max()
    holds(widest < 0.02, "no expert's gate depends on the facet that is asked about")
    return (
        "A router weighs five experts for every question. From facet to facet no mean gate changes by more than "
        f"{dot(widest, 3)}: mixed, and not routed."
    )


def _told(t: Tables) -> str:
    told, reader = (t.main(method, "auc_told") for method in ("PrefMoE", "LoRA with profile"))
    where = {"method": "PrefMoE", "backbone": "llava-mini", "metric": "auc_told"}
    other, zero = (t.row("mini/controls", control=control, **where) for control in ("other_user", "zero_prefix"))
    holds(told["low"] > 0.5, "PrefMoE reads the profile")
    holds(other["low"] < 0.5 < other["high"], "somebody else's tokens take it away")
    holds(zero["low"] < 0.5 < zero["high"] < told["low"], "zeros take it away, as far as the interval tells")
    holds(reader["value"] > told["value"], "the reader of the text is ahead")
    before, plain = (t.main(method, "auc_told") for method in ("PrefMoE before training", "Non-tuned with profile"))
    untuned = t.paired("Non-tuned with profile", "auc_told")
    holds(told_apart(untuned) and untuned["high"] < 0, "the reader that is not tuned is ahead")
    holds(0.5 < before["low"] and before["high"] > told["value"], "most of it is there before training")
    holds(not told_apart(t.paired("LoRA with profile", "auc_told")), "the reader is not told apart from PrefMoE")
    return "\n".join(
        [
            f"- PrefMoE's AUC about what profiles tell: {around(told)}. **It holds.**",
            f"- With somebody else's tokens {dot(other['value'])}. With zeros {around(zero)}: the routers still know "
            "who it is.",
            f"- Who reads the text itself is ahead: LoRA with profile {dot(reader['value'])}, not told apart; not "
            f"tuned {dot(plain['value'])}, told apart.",
            f"- Most of it is reading: before any training PrefMoE has {dot(before['value'])}.",
        ]
    )


def _fresh(t: Tables) -> str:
    fresh, other = (t.main("PrefMoE", "auc_untold_fresh", name) for name in ("llava-mini", "qwen2.5-vl-mini"))
    frozen = t.paired("LoRA that reads frozen anchors", "auc_untold_fresh")
    holds(fresh["low"] > 0.5 > other["low"], "one interval includes one half, the other does not")
    holds(not told_apart(frozen), "frozen anchors are not told apart from PrefMoE")
    holds(all(t.refuted("b", b) for b in ("llava-mini", "qwen2.5-vl-mini")), "claim (b) is refuted on both backbones")
    return "\n".join(
        [
            f"- PrefMoE's AUC where nothing was told or asked: {around(fresh)} on the LLaVA miniature, {around(other)} "
            "on the other, which includes .5.",
            f"- On the first, LoRA that reads anchors in which nothing was learned is not told apart from it: a "
            f"difference of {around(frozen, 2, 'difference')}. **Refuted by the rule that was set, on both.**",
        ]
    )


def _sizes(t: Tables) -> str:
    rows = [_row(t, method, "auc_same") for method in ROWS]
    full = t.main("PrefMoE", "auc_same")
    holds({int(row["seeds"]) for row in rows} <= {1, int(full["seeds"])}, "all trained rows have as many seeds")
    return (
        f"Intervals are over {one_picture.chosen().holders[1]} users, {int(full['n'])} of whose questions stand in "
        f"pairs, and over {int(full['seeds'])} seeds of every trained row."
    )


def _in_words(name: str, t: Tables) -> str:
    """A picture whose finding its alternative text tells, too."""
    return f"![{PICTURES[name](t).get_label()}]({MADE}/{name}.png)"


SAID: Mapping[str, Callable[[Tables], str]] = {
    "answers": _answers, "collapse": _collapse, "measures": _measures, "popular": _popular, "gates": _gates,
    "claim a": _told, "claim b": _fresh, "sizes": _sizes,
    **{f"picture {name}": partial(_in_words, name) for name in ("everybody", "apart", "gates")},
}  # fmt: skip


def with_sentences(page: str, tables: Tables | None = None) -> str:
    """A page of slides with what `SAID` says between its marks. Raises TableError for a name that is none, a mark that
    is not closed, and a sentence that no longer holds."""
    tables = tables or Tables()
    if len(_MARKED.findall(page)) != page.count("<!-- said: "):
        raise TableError(f"{PAGE}: expected one <!-- end --> after every <!-- said: NAME -->")

    def said(part: re.Match) -> str:
        if part[2] not in SAID:
            raise TableError(f"{PAGE}: nothing is said about {part[2]!r}; expected one of {', '.join(SAID)}")
        return f"{part[1]}\n{SAID[part[2]](tables)}\n\n{part[4]}"

    return _MARKED.sub(said, page)


def update(clone: Path = ROOT) -> list[Path]:
    """Brings what the slides say up to date with the committed tables; returns the page. Raises TableError."""
    page = clone / PAGE
    text = with_sentences(page.read_text(encoding="utf-8"), Tables(clone))
    with whole_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
    return [page]


# What is shown: on small canvases, which fill a slide, so that their words are read from the last row


@style.house()
def everybody() -> Figure:
    """P(yes) of every user who was asked about the thing of unit 0, by two methods."""
    shown = one_picture.chosen()
    figure, axes = style.canvas(6.4, 1.7)
    axis = axes.flat[0]
    for place, method in enumerate(("PrefMoE", "LoRA")):
        look = style.METHODS[method]
        for likes, shift in ((True, 0.13), (False, -0.13)):
            values = shown.table.loc[shown.truly == likes, method]
            face = look.colour if likes else "white"
            axis.scatter(values, [place + shift] * len(values), 60, marker=look.marker, c=face, edgecolors=look.colour)
    axis.axvline(0.5, color="#39424e", linestyle=":")
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.6, 1.6), yticks=[0, 1], xlabel='P("yes")')
    axis.set_yticklabels(["PrefMoE", "LoRA"])
    return style.finish(
        figure, f"LoRA says yes to all who were asked about {shown.item}"
        if (shown.table["LoRA"] > 0.5).all() else f"What is said of all who were asked about {shown.item}",
        f"Filled: likes {shown.item}. Open: does not. n = {len(shown.table)} users; right of the line is yes.",
    )  # fmt: skip


def apart(t: Tables) -> Figure:
    """AUC with its interval, of `ROWS`."""
    table = pd.DataFrame([_row(t, method, "auc_same") for method in ROWS])
    values = table.set_index("method")["value"]
    readers = values.drop(["LoRA", "Popular choice"])
    return forms.intervals(
        table, rows="method", panels="metric", references={"the population's guess": 0.5}, panel_width=3.9,
        title=f"Profiles tell users apart ({dot(readers.min())} to {dot(readers.max())}), names hardly "
        f"({dot(values['LoRA'])})",
        caption=f"n = {int(table['n'].iloc[0])} questions in pairs of users; lines: 95 %, users and seeds drawn.",
    )  # fmt: skip


@style.house()
def tokens() -> Figure:
    """The thirteen vectors of a user."""
    figure, axes = style.canvas(6.4, 2.1)
    axis = axes.flat[0]
    names = ["name", "image", "description", *(f"{kind}\n{facet}" for facet in FACETS for kind in ("p", "r"))]
    colours = ["#d7dde6"] * 3 + ["#f1d9ae", "#bfdcf2"] * len(FACETS)
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        box = FancyBboxPatch(
            (place + 0.06, 0), 0.88, 1, boxstyle="round,pad=0,rounding_size=.08", fc=colour, ec="#39424e"
        )
        axis.add_patch(box)
        axis.text(place + 0.5, 0.5, name, ha="center", va="center", fontsize=8, rotation=90)
    axis.set(xlim=(0, len(names)), ylim=(-0.05, 1.05))
    axis.set_axis_off()
    return style.finish(
        figure, "A user is thirteen tokens in front of the question",
        "p: prototype of a facet, the same for all users. r: residual, how this user differs.",
    )  # fmt: skip


@style.house()
def residuals() -> Figure:
    """Two anchors and their residuals: unit 3's example by hand."""
    anchors = BY_HAND[:, 0].numpy()
    mean = anchors.mean(0)
    figure, axes = style.canvas(6.4, 2.4, 1, 2)
    cosines = []
    for axis, vectors, title in zip(axes.flat, (anchors, anchors - mean), ("anchors", "residuals"), strict=True):
        first, second = vectors
        cosines.append(float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))))
        for vector, colour, name in zip(vectors, ("#0b6bb8", "#b45309"), ("one user", "another"), strict=True):
            axis.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.5})
            axis.annotate(name, vector, (4, 6), textcoords="offset points", color=colour, fontsize=9)
        axis.set(xlim=(-1.8, 4.6), ylim=(-0.6, 1.7), title=f"{title}: cosine {cosines[-1]:.2f}", aspect="equal")
        axis.plot(0, 0, "o", color="#39424e", markersize=4)
    return style.finish(
        figure, f"With the mean taken away a cosine of {cosines[0]:.2f} becomes {cosines[1]:.2f}",
        f"Anchors {anchors.astype(int).tolist()}; their mean, the prototype, is {mean.astype(int).tolist()}.",
    )  # fmt: skip


def gates(t: Tables) -> Figure:
    """The preference router's mean gates about every facet."""
    table = t.rows("mini/routing_gates", router="preference")
    table = table[table["group"].str.startswith("preference")]
    table = table.assign(
        group=table["group"].str.removeprefix("preference, "), expert=[f"for {FACETS[k]}" for k in table["expert"]]
    )
    return forms.bars(
        table.drop(columns=["low", "high"]), rows="group", series="expert", stacked=True,
        xlabel="mean gate of each expert, by the facet that is asked about", width=6.4, thickness=0.19, numbers="",
        title="Whatever is asked about, the experts are mixed alike",
        caption=f"n = {int(table['n'].min())} questions or more about each facet; intervals stand in notebook 11.",
    )  # fmt: skip


PICTURES: Mapping[str, Callable[[Tables], Figure]] = {
    "scene": lambda t: one_picture.drawn(1.8), "everybody": lambda t: everybody(), "apart": apart,
    "tokens": lambda t: tokens(), "residuals": lambda t: residuals(), "gates": gates,
}  # fmt: skip


def drawn(t: Tables) -> dict[str, Figure]:
    """Name -> picture."""
    return {name: draw(t) for name, draw in PICTURES.items()}


# The build


def build(folder: Path, target: Path, clone: Path = ROOT) -> int:
    """Makes the slides in `target`, with their sources put together in `folder`; returns Sphinx's exit status.

    In a process of its own: extensions of the book leave marks in Sphinx that a second project would trip over.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(clone / SOURCE, folder)
    (folder / MADE).mkdir()
    for name, figure in drawn(Tables(clone)).items():
        style.save(figure, folder / MADE / f"{name}.png")
    places = [str(folder), str(target), "--doctree-dir", str(folder.with_name("slides-doctrees"))]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "revealjs",
        "-q",
        "--fresh-env",
        "--fail-on-warning",
        "--keep-going",
    ]
    status = subprocess.run([*command, *places]).returncode
    if status == 0:
        _keep(target / "_static" / "revealjs")
    return status


def _keep(folder: Path) -> None:
    """Removes what no slide asks for."""
    for path in sorted(folder.rglob("*"), reverse=True):
        inside = path.relative_to(folder)
        if path.is_file() and not any(inside.is_relative_to(kept) for kept in KEPT):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
