"""An edition's tables: builds, writes and reads the CSV files.

Nothing here needs a model. Values are means over seeds; intervals are cluster bootstraps over users of
that mean; the spread over seeds stands apart in table1_seeds.csv.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import probabilities, statistics
from prefmoe.analysis.answers import REFERENCE, Answers, TableError, read_runs
from prefmoe.analysis.comparisons import beside_table, comparisons_table, detectable_table, forest_table
from prefmoe.analysis.controls import controls_table
from prefmoe.analysis.groupings import QUESTION_GROUPS, breakdowns, dataset_statistics, question_groups, told_statistics
from prefmoe.analysis.information import information_table, with_information
from prefmoe.analysis.mmpb_tables import attributes_table
from prefmoe.analysis.references import POPULAR, read_references
from prefmoe.config import RESULTS, Edition, InjectedMethod
from prefmoe.config.outputs import made_folder
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.rows import MMPBError, read_text
from prefmoe.system.files import whole_file

TABLE1_COLUMNS = ("method", "type", "backbone", "turns", "metric", "value", "low", "high", "n", "seeds", "information")

TABLE2_COLUMNS = ("components", "turns", "metric", "value", "low", "high", "n", "seeds", "information")

WHERE = ("method", "type", "backbone", "turns")
"""Columns that say whose values a row holds, first in most tables."""

ESTIMATE = ("value", "low", "high", "n", "seeds")
"""Columns of a mean over seeds with its interval, last in many."""

SEEDS_COLUMNS = (*WHERE, "metric", "value", "sd", "minimum", "maximum", "seeds", "unparsed")

BREAKDOWN_COLUMNS = (*WHERE, "metric", "grouping", "group", *ESTIMATE)

CALIBRATION_COLUMNS = (*WHERE, "metric", "value", "low", "high", "floor", "confidence", "accuracy", "n", "seeds")

RELIABILITY_COLUMNS = (*WHERE, "metric", "bin_low", "bin_high", "confidence", *ESTIMATE)

UNPARSED_COLUMNS = (*WHERE, "group", "value", "low", "high", "allowed_mass", "n", "seeds")

SHORTENED_COLUMNS = (*WHERE, "questions", "shortened", "exchanges_left_out")

SEPARATION_COLUMNS = (*WHERE, "measure", *ESTIMATE)

TURNS_COLUMNS = (*TABLE1_COLUMNS, "change", "change_low", "change_high")

NUMBERS = (
    "turns", "value", "low", "high", "difference", "change", "paired_corrected", "count", "share", "n", "seeds", "sd",
    "p_users", "p_users_holm",
)  # fmt: skip
"""Columns that hold numbers, or nothing, in every table that has them."""

REPORTED_TURNS = (0, 10)
"""Turns of small talk in the paper's tables, and in ours; turns.csv has all that an edition asks after."""

CATEGORIES = {"overall": ("preference", "recognition"), "preference": ("preference",), "profile": ("recognition",)}
"""The questions' categories behind each accuracy."""


def estimates_table(answers: Iterable[Answers]) -> pd.DataFrame:
    """One row per method, backbone, turns and metric: the columns of `TABLE1_COLUMNS` and the method's key."""
    rows = [
        {**entry.where(), "key": entry.key, "metric": metric, **estimate, "seeds": entry.seeds}
        for entry in answers
        for metric, estimate in entry.estimates.items()
    ]
    return pd.DataFrame(rows, columns=[*TABLE1_COLUMNS, "key"])


def main_table(edition: Edition, table: pd.DataFrame) -> pd.DataFrame:
    """Table 1: the edition's methods and the references, from `estimates_table`."""
    chosen = table["key"].isin(edition.table1) | (table["type"] == REFERENCE)
    return table.loc[chosen, list(TABLE1_COLUMNS)].reset_index(drop=True)


def ablation_table(edition: Edition, table: pd.DataFrame) -> pd.DataFrame:
    """Table 2: the ablation on the edition's ablation backbone, from `estimates_table`."""
    rows = table[table["key"].isin(edition.table2) & (table["backbone"] == edition.ablation_backbone)]
    components = {key: getattr(edition.methods[key], "components", key) for key in edition.table2}
    rows = rows.assign(components=rows["key"].map(components))
    order = {value: position for position, value in enumerate(components.values())}
    rows = rows.sort_values(["components", "turns"], key=lambda c: c.map(order) if c.name == "components" else c)
    return rows[list(TABLE2_COLUMNS)].reset_index(drop=True)


def seeds_table(answers: Iterable[Answers]) -> pd.DataFrame:
    """How much every metric differs between seeds (sd, minimum, maximum); unparsed: unreadable answers per seed."""
    rows = []
    for entry in answers:
        if entry.type == REFERENCE:
            continue
        for metric, values in zip(entry.metrics, entry.seed_values.T, strict=True):
            row = {**entry.where(), "metric": metric, "value": values.mean(), **statistics.spread_over_seeds(values)}
            rows.append({**row, "seeds": entry.seeds, "unparsed": entry.unread.sum(axis=0).mean()})
    return pd.DataFrame(rows, columns=list(SEEDS_COLUMNS))


def breakdown_table(benchmark: Benchmark, answers: Sequence[Answers], split: str) -> pd.DataFrame:
    """Metrics within groups of questions, with intervals.

    Groupings: bucket (size of the sharing group; collapse, recall), popularity (of the item; collapse, recall,
    preference), pair (whether this user was asked about this item in training; preference, collapse),
    facet (preference), question (kind of question; overall), told (whether a profile tells what is asked about;
    preference, recall). popularity, pair and told need annotations.
    """
    groupings = breakdowns(benchmark, split)
    rows = []
    for entry in answers:
        for grouping, labels, groups, chosen in groupings:
            label = labels.reindex(entry.index).to_numpy(dtype=object)
            member = np.stack([label == group for group in groups], axis=-1).astype(float)
            for metric in chosen:
                column = metrics.METRICS.index(metric)
                stacked = np.stack([entry.right[..., column], entry.counted[..., column]], axis=-1)
                _, sums = statistics.cluster_sums(
                    np.einsum("ng,nsc->ngsc", member, stacked), entry.users
                )  # (U, groups, seeds, 2)
                numerator, denominator = sums[..., 0], sums[..., 1]
                value = statistics.ratio(numerator.sum(0), denominator.sum(0)).mean(axis=-1)
                drawn = statistics.ratio_bootstrap(numerator, denominator)
                samples = statistics.over_seeds(drawn, axis=-1, copies=entry.is_reference)
                low, high = statistics.percentile_interval(samples)
                n = np.rint(denominator.sum(0).mean(axis=-1)).astype(int)
                for g, group in enumerate(groups):
                    row = {**entry.where(), "metric": metric, "grouping": grouping, "group": group}
                    row |= {"value": value[g], "low": low[g], "high": high[g], "n": n[g], "seeds": entry.seeds}
                    rows.append(row)
    return pd.DataFrame(rows, columns=list(BREAKDOWN_COLUMNS))


def turns_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Every metric after every number of turns, and its change from the fewest turns on the same questions. Returns the
    columns of `TURNS_COLUMNS`; the change's interval resamples users."""
    rows = []
    for entry in answers:
        first = entry.at_first(answers)
        if not np.array_equal(entry.index, first.index):
            raise TableError(f"{entry.method}: other questions after {entry.turns} turns than after {first.turns}")
        change = (entry.seed_values - first.seed_values).mean(axis=0)
        low, high = statistics.percentile_interval(entry.resampled - first.resampled)
        for column, (metric, estimate) in enumerate(entry.estimates.items()):
            bounds = {"change": change[column], "change_low": low[column], "change_high": high[column]}
            rows.append({**entry.where(), "metric": metric, **estimate, "seeds": entry.seeds, **bounds})
    return pd.DataFrame(rows, columns=list(TURNS_COLUMNS))


def calibration_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Expected calibration error of every method whose probabilities are known (`probabilities.calibration`)."""
    rows = [where | probabilities.calibration(known, users) for where, known, users in _with_probabilities(answers)]
    return pd.DataFrame(rows, columns=list(CALIBRATION_COLUMNS))


def reliability_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Accuracy within bins of confidence, a row per bin; n counts the answers of all seeds."""
    rows = [
        where | row
        for where, known, users in _with_probabilities(answers)
        for row in probabilities.reliability(known, users)
    ]
    return pd.DataFrame(rows, columns=list(RELIABILITY_COLUMNS))


def _with_probabilities(answers: Sequence[Answers]) -> Iterable[tuple[dict, probabilities.Answered, NDArray]]:
    """Whose answers to a metric's questions they are, their confidences, and the users who were asked about."""
    for entry in answers:
        if entry.type != REFERENCE:
            for metric, categories in CATEGORIES.items():
                inside = entry.frames[0]["category"].isin(categories).to_numpy()
                if inside.any():
                    where = {**entry.where(), "metric": metric, "seeds": entry.seeds}
                    yield where, [(p[inside], r[inside]) for p, r in entry.confidences], entry.users[inside]


def unparsed_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Share of answers that could not be read, by kind of question; they count as wrong in accuracies, and
    are left out of collapse and recall.

    Returns the columns of `UNPARSED_COLUMNS`. Intervals are cluster bootstraps over users, except Wilson's over
    questions where every answer or none could be read (resampling cannot leave 0 or 1). allowed_mass: the mean
    probability that the first token begins an allowed answer.
    """
    rows = []
    for entry in answers:
        if entry.type == REFERENCE:
            continue
        labels = question_groups(entry.frames[0]).to_numpy(dtype=object)
        unread = entry.unread.T.mean(axis=0)
        mass = np.mean([frame["p_allowed"].to_numpy(dtype=float) for frame in entry.frames], axis=0)
        for group in ("all", *QUESTION_GROUPS):
            inside = np.ones(len(labels), dtype=bool) if group == "all" else labels == group
            if not inside.any():
                continue
            estimate = statistics.cluster_bootstrap(unread[inside], entry.users[inside])
            if estimate["value"] in (0.0, 1.0):
                low, high = statistics.wilson_interval(estimate["value"], estimate["n"])
                estimate |= {"low": float(low), "high": float(high)}
            row = {**entry.where(), "group": group, **estimate, "allowed_mass": mass[inside].mean()}
            rows.append(row | {"seeds": entry.seeds})
    return pd.DataFrame(rows, columns=list(UNPARSED_COLUMNS))


def separation_table(answers: Sequence[Answers]) -> pd.DataFrame:
    """Collapse without a threshold, for every method and reference: the measures of `probabilities.separation`."""
    rows = [
        {**entry.where(), "measure": measure, **estimate, "seeds": entry.seeds}
        for entry in answers
        for measure, estimate in probabilities.separation(entry.frames, copies=entry.is_reference).items()
    ]
    return pd.DataFrame(rows, columns=list(SEPARATION_COLUMNS))


def shortened_table(answers: Iterable[Answers]) -> pd.DataFrame:
    """How many questions were asked with less small talk than the others, because their prompts were too long, and how
    many exchanges they miss in all."""
    rows = []
    for entry in answers:
        missing = entry.frames[0]["turns_left_out"]
        row = {**entry.where(), "questions": len(missing), "shortened": int((missing > 0).sum())}
        rows.append({**row, "exchanges_left_out": int(missing.sum())})
    return pd.DataFrame(rows, columns=list(SHORTENED_COLUMNS))


def build(edition: Edition, benchmark: Benchmark, *, results: str | Path = RESULTS) -> dict[str, Path]:
    """Reads all runs of an edition and writes its tables to ``<results>/<edition>/figures/``.

    Only the test split enters them, after `REPORTED_TURNS` of small talk, but for turns.csv (after all that the
    edition asks) and unseen.csv (questions about users without training questions, if the benchmark has any).

    Returns table name -> file. Raises TableError: see `read_runs`.
    """
    splits = [split for split in ("test", "unseen") if split == "test" or
              (benchmark.splits.get(split) and split in edition.evaluation.splits)]  # fmt: skip
    everything = read_runs(edition, results, *splits)
    everything += [entry for split in splits for entry in read_references(edition, benchmark, split)]
    tested = [entry for entry in everything if entry.split == "test"]
    reported = [entry for entry in tested if entry.turns in REPORTED_TURNS]
    runs = [entry for entry in reported if entry.type != REFERENCE]
    known = {entry.method: entry.information for entry in reported if entry.type == REFERENCE}
    tested_against = [*runs, *(entry for entry in reported if entry.method == POPULAR)]
    table = estimates_table(reported)
    tables = {
        "table1": main_table(edition, table),
        "table2": ablation_table(edition, table),
        "table1_seeds": seeds_table(runs),
        "comparisons": comparisons_table(edition, tested_against),
        "breakdown": breakdown_table(benchmark, reported, "test"),
        "turns": turns_table(tested),
        "forest": forest_table(edition, runs),
        "detectable": detectable_table(edition, benchmark, tested_against, "test"),
        "calibration": calibration_table(runs),
        "reliability": reliability_table(runs),
        "unparsed": unparsed_table(runs),
        "separation": separation_table(reported),
        "dataset_statistics": dataset_statistics(benchmark),
        "information": information_table(edition, results, known),
    }
    if len(told := told_statistics(benchmark)):
        tables["told_statistics"] = told
    if any(isinstance(method, InjectedMethod) for method in edition.methods.values()):
        tables["attributes"] = attributes_table(benchmark, reported)
    if edition.beside:
        tables["beside"] = beside_table(edition, tested_against)
    if edition.evaluation.controls:
        tables["controls"] = controls_table(edition, results, tested)
    if edition.evaluation.too_long != "refuse":
        tables["shortened"] = shortened_table(runs)
    if "unseen" in splits:
        unseen = [entry for entry in everything if entry.split == "unseen" and entry.turns in REPORTED_TURNS]
        shown = {entry.method: entry.information for entry in unseen}
        tables["unseen"] = with_information(estimates_table(unseen)[list(TABLE1_COLUMNS)], shown)
    return write_tables(tables, made_folder(edition.name, results))


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    """Writes an edition's tables, each with what its rows are shown, which the one named information tells. Returns
    table name -> file."""
    shown = tables["information"].drop_duplicates("method").set_index("method")["at_test"].to_dict()
    return {name: write_csv(with_information(table, shown), folder / f"{name}.csv") for name, table in tables.items()}


def write_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """Writes a table with six decimals under a temporary name, then renames it."""
    path = Path(path)
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    return path


def read_table(path: str | Path) -> pd.DataFrame:
    """Reads a table written by `build`; names like "none" stay text.

    Raises TableError if there is no such file, it is damaged or no table at all, or one of `NUMBERS` holds text; also
    if it is a main table that does not say what its rows are shown of users: of two rows with unlike information
    neither can be called better without it.
    """
    if not Path(path).exists():
        raise TableError(f"{path}: no such file")
    try:
        read_text(Path(path))
    except MMPBError as error:
        raise TableError(str(error)) from error
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    for column in (name for name in NUMBERS if name in table):
        text = table[column].notna() & pd.to_numeric(table[column], errors="coerce").isna()
        if text.any():
            row, found = text.idxmax() + 1, table.loc[text.idxmax(), column]
            raise TableError(f"{path}, row {row}, column {column}: expected a number, found {found!r}")
    if Path(path).name == "table1.csv" and "metric" in table and "information" not in table:
        raise TableError(
            f"{path}: no column information, which says what each row is shown of the user; expected "
            f"{', '.join(TABLE1_COLUMNS)}: make the table again with `prefmoe tables`"
        )
    return table


def require_rows(table: pd.DataFrame, **values: Hashable) -> None:
    """Raises TableError if a table has no rows with one of these values of its columns, naming those that it has."""
    for column, value in values.items():
        if value not in (known := list(table[column].unique())):
            has = ", ".join(map(str, known))
            raise TableError(f"{column}: expected one of {has}, which the table has, found {value!r}")
