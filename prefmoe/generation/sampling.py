"""Draws pictures: steps from noise to a picture, guided by a prompt and by a user, each with a scale of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from prefmoe.generation.drawer import Drawer, DrawerError

STEPS, TEXT_SCALE, USER_SCALE = 10, 2.0, 1.0
"""Steps from noise to a picture, and both scales of guidance, where nothing else is asked for."""


def noise_of(drawer: Drawer, seeds: Sequence[int]) -> Tensor:
    """What drawing starts from, (B, 3, size, size): each seed's noise is its own, whatever stands beside it."""
    shape = (3, drawer.size, drawer.size)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(drawn).to(drawer.device)


def sample(
    drawer: Drawer, prompts: Sequence[str], *, noise: Tensor | Sequence[int], user_tokens: Tensor | None = None,
    steps: int = STEPS, text_scale: float = TEXT_SCALE, user_scale: float = USER_SCALE,
) -> Tensor:  # fmt: skip
    """Pictures of prompts, drawn without a gradient; otherwise as `drawn`."""
    with torch.no_grad():
        return drawn(drawer, prompts, noise=noise, user_tokens=user_tokens, steps=steps, text_scale=text_scale,
                     user_scale=user_scale)  # fmt: skip


def drawn(
    drawer: Drawer, prompts: Sequence[str], *, noise: Tensor | Sequence[int], user_tokens: Tensor | None = None,
    steps: int = STEPS, text_scale: float = TEXT_SCALE, user_scale: float = USER_SCALE,
) -> Tensor:  # fmt: skip
    """Pictures of prompts, drawn by the deterministic steps of the drawer's scheduler; a gradient can go back to noise.

    Classifier-free guidance over two conditions has two scales. With what is seen without a text (0, 0), with the text
    alone (t, 0) and with text and user (t, u):

        seen = seen(0, 0) + text_scale (seen(t, 0) - seen(0, 0)) + user_scale (seen(t, u) - seen(t, 0))

    Args:
        prompts: (B) of them; for several users, each prompt as often as it has users.
        noise: (B, 3, size, size), or B seeds (`noise_of`).
        user_tokens: (B, T, D); None is nobody, as are zeros, and then ``user_scale`` says nothing.
        steps: as many calls of the network, on a batch of 2 B, or of 3 B where there are users.
        text_scale: of the prompt's guidance; 1 is none, 0 a picture of anything.
        user_scale: of the user's guidance; 1 is none, 0 a picture for nobody.

    Returns:
        (B, 3, size, size) in [0, 1].

    Raises:
        DrawerError: if a scale is negative or not finite, there are no steps, noise or user tokens are not finite or
            not as many as prompts, or a prompt has words that the drawer does not know.
    """
    for name, scale in (("text_scale", text_scale), ("user_scale", user_scale)):
        if not 0 <= scale < float("inf"):
            raise DrawerError(f"{name}: expected a number from 0, got {scale}")
    scheduler = copy.copy(drawer.scheduler)  # setting its steps changes it
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise DrawerError(f"steps: expected 1 to {most}, got {steps}")
    noise = noise if isinstance(noise, Tensor) else noise_of(drawer, noise)
    count, side = len(prompts), drawer.size
    _check("noise", noise, (count, 3, side, side))
    texts = drawer.encode_prompts([*prompts, ""])
    text, empty = texts[:-1], texts[-1:].expand(count, -1, -1)
    conditions, weights = [empty, text], [1 - text_scale, text_scale]
    users = None
    if drawer.has_user_branch:
        if user_tokens is not None:
            _check("user_tokens", user_tokens, (count, user_tokens.shape[1], drawer.width))
            conditions, weights = [empty, text, text], [1 - text_scale, text_scale - user_scale, user_scale]
            users = torch.cat([torch.zeros_like(user_tokens), torch.zeros_like(user_tokens), user_tokens])
        else:
            users = text.new_zeros(2 * count, 1, drawer.width)
    elif user_tokens is not None:
        raise DrawerError("user_tokens: this drawer has no branch for users (add_user_branch)")
    condition = torch.cat(conditions)
    scheduler.set_timesteps(steps, device=noise.device)
    noisy = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        seen = drawer.predict(noisy.repeat(len(weights), 1, 1, 1), time.expand(len(condition)), condition, users)
        guided = sum(weight * part for weight, part in zip(weights, seen.chunk(len(weights)), strict=True))
        noisy = scheduler.step(guided, time, noisy).prev_sample
    return noisy.clamp(-1, 1) / 2 + 0.5


def _check(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if given.shape != shape:
        raise DrawerError(f"{name}: expected {shape}, got {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()):
        raise DrawerError(f"{name}: expected finite numbers, found NaN or infinity")
