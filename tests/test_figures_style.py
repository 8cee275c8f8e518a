"""Looks, files and outputs of figures, and the forms by the values in their artists."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from notebook_cells import text
from PIL import Image

from prefmoe import metrics
from prefmoe.analysis.recommenders import ALS, BPR, POPULARITY
from prefmoe.config import load_edition
from prefmoe.figures import forms, reproduction, style

CAPTION = "n = 3."


def differences() -> pd.DataFrame:
    rows = [
        {"baseline": b, "backbone": backbone, "metric": m, "value": v, "low": v - 0.1, "high": v + 0.05,
         "clear": v > 0.1}
        for b, v in (("LoRA", 0.2), ("Full fine-tuning", 0.05))
        for backbone in ("a", "b")
        for m in ("preference", "sensitivity")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def marks(axis) -> np.ndarray:
    """(N, 2) places of all marks of an axis of `intervals`."""
    found = [c.get_offsets() for c in axis.collections if isinstance(c, PathCollection)]
    return np.concatenate(found) if found else np.zeros((0, 2))


def ends(axis) -> list[float]:
    """Both ends of all intervals of an axis, sorted."""
    lines = [c for c in axis.collections if isinstance(c, LineCollection)]
    return sorted(float(x) for c in lines for s in c.get_segments() for x in s[:, 0])


def contrast(colour: str) -> float:
    """With white, after WCAG 2."""
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return 1.05 / (np.dot((0.2126, 0.7152, 0.0722), linear) + 0.05)


def test_every_look_can_be_seen_and_no_two_methods_share_one():
    tables = (style.METHODS, style.RATERS, style.DRAWERS, style.KINDS)
    looks = [*(look for table in tables for look in table.values()), *style.SERIES]
    assert min(contrast(look.colour) for look in looks) >= 3
    for some in (style.METHODS, style.RATERS, style.DRAWERS):
        assert len(set(some.values())) == len(some)
    assert len(set(style.SERIES)) == len(style.SERIES) and set(style.METHODS) & set(style.RATERS) == {"Chance"}
    assert contrast(style.MUTED) >= 3


def test_every_method_of_an_edition_about_questions_has_a_look_of_its_own():
    labels = {method.label for name in ("mini", "rivals", "ranking") for method in load_edition(name).methods.values()}
    assert labels | {POPULARITY, ALS, BPR} <= set(style.METHODS)


def test_every_method_of_an_edition_about_choices_has_a_look_of_its_own():
    assert {method.label for method in load_edition("preference-mini").methods.values()} <= set(style.RATERS)


def test_a_method_looks_the_same_everywhere_and_others_take_what_is_left():
    assert style.look("PrefMoE (LLaVA-1.5-7B)", "PEFT") == style.METHODS["PrefMoE"]
    assert style.look("Somebody's own", "FFT") == style.METHODS["Full fine-tuning"]
    found = style.looks(["a backbone", "LoRA", "another"], {})
    assert found["LoRA"] == style.METHODS["LoRA"]
    assert (found["a backbone"], found["another"]) == style.SERIES[:2]


def test_as_many_series_as_one_likes_are_told_apart():
    """Two of ten users were blue circles."""
    many = style.looks([f"u{k}" for k in range(3 * len(style.SERIES))])
    assert len(set(many.values())) == 3 * len(style.SERIES) and list(many.values())[:8] == list(style.SERIES)[:8]


def test_intervals_draw_values_ends_references_and_open_marks():
    table = differences()
    figure = forms.intervals(
        table, rows="baseline", panels="metric", by="backbone", filled="clear",
        references={"": 0, "Chance": {"preference": 0.5}}, title="A message", caption=CAPTION,
    )  # fmt: skip
    for axis, metric in zip(figure.axes, ("preference", "sensitivity"), strict=True):
        rows = table[table["metric"] == metric]
        points = marks(axis)
        assert sorted(points[:, 0]) == pytest.approx(sorted(rows["value"]))
        assert ends(axis) == pytest.approx(sorted([*rows["low"], *rows["high"]]))
        dots = [c for c in axis.collections if isinstance(c, PathCollection)]
        white = [
            x
            for c in dots
            for (x, _), face in zip(c.get_offsets(), c.get_facecolor(), strict=True)
            if to_hex(face) == "#ffffff"
        ]
        assert [round(x, 2) for x in white] == [0.05, 0.05]
        lower = points[np.isclose(points[:, 0], 0.05), 1]
        assert lower.min() > points[np.isclose(points[:, 0], 0.2), 1].max() and len(set(lower.round(3))) == 2
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_xdata()[0] == line.get_xdata()[-1]] == [
        0,
        0.5,
    ]
    assert "Chance" in text(figure) and "A message" in text(figure) and CAPTION in text(figure)
    assert "LoRA, Full fine-tuning; Preference accuracy" in figure.get_label()


def test_references_that_coincide_in_a_panel_are_one_line_with_all_their_names():
    at = {"Chance": {"preference": 0.5, "sensitivity": 0.0}, "Popular choice": {"preference": 0.5, "sensitivity": 0.3}}
    figure = forms.intervals(
        differences(), rows="baseline", panels="metric", references={"": 0, **at}, title="A message", caption=CAPTION
    )
    upright = [sorted(x[0] for x in (line.get_xdata() for line in axis.lines) if x[0] == x[-1]) for axis in figure.axes]
    assert upright == [[0, 0.5], [0, 0, 0.3]]
    names = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert names[-3:] == ["Chance = Popular choice", "Chance", "Popular choice"]


def test_intervals_do_without_intervals_panels_and_rows():
    bare = differences().drop(columns=["low", "high"]).iloc[:1]
    figure = forms.intervals(bare, rows="baseline", title="One", caption=CAPTION)
    assert len(marks(figure.axes[0])) == 1
    gaps = differences().assign(value=np.nan, low=np.nan, high=np.nan)
    assert forms.intervals(gaps, rows="baseline", panels="metric", by="backbone", title="One", caption=CAPTION).axes
    assert "nothing to draw" in text(forms.intervals(bare.iloc[:0], rows="baseline", title="None", caption=CAPTION))


def test_seed_ticks_stand_beside_their_marks():
    table = differences().assign(minimum=lambda t: t["value"] - 0.02, maximum=lambda t: t["value"] + 0.03)
    figure = forms.intervals(
        table, rows="baseline", by="backbone", panels="metric", ticks=("minimum", "maximum"), title="T", caption=CAPTION
    )
    rows = table[table["metric"] == "preference"]
    drawn = sorted(marks(figure.axes[0])[:, 0])
    assert drawn == pytest.approx(sorted([*rows["value"], *rows["minimum"], *rows["maximum"]]))


def test_curves_follow_the_table_with_bands_and_thin_lines_for_units():
    table = pd.DataFrame(
        [
            {"x": x, "method": m, "seed": s, "value": x + k + s, "low": x + k - 1.0, "high": x + k + 2.0}
            for k, m in enumerate(("LoRA", "PrefMoE")) for x in (1, 2, 4) for s in (0, 1)
        ]
    )  # fmt: skip
    one = table[table["seed"] == 0]
    figure = forms.curves(one, x="x", series="method", log=True, title="T", caption=CAPTION)
    drawn = {to_hex(line.get_color()).upper(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn[style.METHODS["LoRA"].colour] == [1, 2, 4] and drawn[style.METHODS["PrefMoE"].colour] == [2, 3, 5]
    assert len(figure.axes[0].patches) + len(figure.axes[0].collections) == 2  # a band each
    apart = forms.curves(one, x="x", series="method", log=True, bars=True, title="T", caption=CAPTION).axes[0]
    first, second = (np.array(line.get_xdata()) for line in apart.lines[:2])
    assert (second / first == pytest.approx([2**0.1] * 3)) and first * second == pytest.approx([1, 4, 16])
    assert list(apart.get_xticks()) == [1, 2, 4] and not apart.patches  # bars side by side about the place, no band
    both = forms.curves(
        table.drop(columns=["low", "high"]), x="x", series="method", units="seed", title="T", caption=CAPTION
    )
    mean = {to_hex(line.get_color()).upper(): list(line.get_ydata()) for line in both.axes[0].lines}
    assert mean[style.METHODS["LoRA"].colour] == [1.5, 2.5, 4.5]
    assert "LoRA" in text(both) and "Line plot" in both.get_label()


def test_curves_stand_in_a_grid_of_panels():
    table = pd.DataFrame(
        [{"x": x, "method": m, "metric": k, "group": g, "value": 0.1 * x}
         for x in (0, 10) for m in ("LoRA", "PrefMoE") for k in ("collapse", "recall") for g in ("all", "few", "many")]
    )  # fmt: skip
    figure = forms.curves(table, x="x", series="method", panels="group", lines="metric", title="T", caption=CAPTION)
    assert [axis.get_title() for axis in figure.axes] == ["all", "few", "many", "", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == [
        style.METRIC_LABELS["collapse"],
        "Recall",
    ]
    levels = {"chance": {"all": 0.5, "few": 0.25}}
    marked = forms.curves(table, x="x", series="metric", panels="group", levels=levels, title="T", caption=CAPTION)
    flat = [[line.get_ydata()[0] for line in axis.lines if len(set(line.get_ydata())) == 1] for axis in marked.axes]
    assert flat == [[0.5], [0.25], []] and "chance" in text(marked)
    wrapped = forms.curves(table, x="x", series="metric", panels="group", columns=2, title="T", caption=CAPTION)
    assert [axis.get_title() for axis in wrapped.axes] == ["all", "few", "many"]


def test_heat_maps_share_a_scale_and_write_their_numbers():
    table = pd.DataFrame([[0.1, 0.4], [0.2, 0.3]], index=["a", "b"], columns=["x", "y"])
    figure = forms.heat({"one": table, "half": table / 2}, label="Share", numbers=".0%", title="T", caption=CAPTION)
    first, second = (axis.collections[0] for axis in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (0, 0.4)
    assert np.allclose(second.get_array(), table / 2) and "40%" in text(figure) and "Share" in text(figure)
    assert "T. Heat map of Share: a, b by x, y; one, half." in figure.get_label()


def test_numbers_on_any_colour_of_a_heat_map_have_the_contrast_of_text():
    def luminance(colour):
        parts = np.array(to_rgb(colour))
        return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    table = pd.DataFrame(np.linspace(-2, 2, 60).reshape(6, 10))
    axis = forms.heat({"one": table}, label="u", limits=(-2, 2), numbers=".1f", title="T", caption=CAPTION).axes[0]
    for words, face in zip(axis.texts, axis.collections[0].get_facecolors(), strict=True):
        low, high = sorted(map(luminance, (words.get_color(), face[:3])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, words.get_text()


def test_a_legend_of_broken_lines_shows_a_length_at_which_they_differ():
    rows = pd.DataFrame({"x": [1, 2] * 3, "value": [0.1, 0.2] * 3, "method": ["a", "a", "b", "b", "c", "c"]})
    options = {"x": "x", "series": "method", "xlabel": "x", "ylabel": "y", "title": "T", "caption": CAPTION}
    assert forms.curves(rows, **options).legends[0].handlelength >= 3


def test_bars_add_up_beside_and_on_one_another():
    rows = [
        {"group": g, "expert": e, "value": v, "low": v - 0.01, "high": v + 0.01}
        for g, values in (("travel", (0.7, 0.3)), ("yes/no", (0.4, 0.6))) for e, v in zip("ab", values, strict=True)
    ]  # fmt: skip
    kind = {"rows": "group", "series": "expert", "xlabel": "Gate", "title": "T", "caption": CAPTION}
    figure = forms.bars(pd.DataFrame(rows), stacked=True, **kind)
    bars = figure.axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == pytest.approx([0.3, 0.4, 0.6, 0.7])
    assert sorted(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx([0.4, 0.7, 1, 1])
    assert ends(figure.axes[0]) == pytest.approx([0.39, 0.41, 0.69, 0.71])
    assert "0.70" in text(figure) and len({bar.get_hatch() for bar in bars}) == 2
    side = forms.bars(pd.DataFrame(rows), **kind)
    assert all(bar.get_x() == 0 for bar in side.axes[0].patches) and len(side.legends) == 1


def test_pictures_are_shown_unchanged_beside_their_texts(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    rows = [["Ada\nShe likes tea.", path, (Image.fromarray(pixels), "a picture")], [None, path]]
    figure = forms.pictures(rows, title="T", caption=CAPTION, widths=[3.0, 1.0, 1.0])
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 3 and all(np.array_equal(picture, pixels) for picture in shown)
    assert "She likes tea." in text(figure) and "a picture" in text(figure) and "a picture" in figure.get_label()
    assert forms.pictures([], title="Nobody", caption="n = 0.").axes


def small() -> Figure:
    return forms.bars(
        pd.DataFrame({"attribute": ["human"], "users": ["all"], "value": [3]}),
        rows="attribute", series="users", xlabel="Users", title="Who", caption="n = 3 users.",
    )  # fmt: skip


def test_saving_twice_gives_the_same_bytes_and_no_leftovers(tmp_path):
    first = style.save(small(), tmp_path / "new" / "one.png").read_bytes()
    assert style.save(small(), tmp_path / "new" / "two.png").read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]
    with Image.open(tmp_path / "new" / "one.png") as picture:
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1) and "Software" not in picture.info
    with pytest.raises(ValueError, match="one.svg: figures are saved as PNG"):
        style.save(small(), tmp_path / "one.svg")


def test_a_figure_is_shown_as_a_picture_with_an_alternative_text(tmp_path, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    style.show(small(), tmp_path / "one.png")
    output = shown[0]
    assert re.search(
        r'<img src="data:image/webp;base64,[^"]+" width="\d+" alt="Who[.] Bars of Users: human', output["text/html"]
    )
    assert output["text/plain"].startswith("Who. Bars") and output["text/plain"].endswith("all. n = 3 users.")
    assert (tmp_path / "one.png").is_file()
    style.show(small(), alt='5 < 6 & "so on"')
    assert 'alt="5 &lt; 6 &amp; &quot;so on&quot;"' in shown[1]["text/html"]
    with pytest.raises(ValueError, match="alternative text"):
        style.show(Figure())


@pytest.mark.parametrize(("title", "said"), [("Who", "Who."), ("Who.", "Who."), ("Who?", "Who?"), ("Who!", "Who!")])
def test_the_title_is_one_sentence_of_the_alternative_text(title, said):
    figure = Figure(layout="constrained")
    style.finish(figure, title, "n = 3.", alt="Bars.")
    assert figure.get_label() == f"{said} Bars. n = 3."


def test_what_is_shown_is_smaller_than_the_file_and_differs_from_it_invisibly(tmp_path):
    names = list(style.METHODS)
    table = pd.DataFrame(
        [{"method": m, "metric": k, "value": 0.5} for m in (*names[:5], "PrefMoE") for k in metrics.METRICS[:2]]
    )  # fmt: skip
    figure = forms.intervals(table, rows="method", panels="metric", title="T", caption=CAPTION)
    saved = style.save(figure, tmp_path / "figure.png").read_bytes()
    with Image.open(io.BytesIO(saved)) as picture:
        drawn = picture.convert("RGB")
    packed = style.webp(drawn)
    assert packed == style.webp(drawn) and len(packed) < 0.8 * len(saved)
    with Image.open(io.BytesIO(packed)) as picture:
        assert picture.format == "WEBP" and picture.size == drawn.size
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(shown - np.asarray(drawn)).max() <= 16
    reds = {tuple(dot) for dot in shown.reshape(-1, 3) if abs(dot[0] - 0xA6) + abs(dot[1] - 0x36) < 12}
    assert reds  # PrefMoE's colour is still there


def test_a_picture_of_many_colours_is_shown_dot_by_dot():
    dots = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(style.webp(Image.fromarray(dots)))) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), dots)


def test_metrics_are_called_by_words_and_differences_have_no_guess():
    table = pd.DataFrame({"metric": ["preference", "auc_same", "auc_told"], "n": [680, 406, 176]})
    said = "n = 680 preference, 406 AUC, 176 (AUC of told likes) questions"
    assert style.sizes(table, ["preference", "auc_same", "auc_told"]) == said
    assert [style.named(name) for name in ("profile", "recall")] == ["recognition", "recall"]
    assert not any("_" in style.named(name) for name in style.METRIC_LABELS)
    labels = style.minus(style.METRIC_LABELS, "PrefMoE minus each")
    assert not any("0.5" in label for label in labels.values()) and "lower is better" in labels["collapse"]
    assert labels["auc_same"] == "AUC, same preference\nPrefMoE minus each"


def test_captions_legends_and_titles_do_not_overlap():
    """The legend stands above the caption and below the axes' labels, the title above all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    table = pd.DataFrame(
        [{"method": m, "metric": k, "value": 0.5} for m in style.METHODS for k in metrics.METRICS]
    )  # fmt: skip
    figure = forms.intervals(
        table, rows="metric", by="method", title="A message of several words " * 6, caption="A caption 95 % " * 30
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    caption = next(t for t in figure.texts if "95 %" in t.get_text()).get_window_extent(renderer)
    legend = figure.legends[0].get_window_extent(renderer)
    panels = [axis.get_tightbbox(renderer) for axis in figure.axes]
    assert caption.y1 <= legend.y0 + 1 and legend.y1 <= min(panel.y0 for panel in panels) + 1
    assert legend.x1 <= figure.bbox.width
    title = next(t for t in figure.texts if t.get_weight() == "bold").get_window_extent(renderer)
    assert title.y0 >= max(panel.y1 for panel in panels) - 1


def test_style_and_pyplot_state_do_not_leak():
    before = dict(plt.rcParams)
    small(), style.notice("nothing")
    assert dict(plt.rcParams) == before and not plt.get_fignums()


def test_a_reproduction_has_a_panel_per_metric_that_both_tables_have():
    cells = pd.DataFrame(
        [{"table": "table1", "cell": f"LoRA, b, 0, {metric}", "metric": metric, "committed": 0.1 * k,
          "here": 0.1 * k + 0.05, "low": 0.1 * k - 0.02, "high": 0.1 * k + 0.02, "state": "within" if k else "too far"}
         for k, metric in enumerate((*metrics.METRICS, "auc_same", "new"))]
    )  # fmt: skip
    figure = reproduction.draw(cells, "Reproduced", "mini")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[-2:] == ["AUC, same preference (population = 0.5)", "new"] and len(titles) == 8
    for k, axis in enumerate(figure.axes):
        (dots,) = (c for c in axis.collections if isinstance(c, PathCollection))
        assert np.asarray(dots.get_offsets()) == pytest.approx(np.array([[0.1 * k, 0.1 * k + 0.05]]))
    assert "8 numbers" in text(figure)
    assert "share no number" in reproduction.draw(cells.assign(here=np.nan), "Not", "mini").get_label()


def test_colours_that_are_near_have_different_lines():
    """Two blue lines of seven were alike."""
    looks = list(style.looks(map(str, range(8))).values())
    pairs = [(a, b) for b in range(8) for a in range(b) if style.dash(a) == style.dash(b)]
    for a, b in pairs:
        apart = np.abs(np.subtract(to_rgb(looks[a].colour), to_rgb(looks[b].colour))).max()
        assert apart > 0.3, (a, b)
