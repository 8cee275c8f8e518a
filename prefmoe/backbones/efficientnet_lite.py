"""EfficientNet-Lite (Liu 2020; EfficientNet: Tan and Le 2019, arXiv 1905.11946) as a vision tower: a grid of tokens.

Beside EfficientNet it has ReLU6 for swish and no squeeze-and-excitation, which transformers' class always has. Batch
norms are part of the convolutions before them (`folded`), exact for a tower that nothing trains; so training mode
cannot change it. Importing this module makes the class known to AutoConfig and AutoModel.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

LITE0 = [[1, 3, 1, 1, 16], [2, 3, 2, 6, 24], [2, 5, 2, 6, 40], [3, 3, 2, 6, 80], [3, 5, 1, 6, 112], [4, 5, 2, 6, 192],
         [1, 3, 1, 6, 320]]  # fmt: skip
"""The stages of EfficientNet-Lite0: repeats, kernel, stride, expansion, channels."""


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes of the tower.

    Attributes:
        stages: rows of repeats, kernel, stride of the first block, expansion, output channels.
        hidden_size: channels of the last convolution, hence of a token.
        patch_size: pixels per token and side: 2 (the stem's stride) times the strides of all stages.
    """

    model_type = "efficientnet_lite"

    image_size: int = 224
    patch_size: int = 32
    hidden_size: int = 1280
    stem_channels: int = 32
    stages: list | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.stages = self.stages or LITE0
        super().__post_init__(**kwargs)


class SameConv2d(nn.Conv2d):
    """A convolution with a bias whose output has ceil(size / stride) places; TensorFlow's padding, less before."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        edges: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            edges += [total // 2, total - total // 2]
        return super().forward(F.pad(x, edges))


class InvertedBottleneck(nn.Module):
    """Expansion (none at factor 1), depthwise convolution, linear projection; a skip where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = SameConv2d(inputs, width, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(width, width, kernel, stride, groups=width)
        self.project = SameConv2d(width, outputs, 1)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(wide)))
        return x + out if self.skips else out


class EfficientNetLiteModel(PreTrainedModel):
    """The convolutional part of the network, without ImageNet's classifier."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = _supports_flash_attn = True  # it has no attention, whatever the language model's is

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv2d(3, config.stem_channels, 3, 2)
        channels, blocks = config.stem_channels, []
        for repeats, kernel, stride, expansion, outputs in config.stages:
            for repeat in range(repeats):
                blocks.append(InvertedBottleneck(channels, outputs, kernel, 1 if repeat else stride, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv2d(channels, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """The last feature map, row by row, as the only hidden state.

        Args:
            pixel_values: (N, 3, H, W). options: what callers ask of transformers (attention maps); there are none.

        Returns last_hidden_state (N, tokens, hidden_size), pooler_output its mean (N, hidden_size), and hidden_states.
        """
        x = F.relu6(self.stem(pixel_values.to(self.dtype)))
        for block in self.blocks:
            x = block(x)
        tokens = F.relu6(self.head(x)).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,)
        )


def folded(published: Mapping[str, Tensor], epsilon: float = 1e-3) -> dict[str, Tensor]:
    """The tower's tensors from those of the package efficientnet-lite-pytorch; the classifier is left out. A batch norm
    after a convolution W x is (s W) x + (beta - s mu) with s = gamma / sqrt(var + epsilon)."""
    tensors: dict[str, Tensor] = {}
    for convolution, norm, name in _convolutions(published):
        weight = published[f"{convolution}.weight"].double()
        gamma, beta, mean, variance = (
            published[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / torch.sqrt(variance + epsilon)
        tensors[f"{name}.weight"] = (weight * scale[:, None, None, None]).float()
        tensors[f"{name}.bias"] = (beta - scale * mean).float()
    return tensors


def _convolutions(published: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Names of each convolution, of the batch norm behind it, and of the tower's convolution that replaces both."""
    yield "_conv_stem", "_bn0", "stem"
    for index in range(len({name.split(".")[1] for name in published if name.startswith("_blocks.")})):
        for part, norm in (("expand", 0), ("depthwise", 1), ("project", 2)):
            if f"_blocks.{index}._{part}_conv.weight" in published:
                yield f"_blocks.{index}._{part}_conv", f"_blocks.{index}._bn{norm}", f"blocks.{index}.{part}"
    yield "_conv_head", "_bn1", "head"


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
