"""Pick-a-Pic's parquet files: which rows and users stay, in which split, and what is said of rows that cannot be."""

import io
import json
import os

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from PIL import Image

from prefmoe.config import PickAPicData, load_edition
from prefmoe.data import choice_folder, pick_a_pic
from prefmoe.data.rows import MMPBError
from prefmoe.data.sources import load_choices

FEW = PickAPicData(kind="pick_a_pic", minimum_liked=3, unseen_references=2)
LEFT, RIGHT, TIE, NOTHING = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)


def _picture(uid: str) -> bytes:
    """A picture that only this uid has."""
    rng = np.random.default_rng(list(uid.encode()))
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _row(user: int, caption: str, first: str, second: str, labels=LEFT, **changed) -> dict:
    """A row with all the columns of the hub's files."""
    row = {
        "are_different": True, "best_image_uid": first, "caption": caption,
        "created_at": pd.Timestamp("2023-05-01"), "has_label": True,
        "image_0_uid": first, "image_0_url": "", "image_1_uid": second, "image_1_url": "",
        "jpg_0": _picture(first), "jpg_1": _picture(second), "label_0": labels[0], "label_1": labels[1],
        "model_0": "a", "model_1": "b", "ranking_id": 0, "user_id": user, "num_example_per_prompt": 1,
    }  # fmt: skip
    return row | changed


def _own(user: int, part: str, count: int) -> list[dict]:
    """Choices of a user for as many prompts."""
    return [_row(user, f"{part} prompt {k}", f"{part}{user}-{k}a", f"{part}{user}-{k}b") for k in range(count)]


def _rows() -> dict[str, list[dict]]:
    """Users 1 and 2 are trained on, 3 likes too few; 1 is tested too, 4 and 5 are unseen, 6 has a single prompt."""
    train = _own(1, "train", 4) + _own(2, "train", 3) + _own(3, "train", 2)
    train[1] = _row(1, "train prompt 1", "train1-1a", "train1-1b", RIGHT)
    train += [
        _row(2, "unlabelled", "n0", "n1", NOTHING, has_label=False),
        _row(2, "same", "n2", "n3", are_different=False),
        _row(2, "tied", "n4", "n5", TIE),
    ]
    test = _own(1, "test", 3)
    test[0] = _row(1, "repeated", "test1-0a", "train1-2b")  # shows a picture of training
    test += [_row(1, "test prompt 1", "test1-1a", f"test1-1{name}") for name in "cd"]  # one among four
    test += _own(4, "test", 5) + _own(5, "test", 4)
    test += [_row(6, "alone", f"alone{k}", "alone") for k in range(3)]
    return {"train": train, "validation": _own(2, "validation", 3), "test": test}


def _save(folder, rows: dict[str, list[dict]]):
    """The hub's files in the folder's data/, training in two of them, the rows of each in small groups."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    files = {f"train-{k}-of-2": rows["train"][k::2] for k in (0, 1)}
    files |= {f"{part}-0-of-1": rows[part] for part in ("validation", "test")}
    files["test_unique-0-of-1"] = rows["test"][:1]
    for name, own in files.items():
        pd.DataFrame(own).to_parquet(folder / "data" / f"{name}.parquet", row_group_size=3)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("hub"), _rows())


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    return pick_a_pic.unpack(FEW, source, tmp_path_factory.mktemp("unpacked") / "data")


@pytest.fixture(scope="module")
def benchmark(folder):
    return choice_folder.read(folder)


def _prompts(benchmark, split, user):
    return [choice.prompt for choice in benchmark.select(split) if choice.user == user]


def test_users_are_trained_on_tested_or_unseen_as_the_hub_s_parts_say(benchmark):
    assert sorted(_prompts(benchmark, "train", "1")) == [f"train prompt {k}" for k in range(4)]
    assert sorted(_prompts(benchmark, "train", "2")) == [f"train prompt {k}" for k in range(3)]
    assert _prompts(benchmark, "validation", "2") == [f"validation prompt {k}" for k in range(3)]
    assert _prompts(benchmark, "test", "1") == ["test prompt 1", "test prompt 2", "test prompt 1", "test prompt 1"]
    assert {choice.user for choice in benchmark.select("unseen")} == {"4", "5"}
    assert set(benchmark.users) == {"1", "2", "4", "5"} and benchmark.trained_users == ["1", "2"]


def test_unseen_users_have_a_history_of_other_prompts_than_they_are_asked_about(benchmark):
    for user, count in (("4", 5), ("5", 4)):
        history = [benchmark.choices[i].prompt for i in benchmark.references[user]]
        assert history == ["test prompt 0", "test prompt 1"]
        assert _prompts(benchmark, "unseen", user) == [f"test prompt {k}" for k in range(2, count)]
    benchmark.check_histories(2, ("test", "unseen"))


def test_the_preferred_picture_is_the_liked_one_and_every_picture_is_there_once_by_its_uid(benchmark, folder):
    chosen = {choice.prompt: choice for choice in benchmark.select("train") if choice.user == "1"}
    assert (chosen["train prompt 0"].liked.stem, chosen["train prompt 0"].disliked.stem) == ("train1-0a", "train1-0b")
    assert (chosen["train prompt 1"].liked.stem, chosen["train prompt 1"].disliked.stem) == ("train1-1b", "train1-1a")
    files = {path.stem: path for path in (folder / "pictures").rglob("*.jpg")}
    shown = {picture for choice in benchmark.choices.values() for picture in choice.candidates}
    assert set(files.values()) == shown
    for uid, path in files.items():
        assert path.read_bytes() == _picture(uid)


def test_pictures_that_lost_to_the_same_one_make_one_among_four(benchmark):
    first, other, *_ = benchmark.select("test")
    assert [picture.stem for picture in first.candidates] == ["test1-1a", "test1-1b", "test1-1c", "test1-1d"]
    assert len(other.candidates) == 2


def test_what_is_left_out_is_counted(folder):
    assert json.loads((folder / pick_a_pic.LEFT_OUT).read_text()) == {
        "rows without a label": 1,
        "rows with the same picture twice": 1,
        "ties": 1,
        "users of a part with fewer than 3 liked pictures": 1,
        "targets with a picture of training or a history": 1,
        "users of whom only a history is left": 1,
        "rows with the same picture under two uids": 0,
    }


def test_the_same_bytes_under_two_uids_are_one_picture(tmp_path):
    """The hub tells pictures apart by uid; an edition refuses to ask about a picture that was trained on."""
    rows = _rows()
    trained = rows["train"][0]["jpg_0"]
    rows["test"][1] |= {"jpg_1": trained}  # a target that shows a picture of training
    rows["train"][2] |= {"jpg_1": rows["train"][2]["jpg_0"]}  # a choice between a picture and itself
    folder = pick_a_pic.unpack(FEW, _save(tmp_path / "hub", rows), tmp_path / "data")
    counted = json.loads((folder / pick_a_pic.LEFT_OUT).read_text())
    assert counted["rows with the same picture under two uids"] == 1
    assert counted["targets with a picture of training or a history"] == 2
    shown = {picture.stem for choice in choice_folder.read(folder).select("test") for picture in choice.candidates}
    assert not shown & {"test1-1b", "train1-0a"} and "test1-1c" in shown


def test_eleven_different_liked_pictures_are_asked_for_by_default(tmp_path):
    rows = {"train": _own(1, "train", 11) + _own(2, "train", 10), "validation": _own(9, "validation", 1)}
    rows["train"] += [_row(2, "again", "train2-0a", f"again{k}") for k in range(5)]
    rows["test"] = _own(4, "test", 12)
    plain = PickAPicData(kind="pick_a_pic")
    benchmark = choice_folder.read(pick_a_pic.unpack(plain, _save(tmp_path / "hub", rows), tmp_path / "data"))
    assert set(benchmark.users) == {"1", "4"} and len(benchmark.references["4"]) == 8


def test_where_nobody_is_left_that_is_said(source, tmp_path):
    many = FEW.model_copy(update={"minimum_liked": 50})
    with pytest.raises(
        MMPBError, match=r"expected users who liked 50 pictures; left out: 1 rows without a label, .* ti"
    ):
        pick_a_pic.unpack(many, source, tmp_path / "data")


def test_files_are_unpacked_once_and_again_when_they_change(source, tmp_path):
    target = tmp_path / "data"
    pick_a_pic.unpack(FEW, source, target)
    before = (target / "choices.csv").stat().st_mtime_ns
    pick_a_pic.unpack(FEW, source, target)
    assert (target / "choices.csv").stat().st_mtime_ns == before
    changed = _save(tmp_path / "hub", _rows() | {"validation": _own(2, "validation", 4)})
    assert len(choice_folder.read(pick_a_pic.unpack(FEW, changed, target)).select("validation")) == 4


def test_an_edition_with_these_data_is_loaded(source, tmp_path, benchmark):
    data = FEW.model_copy(update={"folder": str(source)})
    edition = load_edition("smoke").model_copy(update={"data": data})
    assert load_choices(edition, tmp_path).digest == benchmark.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_0": 0.0}, r"train-1-of-2\.parquet, row 1, field label_1: expected a preference .*found 0\.0"),
        ({"label_1": 1.0}, r"row 1, field label_1: expected a preference .*found 1\.0"),
        ({"label_0": 0.7}, r"row 1, field label_0: expected 0, 0\.5 or 1, found 0\.7"),
        ({"label_1": None}, r"row 1, field label_1: expected 0, 0\.5 or 1, found nan"),
        ({"user_id": None}, r"row 1, field user_id: expected the number of a user"),
        ({"user_id": 1.5}, r"row 1, field user_id: expected the number of a user, or letters, .*found 1\.5"),
        ({"image_1_uid": "train1-0a", "image_0_uid": "train1-0a"}, r"row 1, field image_1_uid: expected another pic"),
        ({"image_0_uid": "../a"}, r"row 1, field image_0_uid: expected letters, digits, - and _, found '\.\./a'"),
        ({"jpg_0": None}, r"train-1-of-2\.parquet, row 1, field jpg_0: expected the bytes of a picture, found none"),
        ({"jpg_1": _picture("x")[:200]}, r"row 1, field jpg_1: expected a complete picture, found a damaged"),
        ({"jpg_1": b"<html>"}, r"row 1, field jpg_1: expected a picture \(PNG, JPEG, WEBP\)"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path, change, message):
    rows = _rows()
    rows["train"][1] = _row(1, "train prompt 1", "train1-1a", "train1-1b") | change
    with pytest.raises(MMPBError, match=message):
        pick_a_pic.unpack(FEW, _save(tmp_path / "hub", rows), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label_0", "1.0", r"row 2, field label_0: expected 0, 0\.5 or 1, found '1\.0'"),
        ("has_label", "False", r"row 2, field has_label: expected true or false, found 'False'"),
        ("user_id", "a b", r"row 2, field user_id: expected the number of a user, or letters, .*found 'a b'"),
        ("caption", b"a cat", r"row 2, field caption: expected a prompt as text, found b'a cat'"),
        ("jpg_0", {"url": "a"}, r"row 1, field jpg_0: expected a picture as \{bytes, path\}, found fields url"),
        ("jpg_0", {"bytes": None, "path": "a.jpg"}, r"row 1, field jpg_0: expected the bytes of a picture, found none"),
    ],
)
def test_a_column_of_another_type_is_named_by_row(tmp_path, column, value, message):
    rows = _rows()
    rows["train"] = [row | {column: value} for row in rows["train"]]
    with pytest.raises(MMPBError, match=rf"train-0-of-2\.parquet, {message}"):
        pick_a_pic.unpack(FEW, _save(tmp_path / "hub", rows), tmp_path / "data")


def test_pictures_may_be_structs_as_on_the_hub_and_users_may_be_called_by_letters(tmp_path, benchmark):
    rows = _rows()
    for row in (row for own in rows.values() for row in own):
        row |= {f"jpg_{k}": {"bytes": row[f"jpg_{k}"], "path": None} for k in (0, 1)}
        row["user_id"] = f"u{row['user_id']}"
    read = choice_folder.read(pick_a_pic.unpack(FEW, _save(tmp_path / "hub", rows), tmp_path / "data"))
    assert list(read.users) == [f"u{user}" for user in benchmark.users]
    shown = [[[picture.name for picture in one.candidates] for one in b.choices.values()] for b in (read, benchmark)]
    assert shown[0] == shown[1]


def test_a_file_that_is_damaged_where_its_pictures_are_is_named_by_row(tmp_path):
    source = _save(tmp_path / "hub", _rows())
    path = source / "data/train-0-of-2.parquet"
    columns = pyarrow.parquet.read_metadata(path).row_group(1).to_dict()["columns"]
    pictures = next(column for column in columns if column["path_in_schema"] == "jpg_0")
    start = pictures["dictionary_page_offset"] or pictures["data_page_offset"]
    data = bytearray(path.read_bytes())
    data[start + 40 : start + 400] = bytes(byte ^ 0x5A for byte in data[start + 40 : start + 400])
    path.write_bytes(data)
    with pytest.raises(MMPBError, match=r"train-0-of-2\.parquet, row 4 or later: not a whole parquet file: "):
        pick_a_pic.unpack(FEW, source, tmp_path / "data")


def test_a_pipe_is_not_waited_for(tmp_path):
    source = _save(tmp_path / "hub", _rows())
    os.mkfifo(source / "data/validation-1-of-1.parquet")
    with pytest.raises(MMPBError, match=r"validation-1-of-1\.parquet: cannot be read: Not a regular file"):
        pick_a_pic.unpack(FEW, source, tmp_path / "data")


def test_missing_columns_and_files_are_named(tmp_path):
    rows = _rows()
    rows["validation"] = [{k: v for k, v in row.items() if k not in ("jpg_1", "user_id")} for row in rows["validation"]]
    source = _save(tmp_path / "hub", rows)
    with pytest.raises(MMPBError, match=r"validation-0-of-1\.parquet, schema: missing column\(s\): 'user_id', 'jpg_1'"):
        pick_a_pic.unpack(FEW, source, tmp_path / "data")
    (source / "data/validation-0-of-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(MMPBError, match=r"validation-0-of-1\.parquet: not a whole parquet file"):
        pick_a_pic.unpack(FEW, source, tmp_path / "data")
    (source / "data/test-0-of-1.parquet").unlink()
    with pytest.raises(MMPBError, match=r"test-\*\.parquet: no such file; expected the files of the hub's"):
        pick_a_pic.unpack(FEW, source, tmp_path / "data")
