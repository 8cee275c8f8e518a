"""Folders of choices: what is read, and what is said where something is wrong."""

import csv
from pathlib import Path

import pytest
from choice_worlds import TINY
from tiny_benchmark import make_picture

from prefmoe.config import ChoicesData, load_edition
from prefmoe.config.benchmarks import ChoiceFolderData
from prefmoe.data import choice_folder
from prefmoe.data.choice_folder import COLUMNS
from prefmoe.data.rows import MMPBError
from prefmoe.data.sources import SourceError, load_benchmark, load_choices, prepare_data

ROWS = [
    ["0", "Ann", "two hats", "p/0.png", "p/1.png", "", "", "train"],
    ["1", "Ann", "two hats", "p/2.png", "p/3.png", "", "", "train"],
    ["2", "Ann", "a cat", "p/4.png", "p/5.png", "p/6.png", "p/7.png", "test"],
    ["3", "Bob", "a cat", "p/8.png", "p/9.png", "", "", "reference"],
    ["4", "Bob", "", "p/4.png", "p/6.png", "", "", "unseen"],
]


def _save(folder: Path, rows=ROWS, header=COLUMNS) -> Path:
    (folder / "p").mkdir(parents=True)
    with (folder / "choices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    for number in range(10):
        make_picture(number).save(folder / f"p/{number}.png")
    return folder


def _changed(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(values) for values in ROWS]
    rows[row][COLUMNS.index(column)] = value
    return rows


def test_a_folder_is_read_as_it_says(tmp_path):
    benchmark = choice_folder.read(_save(tmp_path / "own"))
    assert benchmark.users == {"Ann": 0, "Bob": 1}
    assert benchmark.references == {"Ann": (0, 1), "Bob": (3,)}
    assert benchmark.splits == {"train": (0, 1), "validation": (), "test": (2,), "unseen": (4,)}
    choice = benchmark.choices[2]
    assert (choice.user, choice.prompt) == ("Ann", "a cat")
    assert [benchmark.relative(picture) for picture in choice.candidates] == [f"p/{k}.png" for k in (4, 5, 6, 7)]
    assert benchmark.choices[4].prompt == "" and benchmark.attributes is None and benchmark.utilities is None


def test_columns_of_others_may_be_absent(tmp_path):
    header = [column for column in COLUMNS if not column.startswith("other")]
    rows = [values[:5] + values[7:] for values in ROWS]
    assert choice_folder.read(_save(tmp_path / "own", rows, header)).choices[2].others == ()


def test_the_digest_tells_choices_and_pictures_and_not_the_place(tmp_path):
    first = choice_folder.read(_save(tmp_path / "one")).digest
    assert choice_folder.read(_save(tmp_path / "two")).digest == first
    assert choice_folder.read(_save(tmp_path / "three", _changed(0, "prompt", "one hat"))).digest != first
    make_picture(77).save(tmp_path / "two/p/0.png")
    assert choice_folder.read(tmp_path / "two").digest != first


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "index", "0", r"line 3, field index: expected an index that occurs once \(line 2 has it, too\)"),
        (0, "index", "-1", r"line 2, field index: expected a non-negative integer, found '-1'"),
        (0, "user", "", r"line 2, field user \(index 0\): expected a user's name"),
        (0, "split", "dev", r"line 2, field split .*: expected one of train, .*, reference, found 'dev'"),
        (0, "liked", "", r"field liked .*: expected the path of the picture that was liked"),
        (0, "disliked", "p/0.png", r"line 2, field disliked .*: expected a picture that is not in this choice already"),
        (2, "other_2", "p/4.png", r"field other_2 .*: expected a picture that is not in this choice already"),
        (0, "disliked", "./p/0.png", r"line 2, field disliked .*: expected a picture .* already \(liked has it\)"),
        (2, "liked", "p/../p/4.png", r"line 4, field liked .*: expected a path relative to the data folder"),
        (2, "liked", "./p/1.png", r"line 4, field liked .*: expected a picture that is in no choice of train \(line 2"),
        (2, "other_1", "", r"field other_1 .*: expected a picture, as other_2 names one"),
        (0, "liked", "p/99.png", r"line 2, field liked .*: expected a file that can be read .*found 'p/99.png'"),
        (0, "liked", "../p.png", r"field liked .*: expected a path relative to the data folder"),
        (2, "liked", "p/1.png", r"line 4, field liked .*: expected a picture that is in no choice of train \(line 2"),
        (4, "disliked", "p/8.png", r"line 6, field disliked .*: expected a picture that is in no choice of reference"),
        (3, "user", "Cid", r"line 5, field user .*: expected two choices of user 'Cid' at least"),
        (3, "split", "unseen", r"line 5, field split .*: expected choices of user 'Bob' that are his history"),
        (3, "split", "train", r"line 6, field split .*: expected test, as user 'Bob' has training choices"),
        (4, "split", "test", r"line 6, field split .*: expected unseen, as user 'Bob' has no training choices"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_what_was_expected(tmp_path, row, column, value, message):
    folder = _save(tmp_path / "own", _changed(row, column, value))
    with pytest.raises(MMPBError, match=message) as caught:
        choice_folder.read(folder)
    assert "choices.csv, line" in str(caught.value)


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        ("1.png", r"line 2, field disliked .*: expected a picture .* already \(liked has it\), found 'p/1.png'"),
        ("7.png", r"line 4, field other_2 .*: expected a picture that is in no choice of train \(line 2 has it\)"),
    ],
)
def test_copies_of_a_picture_are_the_same_picture_under_any_name(tmp_path, copy, message):
    folder = _save(tmp_path / "own")
    (folder / "p" / copy).write_bytes((folder / "p/0.png").read_bytes())
    with pytest.raises(MMPBError, match=message):
        choice_folder.read(folder)


def test_damaged_pictures_missing_columns_and_empty_tables_are_named(tmp_path):
    folder = _save(tmp_path / "own")
    whole = (folder / "p/2.png").read_bytes()
    (folder / "p/2.png").write_bytes(whole[:-30])
    with pytest.raises(MMPBError, match=r"choices\.csv, line 3, field liked \(index 1\): expected a complete picture"):
        choice_folder.read(folder)
    with pytest.raises(MMPBError, match=r"line 1: missing column\(s\): 'split'"):
        choice_folder.read(_save(tmp_path / "two", [values[:-1] for values in ROWS], COLUMNS[:-1]))
    with pytest.raises(MMPBError, match="expected at least one choice, found none"):
        choice_folder.read(_save(tmp_path / "three", []))
    with pytest.raises(MMPBError, match=r"choices\.csv: no such file; expected a folder of choices"):
        choice_folder.read(tmp_path / "nowhere")


ATTRIBUTES = ["picture,colour", *(f"p/{k}.png,{'red' if k % 2 else 'blue'}" for k in range(10))]
UTILITIES = ["user,group,red,blue", "Ann,0,1.5,-1", "Bob,1,0,0.25"]


def _tastes(folder: Path, attributes=ATTRIBUTES, utilities=UTILITIES) -> Path:
    (folder / "attributes.csv").write_text("\n".join(attributes))
    (folder / "utilities.csv").write_text("\n".join(utilities))
    return folder


def test_true_tastes_are_read_where_they_are_known(tmp_path):
    benchmark = choice_folder.read(_tastes(_save(tmp_path / "own")))
    assert benchmark.attributes["colour"].to_dict()["p/3.png"] == "red"
    assert benchmark.utilities.loc["Bob"].to_dict() == {"group": 1, "red": 0.0, "blue": 0.25}
    assert benchmark.digest != choice_folder.read(_save(tmp_path / "two")).digest


@pytest.mark.parametrize(
    ("attributes", "utilities", "message"),
    [
        (
            ATTRIBUTES[:-1],
            UTILITIES,
            r"attributes\.csv: expected every picture of choices\.csv, 1 missing, such as 'p/9",
        ),
        (
            [*ATTRIBUTES, ATTRIBUTES[1]],
            UTILITIES,
            r"attributes\.csv, line 12, field picture: expected each picture once",
        ),
        (ATTRIBUTES, UTILITIES[:-1], r"utilities\.csv: expected every user of choices\.csv, 1 missing, such as 'Bob'"),
        (ATTRIBUTES, [*UTILITIES[:-1], "Bob,1,0,much"], r"utilities\.csv, line 3, field blue: expected a number, f"),
        (
            ATTRIBUTES,
            [*UTILITIES[:-1], "Bob,x,0,1"],
            r"utilities\.csv, line 3, field group: expected the number of a taste group",
        ),
        (
            ATTRIBUTES,
            [*UTILITIES[:-1], "Bob,1.5,0,1"],
            r"utilities\.csv, line 3, field group: expected the number of a taste group",
        ),
        (["colour"], UTILITIES, r"attributes\.csv, line 1: missing column\(s\): 'picture'"),
    ],
)
def test_tastes_that_are_wrong_are_named(tmp_path, attributes, utilities, message):
    with pytest.raises(MMPBError, match=message):
        choice_folder.read(_tastes(_save(tmp_path / "own"), attributes, utilities))


def test_one_of_the_two_tables_of_tastes_asks_for_the_other(tmp_path):
    folder = _tastes(_save(tmp_path / "own"))
    (folder / "utilities.csv").unlink()
    with pytest.raises(MMPBError, match=r"utilities\.csv: cannot be read"):
        choice_folder.read(folder)


def _edition(data):
    return load_edition("smoke").model_copy(update={"data": data})


def test_an_edition_s_choices_are_drawn_or_read(tmp_path, monkeypatch):
    drawn = load_choices(_edition(TINY), tmp_path)
    assert drawn.root == tmp_path / "smoke/data" and load_choices(_edition(TINY), tmp_path) is drawn
    own = _save(tmp_path / "own")
    data = ChoiceFolderData(kind="choice_folder", folder=str(own))
    assert load_choices(_edition(data), tmp_path).root == own
    monkeypatch.setenv("PREFMOE_DATA", str(own))
    assert load_choices(_edition(ChoiceFolderData(kind="choice_folder")), tmp_path).root == own
    monkeypatch.delenv("PREFMOE_DATA")
    with pytest.raises(SourceError, match="needs a folder of choices: set the environment variable PREFMOE_DATA"):
        load_choices(_edition(ChoiceFolderData(kind="choice_folder")), tmp_path)


def test_questions_and_choices_are_not_taken_for_one_another(tmp_path):
    with pytest.raises(SourceError, match="'smoke' asks questions: `load_benchmark`"):
        load_choices(load_edition("smoke"), tmp_path)
    for load in (load_benchmark, prepare_data):
        with pytest.raises(SourceError, match="about choices between pictures: `load_choices`"):
            load(_edition(ChoicesData(kind="choices")), tmp_path)
