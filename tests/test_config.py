"""Editions: every shipped one is valid, and every mistake in a file is named."""

import os
import re
import shutil
from pathlib import Path

import explorer_page
import publish
import pytest
import yaml
from pretraining.place import work_folder
from pydantic import TypeAdapter

from prefmoe.config import (
    COMPONENTS,
    CONFIG_FOLDER,
    KINDS,
    ROOT,
    ConfigError,
    Edition,
    Method,
    MethodSettings,
    PrefMoEMethod,
    claim_results,
    load_edition,
)
from prefmoe.config.edition import RESERVED
from prefmoe.config.outputs import speed_folder
from prefmoe.config.registry import BackboneError, read_registry
from prefmoe.running.runs import Workbench
from prefmoe.system.names import check_name
from prefmoe.system.places import REGISTRY, known_backbones, made_backbones

EDITIONS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def _changed(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    """A copy of the smoke edition, with another name and some text replaced."""
    text = (CONFIG_FOLDER / "smoke.yaml").read_text(encoding="utf-8").replace("name: smoke", "name: changed")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "changed.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", EDITIONS)
def test_every_shipped_edition_is_valid_and_named_like_its_file(name):
    assert load_edition(name).name == name


def test_the_editions_of_the_design_are_there():
    assert {"smoke", "mini", "sample", "paper"} <= set(EDITIONS)


@pytest.mark.parametrize("name", ["smoke", "mini", "paper"])
def test_the_ablation_adds_one_component_at_a_time(name):
    edition = load_edition(name, seeds="all")
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
    smoke, mini = load_edition("smoke"), load_edition("mini", seeds="all")
    assert (smoke.backbones, smoke.table2) == (mini.backbones, mini.table2)
    assert smoke.evaluation.turns == mini.evaluation.turns
    assert {method.kind for method in smoke.methods.values()} == {method.kind for method in mini.methods.values()}
    asking = {kind for kind, settings in KINDS.items() if not settings.about_choices}
    asking -= {method.kind for method in load_edition("mmpb").methods.values()}  # a protocol with an edition of its own
    asking -= rivals()
    assert {method.kind for method in smoke.methods.values()} == asking
    assert set(smoke.table1) <= set(mini.table1)


def rivals() -> set[str]:
    """The kinds of method that editions of their own have beside the default edition's."""
    default = {method.kind for method in load_edition("mini").methods.values()}
    return {method.kind for method in load_edition("rivals-smoke").methods.values()} - default


def test_the_rivals_are_asked_what_the_default_edition_asks():
    edition, mini = load_edition("rivals"), load_edition("mini")
    for part in ("data", "training", "evaluation", "seeds"):
        assert getattr(edition, part) == getattr(mini, part), part
    for name in set(edition.methods) & set(mini.methods):
        assert edition.methods[name] == mini.methods[name], name
    smoke = load_edition("rivals-smoke")
    assert len(rivals()) == 6 and smoke.table1 == tuple(smoke.methods) and set(edition.table1) == set(edition.methods)
    ours = {name for name, method in edition.methods.items() if method.kind in rivals()}
    assert {name: edition.methods[name].label for name in ours & set(smoke.methods)} == {
        name: method.label for name, method in smoke.methods.items() if method.kind in rivals()
    }


def test_every_published_setting_in_miniature_is_the_paper_editions():
    edition, mini, paper = (load_edition(name) for name in ("published-mini", "mini", "paper"))
    assert edition.data == mini.data
    assert edition.evaluation == mini.evaluation.model_copy(update={"max_new_tokens": paper.evaluation.max_new_tokens})
    size = ("steps", "batch_size", "checkpoint_every", "gradient_checkpointing")
    own_size = {name: getattr(edition.training, name) for name in size}
    assert edition.training == paper.training.model_copy(update=own_size)
    tuned, ranks = ("label", "lr", "lr_user"), ("last_layers", "preference_rank", "user_rank", "profile_rank")
    for ours, theirs, own in (
        ("AsPublished", "PrefMoE", (*tuned, *ranks, "counterfactual_users", "counterfactual_source")),
        ("LoRA-profile", "LoRA", ("label", "lr", "rank")),
    ):
        one = edition.methods[ours]
        assert one == paper.methods[theirs].model_copy(update={name: getattr(one, name) for name in own}), ours
    assert edition.methods["PrefMoE"].with_settings(
        {name: getattr(mini.methods["PrefMoE"], name) for name in ("lr", "lr_user")}
    ) == mini.methods["PrefMoE"]  # fmt: skip


def test_the_ladder_is_asked_what_the_default_edition_asks_in_the_same_way():
    edition, mini = load_edition("ladder"), load_edition("mini")
    assert (edition.data, edition.training, edition.seeds) == (mini.data, mini.training, mini.seeds)
    less = {"turns": (0,), "splits": ("test",), "controls": ()}
    assert edition.evaluation == mini.evaluation.model_copy(update=less)
    for name, method in edition.methods.items():
        assert method == mini.methods[name], name
    assert set(edition.backbones) <= {name for name, how in made_backbones().items() if "pretrain.py" in how}
    assert set(edition.table1) == set(edition.methods)


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
    edition = load_edition("mini", seeds="all")
    assert len(edition.runs()) == len(set(edition.runs())) == 2 * len(edition.table1) - len(edition.rivals) + 4


def test_a_rival_is_run_on_the_ablation_backbone_alone(tmp_path):
    rival = ("table1:", "rivals: [FFT, LOVA3]\ntable1:")
    edition, before = load_edition(_changed(tmp_path, rival)), load_edition("smoke")
    left_out = [("qwen2.5-vl-mini", "FFT"), ("qwen2.5-vl-mini", "LOVA3")]
    assert edition.ablation_backbone == "llava-mini"
    assert edition.runs() == [pair for pair in before.runs() if pair not in left_out]
    assert set(left_out) < set(before.runs()) and len(before.runs()) - len(edition.runs()) == 2


def test_rivals_need_an_ablation_backbone(tmp_path):
    text = _changed(tmp_path).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("table2:", "ablation_backbone:"))]
    path = tmp_path / "changed.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load_edition(path).ablation_backbone is None
    path.write_text("\n".join([*lines, "rivals: [FFT]"]), encoding="utf-8")
    with pytest.raises(ConfigError, match="ablation_backbone must be one of llava-mini, qwen2.5-vl-mini"):
        load_edition(path)


def test_more_seeds_are_those_of_a_method_in_the_place_of_the_editions(tmp_path):
    edition = load_edition(_changed(tmp_path, ("seeds: [0]", "seeds: [0]\nmore_seeds: {LoRA: [2, 0], NT: [0, 1]}")))
    assert edition.seeds_of("LoRA") == (2, 0) and edition.seeds_of("PrefMoE") == (0,)
    assert edition.seeds_of("NT") == (0,), "nothing is trained, hence nothing random"
    drawn = load_edition("generation-mini", seeds="all")
    assert drawn.seeds_of("Wrong") == drawn.seeds_of("All") == (0, 1, 2), "it shows what three trainings have learned"
    assert drawn.seeds_of("Like") == (0,) == drawn.seeds_of("Words"), "no more are asked for"


def test_a_short_run_has_the_first_seeds_and_all_of_them_where_all_are_asked_for(tmp_path, monkeypatch):
    changes = ("seeds: [0]", "seeds: [3, 1, 2]\nmore_seeds: {LoRA: [1, 3, 2, 5]}\nat_first: 2")
    path = _changed(tmp_path, changes)
    assert [load_edition(path).seeds_of(name) for name in ("PrefMoE", "LoRA")] == [(3, 1), (1, 3)]
    monkeypatch.setenv("PREFMOE_SEEDS", "all")
    assert [load_edition(path).seeds_of(name) for name in ("PrefMoE", "LoRA")] == [(3, 1, 2), (1, 3, 2, 5)]
    assert load_edition(path, seeds="1").seeds_of("LoRA") == (1,), "what is said in words comes first"
    monkeypatch.setenv("PREFMOE_SEEDS", "")
    assert load_edition(path).seeds == (3, 1)
    for wrong in ("0", "-1", "two", "1.5", "5", "99"):
        with pytest.raises(ConfigError, match=f"seeds: expected a number from 1 to 4, or all, got '{wrong}'"):
            load_edition(path, seeds=wrong)


def test_methods_that_are_made_later_are_left_out_unless_seeds_are_asked_for(tmp_path):
    later = "seeds: [0, 1]\nat_first: 1\nlater: [EPI, FFT, LOVA3]\nrivals: [LOVA3, NT]"
    path = _changed(tmp_path, ("seeds: [0]", later))
    first, whole = load_edition(path), load_edition(path, seeds="all")
    assert set(whole.table1) - set(first.table1) == {"FFT", "LOVA3"} and first.rivals == ("NT",)
    assert [name for name in whole.table2 if name not in first.table2] == ["EPI"]
    left_out = [("llava-mini", "FFT"), ("llava-mini", "LOVA3"), ("llava-mini", "EPI"), ("qwen2.5-vl-mini", "FFT")]
    assert [pair for pair in whole.runs() if pair not in first.runs()] == sorted(left_out, key=whole.runs().index)
    assert first.methods == whole.methods, "other commands know them all"
    assert first.with_settings({"training.steps": 5}).runs() == first.runs(), "a changed copy stays as it is"
    assert load_edition(path, seeds="1").runs() == whole.runs()


def test_the_default_edition_makes_every_row_of_the_papers_table_at_first():
    first = load_edition("mini")
    trained = {"LoRA-profile", "LoRA", "FFT-profile", "SoftPrompt", "YoLLaVA", "LOVA3", "TG-LLaVA", "PrefMoE"}
    assert {*trained, "NT-profile", "NT-image", "NT"} <= {*first.table1}
    assert first.table2[0] == "E" and first.table2[-1] == "PrefMoE", "what is tested of the ablation"


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
        ("kind: fft", "kind: ftt", "methods.FFT: unknown kind of method 'ftt'; known kinds: .*nontuned, .*mean 'fft'"),
        ("components: EPIC}", "components: EPC}", "non-empty prefix of EPICDM, got 'EPC'"),
        ("table1: [NT-profile", "table1: [NT-profil", "table1 names methods that are not defined: NT-profil"),
        ("ablation_backbone: llava-mini", "ablation_backbone: llava-1.5-7b", "ablation_backbone must be one of"),
        ("label: LoRA,", "label: Full fine-tuning,", "given to several methods: Full fine-tuning"),
        ("name: changed", "name: mini", "name: expected 'changed' as in the file's name"),
        ("  steps: 4", "  steps: 4\n  steps: 5", "training.steps: given twice, again in line"),
        ("seeds: [0]", "seeds: [0, 1", "not valid YAML"),
        ("  steps: 4", "  steps: yes", "training: steps: expected numbers alone; yes, no, .* as truths"),
        ("turns: [0, 10]", "turns: [no, 10]", "evaluation: turns: expected numbers alone; yes, no, on"),
        ("lr: 1.0e-3", "lr: on", "methods.FFT.fft: lr: expected numbers alone; yes, no, on"),
        ("seeds: [0]", "seeds: [yes]", "seeds: expected numbers alone; yes, no, on"),
        ("turns: [0, 10]", "turns: [0, 10000000]", "evaluation.turns.1: Input should be less than or equal to 10000"),
        ("kind: miniature", "kind: minature", "data: .*'minature'"),
        ("turns: [0, 10]", "turns: [-1]", r"evaluation.turns.0: Input should be greater than or equal to 0 \(got -1"),
        ("turns: [0, 10]", "turns: [0, 0]", "evaluation.turns: given more than once: 0"),
        ("turns: [0, 10]", "turns: []", "evaluation.turns: Tuple should have at least 1 item"),
        ("turns: [0, 10]", "unseen_turns: [2, 2]", "evaluation.unseen_turns: given more than once: 2"),
        ("turns: [0, 10]", "splits: [test, unsene]", "evaluation.splits.1: .*'unseen' \\(got 'unsene'"),
        ("turns: [0, 10]", "splits: [test, test]", "evaluation.splits: given more than once: test"),
        ("seeds: [0]", "seeds: [0, 1, 0]", "seeds: given more than once: 0"),
        ("seeds: [0]", "seeds: [-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("  seed: 0", "  seed: -3", "data.miniature.seed: Input should be greater than or equal to 0"),
        ("backbones: [llava-mini, ", "backbones: [llava-mini, llava-mini, ", "backbones: given more than once: llava-"),
        ("table1: [NT-profile, ", "table1: [NT-profile, LoRA, NT-profile, ", "table1: given more than once: NT-prof"),
        ("table2: [E, ", "table2: [E, E, ", "table2: given more than once: E"),
        ("seeds: [0]", "seeds: [2024-13-45]", r"changed.yaml: not valid YAML: month must be in 1..12\n.* line 4"),
        ("seeds: [0]", "seeds: [!!int x]", r"changed.yaml: not valid YAML: invalid literal .*'x'\n.* line 4"),
        ("seeds: [0]", "seeds: [!!bool x]", r"changed.yaml: not valid YAML: 'x'\n.* line 4, column 9"),
        ("seeds: [0]", "seeds: &seeds {more: *seeds}", "changed.yaml: expected a mapping of settings, found one nest"),
        ("lr: 1.0e-3", "lr: .inf", "methods.FFT.fft.lr: Input should be a finite number"),
        ("lr: 1.0e-3", "lr: .nan", "methods.FFT.fft.lr: Input should be "),
        ("  LoRA:", "  a: {kind: nontuned, label: x, profile: none}\n  A:", "in capitals alone: a, A"),
        ("  LoRA:", "  $(touch x):", r"methods.\$\(touch x\).*the name '\$\(touch x\)' is refused: expected letters"),
        ("  LoRA:", "  ../LoRA:", "the name '../LoRA' is refused"),
        ("seeds: [0]", "seeds: [0]\nhardware: {processes: 2}", "hardware: processes share a run with launch: ddp"),
        ("seeds: [0]", "seeds: [0]\nhardware: {launch: ddp, processes: 1}", "hardware.processes: .*than or equal to 2"),
        ("seeds: [0]", "seeds: [0]\nhardware: {launch: ddp, processes: 3}",
         "training.batch_size 8 cannot be shared equally among hardware.processes 3"),
        ("table1:", "rivals: [Lora]\ntable1:", "rivals names methods that are not defined: Lora.*did you mean 'LoRA'"),
        ("table1:", "rivals: [EP]\ntable1:", "rivals names methods that table1 does not: EP"),
        ("table1:", "rivals: [FFT, FFT]\ntable1:", "rivals: given more than once: FFT"),
        ("seeds: [0]", "seeds: [0]\nlater: [Lora]", "later names methods that are not defined: Lora.*mean 'LoRA'"),
        ("table1: ", "later: [FFT, LoRA, E]\ntable1: [FFT, LoRA]\n# ", "later names every method of table1: E, FFT, L"),
        ("table1: [", "later: [LoRA]\ntable1: [NT]  # [", "later names what neither table1 nor .*: LoRA"),
        ("seeds: [0]", "seeds: [0]\nlater: [PrefMoE]", "later names what the rest of table2 is .* with: PrefMoE"),
        ("seeds: [0]", "seeds: [0]\nmore_seeds: {Lora: [0, 1]}", "more_seeds names methods that are not defined: Lora"),
        ("seeds: [0]", "seeds: [0]\nmore_seeds: {LoRA: [1, 2]}",
         "more_seeds has to hold the edition's seeds too, for LoRA"),
        ("seeds: [0]", "seeds: [0]\nmore_seeds: {LoRA: [0, 1, 1]}", "more_seeds.LoRA: given more than once: 1"),
        ("seeds: [0]", "seeds: [0]\nmore_seeds: {LoRA: []}", "more_seeds.LoRA: Tuple should have at least 1 item"),
        ("seeds: [0]", "seeds: [0]\nmore_seeds: {LoRA: [0, -1]}", "more_seeds.LoRA.1: Input should be greater than or"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_mistake_is_named(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load_edition(_changed(tmp_path, (old, new)))


def test_a_file_without_settings_is_refused(tmp_path):
    (tmp_path / "listed.yaml").write_text("- a list\n")
    with pytest.raises(ConfigError, match="expected a mapping of settings, found list"):
        load_edition(tmp_path / "listed.yaml")


def test_settings_in_a_pipe_or_a_folder_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(BackboneError, match="pipe.yaml: cannot be read: Not a regular file"):
        read_registry(tmp_path / "pipe.yaml")
    with pytest.raises(BackboneError, match=": cannot be read: Is a directory"):
        read_registry(tmp_path)


@pytest.mark.parametrize("name", ["$(touch x)", "../mini", "a b", "-n", ".hidden", "mini\n", "", "é", "x" * 101, "a;b"])
def test_what_could_be_no_file_or_word_of_a_command_is_no_name(tmp_path, name):
    with pytest.raises(ValueError, match="is refused: expected letters, digits, dots"):
        check_name(name)
    with pytest.raises(ConfigError, match="of an edition is refused: expected letters, digits, dots"):
        load_edition(name)
    named = {"hub_id": "a/b", "revision": "0" * 40, "model_class": "LlavaForConditionalGeneration"}
    content = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(content | {"backbones": {name: named}}))
    with pytest.raises(BackboneError, match="is refused: expected letters"):
        read_registry(tmp_path / "registry.yaml")


def test_names_that_are_in_use_stay_allowed():
    for path in CONFIG_FOLDER.glob("*.yaml"):
        edition = load_edition(path.stem)
        assert [check_name(name) for name in (edition.name, *edition.backbones, *edition.methods)]


def test_a_file_elsewhere_does_not_take_the_results_of_an_edition(tmp_path):
    shutil.copy(CONFIG_FOLDER / "smoke.yaml", tmp_path)
    with pytest.raises(ConfigError, match="the name 'smoke' is taken by .*smoke.yaml, whose results are in results/"):
        load_edition(tmp_path / "smoke.yaml")
    assert load_edition(CONFIG_FOLDER / "smoke.yaml") == load_edition("smoke")
    assert load_edition(_changed(tmp_path)).name == "changed"


def test_two_files_of_one_name_do_not_share_results(tmp_path):
    files = []
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        files.append(_changed(tmp_path / place))
    for _ in range(2):
        claim_results(load_edition(files[0]), tmp_path / "results")
        claim_results(load_edition("smoke"), tmp_path / "results")
    with pytest.raises(ConfigError, match=f"{files[1]}: .*results/changed is of {files[0]}; give the file"):
        Workbench(files[1], "llava-mini", results=tmp_path / "results")
    files[0].rename(tmp_path / "changed.yaml")
    Workbench(tmp_path / "changed.yaml", "llava-mini", results=tmp_path / "results")
    assert [path.name for path in (tmp_path / "results").rglob("*.txt")] == ["edition.txt"]


@pytest.mark.parametrize("name", [*RESERVED, "Speed"])
def test_a_name_that_another_command_has_taken_is_no_edition_s(tmp_path, name):
    _changed(tmp_path, ("name: changed", f"name: {name}")).rename(tmp_path / f"{name}.yaml")
    with pytest.raises(ConfigError, match=f"{name}.yaml has 1 mis.*\n  name: expected none of any_vlm, .*which other"):
        load_edition(tmp_path / f"{name}.yaml")


def test_every_name_that_another_command_has_taken_is_reserved():
    folders = (speed_folder(), work_folder("llava-mini").parent, explorer_page.CACHE)
    assert {publish.ONLY_PAGES, publish.ANY_VLM, *(folder.name for folder in folders)} <= set(RESERVED)
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/scripts").rglob("*.py"))
    rules = (ROOT / "workflow/rules/maintenance.smk").read_text(encoding="utf-8")
    assert set(re.findall(r'\bRESULTS / "(\w+)"', scripts) + re.findall(r'"results/(\w+)/', rules)) <= set(RESERVED)


def test_a_wrong_name_of_a_method_is_answered_with_the_right_one():
    methods = load_edition("mini").methods
    with pytest.raises(ConfigError, match="edition 'mini' has no method 'LORA'; it has NT-profile, .* mean 'LoRA'"):
        methods["LORA"]
    with pytest.raises(ValueError, match="did you mean 'llava-mini'"):
        Edition.model_validate(load_edition("mini").model_dump() | {"backbones": ["lava-mini"]})
    assert "LORA" not in methods and methods.get("LORA") is None


def test_every_kind_of_method_has_a_type_in_the_tables():
    assert {settings.table_type for settings in KINDS.values()} == {"NT", "FFT", "PEFT"}
    for settings in KINDS.values():
        assert issubclass(settings, MethodSettings)
    with pytest.raises(TypeError, match="Forgetful has no table_type"):
        type("Forgetful", (MethodSettings,), {})


def test_known_backbones_are_those_of_the_registry():
    registry = yaml.safe_load((CONFIG_FOLDER.parent / "prefmoe/config/registry.yaml").read_text(encoding="utf-8"))
    assert set(known_backbones()) == set(registry["backbones"])


@pytest.mark.parametrize(
    ("settings", "in_training", "at_test"),
    [
        ({"kind": "nontuned", "profile": "both"}, "nothing", "profile text and picture"),
        ({"kind": "nontuned", "profile": "none"}, "nothing", "name"),
        ({"kind": "fft", "lr": 1e-3}, "name and answers", "name"),
        ({"kind": "fft", "lr": 1e-3, "profile": "text"}, "profile text and answers", "profile text"),
        ({"kind": "soft_prompt", "lr": 1e-3}, "answers", "tokens learned from answers"),
        ({"kind": "soft_prompt", "lr": 1e-3, "profile": "text"}, "profile text and answers",
         "profile text and tokens learned from answers"),
        ({"kind": "prefmoe", "lr": 1e-3, "lr_user": 1e-3}, "anchors of profile text and picture and answers",
         "anchors of profile text and picture"),
        ({"kind": "prefmoe", "lr": 1e-3, "lr_user": 1e-3, "components": "E"}, "answers",
         "tokens learned from answers"),
        ({"kind": "prefmoe", "lr": 1e-3, "lr_user": 1e-3, "components": "E", "user_embedding": "anchors"},
         "anchors of profile text and picture and answers", "anchors of profile text and picture"),
        ({"kind": "prefmoe", "lr": 1e-3, "lr_user": 1e-3, "components": "E", "steps_factor": 0}, "nothing",
         "random tokens"),
        ({"kind": "prefmoe", "lr": 1e-3, "lr_user": 1e-3, "facet_label": "oracle", "steps_factor": 0}, "nothing",
         "anchors of profile text and picture, facet of the question"),
    ],
)  # fmt: skip
def test_settings_say_what_a_method_is_shown_of_users(settings, in_training, at_test):
    method = TypeAdapter(Method).validate_python({"label": "x", **settings})
    assert (method.information_in_training, method.information) == (in_training, at_test)
