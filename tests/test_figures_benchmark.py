"""Figures of notebooks 1 to 4 and 12, drawn by their own cells: by the values in their artists."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from notebook_cells import SHOWN, TRAINED, cells, ends, filled, one_line, table1, text, upright, values
from PIL import Image

from prefmoe import metrics
from prefmoe.analysis import audit, published
from prefmoe.data import composition
from prefmoe.data.benchmark import Preference, User

pytestmark = pytest.mark.usefixtures("coarse_pictures")

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
    monkeypatch.setattr("prefmoe.analysis.groupings.group_sizes", lambda benchmark: groups)
    (figure,) = cells("02", "skew-figure", **given, items=items).figures
    drawn = [(list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) for axis in figure.axes]
    assert drawn == [([1, 2, 3], [5, 2, 1]), ([1, 2], [5, 3])]
    assert "n = 8 users with preferences, 3 items, 2 preference groups" in one_line(figure)
    assert "The most liked item has 5 users, the median one 2" in one_line(figure)
    items = groups = items.head(0)
    (nothing,) = cells("02", "skew-figure", **given, items=items).figures
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


# Notebook 4


GIVEN = {"backbone": "b", "turns": 0, "trained": TRAINED, "other_prefixes": ["Free user embedding"]}
PLANE = ("auc-function", "labels-function", "sensitivity-lines", "marks-function", "collapse-recall")


def pairs_of_users() -> pd.DataFrame:
    """Table 1 with AUCs; LoRA's interval includes .5 in each, PrefMoE's and Non-tuned's lie above it but in one."""
    rows = []
    for k, (method, kind) in enumerate((("Non-tuned", "NT"), ("LoRA", "PEFT"), ("PrefMoE", "PEFT"))):
        for m, metric in enumerate(("auc_same", "auc_told", "auc_untold", "auc_untold_fresh")):
            value = 0.5 + 0.1 * abs(k - 1) + 0.02 * m
            row = {"method": method, "type": kind, "backbone": "b", "turns": 0, "metric": metric, "n": 50 + m}
            row |= {"value": value, "low": value - 0.09, "high": value + 0.05, "seeds": 3 if method == "PrefMoE" else 1}
            rows.append(row | {"information": SHOWN[method]})
    return pd.DataFrame(rows)


def test_who_is_told_apart_stands_beside_what_it_is_shown(tmp_path):
    table = pairs_of_users()
    ids = ("auc-function", "auc-figure", "told-figure")
    first, parts = cells("04", *ids, **GIVEN, table1=table, folder=tmp_path).figures
    for axis, metric in zip([*first.axes, *parts.axes], table["metric"].unique(), strict=True):
        rows = table[table["metric"] == metric]
        assert values(axis) == pytest.approx(sorted(rows["value"])) and upright(axis) == [0.5]
        assert ends(axis) == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    written = one_line(first)
    assert "Trained methods: AUC 0.50 from names alone, 0.60 from the profile's anchors (b, 0 turns)" in written
    assert "50 AUC questions" in written and "mean of 3 seeds for PrefMoE, one seed for other trained rows" in written
    beside = {place.xy[1]: place.get_text() for place in first.axes[-1].texts}
    assert beside == {-1: "is shown of the user:", **dict(enumerate(list(SHOWN.values())[:3]))}
    assert re.search(r"\bname \([^)]*\bLoRA\b", first.get_label())
    assert "Above a guess where no profile tells and nobody was asked: PrefMoE (b, 0 turns)" in one_line(parts)
    assert [p.name for p in tmp_path.iterdir()] == ["who_is_told_apart.png"]


def test_without_untold_likes_or_pairs_there_is_one_figure_that_says_so(capsys):
    table = table1().query("turns == 0")
    (figure,) = cells("04", "auc-function", "auc-figure", "told-figure", **GIVEN, table1=table).figures
    assert "nothing to draw" in one_line(figure) and "tell everything" in capsys.readouterr().out


def plane(table: pd.DataFrame):
    """The figure of collapse and recall, and its marks, sorted."""
    (figure,) = cells("04", *PLANE, **GIVEN, table1=table).figures
    dots = [c.get_offsets() for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return figure, np.array(sorted(map(tuple, np.concatenate(dots))))


def test_every_method_stands_where_its_collapse_and_recall_are():
    table = table1().query("turns == 0")
    figure, points = plane(table)
    wide = table.pivot(index="method", columns="metric", values=["value", "low", "high"])
    expected = sorted(zip(wide["value", "collapse"], wide["value", "recall"], strict=True))
    assert points == pytest.approx(np.array(expected))
    segments = [s for c in figure.axes[0].collections if not isinstance(c, PathCollection) for s in c.get_segments()]
    drawn = sorted(tuple(np.ravel(s)) for s in segments)
    crosses = [
        line for _, row in wide.iterrows() for line in (
            (row["low", "collapse"], row["value", "recall"], row["high", "collapse"], row["value", "recall"]),
            (row["value", "collapse"], row["low", "recall"], row["value", "collapse"], row["high", "recall"]),
        )
    ]  # fmt: skip
    assert np.array(drawn) == pytest.approx(np.array(sorted(crosses)))
    levels = sorted(round(line.get_xy1()[1] - line.get_xy1()[0], 3) for line in figure.axes[0].lines)
    assert levels == pytest.approx(np.arange(-0.8, 0.81, 0.2)) and 'always "no"' in text(figure)
    assert "of the 2 trained methods drawn: all, whatever they know (b" in one_line(figure)
    assert "104 recall questions" in one_line(figure)


def test_a_method_without_readable_answers_is_named_instead_of_drawn():
    table = table1().query("turns == 0")
    silent = table["method"].iloc[0]
    blank = (table["method"] == silent) & (table["metric"] == "collapse")
    figure, points = plane(table.assign(value=table["value"].mask(blank)))
    assert len(points) == table["method"].nunique() - 1
    assert f"Not shown, for want of readable answers: {silent}" in one_line(figure)
    (nobody,) = cells("04", *PLANE, **GIVEN, table1=table.assign(value=np.nan)).figures
    assert "No method has readable answers" in one_line(nobody)


def test_further_metrics_change_nothing():
    table = table1().query("turns == 0")
    more = pd.concat([table, table[table["metric"] == "recall"].assign(metric="auc_same")])
    figure, points = plane(more)
    assert np.array_equal(points, plane(table)[1]) and "auc" not in text(figure)


def test_of_the_methods_with_a_prefix_prefmoe_alone_is_in_the_plane():
    table = table1().query("turns == 0")
    other = table[table["method"] == "LoRA"].assign(method="Free user embedding", value=0.9)
    figure, points = plane(pd.concat([table, other]))
    assert np.array_equal(points, plane(table)[1]) and "Free user" not in text(figure)


def test_labels_keep_off_points_and_one_another():
    points = np.array([[0.5, 0.5], [0.5, 0.5], [0.51, 0.5], [0.0, 1.0], [0.2, 0.3]])
    places = cells("04", "labels-function")["beside"](points)
    gaps = np.linalg.norm(places[:, None] - np.concatenate([places, points])[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() > 0.03


def test_groups_have_a_mark_per_method_and_group(tmp_path):
    def rows(grouping: str, names: tuple[str, ...], shift: float) -> list[dict]:
        return [
            {"method": m, "type": "PEFT", "backbone": "b", "turns": 0, "metric": metric, "grouping": grouping,
             "group": g, "value": 0.1 * i + shift * j * i, "low": 0.1 * i + shift * j * i - 0.01,
             "high": 0.1 * i + shift * j * i + 0.01, "n": 30 + j, "seeds": 3}
            for i, m in enumerate(("LoRA", "PrefMoE")) for j, g in enumerate(names)
            for metric in ("collapse", "recall", "preference")
        ]  # fmt: skip

    table = pd.DataFrame(
        rows("bucket", metrics.BUCKETS, 0.02) + rows("popularity", ("rare", "middle", "popular"), 0.001)
    )
    ids = ("rises-function", "groups-function", "by-popularity", "recall-by-popularity", "by-size")
    given = {"breakdown": table, "backbone": "b", "turns": 0}
    popular, recall, size = cells("04", *ids, **given, folder=tmp_path).figures
    expected = table[(table["grouping"] == "bucket") & (table["metric"] == "collapse")]
    assert values(size.axes[0]) == pytest.approx(sorted(expected["value"]))
    assert ends(size.axes[0]) == pytest.approx(sorted([*expected["low"], *expected["high"]]))
    assert "held by at most 4 (n = 30)" in text(size) and "held by 9 or more (n = 32)" in text(size)
    assert "Collapse from small to large groups: rises in 1 of 2 rows; b, 0 turns" in one_line(size)
    assert "Recall from rare to popular items: rises in 0 of 2 rows" in one_line(recall)
    assert "rare items" in text(popular)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["collapse_by_group_size.png", "collapse_by_popularity.png"]
    nothing = cells("04", *ids, **given | {"breakdown": table.assign(value=np.nan)}).figures
    assert all("no question of this benchmark" in one_line(figure) for figure in nothing)


# Notebook 12


def test_every_misfit_is_marked_once(tmp_path):
    table = published.read("table1")
    ids = ("models-function", "fits-figure")
    (figure,) = cells("12", *ids, table1=table, folder=tmp_path).figures
    (axis,) = figure.axes
    dots, squares = (c for c in axis.collections if isinstance(c, PathCollection))
    crosses = [tuple(place) for place, face in zip(dots.get_offsets(), dots.get_facecolor(), strict=True)
               if to_hex(face).upper() == "#A63603"]  # fmt: skip
    misfits = audit.values(table).query("fits == 0")
    assert len(dots.get_offsets()) == len(table) and len(crosses) == len(set(crosses)) == len(misfits)
    columns = [label.get_text().split("\n") for label in axis.get_xticklabels()]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    expected = {(metric, f"{turns} turns", model) for metric, turns, model in zip(
        misfits["metric"], misfits["turns"], misfits["method"] + misfits["type"].map(
            {"NT": ", NT", "FFT": ", FFT", "PEFT": ""}), strict=True)}  # fmt: skip
    assert {(*columns[int(x)], rows[int(y)]) for x, y in crosses} == expected
    wrong = audit.overall(table).query("fits == 0")
    found = {(*columns[int(x)], rows[int(y)]) for x, y in squares.get_offsets()}
    assert len(found) == len(wrong) and ("overall", "10 turns", "LLaVA-1.5-13B, NT") in found
    assert ("overall", "0 turns", "Qwen2.5-VL-72B, FFT") in found and axis.get_ylim()[0] > axis.get_ylim()[1]
    assert f"{len(misfits)} of 248" in one_line(figure) and "11 of 62 Overall" in one_line(figure)


def test_rows_that_change_by_one_amount_are_named():
    table = published.read("table1")
    (figure,) = cells("12", "models-function", "offsets", table1=table).figures
    (axis,) = figure.axes
    changes = audit.turn_changes(table)
    assert values(axis) == pytest.approx(sorted(changes[list(audit.ACCURACIES)].to_numpy().ravel()))
    bold = [label.get_text() for label in axis.get_yticklabels() if label.get_weight() == "bold"]
    assert len(bold) == 5 and "LOVA3" in bold and "-0.0350 in each" in text(figure)
    assert "In 5 of 31 rows" in one_line(figure)


def test_published_differences_have_their_intervals_and_are_filled_where_clear(tmp_path):
    ids = ("differences-function", "differences-figure", "differences-detail")
    ids += ("step-differences", "steps", "steps-detail")
    given = {"table1": published.read("table1"), "table2": published.read("table2")}
    found = cells("12", *ids, **given, folder=tmp_path)
    shown = found.figures
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published_differences.png", "published_steps.png"]
    axes = [axis for figure in shown for axis in figure.axes]
    tables = [audit.differences(given["table1"]).query("turns == 0")] * 4 + [found["steps"]] * 4
    for axis, metric, table in zip(axes, ("preference", "collapse", "overall", "profile") * 2, tables, strict=True):
        rows = table[table["metric"] == metric]
        assert values(axis) == pytest.approx(sorted(rows["difference"]))
        assert ends(axis) == pytest.approx(sorted([*rows["low"], *rows["high"]]))
        assert filled(axis) == pytest.approx(sorted(rows.loc[rows["clear"] == 1, "difference"]))
    assert "18 better, 0 worse of 18 in preference accuracy" in one_line(shown[0])
    assert "2 better, 0 worse of 10 in collapse" in one_line(shown[2])
    assert "Preference accuracy PrefMoE minus the model" in one_line(shown[0])
    assert "10 turns" in text(shown[2]) and "219 collapse" in text(shown[2])


def test_gains_keep_the_paper_and_the_edition_in_panels_of_their_own(tmp_path, tmp_path_factory):
    printed = audit.differences(published.read("table1"))
    rows = [
        {"method": "PrefMoE", "baseline": baseline, "backbone": backbone, "turns": 0, "metric": metric,
         "difference": 0.1 * k + shift, "low": 0.1 * k + shift - 0.05, "high": 0.1 * k + shift + 0.05, "n": 40,
         "seeds": 2, "p_users_holm": 0.01 if backbone == "a" else 0.4}
        for k, baseline in enumerate(("LoRA", "Non-tuned")) for backbone, shift in (("a", 0.02), ("b", -0.02))
        for metric in (*metrics.METRICS, "auc_same")
    ]  # fmt: skip
    source = tmp_path_factory.mktemp("tables")
    for name, content in (("table1", table1()), ("comparisons", pd.DataFrame(rows))):
        content.to_csv(source / f"{name}.csv", index=False)
    measured = cells("12", "measured", edition="tiny", tables_folder=lambda edition: source)["measured"]
    assert set(measured["metric"]) == {"overall", "preference", "profile", "collapse"}
    given = {"differences": printed, "measured": measured, "edition": "tiny"}
    ids = ("gains-panel", "gains-function", "gains-figure", "gains-detail", "gains-talk")
    *shown, talk, _ = cells("12", *ids, **given, folder=tmp_path).figures
    for metric, figure in zip(("preference", "collapse", "overall", "profile"), shown, strict=True):
        for axis, table in zip(figure.axes, (printed, measured), strict=True):
            expected = table[(table["metric"] == metric) & (table["turns"] == 0)]
            assert values(axis) == pytest.approx(sorted(expected["difference"]))
            assert ends(axis) == pytest.approx(sorted([*expected["low"], *expected["high"]]))
            assert filled(axis) == pytest.approx(sorted(expected.loc[expected["clear"] == 1, "difference"]))
    written = one_line(shown[0])
    assert "As printed in the paper" in written and "Measured here, edition tiny" in written
    assert "ahead in 18, behind in 0 of 18 printed" in written and "ahead in 1, behind in 0 of 4 measured" in written
    assert "n = 40 preference" in written
    assert "ahead in 0, behind in 1 of 4 measured" in one_line(shown[1])  # more collapse is a loss
    assert "nothing" in text(talk) and not values(talk.axes[1]) and "behind in 0 of 0 measured" in one_line(talk)
    assert [p.name for p in tmp_path.iterdir()] == ["gains.png"]
