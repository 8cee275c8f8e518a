"""What PrefMoE knows about a user: frozen anchors, small learned corrections, shared facet prototypes.

PrefMoE (Lyu et al. 2026), section on the factorised user state. In short, for user i and facet f:

    name                   anchor                                        nothing learned
    image, description     anchor + s * rms * tanh(delta_i)              bounded personal correction
    facet                  z[i, f] = p[f] + r[i, f]                      shared prototype + personal residual
    r[i, f]                anchor - mean[f] + s * rms * tanh(delta_i)    "centred": what the text says
                           anchor           + s * rms * tanh(delta_i)    "published": what the code did

p starts as mean[f], the mean of the trained users' anchors; rms is that of the anchors of the same kind, so
that the bound s means the same on every backbone. A user without an annotation in a facet has the prototype
alone. The soft prefix is name, image, description, then (p[f], r[i, f]) per facet: 13 tokens.

U = users, B = examples of a batch, F = 5 facets, H = hidden size of the language model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.data.benchmark import FACETS, Benchmark, User
from prefmoe.data.counterfactual import PseudoUser
from prefmoe.data.pictures import picture_bytes
from prefmoe.data.prompts import description_text, facet_sentence
from prefmoe.data.sizes import ANCHORS, PREFIX_LENGTH
from prefmoe.models.growing import with_rows
from prefmoe.system import provenance

USERS_AT_ONCE = 1024
"""Users whose anchors are computed, and kept in a file, together."""

AnchorKind = Literal["hidden", "embedding"]


@dataclass
class UserTokens:
    """The soft tokens of a batch's users. A free embedding has a prefix and nothing else.

    Attributes:
        prefix: (B, 13, H) name, image, description, then prototype and residual of each facet.
        profile: (B, 3, H) name, image and description tokens.
        profile_anchors: (B, 2, H) the frozen image and description anchors.
        prototypes: (F, H). residuals: (B, F, H).
    """

    prefix: Tensor
    profile: Tensor | None = None
    profile_anchors: Tensor | None = None
    prototypes: Tensor | None = None
    residuals: Tensor | None = None


class _SparseRows(torch.autograd.Function):
    """weight[rows] with a gradient that is sparse in the rows, which SparseAdam takes."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return weight[rows]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], gradient, ctx.shape, check_invariants=False), None


class FactorisedUsers(nn.Module):
    """Anchors of all users with their corrections, and the facet prototypes.

    Args:
        anchors: (U, 8, H) from encode_users. known: (U, F) bool, which facet anchors exist.
        trained: (U,) bool, users with training questions: prototypes, means and rms come from them alone. The
            other users keep delta = 0, because no training question asks about them.
        residual: "centred" or "published", see above. scale: s, relative to the anchors' rms.
        sparse: give delta gradients that are sparse in the users of a batch.

    Raises:
        ValueError: if no user is trained.
    """

    def __init__(
        self,
        anchors: Tensor,
        known: Tensor,
        trained: Tensor,
        *,
        residual: Literal["centred", "published"] = "centred",
        scale: float = 0.1,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        if not trained.any():
            raise ValueError("a user state needs at least one user with training questions")
        users, _, hidden = anchors.shape
        weight = (known & trained[:, None]).to(anchors)[..., None]  # (U, F, 1)
        count = weight.sum(0).clamp_min(1)  # (F, 1)
        mean = (anchors[:, 3:] * weight).sum(0) / count  # (F, H)
        center = mean if residual == "centred" else torch.zeros_like(mean)
        facet_rms = _rms((anchors[:, 3:] * weight).square().sum(0) / count)  # (F, 1)
        profile_rms = _rms(anchors[trained, 1:3].square().mean(0))  # (2, 1)
        start = (anchors[:, 3:] - center) * weight
        self.register_buffer("anchors", anchors)
        self.register_buffer("known", known)
        self.register_buffer("center", center)
        self.register_buffer("bound", scale * torch.cat([profile_rms, facet_rms]))  # (7, 1)
        self.register_buffer("residual_rms", (start.square().sum() / (count.sum() * hidden)).sqrt())
        self.prototypes = nn.Parameter(mean.clone())  # (F, H)
        self.delta = nn.Parameter(anchors.new_zeros(users, len(ANCHORS) - 1, hidden))  # (U, 7, H)

    def forward(self, rows: Tensor) -> UserTokens:
        """The tokens of users, by row. rows: (B,). Its cost does not depend on the number of users."""
        anchors, known = self.anchors[rows], self.known[rows]  # (B, 8, H), (B, F)
        delta = _SparseRows.apply(self.delta, rows) if self.sparse else self.delta[rows]
        correction = self.bound * torch.tanh(delta)  # (B, 7, H)
        profile = torch.cat([anchors[:, :1], anchors[:, 1:3] + correction[:, :2]], dim=1)  # (B, 3, H)
        residuals = (anchors[:, 3:] - self.center + correction[:, 2:]) * known[..., None]  # (B, F, H)
        pairs = torch.stack([self.prototypes.expand_as(residuals), residuals], dim=2)  # (B, F, 2, H)
        prefix = torch.cat([profile, pairs.flatten(1, 2)], dim=1)  # (B, 13, H)
        return UserTokens(prefix, profile, anchors[:, 1:3], self.prototypes, residuals)

    @torch.no_grad()
    def append(self, anchors: Tensor, known: Tensor) -> None:
        """Adds users with delta = 0. anchors (N, 8, H), known (N, F). After training: delta is replaced."""
        rows = {"anchors": anchors, "known": known, "delta": self.delta.new_zeros(len(anchors), *self.delta.shape[1:])}
        grown = {name: with_rows(self, name, value) for name, value in rows.items()}
        self.anchors, self.known = grown["anchors"], grown["known"]
        self.delta = nn.Parameter(grown["delta"], requires_grad=self.delta.requires_grad)


class FreeUsers(nn.Module):
    """Free vectors per user, with neither anchors nor structure: 13 of them are ablation "E".

    Drawn from N(0, rms^2), rms being that of the backbone's input embeddings. Users without training
    questions get the mean of the trained users' vectors: nothing is known of them.

    Args:
        trained: (U,) bool. hidden: H. rms: standard deviation of the start. length: vectors per user.
        sparse: give the embedding gradients that are sparse in the users of a batch.
    """

    def __init__(
        self, trained: Tensor, hidden: int, rms: float, length: int = PREFIX_LENGTH, *, sparse: bool = False
    ) -> None:
        super().__init__()
        self.sparse = sparse
        if not trained.any():
            raise ValueError("a user embedding needs at least one user with training questions")
        # (U,) a user's row of the embedding, or -1
        self.register_buffer("slot", torch.where(trained, trained.cumsum(0) - 1, -1))
        self.embedding = nn.Parameter(rms * torch.randn(int(trained.sum()), length, hidden))

    def forward(self, rows: Tensor) -> UserTokens:
        """The tokens of users, by row. rows: (B,)."""
        slot = self.slot[rows]  # (B,)
        slot_or_first = slot.clamp_min(0)
        prefix = _SparseRows.apply(self.embedding, slot_or_first) if self.sparse else self.embedding[slot_or_first]
        if not self.training:
            prefix = torch.where(slot[:, None, None] >= 0, prefix, self.embedding.mean(0))
        return UserTokens(prefix)

    @torch.no_grad()
    def append(self, count: int) -> None:
        """Adds ``count`` users of whom nothing is known."""
        self.slot = with_rows(self, "slot", self.slot.new_full((count,), -1))


def trained_rows(benchmark: Benchmark, device: torch.device) -> Tensor:
    """(U,) bool: which users of a benchmark have training questions."""
    trained = set(benchmark.trained_users)
    return torch.tensor([name in trained for name in benchmark.users], device=device)


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
        self, anchors: Tensor, center: Tensor, families: Sequence[str], groups: Tensor, real_groups: int
    ) -> None:
        """anchors (N, 8, H); center (F, H); groups (N, F), -1 = nobody's; real_groups: ids in use."""
        super().__init__()
        own = real_groups + torch.arange(groups.numel()).view_as(groups)
        family = torch.tensor([FACETS.index(name) for name in families])  # (N,)
        same = family[None, :] == torch.arange(len(FACETS))[:, None]  # (F, N)
        early = (same & (same.cumsum(1) <= 2)).any(0)
        buffers = {
            "image": anchors[:, 1],
            "description": anchors[:, 2],
            "residuals": anchors[:, 3:] - center,
            "groups": torch.where(groups < 0, own, groups),
            "pool": torch.cat([same, early[None]]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(anchors.device), persistent=False)


@torch.no_grad()
def encode_users(backbone: Backbone, users: Sequence[User], kind: AnchorKind) -> tuple[Tensor, Tensor]:
    """The eight anchors of each user, computed once by the frozen backbone.

    A text anchor is the mean over the tokens of a short text (the name; the description; "User preference in
    travel: ...") of the last hidden states or of the input embeddings; the image anchor is the mean of the
    projected image tokens of the profile picture. Users are encoded `USERS_AT_ONCE` at a time, and those of whom
    ``backbone.anchor_cache`` knows are read from it.

    Returns:
        anchors (U, 8, H) in float32, zero where a facet is not annotated; known (U, F) bool.
    """
    cache, parts = backbone.anchor_cache, []
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        key = anchors_digest(backbone, some, kind) if cache else ""
        found = cache.read(key) if cache else None
        if found is None:
            images = backbone.image_features([user.image for user in some])
            images = torch.stack([tokens.float().mean(0).to(backbone.device) for tokens in images])
            anchors, known = _encode(backbone, some, images, kind)
            found = {"anchors": anchors, "known": known}
            if cache:
                cache.write(key, found)
        parts.append(found)
    anchors, known = (torch.cat([part[name].to(backbone.device) for part in parts]) for name in ("anchors", "known"))
    return anchors, known


def anchors_digest(backbone: Backbone, users: Sequence[User], kind: AnchorKind) -> str:
    """Names everything that the anchors of these users depend on.

    That is the weights and the precision of the backbone, the users' texts, annotated facets and profile pictures (by
    content), the kind of anchor, and the code and library that compute them.

    Raises:
        PictureError: if a profile picture cannot be read; the message names it.
    """
    people: list[Any] = []
    for user in users:
        picture = hashlib.blake2b(picture_bytes(user.image), digest_size=16).hexdigest()
        people.append([_texts(user), sorted(user.preferences), picture])
    precision = [str(backbone.dtype), bool(getattr(backbone.model, "is_loaded_in_4bit", False))]
    modules = ("prefmoe.models.user_state", "prefmoe.backbones.loading")
    code = [provenance.code_digest(modules), transformers.__version__]
    return provenance.digest([backbone.digest, precision, kind, people, code])


@torch.no_grad()
def encode_counterfactual_users(
    backbone: Backbone, pseudo_users: Sequence[PseudoUser], kind: AnchorKind, image_anchors: Tensor
) -> Tensor:
    """Anchors (N, 8, H) of pseudo users.

    They have no picture: the image anchor mixes those of a real user, drawn by the pseudo user's image seed,
    and of the user most like it (0.65 and 0.35), with a hint of the description and of noise (0.05 rms each).

    Args:
        image_anchors: (U, H) of the trained users.
    """
    no_images = image_anchors.new_zeros(len(pseudo_users), image_anchors.shape[1])
    anchors, _ = _encode(backbone, pseudo_users, no_images, kind)
    unit = nn.functional.normalize(image_anchors, dim=-1)
    generators = [np.random.default_rng(user.image_seed) for user in pseudo_users]
    first = torch.tensor([int(rng.integers(len(unit))) for rng in generators], device=unit.device)
    # Of the drawn users alone: all against all would be (U, U).
    likeness = (unit[first] @ unit.T).scatter_(1, first[:, None], -2.0)  # (N, U)
    second = likeness.argmax(1) if len(unit) > 1 else first
    noise = np.stack([rng.standard_normal(unit.shape[1]) for rng in generators])
    rms = _rms(image_anchors.square().mean(0))  # (1,)
    hint = anchors[:, 2] / _rms(anchors[:, 2].square())
    extra = hint + torch.as_tensor(noise, dtype=hint.dtype, device=hint.device)
    anchors[:, 1] = 0.65 * image_anchors[first] + 0.35 * image_anchors[second] + 0.05 * rms * extra
    return anchors


def _encode(
    backbone: Backbone, users: Sequence[User | PseudoUser], images: Tensor, kind: AnchorKind
) -> tuple[Tensor, Tensor]:
    known = torch.tensor([[facet in user.preferences for facet in FACETS] for user in users])
    known = known.to(images.device)
    texts = [_texts(user) for user in users]
    distinct = {text: row for row, text in enumerate(dict.fromkeys(sum(texts, [])))}
    encoded = backbone.text_anchors(list(distinct), kind=kind).float()
    index = torch.tensor([[distinct[text] for text in row] for row in texts], device=encoded.device)
    name, description, facets = encoded[index].split([1, 1, len(FACETS)], dim=1)  # (U, 1 | 1 | F, H)
    return torch.cat([name, images[:, None], description, facets * known[..., None]], dim=1), known


def _texts(user: User | PseudoUser) -> list[str]:
    """Name, description and the five facets, as the backbone reads them."""
    return [user.name, description_text(user), *(facet_sentence(user, facet) for facet in FACETS)]


def _rms(squares: Tensor) -> Tensor:
    """(..., H) squares to their (..., 1) root mean."""
    return squares.mean(-1, keepdim=True).sqrt()
