"""Figures of notebooks 5, 6, 9, 10, 11 and 15, drawn by their own cells: by the values in their artists."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from notebook_cells import cells, one_line, text
from PIL import Image

from prefmoe.data.benchmark import FACETS
from prefmoe.figures import forms, style
from prefmoe.inspection import users

# Notebooks 5 and 6


def logs() -> list[pd.DataFrame]:
    return [pd.DataFrame({"step": range(6), "answer": np.arange(6.0) + k, "total": 0.0}) for k in (0, 2)]


def test_loss_curves_average_seeds_and_steps():
    moe = [run.assign(decorrelation=1.0) for run in logs()]
    figure = forms.losses({"LoRA": logs(), "PrefMoE": moe}, window=2)
    assert [axis.get_title() for axis in figure.axes] == ["answer", "decorrelation"]
    colour = to_hex(style.METHODS["LoRA"].colour)
    mean = next(x for x in figure.axes[0].lines if to_hex(x.get_color()) == colour and x.get_linewidth() > 1)
    assert list(mean.get_ydata()) == pytest.approx([1, 1.5, 2.5, 3.5, 4.5, 5.5])
    assert all(axis.get_ylim()[0] == 0 for axis in figure.axes)
    assert "thick: mean of n = 2 seeds, thin: single seeds" in one_line(figure)
    told = "Loss of the answer, from the first to the last tenth of the steps: "
    assert f"{told}LoRA 1 to 6; PrefMoE 1 to 6" in one_line(figure), "means of two seeds, not of two steps"
    alone = forms.losses({"+ losses of pairs": logs()[:1]}, window=2)
    assert "n = 1 seed." in one_line(alone) and f"{told}+ losses of pairs 0 to 5" in one_line(alone)
    (axis,) = forms.losses({"PrefMoE": moe}, window=2, together=True).axes
    assert axis.get_yscale() == "log" and axis.get_title() == ""
    means = [line for line in axis.lines if line.get_linewidth() > 1]
    assert [list(line.get_ydata()) for line in means] == [[1, 1.5, 2.5, 3.5, 4.5, 5.5], [1.0] * 6]


def test_the_loss_is_drawn_of_a_method_with_training_only(tmp_path):
    shown = {}
    for steps in (0, 6):
        folders = [tmp_path / str(k) for k in range(2)]
        for folder, log in zip(folders, logs(), strict=True):
            folder.mkdir(exist_ok=True)
            log.to_parquet(folder / "losses.parquet")
        shown[steps] = cells("06", "curves", folders=folders, record={"steps": steps}, method="LoRA").figures
    assert shown[0] == [] and [axis.get_yscale() for axis in shown[6][0].axes] == ["log"]


# Notebook 9


def test_user_space_draws_every_token_and_its_purity():
    rng = np.random.default_rng(0)
    rows, purity = [], []
    for stage in ("before", "after"):
        for tokens in ("anchors", "residuals"):
            for user in range(4):
                for facet in FACETS:
                    x, y = rng.normal(size=2)
                    rows.append((stage, tokens, x, y, facet, user % 2))
            for colour in ("facet", "group"):
                purity.append((stage, tokens, colour, 0.75, 0.7, 0.8, 0.2))
    coordinates = pd.DataFrame(rows, columns=["stage", "tokens", "x", "y", "facet", "group"])
    numbers = pd.DataFrame(purity, columns=["stage", "tokens", "colour", "value", "low", "high", "chance"])
    draw = cells("09", "panels-function", "space-function", backbone="b", seed=0)["user_space"]
    for colour in ("facet", "group"):
        figure = draw(coordinates, numbers, colour, ["anchors", "residuals"])
        for axis, (tokens, stage) in zip(figure.axes, pd.MultiIndex.from_product(
            [["anchors", "residuals"], ["before", "after"]]), strict=True):  # fmt: skip
            points = np.concatenate([c.get_offsets() for c in axis.collections])
            assert len(points) == 20 and axis.get_title().startswith(f"{tokens}, {stage}")
            inside = coordinates[(coordinates["stage"] == stage) & (coordinates["tokens"] == tokens)]
            expected = inside.sort_values("x")[["x", "y"]].to_numpy()
            assert points[points[:, 0].argsort()] == pytest.approx(expected)
            words = {word.get_text(): word.xy for word in axis.texts}  # no facet is told by its colour alone
            marks = {facet: part[["x", "y"]].to_numpy() for facet, part in inside.groupby("facet")}
            assert words.keys() == (marks.keys() if colour == "group" else set())
            for facet, place in words.items():  # at a mark of its own, in the middle of them
                away = [np.hypot(*(mark - np.median(marks[facet], axis=0))) for mark in marks[facet]]
                assert tuple(place) == pytest.approx(tuple(marks[facet][np.argmin(away)]))
        assert "purity 0.75 [0.70, 0.80], chance 0.20" in text(figure) and "n = 20 tokens" in text(figure)
        assert ("group 2" in text(figure)) == (colour == "group")
        assert "0.75 before, 0.75 after" in one_line(figure)


def test_tokens_without_neighbours_of_their_group_are_drawn_without_a_number():
    labels = pd.DataFrame({"stage": "after", "tokens": "full token", "facet": FACETS, "group": 0, "x": 0.0, "y": 1.0})
    numbers = pd.DataFrame([("after", "full token", "group", np.nan, np.nan, np.nan, np.nan)],
                           columns=["stage", "tokens", "colour", "value", "low", "high", "chance"])  # fmt: skip
    draw = cells("09", "panels-function", "space-function", backbone="b", seed=0)["user_space"]
    (axis,) = draw(labels, numbers, "group", ["full token"]).axes
    assert "purity nan" in axis.get_title()


# Notebook 10


def test_attention_maps_hold_the_given_shares():
    matrix = np.random.default_rng(0).dirichlet(np.ones(13), size=3)
    draw = cells("10", "prefix-function", backbone="b", seed=0)["to_prefix"]
    figure = draw({"answer": matrix, "image": matrix / 2}, ["a", "b", "c"], "Attention", "n = 3 users.")
    assert np.allclose(figure.axes[1].collections[0].get_array(), matrix / 2)
    assert figure.axes[0].collections[0].get_clim() == figure.axes[1].collections[0].get_clim()
    most = users.PREFIX_TOKENS[matrix.mean(0).argmax()]
    assert "n = 3 users." in text(figure) and "r travel" in text(figure)
    assert f"most from the answer to {most} ({100 * matrix.mean(0).max():.1f} %)" in one_line(figure)
    assert len(users.PREFIX_TOKENS) == 13 and users.PREFIX_TOKENS[3:5] == ("p entertainment", "r entertainment")
    with pytest.raises(ValueError, match="\\(3, 12\\), indices imply \\(3, 13\\)"):
        draw({"answer": matrix[:, :12]}, ["a", "b", "c"], "Attention", "")


def test_attention_lies_over_the_whole_grey_picture(picture):
    weights = np.array([[0.1, 0.2], [0.3, 0.4]])
    draw = cells("10", "image-function")["over_pictures"]
    shown = Image.open(picture)
    overlay = draw([[(shown, weights)], [(shown, weights / 2)] * 2], [["Ada"], ["Bo", "Cy"]])
    axes = [axis for axis in overlay.axes if len(axis.images) == 2]
    assert [axis.get_xlabel() for axis in axes] == ["Ada", "Bo", "Cy"]
    for axis, expected in zip(axes, (weights, weights / 2, weights / 2), strict=True):
        assert np.allclose(axis.images[1].get_array(), expected) and axis.images[1].get_clim() == (0, 0.4)
        assert axis.images[1].get_extent() == [-0.5, 3.5, 3.5, -0.5]
    grey = np.asarray(Image.open(picture).convert("L"))
    assert np.array_equal(np.asarray(axes[0].images[0].get_array())[..., 0], grey)
    assert "n = 3 examples" in text(overlay) and "at most 0.40" in one_line(overlay)


# Notebook 11


def test_gates_add_up_and_carry_their_n():
    rows = [
        {"router": "task", "group": g, "expert": e, "value": v, "low": v - 0.01, "high": v + 0.01, "n": n}
        for g, values, n in (("preference, travel", (0.7, 0.3), 20), ("recognition, yes/no", (0.4, 0.6), 10))
        for e, v in enumerate(values)
    ]
    rows += [{**row, "router": "profile"} for row in rows]
    found = cells("11", "gates-function", "gates-figure", "gates-detail", gates=pd.DataFrame(rows), frames=[None] * 3,
                  method="PrefMoE", backbone="b", turns=0)  # fmt: skip
    first, second = found.figures
    for figure in (first, second):
        bars = sorted(figure.axes[0].patches, key=lambda bar: (bar.get_x() > 0, bar.get_y()))
        assert [bar.get_width() for bar in bars] == pytest.approx([0.7, 0.4, 0.3, 0.6])
        assert [bars[k].get_x() + bars[k].get_width() for k in (2, 3)] == pytest.approx([1, 1])
        assert "preference, travel (n = 20)" in one_line(figure) and "mean of 3 seeds" in one_line(figure)
    assert "mean gates differ by at most 0.300 in the task router" in one_line(first)
    assert "between 0.40 and 0.70" in one_line(second)


# Notebook 15


def test_the_same_abovehas_what_every_method_answers_about_each_user(picture):
    def example(name: str, truth: str) -> SimpleNamespace:
        return SimpleNamespace(image=picture, question=f"Would {name} like it?", name=name, concept="travel",
                               answer_text=truth)  # fmt: skip

    def said(*answers: tuple[str, int]) -> pd.DataFrame:
        return pd.DataFrame(answers, columns=["answer", "right"]).assign(probability=0.9)

    pair = [example("Ada", "yes"), example("Bo", "no")]
    answers = {"LoRA": said(("no", 0), ("no", 1)), "PrefMoE": said(("yes", 1), ("no", 1))}
    given = {"answers": answers, "backbone": "b", "seed": 0}
    ids = ("rule-words", "figure-function", "figure")
    (figure,) = cells("15", *ids, questions=[pair], **given).figures
    marks = [line for line in text(figure).splitlines() if line.startswith(("✓", "✗"))]
    assert marks == ["✗ 0.10", "✓ 0.10", "✓ 0.90", "✓ 0.10"]
    above, grid, *_ = figure.axes
    assert [tick.get_text() for tick in grid.get_yticklabels()] == ["LoRA", "PrefMoE"]
    assert [tick.get_text() for tick in grid.get_xticklabels()] == ["Ada:\nyes", "Bo:\nno"]
    assert np.ma.allclose(grid.collections[0].get_array(), [[0.1, 0.1], [0.9, 0.1]])  # of yes
    assert "most pictures (1 of 1): PrefMoE" in one_line(figure) and "no answer was looked at" in one_line(figure)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(above.images[0].get_array(), pixels)
    given["answers"] = {"LoRA": said(("yes", 1))}
    (alone,) = cells("15", *ids, questions=[pair[:1]], **given).figures
    assert "nobody is known to hold a preference" in one_line(alone)


def test_the_title_of_losses_tells_of_the_term_that_it_is_asked_about():
    apart = [run.assign(alignment=run["answer"] / 2) for run in logs()[:1]]
    figure = forms.losses({"None": logs()[:1], "MMD": apart}, window=2, answer="noise", about="alignment")
    assert [axis.get_title() for axis in figure.axes] == ["noise", "alignment"]
    assert "Loss of the alignment, from the first to the last tenth of the steps: MMD 0 to 2.5" in one_line(figure)
