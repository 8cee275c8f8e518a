"""Scoring against the golden cases, the parsing rules, and the definitions on hand-made questions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefmoe import metrics
from prefmoe.data.benchmark import join_holders, split_holders

DATA = Path(__file__).parent / "data"


def question(**fields) -> dict:
    row = {
        "name": "ann",
        "category": "preference",
        "l2-category": "awareness",
        "concept": "travel",
        "question": "Does this picture suit <sks>?",
        "A": None,
        "B": None,
        "C": None,
        "D": None,
        "answer": 5,
        "prediction": "no",
        "preference_bucket_names": "bob | cid",
        "preference_semantic_invert": 0,
    }
    return row | fields


def choice(**fields) -> dict:
    row = {
        "l2-category": "inconsistency",
        "A": "lamps",
        "B": "tea sets",
        "C": "boots",
        "D": "prints",
        "answer": 0,
    }
    return question(**row | {"prediction": "A", "preference_bucket_names": None} | fields)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("blanks", [True, False], ids=["blank is NaN", "blank is empty"])
def test_golden_rows_and_summary(case, blanks):
    frame = pd.read_csv(DATA / f"scoring_{case}.csv", keep_default_na=blanks)
    expected = json.loads((DATA / f"scoring_{case}.json").read_text())
    scored = metrics.score(frame)
    assert scored["gt"].tolist() == frame["expected_gt"].tolist()
    assert scored["pred"].tolist() == frame["expected_pred"].fillna("").tolist()
    assert scored["hit"].tolist() == frame["expected_hit"].tolist()
    summary = metrics.summarize(scored)
    assert tuple(summary) == metrics.METRICS
    for metric in ("overall", "preference", "profile", "collapse"):
        assert summary[metric]["value"] == pytest.approx(expected[metric], abs=1e-12)
        assert summary[metric]["low"] <= summary[metric]["value"] <= summary[metric]["high"]
    assert summary["overall"]["n"] == expected["n"]
    assert summary["collapse"]["n"] == expected["n_boundary_external"]
    buckets = metrics.collapse_by_bucket(scored)
    assert list(buckets.columns) == ["bucket", "value", "n"]
    assert buckets["bucket"].tolist() == list(expected["buckets"])
    for row, (value, n) in zip(buckets.itertuples(), expected["buckets"].values(), strict=True):
        assert (row.value, row.n) == (pytest.approx(value, abs=1e-12), n)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("**yep**, it does", "yes"),
        ("OKAY", "yes"),
        ("no, never", "no"),
        ("0", "no"),
        ("False", "no"),
        ('"Nah"', "no"),
        ("The answer is yes", "the"),
        ("n/a", "na"),
        ("", ""),
        (None, ""),
        (float("nan"), ""),
        ("  \n ", ""),
    ],
)
def test_yes_no_is_the_first_word(text, expected):
    assert metrics.parse_answer(text, "yes_no") == expected
    assert metrics.is_parsed(expected, "yes_no") == (expected in ("yes", "no"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "b"),
        ("(b)", "b"),
        ("C:boots", "c"),
        ("Answer: {D}.", "d"),
        ("B and B", "b"),
        ("A or B", "z"),
        ("TEA SETS", "b"),
        ("lamps and tea sets", "z"),
        ("E", "z"),
        ("Boots, I think", "c"),
        ("A pair of boots", "a"),
        ("", "z"),
        (None, "z"),
    ],
)
def test_multiple_choice_is_the_only_letter_or_the_only_text(text, expected):
    assert metrics.parse_answer(text, "multiple_choice", ("lamps", "tea sets", "boots", "prints")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but without the image provided I cannot say whether a lamp is shown. B", "z"),
        ("Sorry, I can't help with images of people yet. A", "z"),
        ("C: I can't process this file.", "z"),
        ("Cannot determine the answer: boots?", "z"),
        ("i'm sorry, but without the image provided, a", "a"),  # only as they are written, case included
        ("Z", "z"),
        ("(z) boots", "z"),
        ("Z or B", "b"),
        ("Failed to obtain answer via API. A", "z"),
        ("Failed to obtain answer via API. I meant boots, A", "c"),
    ],
)
def test_refusals_the_letter_z_and_failed_requests_are_read_as_published(text, expected):
    assert metrics.parse_answer(text, "multiple_choice", ("lamps", "tea sets", "boots", "prints")) == expected


def test_options_that_do_not_exist_are_never_chosen():
    options = ("lamps", "boots", None, float("nan"))
    assert metrics.parse_answer("C or A", "multiple_choice", options) == "a"
    assert metrics.parse_answer("nan", "multiple_choice", options) == "z"
    assert metrics.parse_answer("none of them", "multiple_choice", ("lamps", "", " ", "boots")) == "z"


def test_an_unknown_question_kind_is_an_error():
    with pytest.raises(ValueError, match="awareness.*expected 'yes_no' or 'multiple_choice'"):
        metrics.parse_answer("yes", "awareness")


@pytest.mark.parametrize("answer", [1, "1", 1.0, "1.0", "b", " B "])
def test_every_form_of_an_answer_code_is_read(answer):
    scored = metrics.score(pd.DataFrame([choice(answer=answer, prediction="tea sets")]))
    assert scored[["gt", "pred", "hit"]].iloc[0].tolist() == ["b", "b", 1]


def test_missing_columns_are_named():
    frame = pd.DataFrame([question()]).drop(columns=["concept", "prediction"])
    with pytest.raises(metrics.ScoringError, match="lack the column\\(s\\) concept, prediction"):
        metrics.score(frame)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": 6}, "answer is 6, expected 4 .yes. or 5 .no."),
        ({"answer": None}, "answer is "),
        ({"answer": "perhaps"}, "answer is 'perhaps'"),
        ({"answer": 0}, "answer is 0, expected 4"),
        ({"l2-category": "inconsistency", "answer": 4}, "answer is 4, expected 0-3 or A-D"),
        (
            {"l2-category": "oddity"},
            "l2-category is 'oddity', expected awareness, overconcept, inconsistency",
        ),
        ({"category": "profile"}, "category is 'profile', expected preference or recognition"),
        ({"preference_semantic_invert": 7}, "preference_semantic_invert is 7, expected 0, 1 or empty"),
        ({"l2-category": "inconsistency", "answer": 2, "C": " "}, "answer is 2, expected an option .*, and C has none"),
        ({"preference_bucket_names": "['ann', 'cid']"}, "preference_bucket_names is .*, expected the users' names"),
        ({"preference_bucket_names": '"eve"'}, "preference_bucket_names is"),
        ({"preference_bucket_names": "bob\ncid"}, "preference_bucket_names is"),
        ({"preference_bucket_names": "ann and cid"}, "preference_bucket_names is 'ann and cid'"),
        ({"preference_bucket_names": "cid & ann"}, "preference_bucket_names is 'cid & ann'"),
        ({"preference_bucket_names": "bob, cid/ann"}, "preference_bucket_names is 'bob, cid/ann'"),
    ],
)
def test_a_bad_row_is_named(fields, message):
    frame = pd.DataFrame([question(), question(**fields)], index=[3, 17]).assign(index=[30, 170]).astype(object)
    with pytest.raises(metrics.ScoringError, match=f"row 17 \\(question 170\\): {message}"):
        metrics.score(frame)


def test_scoring_leaves_the_input_alone():
    frame = pd.DataFrame([question(), choice()], index=[5, 2])
    before = frame.copy()
    scored = metrics.score(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert scored.index.tolist() == [5, 2]


def test_collapse_and_recall_undo_negated_questions():
    rows = [
        question(prediction="yes"),  # outside, truly no, says yes: collapse
        question(prediction="no"),
        question(answer=4, prediction="no", preference_semantic_invert=1),  # the same, negated: collapse
        question(answer=4, prediction="maybe", preference_semantic_invert=1),  # unreadable: left out
        question(name="bob", answer=4, prediction="yes"),  # inside, truly yes: recalled
        question(name="bob", answer=5, prediction="no", preference_semantic_invert=1),  # negated: recalled
        question(name="cid", answer=4, prediction="no"),
        question(name="cid", answer=4, prediction="perhaps"),  # unreadable: left out as well
        question(name="bob", answer=5, prediction="yes"),  # inside but truly no: neither
        question(answer=4, prediction="yes"),  # outside but truly yes: neither
        question(category="recognition", concept="", answer=5, prediction="yes", preference_bucket_names=None),
        choice(prediction="A"),
    ]
    summary = metrics.summarize(metrics.score(pd.DataFrame(rows)))
    assert (summary["collapse"]["value"], summary["collapse"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (summary["recall"]["value"], summary["recall"]["n"]) == (pytest.approx(2 / 3), 3)
    assert summary["sensitivity"]["value"] == pytest.approx(2 / 3 - 2 / 3)
    assert summary["sensitivity"]["n"] == 6
    assert [summary[metric]["unparsed"] for metric in metrics.METRICS] == [2, 2, 0, 1, 1, 2]
    assert summary["preference"]["n"] == 11


def test_a_no_sayer_has_no_collapse_and_no_sensitivity():
    rows = [question(), question(name="bob", answer=4), question(name="cid", answer=4)]
    summary = metrics.summarize(metrics.score(pd.DataFrame(rows)))
    assert [summary[metric]["value"] for metric in ("collapse", "recall", "sensitivity")] == [0, 0, 0]


def test_metrics_without_questions_are_undefined_not_zero():
    summary = metrics.summarize(metrics.score(pd.DataFrame([choice(), choice(name="bob")])))
    assert summary["profile"]["n"] == 0 and np.isnan(summary["profile"]["value"])
    assert all(np.isnan(summary["collapse"][key]) for key in ("value", "low", "high"))
    empty = metrics.score(pd.DataFrame([question()]).iloc[:0])
    assert metrics.summarize(empty)["overall"]["n"] == 0
    assert metrics.collapse_by_bucket(empty)["n"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["Smith, John", "A; B", "Ye Wen"])
@pytest.mark.parametrize("others", [[], ["cid"], ["bob", "cid"]])
def test_a_name_with_a_comma_keeps_its_recall_questions(name, others):
    """As evaluation writes the cell, and as a table of another hand does."""
    for cell in (join_holders([name, *others]), " | ".join([name, *others])):
        asked = [question(name=name, answer=4, prediction=said, preference_bucket_names=cell) for said in ("yes", "no")]
        parts = map(str.strip, name.replace(";", ",").split(","))
        strangers = [question(name=part, preference_bucket_names=cell) for part in parts]
        summary = metrics.summarize(metrics.score(pd.DataFrame(asked + strangers)))
        assert (summary["recall"]["n"], summary["recall"]["value"]) == (2, 0.5)
        assert summary["collapse"]["n"] == (0 if name == "Ye Wen" else 2)


@pytest.mark.parametrize("names", [[], ["Ann"], ["Ann", "Ye Wen"], ["Smith, John"], ["A; B", "C"], ["A|B"], ["A/B"],
                                   ["A & B"], ["A and B"], ["[A]"]])
def test_a_cell_of_holders_is_read_back(names):
    assert list(split_holders(join_holders(names))) == names
    assert metrics.holders(pd.DataFrame([question(preference_bucket_names=join_holders(names))])) == [frozenset(names)]


@pytest.mark.parametrize("name", ["Tom & Jerry", "AC/DC", "Bonnie and Clyde", "O'Neil", "Bob (the dog)", "[x] & y"])
def test_a_name_that_looks_like_several_is_one_where_nobody_is_part_of_it(name):
    """A user's name as it is, and a stranger's that no user's name is part of."""
    for cell, asked in ((name, name), (name, "ann"), (f"ann, {name}", "ann"), (f"{name} | ann", "Tom")):
        scored = metrics.score(pd.DataFrame([question(name=asked, preference_bucket_names=cell)]))
        assert name in metrics.holders(scored)[0]


def test_one_user_has_no_interval():
    summary = metrics.summarize(metrics.score(pd.DataFrame([question(), question(prediction="yes")])))
    assert summary["overall"]["value"] == 0.5
    assert np.isnan(summary["overall"]["low"]) and np.isnan(summary["overall"]["high"])


@pytest.mark.parametrize(("size", "bucket"), [(4, 0), (5, 1), (8, 1), (9, 2)])
def test_bucket_edges(size, bucket):
    names = ";".join(f"user{k}" for k in range(size))
    table = metrics.collapse_by_bucket(
        metrics.score(pd.DataFrame([question(prediction="yes", preference_bucket_names=names)]))
    )
    assert table["n"].tolist() == [int(k == bucket) for k in range(3)]
    assert table["value"][bucket] == 1


def test_seeds_are_averaged_after_the_ratio():
    first = metrics.score(pd.DataFrame([question(prediction="yes"), question(name="dan", prediction="no")]))
    second = metrics.score(pd.DataFrame([question(prediction="yes"), question(name="dan", prediction="hm")]))
    counts = metrics.user_counts([first, second])
    assert metrics.estimates(*counts)["collapse"]["value"] == pytest.approx((1 / 2 + 1 / 1) / 2)
