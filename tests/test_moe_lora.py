"""The mixture of LoRA experts against golden cases and against a loop over experts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import Ranks
from prefmoe.models.free_users import UserTokens
from prefmoe.models.moe_lora import HierarchicalRouter, MixtureOfLoRA, expert_mixture, install_mixture
from prefmoe.models.routing import Routing

DATA = Path(__file__).parent / "data"
RANKS = Ranks(preference=3, user=6, profile=2)
HIDDEN = 10


def mixture_by_loops(x, A, B, gate, context=None):
    output = torch.zeros(x.shape[0], x.shape[1], B.shape[1], dtype=x.dtype)
    for b in range(x.shape[0]):
        for e in range(A.shape[0]):
            low = x[b] @ A[e].T
            if context is not None:
                low = gelu(low + context[b, e])
            output[b] += gate[b, e] * (low @ B[e].T)
    return output


@pytest.fixture(params=[0, 1])
def golden(request):
    with np.load(DATA / f"moe_lora_{request.param}.npz") as file:
        return {name: torch.as_tensor(file[name]) for name in file}


def test_golden_branches_by_the_contract_function(golden):
    x, task = golden["in_x"], golden["in_task_gate"]
    preference = expert_mixture(x, golden["w_preference_A"], golden["w_preference_B"], golden["in_preference_gate"])
    user = expert_mixture(
        x, golden["w_user_A"][None], golden["w_user_B"][None], torch.ones(len(x), 1),
        golden["in_user_context"][:, None],
    )  # fmt: skip
    profile = expert_mixture(x, golden["w_profile_A"], golden["w_profile_B"], golden["in_profile_gate"])
    delta = task[:, 0, None, None] * (preference + user) + task[:, 1, None, None] * profile
    torch.testing.assert_close(delta, golden["out_delta"], rtol=1e-5, atol=1e-5)


def test_golden_delta_by_one_layer(golden):
    x, task = golden["in_x"], golden["in_task_gate"]
    preference_rank, user_rank = golden["w_preference_A"].shape[1], golden["w_user_A"].shape[0]
    ranks = Ranks(preference_rank, user_rank, golden["w_profile_A"].shape[1])
    scale = torch.cat(
        [
            task[:, :1].expand(-1, user_rank),
            (task[:, :1] * golden["in_preference_gate"]).repeat_interleave(ranks.preference, 1),
            (task[:, 1:] * golden["in_profile_gate"]).repeat_interleave(ranks.profile, 1),
        ],
        dim=1,
    )
    routing = Routing(scale=scale, context=golden["in_user_context"])
    layer = MixtureOfLoRA(nn.Linear(x.shape[2], golden["out_delta"].shape[2]), ranks.total, routing)
    with torch.no_grad():
        layer.A.copy_(torch.cat([golden["w_user_A"], *golden["w_preference_A"], *golden["w_profile_A"]]))
        layer.B.copy_(torch.cat([golden["w_user_B"], *golden["w_preference_B"], *golden["w_profile_B"]], dim=1))
        torch.testing.assert_close(layer(x) - layer.base(x), golden["out_delta"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_context", [False, True])
def test_two_products_equal_the_loop_over_experts_with_gradients(with_context):
    torch.manual_seed(0)
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((2, 4, 7), (3, 5, 7), (3, 6, 5), (2, 3), (2, 3, 5))]
    tensors = [t.requires_grad_() for t in (tensors if with_context else tensors[:4])]
    fast, slow = expert_mixture(*tensors), mixture_by_loops(*tensors)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), tensors),
        torch.autograd.grad((slow * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_mixture_takes_two_matrix_products():
    x, A, B, gate = torch.randn(2, 4, 7), torch.randn(9, 5, 7), torch.randn(9, 6, 5), torch.randn(2, 9)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        expert_mixture(x, A, B, gate)
    products = [e for e in profile.events() if e.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::einsum")]
    assert len(products) == 2


def router_inputs(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    profile, prototypes, residuals = (
        torch.randn(*shape, HIDDEN, generator=g) for shape in ((batch, 3), (len(FACETS),), (batch, len(FACETS)))
    )
    return {
        "tokens": UserTokens(torch.empty(0), profile, None, prototypes, residuals),
        "query": torch.randn(batch, HIDDEN, generator=g),
        "facet": torch.tensor([0, 3, -1, 4])[:batch],
    }


def times(tokens: UserTokens, factor: float) -> UserTokens:
    scaled = {name: factor * getattr(tokens, name) for name in ("profile", "prototypes", "residuals")}
    return replace(tokens, **scaled)


def random_router(**options):
    torch.manual_seed(1)
    router = HierarchicalRouter(HIDDEN, RANKS, **options)
    for parameter in router.parameters():
        nn.init.normal_(parameter)
    return router


def test_an_empty_routing_is_the_plain_layer_and_new_experts_change_nothing():
    base, routing = nn.Linear(7, 9), Routing()
    layer = MixtureOfLoRA(base, RANKS.total, routing)
    x = torch.randn(4, 3, 7)
    assert torch.equal(layer(x), base(x))
    HierarchicalRouter(HIDDEN, RANKS)(routing, **router_inputs())
    assert torch.equal(layer(x), base(x))
    nn.init.normal_(layer.B)
    assert not torch.equal(layer(x), base(x))
    routing.clear()
    assert torch.equal(layer(x), base(x))


def test_a_new_router_mixes_evenly_and_any_router_gives_distributions():
    routing = Routing()
    HierarchicalRouter(HIDDEN, RANKS)(routing, **router_inputs())
    assert {name: tuple(gate.shape) for name, gate in routing.gates.items()} == {
        "task": (4, 2), "preference": (4, 5), "profile": (4, 2),
    }  # fmt: skip
    for gate in routing.gates.values():
        torch.testing.assert_close(gate, torch.full_like(gate, 1 / gate.shape[1]))
    random_router()(routing, **router_inputs())
    for gate in routing.gates.values():
        torch.testing.assert_close(gate.sum(1), torch.ones(4))
        assert gate.std() > 0


def test_the_scale_weighs_each_expert_by_its_gates():
    routing = Routing()
    random_router(alpha=2.0)(routing, **router_inputs())
    task, preference, profile = (routing.gates[name] for name in ("task", "preference", "profile"))
    user, likes, about = routing.scale.split([6, 15, 4], dim=1)
    torch.testing.assert_close(user, 2 * task[:, :1].expand(-1, 6))
    for e in range(5):
        torch.testing.assert_close(likes[:, 3 * e], 2 * task[:, 0] * preference[:, e])
        torch.testing.assert_close(likes[:, 3 * e + 2], 2 * task[:, 0] * preference[:, e])
    for e in range(2):
        torch.testing.assert_close(about[:, 2 * e + 1], 2 * task[:, 1] * profile[:, e])
    assert routing.scale.shape[1] == RANKS.total


def test_routing_is_blind_to_the_scale_of_its_inputs_and_to_other_examples():
    first, second = Routing(), Routing()
    router, inputs = random_router(), router_inputs()
    router(first, **inputs)
    router(second, tokens=times(inputs["tokens"], 37), query=37 * inputs["query"], facet=inputs["facet"])
    torch.testing.assert_close(first.scale, second.scale)
    torch.testing.assert_close(first.context, second.context)
    first_user = replace(
        inputs["tokens"], profile=inputs["tokens"].profile[:1], residuals=inputs["tokens"].residuals[:1]
    )
    router(second, tokens=first_user, query=inputs["query"][:1], facet=inputs["facet"][:1])
    torch.testing.assert_close(first.scale[:1], second.scale)


def test_without_a_context_the_user_expert_is_the_same_for_everybody():
    first, second = Routing(), Routing()
    router, inputs = random_router(user_context=False), router_inputs()
    router(first, **inputs)
    other = replace(inputs["tokens"], residuals=inputs["tokens"].residuals.flip(1))  # facets' mean is the same
    router(second, **inputs | {"tokens": other})
    assert first.context.shape == (4, RANKS.user) and not first.context.any()
    torch.testing.assert_close(first.scale, second.scale)
    assert torch.equal(first.context, second.context)
    random_router()(second, **inputs)
    assert second.context.any()
    assert not [name for name, _ in router.named_parameters() if name.startswith("context")]


def test_the_gold_facet_is_read_by_the_oracle_only():
    inputs = router_inputs()
    changed = {**inputs, "facet": torch.tensor([1, 3, -1, -1])}
    for label, equal in (("none", True), ("oracle", False)):
        first, second = Routing(), Routing()
        router = random_router(facet_label=label)
        router(first, **inputs)
        router(second, **changed)
        assert torch.equal(first.scale[[0, 3]], second.scale[[0, 3]]) == equal
        assert torch.equal(first.scale[[1, 2]], second.scale[[1, 2]])


def test_installation_replaces_the_named_layers_and_refuses_others():
    model, routing = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), Routing()
    plain = model[2].weight
    install_mixture(model, ["2"], RANKS.total, routing)
    assert isinstance(model[0], nn.Linear) and model[2].base.weight is plain
    with pytest.raises(TypeError, match="2: expected a torch.nn.Linear.*MixtureOfLoRA"):
        install_mixture(model, ["0", "2"], RANKS.total, routing)
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize(
    ("gate", "context"), [((1, 5), None), ((2, 4), None), ((2, 5), (2, 3, 2)), ((2, 5), (2, 5, 1)), ((2, 5), (1, 5, 2))]
)
def test_gates_and_contexts_of_another_shape_are_refused(gate, context):
    """A context of fewer experts bent the first rows, silently."""
    x, A, B = torch.randn(2, 3, 4), torch.randn(5, 2, 4), torch.randn(5, 6, 2)
    with pytest.raises(ValueError, match=r"expected a gate of \[2, 5\] and a context of \[2, 5, 2\] or None"):
        expert_mixture(x, A, B, torch.rand(gate), None if context is None else torch.randn(context))


@pytest.mark.parametrize("shape", [(2, 6, 5), (5, 6, 1), (4, 6, 2), (6, 10)])
def test_another_b_is_refused(shape):
    """As many experts times ranks as A has were multiplied with it, whichever they were."""
    x, A = torch.randn(2, 3, 4), torch.randn(5, 2, 4)
    with pytest.raises(ValueError, match=r"expected a B of \[5, out, 2\], found"):
        expert_mixture(x, A, torch.randn(shape), torch.rand(2, 5))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_gates_may_be_more_precise_than_activations_and_a_batch_empty(kind):
    x, A, B = torch.randn(2, 3, 4, dtype=kind), torch.randn(5, 2, 4, dtype=kind), torch.randn(5, 6, 2, dtype=kind)
    gate, context = torch.rand(2, 5), torch.randn(2, 5, 2)
    found = expert_mixture(x, A, B, gate, context)
    assert found.dtype == kind and torch.equal(found, expert_mixture(x, A, B, gate.to(kind), context.to(kind)))
    assert expert_mixture(x[:0], A, B, gate[:0], context[:0]).shape == (0, 3, 6)
