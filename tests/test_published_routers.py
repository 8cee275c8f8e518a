"""The published routers against golden cases, and against the same maps written as torch modules."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import Ranks, published_router_shapes, router_width
from prefmoe.models.free_users import UserTokens
from prefmoe.models.moe_lora import expert_mixture, published_gates
from prefmoe.models.published_routers import PublishedRouter
from prefmoe.models.routing import Routing

DATA = Path(__file__).parent / "data"
INPUTS = ("facet_tokens", "name", "image", "description", "query", "facet")
OUTPUTS = ("task_gate", "preference_gate", "profile_gate", "user_context")


def golden(number: int, part: str) -> dict[str, Tensor]:
    with np.load(DATA / f"routers_{number}.npz") as file:
        return {key.removeprefix(part): torch.as_tensor(file[key]) for key in file if key.startswith(part)}


def tokens_of(inputs: dict[str, Tensor]) -> UserTokens:
    """User tokens with these full facet tokens, of which a shared half is the prototype."""
    profile = torch.stack([inputs[name] for name in ("name", "image", "description")], dim=1)
    prototypes = inputs["facet_tokens"].mean(0)
    return UserTokens(torch.empty(0), profile, None, prototypes, inputs["facet_tokens"] - prototypes)


def router_of(weights: dict[str, Tensor], **options) -> PublishedRouter:
    rank = len(weights["user_context_0"])
    router = PublishedRouter(weights["query_encoder_0"].shape[1], Ranks(3, rank, 2), **options)
    router.weights.load_state_dict(weights)
    return router


@pytest.mark.parametrize("number", [0, 1])
def test_golden_gates_and_context(number):
    weights, expected = golden(number, "w_"), golden(number, "out_")
    found = published_gates(weights, **golden(number, "in_"))
    assert found.keys() == set(OUTPUTS) == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("number", [0, 1])
def test_the_module_gives_the_golden_mixture(number):
    """Gates and context of the module, put into one layer, equal the three mixtures of the golden gates."""
    weights, inputs, expected = (golden(number, part) for part in ("w_", "in_", "out_"))
    router, routing = router_of(weights), Routing()
    router(routing, tokens_of(inputs), inputs["query"], inputs["facet"])
    for name in ("task", "preference", "profile"):
        torch.testing.assert_close(routing.gates[name], expected[f"{name}_gate"], rtol=1e-5, atol=1e-5)
    ranks, batch = router.ranks, len(inputs["facet"])
    x = torch.randn(batch, 4, 7)
    shapes = {"user": (1, ranks.user), "preference": (len(FACETS), ranks.preference), "profile": (2, ranks.profile)}
    A = {name: torch.randn(experts, rank, 7) for name, (experts, rank) in shapes.items()}
    B = {name: torch.randn(experts, 6, rank) for name, (experts, rank) in shapes.items()}
    task = expected["task_gate"]
    context = expected["user_context"][:, None]
    preference = expert_mixture(x, A["preference"], B["preference"], expected["preference_gate"])
    user = expert_mixture(x, A["user"], B["user"], torch.ones(batch, 1), context)
    profile = expert_mixture(x, A["profile"], B["profile"], expected["profile_gate"])
    delta = task[:, 0, None, None] * (preference + user) + task[:, 1, None, None] * profile
    down = torch.cat([part.flatten(0, 1) for part in A.values()])
    up = torch.cat([part.transpose(0, 1).flatten(1) for part in B.values()], dim=1)
    hidden = x @ down.T
    bent = nn.functional.gelu(hidden[..., : ranks.user] + routing.context[:, None])
    hidden = torch.cat([bent, hidden[..., ranks.user :]], dim=2) * routing.scale[:, None]
    torch.testing.assert_close(hidden @ up.T, delta, rtol=1e-4, atol=1e-4)


def test_every_weight_has_the_published_shape():
    for number in (0, 1):
        weights = golden(number, "w_")
        ranks = Ranks(user=len(weights["user_context_0"]))
        shapes = published_router_shapes(weights["query_encoder_0"].shape[1], ranks)
        assert shapes == {name: tuple(value.shape) for name, value in weights.items()}
    assert [router_width(hidden) for hidden in (64, 2048, 4096, 8192, 16384)] == [32, 32, 64, 128, 128]


def test_who_reads_what():
    """The question reaches the task router alone, the gold facet and the name the user expert's context alone."""
    weights, inputs = golden(0, "w_"), golden(0, "in_")
    start = published_gates(weights, **inputs)
    reads = {
        "query": {"task_gate"},
        "facet": {"user_context"},
        "name": {"user_context"},
        "image": {"task_gate", "profile_gate"},
        "facet_tokens": {"task_gate", "preference_gate", "user_context"},
    }
    for name, expected in reads.items():
        changed = (inputs["facet"] + 2) % 5 if name == "facet" else inputs[name].flip(-1)
        found = published_gates(weights, **inputs | {name: changed})
        assert {key for key in OUTPUTS if not torch.equal(found[key], start[key])} == expected, name


def test_without_the_oracle_every_question_has_the_row_of_recognition():
    weights, inputs = golden(0, "w_"), golden(0, "in_")
    told, untold = Routing(), Routing()
    router_of(weights, facet_label="none")(untold, tokens_of(inputs), inputs["query"], inputs["facet"])
    router_of(weights)(told, tokens_of(inputs), inputs["query"], torch.full_like(inputs["facet"], -1))
    assert torch.equal(told.context, untold.context) and torch.equal(told.scale, untold.scale)


def test_gates_follow_their_own_user():
    """An example's gates do not depend on the other examples of its batch."""
    weights, inputs = golden(1, "w_"), golden(1, "in_")
    together, alone = Routing(), Routing()
    router, tokens = router_of(weights, alpha=2.0), tokens_of(inputs)
    router(together, tokens, inputs["query"], inputs["facet"])
    one = replace(tokens, profile=tokens.profile[2:3], residuals=tokens.residuals[2:3])
    router(alone, one, inputs["query"][2:3], inputs["facet"][2:3])
    torch.testing.assert_close(together.scale[2:3], alone.scale)
    torch.testing.assert_close(together.context[2:3], alone.context)
    torch.testing.assert_close(together.scale[:, 0], 2 * together.gates["task"][:, 0])


def test_facets_and_weights_that_are_not_there_are_named():
    """Facets beyond the last one wrapped to others, silently."""
    weights, inputs = golden(0, "w_"), golden(0, "in_")
    for wrong in (5, 6, -2):
        with pytest.raises(ValueError, match="facet: expected -1 to 4, found"):
            published_gates(weights, **inputs | {"facet": torch.full_like(inputs["facet"], wrong)})
    small = published_gates(weights, **inputs | {"facet": inputs["facet"].to(torch.int8)})
    torch.testing.assert_close(small["user_context"], published_gates(weights, **inputs)["user_context"])
    few = weights | {"facet_embedding": weights["facet_embedding"][:3]}
    with pytest.raises(ValueError, match="facet_embedding: expected 6 rows for 5 facets, found 3"):
        published_gates(few, **inputs)
    for wrong in (inputs["facet"][:1], inputs["facet"] + 0.5, inputs["facet"][0]):
        with pytest.raises(ValueError, match="facet: expected .* whole numbers, found"):
            published_gates(weights, **inputs | {"facet": wrong})
    some = {name: value for name, value in weights.items() if name != "task_router_1"}
    with pytest.raises(ValueError, match=r"weights: missing task_router_1 \(found "):
        published_gates(some, **inputs)
