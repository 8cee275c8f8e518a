"""Figures of notebooks 1 to 4 and 12, drawn by their own cells: by the values in their artists."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from notebook_cells import cells, ends, filled, one_line, text, values
from PIL import Image

from prefmoe.analysis import published
from prefmoe.data import composition
from prefmoe.data.benchmark import Preference, User

# Notebook 1


def test_the_published_tables_are_drawn_number_by_number(tmp_path):
    ids = ("printed-function", "accuracies", "overall", "collapse", "ablation", "ablation-detail")
    table1, table2 = published.read("table1"), published.read("table2")
    shown = cells("01", *ids, table1=table1, table2=table2, folder=tmp_path).figures
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published_collapse.png", "published_table1.png"]
    axes = [axis for figure in shown for axis in figure.axes]
    metrics = ("preference", "profile", "overall", "collapse", "preference", "collapse", "overall", "profile")
    for axis, metric, table in zip(axes, metrics, [table1] * 4 + [table2] * 4, strict=True):
        rows = table[table["metric"] == metric]
        assert values(axis) == pytest.approx(sorted(rows["value"]))
        assert filled(axis) == pytest.approx(sorted(rows.loc[rows["turns"] == 0, "value"]))
        assert ends(axis) == pytest.approx(values(axis))  # a line from one number of turns to the other
    for metric, figure in zip(("preference", "overall", "collapse"), (shown[0], *shown[1:3]), strict=True):
        best = 0
        for backbone in ("LLaVA-1.5-7B", "LLaVA-1.5-13B", "LLaVA-OV-72B", "DeepSeek-VL2-Tiny", "DeepSeek-VL2-Small",
                         "DeepSeek-VL2", "Qwen2.5-VL-7B", "Qwen2.5-VL-32B", "Qwen2.5-VL-72B"):  # fmt: skip
            rows = table1[(table1["metric"] == metric) & (table1["turns"] == 0)]
            ours = rows.loc[rows["method"] == f"PrefMoE ({backbone})", "value"].item()
            others = rows.loc[rows["method"] == backbone, "value"]
            best += ours < others.min() if metric == "collapse" else ours > others.max()
        assert f"{best} of 9" in one_line(figure)
    assert "n = 750 preference, 1395 profile questions" in one_line(shown[0]) and "no interval" in one_line(shown[0])
    fall = (table2.query("turns == 0 and metric == 'collapse'").set_index("components")["value"]).diff().min()
    assert f"({fall:+.3f})" in one_line(shown[3])


def test_a_title_about_the_printed_numbers_follows_them():
    table = published.read("table1")
    worse = table["method"].eq("PrefMoE (DeepSeek-VL2)") & table["metric"].eq("preference")
    changed = table.assign(value=table["value"].mask(worse, 0.1))
    figure, *_ = cells("01", "printed-function", "accuracies", table1=changed, table2=pd.DataFrame()).figures
    assert "8 of 9 (preference) and 9 of 9 (profile)" in one_line(figure)


# Notebook 2


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_users_and_questions_are_shown_with_their_own_pictures(picture, monkeypatch, tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tastes = {"travel": Preference(likes=("sailing",), dislikes=("trains",))}
    ada = User(name="Ada", attribute="human", description="Ada is a person.", preferences=tastes, images=(picture,) * 2)
    bo = User(name="Bo", attribute="human", description="Bo too.", preferences={}, images=(picture,))
    asked = [
        SimpleNamespace(image=picture, name="Ada", category="recognition", question="Is this Ada?", answer_text=answer,
                        options=(), is_multiple_choice=False, semantic_invert=False, target="Single", index=k)
        for k, answer in enumerate(("yes", "no", "yes"))
    ]  # fmt: skip
    benchmark = SimpleNamespace(users={"Ada": ada, "Bo": bo}, splits={"test": (0, 1, 2)}, select=lambda split: asked)
    given = {"benchmark": benchmark, "picture": Image.open, "folder": tmp_path}
    portraits, questions, faces = cells("02", "portraits", "question-pictures", "recognition-pictures", **given).figures
    assert sum(bool(axis.images) for axis in portraits.axes) == 2 and "Bo too" not in text(portraits)
    assert "1 of 2 users hold preferences, in up to 1 facets" in one_line(portraits)
    assert "sailing" in one_line(portraits) and (tmp_path / "portraits.png").is_file()
    shown = [axis for axis in questions.axes if axis.images]
    assert len(shown) == 2 == len(composition.specimens(benchmark)) and "n = 2 of 3" in one_line(questions)
    assert all(np.array_equal(axis.images[0].get_array(), pixels) for axis in shown)
    assert sum(bool(axis.images) for axis in faces.axes) == 4
    assert "The answer to 2 of these 3 questions is yes" in one_line(faces)


def test_popularity_is_drawn_by_rank(monkeypatch):
    items = pd.DataFrame({"facet": ["travel"] * 3, "item": list("abc"), "users": [1, 5, 2]})
    groups = pd.DataFrame({"facet": ["travel"] * 2, "users": [5, 3]})
    given = {"held": [1] * 8, "benchmark": None}
    monkeypatch.setattr("prefmoe.analysis.groupings.item_popularity", lambda benchmark: items)
    monkeypatch.setattr("prefmoe.analysis.groupings.group_sizes", lambda benchmark: groups)
    (figure,) = cells("02", "skew-figure", **given).figures
    drawn = [(list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) for axis in figure.axes]
    assert drawn == [([1, 2, 3], [5, 2, 1]), ([1, 2], [5, 3])]
    assert "n = 8 users with preferences, 3 items, 2 preference groups" in one_line(figure)
    assert "The most liked item has 5 users, the median one 2" in one_line(figure)
    items = groups = items.head(0)
    (nothing,) = cells("02", "skew-figure", **given).figures
    assert "Nobody has a preference" in one_line(nothing)


def test_bars_count_the_questions_of_every_split(monkeypatch):
    table = published.read("dataset_statistics")
    monkeypatch.setattr("prefmoe.analysis.groupings.dataset_statistics", lambda benchmark: table)
    (figure,) = cells("02", "split-figure", benchmark=None).figures
    assert "n = 12516 questions: 10371 train, 2145 test." in text(figure)
    assert sorted(bar.get_width() for bar in figure.axes[0].patches) == sorted(table["count"])
    assert "60% of the questions are about preferences" in text(figure) and "yes/no" in text(figure)


# Notebook 3


def test_abilities_have_wilson_intervals_and_ticks_where_guessing_is(monkeypatch):
    rows = [
        {"backbone": "b", "ability": "see", "value": 0.9, "n": 100, "chance": 0.5},
        {"backbone": "b", "ability": "read", "value": 0.3, "n": 50, "chance": 0.25},
        {"backbone": "b", "ability": "guess", "value": 0.3, "n": 50, "chance": np.nan},
    ]
    monkeypatch.setattr("prefmoe.backbones.cards.abilities", lambda: pd.DataFrame(rows))
    (figure,) = cells("03", "ability-figure", edition="mini").figures
    (axis,) = figure.axes
    assert values(axis) == pytest.approx([0.25, 0.3, 0.3, 0.5, 0.9])
    bounds = []
    for row in rows:
        z2, p, n = 1.959964**2, row["value"], row["n"]
        half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
        bounds += [(p + z2 / (2 * n) + sign * half) / (1 + z2 / n) for sign in (-1, 1)]
    assert ends(axis) == pytest.approx(sorted(bounds))
    assert "Abilities above chance: 1 of 2 (b)" in one_line(figure) and "n = 50 to 100" in one_line(figure)


def test_the_conversations_question_is_shown_first(picture, monkeypatch):
    said = {"image": picture, "name": "Ada", "options": (), "answer_text": "no"}
    questions = {str(k): SimpleNamespace(question=f"Number {k}?", **said) for k in range(6)}
    monkeypatch.setattr("prefmoe.data.composition.specimens", lambda benchmark: questions)
    settings = SimpleNamespace(data=SimpleNamespace(kind="miniature"))
    (figure,) = cells("03", "picture", benchmark=None, settings=settings).figures
    assert [axis.get_xlabel().split("?")[0] for axis in figure.axes] == [f"Number {k}" for k in range(4)]
    assert "n = 4 of the 6 kinds" in one_line(figure)
