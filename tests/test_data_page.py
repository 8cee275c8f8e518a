"""docs/data.md: its table is the reader's, and its smallest example is read and asked about."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import DOCS, blocks

from prefmoe.data import mmpb
from prefmoe.data.columns import COLUMNS, DEFAULTS, IMAGE, REQUIRED
from prefmoe.data.pictures import FORMATS
from prefmoe.data.rows import TABLES
from prefmoe.data.splits import ANNOTATION_COLUMNS, SPLIT_KEYS

PAGE = "data.md"
TEXT = (DOCS / PAGE).read_text(encoding="utf-8")


def test_the_table_names_the_reader_s_columns_with_what_is_needed_and_what_is_not():
    rows = re.findall(r"^\| `([\w-]+)` \| (yes|no) \| (?:`([^`]*)`)? *\|", TEXT, re.M)
    assert sorted(name for name, _, _ in rows) == sorted([*COLUMNS, IMAGE])
    assert {name for name, needed, _ in rows if needed == "yes"} == set(REQUIRED)
    assert {name: default for name, _, default in rows if name in DEFAULTS} == DEFAULTS


def test_the_page_names_every_split_and_annotation_and_format():
    for name in (*SPLIT_KEYS, *ANNOTATION_COLUMNS):
        assert f"`{name}`" in TEXT, name
    for name in (*FORMATS, *(ending.strip(".") for ending in TABLES)):
        assert name.lower() in TEXT.lower(), name


@pytest.fixture
def mydata(tmp_path, monkeypatch) -> Path:
    """The page's smallest example, with pictures where its table says."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "mydata"
    (root / "mmpb_clean").mkdir(parents=True)
    (table,), (split,) = blocks(PAGE, "csv"), blocks(PAGE, "json")
    (root / "mmpb_clean/sample.csv").write_text(table, encoding="utf-8")
    (root / "mmpb_clean/split.json").write_text(split, encoding="utf-8")
    for number, path in enumerate(sorted(set(re.findall(r"mmpb_clean/[\w/]+\.png", table)))):
        (root / path).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / path)
    return root


def test_the_smallest_example_has_the_required_columns_alone(mydata):
    benchmark = mmpb.read(mydata)
    (table,) = blocks(PAGE, "csv")
    assert table.splitlines()[0].split(",") == list(REQUIRED)
    assert {split: len(found) for split, found in benchmark.splits.items() if found} == {"train": 2, "test": 1}
    assert {name: len(user.images) for name, user in benchmark.users.items()} == {"Ann": 1, "Bob": 1}


def test_the_page_s_code_asks_one_question(mydata):
    (code,) = blocks(PAGE, "python")
    space: dict = {}
    exec(compile(code, PAGE, "exec"), space)
    answers = space["answers"]
    assert answers["name"].tolist() == ["Ann"] and answers["question"].tolist() == ["Is <sks> in this picture?"]
    assert answers["prediction"].notna().all()
