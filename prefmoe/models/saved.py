"""What an adapter's files say: about its backbone, its users, those who were added, and tensors; checked before use."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from prefmoe import config as configuration
from prefmoe.config.registry import BackboneEntry
from prefmoe.data.benchmark import Described, User
from prefmoe.system import hub
from prefmoe.system.files import read_json, read_regular
from prefmoe.system.finite import check_finite
from prefmoe.system.frozen import Frozen
from prefmoe.system.places import expanded

CONFIG_FILE, WEIGHTS_FILE = "method.json", "method.safetensors"

ADDED_PICTURES = "added_user_*.png"
"""Pictures of added users, where prompts show them."""

_SIZES = re.compile(r"tokens|width|size|side|latents")
"""Settings of methods that are a side of their tensors."""

_RANKS = re.compile(r"(\w+_)?rank|experts")
"""Those that are the low-rank factors' side between A and B, or a part of it."""

_FACTOR = re.compile(r"(^|[._])A(\.|$)")
"""In the name of a tensor A (..., rank, inputs): of our layers, and of peft's."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class MethodError(ValueError):
    """A method that does not fit its backbone, its benchmark, or the files it is loaded from."""


def folder_of(source: str | Path, revision: str | None) -> Path:
    """The folder with an adapter's files, downloaded where the source is a repository of the hub. Raises ValueError if
    it is neither a folder nor the name of a repository; HubError from downloading."""
    if (path := expanded(source)).is_dir():
        return path
    if not _HUB_ID.fullmatch(str(source)):
        raise ValueError(f"{source}: no such folder, and no name of a hub repository (owner/name)")
    return hub.download(str(source), revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, ADDED_PICTURES])


def added_picture(number: int, picture: int = 0) -> str:
    """The name of a picture of the added user of this number, both from 0: no file says it."""
    return ADDED_PICTURES.replace("*", f"{number:05d}" + (f"_{picture}" if picture else ""))


class SavedBackbone(Frozen):
    """The backbone an adapter was trained on. Its weights' digest identifies it; the other fields are for people."""

    name: str
    hub_id: str | None
    revision: str | None
    digest: str


class SavedUsers(Frozen):
    """The users an adapter was trained with, in their order: what identifies each of their profiles."""

    count: int
    digest: str
    profiles: dict[str, str]


class SavedMethod(Frozen):
    """The content of method.json."""

    method: configuration.Method
    backbone: SavedBackbone
    users: SavedUsers
    added_users: tuple[Described, ...]


def read(path: Path) -> SavedMethod:
    """The content of a method.json. Raises ValueError if it cannot be read, is no JSON of this form, or was written by
    a version that could not tell whether profiles have changed."""
    expected = "the method.json of a saved method"
    content = read_json(path, expected, once=True)
    users = content.get("users")
    if isinstance(users, dict) and "profiles" not in users:
        raise ValueError(
            f"{path}: written by an older version, which did not note the users' profiles; train and save it again"
        )
    try:
        return SavedMethod.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_input=False)
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in found]
        raise ValueError(f"{path}: expected {expected} ({'; '.join(lines[:5])})") from error


def identify(users: Iterable[User]) -> SavedUsers:
    """What identifies these users. A profile is what it says and, where there is one, what its picture holds."""
    profiles = {user.name: _profile_digest(user) for user in users}
    order = json.dumps(list(profiles.items()))
    return SavedUsers(count=len(profiles), digest=_hash(order.encode()), profiles=profiles)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _profile_digest(user: User) -> str:
    picture = ""
    if user.images:
        try:
            picture = _hash(read_regular(Path(user.image)))
        except OSError:  # a method that looks at no profile picture can do without
            pass
    return _hash(json.dumps([user.model_dump(mode="json", exclude={"images"}), picture]).encode())


def users_mistake(saved: SavedUsers, found: SavedUsers) -> str | None:
    """How the users given here differ from those an adapter was trained with, by name; None if they do not."""
    if saved.digest == found.digest:
        return None
    before, now = saved.profiles, found.profiles
    named = {
        "missing": [name for name in before if name not in now],
        "not among them": [name for name in now if name not in before],
        "with another profile": [name for name in before if name in now and before[name] != now[name]],
    }
    parts = []
    for kind, names in named.items():
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            parts.append(f"{kind}: {', '.join(map(repr, names[:10]))}{more}")
    return f"trained with {len(before)} users, found {len(now)}; " + ("; ".join(parts) or "their order is another one")


def check_sizes(path: Path, method: configuration.MethodSettings, weights: Path) -> None:
    """Raises ValueError naming the setting, if one asks for tensors with a longer side, or for a higher rank, than any
    in the adapter's file: before room is made for them. ``path``: the method.json, for the message."""
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights}: cannot be read: {error}") from error
    longest = max((side for shape in shapes.values() for side in shape), default=0)
    highest = max((shape[-2] for name, shape in shapes.items() if _FACTOR.search(name) and len(shape) > 1), default=0)
    for name, value in method:
        for kind, limit, side in ((_SIZES, longest, "such a side"), (_RANKS, highest, "such a rank")):
            if kind.fullmatch(name) and isinstance(value, int) and value > limit:
                raise ValueError(f"{path}, method.{name}: {value}, but {weights.name} has no tensor of {side}")


def tensor_names(path: Path) -> set[str]:
    """The names of a file's tensors. Raises MethodError naming the file, if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{path}: cannot be read: {error}") from error


def read_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, of just these names and shapes, and finite. Raises MethodError naming the file and the
    tensor, if they are not."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MethodError(f"{path}: cannot be read: {error}") from error
    different = sorted(found.keys() ^ expected.keys())
    if different:
        raise MethodError(f"{path}: tensors missing or unknown: {', '.join(different[:5])}")
    for name, tensor in expected.items():
        value = found[name]
        if tensor.shape != value.shape:
            raise MethodError(f"{path}, {name}: shape {tuple(value.shape)}, expected {tuple(tensor.shape)}")
        if _sort(tensor) != _sort(value):
            raise MethodError(f"{path}, {name}: {value.dtype}, expected {tensor.dtype}")
    check_finite(found.items(), path, MethodError)
    return found


def _sort(tensor: Tensor) -> str:
    """What a tensor holds, whatever the precision."""
    return "numbers" if tensor.is_floating_point() else "truths" if tensor.dtype == torch.bool else "whole numbers"


def adapter_card(method: configuration.MethodSettings, backbone: BackboneEntry, users: int) -> str:
    """The README.md of a hub repository with an adapter."""
    loader = method.implementation.__name__
    base = [f"base_model: {backbone.hub_id}"] if backbone.hub_id else []
    return "\n".join(
        [
            *["---", "library_name: prefmoe", *base, "tags: [personalisation, prefmoe]", "---", ""],
            f"# {method.label} on {backbone.name}",
            "",
            f"An adapter for {users} users; the backbone is not included.",
            "",
            "```python",
            f'{loader}.from_pretrained("<this repository>", load_backbone("{backbone.name}"), benchmark)',
            "```",
            "",
        ]
    )
