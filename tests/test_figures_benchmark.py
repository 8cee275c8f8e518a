"""Figures of notebooks 1 to 4 and 12, drawn by their own cells: by the values in their artists."""

from __future__ import annotations

import pandas as pd
import pytest
from notebook_cells import cells, ends, filled, one_line, values

from prefmoe.analysis import published

# Notebook 1


def test_the_published_tables_are_drawn_number_by_number(tmp_path):
    ids = ("printed-function", "accuracies", "overall", "collapse", "ablation", "ablation-detail")
    table1, table2 = published.read("table1"), published.read("table2")
    shown = cells("01", *ids, table1=table1, table2=table2, folder=tmp_path).figures
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published_collapse.png", "published_table1.png"]
    axes = [axis for figure in shown for axis in figure.axes]
    metrics = ("preference", "profile", "overall", "collapse", "preference", "collapse", "overall", "profile")
    for axis, metric, table in zip(axes, metrics, [table1] * 4 + [table2] * 4, strict=True):
        rows = table[table["metric"] == metric]
        assert values(axis) == pytest.approx(sorted(rows["value"]))
        assert filled(axis) == pytest.approx(sorted(rows.loc[rows["turns"] == 0, "value"]))
        assert ends(axis) == pytest.approx(values(axis))  # a line from one number of turns to the other
    for metric, figure in zip(("preference", "overall", "collapse"), (shown[0], *shown[1:3]), strict=True):
        best = 0
        for backbone in ("LLaVA-1.5-7B", "LLaVA-1.5-13B", "LLaVA-OV-72B", "DeepSeek-VL2-Tiny", "DeepSeek-VL2-Small",
                         "DeepSeek-VL2", "Qwen2.5-VL-7B", "Qwen2.5-VL-32B", "Qwen2.5-VL-72B"):  # fmt: skip
            rows = table1[(table1["metric"] == metric) & (table1["turns"] == 0)]
            ours = rows.loc[rows["method"] == f"PrefMoE ({backbone})", "value"].item()
            others = rows.loc[rows["method"] == backbone, "value"]
            best += ours < others.min() if metric == "collapse" else ours > others.max()
        assert f"{best} of 9" in one_line(figure)
    assert "n = 750 preference, 1395 profile questions" in one_line(shown[0]) and "no interval" in one_line(shown[0])
    fall = (table2.query("turns == 0 and metric == 'collapse'").set_index("components")["value"]).diff().min()
    assert f"({fall:+.3f})" in one_line(shown[3])


def test_a_title_about_the_printed_numbers_follows_them():
    table = published.read("table1")
    worse = table["method"].eq("PrefMoE (DeepSeek-VL2)") & table["metric"].eq("preference")
    changed = table.assign(value=table["value"].mask(worse, 0.1))
    figure, *_ = cells("01", "printed-function", "accuracies", table1=changed, table2=pd.DataFrame()).figures
    assert "8 of 9 (preference) and 9 of 9 (profile)" in one_line(figure)
