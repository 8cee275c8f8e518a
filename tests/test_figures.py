"""Figures by the values in their artists, and the numbers computed beside them by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_cells import table1, text
from PIL import Image

from prefmoe import metrics
from prefmoe.analysis import audit
from prefmoe.figures import old_forms as figures

PUBLISHED = Path(__file__).parent.parent / "published"


def marks(axis) -> list[tuple[float, float]]:
    """(x, y) of every line that is a single marked point."""
    lines = [line for line in axis.lines if line.get_marker() not in ("None", "|", None)]
    return [
        (float(x), float(y))
        for line in lines
        for x, y in zip(np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata()), strict=True)
    ]


def test_published_table_shows_every_printed_number():
    table = pd.read_csv(PUBLISHED / "table1.csv")
    figure = figures.published_table1(table)
    for axis, metric in zip(figure.axes, ("overall", "preference", "profile"), strict=True):
        drawn = sorted(x for x, _ in marks(axis))
        assert drawn == pytest.approx(sorted(table.loc[table["metric"] == metric, "value"]))
    assert "n = 2145" in text(figure)
    collapse = figures.published_collapse(table)
    expected = table.loc[table["metric"] == "collapse", "value"]
    assert sorted(x for x, _ in marks(collapse.axes[0])) == pytest.approx(sorted(expected))


def test_ablation_follows_the_table_beside_the_published_numbers():
    published = pd.read_csv(PUBLISHED / "table2.csv")
    steps = ["E", "EP", "EPI", "EPIC", "EPICD", "EPICDM"]
    rows = [
        {"components": c, "turns": 0, "metric": m, "value": 0.1 * k, "low": 0.1 * k - 0.02, "high": 0.1 * k + 0.02,
         "n": 50, "seeds": 3}
        for k, c in enumerate(steps) for m in metrics.METRICS
    ]  # fmt: skip
    figure = figures.ablation_steps(pd.DataFrame(rows), published=published)
    axis = figure.axes[metrics.METRICS.index("collapse")]
    printed = published[(published["turns"] == 0) & (published["metric"] == "collapse")]["value"]
    assert list(axis.lines[0].get_ydata()) == pytest.approx(list(printed))
    assert list(axis.lines[1].get_ydata()) == pytest.approx([0.1 * k for k in range(6)])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["E", "+P", "+I", "+C", "+D", "+M"]
    assert "n = 2145" in text(figures.ablation_steps(published))


def test_collapse_recall_has_every_method_on_its_place():
    table = table1()
    figure = figures.collapse_recall(table, backbone="b")
    wide = table[table["turns"] == 0].pivot(index="method", columns="metric", values="value")
    points = np.array(sorted(marks(figure.axes[0])))
    expected = np.array(sorted(zip(wide["collapse"], wide["recall"], strict=True)))
    assert points == pytest.approx(expected)
    diagonals = [line for line in figure.axes[0].lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    levels = sorted(round(float(line.get_ydata()[0] - line.get_xdata()[0]), 3) for line in diagonals)
    assert levels == pytest.approx(np.arange(-0.8, 0.81, 0.2))
    assert 'always "no"' in text(figure)


def test_collapse_recall_names_a_method_without_readable_answers_instead_of_drawing_it():
    table = table1()
    silent = table["method"].iloc[0]
    blank = (table["method"] == silent) & (table["metric"] == "collapse")
    figure = figures.collapse_recall(table.assign(value=table["value"].mask(blank)), backbone="b")
    figure.canvas.draw()
    assert len(marks(figure.axes[0])) == table["method"].nunique() - 1
    assert f"Not shown, for want of readable answers: {silent}" in " ".join(text(figure).split())


def test_labels_keep_off_points_and_one_another():
    points = np.array([[0.5, 0.5], [0.5, 0.5], [0.51, 0.5], [0.0, 1.0], [0.2, 0.3]])
    places = figures._label_places(points)
    gaps = np.linalg.norm(places[:, None] - np.concatenate([places, points])[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() > 0.03


def test_groups_draw_one_mark_per_method_and_group():
    rows = [
        {"method": m, "type": "PEFT", "backbone": "b", "turns": 0, "metric": "collapse", "grouping": "bucket",
         "group": g, "value": 0.1 * i + 0.02 * j, "low": 0.1 * i, "high": 0.1 * i + 0.1, "n": 30 + j, "seeds": 3}
        for i, m in enumerate(("LoRA", "PrefMoE")) for j, g in enumerate(metrics.BUCKETS)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    figure = figures.groups(table, grouping="bucket", backbone="b")
    assert sorted(x for x, _ in marks(figure.axes[0])) == pytest.approx(sorted(table["value"]))
    assert "at most 4 (n = 30)" in text(figure) and "9 or more (n = 32)" in text(figure)


def test_abilities_have_wilson_intervals():
    rows = [
        {"backbone": "b", "ability": "see", "value": 0.9, "n": 100, "chance": 0.5},
        {"backbone": "b", "ability": "read", "value": 0.5, "n": 100, "chance": 0.25},
    ]
    figure = figures.backbone_abilities(pd.DataFrame(rows))
    low, high = figure.axes[0].collections[0].get_segments()[0][:, 0]
    z2, p, n = 1.959964**2, 0.9, 100
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    assert (low, high) == pytest.approx(tuple((p + z2 / (2 * n) + s * half) / (1 + z2 / n) for s in (-1, 1)))


def test_dataset_and_popularity_counts():
    figure = figures.dataset_statistics(pd.read_csv(PUBLISHED / "dataset_statistics.csv"))
    assert "n = 12516 questions: 10371 train, 2145 test." in text(figure)
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == 12516
    popularity = pd.DataFrame({"facet": ["travel"] * 3, "item": list("abc"), "users": [1, 5, 2]})
    groups = pd.DataFrame({"facet": ["travel"] * 2, "users": [5, 3]})
    figure = figures.popularity_skew(popularity, groups)
    assert list(figure.axes[0].lines[0].get_ydata()) == [5, 2, 1]
    assert "n = 8 users, 3 items, 2 preference groups" in text(figure)
    assert "n = 111 users" in text(figures.identities(pd.read_csv(PUBLISHED / "identities.csv")))


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_pictures_are_shown_unchanged(picture):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    grid = figures.picture_grid([(picture, "Would Ada like this?")] * 5, columns=4)
    assert np.array_equal(grid.axes[0].images[0].get_array(), pixels)
    assert sum(bool(axis.images) for axis in grid.axes) == 5
    users = figures.portraits([("Ada", "Ada is a person.", [picture] * 2), ("Bo", "Bo too.", [picture])])
    assert sum(bool(axis.images) for axis in users.axes) == 3


# The audit, and uncertainty


def test_the_audit_marks_every_misfit_once():
    table = audit.values(pd.read_csv(PUBLISHED / "table1.csv"))
    overall = audit.overall(pd.read_csv(PUBLISHED / "table1.csv"))
    figure = figures.published_fits(table, overall)
    drawn = {line.get_marker(): len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() != "None"}
    misfits = int((table["fits"] == 0).sum())
    assert drawn == {".": len(table) - misfits, "x": misfits, "s": int((overall["fits"] == 0).sum())}
    square = next(line for line in figure.axes[0].lines if line.get_marker() == "s")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ten, zero = (labels.index("LLaVA-1.5-13B  NT"), labels.index("Qwen2.5-VL-72B  FFT"))
    assert {(4, ten), (0, zero)} <= set(zip(square.get_xdata(), square.get_ydata(), strict=True))
    assert "n = 2145" in text(figure) and "11 of 62" in text(figure)


def test_offsets_name_the_rows_that_change_by_one_amount():
    changes = audit.turn_changes(pd.read_csv(PUBLISHED / "table1.csv"))
    figure = figures.published_offsets(changes)
    axis = figure.axes[0]
    bold = [label.get_text() for label in axis.get_yticklabels() if label.get_weight() == "bold"]
    assert len(bold) == 5 and "LOVA3  PEFT" in bold and "-0.0350 in each" in text(figure)
    overall = next(line for line in axis.lines if line.get_label() == "overall")
    assert list(overall.get_xdata()) == pytest.approx(list(changes["overall"]))


def test_published_differences_have_their_intervals_and_are_filled_where_clear():
    table = audit.steps(pd.read_csv(PUBLISHED / "table2.csv"))
    figure = figures.published_differences(table, rows="step", series="turns", legend="{} turns", title="Steps")
    for axis, metric in zip(figure.axes, ("overall", "preference", "profile", "collapse"), strict=True):
        rows = table[table["metric"] == metric]
        assert sorted(x for x, _ in marks(axis)) == pytest.approx(sorted(rows["difference"]))
        ends = np.sort(np.concatenate([s[:, 0] for c in axis.collections for s in c.get_segments()]))
        assert ends == pytest.approx(np.sort(np.concatenate([rows["low"], rows["high"]])))
        filled = [line for line in axis.lines if len(line.get_xdata()) == 1 and line.get_markerfacecolor() != "white"]
        assert len(filled) == rows["clear"].sum()
    assert "10 turns" in text(figure) and "219 collapse" in text(figure)


def differences() -> pd.DataFrame:
    rows = [
        {"method": "PrefMoE", "baseline": b, "backbone": backbone, "turns": 0, "metric": m,
         "difference": 0.1 * k + shift, "low": 0.1 * k + shift - width, "high": 0.1 * k + shift + width, "n": 40,
         "seeds": 2, "p_users_holm": 0.01}
        for k, b in enumerate(("LoRA", "Non-tuned"))
        for backbone, shift, width in (("a", 0.02, 0.1), ("b", -0.02, 0.05), ("mean of all", 0.0, 0.04))
        for m in metrics.METRICS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_gains_keep_the_paper_and_the_edition_in_panels_of_their_own():
    published = audit.differences(pd.read_csv(PUBLISHED / "table1.csv"))
    compared = differences()
    measured = audit.edition_gains(table1(), compared[compared["backbone"] != "mean of all"])
    figure = figures.gains(published, measured, edition="tiny")
    above, below = figure.axes[:4], figure.axes[4:]
    for axis, metric in zip(above, ("overall", "preference", "profile", "collapse"), strict=True):
        rows = published[(published["metric"] == metric) & (published["turns"] == 0)]
        assert sorted(x for x, _ in marks(axis)) == pytest.approx(sorted(rows["difference"]))
    for axis, metric in zip(below, ("overall", "preference", "profile", "collapse"), strict=True):
        rows = measured[measured["metric"] == metric]
        assert sorted(x for x, _ in marks(axis)) == pytest.approx(sorted(rows["difference"]))
    written = text(figure)
    assert "As printed in the paper" in written and "Measured here, edition tiny" in written
    assert "2145 overall" in written and "40 overall" in written
    without = figures.gains(published, measured, edition="tiny", turns=10)  # the edition has none
    assert not any(len(marks(axis)) for axis in without.axes[4:]) and all(len(marks(axis)) for axis in without.axes[:4])
    assert "nothing" in text(without) and " here;" not in text(without)
