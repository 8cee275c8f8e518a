"""The slides: their numbers are those of the committed tables, and their minutes those of the teachers' plan."""

import re
import shutil
from io import BytesIO

import pandas as pd
import pytest
import slides
from committed import Tables
from matplotlib.text import Text
from PIL import Image

from prefmoe.analysis.answers import TableError
from prefmoe.config import FIGURES, ROOT
from prefmoe.course import answers
from prefmoe.figures import style

PAGE = (ROOT / slides.PAGE).read_text(encoding="utf-8")
SLIDES = re.split(r"^##? ", PAGE, flags=re.M)[1:]
MINUTES = [re.findall(r"^:::\{revealjs-notes\}\n(\d+) minutes\. ", slide, re.M) for slide in SLIDES]


@pytest.fixture(scope="module")
def drawn() -> dict:
    """The pictures by their names."""
    return slides.drawn(Tables())


def number(text: str, pattern: str) -> float:
    """The one number that a text has at a place."""
    (found,) = re.findall(pattern, text)
    return float(found)


def slide(title: str) -> str:
    (found,) = (one for one in SLIDES if one.startswith(title))
    return " ".join(found.split())


def value(method: str, metric: str, table: str = "table1", **where: object) -> float:
    rows = pd.read_csv(FIGURES / f"mini/{table}.csv")
    rows = rows[(rows["method"] == method) & (rows["metric"] == metric) & rows["backbone"].isin(["llava-mini", "none"])]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return float(rows.loc[rows.get("turns", pd.Series(0, rows.index)) == 0, "value"].item())


def test_what_stands_on_the_slides_is_what_the_tables_say():
    assert slides.with_sentences(PAGE) == PAGE, "run `python workflow/scripts/publish.py pages`"


def test_the_numbers_are_those_of_the_rows_that_they_are_said_to_be_of():
    told, fresh, popular = slide("Claim (a)"), slide("Claim (b)"), slide("Why a popular choice")
    near = pytest.approx
    assert number(told, r"tell: (\.\d+)") == near(value("PrefMoE", "auc_told"), abs=0.0051)
    assert number(told, r"With zeros (\.\d+)") == near(
        value("PrefMoE", "auc_told", "controls", control="zero_prefix"), abs=0.0051
    )
    assert number(told, r"LoRA with profile (\.\d+)") == near(value("LoRA with profile", "auc_told"), abs=0.0051)
    assert number(fresh, r"asked: (\.\d+)") == near(value("PrefMoE", "auc_untold_fresh"), abs=0.0051)
    assert number(popular, r"collapse is (\.\d+)") == near(value("Popular choice", "sensitivity"), abs=0.0051)
    assert number(popular, r"PrefMoE's (\.\d+): not told") == near(value("PrefMoE", "preference"), abs=0.00051)
    for method in slides.ROWS:
        row = re.search(rf"\| {re.escape(method)} \|[^|]+\| (\.\d+) \| (\.\d+) \| (\.\d+) \|", slide("Which method"))
        found = [value(method, metric) for metric in ("collapse", "recall", "auc_same")]
        assert [float(cell) for cell in row.groups()] == near(found, abs=0.0051)
    rows = answers.preferences("LoRA")
    rows = rows[~rows["negated"] & (rows["item"] == "umbrellas")]
    said = rows["answer"].eq("yes").groupby(rows["truth"]).agg(["sum", "size"])
    text = f"yes to {said.loc['yes', 'sum']} of {said.loc['yes', 'size']} who do"
    assert text in slide(
        "Group preference"
    ) and f"{said.loc['no', 'sum']} of {said.loc['no', 'size']} who do not" in slide("Group preference")


def test_a_sentence_that_no_longer_holds_is_named(tmp_path):
    shutil.copytree(FIGURES / "mini", tmp_path / "figures/mini", ignore=shutil.ignore_patterns("*.png", "protocol"))
    table = pd.read_csv(tmp_path / "figures/mini/table1.csv")
    table.loc[(table["method"] == "PrefMoE") & (table["metric"] == "auc_untold_fresh"), "low"] = 0.4
    table.to_csv(tmp_path / "figures/mini/table1.csv", index=False)
    with pytest.raises(TableError, match="no longer holds that one interval includes one half"):
        slides.with_sentences(PAGE, Tables(tmp_path))


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (
            "<!-- said: nothing -->\n<!-- end -->\n",
            "nothing is said about 'nothing'; expected one of answers, collapse",
        ),
        ("<!-- said: sizes -->\n", "expected one <!-- end --> after every"),
    ],
)
def test_a_mark_that_is_none_is_named(page, told):
    with pytest.raises(TableError, match=told):
        slides.with_sentences(page)


def test_there_are_as_many_slides_as_fit_in_an_hour_and_a_half_and_each_has_notes_with_its_minutes():
    assert 14 <= len(SLIDES) <= 20 and all(len(found) == 1 for found in MINUTES)
    assert sum(int(found[0]) for found in MINUTES) == 90


def test_the_minutes_of_the_slides_are_those_of_the_teachers_plan():
    text = (ROOT / "site/teachers.md").read_text(encoding="utf-8")
    plan = re.findall(r"^\| (\d+)-(\d+) \| (\d+)(?: (?:to|and) (\d+))? \|", text, re.M)
    clock, shown = 0, 0
    for start, end, first, last in ([int(part or 0) for part in row] for row in plan):
        assert (start, first) == (clock, shown + 1)
        clock, shown = end, max(first, last)
        assert sum(int(found[0]) for found in MINUTES[first - 1 : shown]) == end - start
    assert (clock, shown) == (90, len(SLIDES))


def test_every_picture_that_is_shown_is_drawn(drawn):
    shown = re.findall(rf"\]\({slides.MADE}/(\w+)\.png\)", PAGE)
    assert sorted(shown) == sorted(drawn)


@pytest.mark.parametrize("name", re.findall(rf"\]\({slides.MADE}/(\w+)\.png\)", PAGE))
def test_the_smallest_words_of_a_picture_are_read_from_the_last_row(drawn, name):
    """Three fifths of the body's height on the slide, where a picture is no larger than its own pixels, its page's
    width, and the height that the style sheet leaves it."""
    styles = (ROOT / slides.SOURCE / "_static/slides.css").read_text(encoding="utf-8")
    body, tallest = (number(styles, rf"{key}: (\d+)px") for key in ("--r-main-font-size", r"\.reveal img .*max-height"))
    figure = drawn[name]
    across, down = figure.get_size_inches()
    with Image.open(BytesIO(style.png(figure))) as picture:
        shown = min(1, 1264 / picture.width, tallest / picture.height) * picture.width / across  # pixels of an inch
    words = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    smallest = min(words, key=lambda text: text.get_fontsize())
    assert smallest.get_fontsize() / 72 * shown >= 0.6 * body, smallest.get_text()
