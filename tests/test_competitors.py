"""What the methods PrefMoE is compared with promise: training, answers, files."""

import json
from functools import partial

import pytest
import torch
from method_checks import assert_backbone_unchanged, batch_of, fit, logits, moved_by, trained_names
from pydantic import TypeAdapter
from tiny_models import going_on

from prefmoe import config
from prefmoe.config import Training
from prefmoe.data.benchmark import User
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.running.training import train

LORA = dict(lr=3e-3, rank=2, alpha=2, dropout=0.0)
CONFIGS = {
    "soft_prompt": dict(lr=1e-2, tokens=3),
    "yollava": dict(lr=1e-2, tokens=3, recognition=0.5, hard_negatives=2),
    "lova3": dict(**LORA, asking=0.5, assessing=0.5),
    "tg_llava": dict(**LORA, lr_guidance=3e-3, side=4, latents=3),
    "retrieved": dict(**LORA, statements=2),
    "embedding_prefix": dict(lr=1e-2, tokens=2, width=16, pooled_rank=1),
    "history": dict(lr=1e-2, width=16),
    "graph_experts": dict(lr=3e-3, kinds=4, size=8, experts=2, expert_rank=1, pooled_rank=1, neighbours=2),
    "joint_tokens": dict(lr=1e-2, tokens=2, together=2),
    "user_lora": dict(lr=3e-3, rank=2, alpha=2, pooled_rank=2),
}
SERVES_NEW_USERS = ("lova3", "tg_llava", "retrieved", "user_lora", "embedding_prefix", "history")
SERVES_NEW_USERS += ("graph_experts", "joint_tokens")
BACKBONES = pytest.mark.parametrize("backbone", ["llava", "qwen2_5_vl"])
KINDS = pytest.mark.parametrize("kind", CONFIGS)


def configuration(kind: str) -> config.Method:
    return TypeAdapter(config.Method).validate_python({"kind": kind, "label": kind, **CONFIGS[kind]})


@pytest.fixture(scope="module")
def fresh(tiny_backbone):
    """fresh(architecture): a tiny backbone that goes on with what the module's others saw."""
    return going_on(partial(tiny_backbone, cache_images=True))


@pytest.fixture
def build(fresh, tiny_benchmark):
    def build(kind: str, backbone: str) -> Method:
        return build_method(configuration(kind), fresh(backbone), tiny_benchmark, seed=0)

    return build


@BACKBONES
@KINDS
def test_it_learns_what_it_says_it_trains_and_nothing_else_and_comes_back_from_disk(
    build, fresh, tiny_backbone, tiny_benchmark, tmp_path, kind, backbone
):
    method = build(kind, backbone)
    untrained = logits(method.eval())
    names = trained_names(method.train())
    assert names == {name for name, p in method.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    whether_it_learns = backbone == "llava"  # follows from the method; what moves, from both
    log = fit(method, 20 if whether_it_learns else 6)
    totals = [sum(terms.values()) for terms in log]  # LOVA3 draws its tasks anew in every step
    assert not whether_it_learns or sum(totals[-5:]) < 0.9 * sum(totals[:5])
    assert moved_by(method) == names
    assert_backbone_unchanged(method, lambda: tiny_backbone(backbone))
    described = json.loads(json.dumps(method.describe()))
    assert described["kind"] == kind
    assert described["trainable_total"] == sum(p.numel() for p in method.parameters() if p.requires_grad)
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, fresh(backbone), tiny_benchmark)
    assert type(loaded) is type(method)
    assert torch.equal(logits(loaded), logits(method))
    assert not torch.allclose(logits(loaded), untrained)


class Killed(Exception):
    """Stands for a killed process."""


@KINDS
def test_an_interrupted_training_ends_as_an_uninterrupted_one(build, tiny_benchmark, tmp_path, kind):
    training = Training(steps=4, batch_size=4, checkpoint_every=2)
    examples = tiny_benchmark.select("train")

    def kill(step: int, losses: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    whole, killed, resumed = (build(kind, "llava") for _ in range(3))
    expected = train(whole, examples, training, folder=tmp_path / "whole", seed=1).losses
    with pytest.raises(Killed):
        train(killed, examples, training, folder=tmp_path / "parts", seed=1, on_step=kill)
    found = train(resumed, examples, training, folder=tmp_path / "parts", seed=1)
    assert found.resumed_from == 2
    assert found.losses.equals(expected)
    for group, same in zip(whole.parameter_groups(), resumed.parameter_groups(), strict=True):
        for mine, theirs in zip(group["params"], same["params"], strict=True):
            assert torch.equal(mine, theirs)


@BACKBONES
@KINDS
@torch.no_grad()
def test_generation_begins_where_a_forward_pass_ends(build, kind, backbone):
    """The first token comes from the logits of a forward pass, hooks included; decoding goes on from there."""
    method = build(kind, backbone).eval()
    batch = batch_of(method, method.benchmark.select("test")[:3], with_answer=False)
    with method.context(batch):
        output = method.model.generate(
            **batch.inputs,
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first = method.model(**batch.inputs).logits[:, -1]
    torch.testing.assert_close(output.logits[0], first, rtol=1e-4, atol=1e-4)
    assert output.sequences.shape[0] == 3 and len(output.logits) >= 1


@KINDS
def test_new_users_are_served_or_refused(build, fresh, tiny_benchmark, tmp_path, kind):
    method = build(kind, "llava").eval()
    someone = next(iter(tiny_benchmark.users.values())).model_dump() | {"name": "Eve"}
    if kind not in SERVES_NEW_USERS:
        with pytest.raises(MethodError, match="cannot add 'Eve'.*training questions"):
            method.add_user(User(**someone))
        assert "Eve" not in method.benchmark.users
        return
    before = logits(method)
    assert method.add_user(User(**someone)) == len(tiny_benchmark.users)
    assert torch.equal(logits(method), before)
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, fresh("llava"), tiny_benchmark)
    assert "Eve" in loaded.benchmark.users
    assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize("kind", ["yollava", "tg_llava"])
def test_a_used_backbone_is_refused(build, tiny_benchmark, kind):
    method = build(kind, "llava")
    with pytest.raises(MethodError, match="load it anew"):
        build_method(method.config, method.backbone, tiny_benchmark, seed=0)
