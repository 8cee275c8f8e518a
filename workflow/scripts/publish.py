"""Puts what was made under results/ where it is committed: figures/, notebooks/, config/tuning/ and tables of pages.

`publish.py mini`; `publish.py speed` for what speed.py measured; `publish.py any_vlm` for the tables of `prefmoe mmpb`
on the questions of mini and sample; `publish.py pages` for the tables of pages and the sentences at the end of the
notebooks alone.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from conclusions import with_conclusions
from nbformat import NotebookNode
from pages import PAGES, with_tables
from slides import update as update_slides

from prefmoe.analysis import tables
from prefmoe.analysis.mmpb_tables import DIFFERENCES, corrected
from prefmoe.cli import call
from prefmoe.config import CONFIG_FOLDER, FIGURES, RESULTS, ROOT, Edition, load_edition
from prefmoe.config.outputs import PARTS, SPEED, OutputError, committed_folder, made_folder, speed_folder, trials_file
from prefmoe.system.files import require_place, whole_file
from prefmoe.workflow import notebooks
from prefmoe.workflow.notebooks import NotebookError

NAMES_SOMEBODY = {"user", "question"}
"""Columns of tables that may not leave the folder of real data."""


ONLY_PAGES, ANY_VLM = "pages", "any_vlm"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("what", help=f"an edition, {SPEED!r}, {ANY_VLM!r} or {ONLY_PAGES!r}")
    return call(_publish, parser.parse_args(arguments))


def _publish(options: argparse.Namespace) -> None:
    written = update_pages() if options.what == ONLY_PAGES else publish(options.what)
    written += [path for path in with_conclusions() if path not in written]
    written += update_slides()
    for path in written:
        print(path)
    if ignored := ignored_by_git(written):
        folders = ", ".join(sorted({path.parent.relative_to(ROOT).as_posix() for path in ignored}))
        print(f"git ignores {len(ignored)} of these files, which nobody will get: except {folders} in .gitignore",
              file=sys.stderr)  # fmt: skip


def ignored_by_git(paths: Sequence[Path], *, root: Path = ROOT) -> list[Path]:
    """Those of some files of a clone that a commit will not have; none outside git."""
    names = "\n".join((root / path).relative_to(root).as_posix() for path in paths)
    command = ["git", "-C", str(root), "check-ignore", "--stdin"]
    try:
        found = subprocess.run(command, input=names, capture_output=True, text=True).stdout
    except OSError:
        return []
    return [root / name for name in found.splitlines()]


def publish(what: str, *, root: Path = ROOT) -> list[Path]:
    """Copies an edition's tables and figures to figures/<edition>/, whole: what is no longer made is removed.

    A part that this machine has not made (`outputs.PARTS`) stays as it is. Of real data only tables are copied that
    name nobody. The committed notebooks that show the edition are brought up to date with it; the pages' tables
    (`pages.PAGES`) with whatever was published.

    Args:
        what: an edition, `outputs.SPEED` for what workflow/scripts/speed.py measured, or `ANY_VLM` for the tables of
            `prefmoe mmpb`.
        root: the clone.

    Returns the files that were written. Raises OutputError if there is nothing to publish, or the pages' tables cannot
    be made of it; NotebookError if a notebook was not executed as it is now. Then nothing has been changed.
    """
    results, figures = root / RESULTS.name, root / FIGURES.name
    if what == SPEED:
        if not (measured := sorted(speed_folder(results).glob("*.csv"))):
            command = "python workflow/scripts/speed.py"
            raise OutputError(f"there are no measurements in {speed_folder(results)}; make them with `{command}`")
        return [*(_copy(path, figures / SPEED / path.name) for path in measured), *update_pages(root=root)]
    if what == ANY_VLM:
        return [*publish_any_vlm(results, figures / ANY_VLM), *update_pages(root=root)]
    edition = load_edition(what, seeds="all")
    made, committed = made_folder(edition.name, results), committed_folder(edition.name, figures)
    if not (made / PARTS[""]).is_file():
        command = f"snakemake --cores all --config edition={edition.name}"
        raise OutputError(f"there is no {made / PARTS['']}; make it with `{command}`")
    require_place(committed / PARTS[""])
    if short := _too_few_seeds(edition, made / "table1_seeds.csv"):
        raise OutputError(f"{made / 'table1_seeds.csv'}: {short}; published are all (snakemake --config seeds=all)")
    parts = {
        part: sorted(_names(made / part, edition)) for part, last in PARTS.items() if (made / part / last).is_file()
    }
    _try_pages(made, committed, parts, root)
    written = publish_notebooks(results / edition.name / "notebooks", root / "notebooks", edition.name)
    for part, names in parts.items():
        written += _replace(made / part, committed / part, names)
    if (trials := trials_file(edition.name, results)).is_file():
        written.append(_copy(trials, root / CONFIG_FOLDER.name / "tuning" / f"{edition.name}.csv"))
    return [*written, *update_pages(root=root)]


def _try_pages(made: Path, committed: Path, parts: Mapping[str, list[str]], root: Path) -> None:
    """Makes the pages' tables of what would be published, elsewhere. Raises OutputError if that fails."""
    with tempfile.TemporaryDirectory() as place:
        tried = Path(place, FIGURES.name)
        tried.mkdir()
        Path(place, CONFIG_FOLDER.name).symlink_to(root / CONFIG_FOLDER.name)
        for other in committed.parent.iterdir() if committed.parent.is_dir() else ():
            if other != committed:
                (tried / other.name).symlink_to(other)
        if committed.is_dir():
            shutil.copytree(committed, tried / committed.name, ignore=shutil.ignore_patterns("*.png"))
        for part, names in parts.items():
            tables_alone = [name for name in names if name.endswith(".csv")]
            _replace(made / part, tried / committed.name / part, tables_alone)
        try:
            _page_texts(root, tried)
        except (KeyError, tables.TableError) as error:
            what = f"no column or value {error}" if isinstance(error, KeyError) else error
            raise OutputError(f"{made}: the pages' tables cannot be made of these: {what}") from error


def _too_few_seeds(edition: Edition, path: Path) -> str:
    """What a table says of fewer seeds than the edition has, or of methods without any; empty if it says nothing such,
    or does not exist. Raises OutputError if it has no rows, lacks a column or has a row of no method of the edition."""
    if not path.is_file():
        return ""
    table, again = tables.read_table(path), "make the table again with `prefmoe tables`"
    who = "condition" if "condition" in table else "method"
    if lacking := [column for column in (who, "seeds") if column not in table]:
        raise OutputError(f"{path}: no column {', '.join(lacking)}; {again}")
    if table.empty:
        raise OutputError(f"{path}: no rows; {again}")
    wanted = {method.label: len(edition.seeds_of(key)) for key, method in edition.methods.items()}
    for label, count in table.set_index(who)["seeds"].items():
        if label not in wanted:
            raise OutputError(f"{path}: edition {edition.name!r} has no method with the label {label!r}; {again}")
        if count < wanted[label]:
            return f"{label} has {count} of {wanted[label]} seeds"
    shown = path.with_name("information.csv")  # choices have rows of several seeds alone in the other
    there = {*table[who], *(tables.read_table(shown)["method"] if shown.is_file() else ())}
    absent = [edition.methods[key].label for key in edition.later if edition.methods[key].label not in there]
    return f"no row of {', '.join(absent)}" if absent else ""


def publish_any_vlm(results: Path, folder: Path, editions: Sequence[str] = ("mini", "sample")) -> list[Path]:
    """Puts the tables of all `prefmoe mmpb` on an edition's questions into one, <folder>/<edition>.csv, and their
    differences into <edition>-differences.csv: what several of them say once, conditions in the order of edition mmpb;
    the files. Raises OutputError without any."""
    order, written = {one.label: place for place, one in enumerate(load_edition("mmpb").methods.values())}, []
    every = ("method", "baseline", "backbone", "split", "turns", "category", "attribute", "task")
    for edition, kind in product(editions, ("", DIFFERENCES)):
        paths = sorted((results / edition / "mmpb").glob("*.csv"))
        parts = [tables.read_table(path) for path in paths if path.stem.endswith(DIFFERENCES) == bool(kind)]
        if parts:
            whole = pd.concat(parts)
            whole = whole.drop_duplicates([key for key in every if key in whole])
            whole = corrected(whole) if kind else whole
            places = {"model": pd.factorize(whole["backbone"])[0], "place": whole["method"].map(order)}
            whole = whole.assign(**places).sort_values(list(places), kind="stable").drop(columns=list(places))
            written.append(tables.write_csv(whole, folder / f"{edition}{kind}.csv"))
    if not written:
        raise OutputError(f"there are no tables of `prefmoe mmpb` under {results} for {' or '.join(editions)}")
    return written


def update_pages(*, root: Path = ROOT) -> list[Path]:
    """Brings the tables of README.md and docs/results.md up to date with the committed CSV files; returns their paths.
    Raises TableError: see `with_tables`."""
    texts = _page_texts(root, root / FIGURES.name)
    for page, text in texts.items():
        with whole_file(page) as partial:
            partial.write_text(text, encoding="utf-8")
    return list(texts)


def _page_texts(root: Path, figures: Path) -> dict[Path, str]:
    """Each page of a clone with the tables of a folder of figures. Raises TableError: see `with_tables`."""
    pages = [root / name for name in PAGES]
    return {page: with_tables(page.read_text(encoding="utf-8"), figures=figures) for page in pages}


def publish_notebooks(executed: Path, folder: Path, edition: str) -> list[Path]:
    """Puts the outputs of every notebook of a folder that shows this edition into it, where it was executed; one of a
    target of its own may not have been.

    ``executed``: holds <notebook>.ipynb, or <notebook>/<backbone>/<method>.ipynb for one that is executed for many
    pairs; of these the pair that the notebook has as its defaults is taken. Raises NotebookError: see `with_outputs`;
    then no notebook has been touched.
    """
    published = {}
    for notebook in sorted(folder.glob("*.ipynb")):
        usual = notebooks.defaults(notebooks.read(notebook))
        if usual.get("edition", edition) != edition:
            continue
        run = executed / notebook.name
        if (executed / notebook.stem).is_dir():
            run = executed / notebook.stem / usual["backbone"] / f"{usual['method']}.ipynb"
        if run.is_file():
            published[notebook] = with_outputs(run, notebook)
    for notebook, content in published.items():
        notebooks.write(content, notebook)
    return list(published)


def with_outputs(executed: Path, notebook: Path) -> NotebookNode:
    """A notebook with its own prose and the outputs of an executed copy, which check_outputs accepts. Raises
    NotebookError if the code differs, or the run did not use the notebook's default parameters."""
    source, run = notebooks.read(notebook), notebooks.read(executed)
    notebooks.check_outputs(executed, executed=True)
    cells, theirs = notebooks.code_cells(source), notebooks.code_cells(run)
    if [cell.source for cell in cells] != [cell.source for cell in theirs]:
        raise NotebookError(f"{notebook}: its code differs from {executed}; execute it before publishing")
    usual = notebooks.defaults(source)
    for name, value in run.metadata[notebooks.RECORD]["parameters"].items():
        if usual.get(name) != value:
            raise NotebookError(f"{executed}: ran with {name}={value!r}, the default is {usual.get(name)!r}")
    for mine, other in zip(cells, theirs, strict=True):
        mine.outputs, mine.execution_count = other.outputs, other.execution_count
    notebooks.record(notebooks.normalise(source), {})
    return source


def _names(folder: Path, edition: Edition) -> Iterator[str]:
    """Tables and figures of a folder that may be published."""
    for path in folder.iterdir():
        if path.suffix == ".png" and edition.drawn:
            yield path.name
        elif path.suffix == ".csv":
            somebody = NAMES_SOMEBODY & set(tables.read_table(path).columns)
            if edition.drawn or not somebody:
                yield path.name


def _replace(made: Path, committed: Path, names: list[str]) -> list[Path]:
    """Makes a folder's tables and figures those of another; its subfolders and other files are left alone."""
    written = [_copy(made / name, committed / name) for name in names]
    for path in committed.iterdir():
        if path.suffix in (".csv", ".png") and path.name not in names:
            path.unlink()
    return written


def _copy(source: Path, target: Path) -> Path:
    with whole_file(target) as partial:
        partial.write_bytes(source.read_bytes())
    return target


if __name__ == "__main__":
    sys.exit(main())
