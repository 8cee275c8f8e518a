"""A backbone: a multimodal model with its processor, whose parts have the same names whatever its class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prefmoe.backbones.anchor_cache import AnchorCache
from prefmoe.backbones.encodings import Encodings
from prefmoe.backbones.errors import CollationError, PromptTooLong
from prefmoe.backbones.pictures import Picture, ProcessedPictures, load_pictures, process_pictures, stack_pictures
from prefmoe.backbones.vision_cache import VisionCache
from prefmoe.backbones.weights import weights_digest
from prefmoe.config.registry import BackboneEntry, BackboneError, Paths


class Backbone:
    """A multimodal model with its processor, and its parts under the same names whatever its class.

    Attributes:
        entry: what the registry says about it.
        model, processor, tokenizer: as transformers made them.
        vision_cache: the cache of the vision tower's output, or None.
        anchor_cache: where the anchors of users are kept, or None; for as long as the weights are as loaded.
        encodings: what it has read; collators of this backbone, and of copies that adopt it, share it.
        language_model and the others: the model's parts, where the registry says they are.
    """

    language_model: nn.Module
    layers: nn.ModuleList
    embed_tokens: nn.Module
    lm_head: nn.Module
    vision_tower: nn.Module
    projector: nn.Module

    def __init__(self, entry: BackboneEntry, model: nn.Module, processor: Any) -> None:
        self.entry, self.model, self.processor = entry, model, processor
        self.tokenizer = processor.tokenizer
        self.vision_cache: VisionCache | None = None
        self.anchor_cache: AnchorCache | None = None
        self.encodings = Encodings()
        if entry.architecture is not None:
            for part in Paths.model_fields:
                self._part(part)
        if not self.tokenizer.is_fast:
            raise BackboneError(f"backbone {entry.name!r}: expected a fast tokenizer (tokenizer.json)")
        if self.processor.chat_template is None:
            raise BackboneError(f"backbone {entry.name!r}: its processor has no chat template")
        if entry.architecture is None:  # its processor was asked before its weights were loaded
            return
        found = self.tokenizer.convert_tokens_to_ids(entry.image_token)
        if model.config.image_token_id is None:  # the model's files leave it to the tokenizer
            model.config.image_token_id = found
        if found != model.config.image_token_id:
            raise BackboneError(
                f"backbone {entry.name!r}: the tokenizer has id {found} for {entry.image_token!r}, "
                f"the model expects {model.config.image_token_id}"
            )

    def __getattr__(self, name: str) -> Any:
        """A part as it is now: a vocabulary that grows has another matrix."""
        if name not in Paths.model_fields:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._part(name)

    def _part(self, field: str) -> Any:
        if self.entry.architecture is None and field == "embed_tokens":
            return self.model.get_input_embeddings()
        path = getattr(self.entry.paths, field)
        part: Any = self.model
        for name in path.split("."):
            if not hasattr(part, name):
                raise BackboneError(
                    f"backbone {self.entry.name!r}, {field}: {type(self.model).__name__} has no {path!r} "
                    f"({type(part).__name__} lacks {name!r})"
                )
            part = getattr(part, name)
        return part

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def pad_token_id(self) -> int:
        """The padding id, or the end-of-sequence id where a tokenizer has none (padding is masked)."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def max_positions(self) -> int | None:
        """How many positions the language model was made for; None where its configuration does not say. Beyond them a
        model with rotary positions still computes, and answers with no more sense than an untrained one."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def check_length(self, count: int, what: str = "the prompt") -> None:
        """Raises PromptTooLong if so many positions are more than there are."""
        limit = self.max_positions
        if limit is not None and count > limit:
            name = self.entry.name
            raise PromptTooLong(f"{what} takes {count:,} positions, and backbone {name!r} has {limit:,}")

    @cached_property
    def placeholder_id(self) -> int:
        """The id at prefix positions: the first ordinary token, neither special nor padding nor image."""
        taken = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder, self.pad_token_id}
        return next(i for i in range(len(self.tokenizer)) if i not in taken and i != self.image_token_id)

    @cached_property
    def digest(self) -> str:
        """Identifies the weights: a hash of the folder's files, or the hub's commit."""
        return weights_digest(self.entry)

    def to(self, device: str | torch.device) -> Backbone:
        """Moves the model; returns self."""
        self.model.to(device)
        return self

    def adopt_caches(self, other: Backbone) -> None:
        """Goes on with what another copy of this backbone has read, and with the pictures it saw if both cache them.
        Raises BackboneError if the other one has other weights."""
        if other.digest != self.digest:
            raise BackboneError(f"{self.entry.name!r} cannot use what {other.entry.name!r} encoded: other weights")
        self.encodings = other.encodings
        if self.vision_cache is not None and other.vision_cache is not None:
            self.vision_cache.share(other.vision_cache)

    def cache_images(self) -> VisionCache:
        """Keeps from now on what the vision tower says of every picture."""
        layer = getattr(self.model.config, "vision_feature_layer", None)
        self.vision_cache = VisionCache(self.vision_tower, self.projector, layer)
        return self.vision_cache

    def freeze(self) -> None:
        """Stops gradients into every parameter and switches to evaluation mode."""
        self.model.requires_grad_(False)
        self.model.eval()

    def unfreeze(self) -> None:
        """Lets language model, head and projector learn, in float32; anchors are not kept of weights that change."""
        self.model.float()
        self.anchor_cache = None
        for part in (self.language_model, self.lm_head, self.projector):
            part.requires_grad_(True)

    def target_modules(self, last_layers: int | None = None) -> list[str]:
        """Full names of the projections that adapters go on, in the last decoder layers (all when None).

        Names are paths below the language model's layers: the vision tower has projections of the same names.

        Raises BackboneError if a layer lacks one of the architecture's target modules.
        """
        count = len(self.layers)
        first = 0 if last_layers is None else max(0, count - last_layers)
        names = []
        for index in range(first, count):
            prefix = f"{self.entry.paths.layers}.{index}"
            found = {name.rsplit(".", 1)[-1]: name for name, _ in self.layers[index].named_modules()}
            for target in self.entry.target_modules:
                present = [found[name] for name in target.split("|") if name in found]
                if not present:
                    raise BackboneError(f"backbone {self.entry.name!r}: {prefix} has no {target}")
                names.append(f"{prefix}.{present[0]}")
        return names

    def linear_modules(self, last_layers: int | None = None) -> list[str]:
        """Full names of every linear map in the last decoder layers (all when None), `target_modules` among them."""
        first = 0 if last_layers is None else max(0, len(self.layers) - last_layers)
        return [
            f"{self.entry.paths.layers}.{index}.{name}"
            for index in range(first, len(self.layers))
            for name, module in self.layers[index].named_modules()
            if isinstance(module, nn.Linear)
        ]

    def process_pictures(self, pictures: Sequence[Picture]) -> ProcessedPictures:
        """The pictures of one conversation, opened and prepared. Raises CollationError if a picture cannot be read, or
        the processor takes none of such a size."""
        images = load_pictures(pictures)
        try:
            return process_pictures(self.processor, images)
        except ValueError as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise CollationError(f"backbone {self.entry.name!r} takes no picture of {sizes} pixels: {error}") from error

    @torch.no_grad()
    def image_features(self, images: Sequence[Picture], batch_size: int = 32) -> list[Tensor]:
        """Projected image tokens of each picture, as the language model receives them: list of (n_tokens, H). Raises
        CollationError if a picture cannot be read; the message names it."""
        features: list[Tensor] = []
        for start in range(0, len(images), batch_size):
            processed = [self.process_pictures([image]) for image in images[start : start + batch_size]]
            inputs = {key: value.to(self.device) for key, value in stack_pictures(processed).items()}
            features += list(self.model.get_image_features(**inputs, return_dict=True).pooler_output)
        return features

    @torch.no_grad()
    def text_anchors(
        self,
        texts: Sequence[str],
        kind: Literal["hidden", "embedding"] = "hidden",
        batch_size: int = 32,
        *,
        special_tokens: bool = False,
        max_tokens: int | None = None,
    ) -> Tensor:
        """One vector per text, (N, H): the mean over its tokens, padding left out.

        Args:
            kind: of the language model's last hidden states, or of its input embeddings.
            special_tokens: count those that the tokenizer adds (such as the beginning of a sequence) in the mean.
            max_tokens: how many of a text's tokens are read, special ones included; all when None.

        Raises ValueError if a text has no tokens, or the kind is unknown; PromptTooLong if a text has more tokens than
        the model has positions.
        """
        if kind not in ("hidden", "embedding"):
            raise ValueError(f"kind of text anchor: expected hidden or embedding, found {kind!r}")
        # An unknown word is a word: a small vocabulary does not hold every name.
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        special = torch.tensor(sorted(special), device=self.device)
        rows = []
        for start in range(0, len(texts), batch_size):
            cut = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
            encoded = self.tokenizer(list(texts[start : start + batch_size]), **cut)["input_ids"]
            for text, row in zip(texts[start:], encoded, strict=False):
                self.check_length(len(row), f"the text {text[:60]!r}")
            length = max(map(len, encoded))
            ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in encoded], device=self.device)
            lengths = torch.tensor([len(row) for row in encoded], device=self.device)
            attention = torch.arange(length, device=self.device) < lengths[:, None]
            counted = attention if special_tokens else attention & ~torch.isin(ids, special)
            for text, count in zip(texts[start:], counted.sum(1).tolist(), strict=False):
                if count == 0:
                    raise ValueError(f"a text without tokens has no anchor: {text!r}")
            states = self.embed_tokens(ids)
            if kind == "hidden":
                states = self.language_model(
                    inputs_embeds=states, attention_mask=attention.long(), use_cache=False
                ).last_hidden_state
            weight = counted.to(states.dtype).unsqueeze(-1)
            rows.append((states * weight).sum(1) / weight.sum(1))
        return torch.cat(rows) if rows else torch.empty(0, self.hidden_size, device=self.device)
