"""The memory model against measurements on small models, and what plans and jobs make of it."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
import transformers
from published_deepseek import PUBLISHED
from small_world import METHODS, PREFMOE, model_folder, small_benchmark, small_edition
from torch.autograd.graph import saved_tensors_hooks

from prefmoe.backbones.loading import load_backbone
from prefmoe.cli import main
from prefmoe.config import FIGURES, load_edition
from prefmoe.config.registry import find_backbone
from prefmoe.models.base import Method, build_method
from prefmoe.workflow import lengths, resources

CONFIGS = small_edition(
    "tiny",
    methods={
        **METHODS,
        "LoRA": METHODS["LoRA"] | {"rank": 16, "last_layers": 3},
        "LoRA-linear": METHODS["LoRA"] | {"label": "linear", "targets": "all_linear"},
        "PrefMoE": PREFMOE | {"last_layers": 2, "user_rank": 16},
        "E": PREFMOE | {"label": "E", "components": "E"},
        "EPICD": PREFMOE | {"label": "EPICD", "components": "EPICD", "last_layers": 1},
        "oracle": PREFMOE | {"label": "oracle", "facet_label": "oracle"},
    },
).methods


def build(backbone: str, name: str, dtype: torch.dtype = torch.float32) -> tuple[Method, resources.Shape]:
    shape = resources.shape_of(find_backbone(backbone))
    return build_method(CONFIGS[name], load_backbone(backbone, dtype=dtype), small_benchmark(), seed=0), shape


def kept_for_backward(method: Method, batch) -> int:
    """Bytes of the tensors that autograd keeps after a forward pass, each storage once; weights and inputs not."""
    own = {t.untyped_storage().data_ptr() for t in [*method.parameters(), *method.buffers(), *batch.inputs.values()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with method.context(batch), saved_tensors_hooks(note, lambda tensor: tensor):
        sum(method.training_losses(batch).values())
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("backbone", "name"),
    [*(("llava-mini", name) for name in CONFIGS), ("qwen2.5-vl-mini", "FFT"), ("llava_onevision", "FFT")],
)
def test_bytes_of_parameters_gradients_and_optimiser_are_exact(backbone, name):
    method, shape = build(str(model_folder(backbone)) if backbone == "llava_onevision" else backbone, name)
    users = len(small_benchmark().trained_users) if name == "E" else len(small_benchmark().users)
    expected = resources.training_memory(CONFIGS[name], shape, users=users, tokens=0, width=4)
    anchors = getattr(getattr(method, "user_state", None), "anchors", torch.empty(0))
    assert sum(p.nbytes for p in method.parameters()) + anchors.nbytes == expected.parameters
    if name == "NT":
        assert expected.gradients == expected.optimiser == 0
        return
    batch = method.collator(method.benchmark.select("train")[:4], with_answer=True)
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=1e-3)
    with method.context(batch):
        sum(method.training_losses(batch).values()).backward()
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is None:  # weights behind the layer of the tower that is read
            parameter.grad = torch.zeros_like(parameter)
    assert sum(p.grad.nbytes for p in method.parameters() if p.grad is not None) == expected.gradients
    optimizer.step()
    moments = [v for state in optimizer.state.values() for key, v in state.items() if key != "step"]
    assert sum(v.nbytes for v in moments) == expected.optimiser
    assert method.describe()["trainable_total"] == resources.trained_parameters(CONFIGS[name], shape, users)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("backbone", "name"),
    [("llava-mini", "FFT"), ("llava-mini", "LoRA"), ("llava-mini", "PrefMoE"), ("qwen2.5-vl-mini", "PrefMoE")],
)
def test_activations_are_within_the_stated_factor(backbone, dtype, name):
    method, shape = build(backbone, name, dtype)
    batch = method.collator(method.benchmark.select("train")[:16], with_answer=True)
    method.train()
    tokens, width = batch.inputs["input_ids"].numel(), dtype.itemsize
    expected = resources.training_memory(CONFIGS[name], shape, users=7, tokens=tokens, width=width)
    measured = kept_for_backward(method, batch)
    if name == "FFT" and width < 4:  # autocast's copies of weights count as parameters
        measured -= width * resources.trained_parameters(CONFIGS[name], shape, 7)
    assert 1 / 1.5 < measured / expected.activations < 1.5


def test_gradient_checkpointing_keeps_a_layers_input_and_the_formula_knows():
    method, shape = build("llava-mini", "PrefMoE")
    batch = method.collator(method.benchmark.select("train")[:16], with_answer=True)
    method.train()
    whole = kept_for_backward(method, batch)
    method.model.activation_checkpointing_enable({"use_reentrant": False})
    kept = kept_for_backward(method, batch)
    tokens = batch.inputs["input_ids"].numel()
    assert kept < 0.5 * whole
    options = dict(users=7, tokens=tokens, width=4)
    with_, without = (
        resources.training_memory(CONFIGS["PrefMoE"], shape, **options, checkpointing=value).activations
        for value in (True, False)
    )
    assert kept < with_ < without  # the formula adds the one layer that is being computed again


def test_the_cache_of_keys_and_values_is_exact():
    method, shape = build("llava-mini", "NT")
    batch = method.collator(method.benchmark.select("test")[:5], with_answer=False)
    with torch.no_grad():
        cache = method.model(**batch.inputs, use_cache=True).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    per_token = 2 * shape.layers * shape.key_value_heads * shape.head_size * 4
    assert size == per_token * batch.inputs["input_ids"].numel()


def test_the_registrys_shapes_are_those_of_the_published_configurations():
    """Counted on models without storage; the counts of the Qwen2.5-VL files are printed on their model cards."""
    clip = dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    families = {
        "llava-1.5-7b": "Llava", "llava-next-34b": "LlavaNext", "qwen2.5-vl-7b": "Qwen2_5_VL",
        "idefics2-8b": "Idefics2",
    }  # fmt: skip
    for name, family in families.items():
        shape = find_backbone(name).shape
        text = dict(
            hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads, vocab_size=shape.vocabulary,
            tie_word_embeddings=False,
        )  # fmt: skip
        if family == "Qwen2_5_VL":
            vision: object = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
                                  out_hidden_size=shape.hidden)  # fmt: skip
        elif family == "Idefics2":
            text = transformers.MistralConfig(**text)
            vision = dict(hidden_size=1152, image_size=980, intermediate_size=4304, num_attention_heads=16,
                          num_hidden_layers=27, patch_size=14)  # fmt: skip
        else:
            text, vision = transformers.LlamaConfig(**text), transformers.CLIPVisionConfig(**clip)
        config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
        with torch.device("meta"):
            model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
        assert sum(p.numel() for p in model.parameters()) == shape.parameters
        if family == "Idefics2":
            assert config.perceiver_config.resampler_n_latents == shape.image_tokens
            assert sum(p.numel() for p in model.model.connector.parameters()) == shape.connector
            vocabulary = sum(m.weight.numel() for m in (model.lm_head, model.get_input_embeddings()))
            layers = sum(p.numel() for p in model.model.text_model.parameters()) - vocabulary // 2
            assert shape.decoder == layers, "a connector of 743 million weights is not quantised"
        tower = model.get_submodule(find_backbone(name).paths.vision_tower)
        merger = tower.merger.parameters() if family == "Qwen2_5_VL" else ()
        newline = [p for part, p in model.named_parameters() if part.endswith("image_newline")]
        fixed = sum(p.numel() for p in [*tower.parameters(), *newline])
        assert fixed - sum(p.numel() for p in merger) == shape.vision


def test_positions_are_those_of_the_published_configurations_and_of_folders():
    published = {name.replace("_", "-"): language["max_position_embeddings"] for name, language in PUBLISHED.items()}
    assert lengths.POSITIONS == published
    assert {name: lengths.positions_of(find_backbone(name)) for name in published} == published
    assert lengths.positions_of(find_backbone("llava-mini")) == 1024
    assert lengths.positions_of(find_backbone("llava-next-34b")) is None


def test_three_pictures_are_not_cut_into_tiles_by_a_class_that_cuts_two_at_most():
    edition, entry = load_edition("mmpb"), find_backbone("deepseek-vl2")
    one, three = (lengths.longest(edition, edition.methods[name], entry) for name in ("text", "pictures"))
    tile = 14 * 15 + 1 + 14 * 15  # 14 rows of 14 tokens and an end, of the whole and of its only tile; one between
    described = lengths.DESCRIPTION_TOKENS["moderate"]
    assert three - one == 3 * tile - entry.shape.image_tokens - described


def test_a_plan_warns_of_prompts_that_a_backbone_may_have_no_positions_for(monkeypatch, capsys):
    edition = load_edition("mmpb").model_copy(update={"backbones": ("llava-mini",), "ablation_backbone": "llava-mini"})
    monkeypatch.setattr(resources, "load_edition", lambda _: edition)
    table = resources.table("mmpb").set_index("method")
    assert table["tokens"].idxmax() == "super-detailed" and set(table["positions"]) == {1024}
    assert main(["plan", "mmpb"]) == 0
    said = capsys.readouterr().out
    warned = re.findall(r"^warning: (\S+) on llava-mini: up to ([\d,]+) tokens, .* 1,024 pos", said, re.M)
    long = table[table["tokens"] > 1024]
    assert warned == [(name, f"{tokens:,}") for name, tokens in long["tokens"].items()] and 0 < len(warned) < len(table)
    drops = edition.evaluation.model_copy(update={"too_long": "drop_small_talk"})
    edition = edition.model_copy(update={"evaluation": drops})  # ten turns of 40 tokens
    assert (resources.table("mmpb").set_index("method")["tokens"] == table["tokens"] - 400).all()
    edition = edition.model_copy(update={"backbones": ("llava-next-34b",), "ablation_backbone": "llava-next-34b"})
    assert not resources.warnings("mmpb") and set(resources.table("mmpb")["positions"]) == {"?"}


def test_settings_that_save_memory_do_and_the_expensive_methods_cost_more():
    edition = load_edition("paper")

    def training(backbone="llava-1.5-7b", method="PrefMoE", **changes) -> int:
        parts = {"hardware": {}, "training": {}}
        for key, value in changes.items():
            parts["training" if hasattr(edition.training, key) else "hardware"][key] = value
        changed = edition.model_copy(
            update={part: getattr(edition, part).model_copy(update=values) for part, values in parts.items()}
        )
        return resources.needs(changed, backbone, method).training

    assert training(four_bit=True) < 0.5 * training(four_bit=False)
    assert training(gradient_checkpointing=True) < training(gradient_checkpointing=False)
    assert training(batch_size=1) < training(batch_size=4)
    assert training(method="FFT") > 5 * training()
    assert training("qwen2.5-vl-72b") > 5 * training("qwen2.5-vl-7b") > 5 * 16e9


@pytest.mark.parametrize("edition", ["paper", "mini"])
def test_a_plan_has_a_row_for_every_run_and_needs_no_download(edition, capsys):
    assert main(["plan", edition]) == 0
    printed = capsys.readouterr().out
    settings = load_edition(edition)
    table = resources.table(edition)
    assert set(zip(table["backbone"], table["method"], strict=True)) == set(settings.runs())
    for backbone in settings.backbones:
        assert backbone in printed
    assert "This machine: " in printed
    assert (table["H100_hours"] == "-").all() if edition == "mini" else (table["H100_hours"] > 0).all()
    assert (table["GPUs"] > 0).all() == (edition == "paper")
    assert table["fits"].str.contains("evaluate").all() == (edition == "mini")


def test_planned_seconds_per_step_are_half_to_all_of_the_measured_ones():
    edition, shape = load_edition("paper"), find_backbone("llava-1.5-7b").shape
    methods = {method.label: method for method in edition.methods.values()}
    table = pd.read_csv(FIGURES / "speed/full_size.csv")
    for row in table.itertuples():
        kept = {"batch_size": row.batch_size, "gradient_checkpointing": row.gradient_checkpointing}
        here = edition.model_copy(update={"training": edition.training.model_copy(update=kept)})
        planned = resources.seconds_per_step(here, methods[row.method], shape)
        assert planned == pytest.approx(row.planned_seconds_per_step, rel=1e-5), row
        assert 0.5 * row.seconds_per_step < planned < row.seconds_per_step, row
    assert {"LoRA", "PrefMoE"} <= {*table["method"]}


def test_a_miniatures_steps_are_far_from_the_formula_so_that_its_plan_has_no_hours():
    edition, shape = load_edition("mini"), resources.shape_of(find_backbone("llava-mini"))
    table = pd.read_csv(FIGURES / "speed/cpu.csv")
    steps = table[table["setting"] == "mini, llava-mini, batch 16, processor time"].set_index("variant")["median_ms"]
    for variant, method in (("LoRA, same layers", "LoRA"), ("PrefMoE", "PrefMoE")):
        planned = resources.seconds_per_step(edition, edition.methods[method], shape)
        assert steps[variant] / 1000 > 1000 * planned > 0, variant
    assert resources.seconds_per_step(edition, edition.methods["NT"], shape) == 0


def test_jobs_ask_for_what_their_runs_need():
    edition = load_edition("paper")
    small = resources.job(edition, [("llava-1.5-7b", "PrefMoE")], training=True)
    large = resources.job(edition, [("qwen2.5-vl-72b", "PrefMoE")], training=True)
    assert small["gpus"] == 1 < large["gpus"]
    assert small["mem_mb"] > 14_000 and large["mem_mb"] > 146_000 and large["runtime"] > small["runtime"] > 30
    both = resources.job(edition, [("llava-1.5-7b", "PrefMoE"), ("qwen2.5-vl-72b", "PrefMoE")], training=True)
    assert both == large
    shared = {"launch": "ddp", "processes": 4}
    edition = edition.model_copy(update={"hardware": edition.hardware.model_copy(update=shared)})
    assert resources.job(edition, [("llava-1.5-7b", "PrefMoE")], training=True)["gpus"] == 4
    assert resources.job(load_edition("mini"), [("llava-mini", "PrefMoE")], training=True)["gpus"] == 0


def test_a_workflow_is_planned_without_torch():
    """Planning the paper's edition takes a third of the time."""
    code = (
        "import sys, prefmoe.workflow.resources; sys.exit(not sys.modules.keys().isdisjoint({'torch', 'transformers'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
