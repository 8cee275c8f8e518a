"""The tables of an edition about choices: builds and writes the CSV files from its runs, without a model."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from prefmoe.analysis import choices
from prefmoe.analysis.choice_references import BEST, KNOWN, POPULATION, references
from prefmoe.analysis.choices import Ratings
from prefmoe.analysis.information import information_table
from prefmoe.analysis.tables import write_tables
from prefmoe.config import RESULTS, ChoicesData, Edition
from prefmoe.config.outputs import made_folder
from prefmoe.data.choice_world import Tastes
from prefmoe.data.choices import ChoiceBenchmark

AMONG = ("users", "candidates", "k")
"""What an accuracy has to share with the best possible one that stands beside it."""


def build(edition: Edition, benchmark: ChoiceBenchmark, *, results: str | Path = RESULTS) -> dict[str, Path]:
    """Reads all runs of an edition about choices and writes its tables to ``<results>/<edition>/figures/``.

    table1: all accuracies of all methods, and of references where tastes are known; table1_seeds: their spread over
    seeds, of methods that the edition may train several times; table2: unseen minus seen users;
    table3: one liked picture among four; table4: the components, one after the other; table5: numbers of prototypes,
    these five with the best possible accuracy beside each row, where it is known; comparisons: the last method of
    table2 minus every other, and (a family of its own for Holm's correction) each of its methods minus the one before;
    gaps: by how much that last method's gap between unseen and seen users differs from those of the others in table2;
    more_history: the longest history minus the shortest, of whatever was asked after several;
    collapse: what is named where the population's favourite is not the user's (empty where tastes are not known);
    information: what each row is shown.

    Returns table name -> file. Raises TableError: see `choices.read_ratings`.
    """
    rated = choices.read_ratings(edition, results)
    rows, known = list(rated.values()), _references(edition, benchmark, list(rated.values()))
    everything = [*rows, *known.values()]
    table1 = choices.accuracy_table(everything)
    best = table1[table1["method"] == BEST].set_index(list(AMONG))["value"]
    main = table1[table1["n_ref"].isin((0, edition.histories.n_ref))]
    steps = [edition.methods[key].label for key in edition.table2]
    focus = rated[edition.table2[-1]] if edition.table2 else rows[-1]
    count = {
        edition.methods[key].label: edition.methods[key].prototypes
        for key in rated if hasattr(edition.methods[key], "prototypes")
    }  # fmt: skip
    by_number = _only(main, [name for name in count if name in _varied(edition, focus.key)])
    one_of_two = (main["candidates"] == 2) & (main["users"] == "all")
    others = [one for one in everything if one is not focus]
    steps_up = [(rated[key], rated[before]) for before, key in pairwise(edition.table2) if rated[key] is not focus]
    families = [(focus, one) for one in others], steps_up
    tables = {
        "table1": _beside(best, table1),
        "table1_seeds": choices.seeds_table(
            one for key, one in rated.items() if len(one.frames) > 1 or key in edition.more_seeds
        ),
        "table2": choices.difference_table(everything).assign(
            **{f"best_{users}": best.get((users, 2, 1), float("nan")) for users in ("seen", "unseen")}
        ),
        "table3": _beside(best, main[main["candidates"] == 4]).drop(columns="candidates"),
        "table4": _beside(best, _only(main[one_of_two], steps)),
        "table5": _beside(best, by_number.assign(prototypes=by_number["method"].map(count))),
        "comparisons": pd.concat([choices.comparison_table(pairs) for pairs in families if pairs]),
        "gaps": choices.gap_table((focus, rated[key]) for key in edition.table2 if rated[key] is not focus),
        "more_history": choices.more_history_table(everything),
        "collapse": choices.collapse_table(everything, known[POPULATION]) if known
        else pd.DataFrame(columns=list(choices.COLLAPSE_COLUMNS)),
        "information": information_table(edition, results, {name: KNOWN[name] for name in known}),
    }  # fmt: skip
    return write_tables(tables, made_folder(edition.name, results))


def _only(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of some methods, in the order in which these are named."""
    rows = table[table["method"].isin(methods)]
    return rows.sort_values("method", key=lambda names: names.map({name: k for k, name in enumerate(methods)}.get))


def _beside(best: pd.Series, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the column best: the best possible accuracy for the same users, candidates and k; NaN if unknown."""
    return rows.assign(best=best.reindex(pd.MultiIndex.from_frame(rows[list(AMONG)])).to_numpy())


def _varied(edition: Edition, focus: str) -> list[str]:
    """The labels of the method of interest and of those that differ from it in the number of prototypes alone."""

    def rest(key: str) -> dict:
        return edition.methods[key].model_dump(exclude={"label", "prototypes"})

    return [edition.methods[key].label for key in edition.methods if rest(key) == rest(focus)]


def _references(edition: Edition, benchmark: ChoiceBenchmark, rows: Sequence[Ratings]) -> dict[str, Ratings]:
    """What can be known, for the histories that methods were asked after; nothing where tastes are not known."""
    if not isinstance(edition.data, ChoicesData):
        return {}
    histories = pd.concat([frame[["n_ref", "draw"]] for one in rows for frame in one.frames]).drop_duplicates()
    n_refs = sorted(n for n in histories["n_ref"].unique() if n > 0)
    draws = int(histories["draw"].max()) + 1
    return references(benchmark, Tastes.of(edition.data.seed), n_refs=n_refs, draws=draws)
