"""The routers and the user expert's context as the published code of PrefMoE computes them.

Every encoder and every router is two linear maps without bias and the exact GELU between them. What each sees:

    task router          profile, signature of the preferences, question   ->  preference branch, profile branch
    preference router    each facet's token by itself                      ->  the five preference experts
    profile router       image, description, profile                       ->  the two profile experts
    user's context       signature, the gold facet's embedding, name       ->  added before the user expert's GELU

The question reaches the task router alone, and the gold facet the user expert's context alone.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from prefmoe.data.sizes import Ranks, published_router_shapes
from prefmoe.models.free_users import UserTokens
from prefmoe.models.routing import Routing

PUBLISHED_WEIGHTS = tuple(published_router_shapes(1, Ranks(1, 1, 1)))
"""Names of the weights of `published_gates`."""

STD = 0.01
"""Standard deviation from which the experts' A start beside these routers; their B start at zero."""


def published_gates(
    weights: Mapping[str, Tensor],
    *,
    facet_tokens: Tensor,
    name: Tensor,
    image: Tensor,
    description: Tensor,
    query: Tensor,
    facet: Tensor,
) -> dict[str, Tensor]:
    """The three routers' gates and the user expert's context.

    Args:
        weights: by name, each (out, in): ``<part>_encoder_0`` and ``_1`` for image, description, name, query, profile
            and preference; ``<part>_router_0`` and ``_1`` for task, preference and profile; ``user_context_0`` and
            ``_1``; ``facet_embedding`` (F + 1, g).
        facet_tokens: (B, F, H) full facet tokens, prototype plus residual.
        name, image, description, query: (B, H).
        facet: (B,) the gold facet; -1, recognition, is the last row of facet_embedding.

    Returns task_gate (B, 2), preference_gate (B, F), profile_gate (B, 2), user_context (B, rank).

    Raises ValueError if weights are missing, facet_embedding has not a row for every facet and one more, facet is not
    (B,) whole numbers, or is outside -1 to F - 1 (asked where that waits for no device).
    """
    if missing := [name for name in PUBLISHED_WEIGHTS if name not in weights]:
        raise ValueError(f"weights: missing {', '.join(missing)} (found {', '.join(weights) or 'none'})")
    facets, table = facet_tokens.shape[1], weights["facet_embedding"]
    if len(table) != facets + 1:
        raise ValueError(f"facet_embedding: expected {facets + 1} rows for {facets} facets, found {len(table)}")
    if facet.shape != facet_tokens.shape[:1] or facet.is_floating_point():
        raise ValueError(f"facet: expected {len(facet_tokens)} whole numbers, found {[*facet.shape]} of {facet.dtype}")
    facet = facet.long()
    if facet.device.type == "cpu" and bool(((facet < -1) | (facet >= facets)).any()):
        raise ValueError(f"facet: expected -1 to {facets - 1}, found {facet.tolist()}")

    def apply(part: str, value: Tensor) -> Tensor:
        first, second = weights[f"{part}_0"], weights[f"{part}_1"]
        return linear(gelu(linear(value.to(first.dtype), first)), second)

    signature = apply("preference_encoder", facet_tokens.flatten(1))  # (B, g)
    profile = apply("profile_encoder", (image + description) / 2)
    task = torch.cat([profile, signature, apply("query_encoder", query)], dim=1)
    about = torch.cat([apply("image_encoder", image), apply("description_encoder", description), profile], dim=1)
    personal = torch.cat([signature, table[facet.remainder(len(table))], apply("name_encoder", name)], dim=1)
    return {
        "task_gate": apply("task_router", task).softmax(1),
        "preference_gate": apply("preference_router", facet_tokens).squeeze(2).softmax(1),
        "profile_gate": apply("profile_router", about).softmax(1),
        "user_context": apply("user_context", personal),
    }


class PublishedRouter(nn.Module):
    """The weights of `published_gates`, learned with the experts.

    Linear maps start as torch's, the facets' embedding from N(0, 1), as published.

    Args:
        hidden: H. ranks: of the experts. alpha: scale of the mixture's output, 1 as published.
        facet_label: "oracle" tells the user expert's context the gold facet, as published; under "none" every question
            has the row of recognition, because a prompt does not say its facet.
    """

    def __init__(self, hidden: int, ranks: Ranks, *, alpha: float = 1.0, facet_label: str = "oracle") -> None:
        super().__init__()
        self.ranks, self.alpha, self.oracle = ranks, alpha, facet_label == "oracle"
        self.weights = nn.ParameterDict()
        for name, shape in published_router_shapes(hidden, ranks).items():
            start = nn.init.normal_ if name == "facet_embedding" else partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
            self.weights[name] = nn.Parameter(start(torch.empty(shape)))

    def forward(self, routing: Routing, tokens: UserTokens, query: Tensor, facet: Tensor) -> None:
        """Fills ``routing`` for a batch.

        Args:
            tokens: of the batch's users. query: (B, H) mean embedding of what the prompt says. facet: (B,) gold facet
                or -1; read by the oracle only.
        """
        name, image, description = tokens.profile.unbind(1)
        found = published_gates(
            self.weights,
            facet_tokens=tokens.prototypes + tokens.residuals,
            name=name,
            image=image,
            description=description,
            query=query,
            facet=facet if self.oracle else torch.full_like(facet, -1),
        )
        gates = {part: found[f"{part}_gate"] for part in ("task", "preference", "profile")}
        routing.fill(self.ranks, **gates, context=found["user_context"], alpha=self.alpha)
