"""`prefmoe score`: anybody's predictions from any table, with the columns that their questions need."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from prefmoe import metrics
from prefmoe.analysis import scoring
from prefmoe.analysis.scoring import ScoringError, report
from prefmoe.cli import main

GOLDEN = Path(__file__).parent / "data" / "scoring_0.csv"
EXPECTED = json.loads(GOLDEN.with_suffix(".json").read_text())
FAST = {"resamples": 20}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.read_csv(GOLDEN, dtype=str, keep_default_na=False, na_values=[""])


def save(frame: pd.DataFrame, path: Path) -> Path:
    match path.suffix:
        case ".parquet":
            frame.to_parquet(path)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case suffix:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


def value(table: pd.DataFrame, measure: str, group: str = "all") -> float:
    (row,) = table[(table["measure"] == measure) & (table["group"] == group)].to_dict("records")
    return row["value"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_measure_of_any_table_is_that_of_the_golden_file(frame, tmp_path, suffix):
    found = report(save(frame, tmp_path / f"mine{suffix}"), **FAST)
    for metric in ("overall", "preference", "profile", "collapse"):
        assert value(found.table, metric) == pytest.approx(EXPECTED[metric], abs=1e-12)
    for bucket, (expected, _) in EXPECTED["buckets"].items():
        assert value(found.table, "collapse", bucket) == pytest.approx(expected, abs=1e-12)
    overall = found.table.iloc[0]
    assert overall["n"] == found.questions == EXPECTED["n"] and overall["low"] < overall["value"] < overall["high"]
    kinds = found.table[found.table["measure"] == "accuracy"]
    assert (kinds["value"] * kinds["n"]).sum() == pytest.approx(frame["expected_hit"].astype(int).sum())
    assert list(found.table.columns) == list(scoring.SCORE_COLUMNS) and not found.notes


def test_a_file_may_lie_at_home(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(frame, tmp_path / "mine.csv")
    assert len(scoring.read_predictions("~/mine.csv")) == len(frame)


def test_only_the_columns_that_the_questions_need_are_asked_for(frame, tmp_path):
    yes_no = frame[frame["l2-category"] != "inconsistency"]
    few = [*scoring.REQUIRED, scoring.HOLDERS, scoring.NEGATED]
    found = report(save(yes_no[few], tmp_path / "few.csv"), **FAST)
    assert value(found.table, "collapse") == pytest.approx(EXPECTED["collapse"], abs=1e-12) and not found.notes
    recognition = yes_no[yes_no["category"] == "recognition"][list(scoring.REQUIRED)]
    assert not report(save(recognition, tmp_path / "recognition.csv"), **FAST).notes


def test_without_the_holders_no_collapse_is_invented(frame, tmp_path):
    found = report(save(frame.drop(columns=scoring.HOLDERS), tmp_path / "mine.csv"), **FAST)
    assert set(found.table["measure"]) == {"overall", "preference", "profile", "accuracy"}
    assert "collapse, recall and sensitivity are not computed: no column preference_bucket_names" in str(found)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: f.drop(columns=["answer", "name"]), "mine.csv: no column name, answer; expected name, category"),
        (lambda f: f.drop(columns=["B"]), r"mine.csv: no column B \(the options of multiple-choice"),
        (lambda f: f[["name"]].set_axis(["name;answer"], axis=1), "found 'name;answer': is it separated by something"),
        (lambda f: f.assign(name=f["name"].where(f.index != 3)), "mine.csv: row 4: name is empty"),
        (
            lambda f: f.assign(answer=f["answer"].where(f.index != 2, "7")),
            "mine.csv: row 3 .*: answer is '7', expected",
        ),
        (lambda f: f.assign(category="pref"), "mine.csv: row 1 .*: category is 'pref', expected preference or"),
        (lambda f: f[:0], "mine.csv: no rows"),
    ],
)
def test_mistakes_are_named_by_file_row_and_field(frame, tmp_path, spoil, expected):
    with pytest.raises(ScoringError, match=expected):
        report(save(spoil(frame), tmp_path / "mine.csv"), **FAST)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_holders_in_a_list_are_those_between_separators(frame, tmp_path, suffix):
    cells = frame[scoring.HOLDERS]
    lists = [None if pd.isna(cell) else [name.strip() for name in re.split(r"[|;,]", cell)] for cell in cells]
    assert max(len(names or ()) for names in lists) > 8
    listed = frame.assign(**{scoring.HOLDERS: lists, "tokens": [["kept", "as it is"]] * len(frame)})
    found = report(save(listed, tmp_path / f"mine{suffix}"), **FAST)
    for metric in ("overall", "collapse"):
        assert value(found.table, metric) == pytest.approx(EXPECTED[metric], abs=1e-12)
    pd.testing.assert_frame_equal(found.table, report(GOLDEN, **FAST).table)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("l2-category", ["awareness"], "expected one value"),
        ("prediction", ["yes", "no"], "expected one value"),
        ("name", {"first": "ann"}, "expected one value"),
        ("turns", [0, 1], "expected one value"),
        (scoring.HOLDERS, {"name": "ann"}, "expected one value"),
        (scoring.HOLDERS, ["ann | bob"], "expected a name without '|'"),
        (scoring.HOLDERS, ["ann", 3], "expected a user's name as text in a list of names, found 3"),
    ],
)
def test_a_cell_of_several_values_is_refused(tmp_path, suffix, column, cell, expected):
    if suffix == ".parquet" and 3 in cell:
        cell = ["ann", None]
        expected = expected.replace("3", "None")
    table = asked_of_two(index=[10, 20, 30, 40])
    table[column] = [cell if place == 2 else None for place in range(4)]
    with pytest.raises(ScoringError, match=re.escape(f"mine{suffix}: row 3 (question 30): {column} is ")) as caught:
        report(save(table, tmp_path / f"mine{suffix}"), **FAST)
    assert expected in str(caught.value)


def test_a_column_is_scored_apart_by_once(frame, tmp_path):
    with pytest.raises(ScoringError, match="mine.csv: scored apart by category more than once"):
        report(save(frame, tmp_path / "mine.csv"), by=["category", "name", "category"], **FAST)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", None, "a.csv: no such file"),
        ("a.xlsx", b"", r"a.xlsx: expected a file named \*.csv, \*.tsv"),
        ("a.csv", b"", "a.csv, line 1: expected a header, found nothing"),
        ("a.csv", b"name,answer\nAnn,yes,it is\n", "a.csv, line 2: expected 2 fields, found 3"),
        ("a.csv", b"name,answer\n\nAnn,yes\nBob\n", "a.csv, line 4: expected 2 fields, found 1"),
        ("a.csv", b"name,answer,name\nAnn,yes,Bob\n", r"a.csv, line 1: repeated column\(s\): 'name'"),
        ("a.csv", b"\xff\xfe\x00", "a.csv: expected UTF-8 text, byte 0"),
        ("a.tsv", b'name\tsaid\nAnn\t"Yes, of\nBob\tNo\n', "a.tsv, lines 2 to 3, one record: not well-formed TSV"),
        ("a.tsv", b'name\tsaid\nAnn\t"Yes\nBob\t"No\n', "a.tsv, lines 2 to 3, one record: not well-formed TSV"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as .parquet"),
        ("a.jsonl", b'{"name":', "a.jsonl: cannot be read as .jsonl"),
        ("a.jsonl", b'{"a": 1}\nnull\n', "a.jsonl: .*line 2: expected a mapping of columns to values, found null"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 1, "a": 2}\n', r"a.jsonl: .*line 3: repeated key\(s\): 'a'"),
        ("a.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}', "line 2, column 8: half a character, .ud83d"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1', "a.jsonl: .*line 2, column 8: Expecting ',' delimiter"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, expected):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoringError, match=expected):
        report(tmp_path / name)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_values_have_the_types_that_pandas_gives_text(tmp_path, suffix):
    said = ["None", "NA", "say \"yes\"\tor, not", "two\nlines", "1.0", None]
    table = pd.DataFrame({"said": said, "number": ["1", "2.5", "", "x", "01", None], "answer": range(6)})
    table = table.assign(share=[0.5, None, 1, 0, 0.25, 0.1], flag=[True, False] * 3)
    path = save(table, tmp_path / f"mine{suffix}")
    if suffix == ".jsonl":
        expected = pd.read_json(path, lines=True, dtype=False)
    else:
        text = {"dtype": str, "keep_default_na": False, "na_values": [""]}
        expected = pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", **text)
    pd.testing.assert_frame_equal(scoring.read_predictions(path).reset_index(drop=True), expected)


def test_categories_are_read_as_what_they_hold(frame, tmp_path):
    plain = frame.assign(item=[None, *["tea", "hats"] * 300][: len(frame)], p_yes=0.5, p_no=0.5)
    coded = plain.astype(dict.fromkeys(set(plain) - {"index"}, "category"))
    found, expected = (report(save(table, tmp_path / "mine.parquet"), **FAST).table for table in (coded, plain))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("column", ["measure", "value"])
def test_a_column_of_the_scores_cannot_be_scored_apart_by(frame, tmp_path, column):
    path = save(frame.assign(**{column: "x"}), tmp_path / "mine.csv")
    with pytest.raises(ScoringError, match=f"mine.csv: scored apart by {column}, which the table of scores has too"):
        report(path, by=[column], **FAST)


def test_the_option_that_is_the_answer_has_a_text(frame, tmp_path):
    choices = frame[frame["l2-category"] == "inconsistency"].reset_index(drop=True)
    first = choices["answer"].isin(["2", "2.0"]).idxmax() + 1
    for table in (choices.assign(C=""), choices.drop(columns="C")):
        with pytest.raises(ScoringError, match=rf"row {first} .*: answer is '2', expected an option with a text"):
            report(save(table, tmp_path / "mine.csv"), **FAST)
    with pytest.raises(ScoringError, match=r"mine.csv: misspelt column\(s\): 'c \(did you mean C\?\)'"):
        report(save(choices.rename(columns={"C": "c"}), tmp_path / "mine.csv"), **FAST)


def test_blanks_around_a_name_make_no_other_user(tmp_path):
    found = report(save(asked_of_two(name=["ann ", "bob", " ann", "bob"]), tmp_path / "mine.csv"), by=["name"], **FAST)
    assert found.users == 2 and found.table["name"].unique().tolist() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("names", "cell"),
    [
        (["Jose\u0301", "Bo"], "Jos\u00e9 | Bo"),
        (["Jos\u00e9", "Bo"], "Jose\u0301 | Bo"),
        ([1.0, 2.0], "1 | 2"),
        (["ann", "bob"], "ann, bob"),
    ],
)
def test_holders_are_known_however_their_names_are_encoded(tmp_path, names, cell):
    table = asked_of_two(name=names * 2, answer=[4] * 4).assign(preference_bucket_names=cell)
    found = report(save(table, tmp_path / "mine.parquet"), **FAST)
    assert found.table.set_index("measure").loc["recall", "n"] == 3 and not any("holder" in n for n in found.notes)


def test_the_report_says_when_no_holder_is_a_user(tmp_path):
    found = report(save(asked_of_two(name=["Ann", "Bob", "Cid", "Dan"]), tmp_path / "mine.csv"), **FAST)
    assert "'ann' of preference_bucket_names is none of 4 in name, such as 'Ann'" in " ".join(found.notes)
    assert not [n for n in report(save(asked_of_two(), tmp_path / "mine.csv"), **FAST).notes if "holder" in n]


def test_unread_answers_are_counted_and_the_commonest_shown(frame, tmp_path):
    few = frame[frame["category"] == "recognition"].copy()
    few["prediction"] = ["None", "I cannot\nsay"] + ["I cannot\nsay", *["yes"] * (len(few) - 3)]
    few["l2-category"], few["answer"] = "awareness", "yes"
    found = report(save(few, tmp_path / "mine.csv"), **FAST)
    assert found.unread == {"I cannot\nsay": 2, "None": 1}  # "None" is an answer, not an empty cell
    assert f"Unread answers: 3 of {len(few)}" in str(found) and "2 x 'I cannot say'" in str(found)
    assert found.table.iloc[0]["unread"] == 3


def test_turns_and_splits_are_scored_apart_and_repeated_questions_noticed(frame, tmp_path):
    both = pd.concat([frame.assign(turns=0), frame.assign(turns=10, prediction="")])
    path = save(both, tmp_path / "mine.csv")
    found = report(path, **FAST)
    overall = found.table[found.table["measure"] == "overall"].set_index("turns")["value"]
    assert overall["0"] == pytest.approx(EXPECTED["overall"], abs=1e-12) and overall["10"] == 0 and not found.notes
    together = report(path, by=[], **FAST)
    assert len(together.notes) == 1 and f"{len(frame)} rows repeat a question" in together.notes[0]
    with pytest.raises(ScoringError, match="no column seed; there are index, name"):
        report(path, by=["seed"])
    few = save(frame[frame["l2-category"] != "inconsistency"][list(scoring.REQUIRED)], tmp_path / "few.csv")
    with pytest.raises(ScoringError, match=f"no column concept; there are {', '.join(scoring.REQUIRED)}$"):
        report(few, by=["concept"])


def test_one_user_has_no_interval_and_the_report_says_so(frame, tmp_path):
    found = report(save(frame[frame["name"] == frame["name"][0]], tmp_path / "mine.csv"), **FAST)
    assert found.table["low"].isna().all() and "one user: no intervals" in found.notes[0]


def test_a_measure_of_one_user_s_questions_has_no_interval_among_others_that_have(frame, tmp_path):
    kind = (frame["category"] == "preference") & (frame["l2-category"] != "inconsistency")
    alone = frame.loc[kind, "name"].iloc[0]
    found = report(save(frame[~kind | (frame["name"] == alone)], tmp_path / "mine.csv"), **FAST).table
    rows = found[found["group"] == "all"].set_index("measure")
    assert rows.loc[["overall", "profile"], ["low", "high"]].notna().all(axis=None)
    assert rows.loc["collapse", "n"] + rows.loc["recall", "n"] > 0
    assert rows.loc[["collapse", "recall", "sensitivity"], ["low", "high"]].isna().all(axis=None)


def test_the_command_prints_writes_and_needs_no_torch(tmp_path):
    output = tmp_path / "new" / "table.csv"
    script = (
        "import sys; from prefmoe.cli import main\n"
        f"status = main(['score', {str(GOLDEN)!r}, '--output', {str(output)!r}])\n"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = pd.read_csv(output)
    assert written["measure"].tolist()[:6] == list(metrics.METRICS)
    assert "Unread answers: 163 of 600" in done.stdout
    assert main(["score", str(tmp_path / "none.csv")]) == 1


@pytest.mark.parametrize("kind", ["multiple_choice", "yes_no"])
def test_what_the_page_calls_odd_is_read_so(kind):
    page = (Path(__file__).parent.parent / "docs" / "scoring.md").read_text(encoding="utf-8")
    choices, yes_no = page.split("What both read oddly")[1].split("and of yes/no answers")
    rows = re.findall(r"^\| (`.*) \| (.*) \| .* \|$", yes_no if kind == "yes_no" else choices, re.MULTILINE)
    assert len(rows) >= 5
    for answers, expected in rows:
        for answer in re.findall(r"`([^`]+)`", answers):
            parsed = metrics.parse_answer(answer, kind, ("tea", "tea sets", "boots", "prints"))
            assert parsed == expected.lower() if metrics.is_parsed(parsed, kind) else expected == "unread", answer


def asked_of_two(**columns: list) -> pd.DataFrame:
    """Four users asked about one item, of whom two like it; the columns are of their answers."""
    rows = {"name": ["ann", "bob", "cid", "dan"], "l2-category": ["awareness"] * 2 + ["overconcept"] * 2}
    same = {"category": "preference", "concept": "travel", "preference_bucket_names": "ann | bob"}
    answers = {"answer": [4, 4, 5, 5], "prediction": ["yes", "no", "hm", "no"]}
    return pd.DataFrame(rows | answers | columns).assign(**same)


def test_with_probabilities_a_file_says_who_is_told_apart(tmp_path):
    sure = {"p_yes": [0.9, 0.4, 0.4, 0.1], "p_no": [0.1, 0.6, 0.6, 0.9]}
    found = report(save(asked_of_two(**sure), tmp_path / "a.csv"), **FAST)
    row = found.table.set_index("measure").loc["auc_same"]
    assert (row["value"], row["n"], row["unread"]) == (pytest.approx(3.5 / 4), 4, 1)
    told = {"item": ["tea"] * 4, "told": ["told", "untold", "other", "told"], "seen_pair": [1, 0, 0, 0]}
    table = report(save(asked_of_two(**sure, **told), tmp_path / "b.csv"), auc=True, **FAST).table.set_index("measure")
    assert table.loc[["auc_told", "auc_untold", "auc_untold_fresh"], "value"].tolist() == [1, 0.5, 0.5]
    assert table.loc[["auc_told", "auc_untold", "auc_untold_fresh"], "n"].tolist() == [3, 2, 2]


def test_who_asks_for_aucs_is_told_which_column_of_which_file_lacks(tmp_path, capsys):
    path = save(asked_of_two(), tmp_path / "plain.csv")
    assert "auc_same" not in set(report(path, **FAST).table["measure"])
    with pytest.raises(ScoringError, match=r"plain.csv: no column p_yes, p_no: auc_same compares the probabilities"):
        report(path, auc=True, **FAST)
    assert main(["score", str(path), "--auc"]) == 1 and "no column p_yes, p_no" in capsys.readouterr().err
    given = {"p_yes": [0.9, None, 0.4, 0.1], "p_no": [0.1, None, 0.6, 0.9]}
    path = save(asked_of_two(**given), tmp_path / "gap.csv")
    assert "auc_same is not computed: row 2: p_yes and p_no are empty" in str(report(path, **FAST))
    with pytest.raises(ScoringError, match="gap.csv: row 2: p_yes and p_no are empty"):
        report(path, auc=True, **FAST)
    path = save(asked_of_two(**given | {"p_yes": [0.9, "high", 0.4, 0.1]}), tmp_path / "word.csv")
    with pytest.raises(ScoringError, match="word.csv: row 2: p_yes is 'high', expected a number from 0 to 1"):
        report(path, **FAST)
    path = save(asked_of_two().drop(columns="preference_bucket_names"), tmp_path / "alone.csv")
    with pytest.raises(ScoringError, match="alone.csv: no column preference_bucket_names: auc_same"):
        report(path, auc=True, **FAST)
