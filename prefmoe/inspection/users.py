"""What a trained method's users are made of: their anchors, residuals and prefix tokens, and how near these lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import skew
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn.functional import normalize

from prefmoe.analysis import statistics
from prefmoe.data.benchmark import FACETS
from prefmoe.data.prompts import description_text, facet_sentence
from prefmoe.data.sizes import ANCHORS
from prefmoe.inspection.questions import InspectionError
from prefmoe.models.base import Method
from prefmoe.models.user_state import FactorisedUsers

KINDS = ("anchor", "residual", "full token")
"""The three vectors of a user's facet: the frozen anchor, the residual r, and p + r."""

PREFIX_TOKENS = ("name", "image", "description", *(f"{part} {facet}" for facet in FACETS for part in ("p", "r")))
"""The 13 prefix tokens: profile, then prototype (p) and residual (r) of each facet."""


FEWEST = 5
"""Vectors that t-SNE can place."""

SPACE_COLUMNS = ("stage", "tokens", "user", "facet", "group", "x", "y")

PURITY_COLUMNS = ("stage", "tokens", "colour", "neighbours", "value", "n", "low", "high", "chance", "best")


def _factorised(method: Method) -> FactorisedUsers:
    state = getattr(method, "user_state", None)
    if not isinstance(state, FactorisedUsers):
        raise InspectionError(f"{method.config.label!r} has no anchors, prototypes and residuals (component P)")
    return state


def _trained_rows(method: Method) -> Tensor:
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
    state, rows = _factorised(method), _trained_rows(method)
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


def user_space(
    stages: Mapping[str, FacetTokens], *, neighbours: int = 5, seed: int = 0, perplexity: float = 30.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """t-SNE coordinates of facet tokens and the purity of their neighbourhoods, per stage and kind of token; no rows of
    a stage with fewer than five tokens, or with those of one user alone.

    Args:
        stages: stage of training -> tokens.
        neighbours: of each token, in the full space, that purity looks at; fewer where there are not so many.
        perplexity: of the drawing alone; the purity does not depend on it.

    Returns coordinates with stage, tokens, user, facet, group (rank of the preference group; 7 stands for the eighth
    and all smaller ones), x, y; purity with stage, tokens, colour ("facet", "group"), neighbours, value, low, high, n,
    chance and best: the largest value possible, because a group of two users has one right neighbour only.
    """
    points, numbers = [], []
    for stage, tokens in stages.items():
        labels = tokens.labels
        users = labels["user"].to_numpy()
        admissible = users[:, None] != users[None, :]
        count = min(neighbours, int(admissible.sum(1).min(initial=len(labels))))
        if len(labels) < FEWEST or not count:
            continue
        for kind, vectors in tokens.vectors.items():
            x, y = tsne(vectors, seed, perplexity=perplexity).T
            place = {"stage": stage, "tokens": kind}
            group = labels["rank"].clip(upper=7)
            points.append(labels[["user", "facet"]].assign(**place, group=group, x=x, y=y))
            for colour in ("facet", "group"):
                names = labels[colour].to_numpy()
                same = ((names[:, None] == names[None, :]) & admissible).sum(1)
                estimate = neighbourhood_purity(vectors, names, count, users, seed=seed)
                best = float(np.minimum(same, count).mean() / count)
                numbers.append({**place, "colour": colour, "neighbours": count, **estimate, "best": best})
    coordinates = pd.concat(points, ignore_index=True) if points else pd.DataFrame(columns=list(SPACE_COLUMNS))
    return coordinates[list(SPACE_COLUMNS)], pd.DataFrame(numbers, columns=list(PURITY_COLUMNS))


def tsne(X: ArrayLike, seed: int = 0, *, perplexity: float = 30.0) -> NDArray:
    """(N, H) vectors to (N, 2) t-SNE coordinates that do not differ between calls.

    Rows are scaled to unit length (the losses compare cosines); exact gradients; started from the principal
    components; each axis flipped so that its skewness is positive.

    Raises ValueError with fewer than `FEWEST` vectors.
    """
    X = np.asarray(X, dtype=np.float64)
    if len(X) < FEWEST:
        raise ValueError(f"t-SNE needs at least {FEWEST} vectors, got {len(X)}")
    X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    start = PCA(2, svd_solver="full").fit_transform(X)  # this solver draws nothing and fixes the signs
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(perplexity, (len(X) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init=start, method="exact", random_state=seed, learning_rate="auto")
    coordinates = model.fit_transform(X)
    signs = np.sign(skew(coordinates, axis=0))
    return coordinates * np.where(signs == 0, 1, signs)


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
def anchors(method: Method, name: str) -> pd.DataFrame:
    """A user's eight anchors: anchor, made_of (the text, or the picture's file name), dimensions, rms. Raises
    InspectionError if the method's users are not factorised."""
    state, user = _factorised(method), method.benchmark.users[name]
    texts = [user.name, f"picture {user.image.name}", description_text(user)]
    texts += [facet_sentence(user, facet) if facet in user.preferences else "(none)" for facet in FACETS]
    values = state.anchors[method.benchmark.row(name)].float()  # (8, H)
    rms = values.square().mean(1).sqrt().tolist()
    return pd.DataFrame({"anchor": ANCHORS, "made_of": texts, "dimensions": values.shape[1], "rms": rms})


@torch.no_grad()
def prefix_similarity(method: Method, names: Sequence[str]) -> dict[str, NDArray]:
    """For each user the (13, 13) cosines between the tokens of the prefix."""
    rows = torch.tensor([method.benchmark.row(name) for name in names], device=method.backbone.device)
    unit = normalize(method.user_state(rows).prefix.float(), dim=-1)  # (B, 13, H)
    cosines = (unit @ unit.transpose(1, 2)).cpu().numpy()
    return dict(zip(names, cosines, strict=True))


@torch.no_grad()
def similarity_between_users(method: Method) -> pd.DataFrame:
    """How alike the same token is in two trained users, for each of the 13 tokens of the prefix.

    Returns token, pairs ("same group", "other group" for a facet's residual; "all" for the rest), value (mean cosine),
    low and high (the 10th and 90th percentile of the pairs), n (pairs). Raises InspectionError if the method's users
    are not factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
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


@torch.no_grad()
def corrections(method: Method) -> pd.DataFrame:
    """How much of the bound of the learned corrections the trained users use, per anchor.

    Returns anchor, anchor_rms, bound (s times that rms), largest (correction of any user and dimension), used (share of
    the bound, root mean square over users and dimensions). Raises InspectionError if the method's users are not
    factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    known = torch.cat([torch.ones_like(state.known[rows, :2]), state.known[rows]], dim=1)  # (U, 7)
    share = torch.tanh(state.delta[rows])  # (U, 7, H)
    table = []
    for k, anchor in enumerate(ANCHORS[1:]):
        inside, bound = share[known[:, k], k], float(state.bound[k])
        if len(inside):
            rms = {"anchor_rms": bound / method.config.correction_scale, "bound": bound}
            used = {"largest": bound * float(inside.abs().max()), "used": float(inside.square().mean().sqrt())}
            table.append({"anchor": anchor, **rms, **used})
    return pd.DataFrame(table)


@torch.no_grad()
def residual_variants(method: Method) -> pd.DataFrame:
    """What the two definitions of a residual, before any correction, do to the users' residuals of each facet.

    Returns facet, variant ("published": r = anchor; "centred": r = anchor - mean), residual_rms, prototype_rms, and
    between_users: the mean cosine between two users' residuals. Raises InspectionError if the method's users are not
    factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    table = []
    for f, facet in enumerate(FACETS):
        anchors = state.anchors[rows, 3 + f][state.known[rows, f]].float()
        if len(anchors) < 2:
            continue
        mean = anchors.mean(0)
        for variant, residuals in (("published", anchors), ("centred", anchors - mean)):
            unit = normalize(residuals, dim=-1)
            cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
            table.append(
                {
                    "facet": facet,
                    "variant": variant,
                    "prototype_rms": float(mean.square().mean().sqrt()),
                    "residual_rms": float(residuals.square().mean().sqrt()),
                    "between_users": float(cosines.mean()),
                }
            )
    columns = ["facet", "variant", "prototype_rms", "residual_rms", "between_users"]
    return pd.DataFrame(table, columns=columns)
