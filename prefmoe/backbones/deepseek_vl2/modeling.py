"""DeepSeek-VL2: how pictures become tokens, and the language model that reads them.

A picture is a global view and, for one or two pictures, a grid of local tiles (processing.py). Every view passes
through SigLIP (g x g patches of one size) and a projector that joins each square of 2 x 2 patches, padded to an even
grid: t x t tokens, 14 x 14 in the published models. Their order, with N a learned newline and S a learned separator:

    global view:   t rows of        t tokens and N
    S
    local tiles:   t * down rows of t * across tokens and N, the tiles side by side as in the picture

so a picture of one tile has 14 * 15 + 1 + 14 * 15 = 421 tokens.

B, T, H = batch, tokens, hidden size of the language model; P = pictures, V = views.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV2Model, DeepseekV3Model, GenerationMixin, PreTrainedModel, SiglipVisionModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextModel

from prefmoe.backbones.deepseek_vl2.configuration import DeepseekVLV2Config

LANGUAGE_MODELS = {
    "deepseek_ocr2_text": DeepseekOcr2TextModel,
    "deepseek_v2": DeepseekV2Model,
    "deepseek_v3": DeepseekV3Model,
}
"""By text_config.model_type; see DeepseekVLV2Config."""


# --- model --------------------------------------------------------------------------------------------------------


class DeepseekVLV2VisionModel(SiglipVisionModel):
    """SigLIP under a name of its own, by which the published tensors' names are looked up."""


class DeepseekVLV2Projector(nn.Module):
    """Joins squares of patches, then Linear, GELU, Linear; has the two learned tokens, too."""

    def __init__(self, config: DeepseekVLV2Config) -> None:
        super().__init__()
        self.ratio = config.downsample_ratio
        width, hidden = config.vision_config.hidden_size, config.text_config.hidden_size
        inner, joined = hidden * config.projector_ratio, width * self.ratio**2
        self.layers = nn.Sequential(nn.Linear(joined, inner), nn.GELU(), nn.Linear(inner, hidden))
        self.image_newline = nn.Parameter(torch.empty(hidden))
        self.view_separator = nn.Parameter(torch.empty(hidden))

    def forward(self, states: Tensor) -> Tensor:
        """(V, g * g, D) patches, row by row, to (V, t * t, H) tokens; t is g over the ratio, rounded up."""
        side = math.isqrt(states.shape[1])
        patches = states.transpose(1, 2).unflatten(2, (side, side))  # (V, D, g, g)
        missing = -side % self.ratio
        patches = F.pad(patches, (0, missing, 0, missing))
        joined = F.pixel_unshuffle(patches, self.ratio)  # (V, D * ratio^2, t, t)
        return self.layers(joined.flatten(2).transpose(1, 2))

    def lay_out(self, views: Tensor, across: int, down: int) -> Tensor:
        """(1 + across * down, t * t, H) tokens of the views to the picture's sequence (tokens, H)."""
        side = math.isqrt(views.shape[1])
        whole = views[0].unflatten(0, (side, side))  # (t, t, H)
        tiles = views[1:].unflatten(0, (down, across)).unflatten(2, (side, side))  # (down, across, t, t, H)
        local = tiles.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # (down * t, across * t, H)
        return torch.cat([self._with_newlines(whole), self.view_separator[None], self._with_newlines(local)])

    def _with_newlines(self, rows: Tensor) -> Tensor:
        newline = self.image_newline.expand(len(rows), 1, -1)
        return torch.cat([rows, newline], dim=1).flatten(0, 1)


class DeepseekVLV2PreTrainedModel(PreTrainedModel):
    config_class = DeepseekVLV2Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "SiglipEncoderLayer",
        "DeepseekOcr2TextDecoderLayer",
        "DeepseekV2DecoderLayer",
        "DeepseekV3DecoderLayer",
    ]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"^vision\.attn_pool\.", r"vision_tower\.attn_pool\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekVLV2Projector):
            for token in (module.image_newline, module.view_separator):
                init.normal_(token, std=token.shape[0] ** -0.5)


class DeepseekVLV2Model(DeepseekVLV2PreTrainedModel):
    """Tower, projector and language model, without the head."""

    def __init__(self, config: DeepseekVLV2Config) -> None:
        super().__init__(config)
        self.vision_tower = DeepseekVLV2VisionModel(config.vision_config)
        self.multi_modal_projector = DeepseekVLV2Projector(config)
        self.language_model = LANGUAGE_MODELS[config.text_config.model_type](config.text_config)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_tiles: Tensor, return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """What the language model receives for each picture.

        Args:
            pixel_values: (P, views, 3, S, S): the global view, then the tiles row by row, then padding.
            image_tiles: (P, 2) long, tiles across and down.

        Returns pooler_output: P tensors (tokens, H), newlines and separator included.
        """
        tiles = image_tiles.tolist()
        counts = [1 + across * down for across, down in tiles]
        views = torch.cat([picture[:count] for picture, count in zip(pixel_values, counts, strict=True)])
        states = self.vision_tower(views.to(self.vision_tower.dtype)).last_hidden_state
        projector = self.multi_modal_projector
        tokens = projector(states).split(counts)
        pictures = [projector.lay_out(own, *grid) for own, grid in zip(tokens, tiles, strict=True)]
        return BaseModelOutputWithPooling(pooler_output=pictures)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, H) of input_ids (B, T), image tokens replaced by pictures (see get_image_features).
        Raises ValueError if image tokens and pictures disagree, or not exactly one of ids and embeddings is given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            inputs_embeds = self._show(inputs_embeds, input_ids, pixel_values, image_tiles)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **(options | {"return_dict": True}),
        )

    def _show(self, embeddings: Tensor, ids: Tensor | None, pixel_values: Tensor, image_tiles: Tensor | None) -> Tensor:
        """The embeddings (B, T, H) with the pictures in the place of their image tokens."""
        if ids is None or image_tiles is None or self.config.image_token_id is None:
            raise ValueError("pictures need input_ids, image_tiles and config.image_token_id")
        pictures = torch.cat(self.get_image_features(pixel_values, image_tiles).pooler_output)
        places = ids == self.config.image_token_id
        if (count := int(places.sum())) != len(pictures):
            raise ValueError(f"the prompts have {count} image tokens, the pictures {len(pictures)}")
        return embeddings.masked_scatter(places.unsqueeze(-1).to(embeddings.device), pictures.to(embeddings))


class DeepseekVLV2ForCausalLM(DeepseekVLV2PreTrainedModel, GenerationMixin):
    """DeepSeek-VL2 with its language model's head; takes what DeepseekVLV2Processor makes."""

    def __init__(self, config: DeepseekVLV2Config) -> None:
        super().__init__(config)
        self.model = DeepseekVLV2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_tiles: Tensor, **options: Any
    ) -> BaseModelOutputWithPooling:
        """See DeepseekVLV2Model.get_image_features."""
        return self.model.get_image_features(pixel_values, image_tiles, **options)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tiles: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocabulary), or of the last ``logits_to_keep`` positions, and with labels (B, T) the loss."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_tiles=image_tiles,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **options,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# --- names of the published tensors -------------------------------------------------------------------------------


class _DropBatch(ConversionOps):
    """(1, ...) in the file, (...) in the model; ``back``: the way back."""

    def __init__(self, back: bool = False) -> None:
        self.back = back

    def convert(self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str],
                **kwargs: Any) -> dict[str, Tensor]:  # fmt: skip
        value = _only(input_dict)
        return {target_patterns[0]: value.unsqueeze(0) if self.back else value.squeeze(0)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _DropBatch(not self.back)


class _JoinExperts(Concatenate):
    """Both matrices of all experts as one tensor (experts, 2 * inner, H). Where a file lacks one the tensor comes out
    too small, which loading reports by name."""

    def convert(self, input_dict: dict[str, Tensor], *patterns: list[str], **kwargs: Any) -> dict[str, Tensor]:
        fewest = min(map(len, input_dict.values()))
        return super().convert({name: one[:fewest] for name, one in input_dict.items()}, *patterns, **kwargs)


def _only(tensors: dict[str, Any]) -> Tensor:
    (value,) = tensors.values()
    return value[0] if isinstance(value, list) else value


# Loading applies these from the file's names to the model's, saving the other way round.
register_checkpoint_conversion_mapping(
    "DeepseekVLV2ForCausalLM",
    [
        WeightRenaming(r"^vision\.", "model.vision_tower."),
        WeightRenaming(r"^projector\.", "model.multi_modal_projector."),
        WeightRenaming(r"^image_newline", "model.multi_modal_projector.image_newline"),
        WeightRenaming(r"^view_seperator", "model.multi_modal_projector.view_separator"),
        WeightRenaming(r"^language\.model\.", "model.language_model."),
        WeightRenaming(r"^language\.lm_head\.", "lm_head."),
        # The leading dot tells these from transformers' own for two of the three language models.
        WeightConverter(
            [".mlp.experts.*.gate_proj.weight", ".mlp.experts.*.up_proj.weight"],
            ".mlp.experts.gate_up_proj",
            [MergeModulelist(dim=0), _JoinExperts(dim=1)],
        ),
        WeightConverter(".mlp.experts.*.down_proj.weight", ".mlp.experts.down_proj", [MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)
register_checkpoint_conversion_mapping(
    "DeepseekVLV2VisionModel",
    [
        WeightRenaming(r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        WeightRenaming(r"^norm\.", "post_layernorm."),
        WeightRenaming(r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm1."),
        WeightRenaming(r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.\1.layer_norm2."),
        WeightRenaming(r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
        WeightRenaming(r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
        WeightRenaming(r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
        *(
            WeightConverter(
                f"self_attn.qkv.{kind}", [f"self_attn.{name}_proj.{kind}" for name in "qkv"], [Chunk(dim=0)]
            )
            for kind in ("weight", "bias")
        ),
        WeightConverter("pos_embed", "embeddings.position_embedding.weight", [_DropBatch()]),
    ],
    overwrite=True,
)
