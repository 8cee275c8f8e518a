"""Pages have the numbers of the committed tables between their marks, and nothing else of them is touched."""

import re

import pandas as pd
import pytest
from pages import TABLES, main_tables, with_tables

from prefmoe.analysis.answers import TableError

COLUMNS = ["method", "type", "backbone", "turns", "metric", "value", "low", "high", "n", "seeds", "information"]
ROWS = [
    ["PrefMoE", "PEFT", "a", 0, "recall", 0.5, 0.4, 0.66, 240, 3, "anchors"],
    ["PrefMoE", "PEFT", "a", 0, "auc_same", 0.8199, 0.78, 0.86, 386, 3, "anchors"],
    ["PrefMoE", "PEFT", "a", 10, "auc_same", 0.1, 0.0, 0.2, 386, 3, "anchors"],
    ["LoRA", "PEFT", "a", 0, "auc_same", -0.0001, None, None, 386, 1, "name"],
    ["PrefMoE", "PEFT", "b", 0, "auc_same", 0.7, 0.6, 0.8, 386, 3, "anchors"],
    ["Chance", "Reference", "none", 0, "auc_same", 0.5, 0.5, 0.5, 386, 1, "nobody"],
]


@pytest.fixture
def figures(tmp_path):
    (tmp_path / "mini").mkdir()
    pd.DataFrame(ROWS, columns=COLUMNS).to_csv(tmp_path / "mini/table1.csv", index=False)
    return tmp_path


def test_a_short_table_has_the_measures_in_their_order_and_only_those_that_there_are():
    first, second = main_tables(pd.DataFrame(ROWS, columns=COLUMNS), 0, ("auc_same", "auc_told", "recall"), 2).split(
        "**b.**"
    )
    assert first == (
        "**a.** Questions: auc_same 386, recall 240. PrefMoE: mean of 3 seeds; other trained rows: one seed.\n\n"
        "| method | information | auc_same | recall |\n|---|---|--:|--:|\n"
        "| PrefMoE | anchors | 0.82 ± 0.04 | 0.50 ± 0.13 |\n| LoRA | name | 0.00 | – |\n"
        "| Chance | nobody | 0.50 ± 0.00 | – |\n\n"
    )
    assert second.endswith("| PrefMoE | anchors | 0.70 ± 0.10 | – |\n") and "| Chance" not in second
    assert "Trained rows: mean of 3 seeds. References: above.\n" in second


def test_a_long_table_has_first_what_tells_users_apart(figures):
    text = with_tables("<!-- table: main -->\n<!-- end -->\n", figures=figures)
    assert "| method | information | auc_same | recall |" in text and "Questions: auc_same 386, recall 240." in text
    assert "| PrefMoE | anchors | 0.820 ± 0.040 | 0.500 ± 0.130 |" in text


def test_what_stands_between_marks_is_replaced_and_the_rest_is_left(figures):
    page = "before\n<!-- table: headline -->\nold\n<!-- end -->\nafter <!-- a comment -->\n"
    text = with_tables(page, figures=figures)
    assert text.startswith("before\n<!-- table: headline -->\n\n**a.**") and text.endswith(
        "<!-- end -->\nafter <!-- a comment -->\n"
    )
    assert "old" not in text and with_tables(text, figures=figures) == text


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("headline", "main", "main after small talk")])
def test_a_table_that_nobody_has_committed_is_named(figures, name):
    text = with_tables(f"<!-- table: {name} -->\n<!-- end -->\n", figures=figures)
    assert "Nobody has committed `config/tuning/" if name == "trials" else "Nobody has committed `figures/" in text
    assert ".csv`" in text


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_written_from_what_is_committed(name):
    text = with_tables(f"<!-- table: {name} -->\n<!-- end -->\n")
    assert "nan" not in text and "-0.000" not in text and "None" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 2 or re.search("Nobody has committed|Profiles tell everything", text)


NO_ROWS = {"made with", "survey map", "cpu", "ladder skills"}
"""Tables whose lines are no methods of an edition."""


@pytest.mark.parametrize("name", [name for name in TABLES if name not in NO_ROWS])
def test_every_table_of_methods_says_what_they_are_shown(name):
    text = with_tables(f"<!-- table: {name} -->\n<!-- end -->\n")
    heads = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][:1]
    told = ("information", "what the baseline is shown", "at_test")
    assert any(f"| {column} |" in head for head in heads for column in told) or "Profiles tell everything" in text


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no marks", "expected one <!-- end -->"),
        ("<!-- table: main -->\n", "expected one <!-- end -->"),
        ("<!-- table: main -->\n<!-- table: main -->\n<!-- end -->", "expected one <!-- end -->"),
        ("<!-- end -->\n<!-- table: main -->\n", "expected one <!-- end -->"),
        ("<!-- table: mine -->\n<!-- end -->\n", "no table 'mine'; expected one of headline, main"),
    ],
)
def test_pages_with_other_marks_are_refused(figures, page, message):
    with pytest.raises(TableError, match=message):
        with_tables(page, figures=figures)
