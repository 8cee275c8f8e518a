"""Checks of unit 4: the residual contrast and its imbalance-aware form."""

from collections.abc import Callable
from typing import Any

import torch

from prefmoe import losses
from prefmoe.course import checking

RESIDUALS, GROUPS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
"""Three users, one facet; the first two share a preference."""


def mass(function: Callable) -> None:
    """mass(residuals (B, H), groups (B,), temperature) -> (B,), the softmax mass on each user's own group."""
    found = checking.called(function, RESIDUALS.clone(), GROUPS.clone(), 1.0, name="mass")
    values = checking.tensor(found, (3,), "mass(residuals, groups, 1.0)")
    hint = (
        "A softmax over all users, oneself included, of cosines divided by the temperature; then the sum over "
        "one's own group."
    )
    checking.close(values, [0.8446, 0.8446, 0.5761], "mass(residuals, groups, 1.0)", hint, tolerance=1e-4)
    residuals, groups = _drawn()
    hint = (
        "Are these cosines, or dot products? Is everything divided by the temperature? Does the softmax of a user run "
        "over all users, so that a row sums to one? Is the sum over that user's own group?"
    )
    for temperature in (0.5, 0.07):
        found = checking.called(function, residuals.clone(), groups.clone(), temperature, name="mass")
        values = checking.tensor(found, (12,), f"mass(..., {temperature})")
        expected = _masses(residuals, groups, temperature)
        checking.close(values, expected, f"mass(..., {temperature})", hint, tolerance=1e-4)
    checking.right("Two of a kind hold .84 of each other's mass, the lone user .58 of their own.")


def contrast(function: Callable) -> None:
    """contrast(p (B,)) -> a scalar."""
    p = torch.tensor([0.8446, 0.8446, 0.5761])
    value = checking.number(checking.called(function, p, name="contrast"), "contrast(p)")
    checking.close(value, 0.2964, "contrast(p)", "The mean of minus the natural logarithm.", tolerance=2e-4)
    checking.right("0.2964, as by hand in notebook 5.")


def preservation(function: Callable) -> None:
    """preservation(p (B,), groups (B,), eta) -> a scalar."""
    p = torch.tensor([0.8446, 0.8446, 0.5761])
    value = checking.number(
        checking.called(function, p, GROUPS.clone(), 1.0, name="preservation"), "preservation(p, groups, 1)"
    )
    hint = "Each -log p is multiplied by (1 - rho) ** eta and by (1 - p), where rho is the share of the user's group."
    checking.close(value, 0.0578, "preservation(p, groups, 1)", hint, tolerance=2e-4)
    residuals, groups = _drawn()
    for eta in (0.0, 1.0, 2.0):
        p = _masses(residuals, groups, 0.5)
        _, expected = losses.residual_contrast(residuals[:, None], groups[:, None], temperature=0.5, density_power=eta)
        value = checking.number(checking.called(function, p, groups, eta, name="preservation"), "preservation(...)")
        checking.close(value, float(expected), f"preservation with eta = {eta:g}", hint, tolerance=1e-5)
    checking.right("0.0578, and equal to prefmoe.losses.residual_contrast on drawn users.")


def weight(answer: Any) -> None:
    """How many times more the lone user weighs than one of the pair, in the imbalance-aware term."""
    p, rho = torch.tensor([0.8446, 0.5761]), torch.tensor([2 / 3, 1 / 3])
    pair, lone = (-(1 - rho) * (1 - p) * p.log()).tolist()
    value = checking.number(answer, "weight", "a number, the lone user's part divided by that of one of the pair")
    hint = "Compute (1 - rho) * (1 - p) * -log p for the third user and for the first, and divide."
    checking.close(value, lone / pair, "weight", hint, tolerance=0.2)
    checking.right("In the plain contrast it is 3.3 times; the two factors make it far more.")


def _masses(residuals: torch.Tensor, groups: torch.Tensor, temperature: float) -> torch.Tensor:
    cosines = torch.cosine_similarity(residuals[:, None], residuals[None], dim=-1)
    return (torch.softmax(cosines / temperature, dim=1) * (groups[:, None] == groups)).sum(1)


def _drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, 6, generator=generator), torch.randint(0, 4, (12,), generator=generator)
