"""Soft tokens at the front of a prompt: a hook that swaps placeholder embeddings for the batch's user tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class PrefixHook:
    """Replaces the embeddings of placeholder positions by given tokens (Section 3 of PrefMoE, Lyu et al. 2026).

    The prompt holds ordinary token ids at the places of the prefix, so the backbone computes masks, multimodal
    positions and the key-value cache from ``input_ids`` as always; only the rows that the input embedding returns
    there change. Outside active() the embedding is untouched.

    ``embed_tokens``: the backbone's input embedding.
    """

    def __init__(self, embed_tokens: nn.Module) -> None:
        self.tokens: Tensor | None = None
        self.mask: Tensor | None = None
        embed_tokens.register_forward_hook(self._replace)

    @contextmanager
    def active(self, tokens: Tensor, mask: Tensor) -> Iterator[None]:
        """Within it, forward passes and the backward pass have these tokens.

        Args:
            tokens: (B, P, H), in the order of the prefix; gradients flow into them.
            mask: (B, T) bool, True at the P placeholder positions of each row (Batch.prefix_mask); nowhere when the
                T positions come behind a cached prefix.

        Raises ValueError if the shapes disagree, or some row has not exactly P placeholders and not every row none.
        """
        if tokens.dim() != 3 or mask.dim() != 2 or tokens.shape[0] != mask.shape[0]:
            raise ValueError(
                f"expected prefix tokens (B, P, H) and mask (B, T), found {tuple(tokens.shape)} and {tuple(mask.shape)}"
            )
        # On an accelerator the comparison would wait for the device.
        if mask.device.type == "cpu" and mask.any() and not bool((mask.sum(1) == tokens.shape[1]).all()):
            raise ValueError(f"expected {tokens.shape[1]} placeholders per row, found {mask.sum(1).tolist()}")
        self.tokens, self.mask = tokens, mask
        try:
            yield
        finally:
            self.tokens = self.mask = None

    def _replace(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        tokens, mask = self.tokens, self.mask
        ids = args[0]
        if tokens is None or mask is None or ids.dim() != 2 or ids.shape[1] == 1:
            return None  # no prefix here, or a decoding step behind a cached prefix
        if ids.shape[0] != mask.shape[0] or ids.shape[1] < mask.shape[1]:
            raise ValueError(
                f"a prefix is set for a batch of shape {tuple(mask.shape)}, "
                f"but tokens of shape {tuple(ids.shape)} are embedded"
            )
        # Without a cache, generation embeds the whole sequence again, longer by what it has generated.
        mask = nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]))
        return output.masked_scatter(mask.unsqueeze(-1).to(output.device), tokens.to(output))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (B, T, H) over the positions in mask (B, T), as (B, H) float32; 0 without positions."""
    total = torch.einsum("bth,bt->bh", values, mask.to(values.dtype))
    return total.float() / mask.sum(1, keepdim=True).clamp_min(1)
