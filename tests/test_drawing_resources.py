"""The plan of editions that draw: parameters as a branch has them, raters behind methods, the full-size edition."""

import pandas as pd
import pytest
from small_generation import METHODS, branch, content

from prefmoe.cli import main
from prefmoe.config import Edition, load_edition
from prefmoe.workflow import drawers, resources


@pytest.mark.parametrize("changes", [{}, {"parts": ["sem"]}, {"parts": ["img", "core"], "alignment": "none"}])
def test_trained_parameters_are_those_that_a_branch_has(monkeypatch, changes):
    one = branch(**changes)
    counts = {name: sum(p.numel() for p in parameters) for name, (parameters, _) in one._groups().items()}
    shape = drawers.DrawerShape(1, 1, 1, 1, 1, one.drawer.width, counts["branch"])
    monkeypatch.setattr(drawers, "shape_of", lambda edition: shape)
    edition = Edition.model_validate(content(methods=METHODS | {"All": METHODS["All"] | changes}))
    assert drawers.trained(edition, edition.methods["All"], one.backbone.hidden_size) == sum(counts.values())
    assert drawers.trained(edition, edition.methods["Wrong"], one.backbone.hidden_size) == 0


def test_the_rater_behind_a_method_is_the_one_that_it_begins_with_or_the_rewarding_one():
    edition = Edition.model_validate(content())
    behind = {name: drawers.rater_behind(edition, name) for name in METHODS}
    assert behind["Wrong"] == behind["All"] == behind["Probes"] == behind["Like"] == behind["Questions"] == "Questions"
    assert behind["Nobody"] == behind["Reward"] == "Reward"


def test_the_full_size_edition_is_planned_without_a_download(capsys):
    assert main(["plan", "prefgen"]) == 0
    printed = capsys.readouterr().out
    edition = load_edition("prefgen")
    assert all(f" {name} " in printed for name in edition.methods)
    table = resources.table(edition).set_index("method")
    plain, branch_, rater = table.loc["Nobody"], table.loc["All"], table.loc["Questions"]
    assert branch_["evaluate_GB"] > plain["evaluate_GB"] > 0 and plain["train_GB"] == "-"
    assert branch_["train_GB"] > 2 and branch_["download_GB"] > rater["download_GB"]
    hours = pd.to_numeric(table["H100_hours"])
    assert hours.gt(0).all() and hours["LikeGradient"] > hours["Nobody"]


def test_more_pictures_take_more_hours_and_disk():
    edition = load_edition("prefgen")
    more = edition.model_copy(update={"generation": edition.generation.model_copy(update={"noises": 8})})
    few, many = (resources.needs(one, "idefics2-8b", "Nobody") for one in (edition, more))
    assert many.hours == pytest.approx(2 * few.hours) and many.results > 1.9 * few.results
    assert many.evaluation == few.evaluation and few.gpus == 8
