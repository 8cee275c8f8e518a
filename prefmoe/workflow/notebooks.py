"""Runs notebooks so that a finished one can be trusted, and tells whether outputs belong to their cells."""

import ast
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefmoe.config import RESULTS, ROOT, ConfigError
from prefmoe.config.outputs import made_folder
from prefmoe.system.files import require_place, whole_file
from prefmoe.workflow.kernel_runner import KERNELSPEC, run_in_kernel
from prefmoe.workflow.parameters import ParameterError, check

# Where this package is installed, nbformat's validator builds a grammar of internationalised addresses when it is
# imported: two seconds for every notebook, of which none has such a field.
_GRAMMAR = "rfc3987_syntax"
sys.modules.setdefault(_GRAMMAR, None)  # type: ignore[arg-type]
import nbformat  # noqa: E402

if sys.modules[_GRAMMAR] is None:
    del sys.modules[_GRAMMAR]

PARAMETERS_TAG = "parameters"
INJECTED_TAG = "injected-parameters"
RECORD = "prefmoe"
"""Metadata key under which the runner notes what it executed: of the notebook, and of every code cell."""


class NotebookError(RuntimeError):
    """A notebook that cannot be run, failed, or carries outputs that are not its own."""


def execute(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, Any] | None = None, *, threads: int | None = None
) -> Path:
    """Executes a notebook with papermill in the running interpreter's environment.

    The output appears under a temporary name next to ``output`` and is renamed when the last cell has
    succeeded. A second call for the same output waits for the first. Everything that differs between two
    equal runs (execution times, absolute paths, progress bars) stays out of the file; what cells print
    goes to this process's stdout and stderr as well, so that a log has all of it.

    Args:
        output: also says where the notebook's figures go. The workflow's copy of an edition's notebook,
            results/<edition>/notebooks/<name>.ipynb, puts them into the edition's folder, unless a parameter has
            another value than the notebook's own; any other into <output>_figures.
        parameters: values for names that the cell tagged "parameters" assigns.
        threads: CPU threads the kernel may use; all when absent.

    Returns ``output``. Raises NotebookError for an unreadable notebook, an unknown parameter or a value
    that it cannot have (`prefmoe.workflow.parameters`), no threads, an output in
    the place of the notebook, a failing cell, or one that never ran because an earlier one left the notebook
    (sys.exit); the cells executed so far are then kept as ``<output>.failed.ipynb``; FileError for an output below what
    is no folder.
    """
    from filelock import FileLock

    notebook, output = Path(notebook), Path(output)
    parameters = dict(parameters or {})
    known = defaults(read(notebook))
    if unknown := [name for name in parameters if name not in known]:
        expected = f"it has {', '.join(known)}" if known else "it has no cell tagged 'parameters'"
        raise NotebookError(f"{notebook}: unknown parameter {', '.join(map(repr, unknown))}; {expected}")
    try:
        check(parameters, known, notebook.stem)
    except (ParameterError, ConfigError) as error:
        raise NotebookError(f"{notebook}: parameter {error}") from error

    if threads is not None and threads < 1:
        raise NotebookError(f"threads: expected a number from 1, found {threads}")
    if output.is_dir():
        raise NotebookError(f"{output}: a folder, expected the file to write, such as {output / notebook.name}")
    require_place(output)
    partial, failed = output.with_suffix(".running.ipynb"), output.with_suffix(".failed.ipynb")
    for written in (output, partial, failed):
        if written.exists() and written.samefile(notebook):
            raise NotebookError(f"{output}: the output would take the place of its source, {notebook}; name another")
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.stem}.lock")):
        try:
            run_in_kernel(notebook, partial, parameters, threads, _figures(notebook, output, known | parameters, known))
            if unfinished := _unfinished(read(partial)):
                raise NotebookError("; ".join(unfinished))
        except Exception as error:
            if partial.exists():
                write(normalise(read(partial)), failed)
                partial.unlink()
            kept = f"; the cells that ran are in {failed}" if failed.exists() else ""
            raise NotebookError(f"{notebook}: {_reason(error)}{kept}") from error
        executed = normalise(read(partial))
        record(executed, parameters)
        write(executed, partial)
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
    return output


def defaults(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The names that the cell tagged "parameters" assigns, with their values (None where not literal). Raises
    NotebookError if that cell is not valid Python."""
    values: dict[str, Any] = {}
    for cell in code_cells(notebook):
        if PARAMETERS_TAG not in cell.metadata.get("tags", []):
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            raise NotebookError(f"the parameters cell is not valid Python: {error}") from error
        for statement in tree.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets = [statement.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    try:
                        values[target.id] = ast.literal_eval(statement.value)
                    except ValueError:
                        values[target.id] = None
    return values


def check_outputs(notebook: str | Path, *, executed: bool = False) -> None:
    """Refuses a notebook whose outputs do not belong to its cells.

    A cell's outputs are its own when the runner produced them from this code, after this code in the cells
    above and with the noted parameters, and nobody edited them since; and every cell has run to its end. A notebook
    without any outputs passes.

    ``executed``: refuse a notebook that was never executed, too. Raises NotebookError with one line per mistake.
    """
    path, content = Path(notebook), read(Path(notebook))
    record = content.metadata.get(RECORD)
    if record is None:
        foreign = [number for number, cell in _numbered(content) if cell.outputs]
        mistakes = [f"cell {number} has outputs that no run recorded" for number in foreign]
        if executed:
            mistakes.append("it was never executed by `prefmoe notebook`")
    else:
        mistakes = []
        digests = _chain(content, record.get("parameters", {}))
        for (number, cell), digest in zip(_numbered(content), digests, strict=True):
            noted = cell.metadata.get(RECORD)
            if noted is None:
                mistakes.append(f"cell {number} was added after the run")
            elif noted.get("code") != digest:
                mistakes.append(f"cell {number}, or a cell above it, was changed after the run")
            elif noted.get("outputs") != _digest(cell.outputs):
                mistakes.append(f"cell {number} carries outputs that its run did not produce")
        mistakes += _unfinished(content)
    if mistakes:
        raise NotebookError(f"{path}: outputs do not belong to the cells:\n  " + "\n  ".join(mistakes))


def _unfinished(notebook: nbformat.NotebookNode) -> list[str]:
    """A line for every code cell of an executed notebook that never ran, or that left it before its own end. papermill
    takes sys.exit(0) for the end of a notebook that went well."""
    found = []
    for number, cell in _numbered(notebook):
        if any(output.output_type == "error" and output.ename == "SystemExit" for output in cell.outputs):
            found.append(f"cell {number} left the notebook (SystemExit)")
        elif cell.source.strip() and cell.execution_count is None:
            found.append(f"cell {number} never ran")
    return found


def parse_parameters(pairs: list[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from ``name=value`` strings.

    A value is a Python literal, as in the cell of parameters (3, 1e-3, [1, 2], None), and anything else is a text. A
    parameter that is a text in ``known``, as `defaults` gives them, stays one: a user may be called Nan, No or 007.

    Raises NotebookError for an entry without "=".
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise NotebookError(f"parameter {pair!r} is not of the form name=value")
        parameters[name] = value
        if not isinstance(known.get(name), str):
            with suppress(ValueError, SyntaxError):
                parameters[name] = ast.literal_eval(value)
    return parameters


def _figures(notebook: Path, output: Path, values: Mapping[str, Any], usual: Mapping[str, Any]) -> Path:
    """Where a notebook that is executed with these values saves its figures."""
    edition = values.get("edition")
    as_usual = all(values[name] == usual[name] for name in usual if name != "edition")
    if edition and as_usual and output.resolve() == (RESULTS / str(edition) / "notebooks" / notebook.name).resolve():
        return made_folder(str(edition), RESULTS)
    return output.resolve().with_name(f"{output.stem}_figures")


def _reason(error: Exception) -> str:
    """What went wrong, with the cell and the last lines of its traceback where there are any."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, NotebookError):
        return str(error)
    if not isinstance(error, PapermillExecutionError):
        return f"{type(error).__name__}: {error}"
    return f"code cell {error.exec_count} failed with {error.ename}: {error.evalue}"


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drops what differs between two equal runs: times, paths, progress bars, kernel details."""
    notebook.metadata = nbformat.from_dict(
        {k: v for k, v in notebook.metadata.items() if k not in ("papermill", "widgets")}
        | {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    )
    folders = {str(ROOT): ".", str(Path.home()): "~"}
    folders = {path: short for path, short in folders.items() if path != os.sep}
    for cell in notebook.cells:
        for volatile in ("papermill", "execution"):
            cell.metadata.pop(volatile, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)  # papermill adds empty ones
        if INJECTED_TAG in cell.metadata.get("tags", []):
            cell["id"] = INJECTED_TAG
        if cell.cell_type == "code":
            kept = [
                _shorten(output, folders)
                for output in cell.outputs
                if output.get("name") != "stderr" and not any("widget" in k for k in output.get("data", {}))
            ]
            cell.outputs = []
            for output in kept:
                if "text" in output and cell.outputs and "text" in cell.outputs[-1]:
                    cell.outputs[-1].text += output.text  # a busy machine sends what one cell prints in pieces
                else:
                    cell.outputs.append(output)
    return notebook


def _shorten(value: Any, folders: Mapping[str, str]) -> Any:
    """The same output with the given folders written in their short form, wherever they occur in a text."""
    if isinstance(value, str):
        for path, short in folders.items():
            value = value.replace(path, short)
        return value
    if isinstance(value, list):
        return [_shorten(item, folders) for item in value]
    if isinstance(value, dict):
        return nbformat.from_dict({key: _shorten(item, folders) for key, item in value.items()})
    return value


def record(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Notes on the notebook and on every code cell what was run and what came out."""
    notebook.metadata[RECORD] = nbformat.from_dict({"parameters": dict(parameters)})
    for cell, digest in zip(code_cells(notebook), _chain(notebook, parameters), strict=True):
        cell.metadata[RECORD] = nbformat.from_dict({"code": digest, "outputs": _digest(cell.outputs)})


def _chain(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> list[str]:
    """For every code cell a digest of the parameters, of all code above it and of its own."""
    digests, above = [], _digest(dict(parameters))
    for cell in code_cells(notebook):
        above = _digest([above, cell.source])
        digests.append(above)
    return digests


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _numbered(notebook: nbformat.NotebookNode) -> list[tuple[int, nbformat.NotebookNode]]:
    """Code cells with their position among all cells, from 1, as an editor counts them."""
    return [(n, c) for n, c in enumerate(notebook.cells, 1) if c.cell_type == "code" and not _injected(c)]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for _, cell in _numbered(notebook)]


def _injected(cell: nbformat.NotebookNode) -> bool:
    return INJECTED_TAG in cell.metadata.get("tags", [])


def read(path: Path) -> nbformat.NotebookNode:
    if not path.is_file():
        raise NotebookError(f"notebook {path} does not exist")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds, none of which names the file
        raise NotebookError(f"{path}: not a notebook: {error}") from error


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
