"""Tables of protocol experiments equal sums made another way, and their notebook runs on them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_cells import cells as of_notebook
from small_world import small_benchmark

from prefmoe import config, metrics
from prefmoe.analysis import statistics, tables
from prefmoe.analysis.answers import Answers
from prefmoe.analysis.groupings import questions
from prefmoe.config import load_edition, outputs
from prefmoe.config.outputs import made_folder
from prefmoe.experiments import protocol_tables
from prefmoe.experiments.protocol import Experiment, load_protocol
from prefmoe.experiments.protocol_tables import Cell, difference_rows, question_labels, result_rows, trend_rows


def scored(seed: int, names: list[str] | None = None, yes: float = 0.5) -> pd.DataFrame:
    """Random answers to the small benchmark's test questions (about some users), scored."""
    frame = questions(small_benchmark(), "test")
    frame = frame[frame["name"].isin(names or set(frame["name"]))]
    rng = np.random.default_rng(seed)
    answers = np.where(rng.random(len(frame)) < yes, "yes", "no")
    letters = rng.choice(list("ABCD"), len(frame))
    choices = frame["l2-category"] == "inconsistency"
    return metrics.score(frame.assign(prediction=np.where(choices, letters, answers)))


def answers_of(seed: int, split: str = "test", **options) -> Answers:
    where = {"method": "PrefMoE", "key": "PrefMoE", "type": "PEFT", "backbone": "llava-mini", "turns": 0}
    return Answers.of([scored(seed + k, **options) for k in (0, 100)], split=split, **where)


def experiment_of(variants: dict, **options) -> Experiment:
    return Experiment(question="Does it matter?", methods=("PrefMoE",), variants=variants, **options)


def test_variants_on_the_same_questions_are_paired_and_their_tests_corrected():
    experiment = experiment_of({"a": {}, "b": {}, "c": {}})
    cells = [Cell(name, answers_of(k)) for k, name in enumerate("abc")]
    rows = [{"experiment": "e"} | row for row in difference_rows(cells, experiment)]
    table = protocol_tables.corrected(rows)
    assert table["variant"].drop_duplicates().tolist() == ["b", "c"] and set(table["reference"]) == {"a"}
    for metric, tests in table.groupby("metric"):
        np.testing.assert_allclose(tests["p_users_holm"], statistics.holm(tests["p_users"]), err_msg=metric)
        for cell, difference in zip(cells[1:], tests["difference"], strict=True):
            column = cell.answers.metrics.index(metric)
            values = [one.answers.seed_values[:, column].mean() for one in (cell, cells[0])]
            assert difference == pytest.approx(values[0] - values[1], nan_ok=True)
    verdicts = of_notebook("13", "verdict-functions")["verdicts"]
    words = verdicts(table)
    assert words.index.get_level_values("variant").tolist() == ["b", "c"]
    assert set(words) == set(cells[0].answers.metrics)
    half = table["difference"].abs() / 2
    sure = table.assign(p_users_holm=0.01, low=table["difference"] - half, high=table["difference"] + half)
    better = verdicts(sure).loc[("e", "llava-mini", "PrefMoE", "b", 0, "all")]
    signs = sure[sure["variant"] == "b"].set_index("metric")["difference"] > 0
    assert {m: better[m] == "better" for m in metrics.METRICS} == {
        m: signs[m] != (m == "collapse") for m in metrics.METRICS
    }


def test_a_verdict_needs_test_and_interval_where_there_is_a_test_and_the_interval_alone_where_there_is_none():
    cases = [
        ("both", 1, 0.1, 0.01), ("test alone", 1, -0.1, 0.01), ("interval alone", 1, 0.1, 0.2),
        ("other users", 0, 0.1, np.nan), ("other users, wide", 0, -0.1, np.nan),
    ]  # fmt: skip
    where = {"experiment": "e", "backbone": "b", "method": "m", "turns": 0, "group": "all", "metric": "overall"}
    rows = [
        where | {"variant": name, "difference": 0.3, "low": low, "high": 0.5, "paired": paired, "p_users_holm": p}
        for name, paired, low, p in cases
    ]
    table = of_notebook("13", "verdict-functions")["verdicts"](pd.DataFrame(rows))
    words = table["overall"].droplevel([0, 1, 2, 4, 5])
    assert words[words == "better"].index.tolist() == ["both", "other users"]
    assert set(words.drop(["both", "other users"])) == {"not told apart"}


def test_other_users_are_compared_without_pairing_by_draws_of_their_own():
    names = sorted(set(scored(0)["name"]))
    first, second = (Cell(v, answers_of(k, names=n)) for k, (v, n) in enumerate((("a", names[:3]), ("b", names[3:]))))
    rows = list(difference_rows([first, second], experiment_of({"a": {}, "b": {}})))
    assert {row["paired"] for row in rows} == {0}
    overall = next(row for row in rows if row["metric"] == "overall")
    hits = [np.mean([f["hit"].mean() for f in cell.answers.frames]) for cell in (second, first)]
    assert overall["difference"] == pytest.approx(hits[0] - hits[1])
    spread = [
        statistics.over_seeds(statistics.ratio_bootstrap(*cell.answers.user_sums, seed=s)[..., 0], seed=s)
        for s, cell in ((0, second), (1, first))
    ]
    assert (overall["low"], overall["high"]) == pytest.approx(
        np.percentile(spread[0] - spread[1], [2.5, 97.5]).tolist()
    )
    width = [np.ptp(np.percentile(s, [2.5, 97.5])) for s in spread]
    assert overall["high"] - overall["low"] > max(width), "two samples vary more than one"


def test_the_slope_is_that_of_least_squares_on_doublings():
    experiment = experiment_of({str(x): {"data.users": x} for x in (10, 20, 80)}, axis="data.users")
    labels = question_labels(small_benchmark())
    cells = [Cell(v, answers_of(k, yes=0.2 + 0.2 * k), labels) for k, v in enumerate(experiment.variants)]
    rows = {(r["group"], r["metric"]): r for r in trend_rows(cells, experiment)}
    for group in ("all", protocol_tables.OWN_GROUPS[0]):
        values = [
            row["value"]
            for row in result_rows(cells, experiment)
            if (row["group"], row["metric"]) == (group, "collapse")
        ]
        expected = np.polyfit(np.log2([10, 20, 80]), values, 1)[0]
        row = rows[group, "collapse"]
        assert row["slope"] == pytest.approx(expected) and row["low"] < row["slope"] < row["high"]
    assert list(trend_rows(cells, experiment_of({"a": {}, "b": {}}))) == []


def test_groups_of_questions_are_about_those_who_are_asked():
    benchmark = small_benchmark()
    labels, order = question_labels(benchmark)["own group"]
    assert order == protocol_tables.OWN_GROUPS
    for index, label in labels.items():
        example = benchmark.examples[index]
        mine = benchmark.users[example.name].preferences[example.concept]
        held = [user.preferences[example.concept] for user in benchmark.users.values()]
        sizes = sorted((held.count(other) for other in set(held)), reverse=True)
        if label == order[0]:
            assert held.count(mine) == sizes[0]
        elif label == order[2]:
            assert held.count(mine) <= sizes[3]
    assert set(labels) == set(order)
    assert set(labels.index) == {i for i, e in benchmark.examples.items() if e.category == "preference"}


@pytest.mark.usefixtures("coarse_pictures")
def test_the_notebook_runs_on_the_tables(tmp_path, monkeypatch):
    """On made-up answers: every cell's code, without a kernel."""
    monkeypatch.chdir(tmp_path)
    asked = load_protocol(load_edition("smoke")).experiments
    labels = question_labels(small_benchmark())
    folder, rows, trends = made_folder("smoke", Path("results").absolute()) / "protocol", [], []
    for name, experiment in asked.items():
        cells = [
            Cell(variant, answers_of(k, split=split), labels if experiment.axis or len(experiment.splits) > 1 else {})
            for k, variant in enumerate(experiment.variants)
            for split in experiment.splits
        ]
        here = {"experiment": name}
        made = pd.DataFrame(
            [here | r for r in result_rows(cells, experiment)], columns=list(protocol_tables.RESULT_COLUMNS)
        )
        tables.write_csv(made, folder / f"{name}.csv")
        rows += [here | row for row in difference_rows(cells, experiment)]
        trends += [here | row for row in trend_rows(cells, experiment)]
    tables.write_csv(protocol_tables.corrected(rows), folder / "differences.csv")
    tables.write_csv(pd.DataFrame(trends, columns=list(protocol_tables.TREND_COLUMNS)), folder / "trends.csv")
    monkeypatch.setattr(outputs, "RESULTS", Path("results").absolute())
    monkeypatch.setenv(outputs.NOTEBOOK_FIGURES, str(folder.parent))
    notebook = json.loads((config.ROOT / "notebooks/13_protocol_questions.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            names["edition"] = "smoke"
    drawn = {path.stem for path in folder.glob("*.png")}
    assert drawn == set(asked)
