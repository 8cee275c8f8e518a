"""The tables of README.md and docs/results.md as Markdown, made from the committed CSV files alone."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from trials import budgets

from prefmoe.analysis import survey
from prefmoe.analysis.answers import REFERENCE, TableError
from prefmoe.analysis.made_with import MADE_WITH
from prefmoe.analysis.pairs import AUC_SAME
from prefmoe.analysis.tables import read_table
from prefmoe.analysis.text import listed, mean_of_seeds, verdicts
from prefmoe.config import FIGURES, ROOT
from prefmoe.config.backbone_files import files_digest
from prefmoe.config.outputs import SPEED
from prefmoe.metrics import LOWER_IS_BETTER
from prefmoe.system.places import CHOICE_MINIATURE, MINIATURES, PACKAGE

PAGES = ("README.md", "docs/results.md", "docs/map.md", "docs/any_vlm.md")
"""The pages of a clone that have marked places for tables."""

HEADLINE = (AUC_SAME, "auc_told", "auc_untold_fresh", "collapse", "recall", "profile", "overall")
"""Measures of the short table, in its order."""

_MARKED = re.compile(r"(<!-- table: ([\w -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_MARKS = re.compile(r"<!-- (?:table: .*?|end) -->")


def with_tables(page: str, *, figures: str | Path = FIGURES) -> str:
    """A page in which every part between ``<!-- table: NAME -->`` and ``<!-- end -->`` is the table of that name.

    Args:
        page: its text.
        figures: the folder of committed tables, one folder per edition.

    Raises TableError if there is no marked part, one is not closed, or its name is not one of `TABLES`.
    """
    marked = list(_MARKED.finditer(page))
    if not marked or len(_MARKS.findall(page)) != 2 * len(marked):
        raise TableError("expected one <!-- end --> after every <!-- table: NAME -->, and at least one of them")
    if unknown := [part[2] for part in marked if part[2] not in TABLES]:
        raise TableError(f"there is no table {unknown[0]!r}; expected one of {', '.join(TABLES)}")
    return _MARKED.sub(lambda part: f"{part[1]}\n{TABLES[part[2]](Path(figures))}\n{part[4]}", page)


def main_tables(table: pd.DataFrame, turns: int, metrics: Sequence[str] | None = None, digits: int = 3) -> str:
    """Rows of table1.csv after so many turns: a table per backbone; references, the same for all, end the first.
    ``metrics``: the columns, of which those that the table lacks are left out; all that it has when absent."""
    table = table[table["turns"] == turns]
    shown = [m for m in metrics or auc_first(table["metric"].unique()) if (table["metric"] == m).any()]
    table = table[table["metric"].isin(shown)]
    reference = table["type"] == REFERENCE
    written = []
    for backbone in table.loc[~reference, "backbone"].unique():
        rows = pd.concat([table[table["backbone"] == backbone], *([] if written else [table[reference]])])
        above = " References: above." if written and reference.any() else ""
        grid = _grid(rows, ["method"], shown, digits)
        written.append(f"**{backbone}.** {_sizes(rows, shown)}{above}\n\n{grid}\n")
    return "\n".join(written)


def auc_first(metrics: Iterable[str]) -> list[str]:
    """Measures in the order of a long table, whose first columns are seen without scrolling: those that only whoever
    tells users apart is good at, then the others as they come."""
    return sorted(metrics, key=lambda metric: not metric.startswith("auc"))


def _main(edition: str, turns: int = 0, metrics: Sequence[str] | None = None, digits: int = 3) -> Callable:
    return _from(f"{edition}/table1.csv", lambda table: main_tables(table, turns, metrics, digits))


def _ablation(edition: str, turns: int = 0) -> Callable:
    def written(table: pd.DataFrame) -> str:
        table = table[table["turns"] == turns]
        shown = auc_first(table["metric"].unique())
        return f"{_sizes(table, shown)}\n\n{_grid(table, ['components'], shown)}\n"

    return _from(f"{edition}/table2.csv", written)


def _comparisons(table: pd.DataFrame) -> str:
    words = verdicts(table[table["turns"] == 0]).drop(columns=["profile"], errors="ignore")
    grid = words[auc_first(words)].reset_index()
    shown = table.drop_duplicates("baseline").set_index("baseline")["baseline_information"]
    grid.insert(3, "what the baseline is shown", grid["baseline"].map(shown))
    return _lines(grid) + "\n"


def _seeds(table: pd.DataFrame) -> str:
    table = table[(table["turns"] == 0) & (table["seeds"] > 1)]
    cells = [f"{row.value:.3f} (sd {row.sd:.3f}; {row.minimum:.3f} to {row.maximum:.3f})" for row in table.itertuples()]
    keys = ["method", "information", "backbone", "seeds"]
    grid = table.assign(cell=cells).pivot(index=keys, columns="metric", values="cell")
    return _lines(grid[[m for m in HEADLINE if m in grid]].reset_index()) + "\n"


def _controls(table: pd.DataFrame) -> str:
    shown = [metric for metric in HEADLINE if (table["metric"] == metric).any()]
    return _grid(table, ["method", "backbone", "control"], shown) + "\n"


def _unseen(table: pd.DataFrame) -> str:
    return main_tables(table, 0, HEADLINE)


def _information(table: pd.DataFrame) -> str:
    whole = table.astype({name: "Int64" for name in ("trainable_parameters",)})
    whole["context_tokens"] = whole["context_tokens"].map("{:.0f}".format)
    return _lines(whole.drop(columns="type").astype(object).where(whole.notna(), "–").replace("nan", "–")) + "\n"


def _told(table: pd.DataFrame) -> str:
    table = table[(table["grouping"] == "told") & (table["turns"] == 0)]
    if table.empty:
        return "Profiles tell everything that is asked about.\n"
    return _grid(table, ["method", "backbone", "group"], list(table["metric"].unique())) + "\n"


def _curves(table: pd.DataFrame) -> str:
    table = table[(table["turns"] == 0) & (table["grouping"] == "all")]
    shown = [metric for metric in HEADLINE if (table["metric"] == metric).any()]
    table = table.sort_values("x", kind="stable").assign(steps=lambda rows: rows["x"].astype(int))
    order = {method: place for place, method in enumerate(table["method"].unique())}
    table = table.sort_values("method", key=lambda names: names.map(order), kind="stable")
    return f"{_sizes(table, shown)}\n\n{_grid(table, ['method', 'steps', 'seeds'], shown)}\n"


def _choices(table: pd.DataFrame) -> str:
    """Accuracies after the longest history, and of what reads none."""
    table = table[table["n_ref"].isin([0, table["n_ref"].max()])]
    table = table.assign(metric=[f"{r.users}: {r.k} of {r.candidates}" for r in table.itertuples()])
    shown = ["seen: 1 of 2", "unseen: 1 of 2", "all: 1 of 2", *(f"all: {k} of 4" for k in (1, 2, 3))]
    counts, best = table.groupby("metric")["n"].max(), table.drop_duplicates("metric").set_index("metric")["best"]
    keys = ["method", "best possible, all: 1 of 2"]
    table = table.assign(**{keys[1]: f"{best['all: 1 of 2']:.3f}"})
    sizes = f"Choices: {counts['seen: 1 of 2']} of seen and {counts['unseen: 1 of 2']} of unseen users"
    return f"{sizes}, after {table['n_ref'].max()} choices of history.\n\n{_grid(table, keys, shown)}\n"


def _pictures(table: pd.DataFrame) -> str:
    """Pictures drawn for users: what users whom nobody trained on like, and all measures for all users."""
    unseen = (table["users"] == "unseen") & (table["measure"] == "liked")
    table = table[unseen | (table["users"] == "all")]
    table = table.assign(metric=table["measure"].mask(table["users"] == "unseen", "liked (unseen)"))
    shown = ["liked", "liked (unseen)", "utility", "reward", "faithful", "diversity", "own", "population", "distance"]
    counts = table[table["metric"].isin(("liked", "liked (unseen)"))].groupby("metric")["n"].max()
    sizes = f"Pictures: {counts['liked']}, of them {counts['liked (unseen)']} for unseen users; "
    sizes += f"{mean_of_seeds(int(table['seeds'].max()))} where user branches are trained."
    return f"{sizes}\n\n{_grid(table, ['condition'], shown)}\n"


def _ranking(table: pd.DataFrame) -> str:
    """Orders of the items that users were not asked about, ten of them where a list is meant."""
    table = table[(table["items"] == "fresh") & table["k"].isin([0, 10])]
    wanted = {
        "NDCG@10": ("trained", "all", "ndcg"),
        "told": ("trained", "told", "ndcg"),
        "untold": ("trained", "untold", "ndcg"),
        "recall@10": ("trained", "all", "recall"),
        "1 of 4": ("trained", "all", "pick"),
        "lift": ("trained", "all", "lift"),
        "coverage": ("trained", "all", "coverage"),
        "unseen: NDCG@10": ("unseen", "all", "ndcg"),
    }
    names = {where: name for name, where in wanted.items()}
    places = zip(table["users"], table["liked"], table["measure"], strict=True)
    table = table.assign(metric=[names.get(place, "") for place in places])
    counts = table.groupby("metric")["n"].max()
    names, once = (list(table["method"][kind].unique()) for kind in (table["seeds"] > 1, table["seeds"] == 1))
    repeated = listed(names) if len(names) <= len(once) else f"every row but {listed(once)}"
    sizes = (
        f"Users: {counts['NDCG@10']} who were trained on, {counts['unseen: NDCG@10']} who were not. Means over "
        f"{table['galleries'].max()} galleries; over {table['seeds'].max()} seeds for {repeated}."
    )
    return f"{sizes}\n\n{_grid(table[table['metric'] != ''], ['method'], list(wanted))}\n"


def _ranking_spread(table: pd.DataFrame) -> str:
    """What seeds and galleries change in three measures of rankings, for those that look at pictures."""
    table = table[(table["users"] == "trained") & (table["items"] == "fresh") & (table["liked"] == "all")]
    table = table[table["galleries"] > 1]
    lines = []
    for method, rows in table.groupby("method", sort=False):
        cells = rows.set_index(["measure", "k"])
        shown = [cells.loc[place] for place in (("ndcg", 10), ("lift", 10), ("coverage", 5))]
        spreads = [[f"{row[name]:.3f}" for name in ("value", "sd_seeds", "sd_galleries")] for row in shown]
        written = (f"{value} ({seeds}; {galleries})" for value, seeds, galleries in spreads)
        lines.append([method, rows["information"].iloc[0], *written])
    columns = ["method", "information", "NDCG@10", "lift of 10", "coverage of 5"]
    found = _lines(pd.DataFrame(lines, columns=columns).replace("nan", "–", regex=True))
    return f"Value, and in brackets the standard deviations of seeds and of galleries.\n\n{found}\n"


def _full_size(table: pd.DataFrame) -> str:
    planned, took = table["planned_training_bytes"], table["training_bytes"]
    columns = {
        "method": table["method"],
        "information": table["information"],
        "gradient checkpointing": table["gradient_checkpointing"].map({True: "yes", False: "no"}),
        "trained parameters": table["parameters_trained"].map("{:,}".format),
        "s per step": table["seconds_per_step"].map("{:.3f}".format),
        "s planned": table["planned_seconds_per_step"].map("{:.3f}".format),
        "GB measured": (took / 1e9).map("{:.1f}".format),
        "GB planned": (planned / 1e9).map("{:.1f}".format),
        "GB planned : measured": (planned / took).map("{:.2f}".format),
    }
    first = table.iloc[0]
    where = f"{first['backbone']}; batches of {first['batch_size']}, {first['steps']} steps. {first['hardware']}."
    return f"{where}\n\n{_lines(pd.DataFrame(columns))}\n"


def _cpu(table: pd.DataFrame) -> str:
    processor = table["hardware"].str.partition(",")[0]
    setting = table["setting"].where(processor == processor[0], table["setting"] + ", on " + processor)
    columns = {
        "benchmark": table["benchmark"], "setting": setting, "variant": table["variant"],
        "ms (median)": table["median_ms"].map("{:,.2f}".format), "ratio": table["ratio"].map("{:.2f}".format),
        "rounds": table["rounds"].map("{:.0f}".format),
    }  # fmt: skip
    rows = pd.DataFrame(columns).replace("nan", "–")
    return f"{table['hardware'][0]}.\n\n{_lines(rows)}\n"


def _survey(figures: Path) -> str:
    """A table per application of the survey, a line for each thing that runs, or for the reason why nothing does."""
    found = survey.read_map()
    tables = dict.fromkeys(entry.table for *_, entry in survey.entries(found) if entry.table)
    if missing := [table for table in tables if not (figures / f"{table}.csv").is_file()]:
        return f"Nobody has committed `{FIGURES.name}/{missing[0]}.csv` yet.\n"
    numbers, parts = survey.numbers(found, figures), []
    notebooks = {path.name[:2]: path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for application, row in found.cells.items():
        lines = []
        for mechanism, cell in row.items():
            head = [mechanism, ", ".join(cell.survey)]
            if cell.empty:
                paper = f"[{cell.empty.read}](https://arxiv.org/abs/{cell.empty.arxiv})"
                lines.append([*head, f"*empty:* {cell.empty.why}; see {paper}", "–", "–", "–"])
            here = numbers[(numbers["application"] == application) & (numbers["mechanism"] == mechanism)]
            for entry in here.itertuples():
                link = f"[{entry.notebook}](../notebooks/{notebooks[entry.notebook]})" if entry.notebook else "–"
                value = f"[tables of its own]({entry.page})" if entry.page else "–"
                if pd.notna(entry.value):
                    interval = f"{entry.value:.2f} [{entry.low:.2f}, {entry.high:.2f}]"
                    value = f"{entry.measure}: {interval} (nobody known: {entry.chance:.2f}; n {entry.n:.0f})"
                lines.append([*head, entry.name, value, f"`{entry.command}`", link])
        columns = ["how", "in the survey", "here", "what came out", "command", "notebook"]
        parts.append(f"**{application.capitalize()}**\n\n{_lines(pd.DataFrame(lines, columns=columns))}\n")
    return "\n".join(parts)


def _ladder(table: pd.DataFrame) -> str:
    """Two measures of every method on every rung of the ladder of readers, a column for each rung."""
    parts = []
    for metric in ("auc_told", AUC_SAME):
        rows = table[(table["metric"] == metric) & (table["type"] != REFERENCE)]
        rows = rows.assign(metric=rows["backbone"].str.removeprefix("llava-mini-"))
        grid = _grid(rows, ["method"], list(rows["metric"].unique()), 2)
        parts.append(f"`{metric}`, n {rows['n'].max()}:\n\n{grid}\n")
    return "\n".join(parts)


def _ladder_skills(table: pd.DataFrame) -> str:
    """What the cards of the rungs say, a line for each."""
    grid = table.pivot_table(index=["rung", "backbone"], columns="ability", values="value", sort=False)
    shown = [name for name in grid if "description" not in name]
    return _lines(grid[shown].map("{:.2f}".format).reset_index(), numbers=len(shown)) + "\n"


def _trials(figures: Path) -> str:
    found = budgets(figures)
    return "Nobody has committed `config/tuning/mini.csv` yet.\n" if found is None else _lines(found) + "\n"


def _made_with(figures: Path) -> str:
    """What the committed editions were made with, and whether their miniatures are the ones that are shipped now."""
    found = {path.parent.name: read_table(path) for path in sorted(figures.glob(f"*/{MADE_WITH}.csv"))}
    if not found:
        return f"Nobody has committed `{FIGURES.name}/<edition>/{MADE_WITH}.csv` yet.\n"
    table = pd.concat(found, names=["edition"]).reset_index("edition")
    names = (*MINIATURES, CHOICE_MINIATURE)
    shipped = table["backbone"].map({name: files_digest(PACKAGE / "weights" / name) for name in names})
    same = (table["weights"] == shipped).map({True: "as shipped", False: "earlier ones"})
    table["weights"] = table["weights"].where(shipped.isna(), same)
    one_day = table["first"] == table["last"]
    table["days"] = table["first"].where(one_day, table["first"] + " to " + table["last"])
    return _lines(table[["edition", "backbone", "weights", "runs", "hardware", "torch", "days"]]) + "\n"


def _from(name: str, written: Callable[[pd.DataFrame], str]) -> Callable[[Path], str]:
    """The Markdown of one committed CSV file; a line that says so where nobody has committed it."""

    def made(figures: Path) -> str:
        path = figures / name
        return written(read_table(path)) if path.is_file() else f"Nobody has committed `{FIGURES.name}/{name}` yet.\n"

    return made


def _of_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """What conditions of MMPB's protocol come to: backbone, condition, information, turns, then recognition, preference
    and all with their intervals, and unread."""
    table = table[(table["attribute"] == "all") & (table["task"] == "all")]
    cells = [f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in table.itertuples()]
    keys = ["backbone", "method", "information", "turns"]
    grid = table.assign(cell=cells).pivot(index=keys, columns="category", values="cell")
    unread = table[table["category"] == "all"].set_index(keys)["unread"]
    order = list(table[keys].drop_duplicates().itertuples(index=False, name=None))
    whole = grid[["recognition", "preference", "all"]].assign(unread=unread.map("{:.0f}".format)).loc[order]
    return whole.rename_axis(columns=None).reset_index().rename(columns={"method": "condition"})


def _mmpb(table: pd.DataFrame) -> str:
    talked = table.loc[table["turns"] > 0, "method"].unique()
    return _lines(_of_tasks(table[table["method"].isin(talked)])) + "\n"


def _mmpb_switches(table: pd.DataFrame) -> str:
    rows = _of_tasks(table[table["turns"] == 0])
    keys = ["condition", "information"]
    wide = rows.pivot(index=keys, columns="backbone", values=["recognition", "preference"])
    columns = [(name, backbone) for backbone in rows["backbone"].unique() for name in ("recognition", "preference")]
    wide = wide.loc[list(dict.fromkeys(zip(*(rows[key] for key in keys), strict=True))), columns]
    wide.columns = [f"{backbone}, {category}" for category, backbone in wide.columns]
    return _lines(wide.reset_index()) + "\n"


TABLES: dict[str, Callable[[Path], str]] = {
    "headline": _main("mini", metrics=HEADLINE, digits=2),
    "main": _main("mini"),
    "ablation": _ablation("mini"),
    "main after small talk": _main("mini", 10),
    "ablation after small talk": _ablation("mini", 10),
    "comparisons": _from("mini/comparisons.csv", _comparisons),
    "controls": _from("mini/controls.csv", _controls),
    "told": _from("mini/breakdown.csv", _told),
    "unseen": _from("mini/unseen.csv", _unseen),
    "seeds": _from("mini/table1_seeds.csv", _seeds),
    "information": _from("mini/information.csv", _information),
    "curves": _from("mini/protocol/more_training.csv", _curves),
    "small": _main("small"),
    "small ablation": _ablation("small"),
    "small controls": _from("small/controls.csv", _controls),
    "as published": _main("published-mini"),
    "rivals": _main("rivals"),
    "unseen rivals": _from("rivals/unseen.csv", _unseen),
    "ladder": _from("ladder/table1.csv", _ladder),
    "ladder skills": _from("ladder/skills.csv", _ladder_skills),
    "choices": _from("preference-mini/table1.csv", _choices),
    "pictures": _from("generation-mini/table1.csv", _pictures),
    "ranking": _from("ranking/ranking.csv", _ranking),
    "ranking rivals": _from("rivals/ranking.csv", _ranking),
    "ranking spread": _from("ranking/ranking.csv", _ranking_spread),
    "mmpb": _from("any_vlm/mini.csv", _mmpb),
    "mmpb switches": _from("any_vlm/mini.csv", _mmpb_switches),
    "trials": _trials,
    "made with": _made_with,
    "survey map": _survey,
    "full size": _from(f"{SPEED}/full_size.csv", _full_size),
    "cpu": _from(f"{SPEED}/cpu.csv", _cpu),
}
"""What a page may have between its marks, from a folder of committed tables."""


def _sizes(rows: pd.DataFrame, metrics: Iterable[str]) -> str:
    counts = rows.groupby("metric")["n"].max()
    sizes = ", ".join(
        f"{metric} {counts[metric]}" for metric in metrics if metric in counts and metric != "sensitivity"
    )
    trained = rows if "type" not in rows else rows[~rows["type"].isin((REFERENCE, "NT"))]
    row = "method" if "method" in rows else "components"
    seeds = trained.groupby(row, sort=False)["seeds"].max()
    counts = sorted(set(seeds), reverse=True)
    if len(counts) == 1:
        return f"Questions: {sizes}. Trained rows: {mean_of_seeds(counts[0])}."
    words = [f"{', '.join(seeds.index[seeds == count])}: {mean_of_seeds(count)}" for count in counts[:-1]]
    return f"Questions: {sizes}. {'; '.join(words)}; other trained rows: {mean_of_seeds(counts[-1])}."


def _grid(rows: pd.DataFrame, keys: list[str], metrics: Sequence[str], digits: int = 3) -> str:
    """Rows of one method, condition or component each; what they are shown of the user stands beside their names."""
    keys, lines = [keys[0], "information", *keys[1:]], []
    for key, group in rows.groupby(keys, sort=False, dropna=False):
        cells = group.set_index("metric")
        values = [_cell(cells.loc[metric], digits) if metric in cells.index else "–" for metric in metrics]
        lines.append([*("" if pd.isna(part) else part for part in key), *values])
    heads = [*keys, *(f"{metric} ↓" if metric in LOWER_IS_BETTER else metric for metric in metrics)]
    return _lines(pd.DataFrame(lines, columns=heads), numbers=len(metrics))


def _lines(table: pd.DataFrame, numbers: int = 0) -> str:
    """Rows between bars; the last ``numbers`` columns are set to the right."""
    words = len(table.columns) - numbers
    rows = [table.columns, *table.itertuples(index=False)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * words + "--:|" * numbers, *lines[1:]])


def _cell(row: pd.Series, digits: int) -> str:
    if pd.isna(row["value"]):
        return "–"
    value = round(float(row["value"]), digits) + 0.0  # no "-0.000"
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {(row['high'] - row['low']) / 2:.{digits}f}"
