"""What drawing for users needs beside the raters: memory, disk, operations of a drawer; for plans, without loading one.

An upper estimate. The numbers of the published drawers are those of their papers and model cards.
"""

from dataclasses import dataclass, replace
from typing import Any

from prefmoe.config import Edition, Method, ProbesMethod, RaterMethod, UserTokensMethod, is_trained

HALF, FULL = 2, 4
"""Bytes of a number."""

PICTURES_LEARNED = 8
"""Pictures in a forward pass of training; what is beyond is accumulated."""

USERS, PROMPTS_MOST = 2, 3
"""Groups of users that are drawn for, and the passes of a guided step: without a prompt, with it, with the user too."""


@dataclass(frozen=True)
class DrawerShape:
    """A published drawer.

    Attributes:
        unet, text, picture: parameters of the denoiser, its text encoders, and what makes pictures of latents.
        operations: floating-point operations of one pass of the denoiser over one picture.
        kept: bytes that the backward pass keeps of a picture in half precision, without checkpointing.
        width: of its text embeddings. branch: parameters of keys and values for users in all cross-attentions.
    """

    unet: float
    text: float
    picture: float
    operations: float
    kept: float
    width: int
    branch: float


DRAWERS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": DrawerShape(860e6, 123e6, 84e6, 2 * 339e9, 3.0e9, 768, 19.2e6),
    "stabilityai/stable-diffusion-xl-base-1.0": DrawerShape(2.57e9, 817e6, 84e6, 2 * 2.98e12, 11.0e9, 2048, 350e6),
}
"""By their names on the hub: at 512 x 512 pixels the first, at 1024 x 1024 the second."""

MINIATURE = DrawerShape(3.1e6, 0.2e6, 0, 2 * 0.1e9, 4e6, 96, 0.1e6)


def shape_of(edition: Edition) -> DrawerShape:
    """The edition's drawer; what nobody has published here is taken for a miniature."""
    return DRAWERS.get(edition.generation.drawer, MINIATURE)


def rater_behind(edition: Edition, name: str) -> str:
    """The rater that a method begins with, through others or at once; the rewarding one where there is none."""
    while not isinstance(edition.methods[name], RaterMethod):
        name = getattr(edition.methods[name], "begins_with", None) or edition.generation.reward
    return name


def trained(edition: Edition, method: Method, hidden: int) -> int:
    """How many parameters a method trains beside a rater of this width."""
    if not isinstance(method, UserTokensMethod):
        return 0
    drawer, out = shape_of(edition), 2 * method.tokens * shape_of(edition).width
    count = drawer.branch + (2 * drawer.width) * len(method.parts)
    if "sem" in method.parts:
        count += (2 * method.top_layers * hidden + 1) * method.hidden + (method.hidden + 1) * out
    if "core" in method.parts:
        count += (2 * hidden + 1) * out
    if "img" in method.parts:
        count += (hidden + 1) * drawer.width
    return round(count)


def with_drawer(need: Any, edition: Edition, name: str, hidden: int, speed: float) -> Any:
    """What a rater's runs need (`resources.Needs`), as those of a method need it that draws or probes.

    Args:
        hidden: width of the rater. speed: floating-point operations a second.
    """
    method, settings = edition.methods[name], edition.generation
    if isinstance(method, ProbesMethod):
        return replace(need, training=0, results=round(1e8))
    drawer = shape_of(edition)
    half = FULL if drawer is MINIATURE else HALF
    weights = half * (drawer.unet + drawer.text + drawer.picture)
    learned, training, steps = trained(edition, method, hidden), 0.0, 0.0
    if is_trained(method):
        batch = min(PICTURES_LEARNED, edition.training.batch_size)
        training = weights + (3 * FULL + half) * learned + batch * drawer.kept
        pictures = edition.training.steps * edition.training.batch_size * edition.training.gradient_accumulation
        steps = 2 * pictures * method.steps_factor
    asked = USERS * settings.users * len(settings.prompts) * settings.noises
    variants = len(edition.histories.asked(name)) + (len(settings.scales) if name in settings.at_scales else 0)
    tries = getattr(method, "candidates", 1) * (3 if getattr(method, "how", "") == "gradient" else 1)
    steps += PROMPTS_MOST * asked * variants * tries * settings.steps
    at_once = settings.batch_size * PROMPTS_MOST * drawer.kept / 10  # of one layer at a time
    return replace(
        need,
        training=round(training),
        evaluation=round(need.evaluation + weights + at_once),
        download=round(need.download + (0 if drawer is MINIATURE else weights)),
        results=round(asked * variants * (3 * 512 * 512 if drawer is not MINIATURE else 4000) + FULL * learned),
        hours=steps * drawer.operations / speed / 3600,
    )
