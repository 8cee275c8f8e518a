"""PEFT's LoRA on the projections of a backbone's decoder layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from prefmoe.backbones.backbone import Backbone


def install_lora(
    backbone: Backbone, last_layers: int | None, *, rank: int, alpha: float, dropout: float
) -> list[nn.Parameter]:
    """Adds PEFT's LoRA to the projections of the last decoder layers (all when None).

    Args:
        alpha: the update is alpha / rank * B A x.

    Returns:
        The adapters' parameters, the only ones of the backbone that require a gradient.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=backbone.target_modules(last_layers),
        bias="none",
    )
    inject_adapter_in_model(config, backbone.model)
    adapters = [p for p in backbone.model.parameters() if p.requires_grad]
    for parameter in adapters:  # small steps get lost in half precision
        parameter.data = parameter.data.float()
    return adapters


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Within it LoRA's updates are part of the weights that they adapt: W + alpha / rank * B A.

    Answers are the same, up to rounding, and a layer takes one product instead of three. Weights that would lose
    more than that (in half precision, quantised) or that processes share out stay apart. All are restored exactly.
    """
    layers = []
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and type(weight := layer.get_base_layer().weight) is nn.Parameter:
            if weight.dtype == torch.float32 and not layer.merged:
                layers.append((layer, weight, weight.detach().clone()))
    try:
        for layer, _, _ in layers:
            layer.merge()
        yield
    finally:
        for layer, weight, plain in layers:
            layer.unmerge()
            weight.data.copy_(plain)


def matching_rank(backbone: Backbone, parameters: int, last_layers: int | None = None) -> int:
    """The rank at which LoRA on a plain backbone comes nearest to a number of trainable parameters."""
    layers = [backbone.model.get_submodule(name) for name in backbone.target_modules(last_layers)]
    per_rank = sum(layer.in_features + layer.out_features for layer in layers)
    return max(1, round(parameters / per_rank))
