"""Tables against sums made another way, on a benchmark small enough to answer by hand."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_cells import NOTEBOOKS, cells
from table_world import EDITION, TEST, TRAIN, UNSEEN, keep, key_of

from prefmoe import metrics
from prefmoe.analysis import answers, statistics, tables
from prefmoe.analysis.answers import REFERENCE, Answers, TableError, read_runs
from prefmoe.analysis.comparisons import (
    ALL_BACKBONES,
    COMPARISON_COLUMNS,
    DETECTABLE_COLUMNS,
    DIFFERENCE_COLUMNS,
    beside_table,
    compare,
    comparisons_table,
    detectable_table,
    forest_table,
)
from prefmoe.analysis.information import information_table
from prefmoe.analysis.references import (
    CHANCE,
    POPULAR,
    READER,
    read_references,
)
from prefmoe.analysis.text import readable
from prefmoe.config import Edition, run_folder
from prefmoe.config.method_settings import OF_OTHERS
from prefmoe.system import run_files
from prefmoe.system.places import weights_folder

pytest_plugins = ["table_fixtures"]


def test_every_run_is_read_once_and_every_answer_scored_once(benchmark, results, monkeypatch):
    read, scored = [], []
    originals = answers.read_predictions, metrics.score
    monkeypatch.setattr(answers, "read_predictions", lambda at, *a, **k: read.append(at) or originals[0](at, *a, **k))
    monkeypatch.setattr(metrics, "score", lambda frame: scored.append(len(frame)) or originals[1](frame))
    tables.build(EDITION, benchmark, results=results)
    assert len(read) == len(set(read)) == 7  # the non-tuned model has one seed
    references = 2 * (1 + 12 + 1 + 1)  # of two splits: the training answers, chance's copies, two readers
    assert len(scored) == 7 + references


def test_build_writes_every_table_with_its_columns(built):
    results, written = built
    content = {name: tables.read_table(path) for name, path in written.items()}
    columns = {
        "table1": tables.TABLE1_COLUMNS,
        "table2": tables.TABLE2_COLUMNS,
        "table1_seeds": tables.SEEDS_COLUMNS,
        "comparisons": COMPARISON_COLUMNS,
        "breakdown": tables.BREAKDOWN_COLUMNS,
        "turns": tables.TURNS_COLUMNS,
        "forest": DIFFERENCE_COLUMNS,
        "detectable": DETECTABLE_COLUMNS,
        "calibration": tables.CALIBRATION_COLUMNS,
        "reliability": tables.RELIABILITY_COLUMNS,
        "unparsed": tables.UNPARSED_COLUMNS,
        "separation": tables.SEPARATION_COLUMNS,
        "unseen": tables.TABLE1_COLUMNS,
    }
    for name, expected in columns.items():
        own = [column for column in content[name] if column in expected or not column.endswith("information")]
        assert tuple(own) == expected, name
    table = content["table1"]
    assert dict(zip(table["method"], table["type"], strict=True)) == {
        "Non-tuned": "NT", "Full fine-tuning": "FFT", "PrefMoE": "PEFT",
        "Chance": "Reference", "Popular choice": "Reference", "Profile reader": "Reference",
    }  # fmt: skip
    assert set(table["turns"]) == {0, 10} and tuple(table["metric"].unique()) == (*metrics.METRICS, "auc_same")
    assert content["table2"]["components"].unique().tolist() == ["E", "EPICDM"]
    assert (table.loc[table["metric"] == "overall", "n"] == len(TEST)).all()
    unseen = content["unseen"]
    assert (unseen.loc[unseen["metric"] == "overall", "n"] == len(UNSEEN)).all()
    assert {path.parent for path in written.values()} == {results / "tiny" / "figures"}
    assert not list((results / "tiny" / "figures").glob(".*"))


def test_values_are_means_over_seeds(benchmark, results):
    answers = {(a.key, a.turns): a for a in read_runs(EDITION, results, "test")}
    table = tables.estimates_table(answers.values()).set_index(["key", "turns", "metric"])
    seeds = tables.seeds_table(answers.values()).set_index(["method", "turns", "metric"])
    per_seed = []
    for seed in (0, 1):
        frame = pd.read_parquet(run_folder(results, "tiny", "llava-mini", "full", seed) / "predictions.parquet")
        frame = frame[(frame["split"] == "test") & (frame["turns"] == 10)]
        per_seed.append(metrics.summarize(metrics.score(frame)))
    for metric in metrics.METRICS:
        values = [summary[metric]["value"] for summary in per_seed]
        row = table.loc[("full", 10, metric)]
        assert row["value"] == pytest.approx(np.mean(values))
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["seeds"], row["n"]) == (2, per_seed[0][metric]["n"])
        spread = seeds.loc[("PrefMoE", 10, metric)]
        assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (spread["minimum"], spread["maximum"]) == pytest.approx((min(values), max(values)))


def test_comparisons_are_paired_and_corrected(benchmark, results):
    answers = read_runs(EDITION, results, "test")
    table = comparisons_table(EDITION, answers)
    assert set(table["baseline"]) == {"Non-tuned", "Full fine-tuning", "Embedding"}
    values = tables.estimates_table(answers).set_index(["method", "turns", "metric"])["value"]
    for row in table.itertuples():
        expected = values[row.method, row.turns, row.metric] - values[row.baseline, row.turns, row.metric]
        assert row.difference == pytest.approx(expected)
    one = table[table["metric"] == "overall"]
    assert one["p_questions_holm"].to_numpy() == pytest.approx(statistics.holm(one["p_questions"]))
    full, base = (
        next(a for a in answers if (a.key, a.turns) == (key, 0)).right[..., 0].mean(axis=1) for key in ("full", "fft")
    )
    row = one[(one["baseline"] == "Full fine-tuning") & (one["turns"] == 0)].iloc[0]
    assert (row["better"], row["worse"], row["n"]) == ((full > base).sum(), (full < base).sum(), len(TEST))
    collapse = table[(table["metric"] == "collapse") & (table["baseline"] == "Embedding") & (table["turns"] == 0)]
    assert collapse["better"].iloc[0] >= collapse["worse"].iloc[0]  # fewer collapses count as better


def test_every_method_is_compared_with_those_that_an_edition_names_for_it(benchmark, results):
    answers = read_runs(EDITION, results, "test")
    answers += [entry for entry in read_references(EDITION, benchmark, "test") if entry.method == POPULAR]
    table = beside_table(EDITION.model_copy(update={"beside": ("fft",)}), answers)
    assert set(table["baseline"]) == {"Full fine-tuning"}
    assert set(table["method"]) == {"Non-tuned", "PrefMoE", "Embedding", POPULAR}
    where = ["turns", "metric"]
    focus = comparisons_table(EDITION, answers).query("baseline == 'Full fine-tuning'").set_index(where)
    mine = table[table["method"] == "PrefMoE"].set_index(where).loc[focus.index]
    columns = ["difference", "low", "high", "n", "better", "worse", "p_questions", "p_users"]
    assert mine[columns].equals(focus[columns])
    for metric, rows in table.groupby("metric"):
        assert rows["p_users_holm"].to_numpy() == pytest.approx(statistics.holm(rows["p_users"])), metric
    assert beside_table(EDITION, answers).empty


def test_a_method_does_not_differ_from_itself(benchmark, results):
    entry = read_runs(EDITION, results, "test")[2]
    for row in compare(entry, entry):
        assert (row["difference"], row["low"], row["high"], row["p_users"]) == (0, 0, 0, 1)
        assert row["metric"] in ("sensitivity", "auc_same") or row["p_questions"] == 1
        assert row["information"] == entry.information != ""


@pytest.mark.parametrize("metric", ["preference", "collapse"])
def test_exchanging_users_matches_a_loop(benchmark, results, metric):
    """The vectorised permutations against exchanging the two methods' answers user by user."""
    first, second = (a for a in read_runs(EDITION, results, "test") if a.key in ("fft", "e") and a.turns == 0)
    names, column = np.unique(first.users), metrics.METRICS.index(metric)

    def share(parts: list[tuple[Answers, np.ndarray | slice]]) -> float:
        right = sum(entry.right[rows].mean(axis=1)[:, column].sum() for entry, rows in parts)
        counted = sum(entry.counted[rows].mean(axis=1)[:, column].sum() for entry, rows in parts)
        return right / counted

    observed = share([(first, slice(None))]) - share([(second, slice(None))])
    extreme = 0
    for mask in statistics.swap_masks(len(names), permutations=40):
        swap = np.isin(first.users, names[mask == 1])
        difference = share([(first, ~swap), (second, swap)]) - share([(second, ~swap), (first, swap)])
        extreme += abs(difference) >= abs(observed) - 1e-12
    row = next(row for row in compare(first, second, permutations=40) if row["metric"] == metric)
    assert row["p_users"] == pytest.approx((extreme + 1) / 41)


def test_breakdown_agrees_with_scoring_each_group(benchmark, results):
    answers = [a for a in read_runs(EDITION, results, "test") if a.key == "nt" and a.turns == 0]
    table = tables.breakdown_table(benchmark, answers, "test")
    frame = pd.read_parquet(run_folder(results, "tiny", "llava-mini", "nt", 0) / "predictions.parquet")
    scored = metrics.score(frame[(frame["split"] == "test") & (frame["turns"] == 0)])
    buckets = table[(table["grouping"] == "bucket") & (table["metric"] == "collapse")]
    expected = metrics.collapse_by_bucket(scored)
    assert buckets["n"].tolist() == expected["n"].tolist()
    assert buckets["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), nan_ok=True)
    pairs = table[(table["grouping"] == "pair") & (table["metric"] == "preference")].set_index("group")
    seen = scored[scored["index"].isin([len(TRAIN) + k for k in (0, 1, 2, 4)])]
    assert pairs.loc["pair seen in training", "n"] == 4
    assert pairs.loc["pair seen in training", "value"] == pytest.approx(seen["hit"].mean())
    assert set(table["grouping"]) == {"bucket", "facet", "question", "popularity", "pair"}


# What no profile tells


def test_every_row_says_what_it_is_shown_and_a_main_table_without_that_is_refused(built, tmp_path):
    made = {name: tables.read_table(path) for name, path in built[1].items()}
    expected = {
        "Non-tuned": "name", "Full fine-tuning": "name", "PrefMoE": "anchors of profile text and picture",
        "Chance": "nobody", "Popular choice": "population's answers", "Profile reader": "profile text read perfectly",
    }  # fmt: skip
    assert dict(zip(made["table1"]["method"], made["table1"]["information"], strict=True)) == expected
    assert readable(made["table1"].query("turns == 0"))["information"].to_dict() == expected
    shown = expected | {"Embedding": "tokens learned from answers"}
    for name in made.keys() - {"information", "dataset_statistics", "detectable", "told_statistics"}:
        for who in {"method", "baseline"} & {*made[name]}:
            told = made[name]["information" if who == "method" else "baseline_information"]
            here = shown | {"Embedding": OF_OTHERS} if name == "unseen" else shown
            assert all(here[one] == one_told for one, one_told in zip(made[name][who], told, strict=True)), name
    beside = made["comparisons"].query("turns == 0")
    assert readable(beside, rows="baseline")["information"].to_dict().items() <= shown.items()
    information = made["information"].set_index("method")
    assert information["at_test"].to_dict() == shown
    assert information["in_training"].to_dict() == {
        "Non-tuned": "nothing", "Full fine-tuning": "name and answers", "Embedding": "answers",
        "PrefMoE": "anchors of profile text and picture and answers",
    } | {reference: np.nan for reference in (CHANCE, POPULAR, READER)}  # fmt: skip
    folder = tmp_path / "figures" / "tiny"
    shutil.copytree(built[0] / "tiny" / "figures", folder)
    made["table1"].drop(columns="information").to_csv(folder / "table1.csv", index=False)
    with pytest.raises(TableError, match=r"none.csv: no such file"):
        tables.read_table(folder / "none.csv")
    with pytest.raises(TableError, match=r"tiny/table1.csv: no column information, .* expected method, type, .*again"):
        tables.read_table(folder / "table1.csv")


def test_values_that_no_row_has_are_named_beside_those_that_there_are():
    table = pd.DataFrame({"turns": [0, 10, 0], "backbone": ["a", "b", "a"]})
    tables.require_rows(table, turns=10, backbone="a")
    with pytest.raises(TableError, match="^turns: expected one of 0, 10, which the table has, found 3$"):
        tables.require_rows(table, backbone="b", turns=3)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_a_notebook_that_picks_rows_by_a_number_says_which_numbers_there_are(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    for name in re.findall(r"^(turns|k) = \d+", code, re.MULTILINE):
        assert re.search(rf"^tables\.require_rows\(.*{name}={name}", code, re.MULTILINE)


def test_information_has_sizes_from_runs_and_practice_from_cards(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 0)
    story = {"edition": "tiny", "backbone": "llava-mini", "method": "full", "seed": 0}
    run_files.seal(path, story | {"parameters": {"trainable_total": 77}, "context_tokens": 13.5})
    table = information_table(EDITION, results).set_index("method")
    columns = ["context_tokens", "trainable_parameters"]
    assert table.loc["PrefMoE", columns].tolist() == [13.5, 77] and table.loc["Non-tuned", columns].isna().all()
    card = json.loads((weights_folder("llava-mini") / "miniature.json").read_text())
    steps = 0
    for phase in card["recipe"]["joint"]["phases"]:
        steps += phase["steps"] if phase.get("prefix") else 0
    assert set(table["practice"]) == {f"prefixes like PrefMoE's, {steps} steps"} and steps > 0
    shutil.move(results / "tiny/runs/llava-mini", results / "tiny/runs/llava-1.5-7b")
    hub = EDITION.model_copy(update={"backbones": ("llava-1.5-7b",), "ablation_backbone": "llava-1.5-7b"})
    assert set(information_table(hub, results)["practice"]) == {""}


def test_a_run_without_probabilities_is_named(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 1) / "predictions.parquet"
    keep(pd.read_parquet(path).drop(columns=["p_yes", "p_no"]), results, *key_of(path))
    with pytest.raises(TableError, match=r"1 run\(s\).*\n.*full/seed1/predictions.parquet: no column p_yes, p_no"):
        tables.build(EDITION, benchmark, results=results)


# Uncertainty


MORE_TURNS = EDITION.model_copy(update={"evaluation": EDITION.evaluation.model_copy(update={"turns": (0, 5, 10)})})


def add_turns(results: Path, turns: int = 5) -> None:
    """Every run has answered after five turns as well: as after none, but for questions with an even index."""
    for path in results.rglob("predictions.parquet"):
        frame = pd.read_parquet(path)
        more = frame[frame["turns"] == 0].assign(turns=turns)
        more.loc[more["index"] % 2 == 0, "prediction"] = "perhaps"
        keep(pd.concat([frame, more]), results, *key_of(path))


def test_turns_have_their_change_and_stay_out_of_the_paper_s_tables(benchmark, results):
    add_turns(results)
    written = tables.build(MORE_TURNS, benchmark, results=results)
    content = {name: tables.read_table(path) for name, path in written.items()}
    for name in ("table1", "table2", "table1_seeds", "comparisons", "breakdown", "forest", "unparsed"):
        assert set(content[name]["turns"]) == {0, 10}, name
    assert set(content["unseen"]["turns"]) == {0}  # all that the edition asks of new users
    table = content["turns"]
    assert table.groupby("method")["turns"].unique().map(list).tolist() == [[0, 5, 10]] * table["method"].nunique()
    row = table.set_index(["method", "turns", "metric"])
    assert (table.loc[table["turns"] == 0, ["change", "change_low", "change_high"]] == 0).all().all()
    for method in ("PrefMoE", "Embedding"):
        key = (method, 5, "overall")
        assert row.loc[key, "change"] == pytest.approx(row.loc[key, "value"] - row.loc[(method, 0, "overall"), "value"])
        assert row.loc[key, "change_low"] <= row.loc[key, "change"] <= row.loc[key, "change_high"]
        assert row.loc[key, "change"] < 0
    assert (table.loc[table["type"] == REFERENCE, "change"] == 0).all()


def two_backbones(results: Path) -> Edition:
    """The edition on a second backbone, whose runs answer as the first one's do."""
    for path in list((results / "tiny" / "runs" / "llava-mini").rglob("predictions.parquet")):
        _, method, seed = key_of(path)
        keep(pd.read_parquet(path), results, "qwen2.5-vl-mini", method, seed)
    return EDITION.model_copy(update={"backbones": ("llava-mini", "qwen2.5-vl-mini")})


def test_the_forest_s_mean_resamples_all_backbones_together(benchmark, results):
    """Twice the same answers: the mean over backbones and its interval are those of either backbone."""
    edition = two_backbones(results)
    answers = read_runs(edition, results, "test")
    table = forest_table(edition, answers).set_index(["baseline", "backbone", "turns", "metric"])
    numbers = ["difference", "low", "high"]
    for baseline in ("Non-tuned", "Full fine-tuning"):
        for metric in metrics.METRICS:
            mean = table.loc[(baseline, ALL_BACKBONES, 0, metric), numbers].astype(float)
            alone = table.loc[(baseline, "llava-mini", 0, metric), numbers].astype(float)
            assert mean.tolist() == pytest.approx(alone.tolist(), nan_ok=True)
    assert ("Embedding", ALL_BACKBONES) not in table.droplevel(["turns", "metric"]).index  # one backbone only
    compared = comparisons_table(edition, answers).set_index(["baseline", "backbone", "turns", "metric"])
    for key, row in compared.iterrows():
        assert table.loc[key, numbers].astype(float).tolist() == pytest.approx(row[numbers].tolist(), nan_ok=True)


def test_detectable_differences_follow_the_bootstrap_and_the_number_of_comparisons(benchmark, results):
    answers = [a for a in read_runs(EDITION, results, "test") if a.turns == 0]
    table = detectable_table(EDITION, benchmark, answers, "test").set_index(["grouping", "group", "metric"])
    row = table.loc[("all", "all", "preference")]
    assert (row["n"], row["users"], row["methods"]) == (9, 3, 4)
    by_key = {a.key: a for a in answers}
    column = metrics.METRICS.index("preference")

    def error(values: np.ndarray) -> float:  # the same with a loop over users
        users = [values[answers[0].users == user].sum() for user in np.unique(answers[0].users)]
        return np.sqrt(3 / 2 * sum(value**2 for value in users))

    influence = {key: a.influences()[:, column] for key, a in by_key.items()}
    paired = np.median([error(influence["full"] - influence[key]) for key in ("nt", "fft", "e")])
    assert row["paired"] == pytest.approx(2.801585 * paired, rel=1e-6)
    unpaired = np.sqrt(2) * np.median([error(values) for values in influence.values()])
    assert row["unpaired"] == pytest.approx(2.801585 * unpaired, rel=1e-6)
    assert row["paired_corrected"] == pytest.approx((2.393980 + 0.841621) * paired, rel=1e-6)  # .05 / 3
    collapse = table.loc[("bucket", metrics.BUCKETS[0], "collapse")]
    assert collapse["n"] == round(answers[0].counted[..., 3].mean(axis=1).sum()) and collapse["users"] == 2
    alone = table[table["users"] < 2]
    assert (alone["n"] > 0).any()
    assert alone[["design_effect", "unpaired", "paired", "paired_corrected"]].isna().all(axis=None)


def test_calibration_and_reliability_are_per_kind_of_question(benchmark, results):
    answers = read_runs(EDITION, results, "test") + read_references(EDITION, benchmark, "test")
    table = tables.calibration_table(answers).set_index(["method", "turns", "metric"])
    assert not {CHANCE, POPULAR} & set(table.index.get_level_values("method"))
    row = table.loc[("PrefMoE", 0, "preference")]
    assert (row["n"], row["confidence"]) == (9, pytest.approx(0.95))
    entry = next(a for a in answers if (a.key, a.turns) == ("full", 0))
    assert row["accuracy"] == pytest.approx(entry.seed_values[:, 1].mean())
    assert row["value"] == pytest.approx(np.abs(entry.seed_values[:, 1] - 0.95).mean())  # all in one bin
    bins = tables.reliability_table(answers).set_index(["method", "turns", "metric"])
    assert bins.loc[("PrefMoE", 0, "preference"), "n"] == 2 * 9
    assert bins.loc[("PrefMoE", 0, "preference"), "value"] == pytest.approx(row["accuracy"])


def test_unreadable_answers_are_counted_by_kind_of_question(benchmark, results):
    add_turns(results)
    answers = [a for a in read_runs(MORE_TURNS, results, "test") if a.key == "full"]
    table = tables.unparsed_table(answers).set_index(["turns", "group"])
    even = [index % 2 == 0 for index in range(len(TRAIN), len(TRAIN) + len(TEST))]
    assert table.loc[(5, "all"), "value"] == pytest.approx(np.mean(even))
    assert table.loc[(5, "preference yes/no"), "value"] == pytest.approx(np.mean(even[:6]))
    clean = table.loc[(0, "preference yes/no")]
    assert (clean["value"], clean["low"], clean["n"]) == (0, 0, 6)
    assert clean["high"] == pytest.approx(1.959964**2 / (6 + 1.959964**2), rel=1e-5)
    assert table["allowed_mass"].tolist() == pytest.approx([0.9] * len(table))


def test_separation_knows_the_references(benchmark, results):
    answers = read_runs(EDITION, results, "test") + read_references(EDITION, benchmark, "test")
    table = tables.separation_table(answers).set_index(["method", "turns", "measure"])["value"]
    for measure in ("distance", "alignment", "auc", "auc_same"):
        assert table[READER, 0, measure] == pytest.approx(1)
    assert table[POPULAR, 0, "alignment"] == pytest.approx(0)
    assert table[POPULAR, 0, "auc_same"] == table[CHANCE, 0, "auc_same"] == pytest.approx(0.5)


def test_gates_are_averaged_over_seeds(benchmark, results):
    runs = [
        pd.read_parquet(run_folder(results, "tiny", "llava-mini", "full", seed) / "predictions.parquet")
        for seed in (0, 1)
    ]
    runs = [run[(run["split"] == "test") & (run["turns"] == 0)] for run in runs]
    gates_table = cells("11", "gates-table-function")["gates_table"]
    table = gates_table(runs).set_index(["router", "group", "expert"])
    row = table.loc[("task", "preference, travel", 0)]
    assert (row["value"], row["n"]) == (pytest.approx(0.5), 9)
    assert set(table.index.get_level_values("group")) == {"preference, travel", "recognition, yes/no"}
    alike = gates_table([runs[0], runs[0]]).set_index(["router", "group", "expert"])
    moved = runs[0].assign(gate_task_0=runs[0]["gate_task_0"] + 0.3, gate_task_1=runs[0]["gate_task_1"] - 0.3)
    apart = gates_table([runs[0], moved]).set_index(["router", "group", "expert"])
    widths = [(one["high"] - one["low"]).loc[("task", "preference, travel", 0)] for one in (alike, apart)]
    assert widths[1] > widths[0] + 0.2, "trainings that differ widen the interval"
    with pytest.raises(TableError, match="no gates"):
        gates_table([runs[0].drop(columns=["gate_task_0", "gate_task_1"])])


def test_copies_of_a_reference_are_no_seeds_and_widen_nothing(benchmark, results):
    """Chance had an interval of what its two copies guess."""
    trained = next(one for one in read_runs(EDITION, results, "test") if one.seeds > 1)
    reference = replace(trained, type=REFERENCE)
    counts = statistics.resample_counts(len(np.unique(trained.users)))
    right, counted = (part.mean(axis=1) for part in reference.user_sums)
    column = metrics.METRICS.index("overall")
    alone = (counts @ right[:, column]) / (counts @ counted[:, column])
    np.testing.assert_allclose(reference.resampled[:, column], alone)
    assert reference.estimates["overall"]["low"] == pytest.approx(np.percentile(alone, 2.5))
    assert np.ptp(trained.resampled[:, column]) > np.ptp(alone), "trainings differ"
