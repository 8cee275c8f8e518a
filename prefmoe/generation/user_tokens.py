"""User tokens e_u = [mapped e_sem; e_core; e_img]: what a drawer is told of a user, in the width of its text.

e_sem: states of a rater's top layers, of liked and of disliked pictures apart, which an MLP maps into the drawer's text
space. e_core: states of one middle-to-upper layer. e_img: a liked picture of the history as the rater's frozen tower
sees it. B users, L layers, H hidden size of the rater, P tokens of a picture, D width of the drawer's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from prefmoe.backbones.batches import OnDevice
from prefmoe.config import UserTokensMethod
from prefmoe.losses import median_bandwidths, mmd


@dataclass(frozen=True)
class Known(OnDevice):
    """What a rater knows of B users.

    Attributes:
        states: (B, 2, L, H) of all layers, liked pictures first. picture: (B, P, H) the tokens of a liked picture.
    """

    states: Tensor
    picture: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, places: Sequence[int] | Tensor) -> Known:
        """Some of the users, in this order."""
        index = torch.as_tensor(places, device=self.states.device)
        return Known(self.states[index], self.picture[index])


class UserTokens(nn.Module):
    """Maps what a rater knows of users to tokens, (B, T, D), T = 2 tokens each of e_sem and of e_core, and P of e_img.

    Every part ends in a layer norm and is brought to the scale of text embeddings. States are standardised by the mean
    and spread of the training users' (`standardise`), because layers differ in both.

    Args:
        settings: parts, top_layers, tokens, hidden. core_layer: that of e_core, from 1.
        layers, hidden, picture_width: of the rater. width, scale: of the drawer's text embeddings, scale their RMS.
    """

    def __init__(
        self, settings: UserTokensMethod, *, core_layer: int, layers: int, hidden: int, picture_width: int, width: int,
        scale: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if settings.top_layers > layers or not 1 <= core_layer <= layers:
            wanted = f"top_layers {settings.top_layers} and layer {core_layer}"
            raise ValueError(f"expected layers that the rater has ({layers}), found {wanted}")
        self.settings, self.core_layer, self.width, self.scale = settings, core_layer, width, scale
        self.register_buffer("mean", torch.zeros(2, layers, hidden))
        self.register_buffer("spread", torch.ones(2, layers, hidden))
        out = settings.tokens * width
        self.sem = self.core = self.img = None
        if "sem" in settings.parts:
            first = nn.Linear(2 * settings.top_layers * hidden, settings.hidden)
            self.sem = nn.Sequential(first, nn.GELU(), nn.Linear(settings.hidden, 2 * out))
        if "core" in settings.parts:
            self.core = nn.Linear(2 * hidden, 2 * out)
        if "img" in settings.parts:
            self.img = nn.Linear(picture_width, width)
        self.norms = nn.ModuleDict({part: nn.LayerNorm(width) for part in settings.parts})

    def standardise(self, states: Tensor) -> None:
        """Takes mean and spread of the training users' states, (N, 2, L, H)."""
        self.mean.copy_(states.mean(0))
        self.spread.copy_(states.std(0).clamp_min(1e-6))

    def semantic(self, known: Known) -> Tensor:
        """Mapped e_sem in the drawer's text space, (B, 2 tokens, D): of liked pictures, then of disliked ones. Raises
        ValueError without e_sem."""
        if self.sem is None:
            raise ValueError("these user tokens have no e_sem")
        top = self._states(known)[:, :, -self.settings.top_layers :]
        return self._finished("sem", self.sem(top.flatten(1)))

    def forward(self, known: Known, semantic: Tensor | None = None) -> Tensor:
        """e_u, (B, T, D); ``semantic``: of `semantic`, where that is there already."""
        parts = []
        if self.sem is not None:
            parts.append(self.semantic(known) if semantic is None else semantic)
        if self.core is not None:
            parts.append(self._finished("core", self.core(self._states(known)[:, :, self.core_layer - 1].flatten(1))))
        if self.img is not None:
            parts.append(self._finished("img", self.img(known.picture)))
        return torch.cat(parts, 1)

    def _states(self, known: Known) -> Tensor:
        return (known.states - self.mean) / self.spread

    def _finished(self, part: str, mapped: Tensor) -> Tensor:
        return self.scale * self.norms[part](mapped.reshape(len(mapped), -1, self.width))


def alignment(semantic: Tensor, liked: Tensor, disliked: Tensor, how: str) -> Tensor:
    """How far mapped e_sem is from the text embeddings of the same users' attributes, a scalar.

    mmd compares distributions: all tokens of all users against all words of all users (`prefmoe.losses.mmd`), liked and
    disliked apart. mse and cosine compare points: each user's mean token against the mean of this user's words.

    Args:
        semantic: (B, 2 T, D), tokens of liked pictures first. liked, disliked: (B, W, D) embeddings of words.
        how: mmd, mse or cosine.

    Raises ValueError for another ``how``.
    """
    total = semantic.new_zeros(())
    for tokens, words in zip(semantic.chunk(2, 1), (liked, disliked), strict=True):
        if how == "mmd":
            x, y = tokens.flatten(0, 1), words.flatten(0, 1)
            total = total + mmd(x, y, bandwidths=median_bandwidths(x, y)) / 2
        elif how == "mse":
            total = total + mse_loss(tokens.mean(1), words.mean(1)) / 2
        elif how == "cosine":
            total = total + (1 - cosine_similarity(tokens.mean(1), words.mean(1), dim=-1)).mean() / 2
        else:
            raise ValueError(f"alignment: expected mmd, mse or cosine, found {how!r}")
    return total
