"""The last decoder layer works at the ends of prompts alone, where nothing else of its output is needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefmoe.backbones.backbone import Backbone

POSITION_BY_POSITION = ("q_proj", "o_proj", "mlp")
"""Parts of a decoder layer, by their last names, that treat every position by itself and feed no keys or values."""


@contextmanager
def last_positions_only(backbone: Backbone, count: int | None) -> Iterator[None]:
    """Within it the last hidden states are right at the last ``count`` positions of each row, and wrong at the others.

    Answers stand at the ends of prompts. What the last layer says elsewhere reaches them through its keys and values
    alone, so that queries, attention (torch's, "sdpa"), its output and the MLP can be left out there; zeros take their
    places.
    Of the miniature's four layers that saves a fifth of the products.

    ``count``: of positions; None leaves nothing out. So do gradient checkpointing, which computes layers once more
    when this has ended, and a backbone whose layers nobody has named.
    """
    layer = None if backbone.entry.architecture is None else backbone.layers[-1]
    if count is None or layer is None or getattr(layer, "gradient_checkpointing", False):
        yield
        return
    length = 0

    def cut(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal length
        length = args[0].shape[-2]
        return (args[0][..., -count:, :].contiguous(), *args[1:])

    def fill(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return pad(output, (0, 0, length - output.shape[-2], 0))

    parts = [module for name, module in layer.named_modules() if name.rpartition(".")[2] in POSITION_BY_POSITION]
    handles = [part.register_forward_pre_hook(cut) for part in parts]
    handles += [part.register_forward_hook(fill) for part in parts]
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention_at_the_end(usual, getattr(layer, "self_attn", None), count)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual
        for handle in handles:
            handle.remove()


def _attention_at_the_end(usual: Callable[..., Any], attention: nn.Module | None, count: int) -> Callable[..., Any]:
    """Attention as usual, but in one module with the last ``count`` queries alone."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        length, known = query.shape[2], key.shape[2]
        if module is not attention or length <= count:
            return usual(module, query, key, value, attention_mask, **options)
        if attention_mask is None:  # causal, nothing padded
            seen = torch.ones(count, known, dtype=torch.bool, device=key.device).tril(known - count)[None, None]
        else:
            seen = attention_mask[..., -count:, :]
        output, weights = usual(module, query[:, :, -count:], key, value, seen, **options)  # (B, count, heads, D)
        return pad(output, (0, 0, 0, 0, length - count, 0)), weights

    return attend
