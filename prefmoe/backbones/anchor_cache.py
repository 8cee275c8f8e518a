"""Keeps users' anchors on disk: computed by a frozen backbone from texts and a picture, they never change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefmoe.data.pictures import picture_bytes
from prefmoe.system import distributed, provenance
from prefmoe.system.files import is_intact, keep

if TYPE_CHECKING:
    from prefmoe.backbones.backbone import Backbone
    from prefmoe.data.benchmark import User


def digest(backbone: Backbone, users: Sequence[User], texts: Sequence[Sequence[str]], kind: str) -> str:
    """Names everything that the anchors of these users depend on.

    That is the weights and the precision of the backbone, the users' texts, annotated facets and profile pictures (by
    content), the kind of anchor, and the code and library that compute them.

    Raises:
        PictureError: if a profile picture cannot be read; the message names it.
    """
    people: list[Any] = []
    for user, own in zip(users, texts, strict=True):
        picture = hashlib.blake2b(picture_bytes(user.image), digest_size=16).hexdigest()
        people.append([list(own), sorted(user.preferences), picture])
    precision = [str(backbone.dtype), bool(getattr(backbone.model, "is_loaded_in_4bit", False))]
    code = [
        provenance.code_digest(("prefmoe.models.user_state", "prefmoe.backbones.backbone")),
        transformers.__version__,
    ]
    return provenance.digest([backbone.digest, precision, kind, people, code])


class AnchorCache:
    """A folder with a file per set of users. A file has its name once it is complete; a damaged one is made again."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors kept under a key; None when there are none, or not in every process of a launcher."""
        path = self.folder / f"{key}.safetensors"
        found = load_file(path) if is_intact(path) else None
        return found if distributed.agreed(found is not None) else None

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keeps tensors under a key; the main process writes (`files.keep`)."""
        if not distributed.state().is_main_process:
            return
        content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        keep(self.folder / f"{key}.safetensors", lambda partial: save_file(content, partial))
