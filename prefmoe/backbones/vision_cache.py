"""Keeps what a frozen vision tower says about each picture, so that a picture is encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index

from prefmoe.system.files import keep


class VisionCache:
    """Keeps what the frozen vision tower says about each picture, so that a picture is encoded once.

    Takes the place of the tower's forward. Every picture (or crop of one) is kept by the digest of its pixel values;
    those of a batch that are new are encoded together. The projector runs every time and may be trained. While a
    parameter of the tower needs a gradient, or attention maps are asked of it, the original forward runs.

    Args:
        tower, projector: of a class with `pixel_values` (N, C, H, W) and selected hidden states (LLaVA family) or the
            last ones (DeepSeek-VL2, Idefics3), or with packed patches and a merger in the tower (Qwen2.5-VL).
        layer: which hidden states the projector reads, where the model selects them.

    Attributes:
        filling: while new pictures pass through the tower's own forward, merger included; its result is not used.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, layer: int | Sequence[int] | None = None) -> None:
        self._tower, self._projector, self._layer = tower, projector, layer
        self.filling = False
        self._inside = any(module is self._projector for module in self._tower.modules())
        self._frozen_parameters = list(self._tower.parameters())
        if self._inside:
            trained = set(map(id, self._projector.parameters()))
            self._frozen_parameters = [p for p in self._frozen_parameters if id(p) not in trained]
        self._original = self._tower.forward
        self._states: dict[bytes, Tensor] = {}
        if self._inside:
            self._tower.forward = self._forward_packed
        else:
            self._tower.forward = self._forward_last if self._layer is None else self._forward_rows

    def __len__(self) -> int:
        """How many pictures (or crops) are kept."""
        return len(self._states)

    def share(self, other: VisionCache) -> None:
        """Keeps pictures together with the cache of another copy of the same frozen tower."""
        self._states = other._states

    def save(self, path: Path) -> None:
        """Writes what is kept (`files.keep`); nothing if pictures differ in their number of tokens."""
        if len({state.shape for state in self._states.values()}) != 1:
            return
        keys = json.dumps([key.hex() for key in self._states])
        states = torch.stack(list(self._states.values())).cpu()
        keep(path, lambda partial: save_file({"states": states}, partial, metadata={"pictures": keys}))

    def load(self, path: Path) -> None:
        """Keeps what `save` wrote of the same tower, besides what is kept."""
        with safe_open(path, "pt", device=str(next(self._tower.parameters()).device)) as file:
            keys = json.loads(file.metadata()["pictures"])
            self._states |= zip(map(bytes.fromhex, keys), file.get_tensor("states").unbind(), strict=True)

    def _bypassed(self, options: dict[str, Any]) -> bool:
        return bool(options.get("output_attentions")) or any(p.requires_grad for p in self._frozen_parameters)

    def _forward_rows(self, pixel_values: Tensor, **options: Any) -> Any:
        """LLaVA family: pixel_values (N, C, H, W) -> output whose hidden_states hold the projector's layers."""
        layers = [self._layer] if isinstance(self._layer, int) else list(self._layer)
        if self._bypassed(options) or options.get("output_hidden_states") not in (True, self._layer):
            return self._original(pixel_values, **options)
        states = self._keep_rows(
            pixel_values, options, lambda output, row: torch.stack([output.hidden_states[i][row] for i in layers])
        )  # (N, layers, tokens, D)
        return BaseModelOutputWithPooling(hidden_states=dict(zip(layers, states.unbind(1), strict=True)))

    def _forward_last(self, pixel_values: Tensor, **options: Any) -> Any:
        """DeepSeek-VL2, Idefics3: pixel_values (N, C, H, W) -> output with the last hidden states (N, tokens, D)."""
        if self._bypassed(options) or options.get("output_hidden_states"):
            return self._original(pixel_values, **options)
        states = self._keep_rows(pixel_values, options, lambda output, row: output.last_hidden_state[row])
        return BaseModelOutputWithPooling(last_hidden_state=states)

    def _keep_rows(self, pixel_values: Tensor, options: dict[str, Any], states: Callable[[Any, int], Tensor]) -> Tensor:
        """What ``states`` picks from the tower's output for each row of pixel_values (and of masks), stacked."""
        masks = {name: value for name, value in options.items() if isinstance(value, Tensor)}
        digests = [_digests(value) for value in (pixel_values, *masks.values())]
        keys = [b"".join(row) for row in zip(*digests, strict=True)]
        new = self._new(keys)
        if new:
            rows = list(new.values())
            options = {**options, **{name: mask[rows] for name, mask in masks.items()}}
            with torch.no_grad():
                output = self._original(pixel_values[rows], **options)
            self._states |= {key: states(output, row).clone() for row, key in enumerate(new)}
        return torch.stack([self._states[key] for key in keys])

    def _forward_packed(self, hidden_states: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        """Qwen2.5-VL: packed patches (sum of t*h*w, D) and grids (N, 3) -> output with merged tokens (sum, H)."""
        if self._bypassed(options) or options.get("output_hidden_states"):
            return self._original(hidden_states, grid_thw=grid_thw, **options)
        pictures = hidden_states.split(grid_thw.prod(-1).tolist())
        keys = [
            _digests(patches.unsqueeze(0), prefix=repr(grid).encode())[0]
            for patches, grid in zip(pictures, grid_thw.tolist(), strict=True)
        ]
        new = list(self._new(keys).values())
        if new:
            states = self._before_merger(torch.cat([pictures[i] for i in new]), grid_thw[new], options)
            self._states |= zip([keys[i] for i in new], states, strict=True)
        merged = self._projector(torch.cat([self._states[key] for key in keys]))
        return BaseModelOutputWithPooling(pooler_output=merged)

    def _new(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Position of the first occurrence of each key that is not kept yet, in the order of the batch: pictures that
        all are new pass through the tower as they would without a cache."""
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in self._states:
                first.setdefault(key, i)
        return first

    @torch.no_grad()
    def _before_merger(self, patches: Tensor, grids: Tensor, options: dict[str, Any]) -> list[Tensor]:
        """What the merger receives for each picture, (patches, D), in the order of the image tokens."""
        seen: list[Tensor] = []
        handle = self._projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        self.filling = True
        try:
            self._original(patches, grid_thw=grids, **options)
        finally:
            handle.remove()
            self.filling = False
        tower = self._tower
        order, _ = get_vision_window_index(grids, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        units = seen[0].reshape(len(order), -1, seen[0].shape[-1])
        states = units[torch.argsort(order).to(units.device)].flatten(0, 1)
        return [state.clone() for state in states.split(grids.prod(-1).tolist())]


def _digests(rows: Tensor, prefix: bytes = b"") -> list[bytes]:
    """A digest of the bytes of each row."""
    values = rows.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:  # numpy has no bfloat16
        values = values.view(torch.int16)
    return [hashlib.sha256(prefix + row.tobytes()).digest() for row in values.numpy()]
