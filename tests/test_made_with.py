"""What tables were made with is read from the runs themselves."""

import pandas as pd
import pytest
import torch
from pages import TABLES

from prefmoe.analysis.made_with import MADE_WITH, made_with_table
from prefmoe.config import load_edition, run_folder
from prefmoe.config.backbone_files import files_digest
from prefmoe.running.record import hardware
from prefmoe.system.files import write_json
from prefmoe.system.places import PACKAGE
from prefmoe.system.run_files import METHOD_FOLDER, PREDICTIONS_FILE, RunFileError, read_story, seal
from prefmoe.workflow.reproduction import compare


@pytest.fixture
def results(tmp_path):
    """Three finished runs of an edition: two of one day and processor, and one that another processor made later."""
    edition = load_edition("ranking")
    runs = [("LoRA", 0, "2026-03-01T23:59", "A"), ("LoRA", 1, "2026-03-01T08:00", "A"), ("NT", 0, "2026-04-02", "B")]
    for key, seed, finished, processor in runs:
        folder = run_folder(tmp_path, edition.name, "llava-mini", key, seed)
        (folder / METHOD_FOLDER).mkdir(parents=True)
        write_json(folder / METHOD_FOLDER / "method.json", {})
        pd.DataFrame({"index": [0]}).to_parquet(folder / PREDICTIONS_FILE)
        story = {"backbone": "llava-mini", "inputs": {"weights": "w"}, "versions": {"torch": "2"}, "finished": finished}
        seal(folder, {**story, "hardware": {"processor": processor, "machine": "x86_64"}})
    return edition, tmp_path


def test_runs_are_counted_by_what_made_them(results):
    found = made_with_table(*results).to_dict("records")
    common = {"backbone": "llava-mini", "weights": "w", "torch": "2"}
    assert sorted(found, key=lambda row: row["hardware"]) == [
        {**common, "runs": 2, "hardware": "A", "first": "2026-03-01", "last": "2026-03-01"},
        {**common, "runs": 1, "hardware": "B", "first": "2026-04-02", "last": "2026-04-02"},
    ]


def test_a_run_that_is_older_than_the_processors_name_counts_by_its_kind(results):
    edition, folder = results
    path = run_folder(folder, edition.name, "llava-mini", "NT", 0)
    story = read_story(path)
    del story["hardware"]["processor"]
    seal(path, story)
    assert set(made_with_table(edition, folder)["hardware"]) == {"A", "x86_64"}


def test_a_changed_run_is_named(results):
    edition, folder = results
    path = run_folder(folder, edition.name, "llava-mini", "NT", 0) / "run.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"B"', '"C"'), encoding="utf-8")
    with pytest.raises(RunFileError, match=r"NT.*run\.json: changed"):
        made_with_table(edition, folder)


def test_a_page_says_whether_weights_are_the_shipped_ones(results, tmp_path):
    table = made_with_table(*results)
    table["weights"] = [files_digest(PACKAGE / "weights/llava-mini"), "w"]
    (tmp_path / "figures" / "some").mkdir(parents=True)
    table.to_csv(tmp_path / "figures" / "some" / f"{MADE_WITH}.csv", index=False)
    lines = TABLES["made with"](tmp_path / "figures").splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines[2:]] == [
        ["some", "llava-mini", "as shipped", str(table["runs"][0])],
        ["some", "llava-mini", "earlier ones", str(table["runs"][1])],
    ]


def test_weights_that_nobody_ships_keep_their_identity(results, tmp_path):
    table = made_with_table(*results).assign(backbone="somebody-elses")
    (tmp_path / "figures" / "some").mkdir(parents=True)
    table.to_csv(tmp_path / "figures" / "some" / f"{MADE_WITH}.csv", index=False)
    assert TABLES["made with"](tmp_path / "figures").count("| some | somebody-elses | w |") == 2


def test_another_processor_is_no_difference_of_results(tmp_path):
    for name in ("committed", "made"):
        (tmp_path / name).mkdir()
        values = pd.DataFrame([{"method": "a", "metric": "overall", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}])
        values.to_csv(tmp_path / name / "breakdown.csv", index=False)
        pd.DataFrame([{"hardware": name}]).to_csv(tmp_path / name / f"{MADE_WITH}.csv", index=False)
    found = compare(tmp_path / "committed", tmp_path / "made")
    assert (found.problems, found.notes) == ([], [])


def test_the_processor_has_its_makers_name():
    assert len(hardware(torch.device("cpu"))["processor"]) > 2
