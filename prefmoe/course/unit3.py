"""Checks of unit 3: prototype and residual in both readings, and the thirteen tokens of the prefix."""

from collections.abc import Callable
from typing import Any

import torch

from prefmoe.course import checking
from prefmoe.models.free_users import prefix_of

BY_HAND = torch.tensor([[[3.0, 1.0]], [[1.0, 1.0]]])
"""(2 users, 1 facet, 2 numbers)"""


def split(function: Callable) -> None:
    """split(anchors, reading) -> prototypes (F, H) and residuals (U, F, H)."""
    for reading, cosine in {"centred": -1.0, "published": 0.8944}.items():
        _, residuals = _parts(function, BY_HAND, reading)
        found = torch.cosine_similarity(residuals[0, 0], residuals[1, 0], dim=0)
        hint = {
            "centred": "Take the mean over the users away from every anchor.",
            "published": "The published code leaves the mean in: the residual is the anchor itself.",
        }[reading]
        name = f"the cosine of the two residuals ({reading})"
        checking.close(float(found), cosine, name, hint, tolerance=1e-3)
    anchors = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(3))
    for reading in ("centred", "published"):
        prototypes, residuals = _parts(function, anchors, reading)
        checking.close(prototypes, anchors.mean(0), f"prototypes ({reading})", "A mean over users, per facet.")
        expected = anchors - anchors.mean(0) if reading == "centred" else anchors
        checking.close(residuals, expected, f"residuals ({reading})")
    checking.right("Centred, two users point opposite ways; as published, both point to the mean.")


def _parts(function: Callable, anchors: torch.Tensor, reading: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = checking.called(function, anchors.clone(), reading, name="split")
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise checking.NotYet(f"split is {checking.described(found)}: expected two tensors, prototypes and residuals.")
    return (
        checking.tensor(found[0], anchors.shape[1:], f"prototypes ({reading})"),
        checking.tensor(found[1], anchors.shape, f"residuals ({reading})"),
    )


def prefix(function: Callable) -> None:
    """prefix(profile (3, H), prototypes (F, H), residuals (F, H)) -> (13, H)."""
    generator = torch.Generator().manual_seed(4)
    profile, prototypes, residuals = (torch.randn(n, 4, generator=generator) for n in (3, 5, 5))
    found = checking.called(function, profile.clone(), prototypes.clone(), residuals.clone(), name="prefix")
    rows = checking.tensor(found, (13, 4), "prefix(...)")
    expected = prefix_of(profile[None], prototypes, residuals[None])[0]
    hint = "Name, image, description; then for each facet its prototype, and behind it the user's residual."
    checking.close(rows, expected, "prefix(...)", hint)
    checking.right("Thirteen rows, in the order in which PrefMoE puts them in front of a prompt.")


def twice(answer: Any) -> None:
    """What prototype plus residual are at the start, in the published reading."""
    reasons = {
        "a": "That is the centred reading: mean plus what is left of the anchor without it.",
        "b": "The mean counts twice. Prototype and residual are no decomposition of the anchor then.",
        "c": "A user's correction starts at zero, so there is nothing else yet.",
    }
    checking.choice(answer, "twice", reasons, "b")
