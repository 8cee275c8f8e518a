"""The image anchors of counterfactual users as the published code mixes them, who have no picture of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from prefmoe.data.benchmark import FACETS
from prefmoe.data.counterfactual import PseudoUser

NEAREST = 8
"""Real users from whom two are drawn."""


def mixed_images(anchors: Tensor, real: Tensor, users: Sequence[PseudoUser]) -> Tensor:
    """The counterfactual users' image anchors, (N, H): 0.65 x one + 0.35 x another real user's, and a hint of text.

    The two, who may be the same, are drawn by the user's seed from the `NEAREST` whose anchor in the user's family
    facet is most like the user's own. 0.1 x (description + family facet's anchor) and noise of 0.01 are added.

    ``anchors``: (N, 8, H) of the counterfactual users, without images; ``real``: (U, 8, H) of the trained users.
    """
    family = torch.tensor([3 + FACETS.index(user.family) for user in users])  # places in the anchor axis
    own = anchors[torch.arange(len(users), device=anchors.device), family.to(anchors.device)]  # (N, H)
    theirs = normalize(real[:, 3:], dim=2, eps=1e-6)  # (U, F, H)
    count = min(NEAREST, len(real))
    images = []
    for user, place, wanted, description in zip(users, family, own, anchors[:, 2], strict=True):
        likeness = theirs[:, place - 3] @ normalize(wanted, dim=0, eps=1e-6)  # (U,)
        nearest = likeness.topk(count).indices.cpu()
        drawn = torch.Generator().manual_seed(user.image_seed)
        first, second = (int(nearest[torch.randint(count, (1,), generator=drawn)]) for _ in range(2))
        noise = torch.randn(real.shape[2], generator=drawn, dtype=real.dtype).to(real.device)
        mixed = 0.65 * real[first, 1] + 0.35 * real[second, 1]
        images.append(mixed + 0.10 * (description + wanted) + 0.01 * noise)
    return torch.stack(images)
