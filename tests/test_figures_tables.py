"""Figures of notebooks 7, 8, 13 and 14, drawn by their own cells: by the values in their artists."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from notebook_cells import TRAINED, Cells, cells, ends, filled, one_line, table1, text, upright, values

from prefmoe import metrics
from prefmoe.analysis import published
from prefmoe.analysis.groupings import PAIR_GROUPS
from prefmoe.figures import style

pytestmark = pytest.mark.usefixtures("coarse_pictures")

EDITION = SimpleNamespace(backbones=["b"], ablation_backbone="b")

NAME_ALONE = re.compile(r"\bname \([^)]*\bLoRA\b")


def differences(backbones=(("a", 0.02, 0.1), ("b", -0.02, 0.05), ("mean of all", 0.0, 0.04))) -> pd.DataFrame:
    rows = [
        {"method": "PrefMoE", "baseline": b, "backbone": backbone, "turns": 0, "metric": m,
         "difference": 0.1 * k + shift, "low": 0.1 * k + shift - width, "high": 0.1 * k + shift + width, "n": 40,
         "seeds": 2, "p_users_holm": 0.01 if k else 0.4}
        for k, b in enumerate(("LoRA", "Non-tuned"))
        for backbone, shift, width in backbones
        for m in metrics.METRICS
    ]  # fmt: skip
    return pd.DataFrame(rows)


# Notebook 7


def main_table(table: pd.DataFrame, seeds: pd.DataFrame | None = None, turns: int = 0) -> Cells:
    if seeds is None:
        seeds = pd.DataFrame(columns=["method", "backbone", "turns", "metric", "minimum", "maximum", "seeds"])
        seeds = seeds.astype({"turns": int})
    return cells("07", "main-function", table1=table, seeds=seeds, turns=turns, settings=EDITION, trained=TRAINED)


def test_main_table_draws_values_intervals_references_and_seeds():
    table = table1()
    seeds = table[table["type"] != "Reference"].assign(minimum=lambda t: t["value"] - 0.01)
    seeds = seeds.assign(maximum=lambda t: t["value"] + 0.02)
    figure = main_table(table, seeds)["main_table"]("b", list(metrics.METRICS))
    assert len(figure.axes) == len(metrics.METRICS)
    for axis, metric in zip(figure.axes, metrics.METRICS, strict=True):
        rows = table[(table["metric"] == metric) & (table["type"] != "Reference")]
        ticks = seeds[seeds["metric"] == metric]
        assert values(axis) == pytest.approx(sorted([*rows["value"], *ticks["minimum"], *ticks["maximum"]]))
        assert ends(axis) == pytest.approx(sorted([*rows["low"], *rows["high"]]))
        chance = table[(table["metric"] == metric) & (table["method"] == "Chance") & (table["turns"] == 0)]
        assert upright(axis) == pytest.approx(list(chance["value"]))
    written = one_line(figure)
    assert "100 overall" in written and "95 % bootstrap" in written and "mean of 2 seeds" in written
    assert "lowest and highest seed" in written and "10 turns" in written and "Chance" in written


def test_the_main_tables_marks_are_filled_before_small_talk_and_its_title_names_the_best():
    table = table1()
    figure = main_table(table)["main_table"]("b", ["preference", "collapse"])
    rows = table[(table["metric"] == "preference") & (table["type"] != "Reference") & (table["turns"] == 0)]
    assert filled(figure.axes[0]) == pytest.approx(sorted(rows["value"]))
    assert "PrefMoE in preference accuracy (0.43), LoRA in collapse (0.39)" in one_line(figure)
    assert "lowest and highest seed" not in one_line(figure)
    after = main_table(table, turns=10)["main_table"]("b", ["preference", "sensitivity"])
    assert "PrefMoE in preference accuracy (0.38) and sensitivity (0.50); b, 10 turns" in one_line(after)


def test_undefined_metrics_are_left_out():
    table = table1()
    table.loc[table["metric"].isin(["recall", "sensitivity"]), ["value", "low", "high"]] = np.nan
    draw = main_table(table)["main_table"]
    assert len(draw("b", list(metrics.METRICS)).axes) == 4
    assert "nothing to draw" in one_line(draw("b", ["recall", "sensitivity"]))


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """With rows of the AUC, which are those of preference accuracy."""
    return pd.concat([table, table[table["metric"] == "preference"].assign(metric="auc_same")], ignore_index=True)


def test_the_notebook_saves_two_panels_per_backbone_and_shows_the_rest(tmp_path):
    compared, table = told_apart(differences(backbones=(("b", 0.0, 0.04),))), told_apart(table1())
    found = cells(
        "07", "main-function", "main-figure", "detail-figure", "paired-function", "paired-figure", "paired-detail",
        table1=table, seeds=table.assign(minimum=0.1, maximum=0.2), comparisons=compared, turns=0,
        settings=EDITION, trained=TRAINED, folder=tmp_path,
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["main_table_b.png", "paired_differences_b.png"]
    assert [len(figure.axes) for figure in found.figures] == [2] * 6  # none about what is told and what is not
    labels = {axis.get_xlabel() for figure in found.figures[:3] for axis in figure.axes}
    shown = {*metrics.METRICS, "auc_same"} - {"preference"}
    assert labels == {style.METRIC_LABELS[metric] for metric in shown}
    assert all(re.search(r"anchors of profile text[^(]*\([^)]*PrefMoE", f.get_label()) for f in found.figures[:3])
    assert all(NAME_ALONE.search(f.get_label()) for f in found.figures)


def test_paired_differences_fill_what_is_clear():
    rows = [
        {"method": "PrefMoE", "baseline": b, "backbone": "b", "turns": 0, "metric": m, "difference": d, "low": d - 0.1,
         "high": d + 0.1, "n": 40, "p_users_holm": p}
        for m in metrics.METRICS for b, d, p in (("LoRA", 0.2, 0.01), ("Popular choice", 0.05, 0.4))
    ]  # fmt: skip
    table = table1(seeds=3).assign(seeds=lambda t: t["seeds"].where(t["method"] == "PrefMoE", 1))
    given = {"comparisons": pd.DataFrame(rows), "turns": 0, "table1": table}
    figure = cells("07", "main-function", "paired-function", **given)["paired"]("b", ["preference", "collapse"])
    for axis in figure.axes:
        assert values(axis) == pytest.approx([0.05, 0.2]) and filled(axis) == pytest.approx([0.2])
    assert "1, worse than 0 in preference accuracy; better than 0, worse than 1 in collapse" in one_line(figure)
    assert "mean of 3 seeds for PrefMoE, one seed for other trained rows" in one_line(figure)
    other = cells("07", "main-function", "paired-function", **given)["paired"]("another", ["preference"])
    assert "not told apart from any" in one_line(other)


def under_controls(folder: Path, kinds: tuple[str, ...]) -> Cells:
    """The cells about controls, with a table of two methods on one backbone in a folder."""
    rows = [
        {"method": m, "backbone": "b", "control": kind, "metric": metric, "value": 0.8 - 0.1 * k - 0.05 * j,
         "low": 0.7 - 0.1 * k - 0.05 * j, "high": 0.9 - 0.1 * k - 0.05 * j, "n": 44, "seeds": 1}
        for j, m in enumerate(("LoRA", "PrefMoE")) for k, kind in enumerate(kinds) for metric in ("auc_same", "profile")
    ]  # fmt: skip
    if rows:
        pd.DataFrame(rows).to_csv(folder / "controls.csv", index=False)
    given = {"source": folder, "table1": table1(), "settings": EDITION, "turns": 0, "trained": TRAINED}
    return cells("07", "controls-function", "controls-figure", "controls-detail", **given, folder=folder)


def test_controls_have_a_mark_per_method_and_control(tmp_path):
    apart, faces = under_controls(tmp_path, ("none", "other_user", "zero_prefix")).figures
    for figure in (apart, faces):
        (axis,) = figure.axes
        assert values(axis) == pytest.approx([0.55, 0.6, 0.65, 0.7, 0.75, 0.8])
        assert "44" in one_line(figure) and "one seed" in one_line(figure)
    assert upright(apart.axes[0])[0] == 0.5
    written = one_line(apart)
    assert "is 0.75, and 0.65 with somebody else's prefix or profile and 0.55 with zeros as soft tokens (b)" in written
    assert (tmp_path / "under_controls.png").is_file()


def test_without_controls_the_figure_says_so(tmp_path):
    shown = under_controls(tmp_path, ()).figures
    assert len(shown) == 2 and all("no questions under controls" in one_line(figure) for figure in shown)


# Notebook 8


def test_ablation_follows_the_table_and_the_published_numbers_theirs(tmp_path):
    steps = ["E", "EP", "EPI", "EPIC", "EPICD", "EPICDM"]
    rows = [
        {"components": c, "turns": 0, "metric": m, "value": 0.1 * k, "low": 0.1 * k - 0.02, "high": 0.1 * k + 0.02,
         "n": 50, "seeds": 3}
        for k, c in enumerate(steps) for m in metrics.METRICS
    ]  # fmt: skip
    where = {"method": "PrefMoE", "baseline": "User embedding only", "turns": 0, "metric": metrics.METRICS}
    paired = pd.DataFrame({**where, "backbone": EDITION.ablation_backbone, "difference": 0.2, "low": 0.1, "high": 0.3})
    paired["p_users_holm"] = np.where(paired["metric"] == "recall", 0.2, 0.01)
    found = cells(
        "08", "ablation-function", "ablation-figure", "ablation-detail", "published-figure", table2=pd.DataFrame(rows),
        comparisons=paired, turns=0, settings=EDITION, folder=tmp_path,
    )  # fmt: skip
    first, *details, printed, rest = found.figures
    titles = [one_line(figure) for figure in (first, *details)]
    assert ["not told apart" in title for title in titles] == ["Recall: " in title for title in titles]
    assert all("told apart" in title for title in titles) and any("Recall: " in title for title in titles)
    assert values(first.axes[1]) == pytest.approx([0.1 * k for k in range(6)])
    assert ends(first.axes[1]) == pytest.approx(sorted(0.1 * k + e for k in range(6) for e in (-0.02, 0.02)))
    names = [label.get_text().split() for label in first.axes[0].get_yticklabels()]
    assert [name[-1] for name in names] == ["(E)", "(EP)", "(EPI)", "(EPIC)", "(EPICD)", "(EPICDM)"]
    table = published.read("table2")
    for metric, axis in zip(("preference", "collapse", "overall", "profile"), [*printed.axes, *rest.axes], strict=True):
        expected = table[(table["turns"] == 0) & (table["metric"] == metric)]["value"]
        assert values(axis) == pytest.approx(sorted(expected))
    assert not any("told apart" in one_line(figure) or "Holm" in one_line(figure) for figure in (printed, rest))
    assert all("Holm" in one_line(figure) for figure in (first, *details))
    assert "n = 2145" in one_line(printed) and "50 preference" in one_line(first)
    assert "mean of 3 seeds" in one_line(first)
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.png"]


def test_an_ablation_of_one_row_has_no_step():
    row = {"components": "E", "turns": 0, "metric": "preference", "value": 0.5, "n": 50, "seeds": 1}
    draw = cells("08", "ablation-function", turns=0)["ablation"]
    figure = draw(pd.DataFrame([row]), ["preference"], "b", "n = 50.")
    assert values(figure.axes[0]) == [0.5] and "Components added one after the other" in one_line(figure)


def test_what_stands_before_the_first_step_is_drawn_with_what_it_is_told():
    names = {"Free user embedding": "answers", "LoRA": "name", "PrefMoE": "anchors"}
    rows = [
        {"method": m, "type": "PEFT", "backbone": backbone, "turns": 0, "metric": metric, "value": 0.5 + 0.1 * k,
         "low": 0.4 + 0.1 * k, "high": 0.6 + 0.1 * k, "n": 20, "seeds": 1, "information": shown}
        for k, (m, shown) in enumerate([*names.items(), ("Full fine-tuning", "name")])
        for metric in ("auc_told", "auc_untold_fresh", "profile") for backbone in ("b", "another")
    ]  # fmt: skip
    methods = {m: SimpleNamespace(label=m, kind="lora" if m == "LoRA" else "prefmoe") for m in names}
    edition = SimpleNamespace(ablation_backbone="b", methods=methods)
    (figure,) = cells("08", "before-figure", table1=pd.DataFrame(rows), turns=0, settings=edition).figures
    assert [values(axis) for axis in figure.axes] == [pytest.approx([0.5, 0.6, 0.7])] * 2
    assert all(upright(axis) == [0.5] for axis in figure.axes) and NAME_ALONE.search(figure.get_label())
    assert "Free user embedding 0.50, LoRA 0.60, PrefMoE 0.70 (b, 0 turns)" in one_line(figure)


# Notebook 13


def protocol(rows: list[dict]) -> dict:
    """What the notebook's functions need, for one experiment of the given differences."""
    where = {"experiment": "it", "split": "test", "turns": 0, "group": "all", "n": 40, "seeds": 3, "paired": 1,
             "method": "PrefMoE", "backbone": "b", "reference": "none", "p_users": 0.5}  # fmt: skip
    table = pd.DataFrame([where | row for row in rows])
    asked = SimpleNamespace(question="Does it matter?", backbones=["b"])
    return {"differences": table, "questions": {"it": asked}, "BARS": "Bars: what they are.", "OLDER": {}}


CHANGE = ("verdict-functions", "functions", "function-change")
"""Cells of notebook 13 that draw what an experiment's variants change."""


def test_variants_stand_beside_one_another_a_row_per_metric():
    rows = [
        {"variant": v, "metric": m, "difference": d, "low": d - 0.05, "high": d + 0.05,
         "p_users_holm": 0.01 if d else 1.0}
        for m in metrics.METRICS for v, d in (("0", 0.0), ("50", -0.2))
    ]  # fmt: skip
    figure = cells("13", *CHANGE, **protocol(rows))["change"]("it")
    (axis,) = figure.axes
    assert values(axis) == pytest.approx([-0.2] * 6 + [0] * 6) and filled(axis) == pytest.approx([-0.2] * 6)
    assert len(axis.get_yticklabels()) == 6 and upright(axis)[0] == 0
    written = one_line(figure)
    assert "It, beside none: 50 is better in collapse; worse in 5 metrics." in written
    assert "Does it matter? Minus the reference (none)" in written and "40 overall" in written and "3 seeds" in written


def test_without_a_paired_test_a_mark_is_filled_where_the_interval_leaves_out_0():
    rows = [
        {"variant": "new", "method": method, "group": g, "metric": m, "difference": 0.1, "low": low, "high": 0.2,
         "paired": 0, "p_users_holm": np.nan}
        for m in ("preference", "collapse") for method, low in (("LoRA", 0.05), ("PrefMoE", -0.01))
        for g in ("all", PAIR_GROUPS[0])
    ]  # fmt: skip
    figure = cells("13", *CHANGE, **protocol(rows))["change"]("it")
    assert len(figure.axes) == 2
    assert all(filled(axis) == pytest.approx([0.1, 0.1]) for axis in figure.axes)
    assert "hence no paired test" in one_line(figure) and style.METHODS["LoRA"].colour in {
        to_hex(c.get_edgecolor()[0]).upper() for c in figure.axes[0].collections if isinstance(c, PathCollection)
    }
    nothing = protocol(
        [{"variant": "v", "metric": "recall", "difference": 0.0, "low": -1, "high": 1, "p_users_holm": 1}]
    )
    assert "Nothing is told apart" in one_line(cells("13", *CHANGE, **nothing)["change"]("it"))


def test_curves_along_an_axis_hold_the_tables_values():
    rows = [
        {"backbone": "b", "method": method, "x": x, "grouping": grouping, "group": group, "metric": m,
         "value": 0.1 * k + x / 1000, "low": 0.0, "high": 0.9, "n": 30, "seeds": 3}
        for k, method in enumerate(("LoRA", "PrefMoE")) for x in (10, 30, 100)
        for m in ("collapse", "preference", "sensitivity")
        for grouping, group in (("all", "all"), ("item", "rare"), ("item", "popular"))
    ]  # fmt: skip
    trends = pd.DataFrame([
        {"experiment": "it", "backbone": "b", "method": m, "grouping": "all", "metric": "sensitivity", "slope": s}
        for m, s in (("LoRA", 0.01), ("PrefMoE", -0.2))
    ])  # fmt: skip
    given = protocol([]) | {"results": {"it": pd.DataFrame(rows)}, "trends": trends}
    along = cells("13", "functions", "function-along", **given)["along"]
    figure = along("it", "users")
    assert [axis.get_title() for axis in figure.axes] == [
        "Collapse (lower is better)",
        "Sensitivity (recall − collapse)",
    ]
    drawn = {to_hex(line.get_color()).upper(): line for line in figure.axes[0].lines if len(line.get_xdata()) == 3}
    assert list(drawn[style.METHODS["PrefMoE"].colour].get_ydata()) == pytest.approx([0.11, 0.13, 0.2])
    assert "LoRA +0.01, PrefMoE -0.20" in one_line(figure)
    by_item = along("it", "users", grouping="item")
    assert [axis.get_title() for axis in by_item.axes] == ["rare", "popular", "", ""]
    assert "popularity of the item" in one_line(by_item)


# Notebook 14


def uncertain(*ids: str, names: dict[str, pd.DataFrame], folder: Path | None = None) -> Cells:
    given = {"content": names, "main_rows": names.get, "first": "b", "turns": 0, "seeds": "one seed for all"}
    return cells("14", *ids, folder=folder, **given)


def test_the_forest_has_a_mark_per_backbone_and_a_diamond_with_its_number():
    found = uncertain("forest-function", names={"forest": differences()})
    figure = found["forest"](["preference"])
    axis = figure.axes[0]
    assert values(axis) == pytest.approx(sorted([0.02, -0.02, 0, 0.12, 0.08, 0.1]))
    dots = [c for c in axis.collections if isinstance(c, PathCollection)]
    black = [x for c in dots for x, face in zip(c.get_offsets()[:, 0], c.get_facecolor(), strict=True)
             if to_hex(face).upper() == style.INK]  # fmt: skip
    assert sorted(black) == pytest.approx([0.0, 0.1])
    assert ends(axis) == pytest.approx(sorted([*differences()["low"][::6], *differences()["high"][::6]]))
    assert "+0.100 [+0.060, +0.140]" in text(figure)
    assert "intervals without 0, uncorrected: better than 1, worse than 0 in preference" in one_line(figure)
    assert [
        len(uncertain("forest-function", "forest-figure", "forest-detail", names={"forest": differences()}).figures)
    ] == [3]


def test_the_forest_of_one_backbone_has_its_numbers_and_no_diamond():
    one = differences(backbones=(("b", 0.0, 0.04),))
    one.loc[one["baseline"] == "LoRA", ["difference", "low", "high"]] = np.nan
    figure = uncertain("forest-function", names={"forest": one})["forest"](["preference", "collapse"])
    assert "+0.100 [+0.060, +0.140]" in text(figure) and "nan" not in text(figure)
    assert "mean of all" not in text(figure)


def test_the_forest_counts_a_row_of_one_backbone_by_that_backbone():
    table = differences()
    rival = table[(table["backbone"] == "a") & (table["baseline"] == "LoRA")].assign(baseline="Soft prompt")
    table = pd.concat([table, rival.assign(low=0.01)])
    figure = uncertain("forest-function", names={"forest": table})["forest"](["preference"])
    said = "uncorrected: better than 2, worse than 0 in preference accuracy (mean of all or a, 0 turns)"
    assert said in one_line(figure)
    assert len(values(figure.axes[0])) == 7 and "+0.020 [+0.010, +0.120]" in text(figure)


def test_detectable_differences_are_drawn_as_they_are(tmp_path):
    rows = [
        {"backbone": "b", "turns": 0, "metric": m, "grouping": g, "group": group, "n": n, "users": 9, "methods": 4,
         "design_effect": 2.0, "unpaired": 0.2 / n, "paired": 0.1 / n, "paired_corrected": 0.15 / n}
        for m, g, group, n in (("overall", "all", "all", 90), ("collapse", "bucket", "small_<=4", 12))
    ]  # fmt: skip
    names, ids = {"detectable": pd.DataFrame(rows)}, ("asked-function", "detectable-figure")
    (figure,) = uncertain(*ids, names=names, folder=tmp_path).figures
    assert values(figure.axes[0]) == pytest.approx(sorted(k / n for k in (0.1, 0.15, 0.2) for n in (90, 12)))
    assert "overall accuracy (90, 9)" in text(figure) and "collapse, held by at most 4 (12, 9)" in text(figure)
    assert "0.002 (overall accuracy)" in one_line(figure) and (tmp_path / "detectable.png").is_file()


def test_reliability_diagrams_show_accuracy_against_confidence():
    where = {"type": "PEFT", "backbone": "b", "turns": 0}
    bins = [
        {"method": m, **where, "metric": "overall", "bin_low": c - 0.05, "bin_high": c + 0.05, "confidence": c,
         "value": v, "low": v - 0.1, "high": v + 0.1, "n": n, "seeds": 2}
        for m in ("LoRA", "PrefMoE") for c, v, n in ((0.65, 0.5, 10), (0.95, 0.8, 40))
    ]  # fmt: skip
    errors = [
        {"method": m, **where, "metric": metric, "value": 0.15, "low": 0.1, "high": 0.2, "floor": 0.03, "n": 25,
         "confidence": 0.8, "accuracy": 0.7, "seeds": 2}
        for m in ("LoRA", "PrefMoE") for metric in ("overall", "preference", "profile")
    ]  # fmt: skip
    names = {"reliability": pd.DataFrame(bins), "calibration": pd.DataFrame(errors)}
    summary, figure = uncertain("calibration-figure", "reliability-diagrams", names=names).figures
    for axis in figure.axes:
        (marked,) = [c for c in axis.collections if isinstance(c, PathCollection)]
        assert np.asarray(marked.get_offsets()) == pytest.approx(np.array([[0.65, 0.5], [0.95, 0.8]]))
    assert "ECE 0.150 [0.100, 0.200]" in text(figure) and "calibrated: 0.030" in text(figure)
    assert "n = 25 questions" in text(figure)
    assert values(summary.axes[0]) == pytest.approx([0.03, 0.03, 0.15, 0.15]) and "25 preference" in one_line(summary)


def test_separation_draws_every_measure_of_methods_and_references():
    measures = ("distance", "alignment", "auc", "auc_same")
    rows = [
        {"method": m, "type": t, "backbone": b, "turns": 0, "measure": measure, "value": 0.1 * k + 0.2 * j,
         "low": 0.1 * k, "high": 0.1 * k + 0.5, "n": 30 + j, "seeds": 2}
        for k, (m, t, b) in enumerate((("LoRA", "PEFT", "b"), ("Chance", "Reference", "none")))
        for j, measure in enumerate(measures)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    ids = ("separation-function", "separation-figure", "separation-detail")
    first, second = uncertain(*ids, names={"separation": table}).figures
    for axis, measure in zip([*first.axes, *second.axes], ("alignment", "auc_same", "distance", "auc"), strict=True):
        expected = table.loc[table["measure"] == measure, "value"]
        assert values(axis) == pytest.approx(sorted(expected))
        assert upright(axis) == [0.5 if measure.startswith("auc") else 0, 1]
    assert "31 (Alignment" in one_line(first) and "33 (AUC, same" in one_line(first)


def test_turns_are_curves_with_the_focus_method_behind():
    table = pd.concat([table1().assign(turns=t, value=table1()["value"] - t / 100) for t in (0, 2, 5)])
    table = table[(table["type"] != "Reference")].drop_duplicates(["method", "turns", "metric"])
    table = table.assign(change=-table["turns"] / 100, change_low=-table["turns"] / 50, change_high=0.01)
    table.loc[table["method"] == "LoRA", "change_high"] = -0.01
    change, figure = uncertain("turns-figure", "turns-curves", names={"turns": table}).figures
    names = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert names == ["Non-tuned", "LoRA", "PrefMoE"]
    for axis, method in zip(figure.axes, names, strict=False):
        rows = table[(table["method"] == method) & (table["metric"] == "overall")].sort_values("turns")
        own = [line for line in axis.lines if to_hex(line.get_color()).upper() == style.SERIES[0].colour]
        assert [(list(line.get_xdata()), list(line.get_ydata())) for line in own] == [
            ([0, 2, 5], pytest.approx(list(rows["value"])))
        ]
        behind = [line for line in axis.lines if to_hex(line.get_color()).upper() == style.MUTED]
        assert len(behind) == (0 if method == "PrefMoE" else 2)
    assert "PrefMoE, for comparison" in one_line(figure)
    assert values(change.axes[0]) == pytest.approx([-0.05] * 3) and len(filled(change.axes[0])) == 1
    said = "lose by small talk (interval without 0, uncorrected): 1 in overall accuracy, 1 in sensitivity (b)"
    assert said in one_line(change)
