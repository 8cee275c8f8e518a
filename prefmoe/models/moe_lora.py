"""The hierarchical mixture of LoRA experts: one low-rank update per linear layer, re-weighted per example.

PrefMoE (Lyu et al. 2026), section on the mixture. Beside each adapted projection of the frozen backbone stand

    five preference experts   mixed by the preference router          B (gate . A x)
    one user expert           bottleneck bent by the user's facets    B gelu(A x + c_i)
    two profile experts       mixed by the profile router             B (gate . A x)

and a task router weighs (preference experts + user expert) against the profile experts. The sum over experts is linear
in the gates, so all of it is a single LoRA of the experts' total rank whose low-rank activations are scaled: two matrix
products per layer, however many experts there are. The B start at zero, so an untrained mixture changes nothing; the
first step therefore moves B alone, and A, routers and context follow from the second on.

B, T = batch, tokens; R = total rank; H = hidden size of the language model.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, normalize, rms_norm

from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import PROFILE_EXPERTS, Ranks
from prefmoe.models.adapted_linear import AdaptedLinear, is_plain
from prefmoe.models.free_users import UserTokens
from prefmoe.models.published_routers import published_gates as published_gates
from prefmoe.models.routing import Routing


def scaled_low_rank(x: Tensor, A: Tensor, B: Tensor, scale: Tensor, context: Tensor | None = None) -> Tensor:
    """B (scale . h) with h = A x, of which the first C rows become gelu(A x + context).

    Args:
        x: (B, ..., in), for example (B, T, in); latent attention has (B, 1, T, in). A: (R, in). B: (out, R).
        scale: (B, R). context: (B, C) with C <= R, or None.

    Returns (B, ..., out).
    """
    hidden = linear(x, A)  # (B, ..., R)
    scale, context = scale.to(hidden), context if context is None else context.to(hidden)
    ones = [1] * (x.dim() - 2)
    if context is not None:
        bent, straight = hidden.split([context.shape[1], hidden.shape[-1] - context.shape[1]], dim=-1)
        hidden = torch.cat([gelu(bent + context.view(len(x), *ones, context.shape[1])), straight], dim=-1)
    return linear(hidden * scale.view(len(x), *ones, len(A)), B)


def expert_mixture(x: Tensor, A: Tensor, B: Tensor, gate: Tensor, context: Tensor | None = None) -> Tensor:
    """The gated sum over experts e (PrefMoE, Lyu et al. 2026, the mixture of LoRA experts):

        y = sum_e gate_e B_e A_e x, or sum_e gate_e B_e gelu(A_e x + context_e) with a context

    Args:
        x: (batch, tokens, in). A: (experts, rank, in). B: (experts, out, rank). gate: (batch, experts).
        context: (batch, experts, rank) or None.

    Returns (batch, tokens, out), by two matrix products in all. Raises ValueError if B, gate or context has another
    shape.
    """
    wanted = (len(x), len(A), A.shape[1])
    if B.dim() != 3 or (len(B), B.shape[2]) != wanted[1:]:
        raise ValueError(f"expected a B of [{wanted[1]}, out, {wanted[2]}], found {[*B.shape]}")
    if gate.shape != wanted[:2] or (context is not None and context.shape != wanted):
        shapes = [*gate.shape], None if context is None else [*context.shape]
        raise ValueError(f"expected a gate of {[*wanted[:2]]} and a context of {[*wanted]} or None, found {shapes}")
    scale = gate.repeat_interleave(A.shape[1], dim=1)  # (batch, experts * rank)
    stacked = B.transpose(0, 1).flatten(1)  # (out, experts * rank)
    context = None if context is None else context.flatten(1)
    return scaled_low_rank(x, A.flatten(0, 1), stacked, scale, context)


class MixtureOfLoRA(nn.Module):
    """A frozen linear layer W plus its experts, in the place of that layer: W x + `expert_mixture`, as (B, ..., in) to
    (B, ..., out).

    Rows of A and columns of B are stacked: user expert, preference experts in the order of FACETS, profile
    experts (image, description).

    Args:
        base: the layer. rank: of all experts together. routing: shared by all layers of the model.
        std: of the normal distribution that A starts from (published: 0.01); None for that of torch's linear layers.

    Attributes:
        is_adapter: of the class; a backbone that has such a layer is not fresh.
    """

    is_adapter = True

    def __init__(self, base: nn.Linear, rank: int, routing: Routing, std: float | None = None) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        if std is None:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.A, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ..., in) to (B, ..., out); the plain layer while the routing is empty."""
        routing = self.routing
        if routing.scale is None:
            return self.base(x)
        # layers of a large backbone may live on different devices; the routing is made on the first
        scale, context = routing.scale.to(x.device), routing.context
        context = None if context is None else context.to(x.device)
        if is_plain(self.base, self.A, x):
            return AdaptedLinear.apply(x, self.base.weight, self.base.bias, self.A, self.B, scale, context)
        output = self.base(x)
        update = scaled_low_rank(x.to(self.A.dtype), self.A, self.B, scale, context)
        return output + update.to(output.dtype)


class HierarchicalRouter(nn.Module):
    """This companion's own routers (`routers: own`) and user context, computed once per forward pass and per example.

    They differ from the published ones (`prefmoe.models.published_routers`): the question reaches all three, so that
    the preference router can pick the facet that is asked about.

    Inputs are brought to unit length, because hidden sizes and embedding scales differ between backbones, and a
    step of Adam moves every weight alike: at unit rms a logit would move with each step by the learning rate times
    the width, and the softmax would close within a few. Gates are softmaxes of linear maps that start at zero: a
    new router mixes evenly.

    Args:
        hidden: H. ranks: of the experts. alpha: scale of the mixture's output.
        facet_label: "oracle" adds a learned vector of the gold facet (or of "recognition") to the query, a reading
            of our own: no published router sees the facet. "none" uses the prompt alone.
        user_context: bend the user expert's bottleneck by the user's residuals; otherwise its context is 0, and
            the expert knows nothing of the user but what the tokens say.
    """

    def __init__(
        self, hidden: int, ranks: Ranks, *, alpha: float = 1.0, facet_label: str = "none", user_context: bool = True
    ) -> None:
        super().__init__()
        self.ranks, self.alpha = ranks, alpha
        self.task = nn.Linear(3 * hidden, 2)
        self.preference = nn.Linear(2 * hidden, len(FACETS))
        self.profile = nn.Linear(2 * hidden, len(PROFILE_EXPERTS))
        for router in (self.task, self.preference, self.profile):
            nn.init.zeros_(router.weight)
            nn.init.zeros_(router.bias)
        self.context = nn.Linear(len(FACETS) * hidden, ranks.user) if user_context else None
        self.label = nn.Embedding(len(FACETS) + 1, hidden) if facet_label == "oracle" else None

    def forward(self, routing: Routing, tokens: UserTokens, query: Tensor, facet: Tensor) -> None:
        """Fills ``routing`` for a batch.

        Args:
            tokens: of the batch's users; the context is made of residuals (the shared part would only add a bias).
            query: (B, H) mean input embedding of the question's text and image tokens.
            facet: (B,) gold facet or -1; read by the oracle only.
        """
        residuals = tokens.residuals  # (B, F, H)
        facets = tokens.prototypes + residuals
        unit = [normalize(value.float(), dim=1) for value in (tokens.profile.mean(1), facets.mean(1), query)]
        if self.label is not None:
            unit[2] = unit[2] + self.label(facet.remainder(self.label.num_embeddings))
        about, likes, asked = unit
        task = self.task(torch.cat(unit, dim=1)).softmax(1)  # (B, 2): preference branch, profile branch
        preference = self.preference(torch.cat([likes, asked], dim=1)).softmax(1)  # (B, F)
        profile_gate = self.profile(torch.cat([about, asked], dim=1)).softmax(1)  # (B, 2)
        if self.context is None:
            context = task.new_zeros(len(task), self.ranks.user)
        else:
            flat = residuals.flatten(1).float()
            context = self.context(rms_norm(flat, flat.shape[1:], eps=1e-12))  # (B, user rank)
        routing.fill(
            self.ranks, task=task, preference=preference, profile=profile_gate, context=context, alpha=self.alpha
        )


def install_mixture(model: nn.Module, names: list[str], rank: int, routing: Routing, std: float | None = None) -> None:
    """Replaces the named linear layers of ``model`` by mixtures around them, whose A start as `MixtureOfLoRA` says.
    Raises TypeError if a name is not that of a linear layer (for example of one that is adapted already)."""
    found = {name: model.get_submodule(name) for name in names}
    for name, module in found.items():
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{name}: expected a torch.nn.Linear to adapt, found {type(module).__name__}")
    for name, module in found.items():
        model.set_submodule(name, MixtureOfLoRA(module, rank, routing, std))
