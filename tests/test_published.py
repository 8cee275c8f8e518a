"""The printed tables are found, and reshaped without loss."""

import pandas as pd

from prefmoe.analysis import published


def test_wide_keeps_every_number_and_the_printed_order():
    table = published.read("table2")
    lines = published.wide(table)
    assert lines.index.get_level_values("components").unique().tolist() == ["E", "EP", "EPI", "EPIC", "EPICD", "EPICDM"]
    assert lines.size == len(table) and lines.loc[("EPIC", 10), "collapse"] == 0.2603
    assert isinstance(lines, pd.DataFrame)
    lines = published.wide(published.read("table1"))
    assert lines.index.names == ["type", "method", "turns"] and lines.loc[("PEFT", "LOVA3", 0), "preference"] == 0.568


def test_the_questions_are_those_of_the_dataset_table():
    table = published.read("dataset_statistics")
    test = table[table["split"] == "test"].set_index("question_type")["count"]
    preference, profile = (test[test.index.str.startswith(kind)].sum() for kind in ("preference", "recognition"))
    expected = {"preference": preference, "profile": profile, "overall": preference + profile}
    assert expected == {metric: published.QUESTIONS[metric] for metric in expected}
