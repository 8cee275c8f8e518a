"""Protocol experiments: mistakes are named, equal settings run once, tables are those of the predictions."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_world import lay_out, small_edition

from prefmoe import config, metrics
from prefmoe.analysis import tables
from prefmoe.config import CONFIG_FOLDER, ConfigError, load_edition
from prefmoe.experiments import protocol, protocol_tables
from prefmoe.experiments.protocol import Experiment, ProtocolError, apply_variant, load_protocol, plan, plans, run

NEW_USERS_ALONE = small_edition("tiny-llava")
EDITION = NEW_USERS_ALONE.model_copy(
    update={"evaluation": NEW_USERS_ALONE.evaluation.model_copy(update={"unseen_turns": (0, 1)})}
)
CONTENT = {
    "backbones": ["tiny-llava"],
    "seeds": [0, 1],
    "experiments": {
        "rank": {
            "question": "How many ranks?",
            "methods": ["LoRA"],
            "variants": {"4": {"rank": 4}, "2": {"rank": 2, "training.steps": 2}},
        },
        "rate": {
            "question": "How fast?",
            "methods": ["LoRA", "NT"],
            "variants": {"as it is": {}},
            "splits": ["test", "unseen"],
            "turns": [0, 1],
        },
        "population": {
            "question": "How many?",
            "methods": ["NT"],
            "axis": "data.users",
            "equal_exposure": True,
            "variants": {"4": {"data.users": 4}, "6": {"data.users": 6}},
        },
    },
}


@pytest.fixture(autouse=True)
def beside_the_model(tmp_path, monkeypatch):
    """As in test_tuning: the model and the benchmark are in the working folder."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)


def write(content: dict) -> None:
    Path("config/protocol").mkdir(parents=True, exist_ok=True)
    Path("config/protocol/small-world.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def changed(place: str, value) -> dict:
    """The content with one entry replaced; places are dotted."""
    content = json.loads(json.dumps(CONTENT))
    *parents, last = place.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return content


# --- questions


@pytest.mark.parametrize("edition", ["mini", "smoke"])
def test_the_committed_questions_are_those_of_the_notebook(edition):
    asked = load_protocol(load_edition(edition)).experiments
    notebook = (config.ROOT / "notebooks/13_protocol_questions.ipynb").read_text(encoding="utf-8")
    assert re.findall(r'"name = \\"(\w+)\\"', notebook) == list(asked)


def test_the_default_editions_references_are_its_methods_as_they_are():
    edition = load_edition("mini")
    asked = load_protocol(edition)
    for name, experiment in asked.experiments.items():
        if not any(setting.startswith("data.") for setting in next(iter(experiment.variants.values()))):
            first = next(iter(experiment.variants))
            for method in experiment.methods:
                assert apply_variant(edition, experiment, method, first) == (
                    edition,
                    edition.methods[method],
                ), name
    steps = [settings["training.steps"] for settings in asked.experiments["more_training"].variants.values()]
    assert steps[0] == edition.training.steps and sorted(steps) == [100, 200, 400, 800, 1600, 6400]


def test_what_was_asked_earlier_can_be_asked_of_the_default_edition():
    edition, earlier = load_edition("mini"), CONFIG_FOLDER / "protocol" / "earlier.yaml"
    asked = load_protocol(edition, earlier)
    assert not set(asked.experiments) & set(load_protocol(edition).experiments)
    assert protocol.budget(edition, asked)["runs"].min() >= 0
    every = asked.experiments.values()
    axes = {one.axis for one in every} | {split for one in every for split in one.splits}
    assert {"data.users", "unseen"} <= axes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("backbones", ["lava"]), "backbones: 'lava' is not one of the edition's: tiny-llava"),
        (changed("experiments.rank.backbones", ["lava"]), "experiments.rank.backbones: 'lava' is not one"),
        (changed("experiments.rank.methods", ["Lora"]), "experiments.rank.methods: 'Lora' is not one of the"),
        (
            changed("experiments.rate.splits", ["tests"]),
            "experiments.rate.splits.0: Input should be 'test' or 'unseen'",
        ),
        (
            changed("experiments.rank.variants.2", {"ranks": 2}),
            "experiments.rank.variants.2: LoRA: no setting 'ranks'",
        ),
        (
            changed("experiments.rank.variants.2", {"rank": 0}),
            r"rank.variants.2: LoRA: refused \{'rank': 0\}: .*greater",
        ),
        (
            changed("experiments.rank.variants.2", {"data.user": 2}),
            "rank.variants.2: LoRA: data: no setting 'user'",
        ),
        (changed("experiments.rank.variants", {}), "experiments.rank.variants: "),
        (changed("experiments.rank.axes", "rank"), "experiments.rank.axes: "),
        (
            changed("experiments.rank.axis", "alpha"),
            "rank.variants.4: expected a positive number for the axis 'alpha'",
        ),
    ],
)
def test_every_mistake_is_named(content, message):
    write(content)
    with pytest.raises(ConfigError, match=message):
        load_protocol(EDITION, "config")


def test_two_mistakes_are_two_lines_and_a_missing_file_is_one():
    write(changed("experiments.rank.methods", ["Lora"]) | {"backbones": ["lava"]})
    with pytest.raises(ConfigError, match=r"has 2 mistake\(s\)"):
        load_protocol(EDITION, "config")
    with pytest.raises(ConfigError, match="edition 'paper' has no protocol experiments"):
        load_protocol(load_edition("paper"))


def test_variants_reach_methods_data_and_training():
    experiment = Experiment(
        question="?",
        methods=("PrefMoE",),
        variants={"other": {"losses.anchor_is_positive": False, "data.users": 12, "training.batch_size": 3}},
    )
    edition, method = apply_variant(EDITION, experiment, "PrefMoE", "other")
    assert (edition.data.users, edition.training.batch_size) == (12, 3)
    assert not method.losses.anchor_is_positive and method.lr == EDITION.methods["PrefMoE"].lr
    assert edition.training.steps == EDITION.training.steps
    equal = experiment.model_copy(update={"equal_exposure": True})
    edition, _ = apply_variant(EDITION, equal, "PrefMoE", "other")
    assert edition.training.steps == EDITION.training.steps * 12 / EDITION.data.users


def test_equal_settings_are_one_plan_and_others_are_not():
    experiments = {
        "first": Experiment(question="?", methods=("LoRA",), variants={"a": {}, "b": {"rank": 2}}),
        "second": Experiment(question="?", methods=("LoRA", "NT"), variants={"c": {"rank": 4}, "d": {"rank": 8}}),
    }
    write(
        {
            "backbones": ["tiny-llava"],
            "experiments": {k: v.model_dump(mode="json") for k, v in experiments.items()},
        }
    )
    with pytest.raises(ConfigError, match="second.variants.c: NT: no setting 'rank'"):
        load_protocol(EDITION, "config")
    experiments["second"] = experiments["second"].model_copy(update={"methods": ("LoRA",)})
    write(
        {
            "backbones": ["tiny-llava"],
            "experiments": {k: v.model_dump(mode="json") for k, v in experiments.items()},
        }
    )
    asked = load_protocol(EDITION, "config")
    assert asked.seeds == EDITION.seeds
    assert [one.config.rank for one in plans(EDITION, asked).values()] == [4, 2, 8]
    (a,), (c,) = (
        plan(EDITION, asked, *place, "tiny-llava") for place in (("first", "LoRA", "a"), ("second", "LoRA", "c"))
    )
    assert a.folders("results") == c.folders("results") and len(a.folders("results")) == 2


def test_seeds_that_the_edition_lacks_are_made_beside_its_own():
    write(changed("seeds", [2, 0, 1]))
    alone = EDITION.model_copy(update={"seeds": (0,)})
    more = EDITION.model_copy(update={"seeds": (0,), "more_seeds": {"LoRA": (0, 2, 1)}})
    for edition, expected in ((alone, {True: [0], False: [1, 2]}), (more, {True: [0, 1, 2]})):
        asked = load_protocol(edition, "config")
        parts = plan(edition, asked, "rank", "LoRA", "4", "tiny-llava")
        assert {one.own: sorted(one.seeds) for one in parts} == expected
        assert [one.key == "LoRA" for one in parts] == list(expected)
        folders = [folder.as_posix() for one in parts for folder in one.folders("results")]
        assert len(set(folders)) == 3 and folders[0].startswith("results/small-world/runs/tiny-llava/LoRA/seed")
        own, steps = len(expected[True]), edition.training.steps
        assert protocol.budget(edition, asked).loc["rank"].tolist() == [own, 6 - own, 2 * 3 + steps * (3 - own)]
        (other,) = plan(edition, asked, "rank", "LoRA", "2", "tiny-llava")
        assert not other.own and other.seeds == (2, 0, 1)


def test_tables_put_the_editions_seeds_and_those_made_for_them_in_one_order():
    edition = EDITION.model_copy(update={"seeds": (1,)})
    only = {"rank": {**CONTENT["experiments"]["rank"], "variants": {"4": {"rank": 4}}}}
    write({**CONTENT, "seeds": [1, 0], "experiments": only})
    asked = load_protocol(edition, "config")
    keys = [key for _, key in plans(edition, asked)]
    assert keys[0] == "LoRA" and len(keys) == 2
    run(edition, "tiny-llava", "LoRA", results="results", config_folder="config")
    with pytest.raises(ProtocolError, match=r"rank: 1 run.* missing.*\n.*seed0"):
        protocol_tables.build(edition, results="results", config_folder="config")
    (made,) = run(edition, "tiny-llava", keys[1], results="results", config_folder="config")
    assert made.name == "seed0" and "protocol" in made.parts
    (cell,) = protocol_tables.read_cells(edition, asked, "rank", "results")
    own = Path("results/small-world/runs/tiny-llava/LoRA/seed1")
    for frame, folder in zip(cell.answers.frames, (made, own), strict=True):
        kept = pd.read_parquet(folder / "predictions.parquet")
        kept = kept[(kept["split"] == "test") & (kept["turns"] == 0)].sort_values("index")
        assert frame["prediction"].tolist() == kept["prediction"].tolist()


def test_other_questions_come_from_a_file_and_go_to_a_folder_of_its_name():
    file = Path("config/asked.yaml")
    file.parent.mkdir(exist_ok=True)
    reading = {"question": "?", "methods": ["NT"], "variants": {"as it is": {}}}
    file.write_text(yaml.safe_dump({"backbones": ["tiny-llava"], "experiments": {"reading": reading}}))
    assert list(load_protocol(EDITION, file).experiments) == ["reading"]
    run(EDITION, "tiny-llava", "NT", results="results", config_folder=file)
    written = protocol_tables.build(EDITION, results="results", config_folder=file)
    folder = "results/small-world/figures/protocol/asked"
    assert {path.as_posix() for path in written.values()} == {
        f"{folder}/{name}.csv" for name in ("reading", "differences", "trends")
    }
    with pytest.raises(ConfigError, match="no protocol experiments"):
        load_protocol(EDITION, "config/missing.yaml")


def test_a_run_of_the_edition_serves_an_experiment_that_asks_no_more_than_it_answered():
    write(CONTENT)
    for edition, own in ((EDITION, True), (NEW_USERS_ALONE, False)):
        (one,) = plan(edition, load_protocol(edition, "config"), "rate", "LoRA", "as it is", "tiny-llava")
        assert one.own is own


# --- runs and tables


def test_runs_are_made_once_and_their_tables_are_those_of_the_predictions(monkeypatch):
    write(CONTENT)
    asked = load_protocol(EDITION, "config")
    planned = plans(EDITION, asked)
    with pytest.raises(ProtocolError, match="rank: 4 run.* missing"):
        protocol_tables.build(EDITION, results="results", config_folder="config")
    with pytest.raises(ProtocolError, match="no experiment needs 'Lora' on 'tiny-llava'; expected one of LoRA, "):
        run(EDITION, "tiny-llava", "Lora", results="results", config_folder="config")
    for backbone, key in planned:
        run(EDITION, backbone, key, results="results", config_folder="config")
    files = {path: path.stat().st_mtime_ns for path in Path("results").rglob("run.json")}
    # LoRA as it is, whoever is asked, and in another variant; NT, which needs one seed, and with fewer users
    assert len(planned) == 2 + 2 and len(files) == 2 * 2 + 2
    own = {path for path in files if "protocol" not in path.parts}
    assert {(path.parts[-3], path.parts[-2]) for path in own} == {("LoRA", "seed0"), ("LoRA", "seed1"), ("NT", "seed0")}
    needed = protocol.budget(EDITION, asked)
    assert needed.loc["total"].tolist() == [len(own), len(files) - len(own), 2 * 2]
    assert needed["runs"].tolist() == [2, 0, 1, 3] and needed["own"].tolist() == [2, 1, 0, 3]
    for backbone, key in planned:
        run(EDITION, backbone, key, results="results", config_folder="config")
    assert files == {path: path.stat().st_mtime_ns for path in Path("results").rglob("run.json")}
    steps = {json.loads(path.read_text())["steps"] for path in files if "LoRA" in str(path)}
    assert steps == {EDITION.training.steps, 2}

    written = protocol_tables.build(EDITION, results="results", config_folder="config")
    assert {path.as_posix() for path in written.values()} == {
        f"results/small-world/figures/protocol/{name}.csv"
        for name in ("rank", "rate", "population", "differences", "trends")
    }
    made = {name: tables.read_table(path) for name, path in written.items()}
    folders = plan(EDITION, asked, "rate", "LoRA", "as it is", "tiny-llava")[0].folders("results")
    for split in ("test", "unseen"):
        frames = [pd.read_parquet(folder / "predictions.parquet").query("turns == 0") for folder in folders]
        values = [metrics.summarize(metrics.score(f[f["split"] == split]), resamples=2) for f in frames]
        rows = (
            made["rate"]
            .query("method == 'adapter' and split == @split and grouping == 'all' and turns == 0")
            .set_index("metric")
        )
        for metric in ("overall", "preference", "profile"):  # these models say nothing that recall could read
            assert rows.loc[metric, "value"] == pytest.approx(np.mean([v[metric]["value"] for v in values]), abs=1e-5)
            assert rows.loc[metric, "n"] == values[0][metric]["n"] and rows.loc[metric, "seeds"] == 2
    assert set(made["population"]["x"]) == {4, 6}
    assert set(made["population"].query("grouping == 'all'")["users"]) == {4, 6}
    assert set(made["trends"]["axis"]) == {"data.users"}
    paired = made["differences"].query("experiment == 'rank'")
    assert set(paired["paired"]) == {1} and paired.set_index("metric").loc["overall", "p_users"] <= 1
    assert set(paired["variant"].astype(str)) == {"2"}
    talk = made["differences"].query("experiment == 'rate' and turns == 1 and paired == 1")
    assert set(talk["reference"]) == {"0 turns"} and set(talk["split"]) == {"test", "unseen"}
    values = made["rate"].query("grouping == 'all'").set_index(["method", "split", "turns", "metric"])["value"]
    for _, row in talk.dropna(subset=["difference"]).iterrows():
        where = row["method"], row["split"]
        change = values[(*where, 1, row["metric"])] - values[(*where, 0, row["metric"])]
        assert row["difference"] == pytest.approx(change, abs=2e-6)
    new = made["differences"].query("experiment == 'rate' and paired == 0")
    assert set(new["paired"]) == {0} and new["p_users"].isna().all()
    assert set(new["reference"]) == {"as it is, test"}


def test_the_files_lie_where_the_documentation_says():
    assert protocol.protocol_path("mini") == CONFIG_FOLDER / "protocol" / "mini.yaml"
    assert protocol.protocol_path("mini").is_file() and not (CONFIG_FOLDER / "protocol.yaml").exists()
