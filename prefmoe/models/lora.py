"""PEFT's LoRA on the projections of a backbone's decoder layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.config import BesideLoRA, LoRAMethod
from prefmoe.models.adapted_linear import AdaptedLinear, is_plain

Targets = Literal["projections", "all_linear"]


class QuickLinear(LoraLinear):
    """PEFT's LoRA layer with the same output in fewer operations, where it is one adapter without dropout."""

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """x (B, ..., in) to (B, ..., out)."""
        (name, *others), base = self.active_adapters, self.get_base_layer()
        usual = not (args or named or others or self.merged or self.disable_adapters or name in self.lora_variant)
        if usual and isinstance(self.lora_dropout[name], nn.Identity):
            A, B = self.lora_A[name].weight, self.lora_B[name].weight
            if is_plain(base, A, x):
                return AdaptedLinear.apply(x, base.weight, base.bias, A, B, self.scaling[name], None)
        return super().forward(x, *args, **named)


def adapt(backbone: Backbone, config: LoRAMethod) -> dict[str, tuple[list[nn.Parameter], float]]:
    """LoRA, and the projector where it learns too, as the settings say: parameters and learning rate by part."""
    shape = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
    lora = install_lora(backbone, config.last_layers, targets=config.targets, **shape)
    parts = {"lora": (lora, config.lr)}
    if config.projector:
        parts["projector"] = (_train_projector(backbone), config.lr_projector or config.lr)
    return parts


def _train_projector(backbone: Backbone) -> list[nn.Parameter]:
    """Lets the projector learn, in float32 whatever the precision of what is before and behind it."""
    projector, dtype = backbone.projector.requires_grad_(True), backbone.dtype
    if dtype != torch.float32:
        forward = projector.float().forward
        projector.forward = lambda states, *rest, **named: forward(states.float(), *rest, **named).to(dtype)
    return list(projector.parameters())


def _targets(backbone: Backbone, last_layers: int | None, targets: Targets) -> list[str]:
    return (backbone.linear_modules if targets == "all_linear" else backbone.target_modules)(last_layers)


def install_lora(
    backbone: Backbone,
    last_layers: int | None,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Targets = "projections",
) -> list[nn.Parameter]:
    """Adds PEFT's LoRA to linear maps of the last decoder layers (all when None).

    Args:
        alpha: the update is alpha / rank * B A x. targets: the architecture's projections, or all linear maps.

    Returns the adapters' parameters, the only ones of the backbone that require a gradient.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_targets(backbone, last_layers, targets),
        bias="none",
    )
    if not getattr(backbone.model, "is_loaded_in_4bit", False):
        config._register_custom_module({nn.Linear: QuickLinear})
    inject_adapter_in_model(config, backbone.model)
    adapters = [p for p in backbone.model.parameters() if p.requires_grad]
    for parameter in adapters:  # small steps get lost in half precision
        parameter.data = parameter.data.float()
    return adapters


def pooled_lora(backbone: Backbone, config: BesideLoRA) -> dict[str, tuple[list[nn.Parameter], float]]:
    """The LoRA that everybody shares, with alpha = rank: parameters and learning rate by part; empty without one."""
    if not (rank := config.pooled_rank):
        return {}
    return {"pooled": (install_lora(backbone, None, rank=rank, alpha=rank, dropout=0.0), config.lr_pooled)}


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
