"""docs/departures.md against the settings: what stands there as published is what the paper edition has."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from prefmoe.analysis.comparisons import focus_method
from prefmoe.config import LoRAMethod, Method, PrefMoEMethod, Training, load_edition

PAGE = (Path(__file__).resolve().parent.parent / "docs/departures.md").read_text(encoding="utf-8")
SETTINGS = [pair for row in re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", PAGE.partition("## What differs")[0], re.M)
            for pair in re.findall(r"`(\w+): ([\w.]+)`", row)]  # fmt: skip
OWN = {
    "routers": "own", "facet_label": "none", "query": "question", "residual_query": "scaled", "user_embedding": "free",
    "anchor_texts": "own", "unknown_users": "profile", "residual": "centred", "correction": "relative",
    "counterfactual_source": "drawn", "counterfactual_images": "own", "answers": "upper", "schedule": "cosine",
    "auxiliary_ramp": 0.0, "group_batches": True, "batches_of_one_form": True,
}  # fmt: skip


def values(edition: str, name: str) -> list[object]:
    """Values of a setting wherever an edition has it: PrefMoE, LoRA, training, evaluation."""
    chosen = load_edition(edition)
    lora = next(m for m in chosen.methods.values() if type(m) is LoRAMethod)
    parts = [chosen.methods["PrefMoE"], lora, chosen.training, chosen.evaluation]
    if name == "batch_size":
        parts = [chosen.training]
    return [getattr(part, name) for part in parts if name in type(part).model_fields]


@pytest.mark.parametrize(("name", "value"), sorted(set(SETTINGS)))
def test_the_paper_edition_has_what_the_page_calls_published(name, value):
    assert yaml.safe_load(value) in values("paper", name)


def test_every_setting_of_ours_that_can_be_published_stands_on_the_page():
    named = {name for name, _ in SETTINGS}
    fields = {**PrefMoEMethod.model_fields, **Training.model_fields}
    chosen = {name for name, field in fields.items() if "published)" in (field.description or "")}
    assert chosen <= named and set(OWN) <= named


def test_defaults_are_our_own():
    method = PrefMoEMethod(kind="prefmoe", label="PrefMoE", lr=1e-3, lr_user=1e-3)
    training = Training(steps=1, batch_size=1)
    for name, value in OWN.items():
        part = method if name in PrefMoEMethod.model_fields else training
        assert getattr(part, name) == value, name


def test_the_paper_edition_has_them_in_every_row_of_the_ablation():
    edition = load_edition("paper")
    for key in edition.table2:
        method = edition.methods[key]
        assert (method.routers, method.query, method.user_embedding) == ("published", "prompt", "anchors")
        assert (method.anchor_texts, method.correction, method.counterfactual_source) == (
            "published",
            "absolute",
            "file",
        )
    trained = [m for m in edition.methods.values() if m.table_type != "NT"]
    assert {method.answers for method in trained} == {"lower"}
    assert edition.evaluation.max_new_tokens == 32


def test_the_row_on_the_page_is_the_paper_editions_but_for_the_file_of_counterfactual_users():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
    ((name, content),) = yaml.safe_load(block).items()
    row, paper = TypeAdapter(Method).validate_python(content), load_edition("paper").methods["PrefMoE"]
    assert name == "AsPublished" and row.counterfactual_source == "drawn"
    other = {"label": row.label, "counterfactual_source": "drawn"}
    assert paper.model_copy(update=other) == row


def test_what_the_page_says_of_other_editions_is_theirs():
    for name in ("mini", "rivals", "ranking", "ladder", "small", "small-sample"):
        edition = load_edition(name)
        mixtures = [one for one in edition.methods.values() if isinstance(one, PrefMoEMethod) and "M" in one.components]
        assert {one.alpha for one in mixtures} <= {8.0 if name.startswith("small") else 10.0}, name
        assert edition.training.beta2 == 0.98 and edition.training.steps <= 800, name
        assert edition.evaluation.max_new_tokens == 3, name
    mini = load_edition("mini")
    assert mini.training.steps * mini.training.batch_size == 8 * mini.data.users * mini.data.train_per_user
    assert {one.information for key, one in load_edition("paper").methods.items() if key.startswith("NT")} == {
        "profile text", "profile picture"
    }  # fmt: skip


def test_prefmoe_as_published_is_compared_where_no_other_is():
    paper, smoke = load_edition("paper"), load_edition("smoke")
    assert focus_method(paper) == "PrefMoE"
    told = smoke.methods["PrefMoE"].model_copy(update={"facet_label": "oracle", "label": "told"})
    both = smoke.model_copy(
        update={"methods": {"told": told, **smoke.methods}, "table1": ("told", *smoke.table1), "table2": ()}
    )
    assert focus_method(both) == "PrefMoE"
    default = load_edition("mini", seeds="all")
    assert list(default.table1).index("PrefMoE-published") < list(default.table1).index("PrefMoE")
    assert focus_method(default) == "PrefMoE", "the ablation's, with other complete ones beside it"
    ranking = load_edition("ranking")
    assert not ranking.table2 and ranking.table1.index("PrefMoE-published") < ranking.table1.index("PrefMoE")
    assert focus_method(ranking) == "PrefMoE", "routers of ours before the published ones, whatever their order"
