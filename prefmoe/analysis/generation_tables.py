"""The tables of an edition that draws for users: builds and writes the CSV files from its runs, without a model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe.analysis import choices, drawings, statistics
from prefmoe.analysis.answers import TableError, finished
from prefmoe.analysis.drawings import Drawn
from prefmoe.analysis.information import information_table
from prefmoe.analysis.tables import write_tables
from prefmoe.config import RESULTS, Edition, ProbesMethod, RaterMethod, RewardedMethod
from prefmoe.config.outputs import made_folder
from prefmoe.data.choices import ChoiceBenchmark

PROBE_COLUMNS = ("layer", "task", "value", "low", "high", "n", "chance", "split", "rater", "seeds")

PAIRED_PROBE_COLUMNS = (
    "layer", "task", "rater", "baseline", "difference", "low", "high", "n", "p_users", "p_users_holm"
)  # fmt: skip


def build(edition: Edition, benchmark: ChoiceBenchmark, *, results: str | Path = RESULTS) -> dict[str, Path]:
    """Reads all runs of an edition that draws and writes its tables to ``<results>/<edition>/figures/``.

    table1: every condition by measure, at whole histories and the edition's scale; table1_seeds: how much of it differs
    between seeds, of what training has a part in; probes: accuracy by layer, task and rater; probes_paired: each rater
    minus the first on the same cases; comparisons: the last method of table2 minus every other, and (a family of its
    own for Holm's correction) each way of telling of a user minus nobody, and of following a reward minus the first;
    lengths, scales: the same measures by length of history and scale of the user's guidance; raters: accuracies of the
    raters behind them; information: what each is shown.

    Returns table name -> file. Raises TableError: see `drawings.read_drawn`.
    """
    settings = edition.generation
    drawn = drawings.read_drawn(edition, results)
    plain = [one.at(edition.histories.n_ref, settings.user_scale) for one in drawn.values()]
    reference = next((one for one in plain if one.kind == "drawings"), None)
    focus = next((one for one in plain if one.key == edition.table2[-1]), plain[-1]) if edition.table2 else plain[-1]
    rows = [row for one in plain for row in drawings.measure_rows(one, benchmark, reference)]
    spread = [(one, row) for one in plain for row in drawings.seed_rows(one, benchmark, reference)]
    seeds = [row for one, row in spread if _learned(edition, one, row["measure"])]
    families = [(focus, one) for one in plain if one is not focus], _gains(edition, plain, focus)
    raters = choices.accuracy_table(choices.read_ratings(edition, results, RaterMethod).values())
    tables = {
        "table1": pd.DataFrame(rows, columns=list(drawings.TABLE1_COLUMNS)),
        "table1_seeds": pd.DataFrame(seeds, columns=list(drawings.SEEDS_COLUMNS)),
        "probes": probe_table(edition, results),
        "probes_paired": paired_probes(edition, results),
        "comparisons": pd.concat([drawings.comparison_table(pairs, benchmark) for pairs in families if pairs]),
        "lengths": _by_setting(drawn.values(), "n_ref", edition, benchmark, reference),
        "scales": _by_setting(drawn.values(), "scale", edition, benchmark, reference),
        "raters": raters,
        "information": information_table(edition, results),
    }
    return write_tables(tables, made_folder(edition.name, results))


def _learned(edition: Edition, drawn: Drawn, measure: str) -> bool:
    """Whether training has a part in a number: in what a condition drew, or in the rater that says the reward."""
    return measure == "reward" or hasattr(edition.methods[drawn.key], "begins_with")


def _gains(edition: Edition, drawn: list[Drawn], focus: Drawn) -> list[tuple[Drawn, Drawn]]:
    """Each drawn condition that is told of a user, with the one that is told of nobody, and each further way of
    following a reward with the first; none that the comparisons of `focus` have already."""
    told = {one.key: edition.methods[one.key] for one in drawn}
    nobody = [one for one in drawn if one.kind == "drawer" and told[one.key].told == "nobody"]
    pairs = [(one, none) for none in nobody for one in drawn if one not in (none, focus) and one.kind != "drawings"]
    rewarded = [one for one in drawn if isinstance(told[one.key], RewardedMethod)]
    return pairs + [(one, rewarded[0]) for one in rewarded[1:]]


def _by_setting(
    drawn: list[Drawn], varied: str, edition: Edition, benchmark: ChoiceBenchmark, reference: Drawn | None
) -> pd.DataFrame:
    """The measures of conditions that drew with several values of one setting, the other as usual."""
    usual = {"n_ref": edition.histories.n_ref, "scale": edition.generation.user_scale}
    rows = []
    for one in drawn:
        values = sorted({dict(zip(drawings.SETTING, setting, strict=True))[varied] for setting in one.settings})
        for value in values if len(values) > 1 else ():
            at = one.at(**{**usual, varied: value})
            rows += [{**row, varied: value} for row in drawings.measure_rows(at, benchmark, reference)]
    return pd.DataFrame(rows, columns=["condition", varied, *drawings.TABLE1_COLUMNS[1:]])


def probe_table(edition: Edition, results: str | Path) -> pd.DataFrame:
    """Accuracy of every probe with its interval over users and seeds: `PROBE_COLUMNS`. chance: of whoever guesses.

    Raises TableError if the seeds of a rater's probes were not asked about the same, and as `answers.finished`.
    """
    rows = []
    for rater, asked, values in _probed(edition, results):
        for (layer, task, split), own in asked.groupby(["layer", "task", "split"]):
            chance = 0.5 if task == "intra" else 1 / own["user"].nunique()
            estimate = statistics.cluster_bootstrap(values[own.index], own["user"])
            row = {"layer": layer, "task": task, **estimate, "chance": chance, "split": split, "rater": rater}
            rows.append({**row, "seeds": values.shape[1]})
    return pd.DataFrame(rows, columns=list(PROBE_COLUMNS))


def paired_probes(edition: Edition, results: str | Path) -> pd.DataFrame:
    """Test accuracies of each rater's probes minus those of the first one's, on the same cases: `PAIRED_PROBE_COLUMNS`,
    Holm's correction over all rows. What has one seed stands beside each of the other's. Raises TableError as
    `probe_table`, and if the two were not asked about the same."""
    (first, asked, base), *others = _probed(edition, results)
    rows = []
    for rater, too, values in others:
        if not too.equals(asked):
            raise TableError(f"{edition.name}: probes of {rater} and {first} were not asked about the same")
        for (layer, task), own in asked[asked["split"] == "test"].groupby(["layer", "task"]):
            paired = statistics.paired_difference(values[own.index] - base[own.index], own["user"])
            rows.append({"layer": layer, "task": task, "rater": rater, "baseline": first, **paired})
    table = pd.DataFrame(rows, columns=list(PAIRED_PROBE_COLUMNS))
    return table.assign(p_users_holm=statistics.holm(table["p_users"]))


def _probed(edition: Edition, results: str | Path) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
    """Each rater that is probed: its label, what its probes were asked about, and (cases, seeds) 1 where right."""
    for _, key, found in finished(edition, results, kind=ProbesMethod):
        frames = list(found.values())
        asked = frames[0].drop(columns="value").reset_index(drop=True)
        if not all(frame.drop(columns="value").reset_index(drop=True).equals(asked) for frame in frames):
            raise TableError(f"{edition.name}, {key}: its seeds were not asked about the same; make the runs again")
        values = np.stack([frame["value"] for frame in frames], axis=1)
        yield edition.methods[edition.methods[key].begins_with].label, asked, values
