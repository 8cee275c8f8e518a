"""Questions about the protocol that experiments answer: variants of an edition, and the runs they need.

config/protocol/<edition>.yaml holds the questions. Runs are made by `prefmoe.running.runs` below
results/<edition>/protocol, each of them once, whatever experiments ask for it, and an interrupted one goes on
where it stopped. A variant that is a method of the edition as it is takes the edition's own runs; seeds that the
edition does not have are made in addition.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from prefmoe.config import (
    CONFIG_FOLDER,
    RESULTS,
    ConfigError,
    Edition,
    Method,
    MiniatureData,
    Seed,
    Setting,
    Turns,
    is_trained,
    load_edition,
    run_folder,
)
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.sources import load_benchmark
from prefmoe.system import provenance
from prefmoe.system.files import one_at_a_time
from prefmoe.system.frozen import Frozen
from prefmoe.system.names import Name, Once, did_you_mean
from prefmoe.system.yaml_settings import read_checked

EDITION_PARTS = ("data", "training")
"""Parts of an edition that a variant may change; settings with another first name belong to the method."""

Names = Annotated[tuple[str, ...], Once]


class ProtocolError(RuntimeError):
    """An experiment that cannot be run or read; the message names it."""


# --- questions


class Experiment(Frozen):
    """One question, and the variants whose comparison answers it.

    Attributes:
        question: in words.
        methods: of the edition; each is run in every variant.
        variants: name -> settings that differ from the edition's, of the method ("anchors",
            "losses.anchor_is_positive") or of the edition ("data.users", "training.steps"). The first one
            is the reference that the others are compared with.
        splits: "test" asks about trained users, "unseen" about users without training questions. With both,
            the new users are compared with the trained ones.
        axis: a setting that has a positive number in every variant; the change of each metric per doubling
            of it is estimated, and metrics are broken down by who is asked about what.
        equal_exposure: scale the training steps with data.users, so that every user is trained on equally often.
        backbones: of the edition; the protocol's where none are given.
        turns: of small talk, likewise. With several, each is compared with the first one.
    """

    question: str
    methods: Annotated[Names, Field(min_length=1)]
    backbones: Names = ()
    variants: dict[str, dict[str, Setting]] = Field(min_length=1)
    splits: Annotated[tuple[Literal["test", "unseen"], ...], Field(min_length=1), Once] = ("test",)
    axis: str | None = None
    equal_exposure: bool = False
    turns: Turns | None = None


class Protocol(Frozen):
    """config/protocol/<edition>.yaml.

    Attributes:
        backbones, turns: of every experiment. seeds: likewise; the edition's where none are given.
        experiments: name -> experiment.
    """

    backbones: Annotated[Names, Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Once] = ()
    turns: Turns = (0,)
    experiments: dict[Name, Experiment] = Field(min_length=1)


def protocol_path(edition: str, folder: str | Path = CONFIG_FOLDER) -> Path:
    """Where the questions asked of an edition are written down; ``folder`` itself if it is a file of questions."""
    return Path(folder) if Path(folder).suffix == ".yaml" else Path(folder) / "protocol" / f"{edition}.yaml"


def load_protocol(edition: Edition, folder: str | Path = CONFIG_FOLDER) -> Protocol:
    """Reads and checks the questions asked of an edition.

    ``folder``: that of the configuration, or a file with other questions. Raises ConfigError if the file is missing or
    malformed, or with one line per unknown method, setting, value, backbone or split.
    """
    path = protocol_path(edition.name, folder)
    if not path.is_file():
        raise ConfigError(f"edition {edition.name!r} has no protocol experiments: {path} does not exist")
    protocol = read_checked(path, Protocol, ConfigError, lambda read: _mistakes(read, edition))
    experiments = {
        name: one.model_copy(
            update={"backbones": one.backbones or protocol.backbones, "turns": one.turns or protocol.turns}
        )
        for name, one in protocol.experiments.items()
    }
    return protocol.model_copy(update={"seeds": protocol.seeds or edition.seeds, "experiments": experiments})


def _mistakes(protocol: Protocol, edition: Edition) -> Iterator[str]:
    named = {"backbones": protocol.backbones}
    named |= {f"experiments.{name}.backbones": one.backbones for name, one in protocol.experiments.items()}
    for place, backbones in named.items():
        for backbone in backbones:
            if backbone not in edition.backbones:
                known = ", ".join(edition.backbones) + did_you_mean(backbone, edition.backbones)
                yield f"{place}: {backbone!r} is not one of the edition's: {known}"
    for name, experiment in protocol.experiments.items():
        place = f"experiments.{name}"
        for method in experiment.methods:
            if method not in edition.methods:
                known = ", ".join(edition.methods) + did_you_mean(method, edition.methods)
                yield f"{place}.methods: {method!r} is not one of the edition's: {known}"
        known = [method for method in experiment.methods if method in edition.methods]
        for variant, settings in experiment.variants.items():
            for method in known:
                try:
                    apply_variant(edition, experiment, method, variant)
                except ConfigError as error:
                    yield f"{place}.variants.{variant}: {method}: {error}"
            value = settings.get(experiment.axis or "", 0)
            if experiment.axis and (isinstance(value, bool | str) or value <= 0):
                axis = experiment.axis
                yield f"{place}.variants.{variant}: expected a positive number for the axis {axis!r}"


def apply_variant(edition: Edition, experiment: Experiment, method: str, variant: str) -> tuple[Edition, Method]:
    """The edition and the method's configuration as a variant wants them. Raises ConfigError if there is no such
    setting, or a value is refused."""
    settings = dict(experiment.variants[variant])
    changed: dict[str, Any] = {}
    for part in EDITION_PARTS:
        own = [name for name in settings if name.startswith(f"{part}.")]
        theirs = {name.removeprefix(f"{part}."): settings.pop(name) for name in own}
        try:
            changed[part] = getattr(edition, part).with_settings(theirs)
        except ConfigError as error:
            raise ConfigError(f"{part}: {error}") from error
    if experiment.equal_exposure:
        if not isinstance(changed["data"], MiniatureData):
            raise ConfigError("equal_exposure needs a benchmark that is drawn (data.kind: miniature)")
        steps = max(1, round(changed["training"].steps * changed["data"].users / edition.data.users))
        changed["training"] = changed["training"].with_settings({"steps": steps})
    return edition.model_copy(update=changed), edition.methods[method].with_settings(settings)


# --- runs


@dataclass(frozen=True)
class Plan:
    """One method as some variants want it, on one backbone; trained and asked with every one of its seeds.

    Attributes:
        edition: with the variant's data and training. own: the runs are the edition's, which may have been asked
            more than is wanted here. key: the method's name for own runs, else with a digest of all settings but the
            seeds.
    """

    backbone: str
    method: str
    config: Method
    edition: Edition
    splits: tuple[str, ...]
    turns: tuple[int, ...]
    seeds: tuple[int, ...]
    own: bool

    @property
    def key(self) -> str:
        if self.own:
            return self.method
        settings = {
            "method": self.config.model_dump(mode="json", exclude={"label"}),
            **{part: getattr(self.edition, part).model_dump(mode="json") for part in EDITION_PARTS},
            "splits": self.splits,
            "turns": self.turns,
        }
        return f"{self.method}-{provenance.digest(settings, 4)}"

    def folders(self, results: str | Path) -> list[Path]:
        """The run folder of each seed."""
        if self.own:
            where = results, self.edition.name, self.backbone, self.method
            return [run_folder(*where, seed) for seed in self.seeds]
        runs = Path(results) / self.edition.name / "protocol" / "runs" / self.backbone / self.key
        return [runs / f"seed{seed}" for seed in self.seeds]

    @property
    def steps(self) -> int:
        """Training steps of all seeds that have to be made."""
        if self.own or not is_trained(self.config):
            return 0
        return len(self.seeds) * round(self.edition.training.steps * getattr(self.config, "steps_factor", 1.0))


def plan(
    edition: Edition, protocol: Protocol, experiment: str, method: str, variant: str, backbone: str
) -> tuple[Plan, ...]:
    """The runs behind one variant of an experiment: those that are the edition's own, then those to be made."""
    asked = protocol.experiments[experiment]
    changed, config = apply_variant(edition, asked, method, variant)
    seeds = protocol.seeds if is_trained(config) else protocol.seeds[:1]
    own = (changed, config) == (edition, edition.methods[method]) and (backbone, method) in edition.runs()
    answered = edition.evaluation.asked
    own = own and all(set(asked.turns) <= set(answered.get(split, ())) for split in asked.splits)
    there = [seed for seed in seeds if own and seed in edition.seeds_of(method)]
    parts = {True: there, False: [seed for seed in seeds if seed not in there]}
    where = backbone, method, config, changed, asked.splits, asked.turns
    return tuple(Plan(*where, tuple(some), mine) for mine, some in parts.items() if some)


def plans(edition: Edition, protocol: Protocol) -> dict[tuple[str, str], Plan]:
    """Everything that has to be run, once each, by (backbone, key)."""
    every = (
        one
        for name, experiment in protocol.experiments.items()
        for backbone in experiment.backbones
        for method in experiment.methods
        for variant in experiment.variants
        for one in plan(edition, protocol, name, method, variant, backbone)
    )
    return {(one.backbone, one.key): one for one in every}


def budget(edition: Edition, protocol: Protocol) -> pd.DataFrame:
    """What the experiments cost: a line per experiment, and their total.

    Returns columns own (runs taken from the edition), runs (to be made) and steps (of training in them). What several
    experiments want is counted at the first of them.
    """
    rows, seen = {}, set()
    for name, experiment in protocol.experiments.items():
        new = plans(edition, protocol.model_copy(update={"experiments": {name: experiment}}))
        made = [one for place, one in new.items() if place not in seen]
        seen.update(new)
        rows[name] = {
            "own": sum(len(one.seeds) for one in made if one.own),
            "runs": sum(len(one.seeds) for one in made if not one.own),
            "steps": sum(one.steps for one in made),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return pd.concat([table, table.sum().to_frame("total").T])


def read_benchmark(edition: Edition, original: Edition, results: str | Path) -> Benchmark:
    """The benchmark of a variant, drawn when it is not there; processes that want the same one wait. One like the
    original edition's is that one; any other is drawn below the protocol's results."""
    folder = Path(results)
    if edition.data != original.data:
        name = provenance.digest(edition.data.model_dump(mode="json"), 4)
        edition = edition.model_copy(update={"name": name})
        folder = folder / original.name / "protocol" / "benchmarks"
    with one_at_a_time(folder / edition.name):
        return load_benchmark(edition, folder)


def run(
    edition: Edition | str,
    backbone: str,
    key: str,
    *,
    results: str | Path = RESULTS,
    config_folder: str | Path = CONFIG_FOLDER,
) -> list[Path]:
    """Makes the runs of one plan's seeds; complete, unchanged ones are left alone, interrupted ones go on.

    The edition's own runs are made as for its tables.

    ``config_folder``: or a file with other questions (`load_protocol`). Returns the run folders. Raises ConfigError if
    the protocol has mistakes; ProtocolError if no experiment asks for such runs.
    """
    from prefmoe.running.runs import Workbench

    original = load_edition(edition)
    planned = plans(original, load_protocol(original, config_folder))
    if (backbone, key) not in planned:
        known = ", ".join(known for name, known in planned if name == backbone)
        raise ProtocolError(f"no experiment needs {key!r} on {backbone!r}; expected one of {known or 'none'}")
    chosen = planned[backbone, key]
    if chosen.own:
        workbench = Workbench(original, backbone, results=results)
        return [workbench.run_method(chosen.method, seed) for seed in chosen.seeds]
    benchmark = read_benchmark(chosen.edition, original, results)
    workbench = Workbench(chosen.edition, backbone, results=results, benchmark=benchmark)
    return [
        workbench.run(
            chosen.config,
            seed,
            folder,
            asked=dict.fromkeys(chosen.splits, chosen.turns),
            about={"edition": original.name, "backbone": backbone, "method": chosen.method, "protocol": key},
        )
        for seed, folder in zip(chosen.seeds, chosen.folders(results), strict=True)
    ]
