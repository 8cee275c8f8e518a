"""A drawer small enough for tests: the miniature's architecture, with random weights."""

import torch
from pretraining.drawer import build_drawer

from prefmoe.generation.drawer import Drawer

PROMPTS = ("one camera", "two dogs, scarlet, night", "three hats, outlined, small, tilted")


def tiny_drawer(seed: int = 0) -> Drawer:
    """A random drawer of 32 x 32 pixels and width 16, in evaluation mode."""
    drawer = build_drawer(seed, channels=(16, 16), width=16)
    drawer.unet.eval()
    drawer.text_encoder.eval()
    return drawer


def some_users(drawer: Drawer, count: int, tokens: int = 4, seed: int = 0) -> torch.Tensor:
    """Random tokens of users, (count, tokens, D)."""
    return torch.randn(count, tokens, drawer.width, generator=torch.Generator().manual_seed(seed))
