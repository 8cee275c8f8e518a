"""Editions: every shipped one is valid, and every mistake in a file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prefmoe.config import COMPONENTS, CONFIG_FOLDER, ConfigError, PrefMoEMethod, known_backbones, load_edition

EDITIONS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def _changed(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    """A copy of the smoke edition under its own name with some text replaced."""
    text = (CONFIG_FOLDER / "smoke.yaml").read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "smoke.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", EDITIONS)
def test_every_shipped_edition_is_valid_and_named_like_its_file(name):
    assert load_edition(name).name == name


def test_the_editions_of_the_design_are_there():
    assert {"smoke", "mini", "sample", "paper"} <= set(EDITIONS)


@pytest.mark.parametrize("name", ["smoke", "mini", "paper"])
def test_the_ablation_adds_one_component_at_a_time(name):
    edition = load_edition(name)
    components = [edition.methods[method].components for method in edition.table2]
    assert components == [COMPONENTS[: n + 1] for n in range(len(COMPONENTS))]


@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_the_ablation_changes_nothing_else(name):
    edition = load_edition(name)
    first = edition.methods[edition.table2[0]]
    for method in edition.table2[1:]:
        same = edition.methods[method].model_copy(update={"components": first.components, "label": first.label})
        assert same == first, f"{method} differs from {edition.table2[0]} in more than its components"


def test_smoke_has_every_kind_of_method_and_both_tables_of_the_default_edition():
    smoke, mini = load_edition("smoke"), load_edition("mini")
    assert (smoke.backbones, smoke.table2) == (mini.backbones, mini.table2)
    assert smoke.evaluation.turns == mini.evaluation.turns
    assert {method.kind for method in smoke.methods.values()} == {method.kind for method in mini.methods.values()}
    assert set(smoke.table1) <= set(mini.table1)


def test_the_paper_edition_has_the_published_hyper_parameters():
    edition = load_edition("paper")
    method = edition.methods["PrefMoE"]
    assert isinstance(method, PrefMoEMethod)
    assert (method.lr, method.last_layers) == (2e-4, 8)
    assert (method.preference_rank, method.user_rank, method.profile_rank) == (8, 64, 8)
    assert (method.anchors, method.residual, method.facet_label) == ("hidden", "published", "oracle")
    losses = method.losses
    assert (losses.alignment, losses.profile_contrast, losses.residual_contrast) == (0.05, 0.10, 0.20)
    assert (losses.residual_preservation, losses.decorrelation, losses.temperature) == (0.20, 0.05, 0.07)
    lora = edition.methods["LoRA"]
    assert (lora.rank, lora.alpha, lora.dropout, lora.lr) == (64, 16, 0.05, 2e-4)
    questions = 1000 + 5750 + 687 + 2934
    assert edition.training.batch_size == 4
    assert edition.training.steps == -(-questions // edition.training.batch_size)


def test_every_pair_is_run_once():
    edition = load_edition("mini")
    assert len(edition.runs()) == len(set(edition.runs())) == 2 * len(edition.table1) + 4


def test_an_unknown_edition_lists_the_known_ones():
    with pytest.raises(ConfigError, match="edition 'minni' is unknown.*known editions: .*mini.*smoke"):
        load_edition("minni")


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    path = _changed(tmp_path, ("steps: 4", "stepz: 4"), ("rank: 16", "rank: zero"), ("seeds: [0]", "seeds: []"))
    with pytest.raises(ConfigError) as caught:
        load_edition(path)
    message = str(caught.value)
    assert f"{path} has 4 mistake(s)" in message
    assert "training.stepz: unknown setting, did you mean 'steps'?" in message
    assert "training.steps: Field required" in message
    assert "methods.LoRA.lora.rank: " in message and "'zero'" in message
    assert "seeds: " in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[llava-mini, qwen", "[lava-mini, qwen", "backbones: unknown lava-mini; known backbones: llava-mini, "),
        ("kind: fft", "kind: ftt", "methods.FFT: .*'ftt'"),
        ("components: EPIC}", "components: EPC}", "non-empty prefix of EPICDM, got 'EPC'"),
        ("table1: [NT-profile", "table1: [NT-profil", "table1 names methods that are not defined: NT-profil"),
        ("ablation_backbone: llava-mini", "ablation_backbone: llava-1.5-7b", "ablation_backbone must be one of"),
        ("label: LoRA,", "label: Full fine-tuning,", "given to several methods: Full fine-tuning"),
        ("name: smoke", "name: mini", "name: expected 'smoke' as in the file's name"),
        ("  steps: 4", "  steps: 4\n  steps: 5", "training.steps: given twice, again in line"),
        ("seeds: [0]", "seeds: [0, 1", "not valid YAML"),
        ("kind: miniature", "kind: minature", "data: .*'minature'"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load_edition(_changed(tmp_path, (old, new)))


def test_a_file_without_settings_is_refused(tmp_path):
    (tmp_path / "smoke.yaml").write_text("- a list\n")
    with pytest.raises(ConfigError, match="expected a mapping of settings, found list"):
        load_edition(tmp_path / "smoke.yaml")


def test_known_backbones_are_those_of_the_registry():
    registry = yaml.safe_load((CONFIG_FOLDER.parent / "prefmoe/models/registry.yaml").read_text(encoding="utf-8"))
    assert set(known_backbones()) == set(registry["backbones"])
