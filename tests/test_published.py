"""The printed tables: found, reshaped, and checked against themselves with numbers worked out by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from prefmoe import published


def test_overall_is_recomputed_from_its_parts():
    checks = published.recomputed_overall(published.read("table1"))
    worst = checks.iloc[0]
    assert checks.index[0] == ("NT", "Qwen2.5-VL-7B", 0)
    assert worst["printed"] == 0.4276 and worst["computed"] == pytest.approx(0.4931, abs=5e-5)


def test_impossible_shares_are_those_that_no_count_rounds_to():
    table = published.read("table1")
    found = published.impossible_shares(table)
    for metric, n in published.QUESTIONS.items():
        printed = {f"{k / n:.4f}" for k in range(n + 1)}
        values = table.loc[table["metric"] == metric, "value"]
        assert found.loc[metric, "impossible"] == sum(f"{value:.4f}" not in printed for value in values)
        assert found.loc[metric, "printed"] == len(values)


def test_small_talk_takes_one_constant_from_each_of_four_baselines():
    changes = published.turn_changes(published.read("table1")).loc["PEFT"]
    for method, constant in {"Yo'LLaVA": 0.02, "LLaVA-NeXT-34B": 0.03, "LOVA3": 0.035, "TG-LLaVA": 0.04}.items():
        assert changes.loc[method, ["overall", "preference", "profile"]].tolist() == pytest.approx([-constant] * 3)


def test_wide_keeps_every_number_and_the_printed_order():
    table = published.read("table2")
    lines = published.wide(table, rows="components")
    assert lines.index.get_level_values("components").unique().tolist() == ["E", "EP", "EPI", "EPIC", "EPICD", "EPICDM"]
    assert lines.size == len(table) and lines.loc[("EPIC", 10), "collapse"] == 0.2603
    assert isinstance(lines, pd.DataFrame)
