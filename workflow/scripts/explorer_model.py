"""What the explorer's browser computes with: the shipped miniature with both adapters, as ONNX graphs and tables.

One language model serves all methods. Beside every adapted projection stand the rows of PrefMoE's experts and, behind
them, those of LoRA, and what each row counts is an input: LoRA alone, PrefMoE with the gates of its routers or of
anybody else, or nothing, which is the backbone as it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import LoRAMethod, PrefMoEMethod
from prefmoe.models import saved
from prefmoe.models.free_users import UserTokens
from prefmoe.models.moe_lora import install_mixture
from prefmoe.models.routing import Routing
from prefmoe.models.user_state import FactorisedUsers
from prefmoe.running.evaluation import first_tokens

GRAPHS = ("see", "ask")
"""A picture to its tokens; tokens of user, picture and question to the answer's logits."""

KNOWN = {"components": "EPICDM", "routers": "own", "query": "question", "anchors": "embedding", "anchor_texts": "own"}
"""The readings of the method that users.js and routing.js follow."""


class Adapters(NamedTuple):
    """The committed adapters of one backbone: settings and tensors by name."""

    backbone: Backbone
    prefmoe: PrefMoEMethod
    lora: LoRAMethod
    routed: Mapping[str, Tensor]
    plain: Mapping[str, Tensor]

    @property
    def experts(self) -> int:
        """Rows of PrefMoE."""
        return next(len(tensor) for name, tensor in self.routed.items() if name.endswith(".A"))


def read(folder: Path) -> Adapters:
    """The adapters in folder/PrefMoE and folder/LoRA on the backbone that they were trained on.

    Raises ValueError if they are of a kind that the graphs do not know, or of other weights than are shipped.
    """
    described = {name: saved.read(folder / name / saved.CONFIG_FILE) for name in ("PrefMoE", "LoRA")}
    tensors = {name: load_file(folder / name / saved.WEIGHTS_FILE) for name in described}
    prefmoe, lora = described["PrefMoE"].method, described["LoRA"].method
    simple = isinstance(prefmoe, PrefMoEMethod) and isinstance(lora, LoRAMethod) and lora.profile == "none"
    if not simple or lora.projector or any(getattr(prefmoe, key) != value for key, value in KNOWN.items()):
        expected = f"PrefMoE with {KNOWN}, and LoRA without profile and projector"
        raise ValueError(f"{folder}: expected {expected}, found {prefmoe} and {lora}")
    backbone = load_backbone(described["PrefMoE"].backbone.name)
    for name, one in described.items():
        if one.backbone.digest != backbone.digest:
            raise ValueError(
                f"{folder / name / saved.CONFIG_FILE}, backbone.digest: trained on weights {one.backbone.digest}, the "
                f"shipped ones are {backbone.digest}; make the assets again: python workflow/scripts/explorer.py assets"
            )
    return Adapters(backbone, prefmoe, lora, tensors["PrefMoE"], tensors["LoRA"])


class Ask(nn.Module):
    """before (1, S) ids, image (1, 16, H), after (1, T) ids, prefix (1, P, H), scale (1, R), context (1, C) to the
    logits (1, V) of the answer's first token: prefix, before, image and after make the prompt."""

    def __init__(self, backbone: Backbone, routing: Routing) -> None:
        super().__init__()
        self.model, self.head, self.embed = backbone.language_model, backbone.lm_head, backbone.embed_tokens
        self.routing = routing

    def forward(
        self, before: Tensor, image: Tensor, after: Tensor, prefix: Tensor, scale: Tensor, context: Tensor
    ) -> Tensor:
        prompt = torch.cat([prefix, self.embed(before), image, self.embed(after)], dim=1)
        self.routing.scale, self.routing.context = scale, context
        seen = torch.ones(prompt.shape[:2], dtype=torch.long)
        hidden = self.model(inputs_embeds=prompt, attention_mask=seen, use_cache=False).last_hidden_state
        return self.head(hidden[:, -1])


class See(nn.Module):
    """pixels (1, 3, 64, 64), whole numbers from 0 to 255, to the picture's tokens (1, 16, H)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model, processor = backbone.model, backbone.processor.image_processor
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        values = (pixels.float() / 255 - self.mean) / self.std
        return self.model.get_image_features(pixel_values=values, return_dict=True).pooler_output[0][None]


@torch.no_grad()
def modules(adapters: Adapters) -> dict[str, nn.Module]:
    """`See` and `Ask` of a backbone, whose projections become mixtures of the rows of both adapters."""
    backbone, routing = adapters.backbone, Routing()
    names = backbone.target_modules(adapters.prefmoe.last_layers)
    rank, scaling = adapters.lora.rank, adapters.lora.alpha / adapters.lora.rank
    install_mixture(backbone.model, names, adapters.experts + rank, routing)
    for name in names:
        layer = backbone.model.get_submodule(name)
        lora = {part: adapters.plain[f"model.{name}.lora_{part}.default.weight"] for part in "AB"}
        layer.A.copy_(torch.cat([adapters.routed[f"model.{name}.A"], lora["A"]]))
        layer.B.copy_(torch.cat([adapters.routed[f"model.{name}.B"], scaling * lora["B"]], dim=1))
    backbone.freeze()
    for name in names:  # a step of autograd with a derivative by hand cannot be exported; it is for frozen weights
        backbone.model.get_submodule(name).base.weight.requires_grad_(True)
    return {"see": See(backbone).eval(), "ask": Ask(backbone, routing).eval()}


def export(adapters: Adapters, folder: Path) -> list[Path]:
    """Writes see.onnx and ask.onnx, with their weights inside; returns them. Raises ImportError without onnx and
    onnxscript, which `prefmoe[docs]` installs."""
    made, hidden = modules(adapters), adapters.backbone.hidden_size
    free = torch.export.Dim.AUTO
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    rows = adapters.experts + adapters.lora.rank
    image, prefix = torch.zeros(1, 16, hidden), torch.zeros(1, 13, hidden)
    question = torch.tensor([[2, 5]]), image, torch.arange(7, 16)[None], prefix
    inputs = {
        "see": {"pixels": (picture, None)},
        "ask": dict(zip(("before", "image", "after", "prefix"), ((part, {1: free}) for part in question), strict=True))
        | {"scale": (torch.ones(1, rows), None), "context": (torch.zeros(1, adapters.prefmoe.user_rank), None)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in GRAPHS:
        examples, shapes = zip(*inputs[name].values(), strict=True)
        with torch.no_grad():
            program = torch.onnx.export(
                made[name], examples, dynamo=True, dynamic_shapes=shapes, input_names=list(inputs[name]),
                output_names=["tokens" if name == "see" else "logits"], verbose=False,
            )  # fmt: skip
        written.append(folder / f"{name}.onnx")
        program.save(written[-1], external_data=False)
    return written


@torch.no_grad()
def tables(adapters: Adapters) -> dict[str, Tensor]:
    """What users and routing are computed from in the browser: the word embeddings, the users' tokens after training,
    prototypes and means of the facets, and the routers' maps."""
    tensors = adapters.routed
    state = {key.removeprefix("user_state."): value for key, value in tensors.items() if key.startswith("user_state.")}
    known, anchors = state["known"], state["anchors"]
    users = FactorisedUsers(anchors, known, torch.ones(len(anchors), dtype=torch.bool))
    users.load_state_dict({key: state[key] for key in users.state_dict()})
    tokens: UserTokens = users(torch.arange(len(anchors)))
    routers = {key.removeprefix("router."): value for key, value in tensors.items() if key.startswith("router.")}
    return {
        "words": adapters.backbone.embed_tokens.weight.float(),
        "profile": tokens.profile,  # (U, 3, H) name, picture, description
        "residuals": tokens.residuals,  # (U, F, H)
        "prototypes": tokens.prototypes,
        "means": state["center"],
        "pictures": anchors[:, 1],  # of the profile pictures, before any correction
        **routers,
    }


def wording(backbone: Backbone) -> dict[str, object]:
    """Ids of words and signs, of the prompt's parts around picture and question, and of the two answers."""
    vocabulary = backbone.tokenizer.get_vocab()
    whole = {word: number for word, number in vocabulary.items() if re.fullmatch(r"[A-Za-z]+|[:,.?]", word)}
    answers = {word: numbers for word, numbers in first_tokens(backbone.tokenizer).items() if word in ("yes", "no")}
    return {"words": whole, "before": [vocabulary["<s>"], vocabulary["USER:"]], "after": [vocabulary["ASSISTANT:"]],
            "answers": answers}  # fmt: skip
