"""Anchors: what the frozen backbone reads in a user's profile, computed once."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.data import published_texts
from prefmoe.data.benchmark import FACETS, User
from prefmoe.data.counterfactual import PseudoUser
from prefmoe.data.pictures import picture_bytes
from prefmoe.data.prompts import description_text, facet_sentence
from prefmoe.models.published_counterfactual import mixed_images
from prefmoe.system import provenance

USERS_AT_ONCE = 1024
"""Users whose anchors are computed, and kept in a file, together."""

AnchorKind = Literal["hidden", "embedding"]

AnchorTexts = Literal["own", "published"]


@torch.no_grad()
def encode_users(
    backbone: Backbone, users: Sequence[User], kind: AnchorKind, texts: AnchorTexts = "own"
) -> tuple[Tensor, Tensor]:
    """The eight anchors of each user, computed once by the frozen backbone.

    A text anchor is the mean over the tokens of a short text (the name; the description; "User preference in
    travel: ...") of the last hidden states or of the input embeddings; the image anchor is the mean of the
    projected image tokens of the profile picture. Users are encoded `USERS_AT_ONCE` at a time, and those of whom
    ``backbone.anchor_cache`` knows are read from it.

    ``texts``: "published" for those of `published_texts`, special tokens in the mean, and a text for every facet.
    Returns anchors (U, 8, H) in float32, zero where a facet has no text; known (U, F) bool, which have one.
    """
    cache, parts = backbone.anchor_cache, []
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        key = anchors_digest(backbone, some, kind, texts) if cache else ""
        found = cache.read(key) if cache else None
        if found is None:
            images = backbone.image_features([user.image for user in some])
            images = torch.stack([tokens.float().mean(0).to(backbone.device) for tokens in images])
            anchors, known = _encode(backbone, some, images, kind, texts)
            found = {"anchors": anchors, "known": known}
            if cache:
                cache.write(key, found)
        parts.append(found)
    anchors, known = (torch.cat([part[name].to(backbone.device) for part in parts]) for name in ("anchors", "known"))
    return anchors, known


def anchors_digest(backbone: Backbone, users: Sequence[User], kind: AnchorKind, texts: AnchorTexts = "own") -> str:
    """Names everything that the anchors of these users depend on.

    That is the weights and the precision of the backbone, the users' texts, annotated facets and profile pictures (by
    content), the kind of anchor, and the code and library that compute them.

    Raises PictureError if a profile picture cannot be read; the message names it.
    """
    people: list[Any] = []
    for user in users:
        picture = hashlib.blake2b(picture_bytes(user.image), digest_size=16).hexdigest()
        people.append([_texts(user, texts), sorted(user.preferences), picture])
    precision = [str(backbone.dtype), bool(getattr(backbone.model, "is_loaded_in_4bit", False))]
    modules = ("prefmoe.models.anchors", "prefmoe.backbones.loading")
    code = [provenance.code_digest(modules), transformers.__version__]
    return provenance.digest([backbone.digest, precision, kind, texts, people, code])


@torch.no_grad()
def encode_counterfactual_users(
    backbone: Backbone,
    pseudo_users: Sequence[PseudoUser],
    kind: AnchorKind,
    real: Tensor,
    *,
    texts: AnchorTexts = "own",
    images: AnchorTexts = "own",
) -> Tensor:
    """Anchors (N, 8, H) of pseudo users.

    They have no picture: the image anchor mixes those of a real user, drawn by the pseudo user's image seed,
    and of the user most like it (0.65 and 0.35), with a hint of the description and of noise (0.05 rms each).

    ``real``: (U, 8, H) anchors of the trained users; ``texts``: as `encode_users` has them; ``images``: "published" for
    the mixture of `mixed_images` instead.
    """
    no_images = real.new_zeros(len(pseudo_users), real.shape[2])
    anchors, _ = _encode(backbone, pseudo_users, no_images, kind, texts)
    if images == "published":
        anchors[:, 1] = mixed_images(anchors, real, pseudo_users)
        return anchors
    image_anchors = real[:, 1]
    unit = nn.functional.normalize(image_anchors, dim=-1)
    generators = [np.random.default_rng(user.image_seed) for user in pseudo_users]
    first = torch.tensor([int(rng.integers(len(unit))) for rng in generators], device=unit.device)
    # Of the drawn users alone: all against all would be (U, U).
    likeness = (unit[first] @ unit.T).scatter_(1, first[:, None], -2.0)  # (N, U)
    second = likeness.argmax(1) if len(unit) > 1 else first
    noise = np.stack([rng.standard_normal(unit.shape[1]) for rng in generators])
    rms = root_mean(image_anchors.square().mean(0))  # (1,)
    hint = anchors[:, 2] / root_mean(anchors[:, 2].square())
    extra = hint + torch.as_tensor(noise, dtype=hint.dtype, device=hint.device)
    anchors[:, 1] = 0.65 * image_anchors[first] + 0.35 * image_anchors[second] + 0.05 * rms * extra
    return anchors


def _encode(
    backbone: Backbone, users: Sequence[User | PseudoUser], images: Tensor, kind: AnchorKind, texts: AnchorTexts
) -> tuple[Tensor, Tensor]:
    published = texts == "published"
    known = torch.tensor([[published or facet in user.preferences for facet in FACETS] for user in users])
    known = known.to(images.device)
    rows = [_texts(user, texts) for user in users]
    distinct = {text: row for row, text in enumerate(dict.fromkeys(sum(rows, [])))}
    limit = published_texts.MAX_TOKENS if published else None
    encoded = backbone.text_anchors(list(distinct), kind=kind, special_tokens=published, max_tokens=limit).float()
    index = torch.tensor([[distinct[text] for text in row] for row in rows], device=encoded.device)
    name, description, facets = encoded[index].split([1, 1, len(FACETS)], dim=1)  # (U, 1 | 1 | F, H)
    return torch.cat([name, images[:, None], description, facets * known[..., None]], dim=1), known


def _texts(user: User | PseudoUser, texts: AnchorTexts) -> list[str]:
    """Name, description and the five facets, as the backbone reads them."""
    if texts == "published":
        return published_texts.anchor_texts(user)
    return [user.name, description_text(user), *(facet_sentence(user, facet) for facet in FACETS)]


def root_mean(squares: Tensor) -> Tensor:
    """(..., H) squares to their (..., 1) root mean."""
    return squares.mean(-1, keepdim=True).sqrt()
