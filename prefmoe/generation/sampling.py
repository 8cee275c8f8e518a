"""Draws pictures: steps from noise to a picture, guided by a prompt and by a user, each with a scale of its own."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from prefmoe.generation.drawer import Drawer, DrawerError

STEPS, TEXT_SCALE, USER_SCALE = 10, 2.0, 1.0
"""Steps from noise to a picture, and both scales of guidance, where nothing else is asked for."""

AT_ONCE = 32
"""Pictures that take their steps together: with more, what lies between two layers leaves a processor's cache."""


def noise_of(drawer: Drawer, seeds: Sequence[int]) -> Tensor:
    """What drawing starts from, (B, 3, size, size): each seed's noise is its own, whatever stands beside it."""
    shape = (3, drawer.size, drawer.size)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(drawn).to(drawer.device)


@torch.no_grad()
def sample(
    drawer: Drawer, prompts: Sequence[str], *, noise: Tensor | Sequence[int], user_tokens: Tensor | None = None,
    steps: int = STEPS, text_scale: float = TEXT_SCALE, user_scale: float = USER_SCALE,
) -> Tensor:  # fmt: skip
    """Pictures of prompts, drawn without a gradient, `AT_ONCE` at once; otherwise as `drawn`.

    What users share is computed once: the whole picture where nobody is told (the same prompt and noise), and otherwise
    what is seen in the noise itself without a user. After the first step every user has a picture of their own.
    """
    noise = _checked(drawer, prompts, noise, user_tokens, steps, text_scale, user_scale)
    if user_scale == 0:
        user_tokens = None
    kinds = [(prompt, row.numpy().tobytes()) for prompt, row in zip(prompts, noise.cpu(), strict=True)]
    rows, back = list(range(len(kinds))), list(range(len(kinds)))
    if user_tokens is None:
        rows, back = _once(kinds)
    found = []
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        users = None if user_tokens is None else user_tokens[some]
        shared = None if users is None else _once([kinds[row] for row in some])
        taken = _steps(
            drawer, [prompts[row] for row in some], noise[some], users, steps, text_scale, user_scale, shared
        )
        found.append(taken)
    return torch.cat(found)[back]


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
    noise = _checked(drawer, prompts, noise, user_tokens, steps, text_scale, user_scale)
    return _steps(drawer, prompts, noise, user_tokens, steps, text_scale, user_scale, None)


def _steps(
    drawer: Drawer, prompts: Sequence[str], noise: Tensor, user_tokens: Tensor | None, steps: int, text_scale: float,
    user_scale: float, shared: tuple[list[int], list[int]] | None,
) -> Tensor:  # fmt: skip
    """As of `drawn`; ``shared`` (`_once`) says which pictures begin with the same prompt and noise."""
    scheduler = copy.copy(drawer.scheduler)  # setting its steps changes it
    scheduler.set_timesteps(steps, device=noise.device)
    texts, every = drawer.encode_prompts([*prompts, ""]), list(range(len(prompts)))
    text, empty = texts[:-1], texts[-1:].expand(len(prompts), -1, -1)
    weights, said, users = [1 - text_scale, text_scale], [empty, text], []
    if user_tokens is not None:
        nobody = torch.zeros_like(user_tokens)
        weights, said = [1 - text_scale, text_scale - user_scale, user_scale], [empty, text, text]
        users = [nobody, nobody, user_tokens]
    elif drawer.has_user_branch:
        users = 2 * [text.new_zeros(len(prompts), 1, drawer.width)]
    first, back = shared or (every, every)
    # Convolutions are computed with channels last. Ascent on the noise would enlarge that rounding: it stays as it is.
    layout = torch.contiguous_format if noise.requires_grad else torch.channels_last
    noisy = noise * scheduler.init_noise_sigma
    for number, time in enumerate(scheduler.timesteps):
        alike = first if number == 0 else every
        rows = [alike, alike, every][: len(weights)]  # of each condition, the pictures that it is asked of
        given, condition = _rows(len(rows) * [noisy], rows), _rows(said, rows)
        given = given.contiguous(memory_format=layout)
        seen = drawer.predict(given, time.expand(len(given)), condition, _rows(users, rows) if users else None)
        each = [one if len(one) == len(every) else one[back] for one in seen.split([len(own) for own in rows])]
        guided = sum(weight * one for weight, one in zip(weights, each, strict=True))
        noisy = scheduler.step(guided, time, noisy).prev_sample
    if not noisy.isfinite().all():
        bad = int((~noisy.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DrawerError(f"picture {bad} ({prompts[bad]!r}) is not finite: NaN in weights of the drawer or branch")
    return noisy.contiguous().clamp(-1, 1) / 2 + 0.5


def _rows(parts: Sequence[Tensor], rows: Sequence[list[int]]) -> Tensor:
    """Rows of each part, beneath each other."""
    return torch.cat([part[own] for part, own in zip(parts, rows, strict=True)])


def _once(kinds: Sequence[object]) -> tuple[list[int], list[int]]:
    """Of things of which some are equal, the places of the first of each kind, and for all, which of these is equal."""
    numbers: dict[object, int] = {}
    back = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
    return [back.index(number) for number in range(len(numbers))], back


def _checked(
    drawer: Drawer, prompts: Sequence[str], noise: Tensor | Sequence[int], user_tokens: Tensor | None, steps: int,
    text_scale: float, user_scale: float,
) -> Tensor:  # fmt: skip
    """The noise. Raises DrawerError: see `drawn`."""
    for name, scale in (("text_scale", text_scale), ("user_scale", user_scale)):
        if not 0 <= scale < float("inf"):
            raise DrawerError(f"{name}: expected a number from 0, got {scale}")
    most = drawer.scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= most:
        raise DrawerError(f"steps: expected a whole number from 1 to {most}, got {steps}")
    noise = noise if isinstance(noise, Tensor) else noise_of(drawer, noise)
    _finite("noise", noise, (len(prompts), 3, drawer.size, drawer.size))
    if user_tokens is not None:
        if not drawer.has_user_branch:
            raise DrawerError("user_tokens: this drawer has no branch for users (add_user_branch)")
        _finite("user_tokens", user_tokens, (len(prompts), user_tokens.shape[1], drawer.width))
    return noise


def _finite(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if given.shape != shape:
        raise DrawerError(f"{name}: expected {shape}, got {tuple(given.shape)}")
    whole = torch.isfinite(given).flatten(1).all(dim=1)
    if not whole.all():
        row = int((~whole).nonzero()[0, 0])
        raise DrawerError(f"{name} of picture {row} of {len(given)}: expected finite numbers, found NaN or infinity")
