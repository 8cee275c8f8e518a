"""PrefMoE put together on tiny models: exact starts, gradients, switches, checkpointing, saving, new users."""

import json
from dataclasses import replace

import pytest
import torch
from method_checks import fit
from safetensors.torch import load_file, save_file

from prefmoe import losses
from prefmoe.config import COMPONENTS, PrefMoEMethod
from prefmoe.data.benchmark import FACETS, Preference, User
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import CONFIG_FILE, WEIGHTS_FILE, Method, MethodError, build_method
from prefmoe.models.baselines import LoRA
from prefmoe.models.free_users import FreeUsers
from prefmoe.models.moe_lora import MixtureOfLoRA
from prefmoe.models.prefix import PrefixHook, masked_mean
from prefmoe.models.prefmoe import PrefMoE

ALL = [COMPONENTS[:n] for n in range(1, 7)]
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def configuration(components: str = COMPONENTS, **changes) -> PrefMoEMethod:
    small = dict(preference_rank=2, user_rank=4, profile_rank=2, counterfactual_users=7, last_layers=2)
    rates = dict(lr=3e-3, lr_user=1e-2)
    return PrefMoEMethod(kind="prefmoe", label="PrefMoE", components=components, **(small | rates | changes))


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    def build(components=COMPONENTS, kind="llava", *, benchmark=tiny_benchmark, seed=0, **changes) -> PrefMoE:
        return build_method(configuration(components, **changes), tiny_backbone(kind), benchmark, seed=seed)

    return build


def batch_of(method: Method, split: str = "train", with_answer: bool = True, step: int = 3):
    return method.collator(method.benchmark.select(split)[::step], with_answer=with_answer)


def train(method: Method, steps: int, batch=None) -> list[dict[str, float]]:
    return fit(method, steps, batch or batch_of(method))


@torch.no_grad()
def logits(method: Method, batch) -> torch.Tensor:
    with method.context(batch):
        return method.model(**batch.inputs).logits


@BOTH
@pytest.mark.parametrize("components", ALL)
def test_every_prefix_of_the_components_trains(build, kind, components):
    method = build(components, kind)
    terms = {"answer"}
    terms |= (
        {"alignment", "image_contrast", "description_contrast", "residual_contrast"} if "P" in components else set()
    )
    terms |= {"residual_preservation"} if "I" in components else set()
    terms |= {"decorrelation"} if "D" in components else set()
    log = train(method, 6)
    assert set(log[0]) == terms
    assert log[-1]["answer"] < 0.8 * log[0]["answer"]
    assert sum(log[-1].values()) < sum(log[0].values())
    assert (method.counterfactual is not None) == ("C" in components)
    assert set(method.gates()) == ({"task", "preference", "profile"} if "M" in components else set())
    assert method.describe()["trainable_total"] == sum(p.numel() for p in method.parameters() if p.requires_grad)


@BOTH
@pytest.mark.parametrize("components", ["E", "EP", "EPICDM"])
def test_untrained_it_equals_the_backbone_with_its_prefix(build, tiny_backbone, kind, components):
    method = build(components, kind)
    batch = batch_of(method, with_answer=False)
    backbone = tiny_backbone(kind)
    with torch.no_grad(), PrefixHook(backbone.embed_tokens).active(
        method.user_state(batch.user).prefix, batch.prefix_mask
    ):  # fmt: skip
        expected = backbone.model(**batch.inputs).logits
    torch.testing.assert_close(logits(method.eval(), batch), expected, rtol=1e-5, atol=1e-5)


@BOTH
def test_gradients_reach_exactly_what_is_trained(build, kind):
    method = build(kind=kind)
    batch = batch_of(method)
    trained = {id(p) for group in method.parameter_groups() for p in group["params"]}

    def backward():
        with method.context(batch):
            sum(method.training_losses(batch).values()).backward()
        moved = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert {id(p) for p in method.parameters() if p.grad is not None} <= trained
        method.zero_grad()
        return moved

    first = backward()
    assert {name.rsplit(".", 1)[-1] for name in first} == {"B", "delta", "prototypes"}
    with torch.no_grad():
        for module in method.modules():
            if isinstance(module, MixtureOfLoRA):
                module.B.normal_(std=0.1)
    second = backward()
    named = {name for name, p in method.named_parameters() if id(p) in trained}
    assert second == named
    assert {name.split(".")[1] for name in named if name.startswith("router.")} == {
        "task",
        "preference",
        "profile",
        "context",
    }


@pytest.mark.parametrize("components", ["EPICD", "EPICDM"])
@BOTH
def test_gradient_checkpointing_gives_equal_gradients(build, kind, components):
    gradients = []
    for checkpointed in (False, True):
        method = build(components, kind)
        with torch.no_grad():
            for parameter in method.experts:
                parameter.copy_(torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(parameter) / 5)
        if checkpointed:
            method.model.activation_checkpointing_enable()
        method.train()
        batch = batch_of(method)
        with method.context(batch):
            sum(method.training_losses(batch).values()).backward()
        gradients.append([p.grad for group in method.parameter_groups() for p in group["params"]])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_terms_are_the_losses_of_the_parts_with_their_weights(build):
    method = build()
    batch = batch_of(method)
    weights, pseudo = method.config.losses, method.counterfactual
    with torch.no_grad(), method.context(batch):
        terms = method.training_losses(batch)
        tokens = method.user_state(batch.user)
        output = method.model(**batch.inputs, labels=batch.labels, output_hidden_states=True)
    torch.testing.assert_close(terms["answer"], output.loss)
    image, description = tokens.prefix[:, 1], tokens.prefix[:, 2]
    torch.testing.assert_close(terms["alignment"], weights.alignment * losses.profile_alignment(image, description))
    families = [facet for facet in FACETS for _ in range(1)]
    generated = [families[k % 5] for k in range(7)]
    pool = torch.tensor(
        [
            [f == "recognition" or f == g for g in generated]
            for f in (FACETS[i] if i >= 0 else "recognition" for i in batch.facet.tolist())
        ]
    )
    contrast = losses.profile_contrast(image, method.user_state.anchors[batch.user, 1], batch.user, pseudo.image, pool)
    torch.testing.assert_close(terms["image_contrast"], weights.profile_contrast * contrast)
    hidden = output.hidden_states[-1]
    query = torch.stack([h[m].mean(0) for h, m in zip(hidden, batch.query_mask, strict=True)])
    query = query / query.square().mean(1, keepdim=True).sqrt() * method.user_state.residual_rms
    groups = torch.tensor(method.benchmark.groups)[batch.user]
    pair = losses.residual_contrast(tokens.residuals, groups, query, pseudo.residuals, pseudo.groups)
    torch.testing.assert_close(terms["residual_contrast"], 0.2 * pair[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["residual_preservation"], 0.2 * pair[1], rtol=1e-4, atol=1e-5)
    expected = 0.05 * losses.decorrelation(tokens.residuals, tokens.prototypes)
    torch.testing.assert_close(terms["decorrelation"], expected)


@BOTH
def test_gates_are_set_by_the_prompt_and_kept_while_decoding(build, kind):
    method = build(kind=kind)
    train(method, 3)
    batch = batch_of(method, with_answer=False)
    seen = []
    handle = method.router.register_forward_hook(lambda *_: seen.append(method.routing.scale))
    with torch.no_grad(), method.context(batch):
        output = method.model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
        assert method.routing.scale is seen[0] and len(seen) == 1
        gates = method.gates(output)
    handle.remove()
    assert method.routing.scale is None
    assert [tuple(gate.shape) for gate in gates.values()] == [(len(batch), 2), (len(batch), 5), (len(batch), 2)]
    cached = output[:, batch.inputs["input_ids"].shape[1] :]
    with torch.no_grad(), method.context(batch):
        again = method.model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(cached, again[:, batch.inputs["input_ids"].shape[1] :])


def test_answers_do_not_depend_on_the_other_questions_of_a_batch(build):
    method = build()
    train(method, 3)
    examples = method.benchmark.select("test")[:5]
    together = logits(method, method.collator(examples, with_answer=False))[:, -1]
    alone = torch.cat([logits(method, method.collator([e], with_answer=False))[:, -1] for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_gold_facet_is_used_by_the_oracle_alone(build):
    for label, equal in (("none", True), ("oracle", False)):
        method = build(facet_label=label)
        train(method, 3)
        batch = batch_of(method, with_answer=False)
        other = replace(batch, facet=(batch.facet + 1) % 5)
        assert torch.equal(logits(method, batch), logits(method, other)) == equal
    method = build("EPICD", facet_label="oracle")  # an ablation has the settings of the whole
    train(method, 3)
    batch = batch_of(method, with_answer=False)
    assert torch.equal(logits(method, batch), logits(method, replace(batch, facet=(batch.facet + 1) % 5)))


def test_losses_outside_a_context_are_refused_and_nothing_is_left_behind(build, tiny_backbone):
    method = build()
    batch, other = batch_of(method), batch_of(method)
    with pytest.raises(RuntimeError, match="inside context"):
        method.training_losses(batch)
    with method.context(other), pytest.raises(RuntimeError, match="inside context"):
        method.training_losses(batch)
    train(method, 2)
    plain = tiny_backbone().model
    with torch.no_grad():
        expected = plain(**batch.inputs).logits
        torch.testing.assert_close(method.model(**batch.inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_backbone_takes_one_method(build, tiny_benchmark):
    method = build()
    with pytest.raises(MethodError, match="already carries adapters"):
        build_method(configuration(), method.backbone, tiny_benchmark, seed=0)


def test_equal_seeds_give_equal_methods_and_leave_the_global_seed_alone(build):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, third = build("E"), build("E"), build("E", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.user_state.embedding, second.user_state.embedding)
    assert not torch.equal(first.user_state.embedding, third.user_state.embedding)


def test_the_plain_lora_has_the_mixtures_total_rank(build):
    plain, mixture = build("EPICD"), build("EPICDM")
    assert plain.describe()["trainable"]["lora"] == mixture.describe()["trainable"]["experts"]
    assert len(plain.experts) == len(mixture.experts) == 2 * 2 * 6


@pytest.mark.parametrize("components", ["E", "EPICD", "EPICDM"])
def test_saved_and_loaded_it_gives_the_same_answers(build, tiny_backbone, tiny_benchmark, tmp_path, components):
    method = build(components)
    train(method, 3)
    batch = batch_of(method, "test", with_answer=False)
    method.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert not frozen & load_file(tmp_path / WEIGHTS_FILE).keys()
    loaded = PrefMoE.from_pretrained(tmp_path, tiny_backbone(), tiny_benchmark)
    assert loaded.config == method.config
    assert torch.equal(logits(loaded, batch), logits(method, batch))


NO_LOSSES = dict.fromkeys(
    ("alignment", "profile_contrast", "residual_contrast", "residual_preservation", "decorrelation"), 0.0
)


@pytest.mark.parametrize("components", ["E", "EP", "EPICDM"])
def test_a_frozen_user_state_is_read_and_neither_learned_nor_contrasted(
    build, tiny_backbone, tiny_benchmark, tmp_path, components
):
    method = build(components, user_state="frozen", losses=NO_LOSSES)
    before = {name: value.clone() for name, value in method.user_state.state_dict().items()}
    log = train(method, 4)
    assert all(terms.keys() == {"answer"} for terms in log)
    assert log[-1]["answer"] < log[0]["answer"]
    assert all(torch.equal(value, before[name]) for name, value in method.user_state.state_dict().items())
    trained = {"experts", "routers"} if "M" in components else {"lora"}
    assert method.describe()["trainable"].keys() == trained and method.sparse_parameters() == []
    batch = batch_of(method, "test", with_answer=False)
    other = replace(batch, user=batch.user.roll(1))
    assert not torch.allclose(logits(method, batch), logits(method, other))  # the prefix is there all the same
    method.save_pretrained(tmp_path)
    loaded = PrefMoE.from_pretrained(tmp_path, tiny_backbone(), tiny_benchmark)
    assert torch.equal(logits(loaded, batch), logits(method, batch))


def test_terms_without_a_weight_are_computed_where_another_has_one(build):
    method = build("EPICD", losses=NO_LOSSES | {"decorrelation": 0.1})
    terms = train(method, 1)[0]
    assert terms["decorrelation"] > 0 and terms["alignment"] == 0


def test_loading_refuses_other_backbones_users_and_damaged_files(build, tiny_backbone, tiny_benchmark, tmp_path):
    build().save_pretrained(tmp_path)

    def load(backbone=None, benchmark=tiny_benchmark, cls=PrefMoE, folder=tmp_path):
        return cls.from_pretrained(folder, backbone or tiny_backbone(), benchmark)

    with pytest.raises(MethodError, match=r"method.json, backbone.digest: trained on 'tiny-llava' .* \('tiny-qwen"):
        load(tiny_backbone("qwen2_5_vl"))
    fewer = {name: user for name, user in tiny_benchmark.users.items() if name != "Dot"}
    splits = {
        k: tuple(i for i in v if tiny_benchmark.examples[i].name != "Dot") for k, v in tiny_benchmark.splits.items()
    }
    with pytest.raises(MethodError, match="users: trained with 4 users, found 3; missing: 'Dot'"):
        load(benchmark=replace(tiny_benchmark, users=fewer, splits=splits))
    with pytest.raises(MethodError, match="holds a PrefMoE, expected a LoRA"):
        load(cls=LoRA)
    with pytest.raises(MethodError, match="no such folder"):
        load(folder=tmp_path / "nowhere")
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = "user_state.prototypes"
    save_file(tensors | {name: tensors[name][:, :3].contiguous()}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(MethodError, match=r"user_state.prototypes: shape \(5, 3\), expected \(5, 32\)"):
        load()
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(MethodError, match=f"missing or unknown: {name}"):
        load()
    (tmp_path / WEIGHTS_FILE).write_bytes(b"cut")
    with pytest.raises(MethodError, match="cannot be read"):
        load()
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    content["method"]["components"] = "EX"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(MethodError, match="expected the method.json of a saved method"):
        load()


@pytest.fixture
def without_dot(tiny_benchmark):
    """The benchmark before Dot was known, and Dot's profile."""
    users = {name: user for name, user in tiny_benchmark.users.items() if name != "Dot"}
    examples = {i: e for i, e in tiny_benchmark.examples.items() if e.name != "Dot"}
    splits = {k: tuple(i for i in v if i in examples) for k, v in tiny_benchmark.splits.items()}
    benchmark = replace(tiny_benchmark, users=users, examples=examples, splits=splits, digest="without")
    return benchmark, tiny_benchmark.users["Dot"]


@pytest.mark.parametrize(
    ("components", "anchors"), [("EPICDM", "hidden"), ("EPICD", "hidden"), ("EPICDM", "embedding")]
)
def test_an_added_user_has_the_tokens_that_an_untrained_one_would_have(
    build, tiny_backbone, tiny_benchmark, without_dot, tmp_path, components, anchors
):
    benchmark, dot = without_dot
    method = build(components, benchmark=benchmark, anchors=anchors)
    train(method, 3)
    row = method.add_user(dot)
    assert row == 3 and method.benchmark.row("Dot") == 3
    expected, known = encode_users(tiny_backbone(), list(tiny_benchmark.users.values()), anchors)
    state = method.user_state
    torch.testing.assert_close(state.anchors, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(state.known, known) and state.delta[3].abs().max() == 0
    question = tiny_benchmark.select("test")[-1]
    assert question.name == "Dot"
    batch = method.collator([question], with_answer=False)
    answer = logits(method, batch)
    method.save_pretrained(tmp_path)
    loaded = PrefMoE.from_pretrained(tmp_path, tiny_backbone(), benchmark)
    assert list(loaded.benchmark.users) == list(tiny_benchmark.users)
    torch.testing.assert_close(logits(loaded, loaded.collator([question], with_answer=False)), answer)
    with pytest.raises(MethodError, match="'Dot' is known already"):
        method.add_user(dot)


def test_a_free_embedding_gives_new_users_the_mean(build, without_dot):
    benchmark, dot = without_dot
    method = build("E", benchmark=benchmark)
    method.add_user(dot)
    state = method.eval().user_state
    assert isinstance(state, FreeUsers)
    torch.testing.assert_close(state(torch.tensor([3])).prefix[0], state.embedding.mean(0))


def test_a_new_user_may_have_an_unknown_name_and_no_preferences(build, tiny_benchmark):
    method = build()
    images = tiny_benchmark.users["Ann"].images
    some = {"travel": Preference(likes=("tea",), dislikes=())}
    for name, preferences in (("Zweistein", {}), ("Einstein", some)):
        row = method.add_user(
            User(name=name, attribute="human", description="A person.", preferences=preferences, images=images)
        )
        tokens = method.user_state(torch.tensor([row]))
        assert torch.isfinite(tokens.prefix).all()
        assert (tokens.residuals[0].abs().sum(1) > 0).tolist() == [facet in preferences for facet in FACETS]


def test_the_model_card_says_how_to_load_it(build):
    card = build().model_card()
    assert card.startswith("---\nlibrary_name: prefmoe\n") and "4 users" in card
    assert 'PrefMoE.from_pretrained("<this repository>", load_backbone("tiny-llava"), benchmark)' in card


@BOTH
@pytest.mark.parametrize("components", ["EPICD", "EPICDM"])
def test_a_backbone_in_half_precision_has_adapters_in_full(tiny_backbone, tiny_benchmark, kind, components):
    backbone = tiny_backbone(kind, dtype=torch.bfloat16)
    method = build_method(configuration(components), backbone, tiny_benchmark, seed=0)
    assert {p.dtype for group in method.parameter_groups() for p in group["params"]} == {torch.float32}
    log = train(method, 6)
    assert log[-1]["answer"] < 0.8 * log[0]["answer"]


def test_masked_mean_equals_a_loop():
    torch.manual_seed(0)
    values, mask = torch.randn(3, 5, 4), torch.rand(3, 5) > 0.4
    mask[2] = False
    expected = torch.stack([v[m].mean(0) if m.any() else torch.zeros(4) for v, m in zip(values, mask, strict=True)])
    torch.testing.assert_close(masked_mean(values, mask), expected)
