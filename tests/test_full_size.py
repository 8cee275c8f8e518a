"""The script that holds the plan to a full-size model, on a model that a CPU can hold."""

import full_size
import pandas as pd
import pytest
import torch
from small_world import data_folder

from prefmoe.config import FIGURES, load_edition
from prefmoe.config.registry import find_backbone
from prefmoe.workflow import resources


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pd.DataFrame:
    """What the command writes of two methods, for a few users."""
    path = tmp_path_factory.mktemp("full_size") / "new" / "table.csv"
    short = load_edition("paper").with_settings({"evaluation.max_new_tokens": 2})
    drawn = data_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_size, "load_edition", lambda name: short)
        patch.setattr(full_size.miniature, "build", lambda data, folder: drawn)
        command = [str(path), "--device", "cpu", "--layers", "1", "--steps", "4", "--methods", "LoRA", "PrefMoE"]
        assert full_size.main(command) == 0
    return pd.read_csv(path)


def test_a_row_per_method_with_and_without_checkpointing(table):
    assert list(zip(table["gradient_checkpointing"], table["method"], strict=True)) == [
        (kept, method) for kept in (True, False) for method in ("LoRA", "PrefMoE")
    ]
    assert (table["steps"] == 4).all() and table["backbone"].str.endswith("random weights").all()
    seconds = ["seconds_per_step", "planned_seconds_per_step", "seconds_per_question"]
    assert (table[seconds] > 0).all(axis=None)
    assert table["information"].str.startswith(("profile text", "anchors of profile text")).all()
    assert list(table) == list(pd.read_csv(FIGURES / "speed/full_size.csv")), "the committed table's columns"
    assert (table["training_bytes"] == 0).all() and (table["evaluation_bytes"] == 0).all(), "no accelerator's memory"


def test_the_plan_is_that_of_the_model_that_was_made(table):
    shape = find_backbone(full_size.NAME).shape
    assert (table["planned_training_bytes"] > 0.9 * resources.weight_bytes(shape, 4)).all()
    trained = table.groupby("method")["parameters_trained"]
    assert (trained.nunique() == 1).all() and trained.first().min() > 0


def test_random_weights_never_answer_with_a_pictures_place(tmp_path):
    small = {"hidden": 64, "intermediate": 128, "heads": 4, "key_value_heads": 4, "head_size": 16, "layers": 1,
             "vocabulary": 1200, "image_tokens": 16}  # fmt: skip
    shape = find_backbone(full_size.NAME).shape.model_copy(update=small)
    backbone = full_size.random_backbone(shape, "cpu", tmp_path)
    states = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert (backbone.lm_head(states).argmax(-1) != backbone.model.config.image_token_id).all()
    assert backbone.layers and not any(p.requires_grad for p in backbone.model.parameters())


def test_the_methods_are_the_paper_editions():
    assert {*full_size.METHODS} <= {*load_edition("paper").methods}
