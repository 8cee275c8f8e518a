"""Own data: few columns, one profile picture, few splits, other kinds of tables, pictures in the table; names."""

import base64
import csv
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError
from synthetic_mmpb import change_row, make, rows, write_csv, write_split

from prefmoe.data import mmpb
from prefmoe.data.benchmark import Benchmark, User
from prefmoe.data.columns import COLUMNS, DEFAULTS, IMAGE_COLUMNS, REQUIRED
from prefmoe.data.rows import MMPBError

CONTENT = ("name", "question", "options", "answer", "category", "l2_category", "semantic_invert", "bucket_names")


@pytest.fixture
def folder(tmp_path) -> Path:
    return make(tmp_path / "data")


def asked(benchmark: Benchmark) -> dict[int, tuple]:
    """What is asked about which pixels, wherever they lie."""
    return {
        index: (*(getattr(example, field) for field in CONTENT), example.image.read_bytes())
        for index, example in benchmark.examples.items()
    }


def faces(benchmark: Benchmark) -> dict[str, list[bytes]]:
    return {name: [path.read_bytes() for path in user.images] for name, user in benchmark.users.items()}


def tables(folder: Path, table: pd.DataFrame) -> None:
    """The same table as CSV, TSV and parquet beside one another."""
    root = folder / "mmpb_clean"
    table.to_csv(root / "sample.csv", index=False)
    table.to_csv(root / "sample.tsv", index=False, sep="\t")
    table.to_parquet(root / "sample.parquet", index=False)


def test_required_columns_alone_are_read(folder):
    """Without the others, people are human, nothing is known of their preferences and no question is negated."""
    few = [row for row in rows() if row["task_family"] == "recognition_yesno"]
    write_csv(folder, [{column: row[column] for column in REQUIRED} for row in few])
    write_split(folder, train=[int(row["index"]) for row in few])
    benchmark = mmpb.read(folder)
    assert len(benchmark.examples) == len(few) and not any(user.preferences for user in benchmark.users.values())
    assert {user.attribute for user in benchmark.users.values()} == {"human"}
    assert [len(user.images) for user in benchmark.users.values()] == [1] * len(benchmark.users)
    assert {split: len(found) for split, found in benchmark.splits.items() if found} == {"train": len(few)}
    frame = benchmark.frame.reset_index()
    assert list(frame.columns) == list(COLUMNS) and not frame.isna().any().any()
    assert set(frame["task_family"]) == {"recognition_yesno"} and set(frame["answer_text"]) <= {"yes", "no"}
    assert set(frame["preference_semantic_invert"]) == {0}


def test_an_absent_column_is_the_same_as_its_default_in_every_row(folder):
    table = [row | DEFAULTS for row in rows() if row["task_family"] == "recognition_yesno"]
    write_split(folder, test=[int(row["index"]) for row in table])
    write_csv(folder, table)
    full = mmpb.read(folder)
    write_csv(folder, [{column: row[column] for column in REQUIRED} for row in table])
    assert mmpb.read(folder).digest == full.digest


@pytest.mark.parametrize("column", REQUIRED)
def test_each_required_column_is_named_where_it_is_missing(folder, column):
    write_csv(folder, [{key: value for key, value in row.items() if key != column} for row in rows()])
    with pytest.raises(MMPBError, match=f"sample.csv, line 1: missing column\\(s\\): '{column}'"):
        mmpb.read(folder)


def test_further_columns_are_kept_and_count(folder):
    plain = mmpb.read(folder)
    write_csv(folder, [row | {"difficulty": f"hard {row['index']}"} for row in rows()])
    benchmark = mmpb.read(folder)
    assert benchmark.frame["difficulty"].tolist() == [f"hard {index}" for index in benchmark.frame.index]
    assert benchmark.frame.drop(columns="difficulty").equals(plain.frame)
    assert benchmark.digest != plain.digest
    write_csv(folder, [row | {"difficulty": "easy"} for row in rows()])
    assert mmpb.read(folder).digest not in (benchmark.digest, plain.digest)


def test_only_the_first_profile_picture_is_needed(folder):
    columns = IMAGE_COLUMNS[2:]
    write_csv(folder, [row | dict.fromkeys(columns, "") for row in rows()])
    assert {len(user.images) for user in mmpb.read(folder).users.values()} == {1}
    write_csv(folder, [row | {"injection_image_1": ""} for row in rows()])
    with pytest.raises(MMPBError, match="line 2, field injection_image_1 .*: expected the path of a picture, found ''"):
        mmpb.read(folder)


@pytest.mark.parametrize("csv", ["sample.tsv", "sample.parquet"])
def test_other_kinds_of_tables_say_the_same(folder, csv):
    table = pd.DataFrame(rows()).astype({"index": int, "answer": int}).replace("", None)
    tables(folder, table)
    assert mmpb.read(folder, csv=csv).digest == mmpb.read(folder).digest


def test_holders_in_a_list_are_those_between_separators(folder):
    table = pd.DataFrame(rows())
    lists = [[name.strip() for name in cell.split("|") if name.strip()] for cell in table["preference_bucket_names"]]
    assert max(map(len, lists)) > 1 and [] in lists
    table.to_csv(folder / "mmpb_clean/sample.csv", index=False)
    table.assign(preference_bucket_names=lists, tags=[["kept", "as text"]] * len(table)).to_parquet(
        folder / "mmpb_clean/lists.parquet", index=False
    )
    direct, listed = mmpb.read(folder), mmpb.read(folder, csv="lists.parquet")
    assert asked(listed) == asked(direct)
    assert listed.frame.drop(columns="tags").equals(direct.frame)
    assert [list(example.bucket_names) for example in listed.examples.values()] == lists


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("preference_bucket_names", ["Ann | Bo"], r"expected a name without '\|', .* in a list of names, found 'Ann"),
        ("preference_bucket_names", ["Ann", None], "expected a user's name as text in a list of names, found None"),
        ("preference_bucket_names", {"name": "Ann"}, "expected one value, found {'name': 'Ann'}"),
        ("question", ["Is it?", "Or not?"], r"expected one value, found \['Is it\?', 'Or not\?'\]"),
        ("preference_common_items", b"tea", "expected one value, found b'tea'"),
    ],
)
def test_a_cell_of_several_values_is_refused(folder, column, value, expected):
    table = pd.DataFrame(rows())
    table[column] = [value if place == 8 else None for place in range(len(table))]
    table.to_parquet(folder / "mmpb_clean/lists.parquet", index=False)
    with pytest.raises(MMPBError, match=rf"lists.parquet, row 9, field {column} \(index 8\): {expected}"):
        mmpb.read(folder, csv="lists.parquet")


@pytest.mark.parametrize(
    ("csv", "place"), [("sample.csv", "line 18"), ("sample.tsv", "line 18"), ("sample.parquet", "row 9")]
)
def test_mistakes_are_named_in_every_kind_of_table(folder, csv, place):
    table = pd.DataFrame(rows())
    table.loc[8, "answer"] = "9"
    tables(folder, table)
    with pytest.raises(MMPBError, match=f"{csv}, {place}, field answer \\(index 8\\): expected a code from 0 to 5"):
        mmpb.read(folder, csv=csv)


def test_a_damaged_or_absent_table_is_named(folder):
    tables(folder, pd.DataFrame(rows()))
    path = folder / "mmpb_clean/sample.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(MMPBError, match="mmpb_clean/sample.parquet: not a whole parquet file"):
        mmpb.read(folder, csv="sample.parquet")
    for ending in ("csv", "parquet"):
        with pytest.raises(MMPBError, match=f"full.{ending}: cannot be read: No such file .*sample.csv, sample.par"):
            mmpb.read(folder, csv=f"full.{ending}")
        os.mkfifo(folder / f"mmpb_clean/pipe.{ending}")
        with pytest.raises(MMPBError, match=f"pipe.{ending}: cannot be read: Not a regular file"):
            mmpb.read(folder, csv=f"pipe.{ending}")


def packed(folder: Path, row: dict[str, str]) -> dict[str, str]:
    """A row with its pictures as base64 text, the asked one in a column `image`."""
    texts = {column: base64.b64encode((folder / row[column]).read_bytes()).decode() for column in IMAGE_COLUMNS}
    return row | texts | {"image": texts["image_path"], "image_path": f"{row['index']}.jpg"}


def test_pictures_as_base64_text_are_read(folder):
    direct = mmpb.read(folder)
    table = [packed(folder, row) for row in rows()]
    with open(folder / "mmpb_clean/packed.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(table)
    benchmark = mmpb.read(folder, csv="packed.tsv")
    assert asked(benchmark) == asked(direct) and faces(benchmark) == faces(direct)
    assert "image" not in benchmark.frame and benchmark.examples[0].image.is_relative_to(folder / mmpb.UNPACKED)
    unpacked = benchmark.examples[0].image
    content = unpacked.read_bytes()
    unpacked.write_bytes(content[::-1])
    assert mmpb.read(folder, csv="packed.tsv").digest == benchmark.digest and unpacked.read_bytes() == content


def test_one_row_may_show_the_picture_of_another(folder):
    """VLMEvalKit's tables hold a picture once, and its row's index where it is shown again."""
    table = [packed(folder, row) for row in rows()]
    for row in table[1:]:
        row["image"] = "0"
    write_csv(folder, table)
    images = {example.image for example in mmpb.read(folder).examples.values()}
    assert len(images) == 1 and images.pop().read_bytes() == (folder / rows()[0]["image_path"]).read_bytes()
    table[3]["image"] = "77"
    write_csv(folder, table)
    with pytest.raises(MMPBError, match=r"field image_path \(index 3\): expected a file .*found '77'"):
        mmpb.read(folder)


@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_pictures_in_parquet_are_read(folder, kind):
    direct = mmpb.read(folder)
    table = pd.DataFrame(rows())
    for column in IMAGE_COLUMNS:
        data = [(folder / path).read_bytes() for path in table[column]]
        table[column] = [{"bytes": one, "path": "x.png"} if kind == "struct" else one for one in data]
    table = table.rename(columns={"image_path": "image"})
    table.to_parquet(folder / "mmpb_clean/packed.parquet", index=False)
    benchmark = mmpb.read(folder, csv="packed.parquet")
    assert asked(benchmark) == asked(direct) and faces(benchmark) == faces(direct)


def test_faulty_pictures_in_a_table_are_named(folder):
    table = [packed(folder, row) for row in rows()]
    table[2]["image"] = "iVBORw0KGgo=?"
    table[3]["injection_image_2"] = base64.b64encode(b"no picture" * 200).decode()
    write_csv(folder, table)
    with pytest.raises(MMPBError) as caught:
        mmpb.read(folder)
    found = str(caught.value)
    assert "field image_path (index 2): expected a path or a picture as base64 text" in found
    assert "field injection_image_2 (index 3): expected a picture (PNG, JPEG, WEBP), found something else" in found


@pytest.mark.parametrize("link", ["mmpb_clean/unpacked", "mmpb_clean"])
def test_pictures_in_a_table_are_not_unpacked_through_a_link_that_leaves_the_folder(folder, link):
    write_csv(folder, [packed(folder, row) for row in rows()])
    outside = folder.with_name("outside")
    if link == "mmpb_clean":
        (folder / link).rename(outside)
    else:
        outside.mkdir()
    before = sorted(outside.rglob("*"))
    (folder / link).symlink_to(outside)
    with pytest.raises(MMPBError, match=r"field image_path \(index 0\): mmpb_clean/unpacked is a link that leaves"):
        mmpb.read(folder)
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("file", ["mmpb_clean/split.json", "multi_turn/generic_text/talk.json"])
def test_a_number_without_end_is_named(folder, file):
    (folder / file).write_text("[" + "1" * 5000 + "]")
    with pytest.raises(MMPBError, match=f"{file}: expected numbers of 4300 digits at most, found a longer one"):
        mmpb.read(folder)
    write_csv(folder, [rows()[0] | {"index": "1" * 5000}, *rows()[1:]])
    with pytest.raises(MMPBError, match="line 2, field index: expected a non-negative integer, found '1111"):
        mmpb.read(folder)


def test_half_a_character_is_named(folder):
    """No tokenizer takes it."""
    talk = [{"role": "user", "content": "Hello \ud800"}, {"role": "assistant", "content": "Hello \U0001f600"}]
    (folder / "multi_turn/generic_text/talk.json").write_text(json.dumps(talk))
    with pytest.raises(MMPBError, match=r"talk.json, line 1: not valid JSON: half a character, .ud800, column 37$"):
        mmpb.read(folder)


NAMES = {
    "Ann\nLee": "line breaks",
    "Ann\tLee\x07": "control characters",
    "Ann\u2028Lee": "line breaks",
    "Ann | Bo": r"without '\|'",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_told_from_others_is_refused(folder, name):
    table = rows()
    for row in table:
        row["name"] = name if row["name"] == "Bo" else row["name"]
    write_csv(folder, table)
    expected = rf"sample.csv, line 18, field name \(index 8\): expected a name .*{NAMES[name]}"
    with pytest.raises(MMPBError, match=expected):
        mmpb.read(folder)


@pytest.mark.parametrize("name", [*NAMES, "", " Ann", "Ann "])
def test_a_user_has_a_name_that_can_be_said(name):
    about = dict(attribute="human", description="Tall.", preferences={}, images=(Path("a.png"),))
    assert User(name="Anne-Marie O'Neil, Jr. (2)", **about)
    with pytest.raises(ValidationError, match="expected a"):
        User(name=name, **about)


def test_annotations_and_small_talk_come_from_regular_files(folder):
    (folder / "multi_turn/generic_text/talk.json").unlink()
    os.mkfifo(folder / "multi_turn/generic_text/talk.json")
    os.mkfifo(folder / "mmpb_clean/annotations.csv")
    with pytest.raises(MMPBError) as caught:
        mmpb.read(folder)
    for file in ("multi_turn/generic_text/talk.json", "mmpb_clean/annotations.csv"):
        assert f"{file}: cannot be read: Not a regular file" in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Ann, Ye Wen", "expected 'Ann | Ye Wen', found 'Ann, Ye Wen'"),
        ("Ann;Ye Wen", "expected 'Ann | Ye Wen', found 'Ann;Ye Wen'"),
        ("ANN | Ye Wen", "expected 'Ann' as the column name has it, found 'ANN'"),
        ("Ye\u2002Wen | Ａnn", "expected 'Ann' as the column name has it, found 'Ａnn'"),
    ],
)
def test_holders_in_another_form_are_named_and_not_taken_for_strangers(folder, cell, expected):
    """They would leave recall and collapse without a word."""
    table = rows()
    table[0]["preference_bucket_names"] = cell
    write_csv(folder, table)
    with pytest.raises(MMPBError) as error:
        mmpb.read(folder)
    assert f"line 2, field preference_bucket_names (index 0): {expected}" in str(error.value)


@pytest.mark.parametrize(
    "cell",
    ["['Ann', 'Ye Wen']", '["Ann", "Ye Wen"]', "('Ann',)", "[]", "'Ann'", "Ann\nYe Wen", "Ann\r\nBo", "Ann and Bob",
     "Ann & Bob", "Ann/Bob", "Ann, Ye Wen, Stranger", "Ann;Stranger", "Ann, Stranger"],
)  # fmt: skip
def test_a_list_in_another_form_is_no_stranger(folder, cell):
    change_row(folder, 0, preference_bucket_names=cell)
    with pytest.raises(MMPBError) as error:
        mmpb.read(folder)
    expected = "field preference_bucket_names (index 0): expected names with ' | ' between them"
    assert f"sample.csv, line 2, {expected}" in str(error.value) and f"found {cell!r}" in str(error.value)
    change_row(folder, 0, preference_bucket_names="Ann | Bo\nYe Wen")
    with pytest.raises(MMPBError, match=r"\(index 0\): expected names with ' \| ' between them"):
        mmpb.read(folder)


@pytest.mark.parametrize(
    "cell",
    ["Ann | Somebody, Else", "Ann | Stranger", "Stranger", "Anne O'Neil", "Andy Sandberg", "A and B |", "Smith, John",
     "A & B"],
)  # fmt: skip
def test_holders_who_ask_nothing_may_be_anybody(folder, cell):
    change_row(folder, 0, preference_bucket_names=cell)
    names = tuple(name.strip() for name in cell.split("|") if name)
    assert mmpb.read(folder).examples[0].bucket_names == names


def test_a_user_whose_name_is_like_a_list_is_one_holder(folder):
    table = rows()
    for row in table:
        row["name"] = {"Ann": "Ann and Bob", "Bo": "Smith, John"}.get(row["name"], row["name"])
    for row, cell in zip(table, ("Ann and Bob", "Smith, John", "Ann and Bob | Smith, John"), strict=False):
        row["preference_bucket_names"] = cell
    write_csv(folder, table)
    found = [mmpb.read(folder).examples[index].bucket_names for index in range(3)]
    assert found == [("Ann and Bob",), ("Smith, John",), ("Ann and Bob", "Smith, John")]


def test_an_empty_cell_says_what_an_absent_column_says(folder):
    table = [row | {"attribute": "", "preference_semantic_invert": ""} for row in rows()]
    write_csv(folder, table)
    empty = mmpb.read(folder)
    absent = ("attribute", "preference_semantic_invert")
    write_csv(folder, [{key: value for key, value in row.items() if key not in absent} for row in table])
    assert mmpb.read(folder).digest == empty.digest
    assert not any(example.semantic_invert for example in empty.examples.values())


def test_a_split_that_is_there_twice_is_named(folder):
    (folder / "mmpb_clean" / "split.json").write_text('[{"tasks": [{"test_idx": [6], "test_idx": [7]}]}]')
    with pytest.raises(MMPBError, match="split.json: expected each key once, found 'test_idx' twice"):
        mmpb.read(folder)
