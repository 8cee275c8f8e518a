"""The drawer: a text-to-image diffusion model, kept in the layout of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from prefmoe.generation.saved_networks import check_files, check_weights
from prefmoe.system.files import open_to_readers, read_json
from prefmoe.system.places import DRAWER, PACKAGE

FOLDER = PACKAGE / "weights" / DRAWER
INDEX = "model_index.json"


class DrawerError(ValueError):
    """A drawer that cannot be loaded, or something that it cannot draw; the message says what was expected."""


class Drawer(DiffusionPipeline):
    """A U-Net that predicts clean pictures from noisy ones and words, with the text encoder trained beside it.

    Args:
        unet: works on patches: a square of patch x patch pixels is one of its places, with 3 patch^2 channels.
        text_encoder, tokenizer: of prompts; the tokenizer has whole words and an unknown token.
        scheduler: the noise that was trained with, and how steps are taken.
        patch: pixels along a patch.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast,
        scheduler: DDIMScheduler, patch: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(patch=patch)

    @classmethod
    def from_pretrained(cls, folder: str | Path = FOLDER, **options) -> Drawer:
        """A drawer from its folder (`save_pretrained`), in single precision; the miniature by default.

        Raises:
            DrawerError: if there is no drawer in ``folder``, or another pipeline, or one of its files is damaged.
        """
        index = Path(folder) / INDEX
        if not index.is_file():
            raise DrawerError(f"{index} is missing: expected a folder that Drawer.save_pretrained wrote")
        kind = read_json(index, "a drawer's index", kind=DrawerError).get("_class_name")
        if kind != cls.__name__:
            raise DrawerError(f"{index}: expected a {cls.__name__}, found a pipeline of the kind {kind}")
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, **options}
        unet, text_encoder = (Path(folder) / name for name in ("unet", "text_encoder"))
        try:
            check_files([unet, text_encoder, *(Path(folder) / name for name in ("tokenizer", "scheduler"))])
            drawer = super().from_pretrained(folder, **options)
            check_weights({unet: drawer.unet, text_encoder: drawer.text_encoder})
        except StrictDataclassError as error:
            raise DrawerError(f"{text_encoder / 'config.json'}: {' '.join(str(error).split())}") from error
        except (OSError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
            raise DrawerError(f"{folder}: not the weights of a drawer: {error}") from error
        drawer.unet.eval()
        drawer.text_encoder.eval()
        return drawer

    def save_pretrained(self, folder: str | Path, **options) -> None:
        """Writes the drawer as a folder that `from_pretrained` reads. Raises DrawerError if it has a branch for users,
        which its method keeps (`prefmoe.generation.branch`)."""
        if self.has_user_branch:
            raise DrawerError("a drawer is saved without its branch for users: remove_user_branch")
        super().save_pretrained(folder, **options)
        open_to_readers(Path(folder))

    @property
    def size(self) -> int:
        """Width and height in pixels of what it draws."""
        return self.unet.config.sample_size * self.config.patch

    @property
    def width(self) -> int:
        """Of the tokens that cross-attention reads."""
        return self.unet.config.cross_attention_dim

    @property
    def length(self) -> int:
        """Tokens of a prompt, padding included."""
        return self.text_encoder.config.max_position_embeddings

    @property
    def has_user_branch(self) -> bool:
        """Whether it takes a user's tokens beside the text's."""
        return self.unet.encoder_hid_proj is not None

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token ids.

        Raises:
            DrawerError: if a prompt has unknown words, or more of them than fit.
        """
        ids = self.tokenizer(list(prompts))["input_ids"]
        for prompt, tokens in zip(prompts, ids, strict=True):
            if self.tokenizer.unk_token_id in tokens:
                known = self.tokenizer.get_vocab()
                strange = [word for word in prompt.replace(",", " ").split() if word not in known]
                raise DrawerError(f"prompt {prompt!r}: this drawer does not know {', '.join(strange)}")
            if len(tokens) > self.length:
                raise DrawerError(f"prompt {prompt!r}: expected at most {self.length - 2} words")
        padded = self.tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=self.length)["input_ids"]
        return torch.tensor(padded, device=self.text_encoder.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """What cross-attention reads of prompts, (B, L, D); the empty prompt is that of no text. Raises DrawerError
        (`token_ids`)."""
        return self.text_encoder(self.token_ids(prompts)).last_hidden_state

    def predict(self, noisy: Tensor, steps: Tensor, text: Tensor, user_tokens: Tensor | None = None) -> Tensor:
        """The clean pictures in [-1, 1] that it sees in noisy ones.

        Args:
            noisy: (B, 3, size, size). steps: (B,) of the noise's schedule. text: (B, L, D), `encode_prompts`.
            user_tokens: (B, T, D); zeros are nobody. Only for a drawer with a branch for users.

        Returns:
            (B, 3, size, size)
        """
        patches = F.pixel_unshuffle(noisy, self.config.patch)
        given = {} if user_tokens is None else {"added_cond_kwargs": {"image_embeds": [user_tokens[:, None]]}}
        seen = self.unet(patches, steps, encoder_hidden_states=text, **given).sample
        return F.pixel_shuffle(seen, self.config.patch)
