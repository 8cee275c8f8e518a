"""What PrefMoE knows about a user: frozen anchors, small learned corrections, shared facet prototypes.

PrefMoE (Lyu et al. 2026), section on the factorised user state. In short, for user i and facet f:

    name                   anchor                                        nothing learned
    image, description     anchor + s * rms * tanh(delta_i)              bounded personal correction
    facet                  z[i, f] = p[f] + r[i, f]                      shared prototype + personal residual
    r[i, f]                anchor - mean[f] + s * rms * tanh(delta_i)    "centred": what the text says
                           anchor           + s * rms * tanh(delta_i)    "published": what the code did

p starts as mean[f], the mean of the trained users' anchors; rms is that of the anchors of the same kind, so
that the bound s means the same on every backbone, or 1 for a bound that is "absolute", as published. A user
without an annotation in a facet has the prototype alone. The soft prefix is name, image, description, then
(p[f], r[i, f]) per facet: 13 tokens.

U = users, B = examples of a batch, F = 5 facets, H = hidden size of the language model.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import ANCHORS
from prefmoe.models.anchors import root_mean
from prefmoe.models.free_users import SparseRows, UserTokens, prefix_of
from prefmoe.models.growing import with_rows


class FactorisedUsers(nn.Module):
    """Anchors of all users with their corrections, and the facet prototypes (PrefMoE, Lyu et al. 2026, the factorised
    user state): z[i, f] = p[f] + r[i, f] for user i and facet f, as at the top of this module.

    Args:
        anchors: (U, 8, H) from encode_users. known: (U, F) bool, which facet anchors exist.
        trained: (U,) bool, users with training questions: prototypes, means and rms come from them alone. The
            other users keep delta = 0, because no training question asks about them.
        residual: "centred" or "published", see above. scale: s. correction: "relative" to the anchors' rms, or
            "absolute".
        separated: False for preferences that are not told apart, component E as published: the mean over the facets
            stands in the place of each prototype, and in that of each residual.
        sparse: give delta gradients that are sparse in the users of a batch.

    Raises ValueError if no user is trained.
    """

    def __init__(
        self,
        anchors: Tensor,
        known: Tensor,
        trained: Tensor,
        *,
        residual: Literal["centred", "published"] = "centred",
        scale: float = 0.1,
        correction: Literal["relative", "absolute"] = "relative",
        separated: bool = True,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.sparse, self.separated = sparse, separated
        if not trained.any():
            raise ValueError("a user state needs at least one user with training questions")
        users, _, hidden = anchors.shape
        weight = (known & trained[:, None]).to(anchors)[..., None]  # (U, F, 1)
        count = weight.sum(0).clamp_min(1)  # (F, 1)
        # in double precision: where all share one anchor, residuals are 0 and no rounding that has a direction
        mean = ((anchors[:, 3:].cpu().double() * weight.cpu()).sum(0) / count.cpu()).to(anchors)  # (F, H)
        center = mean if residual == "centred" else torch.zeros_like(mean)
        facet_rms = root_mean((anchors[:, 3:] * weight).square().sum(0) / count)  # (F, 1)
        profile_rms = root_mean(anchors[trained, 1:3].square().mean(0))  # (2, 1)
        start = (anchors[:, 3:] - center) * weight
        self.register_buffer("anchors", anchors)
        self.register_buffer("known", known)
        self.register_buffer("center", center)
        rms = torch.cat([profile_rms, facet_rms])  # (7, 1)
        self.register_buffer("bound", scale * (rms if correction == "relative" else torch.ones_like(rms)))
        self.register_buffer("residual_rms", (start.square().sum() / (count.sum() * hidden)).sqrt())
        self.prototypes = nn.Parameter(mean.clone())  # (F, H)
        self.delta = nn.Parameter(anchors.new_zeros(users, len(ANCHORS) - 1, hidden))  # (U, 7, H)

    def forward(self, rows: Tensor) -> UserTokens:
        """The tokens of users, by row. rows: (B,). Its cost does not depend on the number of users."""
        anchors, known = self.anchors[rows], self.known[rows]  # (B, 8, H), (B, F)
        delta = SparseRows.apply(self.delta, rows) if self.sparse else self.delta[rows]
        correction = self.bound * torch.tanh(delta)  # (B, 7, H)
        profile = torch.cat([anchors[:, :1], anchors[:, 1:3] + correction[:, :2]], dim=1)  # (B, 3, H)
        residuals = (anchors[:, 3:] - self.center + correction[:, 2:]) * known[..., None]  # (B, F, H)
        prototypes = self.prototypes
        if not self.separated:
            prototypes = prototypes.mean(0, keepdim=True).expand_as(prototypes)
            residuals = residuals.mean(1, keepdim=True).expand_as(residuals)
        prefix = prefix_of(profile, prototypes, residuals)
        return UserTokens(prefix, profile, anchors[:, 1:3], prototypes, residuals)

    @torch.no_grad()
    def append(self, anchors: Tensor, known: Tensor) -> None:
        """Adds users with delta = 0. anchors (N, 8, H), known (N, F). After training: delta is replaced."""
        rows = {"anchors": anchors, "known": known, "delta": self.delta.new_zeros(len(anchors), *self.delta.shape[1:])}
        grown = {name: with_rows(self, name, value) for name, value in rows.items()}
        self.anchors, self.known = grown["anchors"], grown["known"]
        self.delta = nn.Parameter(grown["delta"], requires_grad=self.delta.requires_grad)


class CounterfactualUsers(nn.Module):
    """Pseudo users, as frozen negatives of the contrastive terms; they never answer a question.

    Attributes (buffers that are rebuilt from the seed, not saved):
        image, description: (N, H). residuals: (N, F, H).
        groups: (N, F) that of the real users who share the preference; where nobody does, one of its own, so
            that the pseudo user is a negative there.
        pool: (F + 1, N) bool: whom a question of each facet admits to its profile contrast, namely the pseudo
            users of that facet's family. The last row is for recognition (facet -1): two of each family.
    """

    def __init__(
        self, anchors: Tensor, center: Tensor, families: Sequence[str], groups: Tensor, real_groups: int | None
    ) -> None:
        """anchors (N, 8, H); center (F, H); groups (N, F), -1 = nobody's; real_groups: ids in use, or None where
        groups are complete, and -1 takes no part."""
        super().__init__()
        if real_groups is not None:
            own = real_groups + torch.arange(groups.numel()).view_as(groups)
            groups = torch.where(groups < 0, own.to(groups), groups)
        family = torch.tensor([FACETS.index(name) for name in families])  # (N,)
        same = family[None, :] == torch.arange(len(FACETS))[:, None]  # (F, N)
        early = (same & (same.cumsum(1) <= 2)).any(0)
        buffers = {
            "image": anchors[:, 1],
            "description": anchors[:, 2],
            "residuals": anchors[:, 3:] - center,
            "groups": groups,
            "pool": torch.cat([same, early[None]]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(anchors.device), persistent=False)
