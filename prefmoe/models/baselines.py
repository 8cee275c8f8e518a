"""The methods PrefMoE is compared with: the backbone as it is, full fine-tuning, and LoRA."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import FullFineTuningMethod, LoRAMethod, NonTunedMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import Method, MethodError
from prefmoe.models.lora import adapt


class NonTuned(Method, settings=NonTunedMethod):
    """The backbone as it is, with the user's profile in the prompt or without."""


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
    """PEFT's LoRA in the decoder layers; with the profile in every prompt and a trained projector, as published.

    The published code adapts every linear layer of the decoder (`targets: all_linear`), trains the projector, and shows
    description and preferences in training and in test; the default shows the name alone, and adapts what PrefMoE does.
    """

    def __init__(self, config: LoRAMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        self.adapted = adapt(backbone, config)

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return self.adapted

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "rank": self.config.rank}
