"""Tables of the protocol's experiments from their runs' predictions: results, differences and trends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import statistics, tables
from prefmoe.analysis.answers import Answers, type_of
from prefmoe.analysis.comparisons import compare
from prefmoe.analysis.groupings import PAIR_GROUPS, annotated_groups, group_sizes
from prefmoe.config import CONFIG_FOLDER, RESULTS, Edition, load_edition
from prefmoe.config.outputs import made_folder
from prefmoe.data.benchmark import FACETS, Benchmark
from prefmoe.experiments.protocol import (
    Experiment,
    Protocol,
    ProtocolError,
    load_protocol,
    plan,
    protocol_path,
    read_benchmark,
)
from prefmoe.system.run_files import RunFileError, read_predictions

RESULT_COLUMNS = (
    "experiment", "backbone", "method", "variant", "x", "split", "turns", "grouping", "group", "metric",
    "value", "low", "high", "n", "users", "seeds", "sd", "information",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "experiment", "backbone", "method", "variant", "reference", "split", "turns", "group", "metric",
    "difference", "low", "high", "n", "seeds", "paired", "p_users", "p_users_holm",
    "information", "reference_information",
)  # fmt: skip
TREND_COLUMNS = (
    "experiment", "backbone", "method", "turns", "grouping", "group", "metric", "axis", "slope", "low",
    "high", "variants", "seeds",
)  # fmt: skip

OWN_GROUPS = ("in the largest group", "in between", "in a small group")
"""How many share the asked user's preferences in the question's facet: the most, ranks 2 and 3, fewer."""

ALL = "all"
"""Grouping, and its one group, of rows about all questions."""

Labels = dict[str, tuple[pd.Series, tuple[str, ...]]]
"""Grouping -> label of each question, by index, and the labels in their order."""


@dataclass(frozen=True)
class Cell:
    """What one method answered in one variant of an experiment.

    Attributes:
        answers: with every seed. labels: groups of its questions that the experiment is broken down by.
    """

    variant: str
    answers: Answers
    labels: Labels = field(default_factory=dict)

    @property
    def row(self) -> tuple[str, str, int]:
        """Backbone, method and turns, within which cells are compared."""
        return self.answers.backbone, self.answers.method, self.answers.turns

    def where(self) -> dict[str, Any]:
        """The columns that say whose values a row holds."""
        return dict(zip(("backbone", "method", "turns"), self.row, strict=True)) | {
            "variant": self.variant,
            "split": self.answers.split,
            "information": self.answers.information,
        }

    def beside(self, other: Answers, reference: str) -> dict[str, Any]:
        """`where`, and what the values are compared with, in words."""
        return self.where() | {"reference": reference, "reference_information": other.information, "group": ALL}

    def parts(self) -> Iterator[tuple[str, str, Answers]]:
        """Grouping, group and the answers in it: all questions first, then every group that has any."""
        yield ALL, ALL, self.answers
        for grouping, (_, order) in self.labels.items():
            for group in order:
                if (part := self.part(grouping, group)) is not None:
                    yield grouping, group, part

    def part(self, grouping: str, group: str) -> Answers | None:
        """The answers to the questions of one group; None if there are none."""
        if grouping == ALL:
            return self.answers
        if grouping not in self.labels:
            return None
        inside = (self.labels[grouping][0].reindex(self.answers.index) == group).to_numpy()
        return self.answers.part(inside) if inside.any() else None


def own_groups(benchmark: Benchmark) -> pd.Series:
    """How common the asked user's preferences are in a question's facet (`OWN_GROUPS`), by question index."""
    sizes = group_sizes(benchmark)
    rank = dict(zip(sizes["group"], sizes["rank"], strict=True))
    asked = benchmark.frame[benchmark.frame["category"] == "preference"]
    groups = [
        benchmark.groups[benchmark.row(name)][FACETS.index(facet)]
        for name, facet in zip(asked["name"], asked["concept"], strict=True)
    ]
    labels = [OWN_GROUPS[min((rank[group] + 1) // 2, 2)] if group >= 0 else "" for group in groups]
    return pd.Series(labels, index=asked.index, dtype=object)


def question_labels(benchmark: Benchmark) -> Labels:
    """What a benchmark's questions are broken down by: who is asked, and, where annotated, about what."""
    known = annotated_groups(benchmark)
    names = {"item" if name == "popularity" else name: found for name, found in known.items()}
    return {"own group": (own_groups(benchmark), OWN_GROUPS), **names}


def read_cells(edition: Edition, protocol: Protocol, experiment: str, results: str | Path = RESULTS) -> list[Cell]:
    """Everything that was answered in an experiment, variants in the order of the configuration. Raises ProtocolError
    naming all runs that are missing or damaged."""
    asked = protocol.experiments[experiment]
    broken_down = asked.axis is not None or len(asked.splits) > 1
    cells, missing = [], []
    for variant in asked.variants:
        labels: Labels = {}
        if broken_down:
            first, *_ = plan(edition, protocol, experiment, asked.methods[0], variant, asked.backbones[0])
            labels = question_labels(read_benchmark(first.edition, edition, results))
        for backbone in asked.backbones:
            for method in asked.methods:
                planned = plan(edition, protocol, experiment, method, variant, backbone)
                runs = [run for one in planned for run in zip(one.seeds, one.folders(results), strict=True)]
                frames = []
                for seed, folder in sorted(runs):
                    try:
                        frames.append(read_predictions(folder, backbone=backbone, method=method, seed=seed))
                    except RunFileError as error:
                        missing.append(error)
                if len(frames) < len(runs):
                    continue
                config = planned[0].config
                where = {"method": config.label, "key": method, "backbone": backbone, "type": type_of(config)}
                where |= {"information": config.information}
                for split in asked.splits:
                    for turns in asked.turns:
                        copies = [
                            metrics.score(frame[(frame["split"] == split) & (frame["turns"] == turns)])
                            for frame in frames
                        ]
                        copies = [copy.sort_values("index") for copy in copies]
                        cells.append(Cell(variant, Answers.of(copies, turns=turns, split=split, **where), labels))
    if missing:
        names = "\n  ".join(map(str, missing))
        raise ProtocolError(f"{experiment}: {len(missing)} run(s) are missing, incomplete or damaged:\n  {names}")
    return cells


def build(
    edition: Edition | str, *, results: str | Path = RESULTS, config_folder: str | Path = CONFIG_FOLDER
) -> dict[str, Path]:
    """Writes every experiment's results, and all differences and trends, to <results>/<edition>/figures/protocol/.

    ``config_folder``: or a file with other questions; its tables go to a folder of its name in that one. Returns name
    -> CSV file: one per experiment (`RESULT_COLUMNS`), "differences" and "trends". Raises ConfigError if the protocol
    has mistakes; ProtocolError if runs are missing.
    """
    edition = load_edition(edition)
    protocol = load_protocol(edition, config_folder)
    made: dict[str, pd.DataFrame] = {}
    differences, trends = [], []
    for name, experiment in protocol.experiments.items():
        cells = read_cells(edition, protocol, name, results)
        here = {"experiment": name}
        rows = [here | row for row in result_rows(cells, experiment)]
        made[name] = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
        differences += [here | row for row in difference_rows(cells, experiment)]
        trends += [here | row for row in trend_rows(cells, experiment)]
    made["differences"] = corrected(differences)
    made["trends"] = pd.DataFrame(trends, columns=list(TREND_COLUMNS))
    path = protocol_path(edition.name, config_folder)
    folder = made_folder(edition.name, results) / "protocol" / ("" if path.stem == edition.name else path.stem)
    return {name: tables.write_csv(table, folder / f"{name}.csv") for name, table in made.items()}


def result_rows(cells: Sequence[Cell], experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every metric of every cell, over all questions and within its groups of them.

    value is the mean over seeds with its bootstrap interval over users, sd the spread over seeds, x where the
    variant lies on the experiment's axis.
    """
    for cell in cells:
        x = experiment.variants[cell.variant][experiment.axis] if experiment.axis else np.nan
        for grouping, group, part in cell.parts():
            spread = part.seed_values.T
            for column, (metric, estimate) in enumerate(part.estimates.items()):
                if not np.isnan(estimate["value"]):
                    size = {"users": len(np.unique(part.users)), "seeds": part.seeds}
                    size |= {"sd": statistics.seed_spread(spread[column])}
                    where = {**cell.where(), "x": x, "grouping": grouping, "group": group}
                    yield {**where, "metric": metric, **estimate, **size}


def difference_rows(cells: Sequence[Cell], experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every variant minus the experiment's first one, new users minus trained ones, small talk minus less of it.

    Variants that answer the same questions are compared question by question (`compare`). Other
    differences are between independent samples of users, and have no test; new users are also compared on the
    pairs of user and item that training never asked about, because they have no others.
    """
    found = {(cell.row, cell.variant, cell.answers.split): cell for cell in cells}
    first_variant, first_split = next(iter(experiment.variants)), experiment.splits[0]
    first_turns = experiment.turns[0] if experiment.turns else None
    for (row, variant, split), cell in found.items():
        *who, turns = row
        if first_turns is not None and turns != first_turns:
            other = found[(*who, first_turns), variant, split].answers
            where = cell.beside(other, f"{first_turns} turns")
            for compared in compare(cell.answers, other):
                yield {**compared, **where, "paired": 1}
        if variant != first_variant:
            other = found[row, first_variant, split].answers
            where, mine = cell.beside(other, first_variant), cell.answers
            paired = np.array_equal(mine.index, other.index) and np.array_equal(mine.users, other.users)
            for compared in compare(mine, other) if paired else _unpaired(mine, other):
                yield {**compared, **where, "paired": int(paired)}
        if split != first_split:
            other_cell = found[row, variant, first_split]
            for grouping, group in ((ALL, ALL), ("pair", PAIR_GROUPS[0])):
                first, second = cell.part(grouping, group), other_cell.part(grouping, group)
                if first is not None and second is not None:
                    where = cell.beside(second, f"{variant}, {first_split}") | {"group": group}
                    for compared in _unpaired(first, second):
                        yield {**compared, **where, "paired": 0}


def _unpaired(first: Answers, second: Answers) -> Iterator[dict[str, Any]]:
    """First minus second for every metric; the users of each are drawn independently of the other's."""
    value = first.seed_values.mean(axis=0) - second.seed_values.mean(axis=0)
    samples = independent_samples([first, second])
    low, high = statistics.percentile_interval(samples[0] - samples[1])
    sizes = [answers.estimates for answers in (first, second)]
    for column, metric in enumerate(first.metrics):
        n = min(size[metric]["n"] for size in sizes)
        if not np.isnan(value[column]):
            bounds = {"difference": value[column], "low": low[column], "high": high[column]}
            yield {"metric": metric, **bounds, "n": n, "seeds": min(first.seeds, second.seeds)}


def independent_samples(answers: Sequence[Answers]) -> NDArray:
    """(A, resamples, M) every metric, mean over seeds, when each one's users are drawn with replacement."""
    return np.stack([one.resample(seed) for seed, one in enumerate(answers)])


def corrected(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Differences as a table, p-values Holm-corrected over the tests of one metric within one experiment."""
    table = pd.DataFrame(rows, columns=[name for name in DIFFERENCE_COLUMNS if name != "p_users_holm"])
    tested = table.astype({"p_users": float}).groupby(["experiment", "metric"])["p_users"]
    table["p_users_holm"] = tested.transform(statistics.holm)
    return table[list(DIFFERENCE_COLUMNS)]


def trend_rows(cells: Sequence[Cell], experiment: Experiment) -> Iterator[dict[str, Any]]:
    """The change of every metric per doubling of the experiment's axis, by least squares over its variants. Intervals
    resample the users of every variant independently; they do not say whether the line is straight."""
    if experiment.axis is None or len(experiment.variants) < 2:
        return
    x = np.log2([float(settings[experiment.axis]) for settings in experiment.variants.values()])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()  # their product with the values is the slope
    for row in dict.fromkeys(cell.row for cell in cells):
        line = [cell for cell in cells if cell.row == row and cell.answers.split == experiment.splits[0]]
        where = dict(zip(("backbone", "method", "turns"), row, strict=True)) | {"axis": experiment.axis}
        for grouping, group, _ in line[0].parts():
            parts = [cell.part(grouping, group) for cell in line]
            if any(part is None for part in parts):
                continue
            slope = weights @ np.stack([part.seed_values.mean(axis=0) for part in parts])
            samples = np.tensordot(weights, independent_samples(parts), axes=1)
            low, high = statistics.percentile_interval(samples)
            for column, metric in enumerate(parts[0].metrics):
                if not np.isnan(slope[column]):
                    found = {"slope": slope[column], "low": low[column], "high": high[column]}
                    size = {"variants": len(parts), "seeds": parts[0].seeds}
                    yield {**where, "grouping": grouping, "group": group, "metric": metric, **found, **size}
