"""Keeps users' anchors on disk: computed by a frozen backbone from texts and a picture, they never change."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from prefmoe.system import distributed
from prefmoe.system.files import is_intact, keep


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
