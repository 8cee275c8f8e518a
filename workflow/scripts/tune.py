"""Chooses settings on the validation split: as many trials for every method, all of them recorded: `tune.py mini`."""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from prefmoe import metrics
from prefmoe.analysis.choices import Ratings
from prefmoe.cli import call
from prefmoe.config import CONFIG_FOLDER, RESULTS, ConfigError, Edition, Method, Seed, Setting, load_edition
from prefmoe.config.outputs import trials_file
from prefmoe.running.choices import ChoiceWorkbench
from prefmoe.running.runs import Workbench
from prefmoe.system import provenance
from prefmoe.system.files import whole_file
from prefmoe.system.frozen import Frozen
from prefmoe.system.names import Once, did_you_mean
from prefmoe.system.run_files import read_predictions, read_story
from prefmoe.system.yaml_settings import read_checked

log = logging.getLogger(__name__)

Settings = dict[str, Setting]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("edition")
    parser.add_argument("--backbones", nargs="+", help="only these (no table is written)")
    parser.add_argument("--methods", nargs="+", help="only these (no table is written)")
    return call(_tune, parser.parse_args(arguments), own=("prefmoe", __name__))


def _tune(options: argparse.Namespace) -> None:
    print(tune(options.edition, backbones=options.backbones, methods=options.methods) or "a part of the grid is done")


class TuningError(RuntimeError):
    """A grid that cannot be tried, or a choice that does not fit the edition."""


class Grid(Frozen):
    """config/tuning/<edition>.yaml: which settings of which methods are tried.

    Attributes:
        trials: number of trials of every method; each grid must have exactly this many points.
        seeds: every trial is made with each of them, and judged by their mean: one training may be lucky.
        backbones: of the edition, on which they are made; all where none are given.
        criterion: the validation metric to maximise; the earlier trial wins a tie. Of choices: accuracy, of two.
        methods: method -> setting (dotted for a nested one, "losses.alignment") -> values; the trials of a
            method are the product of its settings' values.
        beyond: method -> further trials for a method whose best one lies at an end of its grid: a step past that end,
            and on until the best trial has worse ones on both sides; and other forms of a method, by further settings.
        takes: method without trials of its own -> the tuned method whose choice it has.
    """

    trials: int = Field(ge=1)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Once] = (0,)
    backbones: Annotated[tuple[str, ...], Once] = ()
    criterion: str = Field("overall", pattern="^(overall|preference|profile|sensitivity|accuracy)$")
    methods: dict[str, dict[str, Annotated[tuple[Setting, ...], Field(min_length=1), Once]]] = Field(min_length=1)
    beyond: dict[str, tuple[Settings, ...]] = {}
    takes: dict[str, str] = {}

    def trials_of(self, method: str) -> list[Settings]:
        """A method's trials: the product of its settings' values, the last one varying fastest, then those beyond."""
        grid = self.methods[method]
        product = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        return [*product, *self.beyond.get(method, ())]


def grid_path(edition: str, folder: str | Path = CONFIG_FOLDER) -> Path:
    """Where an edition's grid is written down."""
    return Path(folder) / "tuning" / f"{edition}.yaml"


def load_grid(edition: Edition, folder: str | Path = CONFIG_FOLDER) -> Grid:
    """Reads and checks an edition's grid. Raises ConfigError if the file is missing or malformed, names an unknown
    method or setting, or budgets differ."""
    path = grid_path(edition.name, folder)
    if not path.is_file():
        raise ConfigError(f"edition {edition.name!r} has no grid: {path} does not exist")
    return read_checked(path, Grid, ConfigError, lambda grid: _mistakes(grid, edition))


def _mistakes(grid: Grid, edition: Edition) -> Iterator[str]:
    for name in grid.backbones:
        if name not in edition.backbones:
            yield f"backbones: {name!r} is not one of the edition's: {', '.join(edition.backbones)}"
    for name, settings in grid.methods.items():
        if name not in edition.methods:
            near = did_you_mean(name, edition.methods)
            yield f"methods.{name}: not a method of edition {edition.name!r}{near}"
            continue
        beyond, trials = grid.beyond.get(name, ()), grid.trials_of(name)
        within = len(trials) - len(beyond)
        if within != grid.trials:
            yield f"methods.{name}: {within} trials, expected {grid.trials} as for every method"
        for point in trials:
            try:
                apply_settings(edition.methods[name], point)
            except TuningError as error:
                yield f"methods.{name}: {error}"
                break
        for point in beyond:
            if not set(settings) <= set(point) or trials.count(point) > 1:
                yield f"beyond.{name}: {point} is not a new trial of {', '.join(settings)}"
    for name in grid.beyond:
        if name not in grid.methods:
            yield f"beyond.{name}: no grid to go beyond{did_you_mean(name, grid.methods)}"
    for name, source in grid.takes.items():
        if name not in edition.methods or name in grid.methods:
            yield f"takes.{name}: expected a method of edition {edition.name!r} without trials of its own"
        if source not in grid.methods:
            yield f"takes.{name}: {source!r} has no trials{did_you_mean(source, grid.methods)}"


def apply_settings(config: Method, settings: Mapping[str, Setting]) -> Method:
    """A method's configuration with some settings changed; dotted names reach nested ones. Raises TuningError if the
    method has no such setting, or refuses the value."""
    try:
        return config.with_settings(settings)
    except ConfigError as error:
        raise TuningError(f"{config.kind}: {error}") from error


def trial_folder(
    edition: Edition, backbone: str, method: str, settings: Settings, seed: int, results: str | Path
) -> Path:
    """Where a trial's predictions are kept: a finished trial is not run again."""
    name = f"{provenance.digest(settings, 6)}-seed{seed}"
    return Path(results) / edition.name / "tuning" / backbone / method / name


def run_trial(workbench: Workbench, method: str, settings: Settings, seed: int) -> dict[str, Any]:
    """Trains with some settings and scores the validation questions, without small talk.

    Returns backbone, method, the settings as JSON, seed, n (questions), and the value of each of `metrics.METRICS`.
    Raises TuningError if the benchmark has no validation split.
    """
    edition = workbench.edition
    if not workbench.benchmark.splits.get("validation"):
        raise TuningError(f"{workbench.benchmark.root} has no validation split; settings are never chosen on another")
    folder = workbench.run(
        apply_settings(edition.methods[method], settings),
        seed,
        trial_folder(edition, workbench.backbone_name, method, settings, seed, workbench.results),
        asked=workbench.validation(),
        about={"edition": edition.name, "backbone": workbench.backbone_name, "method": method, "settings": settings},
    )
    n, measured = _measured(read_predictions(folder), edition.about_choices)
    seconds = read_story(folder)["seconds"]["train"]
    return {
        "backbone": workbench.backbone_name,
        "method": method,
        "settings": json.dumps(settings, sort_keys=True),
        "seed": seed,
        "n": n,
        **{metric: round(value, 6) for metric, value in measured.items()},
        "train_seconds": round(seconds, 1),
    }


def _measured(answers: pd.DataFrame, about_choices: bool) -> tuple[int, dict[str, float]]:
    """The number of questions, or of choices, and each metric's value."""
    if about_choices:
        values = Ratings("", "", (answers,)).values(2, 1)
        return len(values), {"accuracy": float(values.to_numpy().mean())}
    scored = metrics.score(answers)
    summary = metrics.summarize(scored)
    return len(scored), {metric: summary[metric]["value"] for metric in metrics.METRICS}


def choose(trials: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Adds ``chosen`` (0/1): per method the settings with the best mean of the criterion over backbones and seeds.

    An edition holds one configuration of a method for all backbones it runs on; the first of equals is taken.
    """
    means = trials.groupby(["method", "settings"], sort=False)[criterion].mean()
    best = {method: means[method].idxmax() for method in trials["method"].unique()}
    return trials.assign(chosen=(trials["settings"] == trials["method"].map(best)).astype(int))


def tune(
    edition: Edition | str | Path,
    *,
    results: str | Path = RESULTS,
    config_folder: str | Path = CONFIG_FOLDER,
    backbones: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> Path | None:
    """Tries an edition's grid and records every trial in <results>/<edition>/tuning/trials.csv.

    Trials that were finished before are read, not run again, and an interrupted one goes on from its last
    checkpoint. Only the training and validation questions are touched.

    Args:
        backbones, methods: only these, so that several processes can share the work; no table is written
            then, and a last call without them collects all trials.

    Returns the path of the table (backbone, method, settings, seed, n, the metrics of `metrics.METRICS`, train_seconds,
    chosen), or None when only a part was asked for. Raises ConfigError if there is no valid grid; TuningError if a
    method asked for is not in the grid, or there is no validation split.
    """
    edition = load_edition(edition, seeds="all")  # what begins with a method begins with its training of the same seed
    grid = load_grid(edition, config_folder)
    for method in methods or ():
        if method not in grid.methods:
            known = ", ".join(grid.methods) + did_you_mean(method, grid.methods)
            raise TuningError(f"{method!r} is not in the grid; it has {known}")
    for backbone in backbones or ():
        if backbone not in edition.backbones:
            known = ", ".join(edition.backbones) + did_you_mean(backbone, edition.backbones)
            raise TuningError(f"{backbone!r} is no backbone of edition {edition.name!r}; it has {known}")
    trials = []
    for backbone in backbones or edition.backbones:
        if backbone not in (grid.backbones or edition.backbones):
            continue
        bench = ChoiceWorkbench if edition.about_choices else Workbench
        workbench = bench(edition, backbone, results=results)
        for method in methods or grid.methods:
            if (backbone, method) not in edition.runs():  # a rival, say
                continue
            for settings, seed in itertools.product(grid.trials_of(method), grid.seeds):
                trial = run_trial(workbench, method, settings, seed)
                said = (backbone, method, settings, seed, grid.criterion, trial[grid.criterion])
                log.info("%s %s %s, seed %d: %s %.3f", *said)
                trials.append(trial)
    if backbones or methods:
        return None
    path = trials_file(edition.name, results)
    with whole_file(path) as partial:
        choose(pd.DataFrame(trials), grid.criterion).to_csv(partial, index=False, lineterminator="\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
