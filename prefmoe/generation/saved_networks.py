"""Folders of networks that libraries save, as drawer and reader are: whole, of regular files, with finite weights.

Libraries start a tensor that a file lacks at random and say so in their log alone; here it is refused by name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from prefmoe.backbones.weights import check_counts
from prefmoe.models.saved import tensor_names
from prefmoe.system.files import read_json
from prefmoe.system.finite import check_finite
from prefmoe.system.foreign_files import check_folder

READ = ("*.json", "*.txt", "*.safetensors")


def check_files(folders: Iterable[Path]) -> None:
    """Checks all that will be read, before it is. Raises ValueError naming a file that is no regular one, no JSON
    mapping, no safetensors file or a config.json that counts below 1; OSError if a folder is missing."""
    for folder in folders:
        check_folder(folder, READ)
        for path in sorted(folder.glob("*.json")):
            content = read_json(path, "a part of a saved network")
            if path.name == "config.json":
                check_counts(path, content)
        for path in sorted(folder.glob("*.safetensors")):
            tensor_names(path)


def check_weights(loaded: Mapping[Path, nn.Module]) -> None:
    """Checks that networks have their weights from the files in their folders. Raises ValueError naming the tensors
    that these lack, that they have no place for, or that hold NaN or infinite values."""
    for folder, network in loaded.items():
        tensors = network.state_dict()
        found = {name for path in folder.glob("*.safetensors") for name in tensor_names(path)}
        if missing := [name for name in tensors if name not in found]:
            raise ValueError(f"{folder}: no file has the tensors {', '.join(missing[:5])}")
        if unread := sorted(found - tensors.keys()):
            raise ValueError(f"{folder}: its network has no place for the tensors {', '.join(unread[:5])}")
        check_finite(tensors.items(), folder)
