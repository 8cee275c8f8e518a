"""Tuning: equal budgets, every trial recorded, the test split never touched, finished trials not repeated."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tune as tuning
import yaml
from small_world import lay_out, small_edition
from trials import TUNED, budgets
from tune import TuningError, apply_settings, choose, load_grid, run_trial, tune

from prefmoe import metrics
from prefmoe.config import CONFIG_FOLDER, FIGURES, ConfigError, is_trained, load_edition
from prefmoe.running import answers as running_answers
from prefmoe.running import runs

EDITION = small_edition(
    "tiny-llava", methods=small_edition("tiny").model_dump()["methods"], training={"steps": 2, "batch_size": 4}
)
GRID = {
    "trials": 2,
    "seeds": [3],
    "methods": {"LoRA": {"lr": [1e-3, 1e-2]}, "PrefMoE": {"lr": [3e-3], "losses.alignment": [0.0, 0.1]}},
}


@pytest.fixture(autouse=True)
def beside_the_model(tmp_path, monkeypatch):
    """As in test_runs: the model and the benchmark are in the working folder."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)


def write(grid: dict) -> None:
    Path("config/tuning").mkdir(parents=True, exist_ok=True)
    Path("config/tuning/small-world.yaml").write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")


def tune_here(**options):
    return tune(EDITION, results="results", config_folder="config", **options)


def test_every_trial_is_recorded_and_the_best_of_each_method_marked(monkeypatch):
    write(GRID)
    evaluated = []
    original = running_answers.evaluate

    def watch(method, examples, **options):
        evaluated.append({example.index for example in examples})
        return original(method, examples, **options)

    monkeypatch.setattr(running_answers, "evaluate", watch)
    path = tune_here()
    assert path.as_posix() == "results/small-world/tuning/trials.csv"
    table = pd.read_csv(path)
    validation = set(runs.Workbench(EDITION, "tiny-llava", results="results").benchmark.splits["validation"])
    assert evaluated == [validation] * 4
    assert table["method"].tolist() == ["LoRA", "LoRA", "PrefMoE", "PrefMoE"]
    assert [json.loads(cell) for cell in table["settings"]] == [
        {"lr": 1e-3},
        {"lr": 1e-2},
        {"losses.alignment": 0.0, "lr": 3e-3},
        {"losses.alignment": 0.1, "lr": 3e-3},
    ]
    assert set(table["n"]) == {len(validation)} and set(table["seed"]) == {3}
    assert set(metrics.METRICS) < set(table)
    for _, trials in table.groupby("method"):
        assert trials["chosen"].sum() == 1
        assert trials.loc[trials["chosen"] == 1, "overall"].item() == trials["overall"].max()
    evaluated.clear()
    before = path.read_bytes()
    assert tune_here() == path and evaluated == []
    assert path.read_bytes() == before


def test_a_trial_is_made_with_every_seed_and_judged_by_their_mean(monkeypatch):
    lucky = {(1e-3, 0): 0.7, (1e-3, 1): 0.7, (1e-2, 0): 0.9, (1e-2, 1): 0.4}
    made = []

    def trial(workbench, method, settings, seed):
        made.append((settings["lr"], seed))
        row = {"backbone": "tiny-llava", "method": method, "settings": json.dumps(settings), "seed": seed}
        return row | dict.fromkeys(metrics.METRICS, lucky[settings["lr"], seed])

    monkeypatch.setattr(tuning, "run_trial", trial)
    write(GRID | {"seeds": [0, 1], "methods": {"LoRA": GRID["methods"]["LoRA"]}})
    table = pd.read_csv(tune_here())
    assert made == list(lucky) and table["chosen"].tolist() == [1, 1, 0, 0]


def test_trials_of_two_seeds_are_kept_apart():
    write(GRID | {"trials": 1, "seeds": [0, 1], "methods": {"LoRA": {"lr": [1e-3]}}})
    assert pd.read_csv(tune_here())["seed"].tolist() == [0, 1]
    folders = Path("results/small-world/tuning/tiny-llava/LoRA").glob("*/run.json")
    assert [path.parent.name.partition("-")[2] for path in sorted(folders)] == ["seed0", "seed1"]


def test_a_grid_goes_on_beyond_the_end_where_its_best_trial_lies():
    other = {"lr": 1e-2, "rank": 3}  # another form, by a setting that the grid does not vary
    write(GRID | {"beyond": {"PrefMoE": [{"lr": 9e-3, "losses.alignment": 0.1}], "LoRA": [other]}})
    grid = load_grid(EDITION, "config")
    assert grid.trials_of("LoRA") == [{"lr": 1e-3}, {"lr": 1e-2}, other]
    table = pd.read_csv(tune_here())
    assert [json.loads(cell) for cell in table.loc[table["method"] == "PrefMoE", "settings"]] == [
        {"losses.alignment": 0.0, "lr": 3e-3},
        {"losses.alignment": 0.1, "lr": 3e-3},
        {"losses.alignment": 0.1, "lr": 9e-3},
    ]
    assert table.groupby("method")["chosen"].sum().tolist() == [1, 1]


def test_parts_of_the_grid_can_be_shared_out_and_are_collected_at_the_end():
    write(GRID)
    assert tune_here(methods=["LoRA"]) is None
    assert tune_here(backbones=["tiny-llava"], methods=["PrefMoE"]) is None
    folder = Path("results/small-world/tuning/tiny-llava")
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    assert len(finished) == 4
    assert len(pd.read_csv(tune_here())) == 4
    assert finished == {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    with pytest.raises(TuningError, match="'FFT' is not in the grid; it has LoRA, PrefMoE"):
        tune_here(methods=["FFT"])


def test_trials_are_made_on_the_grids_backbones_and_of_what_runs_there(monkeypatch):
    tables = {"table1": ("LoRA", "PrefMoE"), "rivals": ("LoRA",), "ablation_backbone": "tiny-llava"}
    edition = EDITION.model_copy(update={"backbones": ("tiny-llava", "llava-mini"), "table2": (), **tables})
    made: list[tuple] = []

    def trial(workbench, method, settings, seed):
        made.append((workbench.backbone_name, method))
        row = {"backbone": workbench.backbone_name, "method": method, "settings": json.dumps(settings)}
        return row | dict.fromkeys(metrics.METRICS, 0.5)

    monkeypatch.setattr(tuning, "run_trial", trial)
    both = [("tiny-llava", "LoRA")] * 2 + [("tiny-llava", "PrefMoE")] * 2 + [("llava-mini", "PrefMoE")] * 2
    for given, expected in (([], both), (["tiny-llava"], both[:4]), (["llava-mini"], both[4:])):
        made.clear()
        write(GRID | ({"backbones": given} if given else {}))
        table = pd.read_csv(tune(edition, results="results", config_folder="config"))
        assert made == expected == list(zip(table["backbone"], table["method"], strict=True))
    made.clear()
    assert tune(edition, results="results", config_folder="config", backbones=["tiny-llava"]) is None
    assert made == [], "another backbone than the grid's is nobody's part of the work"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lava"], "backbones: 'lava' is not one of the edition's: tiny-llava"),
        (["tiny-llava", "tiny-llava"], "backbones: .*given more than once: tiny-llava"),
    ],
)
def test_a_grids_backbones_are_the_editions(given, message):
    write(GRID | {"backbones": given})
    with pytest.raises(ConfigError, match=message):
        load_grid(EDITION, "config")


def test_settings_are_chosen_by_the_mean_over_backbones_the_first_of_equals():
    rows = [("x", "m", "1", 0.5), ("x", "m", "2", 1.0), ("x", "m", "3", 0.75)]
    rows += [("y", "m", "1", 0.75), ("y", "m", "2", 0.5), ("y", "m", "3", 0.75), ("y", "k", "1", 0.1)]
    table = choose(pd.DataFrame(rows, columns=["backbone", "method", "settings", "overall"]), "overall")
    assert table["chosen"].tolist() == [0, 1, 0, 0, 1, 0, 1]


def test_settings_reach_nested_ones_and_are_validated():
    method = apply_settings(EDITION.methods["PrefMoE"], {"losses.residual_contrast": 0.7, "lr_user": 0.5})
    assert (method.losses.residual_contrast, method.lr_user) == (0.7, 0.5)
    assert method.losses.alignment == EDITION.methods["PrefMoE"].losses.alignment
    with pytest.raises(TuningError, match="lora: no setting 'losses.alignment'"):
        apply_settings(EDITION.methods["LoRA"], {"losses.alignment": 1.0})
    with pytest.raises(TuningError, match="greater than 0"):
        apply_settings(EDITION.methods["LoRA"], {"lr": -1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 3}, "methods.LoRA: 2 trials, expected 3 as for every method"),
        ({"methods": {"Lora": {"lr": [1, 2]}}}, "methods.Lora: not a method of edition"),
        ({"methods": {"LoRA": {"lrs": [1, 2]}}}, "methods.LoRA: lora: no setting 'lrs'"),
        ({"methods": {"LoRA": {"rank": [4, 0]}}}, "methods.LoRA: lora: refused"),
        ({"criterion": "recall"}, "criterion"),
        ({"budget": 3}, "budget"),
        ({"beyond": {"LoRA": [{"lr": 1e-2}]}}, "beyond.LoRA: {'lr': 0.01} is not a new trial of lr"),
        ({"beyond": {"PrefMoE": [{"lr": 1e-2}]}}, "beyond.PrefMoE: .* is not a new trial of lr, losses.alignment"),
        ({"beyond": {"LoRA": [{"lr": -1.0}]}}, "methods.LoRA: lora: refused"),
        ({"takes": {"fft": "LoRA"}}, "takes.fft: expected a method of edition .* without trials of its own"),
        ({"takes": {"E": "Lora"}}, "takes.E: 'Lora' has no trials; did you mean 'LoRA'"),
        ({"beyond": {"Lora": [{"lr": 1e-2}]}}, "beyond.Lora: no grid to go beyond; did you mean 'LoRA'"),
    ],
)
def test_mistakes_in_a_grid_are_named(change, message):
    write(GRID | change)
    with pytest.raises(ConfigError, match=message):
        load_grid(EDITION, "config")


def test_without_a_validation_split_nothing_is_chosen():
    write(GRID)
    benchmark = runs.Workbench(EDITION, "tiny-llava", results="results").benchmark
    benchmark = replace(benchmark, splits={**benchmark.splits, "validation": ()})
    workbench = runs.Workbench(EDITION, "tiny-llava", results="results", benchmark=benchmark)
    with pytest.raises(TuningError, match="no validation split"):
        run_trial(workbench, "LoRA", {"lr": 1e-3}, seed=0)


def test_a_missing_grid_is_an_error():
    with pytest.raises(ConfigError, match="no grid"):
        load_grid(EDITION, "config")


def test_the_command_says_what_is_wrong_without_a_traceback(capsys):
    assert tuning.main(["mini", "--methods", "LoRa"]) == 1
    assert "error: 'LoRa' is not in the grid; it has" in capsys.readouterr().err
    assert tuning.main(["mini", "--backbones", "lava-mini"]) == 1
    said = "error: 'lava-mini' is no backbone of edition 'mini'; it has llava-mini, qwen2.5-vl-mini; did you mean"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mini", "published-mini", "rivals", "preference-mini"])
def test_what_an_edition_uses_is_the_best_of_its_trials_and_has_worse_ones_on_both_sides(name):
    edition, recorded = load_edition(name), pd.read_csv(CONFIG_FOLDER / "tuning" / f"{name}.csv")
    grid = load_grid(edition)
    for method in grid.methods:
        trials = recorded[recorded["method"] == method]
        assert [(json.loads(cell), seed) for cell, seed in zip(trials["settings"], trials["seed"], strict=True)] == [
            (settings, seed) for settings in grid.trials_of(method) for seed in grid.seeds
        ], method
        (best,) = (json.loads(cell) for cell in trials.loc[trials["chosen"] == 1, "settings"].unique())
        means = trials.groupby("settings")[grid.criterion].mean()
        assert means[json.dumps(best, sort_keys=True)] == means.max(), method
        assert apply_settings(edition.methods[method], best) == edition.methods[method]
        for setting in grid.methods[method]:  # of which each is searched along a line; others are forms of a method
            lines: dict[str, dict[float, float]] = {}
            for trial in grid.trials_of(method):
                rest = json.dumps({key: value for key, value in trial.items() if key != setting}, sort_keys=True)
                lines.setdefault(rest, {})[trial[setting]] = means[json.dumps(trial, sort_keys=True)]
            assert any(
                line[best[setting]] == max(line.values()) and min(line) < best[setting] < max(line)
                for line in lines.values() if best[setting] in line
            ), (method, setting, lines)  # fmt: skip
        for row in (row for row, source in grid.takes.items() if source == method):
            assert apply_settings(edition.methods[row], best) == edition.methods[row], (row, method)
    tuned, mini = {*grid.methods, *grid.takes}, load_edition("mini").methods
    for key, config in edition.methods.items():  # but for those that another edition tuned
        assert key in tuned or not is_trained(config) or config == mini[key], key


def test_the_table_of_budgets_has_a_line_for_every_row_that_was_tuned_or_takes_a_choice():
    table = budgets(FIGURES).set_index(["edition", "method"])
    assert {*TUNED} == {path.stem for path in (CONFIG_FOLDER / "tuning").glob("*.csv")}
    for name in TUNED:
        edition, recorded = load_edition(name), pd.read_csv(CONFIG_FOLDER / "tuning" / f"{name}.csv")
        grid = load_grid(edition)
        assert set(table.loc[name].index) == {edition.methods[key].label for key in (*grid.methods, *grid.takes)}
        for key in grid.methods:
            line, own = table.loc[name, edition.methods[key].label], recorded[recorded["method"] == key]
            assert (line["trials"], line["trainings"]) == (own["settings"].nunique(), len(own)), key
            assert line["trials"] >= grid.trials and line["information"] == edition.methods[key].information
        for key, source in grid.takes.items():
            line = table.loc[name, edition.methods[key].label]
            assert (line["trials"], line["chosen"]) == (0, f"as {edition.methods[source].label}")


def test_without_committed_trials_there_is_no_table_of_budgets(tmp_path):
    assert budgets(tmp_path / "figures") is None
