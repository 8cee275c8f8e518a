"""What the explorer ships is what finished runs gave, what does not fit is said, and its sources are small."""

import json
import re
import shutil
from pathlib import Path

import explorer
import explorer_page
import numpy as np
import pytest
from PIL import Image

from prefmoe.config import load_edition, run_folder
from prefmoe.course import answers
from prefmoe.data.people import NAMES
from prefmoe.data.prompts import split_items
from prefmoe.system.file_digests import content_digest, files_below
from prefmoe.system.run_files import RunFileError, seal

ROOT = Path(__file__).resolve().parent.parent
SOURCE, ASSETS = ROOT / explorer_page.SOURCE, ROOT / explorer_page.ASSETS
ABOUT, GRID, PEOPLE, MAPS = (
    json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8")) for name in ("about", "grid", "people", "maps")
)


def test_the_card_names_every_file_with_its_digest_and_the_runs_that_it_is_from():
    shipped = {path.relative_to(ASSETS).as_posix(): content_digest(path) for path in files_below(ASSETS)}
    assert {name: digest for name, digest in shipped.items() if name != "about.json"} == ABOUT["files"]
    assert set(ABOUT["runs"]) == {method["name"] for method in GRID["methods"]}
    for run in ABOUT["runs"].values():
        assert re.fullmatch("[0-9a-f]{40}", run["git_commit"]) and run["weights"] and run["data"]


def test_its_runs_are_those_of_the_courses_answers():
    """So that all parts of the page are about the same models."""
    course = answers.about()
    for name, run in ABOUT["runs"].items():
        assert run["inputs_digest"] == course["runs"][f"{name}/seed{ABOUT['seed']}"]["inputs_digest"]
    assert (ABOUT["edition"], ABOUT["backbone"]) == (course["edition"], course["backbone"])


def test_the_grid_has_the_answers_of_the_runs_where_these_asked_the_same():
    compared = 0
    for place, method in enumerate(GRID["methods"]):
        frame = answers.scored(method["label"]).sort_values("index")
        yes_no = frame[(frame["category"] == "preference") & (frame["l2-category"] != "inconsistency")]
        first = yes_no.drop_duplicates("item")
        for row in first[first["question"] == ABOUT["question"]].itertuples():
            shown = GRID["p_yes"][place][GRID["items"].index(row.item)][GRID["users"].index(row.name)] / 10_000
            assert shown == pytest.approx(row.p_yes, abs=1e-4)
            compared += 1
    assert compared > 60


def test_profiles_are_those_that_the_edition_draws():
    assert explorer.everybody(load_edition(ABOUT["edition"])) == PEOPLE
    assert [user["name"] for user in PEOPLE["users"]] == GRID["users"]
    told = [
        items for user in PEOPLE["users"] for likes, dislikes in user["told"].values() for items in (likes, dislikes)
    ]
    assert all(len(items) == 2 and split_items(", ".join(items)) == tuple(items) for items in told)


def test_groups_of_the_maps_are_users_of_equal_told_likes():
    profiles = {user["name"]: user["told"] for user in PEOPLE["users"]}
    ranks: dict[tuple, set[int]] = {}
    for user, facet, rank in MAPS["points"]:
        ranks.setdefault((facet, *map(tuple, profiles[user][facet])), set()).add(rank)
    assert len(ranks) == 30 and all(len(found) == 1 for found in ranks.values())
    for drawn in MAPS["maps"]:
        assert set(drawn["layouts"]) == {f"{p}/{seed}" for p in MAPS["perplexities"] for seed in MAPS["seeds"]}
        for layout in drawn["layouts"].values():
            assert len(layout) == 2 * len(MAPS["points"]) and (min(layout), max(layout)) == (0, 1000)


def test_pictures_are_as_many_as_items_and_users():
    for name, count, side in (("pictures", 60, 160), ("pixels", 60, 64), ("faces", 46, 80)):
        sheet = Image.open(ASSETS / f"{name}.webp")
        assert sheet.size == (10 * side, -(-count // 10) * side)


def test_names_for_new_users_are_nobodys():
    free = explorer_page.free_names(GRID["users"])
    assert set(free) == set(NAMES) - set(GRID["users"]) and GRID["made_up"]["users"] == len(free)


def test_what_is_computed_before_is_small():
    assert sum((ASSETS / f"{name}.json").stat().st_size for name in ("about", "grid", "maps", "people")) < 1_000_000
    assert sum(path.stat().st_size for path in files_below(SOURCE)) < 8_000_000


def test_sources_are_short_and_name_no_address():
    for path in [*SOURCE.glob("*.js"), *SOURCE.glob("*.css"), *SOURCE.glob("*.html")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 420
        assert set(re.findall(r"https?://[^\s\"')]*", text)) <= {"http://www.w3.org/2000/svg"}, path.name


def test_packages_are_pinned_and_their_lock_names_no_registry():
    wanted = json.loads((SOURCE / "package.json").read_text(encoding="utf-8"))
    pins = wanted["dependencies"] | wanted["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", pin) for pin in pins.values())
    text = (SOURCE / "package-lock.json").read_text(encoding="utf-8")
    locked = json.loads(text)["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in pins} == pins
    assert "resolved" not in text and all("integrity" in entry for name, entry in locked.items() if name)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with nothing but the explorer, whose files may be changed."""
    shutil.copytree(SOURCE, tmp_path / explorer_page.SOURCE)
    return tmp_path


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_nothing_is_made_from_a_run_whose_files_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "load_benchmark", lambda *_: None)
    for name in explorer.METHODS:
        run = run_folder(tmp_path / "results", "mini", "llava-mini", name, explorer.SEED)
        (run / "method").mkdir(parents=True)
        for file in ("predictions.parquet", "method/method.json", "method/method.safetensors"):
            (run / file).write_text(name)
        seal(run, {})
    (run / "method/method.safetensors").write_text("changed")
    with pytest.raises(RunFileError, match=f"{name}/seed0/method/method.safetensors: changed since the run"):
        explorer.write_assets("mini", "llava-mini", tmp_path / "assets", tmp_path / "results")


def test_adapters_of_other_weights_leave_the_page_without_a_model_and_are_named(clone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explorer_page, "EXPORTED_WITH", ("torch",))
    method = clone / explorer_page.ASSETS / "LoRA/method.json"
    changed(method, json.loads(method.read_text(encoding="utf-8"))["backbone"]["digest"], "0" * 32)
    place, reason = explorer_page.exported(clone, tmp_path / "cache")
    assert place is None and "did not belong to the shipped weights" in reason
    said = capsys.readouterr().err
    assert str(method) in said and "0" * 32 in said and "explorer.py assets" in said


def test_an_adapter_of_another_reading_is_refused_with_what_was_expected(clone):
    import explorer_model

    changed(clone / explorer_page.ASSETS / "PrefMoE/method.json", '"anchors": "embedding"', '"anchors": "hidden"')
    with pytest.raises(ValueError, match="expected PrefMoE with .*'anchors': 'embedding'.*found"):
        explorer_model.read(clone / explorer_page.ASSETS)


def test_npm_that_fails_or_does_not_answer_is_no_error(clone, tmp_path, monkeypatch, capsys):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "npm").write_text("#!/bin/sh\necho no network here >&2\nexit 1\n")
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    assert explorer_page.installed(clone, tmp_path / "cache") == (None, "npm could not fetch its packages")
    assert "no network here" in capsys.readouterr().err


def test_what_the_model_sees_must_be_whole_numbers():
    class Processor:
        image_mean, image_std = [0.5] * 3, [0.5] * 3

    class Backbone:
        def __init__(self, values) -> None:
            self.values = values
            self.processor = type("P", (), {"image_processor": Processor})

        def process_pictures(self, pictures):
            import torch

            return type("Seen", (), {"inputs": {"pixel_values": torch.tensor(self.values)[None]}})

    dots = np.random.default_rng(0).integers(0, 256, size=(3, 64, 64))
    method = type("M", (), {"backbone": Backbone((dots / 255 - 0.5) / 0.5)})
    np.testing.assert_array_equal(explorer.seen_by(method, Path("p.png")), dots.transpose(1, 2, 0))
    method.backbone.values = ((dots + 0.3) / 255 - 0.5) / 0.5
    with pytest.raises(ValueError, match="p.png: expected whole numbers"):
        explorer.seen_by(method, Path("p.png"))


def test_pages_say_of_made_up_people_what_was_measured():
    """How often what one likes gets the likelier yes, of people whose tastes were drawn item by item."""
    made_up = GRID["made_up"]
    share = f"{made_up['share']:.3f}".lstrip("0")
    page = (
        (ROOT / "docs/results.md")
        .read_text(encoding="utf-8")
        .split("### How far the reading goes")[1]
        .split("\n## ")[0]
    )
    assert f"Of {made_up['users']} people" in page and f"in {share} of {made_up['pairs']:,} pairs" in page
    assert f"in {share} of the pairs ([why]" in (ROOT / "README.md").read_text(encoding="utf-8")
