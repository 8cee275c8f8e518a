"""The baselines: what each trains, what it shows in prompts, and that it comes back from disk."""

import pytest
import torch
from tiny_models import DEEPSEEK_VL2

from prefmoe.backbones.pictures import stack_pictures
from prefmoe.config import FullFineTuningMethod, LoRAMethod, NonTunedMethod
from prefmoe.models.base import Method, build_method
from prefmoe.models.baselines import FullFineTuning, LoRA, NonTuned
from prefmoe.models.lora import merged_lora

FFT = FullFineTuningMethod(kind="fft", label="FFT", lr=1e-3)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", *DEEPSEEK_VL2])


def lora(**changes) -> LoRAMethod:
    return LoRAMethod(**(dict(kind="lora", label="LoRA", lr=3e-3, rank=4, alpha=8, dropout=0.0) | changes))


def non_tuned(profile: str) -> NonTunedMethod:
    return NonTunedMethod(kind="nontuned", label="NT", profile=profile)


def fit(method: Method, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=0.0)
    batch, log = method.collator(method.benchmark.select("train")[::3], with_answer=True), []
    method.train()
    for _ in range(steps):
        with method.context(batch):
            (loss,) = method.training_losses(batch).values()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log.append(float(loss.detach()))
    method.eval()
    return log


@torch.no_grad()
def logits(method: Method) -> torch.Tensor:
    batch = method.collator(method.benchmark.select("test")[:4], with_answer=False)
    with method.context(batch):
        return method.model(**batch.inputs).logits


@BOTH
@pytest.mark.parametrize("config", [FFT, lora()], ids=lambda config: config.kind)
def test_it_learns_and_comes_back_from_disk(tiny_backbone, tiny_benchmark, tmp_path, kind, config):
    method = build_method(config, tiny_backbone(kind), tiny_benchmark, seed=0)
    log = fit(method, 8)
    assert log[-1] < 0.8 * log[0]
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, tiny_backbone(kind), tiny_benchmark)
    assert type(loaded) is type(method)
    assert torch.equal(logits(loaded), logits(method))


@BOTH
def test_the_answer_loss_is_that_of_the_model_itself(tiny_backbone, tiny_benchmark, kind):
    method = build_method(FFT, tiny_backbone(kind), tiny_benchmark, seed=0)
    batch = method.collator(tiny_benchmark.select("train")[:5], with_answer=True)
    with torch.no_grad():
        ours = method.training_losses(batch)["answer"]
        theirs = method.model(**batch.inputs, labels=batch.labels).loss
    torch.testing.assert_close(ours, theirs)
    unlabelled = method.collator(tiny_benchmark.select("train")[:5], with_answer=False)
    with pytest.raises(ValueError, match="with_answer=True"):
        method.training_losses(unlabelled)


@BOTH
def test_full_fine_tuning_trains_everything_but_the_vision_tower(tiny_backbone, tiny_benchmark, kind):
    method = build_method(FFT, tiny_backbone(kind), tiny_benchmark, seed=0)
    backbone = method.backbone
    projector = set(map(id, backbone.projector.parameters()))
    tower = {id(p) for p in backbone.vision_tower.parameters()} - projector
    for parameter in method.model.parameters():
        assert parameter.requires_grad == (id(parameter) not in tower)
    batch = method.collator(tiny_benchmark.select("train")[::3], with_answer=True)
    method.training_losses(batch)["answer"].backward()
    for part in (backbone.projector, backbone.lm_head, backbone.layers[0]):
        assert all(p.grad is not None for p in part.parameters())
    (group,) = method.parameter_groups()
    assert method.describe()["trainable_total"] == sum(p.numel() for p in group["params"])


@BOTH
def test_lora_adapts_the_named_projections_of_the_language_model_only(tiny_backbone, tiny_benchmark, kind):
    method = build_method(lora(last_layers=2), tiny_backbone(kind), tiny_benchmark, seed=0)
    assert isinstance(method, LoRA)
    names = {name for name, p in method.model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * 6
    assert all("lora_" in name and name.startswith("model.language_model.layers.") for name in names)
    assert {name.split(".")[3] for name in names} == {"1", "2"}
    fit(method, 1)
    plain = tiny_backbone(kind).model.state_dict()
    for name, value in method.model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, plain[name.replace(".base_layer", "")])


def test_untrained_lora_is_the_backbone_and_its_update_is_scaled_by_alpha_over_rank(tiny_backbone, tiny_benchmark):
    method = build_method(lora(), tiny_backbone(), tiny_benchmark, seed=0)
    plain = build_method(non_tuned("none"), tiny_backbone(), tiny_benchmark, seed=0)
    torch.testing.assert_close(logits(method), logits(plain))
    layer = method.backbone.layers[0].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(B)
    x = torch.randn(2, 3, layer.in_features)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 8 / 4 * x @ A.T @ B.T)


@BOTH
def test_merged_lora_answers_alike_and_leaves_no_trace(tiny_backbone, tiny_benchmark, kind):
    method = build_method(lora(), tiny_backbone(kind), tiny_benchmark, seed=0)
    fit(method, 4)
    before, apart = {name: value.clone() for name, value in method.model.state_dict().items()}, logits(method)
    with pytest.raises(KeyboardInterrupt), merged_lora(method.model):
        torch.testing.assert_close(logits(method), apart, rtol=1e-3, atol=1e-4)
        changed = [name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])]
        assert changed and all(name.endswith("base_layer.weight") for name in changed)
        assert len(changed) == sum(name.endswith("base_layer.weight") for name in before)
        raise KeyboardInterrupt
    after = method.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits(method), apart)


def test_weights_that_merging_would_round_stay_apart(tiny_backbone, tiny_benchmark):
    backbone = tiny_backbone("llava")
    backbone.model.to(torch.bfloat16)
    method = build_method(lora(), backbone, tiny_benchmark, seed=0)
    for parameter in method.adapted["lora"][0]:
        torch.nn.init.ones_(parameter)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    with merged_lora(method.model):
        assert all(torch.equal(value, before[name]) for name, value in method.model.state_dict().items())


@pytest.mark.parametrize("rank", [1, 12])
def test_lora_trains_its_rank_times_the_inputs_and_outputs_of_what_it_adapts(tiny_backbone, tiny_benchmark, rank):
    fresh = tiny_backbone()
    method = build_method(lora(rank=rank, last_layers=2), tiny_backbone(), tiny_benchmark, seed=0)
    adapted = [fresh.model.get_submodule(name) for name in fresh.target_modules(2)]
    per_rank = sum(layer.in_features + layer.out_features for layer in adapted)
    assert method.describe()["trainable_total"] == rank * per_rank


def test_a_non_tuned_model_trains_nothing_and_reads_the_profile_if_told_to(tiny_backbone, tiny_benchmark):
    with_profile, without = (
        build_method(non_tuned(profile), tiny_backbone(), tiny_benchmark, seed=0) for profile in ("text", "none")
    )
    assert isinstance(without, NonTuned)
    assert without.parameter_groups() == [] and without.describe()["trainable_total"] == 0
    example = tiny_benchmark.select("test")[:1]
    long, short = (m.collator(example, with_answer=False).inputs["input_ids"] for m in (with_profile, without))
    assert long.shape[1] > short.shape[1] + 10
    assert with_profile.gates() == {} and with_profile.prefix_length == 0


def test_describe_is_json(tiny_backbone, tiny_benchmark):
    import json

    for config in (FFT, lora(), non_tuned("text")):
        method = build_method(config, tiny_backbone(), tiny_benchmark, seed=0)
        assert json.loads(json.dumps(method.describe()))["kind"] == config.kind
    assert isinstance(build_method(FFT, tiny_backbone(), tiny_benchmark, seed=0), FullFineTuning)


@BOTH
@pytest.mark.parametrize(("profile", "says_preferences"), [("image", False), ("both", True)])
def test_a_non_tuned_model_sees_the_profile_picture_first(
    tiny_backbone, tiny_benchmark, kind, profile, says_preferences
):
    method = build_method(non_tuned(profile), tiny_backbone(kind), tiny_benchmark, seed=0)
    examples = tiny_benchmark.select("test")[:3]
    for example in examples:
        user = tiny_benchmark.users[example.name]
        encoded = method.collator.encode(example, tiny_benchmark.transcripts[0])
        first, rest = encoded.prompt.split("I got it.")
        image = method.backbone.entry.image_token
        assert first.count(image) == rest.count(image) == 1
        assert user.name in first and example.name in rest and "how are you?" in rest
        assert ("enjoys" in first) == (user.description in first) == says_preferences
        pictures = [method.backbone.process_pictures([p]) for p in (user.image, example.image)]
        expected = stack_pictures(pictures)["pixel_values"]
        assert torch.equal(encoded.pictures.inputs["pixel_values"], expected)
    batch = method.collator(examples, with_answer=False)
    out = method.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    assert len(out) == 3
