"""workflow/notebooks.yaml: every notebook has a row, every file it makes a caption, no caption is left over."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ROWS = yaml.safe_load((ROOT / "workflow/notebooks.yaml").read_text(encoding="utf-8"))
CAPTIONS = {path.stem for path in (ROOT / "workflow/report").glob("*.rst")}
RULES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk")}
OF_THEIR_OWN = {"06_train_and_evaluate", "13_protocol_questions", "18_train_and_choose", "25_train_and_draw"}
"""Notebooks whose rules are written by hand: one job per run, or a target of its own."""


def caption(file: str) -> str:
    """As `shown` of rules/common.smk chooses it."""
    stem, _, ending = file.replace("_{backbone}", "").partition(".")
    return f"{stem}_table" if ending == "csv" and f"{stem}_table" in CAPTIONS else stem


def tables() -> set[str]:
    """The tables of rules/common.smk: those of every edition, and those that some promise."""
    listed = re.findall(r"^(?:CHOICE_|PICTURE_)?TABLES = \{.*?^\}", RULES["common.smk"], re.M | re.S)
    assert len(listed) == 3
    lists = re.findall(r"\[(.*?)\]", "".join(listed))
    lists += re.findall(r"^\w+_TABLE = .*\[(.+?)\]", RULES["common.smk"], re.M)
    return {name for names in lists for name in re.findall(r'"(\w+)"', names)}


def test_every_notebook_has_one_rule() -> None:
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(ROWS) | OF_THEIR_OWN == notebooks and not set(ROWS) & OF_THEIR_OWN
    names = [row["rule"] for row in ROWS.values()]
    names += [name for text in RULES.values() for name in re.findall(r"^rule (\w+):", text, re.M)]
    assert len(set(names)) == len(names)


def test_every_caption_belongs_to_a_file_and_every_file_has_one() -> None:
    made = {caption(file) for row in ROWS.values() for file in row["makes"]}
    made |= {caption(f"{name}.csv") for name in tables()}
    by_hand = {name for text in RULES.values() for name in re.findall(r'caption="\.\./report/(\w+)\.rst"', text)}
    assert "table1" in made and "protocol" in by_hand
    assert made | by_hand | {"workflow"} == CAPTIONS


@pytest.mark.parametrize("kind", ["choices", "pictures"])
def test_tables_that_several_kinds_of_edition_have_under_one_name_have_captions_of_their_own(kind: str) -> None:
    (listed,) = re.findall(rf"^{kind[:-1].upper()}_TABLES = \{{.*?^\}}", RULES["common.smk"], re.M | re.S)
    (answers,) = re.findall(r"^TABLES = \{.*?^\}", RULES["common.smk"], re.M | re.S)
    shared = set(re.findall(r'"(\w+)"', listed)) & set(re.findall(r'"(\w+)"', answers)) - {"Tables", "information"}
    own = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "workflow/report" / kind).glob("*.rst")}
    assert own.keys() == shared and {"table1", "table1_seeds", "comparisons"} <= shared
    assert all("small talk" not in text and "AUC" not in text for text in own.values())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_its_notebook_reads_and_makes(name: str) -> None:
    row = ROWS[name]
    optional = {"files", "tables", "runs", "model", "cards", "about", "data", "edition", "kinds", "priority"}
    assert {"rule", "category", "makes"} <= set(row) <= {"rule", "category", "makes"} | optional
    assert row.get("runs") in (None, "all", "full", "complete") and row.get("model") in (None, "full", "first")
    assert {"files", "tables", "runs"} & set(row), "it reads something"
    assert set(row.get("tables", ())) <= tables()
    code = (ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8")
    assert row.get("cards", False) == bool(re.search(r"backbones(\.| import )cards\b", code))
    for file in row["makes"]:
        assert file.partition("{")[0].removesuffix(".csv").removesuffix(".png") in code, file
