"""The reader: what it reads is right, and every mistake in a data folder is named by file, line and field."""

import io
from pathlib import Path

import pandas as pd
import pytest
from notebook_cells import cells
from PIL import Image
from synthetic_mmpb import USERS, change_row, rows, write_csv, write_split

from prefmoe import metrics
from prefmoe.analysis import groupings
from prefmoe.config import MMPBData, load_edition
from prefmoe.data import mmpb
from prefmoe.data.benchmark import FACETS, Preference
from prefmoe.data.columns import COLUMNS
from prefmoe.data.pictures import picture_mistake
from prefmoe.data.rows import REPORTED_MISTAKES, MMPBError
from prefmoe.data.sources import load_benchmark
from prefmoe.system.places import data_folder

REAL = data_folder(None)


pytest_plugins = ["mmpb_fixtures"]


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(MMPBError) as caught:
        mmpb.read(folder)
    return str(caught.value).splitlines()[1:]


def line_of(index: int) -> int:
    """The line of sample.csv where a question starts: every record spans two, after one line of header."""
    return 2 + 2 * index


def test_a_folder_is_read_once_and_again_when_anything_in_it_changed(folder, tmp_path):
    data = MMPBData(kind="mmpb", folder=str(folder))
    edition = load_edition("sample").model_copy(update={"data": data})
    first = load_benchmark(edition, tmp_path)
    assert load_benchmark(edition, tmp_path) is first
    picture = first.examples[1].image
    Image.new("RGB", (9, 9), "teal").save(picture)
    second = load_benchmark(edition, tmp_path)
    assert second.digest != first.digest and second.digest == mmpb.read(folder).digest
    picture.unlink()
    picture.symlink_to(folder / "nowhere.png")
    with pytest.raises(MMPBError, match="000001.png|can be read"):
        load_benchmark(edition, tmp_path)


def test_reads_users_questions_splits_and_small_talk(drawn):
    benchmark = mmpb.read(drawn)
    assert list(benchmark.users) == list(USERS)
    ann = benchmark.users["Ann"]
    assert ann.preferences["travel"] == Preference(likes=("travel a", "travel b"), dislikes=("travel c", "travel d"))
    faces = [f"mmpb_clean/injection/injection_image_{k}/000000.png" for k in range(1, 6)]
    assert ann.images == tuple(drawn / face for face in faces)
    assert benchmark.users["asian_doll"].preferences == {}
    example = benchmark.examples[1]
    assert (example.answer, example.options[1]) == (1, "B of 1")
    assert example.image == drawn / "mmpb_clean/images/000001.png"
    assert benchmark.examples[0].bucket_names == ("Ann", "Ye Wen")
    assert {split: len(indices) for split, indices in benchmark.splits.items()} == {
        "train": 9, "validation": 0, "test": 5, "unseen": 4
    }  # fmt: skip
    assert [len(talk) for talk in benchmark.transcripts] == [6]
    assert benchmark.transcripts[0][1] == ("assistant", "assistant says 0.")
    assert benchmark.annotations is None


def test_non_breaking_spaces_are_normalised(drawn):
    benchmark = mmpb.read(drawn)
    assert benchmark.examples[0].question == benchmark.frame.loc[0, "question"] == "What suits <sks>?"


def test_the_frame_has_the_published_columns_and_no_missing_values(drawn):
    frame = mmpb.read(drawn).frame
    assert [frame.index.name, *frame.columns] == list(COLUMNS)
    assert not frame.isna().any().any()
    assert frame["answer"].dtype == frame["preference_semantic_invert"].dtype == "int64"


def test_the_digest_follows_contents_and_not_places(drawn, folder):
    digest = mmpb.read(drawn).digest
    assert mmpb.read(folder).digest == digest
    table = rows()
    write_csv(folder, [dict(reversed(row.items())) for row in table])
    assert mmpb.read(folder).digest == digest
    Image.new("RGB", (8, 8)).save(folder / "mmpb_clean/images/000003.png")
    assert mmpb.read(folder).digest != digest


def test_annotations_are_read_by_index(folder):
    (folder / "mmpb_clean/annotations.csv").write_text("index,item,popularity,seen_pair\n4,tea,7,1\n0,,0,0\n")
    annotations = mmpb.read(folder).annotations
    assert annotations.loc[4].tolist() == ["tea", 7, 1]
    assert mmpb.read(folder).told([4]).columns.empty
    told = "index,item,popularity,seen_pair,told\n4,tea,7,1,untold\n0,,0,0,\n"
    (folder / "mmpb_clean/annotations.csv").write_text(told)
    expected = {"item": ["tea", ""], "told": ["untold", ""], "seen_pair": [1, 0]}
    assert mmpb.read(folder).told([4, 7]).to_dict("list") == expected
    (folder / "mmpb_clean/annotations.csv").write_text(told.replace("untold", "secret"))
    assert mistakes(folder) == [
        "  mmpb_clean/annotations.csv, line 2, field told (index 4): expected one of told, untold, other where there "
        "is an item, else nothing, found 'secret'"
    ]
    (folder / "mmpb_clean/annotations.csv").write_text("index,item,popularity,seen_pair\n99,tea,many,2\n")
    found = mistakes(folder)
    assert [line.split(": expected")[0] for line in found] == [
        "  mmpb_clean/annotations.csv, line 2, field index",
        "  mmpb_clean/annotations.csv, line 2, field popularity (index 99)",
        "  mmpb_clean/annotations.csv, line 2, field seen_pair (index 99)",
    ]


@pytest.mark.parametrize(
    ("index", "fields", "column", "expected"),
    [
        (0, {"answer": "6"}, "answer", "a code from 0 to 5"),
        (0, {"answer": "yes"}, "answer", "a code from 0 to 5"),
        (0, {"answer": "2", "answer_text": "c"}, "answer", "4 \\(yes\\) or 5 \\(no\\)"),
        (1, {"answer": "4", "answer_text": "yes"}, "answer", "0 to 3"),
        (0, {"answer": "5"}, "answer_text", "'no'"),
        (1, {"C": ""}, "C", "an option"),
        (0, {"B": "tea"}, "B", "none \\(yes/no question\\)"),
        (0, {"concept": "cooking"}, "concept", "a facet \\(entertainment, travel"),
        (0, {"category": "taste", "task_family": "taste_yesno"}, "category", "one of preference, "),
        (0, {"l2__category": "other"}, "l2-category", "one of awareness"),
        (0, {"task_family": "preference_mcq"}, "task_family", "preference_yesno"),
        (0, {"preference_semantic_invert": "2"}, "preference_semantic_invert", "0 or 1"),
        (0, {"question": " "}, "question", "a question"),
        (0, {"attribute": "robot"}, "attribute", "one of human, animal, object, character"),
        (5, {"name": ""}, "name", "a user's name"),
        (5, {"name": "Ye | Wen"}, "name", "a name without '|'"),
        (5, {"name": "Ann\u200b"}, "name", "characters that nobody sees"),
        (5, {"name": "\u202eAda"}, "name", "characters that nobody sees"),
        (5, {"name": "An\u200cn"}, "name", "characters that nobody sees"),
        (0, {"preference_bucket_names": "Ann|Ye Wen"}, "preference_bucket_names", "names without '|'"),
        (5, {"description_moderate": "Other."}, "description_moderate", f"what line {line_of(4)} says"),
        (5, {"preference": "Unknown preferences"}, "preference", f"what line {line_of(4)} says"),
        (0, {"preference": "In terms of cooking, <sks> enjoys tea."}, "preference", "one of entertainment"),
        (0, {"preference": "likes tea"}, "preference", "In terms of travel"),
        (2, {"image_path": ""}, "image_path", "the path of a picture"),
        (2, {"image_path": "mmpb_clean/images/none.png"}, "image_path", "No such file"),
        (2, {"image_path": "mmpb_clean/images"}, "image_path", "Is a directory"),
        (2, {"image_path": "mmpb_clean/sample.csv"}, "image_path", "a picture \\(PNG, JPEG, WEBP\\)"),
        (2, {"image_path": "../elsewhere.png"}, "image_path", "inside"),
        (2, {"injection_image_3": "/etc/passwd"}, "injection_image_3", "a path relative to the data folder"),
        (2, {"injection_image_5": "..\\elsewhere.png"}, "injection_image_5", "inside"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(folder, index, fields, column, expected):
    change_row(folder, index, **fields)
    with pytest.raises(MMPBError, match=f"sample.csv, line {line_of(index)}, field {column} .*{expected}"):
        mmpb.read(folder)


@pytest.mark.parametrize(("cell", "names"), [
    ("Smith, John", ["Smith, John"]), ("Smith, John | Ann", ["Smith, John", "Ann"]), ("A; B |", ["A; B"]),
])  # fmt: skip
def test_a_name_with_a_comma_is_one_holder_for_questions_and_for_scores(folder, cell, names):
    change_row(folder, 0, preference_bucket_names=cell)
    benchmark = mmpb.read(folder)
    assert list(benchmark.examples[0].bucket_names) == names
    asked = benchmark.frame.loc[[0]].assign(name="nobody of these")
    assert metrics.holders(asked) == [frozenset(names)]


def test_a_user_without_a_description_is_named(folder):
    table = rows()
    for row in table:
        if row["name"] == "Bo":
            row["description_moderate"] = ""
    write_csv(folder, table)
    assert mistakes(folder)[0].endswith(
        "field description_moderate (index 8): expected a description of user 'Bo', found ''"
    )


def test_a_repeated_and_a_malformed_index_are_named(folder):
    table = rows()
    table[7]["index"] = "3"
    table[9]["index"] = "nine"
    write_csv(folder, table)
    found = "\n".join(mistakes(folder))
    assert f"line {line_of(7)}, field index: expected an index that occurs once (line {line_of(3)}" in found
    assert f"line {line_of(9)}, field index: expected a non-negative integer, found 'nine'" in found


def test_missing_misspelt_and_repeated_columns_are_named(folder):
    changed = {"answer", "B", "preference"}
    table = [{k: v for k, v in row.items() if k not in changed} | {"prefrence": "x", "reply": "x"} for row in rows()]
    write_csv(folder, table)
    found = mistakes(folder)
    assert found == [
        "  mmpb_clean/sample.csv, line 1: missing column(s): 'answer'",
        "  mmpb_clean/sample.csv, line 1: misspelt column(s): 'prefrence (did you mean preference?)'",
    ]
    path = folder / "mmpb_clean/sample.csv"
    write_csv(folder, rows())
    path.write_text(path.read_text().replace("polarity", "name", 1))
    assert mistakes(folder) == ["  mmpb_clean/sample.csv, line 1: repeated column(s): 'name'"]


def test_a_record_with_too_many_fields_and_broken_quotes_are_named(folder):
    path = folder / "mmpb_clean/sample.csv"
    text = path.read_text()
    path.write_text(text + "1,2,3\n")
    assert f"line {2 + 2 * 20}: expected 33 fields, found 3" in "\n".join(mistakes(folder))
    path.write_text(text + '20,"an open quote\n')
    assert "not well-formed CSV" in "\n".join(mistakes(folder))
    path.write_bytes(text.encode() + b"\xff")
    assert "expected UTF-8 text" in mistakes(folder)[0]
    path.write_text(text.splitlines()[0] + "\n")
    assert "expected at least one question" in mistakes(folder)[0]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("PNG", "truncated"), ("PNG", "flipped"), ("PNG", "empty"), ("JPEG", "truncated"), ("JPEG", "empty")],
)
def test_damaged_pictures_are_named(folder, kind, damage):
    portrait = "mmpb_clean/injection/injection_image_2/000005.png"  # of a question that is not the user's first
    change_row(folder, 5, injection_image_2=portrait)
    path = folder / portrait
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, format=kind)
    data = bytearray(path.read_bytes())
    mmpb.read(folder)
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[: len(data) * 2 // 3], "flipped": data, "empty": b""}[damage])
    (found,) = mistakes(folder)
    assert f"line {line_of(5)}, field injection_image_2 (index 5): expected a " in found


def test_a_picture_that_would_not_fit_in_memory_is_refused(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "would not fit in memory" in picture_mistake(buffer.getvalue())


def test_a_link_that_leaves_the_folder_is_refused(folder, tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    path = folder / "mmpb_clean/images/000004.png"
    path.unlink()
    path.symlink_to(outside)
    (found,) = mistakes(folder)
    assert f"line {line_of(4)}, field image_path (index 4): expected a file inside the data folder" in found


def test_a_link_within_the_folder_and_a_linked_folder_are_fine(folder, tmp_path):
    path = folder / "mmpb_clean/images/000004.png"
    path.unlink()
    path.symlink_to(folder / "mmpb_clean/images/000005.png")
    (tmp_path / "link").symlink_to(folder)
    assert mmpb.read(tmp_path / "link").digest == mmpb.read(folder).digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{", "split.json, line 1: not valid JSON"),
        ("{}", "split.json: expected"),
        ("[]", "split.json: expected"),
        ('[{"tasks": 3}]', "split.json: expected"),
        ('[{"tasks": [[1, 2]]}]', "split.json: expected"),
        ('[{"tasks": [{"train_idx": [0], "test_idx": "1"}]}]', "field test_idx: expected a list of indices"),
        ('[{"tasks": [{"train_idx": [true], "test_idx": [1]}]}]', "train_idx: expected a list of indices"),
        ('[{"tasks": [{"train_idx": [0], "test_idx": null}]}]', "field test_idx: expected a list of indices"),
        ('[{"tasks": [{"train_idx": [], "test_idx": []}]}]', "expected at least one index in one of train_idx, "),
        ('[{"tasks": [{}]}]', "split.json: expected at least one index in one of train_idx, "),
        ("null", 'split.json: expected [{"tasks": [{"train_idx": [...], "test_idx": [...]}]}], found null'),
        ("7", "split.json: expected [{"),
        ("[null]", "split.json: expected [{"),
        ('[{"tasks": null}]', "split.json: expected [{"),
        ('[{"tasks": [null]}]', "split.json: expected [{"),
        ("[" * 100000, "split.json: not valid JSON"),
        ('[{"tasks": [{"train_idx": [0], "test_idx": [1], "dev": []}]}]', "an unknown key 'dev'"),
        ('[{"tasks": [{"train_idx": [0, 77], "test_idx": [1]}]}]', "an index of the CSV, found 77"),
        ('[{"tasks": [{"train_idx": [0, 1], "test_idx": [1]}]}]', "index 1 is in train_idx, too"),
        ('[{"tasks": [{"train_idx": [0, 0], "test_idx": [1]}]}]', "index 0 is in train_idx, too"),
        (
            '[{"tasks": [{"train_idx": [0], "test_idx": [1], "unseen_idx": [2]}]}]',
            "field unseen_idx: expected users without training questions, index 2 is about 'Ann'",
        ),
    ],
)
def test_mistakes_in_the_split_are_named(folder, text, expected):
    (folder / "mmpb_clean/split.json").write_text(text)
    assert expected in "\n".join(mistakes(folder))


def test_a_validation_split_is_read(folder):
    write_split(folder, train=[0], validation=[1, 2], test=[3])
    assert mmpb.read(folder).splits["validation"] == (1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "{}",
        "[]",
        "null",
        "[null, null]",
        "[1, 2]",
        '[{"role": "user", "content": "x"}]',
        '[{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]',
        '[{"role": "user", "content": " "}, {"role": "assistant", "content": "y"}]',
    ],
)
def test_malformed_small_talk_is_named(folder, text):
    (folder / "multi_turn/generic_text/talk.json").write_text(text)
    assert all("multi_turn/generic_text/talk.json" in line for line in mistakes(folder))


def test_all_mistakes_are_reported_up_to_a_limit(folder):
    table = rows()
    for row in table:
        row["answer"] = "9"
    table[0]["image_path"] = "nowhere.png"
    write_csv(folder, table)
    with pytest.raises(MMPBError) as caught:
        mmpb.read(folder)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("has 21 mistake(s):")
    assert len(lines) == 1 + REPORTED_MISTAKES + 1
    assert lines[-1] == "  ... and 1 more"


def test_missing_files_are_named_without_a_traceback(tmp_path, folder):
    with pytest.raises(MMPBError, match="expected a data folder that holds mmpb_clean/.*prefmoe fetch"):
        mmpb.read(tmp_path / "nowhere")
    (folder / "mmpb_clean/split.json").unlink()
    assert mistakes(folder) == ["  mmpb_clean/split.json: cannot be read: No such file or directory"]
    (folder / "mmpb_clean/sample.csv").unlink()
    assert "mmpb_clean/sample.csv: cannot be read" in mistakes(folder)[0]


def test_questions_users_groups_and_items_are_counted(drawn, monkeypatch):
    monkeypatch.setenv("PREFMOE_DATA", str(drawn))
    benchmark = mmpb.read(drawn)
    counts = groupings.dataset_statistics(benchmark).set_index(["question_type", "split"])["count"]
    assert counts["preference_yesno", "train"] == 4 and counts["recognition_mcq", "test"] == 2
    assert counts.sum() == 18
    assert set(benchmark.frame["concept"]) <= {*FACETS, ""}
    counts = cells("02", "split-figure", "real-rows", benchmark=benchmark).displayed[0]
    assert counts.T.to_dict("list") == {"human": [4, 4], "object": [1, 0]}
    sizes = groupings.group_sizes(benchmark)
    assert sizes.groupby("facet", sort=False)["users"].apply(list).to_dict() == {f: [2, 1, 1] for f in FACETS}
    items = cells("02", "item-likes", benchmark=benchmark)["items"].set_index("item")
    assert (items.loc["travel a", "users"], items.loc["travel e", "users"]) == (3, 2)
    sharing = cells("02", "sharing-sizes", benchmark=benchmark)["sharing"]
    assert sharing.value_counts().to_dict() == {("train", 2): 4, ("unseen", 2): 1}


@pytest.mark.skipif(REAL is None, reason="PREFMOE_DATA does not point to the real rows")
def test_the_public_subset_reads_with_its_published_counts():
    benchmark = mmpb.read(REAL)
    manifest = {"preference_mcq": 40, "preference_yesno": 80, "recognition_mcq": 30, "recognition_yesno": 50}
    assert benchmark.frame["task_family"].value_counts().to_dict() == manifest
    assert [len(benchmark.splits[s]) for s in ("train", "validation", "test", "unseen")] == [160, 0, 40, 0]
    asked = benchmark.frame.query("concept != ''")["concept"]
    assert asked.value_counts().to_dict() == {
        "entertainment": 24, "fashion": 24, "lifestyle": 25, "shopping": 24, "travel": 23
    }  # fmt: skip
    assert len(benchmark.users) == 78 and "Ye Wen" in benchmark.users
    assert sum(bool(user.preferences) for user in benchmark.users.values()) == 48
    assert len(benchmark.transcripts) == 1 and len(benchmark.transcripts[0]) == 20
    table = pd.read_csv(Path(REAL) / "mmpb_clean" / "sample.csv", index_col="index", keep_default_na=False)
    assert benchmark.frame["description_moderate"].equals(table["description_moderate"])
    changed = benchmark.frame["question"] != table["question"]
    assert changed.any() and table["question"][changed].str.contains("\u00a0").all()
