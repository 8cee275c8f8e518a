"""What a trained method's users are made of: their anchors, residuals and prefix tokens, and how near these lie."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize

from prefmoe.analysis import statistics
from prefmoe.data.benchmark import FACETS
from prefmoe.inspection.questions import InspectionError
from prefmoe.models.base import Method
from prefmoe.models.user_state import FactorisedUsers

KINDS = ("anchor", "residual", "full token")
"""The three vectors of a user's facet: the frozen anchor, the residual r, and p + r."""

PREFIX_TOKENS = ("name", "image", "description", *(f"{part} {facet}" for facet in FACETS for part in ("p", "r")))
"""The 13 prefix tokens: profile, then prototype (p) and residual (r) of each facet."""


def factorised(method: Method) -> FactorisedUsers:
    """The users of a method with component P. Raises InspectionError if the method has none."""
    state = getattr(method, "user_state", None)
    if not isinstance(state, FactorisedUsers):
        raise InspectionError(f"{method.config.label!r} has no anchors, prototypes and residuals (component P)")
    return state


def trained_rows(method: Method) -> Tensor:
    """The rows of all users with training questions."""
    rows = [method.benchmark.row(name) for name in method.benchmark.trained_users]
    return torch.tensor(rows, device=method.backbone.device)


def _ranks(groups: NDArray) -> NDArray:
    """(U, F) preference groups to the rank of each by its size within its facet: 0 for the largest, -1 for none."""
    ranks = np.full_like(groups, -1)
    for f in range(groups.shape[1]):
        names, counts = np.unique(groups[groups[:, f] >= 0, f], return_counts=True)
        for rank, k in enumerate(np.lexsort((names, -counts))):
            ranks[groups[:, f] == names[k], f] = rank
    return ranks


@dataclass(frozen=True)
class FacetTokens:
    """The facet vectors of all trained users, N = one per user and annotated facet.

    Attributes:
        labels: N rows; user, facet, group (equal annotation, equal id) and rank (of the group by size within its
            facet, 0 is the largest).
        vectors: anchor, residual, full token -> (N, H).
    """

    labels: pd.DataFrame
    vectors: dict[str, NDArray]


@torch.no_grad()
def facet_tokens(method: Method) -> FacetTokens:
    """Anchors, residuals r and full tokens p + r of every trained user's annotated facets. Raises InspectionError if
    the method's users are not factorised."""
    state, rows = factorised(method), trained_rows(method)
    tokens = state(rows)
    groups = np.array(method.benchmark.groups)[rows.cpu().numpy()]  # (U, F)
    ranks, users = _ranks(groups), np.array(method.benchmark.trained_users)
    user, facet = np.nonzero(groups >= 0)
    labels = pd.DataFrame(
        {
            "user": users[user],
            "facet": np.array(FACETS)[facet],
            "group": groups[user, facet],
            "rank": ranks[user, facet],
        }
    )
    full = tokens.prototypes + tokens.residuals
    vectors = (state.anchors[rows, 3:], tokens.residuals, full)  # (U, F, H) each
    kept = [vector.float().cpu().numpy()[user, facet] for vector in vectors]
    return FacetTokens(labels, dict(zip(KINDS, kept, strict=True)))


def neighbourhood_purity(
    X: ArrayLike, labels: ArrayLike, k: int, users: ArrayLike, *, seed: int = 0
) -> dict[str, float]:
    """Share of a vector's k nearest neighbours (cosine) that carry its label, neighbours of the same user left out.

    Computed in the full space, because a two-dimensional picture invents neighbourhoods.

    Args:
        X: (N, H).
        labels: (N,) for instance facets or preference groups.
        users: (N,) the user of each vector; the interval resamples users.

    Returns value, n (vectors), low, high, and chance: the share of all admissible vectors that carry the label. Raises
    ValueError if a vector has fewer than k admissible neighbours.
    """
    X = np.asarray(X, dtype=np.float64)
    labels, users = np.asarray(labels), np.asarray(users)
    X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    admissible = users[:, None] != users[None, :]
    if admissible.sum(axis=1).min() < k:
        raise ValueError(f"{k} neighbours of other users were asked for, but some vector has fewer")
    similarity = np.where(admissible, X @ X.T, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    same = labels[:, None] == labels[None, :]
    purity = np.take_along_axis(same, nearest, axis=1).mean(axis=1)
    chance = ((same & admissible).sum(axis=1) / admissible.sum(axis=1)).mean()
    return {**statistics.cluster_bootstrap(purity, users, seed=seed), "chance": float(chance)}


@torch.no_grad()
def similarity_between_users(method: Method) -> pd.DataFrame:
    """How alike the same token is in two trained users, for each of the 13 tokens of the prefix.

    Returns token, pairs ("same group", "other group" for a facet's residual; "all" for the rest), value (mean cosine),
    low and high (the 10th and 90th percentile of the pairs), n (pairs). Raises InspectionError if the method's users
    are not factorised.
    """
    state, rows = factorised(method), trained_rows(method)
    unit = normalize(state(rows).prefix.float(), dim=-1).transpose(0, 1)  # (13, U, H)
    cosines = (unit @ unit.transpose(1, 2)).cpu().numpy()
    groups = np.array(method.benchmark.groups)[rows.cpu().numpy()]
    first, second = np.triu_indices(len(rows), 1)
    table = []
    for t, token in enumerate(PREFIX_TOKENS):
        values, kinds = cosines[t][first, second], np.full(len(first), "all", dtype=object)
        if token.startswith("r "):
            mine, theirs = (groups[side, FACETS.index(token[2:])] for side in (first, second))
            kinds = np.where(mine == theirs, "same group", "other group").astype(object)
            kinds[(mine < 0) | (theirs < 0)] = None
        for kind in ("all", "same group", "other group"):
            chosen = values[kinds == kind]
            if len(chosen):
                low, high = np.quantile(chosen, [0.1, 0.9])
                estimate = {"value": chosen.mean(), "low": low, "high": high, "n": len(chosen)}
                table.append({"token": token, "pairs": kind, **estimate})
    return pd.DataFrame(table)
