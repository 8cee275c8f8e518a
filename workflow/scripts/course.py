"""Makes what the course ships: its answers from finished runs, and a student's notebooks from those with solutions."""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import shipping
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from publish import with_outputs
from tqdm.auto import tqdm

from prefmoe.analysis.groupings import depicted_items
from prefmoe.analysis.groupings import questions as asked_of
from prefmoe.analysis.pairs import held_probability
from prefmoe.config import RESULTS, ROOT, Edition, load_edition, run_folder
from prefmoe.course import answers
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.data.sources import load_benchmark
from prefmoe.metrics import score
from prefmoe.models.free_users import UserTokens, prefix_of
from prefmoe.system.files import whole_file, write_json
from prefmoe.system.run_files import read_controls, read_predictions, read_story
from prefmoe.workflow import notebooks

METHODS = ("NT-profile", "NT", "PrefMoE-untrained", "LoRA-profile", "LoRA", "PrefMoE")
"""Whose answers are shipped: the text's readers, one who knows names alone, and PrefMoE before and after training."""

CONTROLS = ("other_user", "zero_prefix")
FOCUS = "PrefMoE"

COURSE = ROOT / "course"
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION$", re.S | re.M)
"""The marks of nbgrader, whose tools can read the notebooks with solutions as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("answers", help="course/answers/ from an edition's finished runs")
    shipping.of_runs(made, write_answers, answers.FOLDER)
    stripped = commands.add_parser("exercises", help="course/exercises/ from course/solutions/")
    stripped.set_defaults(made=lambda o: write_exercises())
    solved = commands.add_parser("solve", help="execute course/solutions/ and keep the outputs")
    solved.add_argument("units", nargs="*", metavar="UNIT", help="such as unit5_experts; all when none is named")
    solved.set_defaults(made=lambda o: solve(units=o.units))
    graded = commands.add_parser("grade", help="what every check says of the notebooks of a folder, as a table")
    graded.add_argument("folder", type=Path, help="of notebooks that were handed in, in folders of their own or not")
    graded.add_argument("--output", type=Path, default=RESULTS / "course/grades.csv", help="the table")
    graded.set_defaults(made=lambda o: [grade(o.folder, o.output)])
    return shipping.make(parser, arguments)


def write_answers(edition: str | Path, backbone: str | None, folder: Path, results: Path = RESULTS) -> list[Path]:
    """Writes the answers of `METHODS` on an edition's test questions, without small talk, from their finished runs.

    ``backbone``: the edition's first when None. Methods that the edition does not have are left out. Returns the files.
    Raises RunFileError for a run that is missing, unfinished or damaged.
    """
    settings = load_edition(edition, seeds="all")
    backbone = backbone or settings.backbones[0]
    benchmark, runs = load_benchmark(settings, results), {}
    given, frames = [], []
    for name in (name for name in METHODS if name in settings.methods):
        config = settings.methods[name]
        for seed in settings.seeds_of(name):
            place = run_folder(results, settings.name, backbone, name, seed)
            story = read_story(place)
            runs[f"{name}/seed{seed}"] = {key: story.get(key) for key in ("inputs_digest", "git_commit")}
            told = {"backbone": backbone, "method": name, "seed": seed}
            rows = _plain_test(read_predictions(place, **told))
            frames.append(rows)
            given.append(rows.assign(method=config.label, seed=seed, control="none"))
            controlled = read_controls(place, **told) if name == FOCUS else None
            for control in CONTROLS if controlled is not None else ():
                rows = _plain_test(controlled[controlled["control"] == control])
                given.append(rows.assign(method=config.label, seed=seed))
    items = depicted_items(benchmark)
    asked, compact = answers.compact([frames[0], asked_of(benchmark, "train").assign(split="train")], given)
    asked["item"] = asked["index"].map(items)
    about = {"edition": settings.name, "backbone": backbone, "runs": runs}
    exchanged = write_exchanges(settings, backbone, benchmark, results)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {answers.QUESTIONS: asked, answers.ANSWERS: compact, answers.EXCHANGES: exchanged}
    for name, table in tables.items():
        with whole_file(folder / name) as partial:
            table.to_parquet(partial, index=False, compression="zstd")
    write_json(folder / answers.ABOUT, about)
    return [folder / name for name in (*tables, answers.ABOUT)]


def _plain_test(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["split"] == "test") & (rows["turns"] == 0)]


def write_exchanges(settings: Edition, backbone: str, benchmark: Benchmark, results: Path) -> pd.DataFrame:
    """What PrefMoE, first seed, answers about something that the user likes, when residuals are somebody else's.

    The counterpart is the first trained user in the benchmark's order who is not among the holders. Returns the columns
    of `answers.exchanges`.
    """
    from prefmoe.inspection.questions import trained_method
    from prefmoe.running.evaluation import evaluate

    method = trained_method(settings, backbone, FOCUS, settings.seeds_of(FOCUS)[0], results=results)
    frame = score(asked_of(benchmark, "test").assign(prediction="")).set_index("index")
    examples = [e for e in benchmark.select("test") if e.category == "preference" and not e.is_multiple_choice]
    chosen: list[tuple[Example, str]] = []
    for example in examples:
        row = frame.loc[example.index]
        holders = set(answers.split_holders(row["preference_bucket_names"]))
        likes = (row["gt"] == "yes") != bool(row["preference_semantic_invert"])
        others = [name for name in benchmark.trained_users if name not in holders]
        if example.name in holders and likes and others:
            chosen.append((example, others[0]))

    def asked(part: Sequence[tuple[Example, str]]) -> pd.DataFrame:
        limits = {"batch_size": settings.evaluation.batch_size, "max_new_tokens": settings.evaluation.max_new_tokens}
        return score(evaluate(method, [example for example, _ in part], turns=0, reuse_prefixes=False, **limits))

    rows = []
    pairs = sorted({(example.facet_id, other) for example, other in chosen})
    for facet, other in pairs:
        part = [pair for pair in chosen if (pair[0].facet_id, pair[1]) == (facet, other)]
        found = {"own": asked(part)}
        for name, exchanged in {
            "asked_facet": lambda f, k=facet: f == k,
            "other_facets": lambda f, k=facet: f != k,
        }.items():
            with residuals_of(method.user_state, benchmark.row(other), exchanged):
                found[name] = asked(part)
        likely = {name: held_probability(table).round(6) for name, table in found.items()}
        asked_about = found["own"].rename(columns={"name": "user_name", "concept": "facet"})
        shown = asked_about["index"].map(depicted_items(benchmark))
        rows.append(asked_about.assign(user=asked_about["user_name"], item=shown, counterpart=other, **likely))
    return pd.concat(rows, ignore_index=True).reindex(columns=list(answers.EXCHANGED))


@contextmanager
def residuals_of(user_state, row: int, exchanged: Callable[[int], bool]) -> Iterator[None]:
    """Within it everybody has the residuals of one user in some facets: in the prefix, and for routers and experts.

    ``row``: that user's, in the user state. ``exchanged``: whether a facet's residual is, by its number.
    """

    def hook(module, arguments, tokens: UserTokens) -> UserTokens:
        other = module.forward(arguments[0].new_full(arguments[0].shape, row))
        residuals = tokens.residuals.clone()
        for facet in range(residuals.shape[1]):
            if exchanged(facet):
                residuals[:, facet] = other.residuals[:, facet]
        prefix = prefix_of(tokens.profile, tokens.prototypes, residuals)
        return replace(tokens, residuals=residuals, prefix=prefix)

    handle = user_state.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A student's notebook: every solution is a ``...`` to be replaced, and nothing has been run; pictures above the
    first of them stay, to be looked at before anything is installed."""
    cells, begun = [], False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            begun = begun or bool(SOLUTION.search(cell.source))
            pictures = [output for output in cell.outputs if "<img " in output.get("data", {}).get("text/html", "")]
            shown = [] if begun else pictures
            cell = nbformat.v4.new_code_cell(SOLUTION.sub(_placeholder, cell.source), id=cell.id, outputs=shown)
        cells.append(cell)
    metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info") if name in notebook.metadata}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _placeholder(solution: re.Match) -> str:
    """What stands in a solution's place: of a function's body ``...``; else the same for every name that it assigns."""
    indent, body = solution.groups()
    if indent:
        return f"{indent}...  # yours"
    targets = [t for node in ast.parse(body).body if isinstance(node, ast.Assign) for t in node.targets]
    return "\n".join(f"{ast.unparse(target)} = ...  # yours" for target in targets) or "...  # yours"


def write_exercises(folder: Path = COURSE) -> list[Path]:
    """course/exercises/ from course/solutions/; what has no source any more is removed. Returns the files."""
    written = []
    (folder / "exercises").mkdir(exist_ok=True)
    for path in sorted((folder / "solutions").glob("*.ipynb")):
        written.append(folder / "exercises" / path.name)
        notebooks.write(without_solutions(notebooks.read(path)), written[-1])
    for path in (folder / "exercises").glob("*.ipynb"):
        if path not in written:
            path.unlink()
    return written


def solve(folder: Path = COURSE, units: Sequence[str] = ()) -> list[Path]:
    """Executes every notebook with solutions, or those of some units, and keeps its outputs in it. Raises NotebookError
    if there is no such unit, or a cell fails."""
    paths = sorted((folder / "solutions").glob("*.ipynb"))
    if unknown := set(units) - {path.stem for path in paths}:
        raise notebooks.NotebookError(f"no unit {min(unknown)!r}; there are {', '.join(path.stem for path in paths)}")
    paths = [path for path in paths if not units or path.stem in units]
    for path in paths:
        executed = notebooks.execute(path, RESULTS / "course" / path.name, threads=1)
        notebooks.write(with_outputs(executed, path), path)
    return paths


CHECK = re.compile(r"^check\.(\w+)\(", re.M)


def grade(folder: Path, output: Path, seconds: int = 600) -> Path:
    """Runs every notebook below a folder from top to bottom, past what fails, each in a kernel and a folder of its own,
    and writes a row per check: notebook, check, right (1, or 0), said (the check's sentence). What is handed in stays
    as it is; it is code of others, and runs with your rights. A cell is stopped after so many ``seconds``; of a
    notebook whose kernel dies what had run before counts. Returns ``output``. Raises NotebookError without any.
    """
    paths = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not paths:
        raise notebooks.NotebookError(f"{folder}: no notebooks in it")
    rows = []
    for path in tqdm(paths, desc="graded", disable=None):
        notebook = notebooks.read(path)
        with TemporaryDirectory() as place:
            options = {"timeout": seconds, "interrupt_on_timeout": True, "allow_errors": True}
            client = NotebookClient(notebook, **options, resources={"metadata": {"path": place}})
            try:
                client.execute()
            except DeadKernelError as error:  # what ran before stays
                print(f"{path}: {error}", file=sys.stderr)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            told = "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream")
            failed = [f"{out.ename}: {out.evalue}" for out in cell.outputs if out.output_type == "error"]
            for name in CHECK.findall(cell.source):
                said = failed[0].removeprefix("NotYet: ") if failed else told.strip()
                row = {"notebook": path.relative_to(folder).as_posix(), "check": name}
                rows.append(row | {"right": int(not failed and bool(told)), "said": said})
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial:
        pd.DataFrame(rows, columns=["notebook", "check", "right", "said"]).to_csv(partial, index=False)
    return output


if __name__ == "__main__":
    sys.exit(main())
