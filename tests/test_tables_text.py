"""What is said of tables in words, and which runs no table is made of."""

import shutil

import numpy as np
import pandas as pd
import pytest
from notebook_cells import cells
from table_world import EDITION, TRAIN, keep, key_of

from prefmoe.analysis import tables
from prefmoe.analysis.answers import TableError, read_runs
from prefmoe.analysis.text import (
    counted,
    listed,
    mean_of_seeds,
    readable,
    told_apart,
    verdicts,
    with_dashes,
)
from prefmoe.config import run_folder

pytest_plugins = ["table_fixtures"]


def _row(**fields) -> dict:
    return {"backbone": "b", "method": "PrefMoE", "baseline": "LoRA", "metric": "recall", **fields}


def test_verdicts_follow_test_and_interval_and_the_direction_of_the_metric():
    rows = [
        _row(difference=0.1, p_users_holm=0.01),
        _row(metric="collapse", difference=0.1, p_users_holm=0.01),
        _row(metric="overall", difference=0.1, p_users_holm=0.2),
        _row(metric="profile", difference=0.0, p_users_holm=np.nan),
        _row(baseline="FFT", metric="collapse", difference=-0.1, p_users_holm=0.01),
    ]
    table = pd.DataFrame(rows)
    words = verdicts(table.assign(low=table["difference"] - 0.05, high=table["difference"] + 0.05))
    assert words.loc[("b", "PrefMoE", "LoRA")].tolist() == ["better", "worse", "not told apart", "–"]
    assert words.loc[("b", "PrefMoE", "FFT"), "collapse"] == "better"
    wide = verdicts(table.assign(low=table["difference"] - 0.15, high=table["difference"] + 0.15))
    assert set(wide.to_numpy().ravel()) - {np.nan} == {"not told apart", "–"}


def test_told_apart_is_asked_of_a_table_or_of_one_row():
    cases = [
        (0.02, 0.3, 0.049, True), (-0.3, -0.02, 0.01, True), (-0.02, 0.3, 0.01, False), (0.02, 0.3, 0.051, False),
        (0.0, 0.3, 0.01, False), (0.02, 0.3, np.nan, False), (np.nan, np.nan, 0.01, False),
    ]  # fmt: skip
    table = pd.DataFrame(cases, columns=["low", "high", "p_users_holm", "apart"])
    assert told_apart(table).tolist() == table["apart"].tolist()
    assert [bool(told_apart(row)) for _, row in table.iterrows()] == table["apart"].tolist()


def test_one_is_counted_without_a_plural():
    assert [counted(k, "choice") for k in (0, 1, 8)] == ["0 choices", "1 choice", "8 choices"]
    assert [listed("ABC"[:k]) for k in range(4)] == ["none", "A", "A and B", "A, B and C"]
    assert [mean_of_seeds(k) for k in (1, 3)] == ["one seed", "mean of 3 seeds"]


def test_group_rises_compares_intervals_of_the_outer_groups():
    ends = {"rare": (0.1, 0.2), "middle": (0.5, 0.6), "popular": (0.25, 0.4)}
    rows = [
        {"method": "LoRA", "grouping": "popularity", "metric": metric, "group": group, "n": 20, "low": low,
         "high": high}
        for metric, shift in (("collapse", 0.0), ("recall", 0.05))
        for group, (low, high) in (ends | {"rare": (0.1, 0.2 + shift)}).items()
    ]  # fmt: skip
    group_rises = cells("04", "rises-function")["group_rises"]
    words = group_rises(pd.DataFrame(rows)).loc["LoRA"]
    assert words["rare → popular items"].to_dict() == {"collapse": "rises", "recall": "not told apart"}
    assert set(words["small → large groups"]) == {"–"}
    few = [row | {"n": 19} if row["group"] == "rare" and row["metric"] == "collapse" else row for row in rows]
    words = group_rises(pd.DataFrame(few)).loc["LoRA", "rare → popular items"]
    assert words.to_dict() == {"collapse": "too few questions", "recall": "not told apart"}


def test_readable_keeps_the_order_and_shows_intervals_where_there_are_any():
    rows = [("z", "recall", 0.5, 0.4, 0.6), ("z", "collapse", -0.0001, np.nan, np.nan), ("a", "recall", np.nan, 0, 1)]
    grid = readable(pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high"]))
    assert grid.columns.tolist() == ["recall", "collapse"] and grid.index.tolist() == ["z", "a"]
    assert grid.to_numpy().tolist() == [["0.500 [0.400, 0.600]", "0.000"], ["–", "–"]]


def test_missing_values_of_any_table_are_dashes_and_numbers_keep_their_places():
    nothing = float("nan")
    table = pd.DataFrame(
        {
            "at_test": ["names", None, "text"],
            "parameters": [9512.0, nothing, 0.0],
            "value": [0.5, -0.00001, nothing],
            "n": [8, 9, 10],
            "empty": [nothing] * 3,
        },
        index=["a", "b", "b"],
    )
    shown = with_dashes(table)
    assert shown.index.equals(table.index) and shown.columns.equals(table.columns)
    assert shown.to_numpy().tolist() == [
        ["names", "9512", "0.500", 8, "–"],
        ["–", "–", "0.000", 9, "–"],
        ["text", "0", "–", 10, "–"],
    ]
    assert with_dashes(table, 1)["value"].tolist() == ["0.5", "0.0", "–"]
    assert table["value"].isna().sum() == 1


def test_missing_runs_are_all_named(benchmark, results):
    for key, seed, file in (("fft", 1, "run.json"), ("full", 0, "predictions.parquet")):
        (run_folder(results, "tiny", "llava-mini", key, seed) / file).unlink()
    with pytest.raises(TableError, match="(?s)2 run.*tiny.*fft/seed1: no finished.*full/seed0/pred.*: missing"):
        tables.build(EDITION, benchmark, results=results)
    assert not (results / "tiny" / "figures").exists()


def test_runs_with_other_questions_are_refused(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 1) / "predictions.parquet"
    frame = pd.read_parquet(path)
    keep(frame[frame["index"] != len(TRAIN)], results, *key_of(path))
    with pytest.raises(TableError, match="full/seed1.*9 test questions with 0 turns.*other runs' 10"):
        read_runs(EDITION, results, "test")


def test_answers_that_changed_since_the_run_ended_are_refused_by_name(benchmark, results):
    """Whatever the change: a lone bit, half a file, another run's answers, another run's whole folder."""
    runs = {seed: run_folder(results, "tiny", "llava-mini", "full", seed) for seed in (0, 1)}
    path = runs[0] / "predictions.parquet"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    for damage in (bytes(flipped), whole[: len(whole) // 2], b"", (runs[1] / path.name).read_bytes()):
        path.write_bytes(damage)
        with pytest.raises(TableError, match="full/seed0/predictions.parquet: changed since the run"):
            read_runs(EDITION, results, "test")
    path.write_bytes(whole)
    read_runs(EDITION, results, "test")
    shutil.rmtree(runs[0])
    shutil.copytree(runs[1], runs[0])
    with pytest.raises(TableError, match="full/seed0/run.json, seed: expected 0, found 1"):
        read_runs(EDITION, results, "test")


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "<html>Please log in</html>", "{}", '{"files": null}'])
def test_a_story_that_is_no_run_s_is_refused_by_name(benchmark, results, content):
    (run_folder(results, "tiny", "llava-mini", "e", 1) / "run.json").write_text(content)
    with pytest.raises(TableError, match="1 run(?s:.*)e/seed1/run.json: expected"):
        read_runs(EDITION, results, "test")


def test_a_story_that_was_edited_is_refused_by_name(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "e", 1) / "run.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 1, "steps": 3'))
    with pytest.raises(TableError, match="e/seed1/run.json: changed since"):
        read_runs(EDITION, results, "test")
