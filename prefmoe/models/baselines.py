"""The methods PrefMoE is compared with: the backbone as it is, full fine-tuning, and LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import FullFineTuningMethod, LoRAMethod, NonTunedMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import Method, MethodError


class NonTuned(Method, settings=NonTunedMethod):
    """The backbone as it is, with the user's profile in the prompt or without."""

    def __init__(self, config: NonTunedMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, profile=config.profile, **options)


class FullFineTuning(Method, settings=FullFineTuningMethod):
    """All weights of language model and projector are trained; the vision tower stays frozen.

    A backbone in half precision is trained in float32 and computes in its half precision (autocast): single steps of
    full fine-tuning are smaller than what half precision tells apart.
    """

    def __init__(self, config: FullFineTuningMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        if getattr(backbone.model, "is_loaded_in_4bit", False):
            raise MethodError("full fine-tuning needs whole weights; set hardware.four_bit: false")
        self.compute = backbone.dtype
        backbone.unfreeze()

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        half = self.compute != torch.float32
        with torch.autocast(self.backbone.device.type, self.compute if half else None, enabled=half):
            yield

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"backbone": ([p for p in self.model.parameters() if p.requires_grad], self.config.lr)}


class LoRA(Method, settings=LoRAMethod):
    """PEFT's LoRA on the projections of the decoder layers."""

    def __init__(self, config: LoRAMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        self.lora = install_lora(
            backbone, config.last_layers, rank=config.rank, alpha=config.alpha, dropout=config.dropout
        )

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"lora": (self.lora, self.config.lr)}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "rank": self.config.rank}


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
