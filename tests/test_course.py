"""The course: solutions pass their checks, students' notebooks come from them, and every mistake is met with a "
"sentence."""

import ast
import importlib
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from committed import Tables, dot

import course
from prefmoe import metrics
from prefmoe.analysis import pairs
from prefmoe.config import FIGURES, ROOT
from prefmoe.course import answers, checking, one_picture
from prefmoe.models.free_users import prefix_of
from prefmoe.workflow import notebooks

SOLUTIONS = sorted((ROOT / "course/solutions").glob("*.ipynb"))
UNITS = {path.stem: importlib.import_module(f"prefmoe.course.{path.stem.partition('_')[0]}") for path in SOLUTIONS}


def code(path: Path) -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"
    ]


def run(path: Path, upto: int | None = None) -> dict[str, Any]:
    """The names that a notebook's code cells leave, executed in this process."""
    space: dict[str, Any] = {}
    for number, source in enumerate(code(path)[:upto]):
        exec(compile(source, f"{path.name}[{number}]", "exec"), space)
    return space


def checks(path: Path) -> list[str]:
    """The names of the checks that a notebook calls, in their order."""
    lines = (node.value for source in code(path) for node in ast.parse(source).body if isinstance(node, ast.Expr))
    calls = [line.func for line in lines if isinstance(line, ast.Call) and isinstance(line.func, ast.Attribute)]
    return [call.attr for call in calls if ast.unparse(call.value) == "check"]


CHECKS = [pytest.param(path, name, id=f"{path.stem[:5]}-{name}") for path in SOLUTIONS for name in checks(path)]


def test_there_are_nine_units():
    assert [path.stem[:5] for path in SOLUTIONS] == [f"unit{k}" for k in range(9)]
    assert len(CHECKS) >= 37


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_pass_every_check(path, capsys):
    run(path)
    told = capsys.readouterr().out
    assert told.count("Right. ") + told.count("Noted: ") == len(checks(path))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_students_notebook_is_the_one_with_solutions_without_them(path):
    made = course.without_solutions(notebooks.read(path))
    theirs = notebooks.read(ROOT / "course/exercises" / path.name)
    assert made == theirs, "run `python workflow/scripts/course.py exercises`"
    text = json.dumps(theirs)
    assert "SOLUTION" not in text and "# yours" in text
    first = next(number for number, cell in enumerate(theirs.cells) if "# yours" in cell.source)
    outputs = [(number, output) for number, cell in enumerate(theirs.cells) for output in cell.get("outputs", [])]
    assert all(number < first and "<img " in output.data["text/html"] for number, output in outputs)
    for source in code(path):  # nothing of a solution is left but the names that are to be filled
        for solution in re.findall(r"### BEGIN SOLUTION\n(.*?)\n[ \t]*### END", source, re.S):
            assert solution.strip() not in text


def test_the_picture_of_unit_0_is_seen_before_anything_is_run():
    (cell,) = (c for c in notebooks.read(ROOT / "course/exercises" / SOLUTIONS[0].name).cells if c.get("outputs"))
    assert cell.source == "one_picture.show()"
    assert re.search('alt="[^"]*who of them likes', cell.outputs[0].data["text/html"])


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_first_check_of_an_untouched_notebook_says_that_the_cell_is_empty(path):
    with pytest.raises(checking.NotYet, match="returned nothing|is still empty"):
        run(ROOT / "course/exercises" / path.name)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_an_untouched_notebook_says_what_is_to_be_written_and_shows_no_traceback(path):
    """Cells between the checks ended in "unsupported operand type(s) for /: 'NoneType' and 'int'"."""
    space: dict[str, Any] = {}
    for source in code(ROOT / "course/exercises" / path.name):
        try:
            exec(compile(source, path.name, "exec"), space)
        except checking.NotYet as told:
            assert re.search("returned nothing|still empty|write it first", str(told)), told


def test_a_function_without_a_body_is_told_from_one_that_returns_what_it_was_given():
    def written(x):
        return x

    def empty(x, y=1):
        """What it shall do."""
        ...

    checking.ready(written, lambda: 0)
    for one in (empty, lambda x: None):
        with pytest.raises(checking.NotYet, match="write it first"):
            checking.ready(written, one)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_shown_outputs_are_of_the_notebook(path):
    notebooks.check_outputs(path, executed=True)


WRONG = {
    "...": ..., "None": None, "text": "a word", "list": [1, 2, 3], "object": object(), "nan": math.nan,
    "function that returns nothing": lambda *a: None, "that returns text": lambda *a: "a word",
    "that returns an object": lambda *a: object(), "that fails": lambda *a: 1 / 0,
    "that returns a list": lambda *a: [[1], [2, 3]], "that takes nothing": lambda: 1,
    "that returns another shape": lambda *a: np.zeros((2, 1, 3)),
    "that returns a tensor of another shape": lambda *a: torch.zeros(2, 1, 3), "of NaN": lambda *a: math.nan,
    "array of nothing": np.array(37.5), "tensor of nothing": torch.tensor(37.5), "complex": [1j, 2j],
    "that returns an array without a dimension": lambda *a: np.array(37.5),
    "that returns a tensor without a dimension": lambda *a: torch.tensor(37.5),
    "that returns a set": lambda *a: {0.1, 0.2}, "that returns complex numbers": lambda *a: np.array([1j, 2j]),
    "that returns a generator": lambda *a: (one for one in (1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("path", "name"), CHECKS)
@pytest.mark.parametrize("empty", [..., None])
def test_an_answer_that_is_still_empty_is_called_so_and_what_was_expected_stands_beside_it(path, name, empty):
    with pytest.raises(checking.NotYet, match="is still empty.*: expected .*|lacks"):
        getattr(UNITS[path.stem], name)(empty)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "an int, 5"),
        (0.5, "a float, 0.5"),
        (None, "still empty"),
        (..., "still empty"),
        ("a", "the text 'a'"),
        (np.array(["a"])[0], "the text 'a'"),
        ([1], "a list of 1"),
    ],
)
def test_a_value_is_described_in_words(value, words):
    assert checking.described(value) == words


@pytest.mark.parametrize(("path", "name"), CHECKS)
def test_answers_of_a_wrong_kind_are_met_with_what_was_expected(path, name):
    for kind, wrong in WRONG.items():
        with pytest.raises(checking.NotYet) as told:
            getattr(UNITS[path.stem], name)(wrong)
        expected = r"expected|lacks|returned nothing|stops with (ZeroDivision|Type)Error"
        assert re.search(expected, str(told.value)) and len(str(told.value)) < 500, (kind, told.value)


def _prefix(kind):
    """The right prefix of unit 3, in another kind of tensor."""
    return lambda profile, p, r: kind(prefix_of(profile[None], p, r[None])[0])


@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, lambda x: x.to(torch.complex64)])
def test_a_tensor_of_another_kind_is_met_with_what_was_expected(kind):
    with pytest.raises(checking.NotYet, match="tensor of another kind .*: expected a dense one of real numbers"):
        UNITS[SOLUTIONS[3].stem].prefix(_prefix(kind))


def test_precision_is_a_student_s_choice_where_it_is_enough(capsys):
    UNITS[SOLUTIONS[3].stem].prefix(_prefix(torch.Tensor.double))
    assert "Right." in capsys.readouterr().out
    with pytest.raises(checking.NotYet, match=r"prefix\(...\) is .* expected"):
        UNITS[SOLUTIONS[3].stem].prefix(_prefix(torch.Tensor.bfloat16))

    def whole(anchors, reading):
        return anchors.mean(0).int(), anchors.int()

    with pytest.raises(checking.NotYet, match="expected"):
        UNITS[SOLUTIONS[3].stem].split(whole)


def test_names_that_are_missing_and_names_that_do_not_belong_are_told_apart():
    checking.same_names({"a"}, {"a"}, "these", "letters", "look")
    with pytest.raises(checking.NotYet, match="^these lacks 1 of 2 letters, and c, d do not belong: look$"):
        checking.same_names({"a", "c", "d"}, {"a", "b"}, "these", "letters", "look")
    for strange in (["z"], [["a"]], [1]):
        with pytest.raises(checking.NotYet, match="these names .*: expected letters out of a, b"):
            checking.names(strange, "these", ["a", "b"], "letters")


def test_a_loop_that_is_right_is_told_how_many_products_it_needs():
    unit5 = importlib.import_module("prefmoe.course.unit5")
    with pytest.raises(checking.NotYet, match="is right .* by 10 products of matrices with 5 experts: expected 2"):
        unit5.mixture(unit5.loop)


def test_what_routers_do_is_read_off_the_table(monkeypatch, capsys):
    unit5 = importlib.import_module("prefmoe.course.unit5")
    table = unit5.gate_table()
    largest = max(
        part.pivot(index="group", columns="expert", values="value").pipe(lambda t: t.max() - t.min()).max()
        for _, part in table.groupby("router")
    )
    assert unit5.widest_difference() == pytest.approx(largest)
    unit5.routes("c" if largest < unit5.ROUTED else "b")
    assert f"{largest:.2f}" in capsys.readouterr().out
    apart = table.assign(value=table["value"].where(table["group"] != table["group"].iloc[0], 0.99))
    monkeypatch.setattr(unit5, "gate_table", lambda: apart)
    unit5.routes("b")
    with pytest.raises(checking.NotYet):
        unit5.routes("c")


def test_two_products_equal_the_loop_to_a_hundred_thousandth(capsys):
    """Another order of summation passes, in single precision too; a thousandth of a gate too much does not."""
    unit5 = importlib.import_module("prefmoe.course.unit5")

    def products(x, A, B, gate, *, more=0.0):
        hidden = torch.einsum("bti,eri->bter", x.flip(-1), A.flip(-1)) * (gate + more)[:, None, :, None]
        return torch.einsum("bter,eor->bto", hidden, B)

    unit5.mixture(products)
    assert "Right." in capsys.readouterr().out
    for more in (1e-3, -1e-4):
        with pytest.raises(checking.NotYet, match="mixture.* expected"):
            unit5.mixture(lambda *given, more=more: products(*given, more=more))


def test_a_failing_line_of_the_student_is_named():
    def collapse(questions):
        return questions["no such column"]

    with pytest.raises(checking.NotYet, match=r"collapse stops with KeyError.*in its line `return questions"):
        UNITS[SOLUTIONS[1].stem].collapse(collapse)


def test_a_notebook_shows_the_sentence_and_no_traceback():
    assert checking.NotYet("Expected 3.")._render_traceback_() == ["Not yet. Expected 3."]


def test_a_pile_of_notebooks_is_graded_past_what_fails_and_stays_as_it_is(tmp_path):
    pile, solved = tmp_path / "handed_in", SOLUTIONS[3]
    for student in ("ada", "bo", "cy"):
        (pile / student).mkdir(parents=True)
    shutil.copy(solved, pile / "ada")
    shutil.copy(ROOT / "course/exercises" / solved.name, pile / "bo")
    text = json.loads((pile / "ada" / solved.name).read_text("utf-8"))
    for cell in text["cells"]:  # one of four is wrong, and not the last
        cell["source"] = "".join(cell["source"]).replace("anchors.mean(0)", "anchors.sum(0)")
    (pile / "cy" / solved.name).write_text(json.dumps(text), encoding="utf-8")
    before = {path: path.read_bytes() for path in pile.rglob("*.ipynb")}
    assert course.main(["grade", str(pile), "--output", str(tmp_path / "out/grades.csv")]) == 0
    table = pd.read_csv(tmp_path / "out/grades.csv")
    table["student"] = table["notebook"].str.partition("/")[0]
    names = checks(solved)
    assert all(rows["check"].tolist() == names for _, rows in table.groupby("student"))
    assert table.groupby("student")["right"].sum().to_dict() == {"ada": len(names), "bo": 0, "cy": len(names) - 1}
    assert table["said"].notna().all() and "expected" in table.query("student == 'cy' and right == 0")["said"].item()
    assert {path: path.read_bytes() for path in pile.rglob("*.ipynb")} == before
    with pytest.raises(notebooks.NotebookError, match="no notebooks in it"):
        course.grade(tmp_path / "out", tmp_path / "none.csv")


def test_a_cell_that_never_ends_and_a_kernel_that_dies_leave_the_rest_of_the_pile_graded(tmp_path):
    asked = "from prefmoe.course import unit8 as check", "check.fits(None)"
    for name, code in {"quick/c": "1", "pile/a": "while True: pass", "pile/b": "import os; os._exit(1)"}.items():
        cells = [nbformat.v4.new_code_cell(text) for text in (code, *asked)]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    began = time.monotonic()
    tables = [course.grade(tmp_path / "quick", tmp_path / "quick.csv")]
    seconds = 2 + 2 * round(time.monotonic() - began)  # more than any cell that ends takes here, now
    tables.append(course.grade(tmp_path / "pile", tmp_path / "pile.csv", seconds=seconds))
    table = pd.concat(map(pd.read_csv, tables)).set_index("notebook")
    assert (table["check"] == "fits").all() and (table["right"] == 0).all()
    assert table["said"]["a.ipynb"] == table["said"]["c.ipynb"] == "fits is still empty: expected a function."
    assert pd.isna(table["said"]["b.ipynb"])


# The answers that are shipped


def test_the_two_users_are_asked_about_what_most_like_and_are_told_apart_by_whoever_is_right_about_both():
    shown, unit0 = one_picture.chosen(), UNITS[SOLUTIONS[0].stem]
    frames = {label: answers.preferences(label) for label in answers.methods()}
    likes = {label: rows[~rows["negated"] & (rows["item"] == shown.item)] for label, rows in frames.items()}
    rows = next(iter(likes.values()))
    assert len(rows) >= 8 and 2 * (rows["truth"] == "yes").sum() == len(rows)
    assert all((shown.likes in held) and (shown.other not in held) for held in rows["holders"])
    said = {label: dict(zip(one["user"], one["answer"], strict=True)) for label, one in likes.items()}
    pair = [(one[shown.likes], one[shown.other]) for one in said.values()]
    unit0.both_right(sum(both == ("yes", "no") for both in pair))
    unit0.alike({label for label, (first, second) in zip(said, pair, strict=True) if first == second})
    others = [user for user, true in zip(rows["user"], rows["truth"], strict=True) if true == "no"]
    unit0.strangers(np.mean([said["LoRA"][user] == "yes" for user in others]))


@pytest.mark.parametrize(("recall", "collapse", "letter"), [(0.9, 0.1, "a"), (1.0, 0.9, "b"), (0.2, 0.1, "c")])
def test_what_answers_go_by_follows_from_them(recall, collapse, letter):
    assert UNITS[SOLUTIONS[0].stem]._goes_by(recall, collapse) == letter


@pytest.mark.parametrize("label", answers.methods())
def test_shipped_answers_are_those_behind_the_committed_table(label):
    frames = [answers.scored(label, seed) for seed in answers.methods()[label]]
    duels = pairs.duels(frames)
    found = {name: one.values.mean() for name, one in duels.items()}
    summaries = [metrics.summarize(frame, resamples=2) for frame in frames]
    found |= {name: np.mean([one[name]["value"] for one in summaries]) for name in metrics.METRICS}
    table = pd.read_csv(FIGURES / "mini/table1.csv")
    row = table[(table["method"] == label) & (table["backbone"] == "llava-mini") & (table["turns"] == 0)]
    assert set(row["metric"]) == set(found) and set(row["seeds"]) == {len(frames)}
    for metric, value in zip(row["metric"], row["value"], strict=True):
        assert found[metric] == pytest.approx(value, abs=1e-6), "run `python workflow/scripts/course.py answers`"


def test_shipped_answers_are_small():
    assert sum(path.stat().st_size for path in answers.FOLDER.iterdir()) < 500_000


def test_exchanges_are_of_things_that_the_user_likes_and_the_counterpart_does_not():
    rows = answers.exchanges()
    asked = answers.preferences("PrefMoE")
    likes = {(u, i): u in h for u, i, h in zip(asked["user"], asked["item"], asked["holders"], strict=True)}
    holders = {i: h for i, h in zip(asked["item"], asked["holders"], strict=True)}
    assert len(rows) > 100 and all(likes[user, item] for user, item in zip(rows["user"], rows["item"], strict=True))
    assert not [1 for other, item in zip(rows["counterpart"], rows["item"], strict=True) if other in holders[item]]
    assert rows[["own", "asked_facet", "other_facets"]].stack().between(0, 1).all()
    own = pairs.held_probability(answers.scored("PrefMoE"))  # the same questions, as the run answered them
    assert np.isin(rows["own"].round(3), own.round(3)).mean() > 0.99


def test_answers_that_are_not_there_are_named(tmp_path):
    with pytest.raises(answers.CourseFileError, match="no such file; it ships with the repository, or is made by"):
        answers.methods(tmp_path)
    with pytest.raises(
        answers.CourseFileError, match="no answers of LoRA, seed 7, control none; expected one of .*LoRA, seed"
    ):
        answers.scored("LoRA", 7)
    for path in answers.FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    rows = pd.read_parquet(tmp_path / answers.ANSWERS).drop(columns="p_yes")
    rows.to_parquet(tmp_path / answers.ANSWERS)
    with pytest.raises(answers.CourseFileError, match="answers.parquet: no column p_yes; expected index, method"):
        answers.methods(tmp_path)


def test_solutions_inside_and_outside_of_functions_leave_something_to_fill():
    cell = "def f(x):\n    'doc'\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n"
    other = "a = 1\n### BEGIN SOLUTION\nb, c = 2, 3\nd = 4\n### END SOLUTION"
    cells = [nbformat.v4.new_code_cell(source) for source in (cell, other)]
    made = course.without_solutions(nbformat.v4.new_notebook(cells=cells))
    assert made.cells[0].source == "def f(x):\n    'doc'\n    ...  # yours\n"
    assert made.cells[1].source == "a = 1\n(b, c) = ...  # yours\nd = ...  # yours"


def test_the_teachers_page_quotes_the_table():
    text = (ROOT / "site/teachers.md").read_text(encoding="utf-8")
    row = Tables().row("mini/table1", method="Popular choice", metric="sensitivity", turns=0)
    assert f"have a sensitivity of {dot(row['value'])}?" in text


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_unit_stands_on_the_pages_with_its_minutes_and_typical_wrong_answers(path):
    course_page, teachers = ((ROOT / f"site/{name}.md").read_text(encoding="utf-8") for name in ("course", "teachers"))
    (minutes,) = re.findall(r"\*\*Time\*\* (\d+) minutes", path.read_text(encoding="utf-8"))
    (told,) = re.findall(rf"\(\.\./course/exercises/{path.stem}\.ipynb\) \|[^|]+\| (\d+) \|", course_page)
    assert told == minutes
    wrong = teachers.partition("## Typical wrong answers")[2]
    assert len(re.findall(rf"^\| {path.stem[4]} \|", wrong, re.M)) >= 2
    assert f"course/exercises/{path.stem}\n" in course_page and f"course/solutions/{path.stem}\n" in teachers
