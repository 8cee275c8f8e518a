"""Says whether this machine's tables are the committed ones, cell by cell, and how far apart the others are.

Training on another processor adds in another order, and after some steps every answer near a tie may be another one:
as if other seeds had been drawn. The yardstick is therefore the spread over seeds of the committed run. A value is a
mean over K seeds; two means over different seeds differ by about spread x sqrt(1/K + 1/K), the *unit* here. The spread
of three seeds is itself uncertain, so that a cell's spread is never taken to be smaller than the usual one (root mean
square over methods) of its metric and turns, which is also that of a method with a single seed. With hundreds of cells
some differ by two units by chance: the limit is the number of units that, in nineteen of twenty repetitions, no cell
exceeds (Bonferroni), by Student's distribution with the usual spread's degrees of freedom. An edition with one seed
has no spread over seeds at all. The error of its intervals stands in for it (in mini the spread of three seeds is .96
of that, root mean square over cells).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.stats import t

from prefmoe.analysis import tables
from prefmoe.analysis.answers import REFERENCE
from prefmoe.analysis.made_with import MADE_WITH
from prefmoe.analysis.text import told_apart, verdict_words
from prefmoe.config import FIGURES, PrefMoEMethod, load_edition
from prefmoe.config.outputs import committed_folder, made_folder

TOLERANCE = 1.5e-6
"""Tables have six decimals; equal up to rounding means no more than one and a half of the last."""

KEYS = (
    "method", "type", "baseline", "components", "backbone", "turns", "metric", "measure", "grouping", "group", "split",
    "stage", "tokens", "colour", "neighbours", "router", "expert", "question_type", "bin_low", "bin_high", "index",
    "user", "question", "origin", "layer", "token", "liked", "told", "fresh", "control", "users", "n_ref", "candidates",
    "k", "prototypes", "prototype", "order", "condition", "scale", "task", "rater", "attribute",
    "items", "place", "ability", "recommender", "settings", "pictures",
)  # fmt: skip
"""Columns that say what a row is about; rows are matched by those that a table has, never by position."""

PLACE = ("method", "backbone", "turns", "metric", "condition", "users", "measure", "n_ref", "candidates", "k")
"""Columns that say whose spread over seeds, and of what, a row is about."""

WHO = ("method", "baseline", "condition", "recommender")
"""Columns that name methods by their labels."""

ESTIMATES = ("value", "difference", "change", "paired_corrected", "count", "share")
"""Columns that are compared; intervals and tests follow from the same answers."""

SPREAD, MAPS = "table1_seeds", ("user_space", "liked_targets")
"""The yardstick, and the coordinates of maps, which have no meaning from one run to the next: not compared."""

NEEDED = {SPREAD: ("sd", "seeds"), "comparisons": ("baseline", "difference", "low", "high", "p_users_holm")}
"""Columns without which the spread over seeds, or what a paired comparison concludes, is not known."""

JUDGED = ("table1", "table2", "comparisons")
"""Tables whose cells have a known spread over seeds. The rest, finer parts of the same answers and measures of their
own of which nobody knows it, is shown; a blank in the place of a number is too far off in any table."""

EXACT = ("references", "dataset_statistics", "told_statistics", "published_intervals")
"""Judged too, and without any allowance: nothing in them was trained."""

OF_THEIR_OWN = {
    "prefmoe rank": ("ranking", "ranking_comparisons", "recommended", "recommender_trials"),
}
"""Tables that commands of their own make: where none of a command's was made, none is missing."""

ROWS_DEPEND_ON_ANSWERS = ("reliability", "attention_prefix", "shortened", "recommended")
"""Tables that may have other rows without anything being wrong, such as bins that nobody's probability fell into."""

NOT_TRAINED = "NT"
"""The type of methods without seeds."""

REPRODUCED, WITHIN, NOT = "reproduced", "reproduced within seeds", "not reproduced"
BY_CHANCE = ("seeds", "one seed")
"""Scales of cells that another seed would change, whose limit is that of many cells."""

EQUAL, ALLOWED, FAR, SHOWN = "equal", "within", "too far", "not judged"


Ablation = tuple[str | None, Mapping[str, str]]
"""The backbone of table2.csv, and the method (label) that each of its components stands for."""


class ReproductionError(ValueError):
    """Tables that cannot be compared at all."""


@dataclass(frozen=True)
class Comparison:
    """Two runs' tables side by side.

    cells: a row per compared number: table, cell (what it is about), metric, column, committed, low, high (its
        interval), here, difference, scale ("seeds", "one seed", "interval", "exact" or "unknown"), unit, units, state.
    problems: tables, columns and rows that only one side has.
    notes: what was left out.
    conclusions: paired comparisons of which this run says something else, in words; limit: of units of the seeds.
    """

    cells: pd.DataFrame
    limit: float
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`REPRODUCED`, `WITHIN` or `NOT`."""
        if self.problems or (self.cells["state"] == FAR).any():
            return NOT
        return REPRODUCED if (self.cells["state"] == EQUAL).all() else WITHIN


def compare_edition(edition: str, *, made: Path | None = None, committed: Path | None = None) -> Comparison:
    """`compare` for an edition: its folder under results/ with its folder under figures/, or two others. Raises
    ReproductionError if either has no tables, and as `compare`; ConfigError if there is no such edition."""
    settings = load_edition(edition, seeds="all")
    methods = {key: settings.methods[key] for key in settings.table2}
    labels = {m.components: m.label for m in methods.values() if isinstance(m, PrefMoEMethod)}
    made, committed = made or made_folder(settings.name), committed or committed_folder(settings.name)
    if not (committed / "table1.csv").is_file():
        known = ", ".join(sorted(path.parent.name for path in FIGURES.glob("*/table1.csv"))) or "none"
        raise ReproductionError(
            f"there are no tables in {committed} to compare edition {settings.name!r} with (committed: {known})"
        )
    if not (made / "table1.csv").is_file():
        raise ReproductionError(
            f"there are no tables in {made}: make them with `snakemake --cores all --config edition={settings.name}`"
        )
    later = [settings.methods[key].label for key in settings.later]
    return compare(made, committed, ablation=(settings.ablation_backbone, labels), later=later)


def compare(
    made: Path, committed: Path, *, ablation: Ablation = (None, {}), later: Sequence[str] = ()
) -> Comparison:
    """Compares every table of one folder with the table of the same name in another. ``later``: methods (labels) whose
    committed rows are left out of it where this run has no row of any of them.

    Raises ReproductionError naming a table that cannot be compared, and what was expected; `tables.TableError` naming
    one that cannot be read."""
    left, right = (
        {path.stem: _read(path) for path in sorted(folder.glob("*.csv")) if path.stem != MADE_WITH}
        for folder in (committed, made)
    )
    spread = left.get(SPREAD)
    if not_made := _not_made(right, later, ablation):
        fewer = {name: _without(table, not_made, ablation) for name, table in left.items()}
        left = {name: table for name, table in fewer.items() if len(table) or name in right or not len(left[name])}
    not_asked = {
        name: command
        for command, names in OF_THEIR_OWN.items() if not right.keys() & set(names)
        for name in names if name in left
    }  # fmt: skip
    absent = [name for name in left if name not in {*right, *not_asked}]
    problems = [f"{name}.csv is missing" for name in absent]
    notes = [f"{name}.csv is not committed" for name in right if name not in left]
    notes += [f"{name}.csv was not made ({command})" for name, command in not_asked.items()]
    notes += [f"not made at first, and not compared: {', '.join(not_made)}"] * bool(not_made)
    scale = _Scale(spread, right.get(SPREAD), ablation)
    parts = []
    for name in left:
        if name in right and name not in (SPREAD, *MAPS):
            cells, found = _aligned(name, left[name], right[name])
            if name in ROWS_DEPEND_ON_ANSWERS:
                notes += found
            else:
                problems += found
            parts.append(scale.measured(name, cells))
    cells = pd.concat(parts, ignore_index=True)
    limit = float(t.isf(0.025 / max(1, cells["scale"].isin(BY_CHANCE).sum()), scale.freedom))
    cells["state"] = _states(cells, limit)
    changed = _changed_conclusions(left.get("comparisons"), right.get("comparisons"))
    return Comparison(cells.drop(columns="keys"), limit, problems, notes, changed)


def _read(path: Path) -> pd.DataFrame:
    """A table. Raises ReproductionError if it lacks columns that it is compared by."""
    table = tables.read_table(path)
    found = ", ".join(map(repr, list(table)[:10]))
    if not any(key in table for key in KEYS):
        raise ReproductionError(f"{path}: expected columns such as method, turns and metric; found {found}")
    who = ["condition" if "condition" in table else "method"] if path.stem == SPREAD else []
    if missing := [column for column in (*NEEDED.get(path.stem, ()), *who) if column not in table]:
        raise ReproductionError(f"{path}: no column {', '.join(missing)}; found {found}")
    return table


def _not_made(made: Mapping[str, pd.DataFrame], later: Sequence[str], ablation: Ablation) -> Sequence[str]:
    """All of some methods (labels) if none of them has a row in a run's tables; otherwise none: where one is made all
    are, and a row that is missing is a problem."""
    whole = [made[name] for name in ("table1", SPREAD, "information") if name in made]
    there = {label for table in whole for name in WHO if name in table for label in table[name].unique()}
    steps = made["table2"]["components"].unique() if "components" in made.get("table2", ()) else ()
    return later if there.union(map(ablation[1].get, steps)).isdisjoint(later) else ()


def _without(table: pd.DataFrame, methods: Sequence[str], ablation: Ablation) -> pd.DataFrame:
    """A table without the rows that are about any of these methods (labels)."""
    components = [key for key, label in ablation[1].items() if label in methods]
    about = [table[name].isin(methods) for name in WHO if name in table]
    about += [table["components"].isin(components)] if "components" in table else []
    return table[~np.any(about, axis=0)] if about else table


class _Scale:
    """How far a cell of another run may lie from the committed one."""

    def __init__(self, committed: pd.DataFrame | None, made: pd.DataFrame | None, ablation) -> None:
        self.backbone, self.labels = ablation
        self.freedom = np.inf
        self.own: dict[tuple, float] = {}
        self.usual: dict[tuple, float] = {}
        if committed is None:
            return
        trained = committed.dropna(subset="sd")
        measured = ("metric", "turns", "users", "measure", "candidates", "k")
        alike = [name for name in measured if name in committed]
        measures = [trained[name] for name in alike]
        self.usual = np.sqrt((trained["sd"] ** 2).groupby(measures).mean()).to_dict()
        if self.usual:  # histories of several lengths are asked of the same trainings
            apart = trained.drop_duplicates([name for name in PLACE if name in trained and name != "n_ref"])
            self.freedom = float((apart["seeds"] - 1).groupby([apart[name] for name in alike]).sum().median())
        here = {} if made is None else {self._place(row): row["seeds"] for row in made.to_dict("records")}
        for row in committed.to_dict("records"):
            if row.get("type") == NOT_TRAINED:
                continue
            place, seeds = self._place(row), row["seeds"]
            usual = self.usual.get(tuple(row[name] for name in alike), np.nan)
            spread = np.fmax(row["sd"], usual)  # a lone seed has no spread of its own
            if np.isnan(spread):
                continue
            self.own[place] = spread * np.sqrt(1 / seeds + 1 / here.get(place, seeds))

    @staticmethod
    def _place(row: Mapping) -> tuple:
        return tuple(row.get(key) for key in PLACE)

    def measured(self, table: str, cells: pd.DataFrame) -> pd.DataFrame:
        """The cells with their scale, unit (the standard deviation of a difference) and difference in units."""
        found = [self._unit(table, row) for row in cells.to_dict("records")]
        cells["scale"], cells["unit"] = [scale for scale, _ in found], [unit for _, unit in found]
        cells["difference"] = cells["here"] - cells["committed"]
        with np.errstate(divide="ignore", invalid="ignore"):
            cells["units"] = cells["difference"].abs() / cells["unit"].where(cells["unit"] > 0)
        return cells

    def _unit(self, table: str, row: Mapping) -> tuple[str, float]:
        keys = row["keys"]
        if table in EXACT or (table in JUDGED and keys.get("type") == REFERENCE):
            return "exact", 0.0
        if table not in JUDGED:
            return "unknown", np.nan
        if "components" in keys:
            keys = keys | {"method": self.labels.get(keys["components"]), "backbone": self.backbone}
        groups = [keys.get("users")]
        if "n_ref" in keys:  # of choices: between two pictures where nothing else is said, unseen minus seen users
            keys = {"candidates": 2, "k": 1} | keys
            groups = groups if "users" in keys else ["seen", "unseen"]
        who = "condition" if "condition" in keys else "method"
        names = [keys.get(who), *([keys["baseline"]] if "baseline" in keys else [])]
        known = [self.own.get(self._place(keys | {who: name, "users": users})) for name in names for users in groups]
        if any(known):
            return "seeds", float(np.sqrt(sum(unit**2 for unit in known if unit)))
        sampling = float(np.nanmax([(row["high"] - row["low"]) / 3.92, 1 / max(row["n"], 1)]))
        if not self.usual:
            return "one seed", np.sqrt(2) * sampling
        # Without training there are no seeds, and only answers at a tie may be others: no more than the sampling
        # error, or, where that is nil, about an answer or two.
        return "interval", sampling


def _aligned(name: str, committed: pd.DataFrame, made: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Numbers of both tables that are about the same, and what only one of them has."""
    problems = [f"{name}.csv has no column {c}" for c in committed if c not in made]
    problems += [f"{name}.csv has a column {c} that is not committed" for c in made if c not in committed]
    keys = [key for key in KEYS if key in committed and key in made]
    columns = [c for c in ESTIMATES if c in committed and c in made]
    both = ((committed, "committed"), (made, "this machine's"))
    every = [key for key in KEYS if key in committed or key in made]
    lacking = [f"{where} {name}.csv: no column {key}" for table, where in both for key in every if key not in table]
    for table, where in both:
        if columns and table.duplicated(keys).any():
            if lacking:
                raise ReproductionError(f"{'; '.join(lacking)}, which tells its rows apart")
            twice = table.loc[table.duplicated(keys), keys].iloc[0]
            raise ReproductionError(f"{where} {name}.csv: two rows for {_text(twice.to_dict())}")
    if not keys:
        raise ReproductionError(f"{name}.csv: no column says in both tables what a row is about")
    mixed = [key for key in keys if is_numeric_dtype(committed[key]) != is_numeric_dtype(made[key])]
    if mixed and len(committed) and len(made):
        raise ReproductionError(f"{name}.csv, column {mixed[0]}: numbers in one table, and text in the other")
    both = committed.merge(made, on=keys, how="outer", suffixes=("", " here"), indicator="side", sort=False)
    for side, said in (("left_only", "has no row for"), ("right_only", "has a row that is not committed,")):
        places = [_text(row) for row in both.loc[both["side"] == side, keys].to_dict("records")]
        problems += [f"{name}.csv {said} {place}" for place in places]
    rows = []
    for row in both[both["side"] == "both"].to_dict("records"):
        about = {key: row[key] for key in keys}
        for column in columns:
            bounds = {b: row.get(b if column in ("value", "difference") else f"{column}_{b}", np.nan)
                      for b in ("low", "high")}  # fmt: skip
            rows.append({
                "table": name, "cell": _text(about), "column": column, "committed": row[column], **bounds,
                "here": row[f"{column} here"], "n": row.get("n", np.nan), "keys": about, "metric": _metric(about),
            })  # fmt: skip
    columns = ["table", "cell", "metric", "column", "committed", "low", "high", "here", "n", "keys"]
    cells = pd.DataFrame(rows, columns=columns)
    return cells.astype(dict.fromkeys(("committed", "low", "high", "here", "n"), float)), problems


def _metric(about: Mapping) -> str:
    """The measure of a row; of a table of choices that has none, among how many pictures one is right."""
    if "metric" in about:
        return about["metric"]
    return f"accuracy, {about['k']} of {about['candidates']}" if {"k", "candidates"} <= about.keys() else ""


def _text(about: Mapping) -> str:
    """What a row is about, in words; the type of a method follows from its name."""
    said = [f"{value} turns" if key == "turns" else str(value) for key, value in about.items() if key != "type"]
    return ", ".join(said)


def _states(cells: pd.DataFrame, limit: float) -> np.ndarray:
    blank = cells["committed"].isna() & cells["here"].isna()
    one_blank = cells["committed"].isna() ^ cells["here"].isna()
    equal = blank | (cells["difference"].abs() <= TOLERANCE)
    allowed = cells["units"] <= cells["scale"].map(dict.fromkeys(BY_CHANCE, limit) | {"interval": 1.96})
    return np.select([equal, one_blank, cells["scale"] == "unknown", allowed], [EQUAL, FAR, SHOWN, ALLOWED], FAR)


def _changed_conclusions(committed: pd.DataFrame | None, made: pd.DataFrame | None) -> list[str]:
    """Paired comparisons of which test and interval allow to say something else in one run than in the other, in
    words."""
    if committed is None or made is None:
        return []
    keys = [key for key in KEYS if key in committed and key in made]
    both = committed.merge(made, on=keys, suffixes=("", " here"))
    metric = next((both[name] for name in ("metric", "measure") if name in both), "accuracy")
    who = "method" if "method" in keys else "condition"
    names = ("difference", "low", "high", "p_users_holm")
    sides = [both[[]].assign(metric=metric, **{name: both[f"{name}{side}"] for name in names})
             for side in ("", " here")]  # fmt: skip
    words = [verdict_words(side, told_apart(side)) for side in sides]
    return [
        f"{row.pop(who)} against {row.pop('baseline')}, {_text(row)}: {was} as committed, {now} here"
        for row, was, now in zip(both[keys].to_dict("records"), *words, strict=True)
        if was != now
    ]
