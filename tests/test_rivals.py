"""What the plan of a workflow says of the rivals is what they train."""

import pytest
from small_world import small_benchmark

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import load_edition
from prefmoe.config.registry import find_backbone
from prefmoe.models.base import build_method
from prefmoe.workflow import resources

SMOKE = load_edition("rivals-smoke").methods


@pytest.mark.parametrize("name", [name for name in SMOKE if name not in ("LoRA", "PrefMoE")])
def test_parameters_are_counted_without_loading_anything(name):
    benchmark = small_benchmark()
    method = build_method(SMOKE[name], load_backbone("llava-mini"), benchmark, seed=0)
    shape = resources.shape_of(find_backbone("llava-mini"))
    expected = resources.trained_parameters(SMOKE[name], shape, len(benchmark.trained_users))
    assert method.describe()["trainable_total"] == expected
