"""`prefmoe convert`: tables in other hands' forms become a data folder that says the same, or leave nothing behind."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic_mmpb import make, rows
from test_own_data import asked, faces, packed

from prefmoe import cli
from prefmoe.data import mmpb
from prefmoe.data.columns import IMAGE_COLUMNS
from prefmoe.data.convert import convert
from prefmoe.data.rows import MMPBError
from prefmoe.system import hub
from prefmoe.system.places import UNPACKED


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("drawn") / "data")


@pytest.fixture(scope="module")
def direct(folder) -> mmpb.Benchmark:
    return mmpb.read(folder)


def parquet(folder: Path, target: Path, splits=("train", "test", "unseen"), name="{}-00000-of-00001.parquet") -> Path:
    """The data folder in the form that the hub gives to a dataset with pictures: a file for each split."""
    benchmark = mmpb.read(folder)
    for split in splits:
        table = benchmark.frame.loc[list(benchmark.splits[split])].reset_index()
        for column in IMAGE_COLUMNS:
            paths = [folder / path for path in table[column]]
            table[column] = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        path = target / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.replace("", None).to_parquet(path, index=False)
    return target


def same(found: mmpb.Benchmark, expected: mmpb.Benchmark, *splits: str) -> None:
    """Whether the questions of some splits, their pictures and who they are about are the same."""
    indices = {index for split in splits for index in expected.splits[split]}
    theirs = {index: content for index, content in asked(expected).items() if index in indices}
    assert asked(found) == theirs and {name: found.splits[name] for name in splits} == {
        name: expected.splits[name] for name in splits
    }
    for name, pictures in faces(found).items():
        assert found.users[name].preferences == expected.users[name].preferences and len(pictures) == 5


NAMES = ("{}-00000-of-00001.parquet", "data/{}-00000-of-00001-0123456789abcdef.parquet", "data/{}.parquet",
         "default/{}/0000.parquet")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_s_parquet_says_the_same_as_the_folder(folder, direct, tmp_path, name):
    made = convert(parquet(folder, tmp_path / "hub", name=name), tmp_path / "data")
    found = mmpb.read(tmp_path / "data")
    same(found, direct, "train", "test", "unseen")
    counts = {"train": 9, "validation": 0, "test": 5, "unseen": 4}
    assert made == {"users": 5, "questions": counts, "transcripts": 0, "revision": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "hub"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["mmpb_clean"]


def test_a_data_folder_is_taken_over_with_all_that_lies_in_it(folder, direct, tmp_path):
    convert(folder, tmp_path / "data", csv="full.csv")
    found = mmpb.read(tmp_path / "data", csv="full.csv")
    assert found.digest == direct.digest and found.transcripts == direct.transcripts


@pytest.mark.parametrize("name", [".", "link", "left over"])
def test_an_empty_folder_is_filled_and_stays_the_folder_it_was(folder, direct, tmp_path, monkeypatch, name):
    """The one where a shell stands, one that a link leads to, and one where a conversion was killed."""
    (empty := tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(empty)
    if name == "left over":
        (empty / ".convert.partial" / "mmpb_clean").mkdir(parents=True)
    number = empty.stat().st_ino
    monkeypatch.chdir(empty)
    convert(folder, {".": ".", "link": tmp_path / "link", "left over": empty}[name])
    assert mmpb.read(empty).digest == direct.digest and empty.stat().st_ino == number
    assert sorted(path.name for path in empty.iterdir()) == ["mmpb_clean", "multi_turn"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"] and (tmp_path / "link").is_symlink()


def test_a_folder_that_cannot_be_made_is_named(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(MMPBError, match="file/data: cannot be made: "):
        convert(folder, tmp_path / "file" / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"
    assert cli.main(["convert", str(folder), str(tmp_path / "file" / "data")]) == 1
    assert "cannot be made" in capsys.readouterr().err


def table(folder: Path, path: Path, **columns: str) -> Path:
    """A table with its pictures inside, and what all its rows say in further columns."""
    path.parent.mkdir(parents=True)
    pd.DataFrame([packed(folder, row) | columns for row in rows()]).to_csv(path, index=False)
    return path


def test_a_split_is_read_whatever_its_capitals_and_with_the_digest_of_its_shard(folder, tmp_path):
    table(folder, tmp_path / "one/data/Train-00000-of-00001-0123456789abcdef.csv")
    table(folder, tmp_path / "other/Unseen/0000.csv")
    assert convert(tmp_path / "one", tmp_path / "data")["questions"]["train"] == 20
    assert convert(tmp_path / "other", tmp_path / "unseen")["questions"]["unseen"] == 20


@pytest.mark.parametrize(
    "name", ["training.csv", "trian/0000.csv", "a_train.csv", "val-set.csv", "Valid.csv", "unsen.csv", "dev/a/0.csv"]
)
def test_a_name_that_nearly_says_a_split_is_refused_and_not_taken_for_testing(folder, tmp_path, name):
    given = table(folder, tmp_path / "source" / name)
    message = f"  {name}: the name says no split; expected train, validation, test, unseen, val, dev, or"
    with pytest.raises(MMPBError, match=message):
        convert(tmp_path / "source", tmp_path / "data")
    (given.parent / "split.json").write_text(json.dumps([{"tasks": [{"train_idx": [*range(20)]}]}]))
    assert convert(tmp_path / "source", tmp_path / "data")["questions"]["train"] == 20


@pytest.mark.parametrize("name", ["sample.csv", "testing.csv", "latest/values.csv", "data/devices.csv", "MMPB.csv"])
def test_a_name_that_is_like_no_split_is_for_testing(folder, tmp_path, name):
    table(folder, tmp_path / "source" / name)
    assert convert(tmp_path / "source", tmp_path / "data")["questions"]["test"] == 20


def test_a_column_says_the_split_whatever_the_name_is_like(folder, tmp_path):
    table(folder, tmp_path / "source/training.csv", split="train")
    assert convert(tmp_path / "source", tmp_path / "data")["questions"]["train"] == 20


def split_json(path: Path, **splits: list[int]) -> None:
    path.write_text(json.dumps([{"tasks": [{f"{split}_idx": indices for split, indices in splits.items()}]}]))


def refused(source: Path, target: Path) -> str:
    with pytest.raises(MMPBError) as error:
        convert(source, target)
    assert not target.exists()
    return str(error.value)


def test_what_says_the_split_twice_must_say_the_same(folder, tmp_path):
    given = table(folder, tmp_path / "source/test.csv", split="train")
    expected = "test.csv, line 2, field split (index 0): expected test, as the table's name or its folder's says, found"
    assert f"{expected} 'train'" in refused(tmp_path / "source", tmp_path / "data")
    split_json(tmp_path / "source/split.json", train=[*range(19)], validation=[19])
    message = refused(tmp_path / "source", tmp_path / "data")
    assert "1 mistake" in message
    assert "field split (index 19): expected validation, as split.json says, found 'train'" in message
    split_json(tmp_path / "source/split.json", train=[*range(19)])
    assert "field split (index 19): expected nothing, as split" in refused(tmp_path / "source", tmp_path / "data")
    split_json(tmp_path / "source/split.json", train=[*range(20)])
    assert convert(tmp_path / "source", tmp_path / "data")["questions"]["train"] == 20
    given.rename(given.with_name("train.csv"))
    (tmp_path / "source/split.json").unlink()
    assert convert(tmp_path / "source", tmp_path / "other")["questions"]["train"] == 20


def test_the_log_says_of_how_many_questions_split_json_overrules_the_table_s_name(folder, tmp_path, caplog):
    table(folder, tmp_path / "source/test.csv")
    split_json(tmp_path / "source/split.json", train=[*range(15)], test=[15, 16, 17])
    made = convert(tmp_path / "source", tmp_path / "data")["questions"]
    assert (made["train"], made["test"]) == (15, 3)
    overruled = "test.csv: the name says test, but split.json counts: of 20 questions 15 in train, 2 in no split"
    assert caplog.messages == [overruled]


@pytest.mark.parametrize("column", ["Split", "splits", " split", "SPLIT"])
def test_a_column_that_nearly_says_the_split_is_refused(folder, tmp_path, column):
    table(folder, tmp_path / "source/sample.csv", **{column: "train"})
    message = refused(tmp_path / "source", tmp_path / "data")
    assert f"sample.csv, line 1: misspelt column(s): '{column} (did you mean split?)'" in message


def test_an_empty_split_beside_filled_ones_is_refused(folder, tmp_path):
    given = table(folder, tmp_path / "source/sample.csv", split="train")
    pd.read_csv(given, dtype=str).replace({"split": {"train": None}}).to_csv(given, index=False)
    assert convert(tmp_path / "source", tmp_path / "data")["questions"]["test"] == 20
    found = pd.read_csv(given, dtype=str)
    found.loc[1:, "split"] = "train"
    found.to_csv(given, index=False)
    message = refused(tmp_path / "source", tmp_path / "other")
    assert "field split (index 0): expected one of train, validation, test, unseen, val, dev, found ''" in message


def annotated(path: Path, *indices: int, item: str = "tea") -> None:
    lines = "".join(f"{index},{item},2,0\n" for index in indices)
    path.write_text(f"index,item,popularity,seen_pair\n{lines}")


def test_a_file_at_the_root_counts_where_the_table_is_below_it(folder, tmp_path):
    table(folder, tmp_path / "source/data/questions.csv")
    source = tmp_path / "source"
    split_json(source / "splits.json", train=[*range(9)], test=[*range(9, 20)])
    assert "\n  splits.json: did you mean split.json?" in refused(source, tmp_path / "data")
    (source / "splits.json").rename(source / "split.json")
    annotated(source / "annotations.csv", 3)
    made = convert(source, tmp_path / "data")["questions"]
    assert (made["train"], made["test"]) == (9, 11)
    assert mmpb.read(tmp_path / "data").annotations.index.tolist() == [3]


@pytest.fixture
def two(folder, tmp_path) -> Path:
    """A folder for each of two splits, with pictures of the same names in both."""
    source = tmp_path / "source"
    for split, own in (("train", rows()[:8]), ("test", rows()[8:16])):
        for row in own:
            for column, name in zip(IMAGE_COLUMNS, ("img", "face", "b", "c", "d", "e"), strict=True):
                path = f"{name}/{int(row['index']) % 8}.png"
                (source / split / path).parent.mkdir(parents=True, exist_ok=True)
                if not (source / split / path).exists() or column == "image_path":
                    shutil.copy(folder / row[column], source / split / path)
                row[column] = path
        pd.DataFrame(own).to_csv(source / split / "data.csv", index=False)
    return source


def test_pictures_of_one_name_in_two_folders_stay_two(folder, direct, two, tmp_path):
    convert(two, tmp_path / "data")
    found = mmpb.read(tmp_path / "data")
    expected = {index: content for index, content in asked(direct).items() if index < 16}
    assert asked(found) == expected and [len(found.splits[split]) for split in ("train", "test")] == [8, 8]
    theirs = faces(direct)
    assert {name: pictures[0] for name, pictures in faces(found).items()} == {n: theirs[n][0] for n in found.users}
    convert(tmp_path / "data", tmp_path / "again")
    assert mmpb.read(tmp_path / "again").digest == found.digest


def test_one_path_for_two_pictures_shows_both(folder, tmp_path):
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    shutil.copy(source / "mmpb_clean/images/000001.png", source / "x.png")
    shutil.copy(source / "mmpb_clean/images/000002.png", source / "mmpb_clean/x.png")
    given = pd.DataFrame(rows())
    given.loc[[1, 2], "image_path"] = ["x.png", "mmpb_clean/x.png"]
    given.to_csv(source / "sample.csv", index=False)
    convert(source / "sample.csv", tmp_path / "data")
    assert asked(mmpb.read(tmp_path / "data")) == asked(mmpb.read(folder))


def test_what_lies_beside_every_table_is_taken(two, tmp_path):
    annotated(two / "train/annotations.csv", 0, 3)
    annotated(two / "test/annotations.csv", 3, 9)
    split_json(two / "train/split.json", train=[5, 1, 0, 2, 3, 4, 6], validation=[7])
    convert(two, tmp_path / "data")
    found = mmpb.read(tmp_path / "data")
    assert found.annotations.index.tolist() == [3, 9, 0]
    splits = {"train": (5, 1, 0, 2, 3, 4, 6), "validation": (7,), "test": tuple(range(8, 16)), "unseen": ()}
    assert found.splits == splits
    annotated(two / "annotations.csv", 0, item="coffee")
    split_json(two / "split.json", test=[7, 8])
    message = refused(two, tmp_path / "other")
    assert "train/split.json, field validation_idx: expected index 7 in test_idx, as in split.json" in message
    (two / "split.json").unlink()
    message = refused(two, tmp_path / "other")
    assert "train/annotations.csv, line 2, field index: expected a row that is there once, or as line 2 of a" in message


def test_tables_of_several_kinds_are_all_read(two, folder, tmp_path):
    pd.read_csv(two / "test/data.csv", dtype=str).to_parquet(two / "test/data.parquet")
    expected = "test/data.parquet, row 1, field index: expected an index that occurs once (line 2 of test/data.csv"
    assert expected in refused(two, tmp_path / "data")
    (two / "test/data.csv").unlink()
    made = convert(two, tmp_path / "data")["questions"]
    assert (made["train"], made["test"]) == (8, 8)
    shutil.copytree(two / "train", tmp_path / "plain")
    pd.read_csv(two / "train/data.csv", dtype=str).to_parquet(tmp_path / "plain/more.parquet")
    assert "several named by split, found data.csv, more.parquet" in refused(tmp_path / "plain", tmp_path / "other")


def test_a_folder_with_pictures_from_a_table_is_a_source(folder, direct, tmp_path):
    table(folder, tmp_path / "source/sample.csv")
    convert(tmp_path / "source", tmp_path / "data")
    convert(tmp_path / "data", tmp_path / "again")
    found = mmpb.read(tmp_path / "again")
    assert found.digest == mmpb.read(tmp_path / "data").digest and asked(found) == asked(direct)
    assert not (tmp_path / "again" / UNPACKED).exists()


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("word", ["split", None])
def test_a_table_with_its_pictures_inside(folder, direct, tmp_path, ending, word):
    """Without any split, all questions are for testing."""
    table = pd.DataFrame([packed(folder, row) for row in rows()])
    if word:
        homes = {index: split for split, indices in direct.splits.items() for index in indices}
        table = table[[int(index) in homes for index in table["index"]]]
        table[word] = [{"test": "Test"}.get(home, home) for home in (homes[int(index)] for index in table["index"])]
    write = {"csv": table.to_csv, "tsv": lambda path, index: table.to_csv(path, index=index, sep="\t")}
    write.get(ending, table.to_parquet)(tmp_path / f"mine.{ending}", index=False)
    convert(tmp_path / f"mine.{ending}", tmp_path / "data")
    found = mmpb.read(tmp_path / "data")
    if word:
        same(found, direct, "train", "test", "unseen")
    else:
        assert found.splits["test"] == tuple(range(20)) and asked(found) == asked(direct)


def test_the_folder_of_mmpb_s_own_script(folder, direct, tmp_path):
    """Its table has answers as words, no profile pictures (they lie beside it), and few columns."""
    root, table = tmp_path / "mmpb", []
    for row in rows():
        place = f"{row['attribute']}/test/{row['name']}/{row['index']}.png"
        for number in range(5):
            face = root / row["attribute"] / "train" / row["name"] / f"{number}.png"
            if not face.exists():
                face.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / row[f"injection_image_{number + 1}"], face)
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / row["image_path"], root / place)
        kept = ("index", "question", *"ABCD", "attribute", "category", "l2-category", "concept", "name", "preference",
                "description_moderate")  # fmt: skip
        answer = row["answer_text"].upper() if len(row["answer_text"]) == 1 else row["answer_text"].title()
        table.append({column: row[column] for column in kept} | {"answer": answer, "image_path": place, "prompt": "x"})
    pd.DataFrame(table).to_csv(root / "dataset.csv", index=False)
    convert(root, tmp_path / "data")
    found = mmpb.read(tmp_path / "data")
    mine, theirs = ({i: said(e) for i, e in one.examples.items()} for one in (found, direct))
    assert mine == theirs
    assert faces(found) == faces(direct) and (found.frame["prompt"] == "x").all()


def said(example) -> tuple:
    return example.name, example.question, example.options, example.answer, example.image.read_bytes()


COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_a_repository_of_the_hub_is_taken_from_its_cache(folder, direct, tmp_path, monkeypatch):
    """The cache's files are links to another folder, as huggingface_hub makes them; the command is that of the page."""
    snapshot, asked_for = tmp_path / "cache/snapshots" / COMMIT, {}
    plain = parquet(folder, tmp_path / "plain")
    snapshot.mkdir(parents=True)
    (tmp_path / "cache/blobs").mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        path.rename(tmp_path / f"cache/blobs/{number}")
        (snapshot / path.name).symlink_to(Path(f"../../blobs/{number}"))
    found = lambda repo, **more: asked_for.update(more, repo=repo) or str(snapshot)  # noqa: E731
    monkeypatch.setattr(hub, "snapshot_download", found)
    name, target = "12123bskbc/MMPB-clean", tmp_path / "data"
    assert cli.main(["convert", name, str(target), "--csv", "full.csv", "--revision", COMMIT]) == 0
    assert [asked_for[key] for key in ("repo", "revision", "repo_type")] == [name, COMMIT, "dataset"]
    same(mmpb.read(target, csv="full.csv"), direct, "train", "test", "unseen")
    assert json.loads((target / "mmpb_clean/origin.json").read_text()) == {"source": name, "revision": COMMIT}


def test_mistakes_name_the_source_s_file_row_and_field_and_leave_nothing(folder, tmp_path):
    source = parquet(folder, tmp_path / "hub")
    shard = source / "test-00000-of-00001.parquet"
    table = pd.read_parquet(shard)
    table.loc[2, "answer"] = 9
    table.at[3, "image_path"] = {"bytes": b"no picture", "path": "x.png"}
    table.to_parquet(shard)
    with pytest.raises(MMPBError) as caught:
        convert(source, tmp_path / "data")
    index = table["index"].tolist()
    assert f"{shard.name}, row 3, field answer (index {index[2]}): expected a code from 0 to 5" in str(caught.value)
    assert f"{shard.name}, row 4, field image_path (index {index[3]}): expected a picture (PNG" in str(caught.value)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(MMPBError, match=f"{shard.name}: not a whole parquet file"):
        convert(source, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_pictures_outside_of_the_source_are_not_taken(folder, tmp_path):
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    shutil.copy(folder / "mmpb_clean/images/000003.png", tmp_path / "private.png")
    table = pd.DataFrame(rows())
    table.loc[1, "image_path"] = "../private.png"
    table.loc[2, "image_path"] = str(tmp_path / "private.png")
    (source / "mmpb_clean/images/000003.png").unlink()
    (source / "mmpb_clean/images/000003.png").symlink_to(tmp_path / "private.png")
    (source / "mmpb_clean/images/000004.png").unlink()
    os.mkfifo(source / "mmpb_clean/images/000004.png")
    table.to_csv(source / "mmpb_clean/sample.csv", index=False)
    with pytest.raises(MMPBError) as caught:
        convert(source, tmp_path / "data")
    for index in (1, 2, 3, 4):
        assert f"field image_path (index {index}): expected" in str(caught.value)
    assert "5 mistake(s)" not in str(caught.value) and not (tmp_path / "data").exists()


def test_sources_that_cannot_be_told_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    two = tmp_path / "two"
    two.mkdir()
    for name in ("one.csv", "other.tsv"):
        (two / name).write_text("index\n")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for source, options, message in (
        (tmp_path / "empty", {}, "expected a table in it \\(.csv, .tsv, .parquet\\)"),
        (two, {}, "expected one table, or several named by split, found one.csv, other.tsv"),
        (tmp_path / "none.csv", {}, "none.csv: no such file or folder"),
        ("some/name", {"revision": "main"}, "expected a revision of 40 hexadecimal digits, found 'main'"),
        (folder, {"revision": COMMIT}, "a revision is of a repository on the hub"),
        (folder, {"csv": "../x.csv"}, "expected the name of a CSV file"),
    ):
        with pytest.raises(MMPBError, match=message):
            convert(source, tmp_path / "data", **options)
    with pytest.raises(MMPBError, match="full: expected a name that is free"):
        convert(folder, full)
    assert (full / "mine.txt").read_text() == "mine" and not (tmp_path / "data").exists()


def test_the_command_says_what_it_made(folder, tmp_path, capsys):
    assert cli.main(["convert", str(folder), str(tmp_path / "data")]) == 0
    assert "PREFMOE_DATA=" in capsys.readouterr().out and mmpb.read(tmp_path / "data").users
    assert cli.main(["convert", str(tmp_path / "none"), str(tmp_path / "other")]) == 1
    assert "error: " in capsys.readouterr().err
