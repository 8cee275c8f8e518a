"""What came out, at the end of the notebooks: the numbers are the tables', and what is concluded follows from them."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from committed import Tables, around, dot, holds
from conclusions import CELL, CONCLUSIONS, TITLE, with_conclusions, written

from prefmoe.analysis.answers import TableError
from prefmoe.config import ROOT
from prefmoe.workflow.notebooks import check_outputs, defaults, read

NOTEBOOKS = {name: next((ROOT / "notebooks").glob(f"{name}_*.ipynb")) for name in CONCLUSIONS}


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_the_sentences_of_a_notebook_are_those_of_the_committed_tables(name):
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(NOTEBOOKS[name].read_text("utf-8"))["cells"]}
    assert cells[CELL] == written(name), "run `python workflow/scripts/publish.py pages`"
    assert 3 <= len(re.findall(r"[.?](?=\s|$)", cells[CELL])) <= 5
    for sentence in cells[CELL].removeprefix(TITLE).strip().splitlines():
        assert re.search(r"\d", sentence), f"no number: {sentence}"
        longest = max(len(part.split()) for part in re.split(r"(?<=[.?])\s", sentence))
        assert longest <= 64, f"{longest} words in one sentence: {sentence}"
    assert not re.search(r"nan|None|-\.0+\b|\{|\}", cells[CELL])


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_readers_conclude_before_they_are_told_and_exercises_come_last(name):
    ids, texts = zip(*((c.id, c.source) for c in nbformat.read(NOTEBOOKS[name], as_version=4).cells), strict=True)
    assert ids.index(CELL) == len(ids) - 2 and texts[-1].startswith("## A question to try")
    assert "**What to conclude" not in texts[-1]


def test_every_notebook_about_results_has_sentences():
    paths = (ROOT / "notebooks").glob("*.ipynb")
    editions = ("mini", "preference-mini", "generation-mini", "ladder", "ranking", "rivals")
    about = {path.name[:2] for path in paths if defaults(read(path)).get("edition") in editions}
    assert about <= set(CONCLUSIONS)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy of the committed tables and notebooks."""
    shown = ("mini", "preference-mini", "generation-mini", "ladder", "ranking", "rivals")
    for name in (*(f"figures/{edition}" for edition in shown), "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    return tmp_path


def change(clone: Path, table: str, column: str, value: float, **where: object) -> None:
    path = clone / f"figures/{table}.csv"
    rows = pd.read_csv(path)
    chosen = pd.Series(True, rows.index)
    for name, wanted in where.items():
        chosen &= rows[name] == wanted
    assert chosen.any()
    rows.loc[chosen, column] = value
    rows.to_csv(path, index=False)


LORA = {"method": "LoRA", "backbone": "llava-mini", "turns": 0}


def test_numbers_follow_the_tables_and_prose_and_outputs_stay(clone):
    before = {path.name: nbformat.read(path, as_version=4) for path in (clone / "notebooks").glob("*.ipynb")}
    change(clone, "mini/table1", "value", 0.5312, metric="profile", **LORA)
    assert len(with_conclusions(clone)) == len(CONCLUSIONS)
    for path in sorted((clone / "notebooks").glob("*.ipynb")):
        after = nbformat.read(path, as_version=4)
        assert [c for c in after.cells if c.id != CELL] == [c for c in before[path.name].cells if c.id != CELL]
        check_outputs(path)
    (table,) = (clone / "notebooks").glob("07_*.ipynb")
    assert "and .53 by LoRA with names alone" in table.read_text("utf-8")


def test_a_notebook_without_the_cell_gets_it_before_its_last_one(clone):
    (path,) = (clone / "notebooks").glob("04_*.ipynb")
    content = nbformat.read(path, as_version=4)
    content.cells = [cell for cell in content.cells if cell.id != CELL]
    nbformat.write(content, path)
    with_conclusions(clone)
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert ids.count(CELL) == 1 and ids.index(CELL) == len(ids) - 2


def test_a_conclusion_that_no_longer_follows_is_named_and_no_notebook_is_touched(clone):
    change(clone, "mini/table1", "low", 0.52, metric="auc_same", **LORA)
    before = {path: path.read_bytes() for path in (clone / "notebooks").glob("*.ipynb")}
    with pytest.raises(TableError, match="notebook 04: it no longer holds that names alone hardly tell anybody apart"):
        with_conclusions(clone)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("lift", [-0.4, 0.0, 0.3])
def test_repeating_oneself_is_told_by_coverage_whatever_the_lift(clone, lift):
    """The lift of name-only LoRA changes its sign with seed and pictures; coverage does not."""
    where = {"users": "trained", "items": "fresh", "liked": "all"}
    for column, value in (("value", lift), ("low", lift - 0.1), ("high", lift + 0.1)):
        change(clone, "ranking/ranking", column, value, method="LoRA", measure="lift", k=5, **where)
    others = {"method": "PrefMoE", "baseline": "LoRA", "measure": "lift"}
    change(clone, "ranking/ranking_comparisons", "low", -1.0, **others, **where)
    assert f"(lift {dot(lift)} [{dot(lift - 0.1)}, {dot(lift + 0.1)}])" in written("29", clone)
    full = Tables(clone).row("ranking/ranking", method="PrefMoE", measure="coverage", k=5, **where)["value"]
    change(clone, "ranking/ranking", "value", full / 1.9, method="LoRA", measure="coverage", k=5, **where)
    with pytest.raises(TableError, match="notebook 29: it no longer holds that name-only LoRA repeats itself"):
        written("29", clone)


def test_a_router_that_routes_takes_its_sentence_back(clone):
    change(clone, "mini/routing_gates", "value", 0.9, router="preference", expert=1, group="preference, travel")
    with pytest.raises(TableError, match="notebook 11: it no longer holds that the preference router does not route"):
        written("11", clone)


@pytest.mark.parametrize(
    ("notebook", "table", "where", "column", "value", "said"),
    [
        ("17", "preference-mini/table1", {"method": "Ideal reader of the history", "n_ref": 8}, "value", 0.7, "ideal"),
        ("18", "preference-mini/table1", {"method": "Population's choice"}, "high", 0.8, "a history tells more"),
        ("24", "generation-mini/alignment", {"method": "All, MMD"}, "mmd", 0.5, "each loss lowers its own"),
        ("27", "generation-mini/table1", {"condition": "Noise led by like", "measure": "reward"}, "low", 0.5, "rater"),
    ],
)
def test_a_third_sentence_is_taken_back_where_its_table_says_otherwise(
    clone, notebook, table, where, column, value, said
):
    assert written(notebook, clone)
    change(clone, table, column, value, **where)
    with pytest.raises(TableError, match=f"notebook {notebook}: it no longer holds that .*{said}"):
        written(notebook, clone)


def test_tables_rows_and_outputs_that_are_missing_are_named(clone):
    tables = Tables(clone)
    with pytest.raises(TableError, match="figures/mini/nothing.csv: no such table"):
        tables.rows("mini/nothing")
    with pytest.raises(TableError, match="table1.csv: no row with .*'Nobody'"):
        tables.main("Nobody", "overall")
    with pytest.raises(TableError, match=r"table1.csv: \d+ rows with .*, expected one"):
        tables.row("mini/table1", method="LoRA")
    with pytest.raises(TableError, match="10_attention_maps.ipynb: no output says 'in all facets'"):
        tables.printed("10", "in all facets")


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (0.528, 2, ".53"),
        (-0.0041, 3, "-.004"),
        (-0.0001, 3, ".000"),
        (1.0, 2, "1.00"),
        (-1.25, 1, "-1.2"),
        (0.0, 2, ".00"),
    ],
)
def test_numbers_are_written_as_on_the_pages(value, places, text):
    assert dot(value, places) == text


def test_an_interval_stands_beside_its_value():
    assert around(pd.Series({"difference": -0.05, "low": -0.1, "high": 0.004}), 2, "difference") == "-.05 [-.10, .00]"
    holds(True, "anything")
