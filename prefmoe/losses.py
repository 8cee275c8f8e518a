"""The equations: PrefMoE's terms beside the answer loss (Lyu et al. 2026), the loss of a choice, and MMD.

Every similarity is a cosine, every term is one number, and no term loops over users, facets, examples or choices. Half
precision is computed in single. Numbers that are not finite make a term that is not: training refuses it.
B = examples of a batch, F = facets, N = counterfactual users, H = hidden size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

TEMPERATURE = 0.07

LEAST_P = 1e-6
"""What a contrast's probability is clamped to."""


def profile_alignment(image: Tensor, description: Tensor) -> Tensor:
    """How far a user's two profile tokens point apart (PrefMoE, Lyu et al. 2026, the objective): the mean of

        1 - cos(image, description).

    Args:
        image, description: (B, H) the profile tokens of each example's user.

    Returns:
        A scalar in [0, 2].
    """
    return (1 - cosine_similarity(*_single(image, description), dim=-1)).mean()


def profile_contrast(
    anchor: Tensor,
    positive: Tensor,
    user_ids: Tensor,
    counterfactual: Tensor | None = None,
    pool_mask: Tensor | None = None,
    *,
    temperature: float = TEMPERATURE,
    real_weight: float = 1.0,
    counterfactual_weight: float = 0.5,
) -> Tensor:
    """InfoNCE of a user's profile token against the user's own frozen anchor (PrefMoE, Lyu et al. 2026, the objective).

    With t_i = anchor[i], a_i = positive[i], c_k = counterfactual[k] and s(., .) = exp(cos / temperature):

        loss_i = -log s(t_i, a_i) / (s(t_i, a_i) + real_weight * mean_j s(t_i, a_j)
                                     + counterfactual_weight * mean_k s(t_i, c_k))

    with j over the examples of other users and k over the counterfactual users admitted for example i. The negatives
    enter by their mean, so that the loss does not depend on how many there are; an empty pool adds nothing.

    Args:
        anchor: (B, H) learned tokens t. positive: (B, H) frozen anchors a.
        user_ids: (B,) which user an example belongs to: examples of one user are no negatives of each other.
        counterfactual: (N, H) tokens of counterfactual users, or None.
        pool_mask: (B, N) bool, which counterfactual users example i admits; None admits all.

    Returns:
        The mean over the examples, a scalar.

    Raises:
        ValueError: if the temperature is not positive.
    """
    anchor, positive = _single(anchor, positive, temperature=temperature)
    own = cosine_similarity(anchor, positive, dim=-1) / temperature  # (B,)
    others = user_ids[:, None] != user_ids[None, :]  # (B, B)
    pools = [_log_mean_exp(_cosines(anchor, positive) / temperature, others, real_weight)]
    if counterfactual is not None and len(counterfactual):
        similarity = _cosines(anchor, *_single(counterfactual)) / temperature  # (B, N)
        admitted = torch.ones_like(similarity, dtype=torch.bool) if pool_mask is None else pool_mask.bool()
        pools.append(_log_mean_exp(similarity, admitted, counterfactual_weight))
    # log(exp(own) + others) - own, without the difference of two large numbers
    return softplus(torch.logsumexp(torch.stack(pools), dim=0) - own).mean()


def residual_contrast(
    residuals: Tensor,
    groups: Tensor,
    query: Tensor | None = None,
    counterfactual: Tensor | None = None,
    counterfactual_groups: Tensor | None = None,
    *,
    temperature: float = TEMPERATURE,
    density_power: float = 1.0,
    anchor_is_positive: bool = True,
) -> tuple[Tensor, Tensor]:
    """Contrast of residuals between preference groups, plain and imbalance-aware (PrefMoE, Lyu et al. 2026).

    In each facet an example is active with a_i = r_i + q_i. Its candidates are the active examples (itself
    included) and the counterfactual users, who answer example i's query: r_k + q_i. With p_i the softmax mass
    (over cosines / temperature) on the candidates of i's own preference group,

        contrast = mean_i -log p_i        focal = mean_i -(1 - rho_i)^density_power (1 - p_i) log p_i

    where rho_i is the share of i's group among the annotated examples of the batch: members of small groups,
    the first to be absorbed by the popular preference, weigh most. Both are averaged over the facets, and a
    facet without an annotated example counts as 0. p is clamped to [1e-6, 1].

    Args:
        residuals: (B, F, H).
        groups: (B, F) preference group in each facet; -1 = no annotation, takes no part.
        query: (B, H) summary of each example's question, or None for none.
        counterfactual: (N, F, H) residuals of counterfactual users, or None.
        counterfactual_groups: (N, F) their groups; -1 = takes no part.
        anchor_is_positive: whether an example is among its own candidates, and so among its positives. If not (as
            in the supervised contrastive loss, Khosla et al. 2020, eq. 2), one that has no other positive takes
            no part in that facet; rho counts it either way.

    Returns:
        (contrast, focal), two scalars.

    Raises:
        ValueError: if counterfactual users come without groups, or the temperature is not positive.
    """
    if counterfactual is not None and counterfactual_groups is None:
        raise ValueError("counterfactual residuals need counterfactual_groups (N, F)")
    batch, facets, _ = residuals.shape
    query = torch.zeros_like(residuals[:, 0]) if query is None else query
    residuals, query = _single(residuals, query, temperature=temperature)
    members = groups.T  # (F, B)
    activation = _unit((residuals + query[:, None]).transpose(0, 1))  # (F, B, H)
    similarity = activation @ activation.transpose(1, 2)  # (F, B, B)
    candidates = members[:, None, :]  # (F, 1, B) group of each candidate
    if counterfactual is not None and len(counterfactual):
        # a_i . (r_k + q_i) / |r_k + q_i| expands into products of matrices: no (F, B, N, H) tensor is formed
        pseudo = _single(counterfactual)[0].transpose(0, 1)  # (F, N, H)
        cross = pseudo @ query.T  # (F, N, B)
        norms = pseudo.square().sum(-1)[:, None] + query.square().sum(-1)[:, None]  # (F, B, N)
        squared = norms + 2 * cross.transpose(1, 2)
        dot = activation @ pseudo.transpose(1, 2) + (activation * query).sum(-1)[..., None]  # (F, B, N)
        similarity = torch.cat([similarity, dot * squared.clamp_min(1e-12).rsqrt()], dim=2)
        candidates = torch.cat([candidates, counterfactual_groups.T[:, None, :]], dim=2)
    active = members >= 0  # (F, B)
    lowest = torch.finfo(similarity.dtype).min
    logits = (similarity / temperature).masked_fill(candidates < 0, lowest)  # (F, B, B + N)
    same = candidates == members[..., None]
    rho = same[..., :batch].sum(2) / active.sum(1, keepdim=True).clamp_min(1).to(similarity.dtype)  # (F, B)
    if not anchor_is_positive:
        itself = torch.eye(batch, logits.shape[2], dtype=torch.bool, device=logits.device)
        logits, same = logits.masked_fill(itself, lowest), same & ~itself
        active = active & same.any(2)
    # With z = log(mass of others / mass of the own group): -log p = log(1 + e^z) and 1 - p = sigma(z), also near p = 1.
    own, others = (torch.logsumexp(logits.masked_fill(hidden, lowest), dim=2) for hidden in (~same, same))
    surprise = softplus(others - own).clamp_max(-math.log(LEAST_P))
    focal = (1 - rho) ** density_power * (others - own).sigmoid().clamp_max(1 - LEAST_P) * surprise
    count = active.sum(1).to(similarity.dtype)  # (F,)

    def mean(values: Tensor) -> Tensor:
        return (values.masked_fill(~active, 0).sum(1) / count.clamp_min(1)).mean()

    return mean(surprise), mean(focal)


def decorrelation(residuals: Tensor, prototypes: Tensor) -> Tensor:
    """Keeps a user's residuals from repeating each other and from repeating the shared prototypes (PrefMoE, Lyu et al.
    2026, the objective):

        mean_{f != g} cos(r_f, r_g)^2 + mean_f cos(r_f, p_f)^2

    Args:
        residuals: (B, F, H). prototypes: (F, H).

    Returns:
        Mean squared cosine between residuals of different facets, plus the mean squared cosine between each
        residual and its facet's prototype; a scalar in [0, 2]. A single facet has no others.
    """
    facets = residuals.shape[1]
    residuals, prototypes = _single(residuals, prototypes)
    unit = _unit(residuals)
    between = (unit @ unit.transpose(1, 2)).square()  # (B, F, F)
    different = ~torch.eye(facets, dtype=torch.bool, device=residuals.device)
    to_prototype = (unit * _unit(prototypes)).sum(-1).square().mean()
    return to_prototype + between[:, different].mean() if facets > 1 else to_prototype


def pairwise_preference(
    plus_liked: Tensor, plus_disliked: Tensor, minus_liked: Tensor, minus_disliked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each picture of a choice judged by itself, and the two ranked (arXiv 2508.08220, Equations 4, 6 and 7).

    With M+ and M- the logits of "like" and "dislike" for a picture, and softmax over these two:

        base  = mean of (-log softmax(M+, M-)[+] of the liked, -log softmax(M+, M-)[-] of the disliked picture) / 2
        plus  = -mean log sigma(M+(liked) - M+(disliked))
        minus = -mean log sigma(M-(disliked) - M-(liked))

    The paper's objective is their sum. base alone cannot tell two pictures of one choice apart by more than each
    of them says; plus and minus depend on their differences alone.

    Args:
        plus_liked, plus_disliked, minus_liked, minus_disliked: M+ and M- of each choice's pictures, of one shape (any).

    Returns:
        (base, plus, minus), scalars.

    Raises:
        ValueError: if the shapes differ, or there is no choice.
    """
    shapes = [tuple(logits.shape) for logits in (plus_liked, plus_disliked, minus_liked, minus_disliked)]
    if len(set(shapes)) > 1 or plus_liked.numel() == 0:
        raise ValueError(f"expected four logits for each choice, in tensors of one shape, found {shapes}")
    # -log softmax(a, b)[a] = -log sigma(a - b) = softplus(b - a), which is finite however far they are apart.
    liked, disliked = softplus(minus_liked - plus_liked), softplus(plus_disliked - minus_disliked)
    base = (liked + disliked).mean() / 2
    return base, softplus(plus_disliked - plus_liked).mean(), softplus(minus_liked - minus_disliked).mean()


def mmd(x: Tensor, y: Tensor, *, bandwidths: Sequence[float] | Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two samples, unbiased (Gretton et al. 2012, Equation 3).

    With a mixture of RBF kernels of bandwidths s::

        k(a, b) = mean over s of exp(-|a - b|^2 / (2 s^2))
        mmd = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    It is 0 in expectation where both samples are of one distribution (and may then be negative). Whether x_i and y_i
    belong together plays no part: distributions are compared, not points. One bandwidth has no gradient between
    samples that are far apart in its units; several reach further (`median_bandwidths`).

    Args:
        x: (N, H). y: (M, H). bandwidths: (S,) positive numbers, in the units of x and y.

    Returns:
        A scalar.

    Raises:
        ValueError: if a sample has fewer than two rows, their widths differ, they are whole numbers, or a bandwidth is
            not positive or not finite, in the samples' precision its square included.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected two samples of two rows or more, of one width, found {[*x.shape]} and {[*y.shape]}")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"expected numbers with a fraction, found {x.dtype} and {y.dtype}")
    x, y = _single(x, y)
    scales = torch.as_tensor(bandwidths, dtype=x.dtype, device=x.device).reshape(-1)
    if not (len(scales) and bool(((scales > 0) & (scales.square() > 0) & scales.isfinite()).all())):
        raise ValueError(f"expected positive bandwidths, found {scales.tolist()}")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = _squared_distances(a, b)
        return torch.exp(-squared / (2 * scales[:, None, None].square())).mean(0)

    def within(a: Tensor) -> Tensor:
        pairs = kernel(a, a).masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0)
        return pairs.sum() / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def median_bandwidths(x: Tensor, y: Tensor, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Tensor:
    """Bandwidths for `mmd`, (S,): the median distance between different rows of both samples, times each factor. No
    gradient flows through them; where all rows are equal they are the factors themselves."""
    both = torch.cat([x, y]).detach()
    rows, columns = torch.triu_indices(len(both), len(both), 1, device=both.device)
    median = _squared_distances(both, both)[rows, columns].sqrt().median()
    return torch.where(median > 0, median, torch.ones_like(median)) * torch.tensor(factors).to(median)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, H) and (M, H) to the (N, M) squared distances, with gradients where rows are equal. From differences: that of
    squares and products would lose the distances of rows that are far from 0 or near to one another."""
    return (a[:, None] - b[None]).square().sum(-1)


def _single(*tensors: Tensor, temperature: float = 1.0) -> list[Tensor]:
    """The tensors, those of half precision in single. Raises ValueError if the temperature is not positive."""
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, found {temperature}")
    return [one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in tensors]


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; those shorter than 1e-6 stay short, so that no gradient is beyond measure."""
    return normalize(rows, dim=-1, eps=1e-6)


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """(B, H) and (N, H) to the (B, N) cosines between them."""
    return _unit(left) @ _unit(right).T


def _log_mean_exp(values: Tensor, mask: Tensor, weight: float) -> Tensor:
    """log(weight * mean of exp(values) over mask) per row of (B, N); hugely negative for an empty row."""
    lowest = torch.finfo(values.dtype).min
    total = torch.logsumexp(values.masked_fill(~mask, lowest), dim=1)
    scale = weight / mask.sum(1).clamp_min(1).to(values.dtype)
    return torch.where(mask.any(1), total + scale.log(), torch.full_like(total, lowest))
