"""The registry of backbones: what is known of each without its files, and of a folder from its config.json alone.

Nothing here needs torch: a workflow is planned in the time that this takes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import model_validator

from prefmoe.config.backbone_files import LOADED
from prefmoe.system.files import read_json
from prefmoe.system.foreign_files import ForeignFileError, check_folder
from prefmoe.system.frozen import Frozen
from prefmoe.system.names import NAME, RULE, did_you_mean
from prefmoe.system.places import PACKAGE, REGISTRY, expanded
from prefmoe.system.yaml_settings import read_checked


class BackboneError(ValueError):
    """A backbone that is unknown, incomplete, or not what the registry says."""


class Paths(Frozen):
    """Attribute paths of a model's parts, seen from the model."""

    language_model: str
    layers: str
    embed_tokens: str
    lm_head: str
    vision_tower: str
    projector: str


class Architecture(Frozen):
    """What all backbones of one class share; a target module may name alternatives, of which a layer has one: a|b.

    whole_pictures: the image processor makes one picture of a picture, though its saved settings have it cut to pieces.
    """

    processor_class: str
    image_token: str
    paths: Paths
    target_modules: tuple[str, ...]
    whole_pictures: bool = False


class Shape(Frozen):
    """The sizes that memory and time follow from (prefmoe.workflow.resources).

    Attributes:
        parameters: all of them. vision: those that nothing trains: of the tower, without the projector, and the
            embedding of an image's line ends where there is one. connector: of a large part between tower and decoder,
            which is never quantised.
        heads, key_value_heads, head_size: of the decoder's attention; head_size is hidden / heads when absent.
        intermediate: of the MLP; with routed experts, of those that one token meets.
        image_tokens: of a picture of about a megapixel; the most there can be where that is fixed.
        tied: whether input and output share one vocabulary.
        adapted: inputs plus outputs of the adapted projections of a late layer, where they are not q, v, o, gate,
            up and down of these sizes. active: decoder parameters that one token meets, where it does not meet all.
    """

    parameters: int
    vision: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    image_tokens: int
    head_size: int = 0
    adapted: int = 0
    active: int = 0
    connector: int = 0
    tied: bool = False

    @model_validator(mode="before")
    @classmethod
    def _head_size(cls, content: Any) -> Any:
        if isinstance(content, dict) and not content.get("head_size") and content.get("heads"):
            return content | {"head_size": content.get("hidden", 0) // content["heads"]}
        return content

    @property
    def decoder(self) -> int:
        """Parameters of the decoder layers, and of a small projector."""
        vocabularies = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.parameters - self.vision - self.connector - vocabularies


class BackboneEntry(Frozen):
    """One backbone: where its weights are and what they are. Exactly one of: hub_id; folder, inside the package;
    made_by, the command that makes $PREFMOE_WEIGHTS/<name>.

    architecture: None of a class whose parts nobody has named: it is asked as a whole (prefmoe.backbones.whole).
    """

    name: str
    model_class: str
    architecture: Architecture | None
    hub_id: str | None = None
    revision: str | None = None
    folder: Path | None = None
    made_by: str | None = None
    licence: str | None = None
    parameters: str | None = None
    shape: Shape | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BackboneEntry:
        if [self.hub_id, self.folder, self.made_by].count(None) != 2:
            raise ValueError("expected exactly one of hub_id, folder and made_by")
        if (self.revision is None) != (self.hub_id is None):
            raise ValueError("a hub_id needs a revision, the commit of 40 hexadecimal digits; nothing else has one")
        return self

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return str(self.folder or self.made_by or f"{self.hub_id}@{self.revision}")

    @property
    def parts(self) -> Architecture:
        """The architecture. Raises BackboneError if the parts of the class have no names in the registry."""
        if self.architecture is None:
            raise BackboneError(
                f"backbone {self.name!r}: the registry does not say where the parts of a {self.model_class} are, so "
                "that it can be asked and nothing can be put on it; docs/backbones.md says how to add a class"
            )
        return self.architecture

    @property
    def paths(self) -> Paths:
        return self.parts.paths

    @property
    def image_token(self) -> str:
        return self.parts.image_token

    @property
    def target_modules(self) -> tuple[str, ...]:
        return self.parts.target_modules


class Registry(Frozen):
    """The architectures and backbones of a registry file; an architecture without content is asked as a whole."""

    architectures: dict[str, Architecture | None]
    backbones: dict[str, BackboneEntry]

    @model_validator(mode="before")
    @classmethod
    def _join(cls, content: Any) -> Any:
        """Gives every backbone its name and its architecture."""
        if not isinstance(content, dict):
            return content
        architectures, backbones = content.get("architectures"), content.get("backbones")
        if not isinstance(architectures, dict) or not isinstance(backbones, dict):
            return content
        joined = {}
        for name, fields in backbones.items():
            if not NAME.fullmatch(str(name)):
                raise ValueError(f"backbones: the name {name!r} is refused: expected {RULE}")
            if not isinstance(fields, dict):
                raise ValueError(f"backbones.{name}: expected a mapping, found {type(fields).__name__}")
            kind = fields.get("model_class")
            if kind not in architectures:
                known = ", ".join(architectures)
                raise ValueError(f"backbones.{name}.model_class: expected one of {known}, found {kind!r}")
            joined[name] = {**fields, "name": name, "architecture": architectures[kind]}
        return {**content, "backbones": joined}


@lru_cache
def read_registry(path: Path = REGISTRY) -> Registry:
    """Reads a registry file; folders become absolute (relative ones are inside the package). Raises BackboneError with
    one line per mistake in the file."""
    return read_checked(path, Registry, BackboneError)


_GUESTS: dict[str, BackboneEntry] = {}


def introduce(entry: BackboneEntry) -> None:
    """Makes a backbone known by its name, in this process. Raises BackboneError if no folder of results may have it,
    the registry has another one, or one from elsewhere was made known by that name: runs of both would go by it."""
    if not NAME.fullmatch(entry.name):
        raise BackboneError(f"the folder's name {entry.name!r:.80} is refused: expected {RULE}")
    if entry.name in read_registry().backbones:
        raise BackboneError(
            f"the name {entry.name!r} is taken by a backbone of the registry; give the folder another one"
        )
    known = _GUESTS.get(entry.name, entry)
    if known.source != entry.source:
        raise BackboneError(
            f"{entry.name!r} is the name of two backbones, {known.source} and {entry.source}, which would share a "
            "folder of results: put one into a folder of another name"
        )
    _GUESTS[entry.name] = entry


def is_introduced(name: str) -> bool:
    """Whether a backbone was made known in this process (`introduce`)."""
    return name in _GUESTS


def find_backbone(name_or_folder: str | Path) -> BackboneEntry:
    """The registry's entry of that name, one that was introduced, or an entry made from the config.json of a local
    folder. Raises BackboneError if it is neither, or the folder's model is of no known class."""
    registry, name = read_registry(), str(name_or_folder)
    if name in _GUESTS:
        return _GUESTS[name]
    if name in registry.backbones:
        entry = registry.backbones[name]
        return entry.model_copy(update={"folder": PACKAGE / entry.folder.expanduser()}) if entry.folder else entry
    folder = expanded(name_or_folder)
    if not folder.is_dir():
        raise BackboneError(
            f"backbone {name!r} is unknown and no such folder exists; known backbones: {', '.join(registry.backbones)}"
            + did_you_mean(name, registry.backbones)
        )
    model_class = model_class_of(folder)
    if registry.architectures.get(model_class) is None:
        known = (name for name, parts in registry.architectures.items() if parts is not None)
        raise BackboneError(
            f"{folder / 'config.json'}, architectures: found {model_class}, expected one of {', '.join(known)}"
        )
    return BackboneEntry(
        name=folder.name,
        model_class=model_class,
        architecture=registry.architectures[model_class],
        folder=folder.resolve(),
    )


def check_plain_folder(name: str, folder: Path) -> None:
    """Whatever is read of a folder has to be a regular file in it: a library would wait for a pipe."""
    try:
        check_folder(folder, LOADED)
    except ForeignFileError as error:
        raise BackboneError(f"backbone {name!r}: {error}") from error


def model_class_of(folder: Path) -> str:
    check_plain_folder(folder.name, folder)
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(f"{folder} is no model folder: config.json is missing")
    try:
        return str(read_json(path, "JSON with a list `architectures`", kind=BackboneError)["architectures"][0])
    except (LookupError, TypeError) as error:
        raise BackboneError(f"{path}: expected JSON with a list `architectures` ({error!r})") from error
