"""Says which code a result depends on: digests of modules with everything they import, and of notebooks' code."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent

RUN_MODULES = ("prefmoe.training", "prefmoe.evaluation", "prefmoe.models.methods")
"""Where weights and answers come from."""

NOT_A_CAUSE = (
    "prefmoe.config", "prefmoe.metrics", "prefmoe.statistics", "prefmoe.provenance", "prefmoe.names", "prefmoe.places",
    "prefmoe.file_digests",
)  # fmt: skip
"""Imported by the modules above, yet unable to change weights or answers (settings are compared by value)."""


class UnknownModuleError(LookupError):
    """A module of this package that is named or imported and has no file: its digest would never change."""


class NotebookCodeError(ValueError):
    """A notebook whose code cannot be read; the message names the file and the cell."""


@cache
def code_digest(modules: tuple[str, ...] = RUN_MODULES, without: tuple[str, ...] = NOT_A_CAUSE) -> str:
    """A hash of the named modules and of all they import from this package; computing it imports nothing.

    Comments, docstrings and layout are not part of it.

    Args:
        without: modules that are left out, with what only they import.

    Raises:
        UnknownModuleError: if a module of this package that is named here, or that one of them imports, has no file.
    """
    if unknown := sorted(name for name in (*modules, *without) if module_file(name) is None):
        raise UnknownModuleError(f"no module {', '.join(unknown)} in {PACKAGE}: was it moved or renamed?")
    waiting, dumps = list(modules), {}
    while waiting:
        name = waiting.pop()
        path = module_file(name)
        if path is None or name in dumps or name in without:
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imported, dumps[name] = _module(path.read_text(encoding="utf-8"), package)
        waiting += _modules(imported, path)
    return digest(sorted(dumps.items()))


def _modules(names: Iterable[str], path: Path) -> list[str]:
    """Those of the imported names that are modules of this package; ``path`` is the file that imports them."""
    found = []
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if module_file(name):
            found.append(name)
        elif parent == "prefmoe" and leaf not in _bound(PACKAGE / "__init__.py"):
            raise UnknownModuleError(f"{path}: imports {name}, and there is no such module in {PACKAGE}")
        elif parent.startswith("prefmoe.") and module_file(parent) is None:
            raise UnknownModuleError(f"{path}: imports {name}, and there is no module {parent} in {PACKAGE}")
    return found


@cache
def _bound(path: Path) -> set[str]:
    """Names that a package's own file binds at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        names.update(getattr(target, "id", getattr(target, "name", None)) for target in targets)
        names.update(alias.asname or alias.name for alias in getattr(node, "names", ()))
    return names


def notebook_digest(notebook: str | Path) -> str:
    """A hash of a notebook's code cells and of what they import from this package.

    Prose, outputs, metadata and the cell that papermill injects do not change it.

    Raises:
        NotebookCodeError: if the file is not a notebook, or a code cell is not valid Python.
        UnknownModuleError: if a cell imports a module that this package does not have.
    """
    path, names, sources = Path(notebook), set(), []
    for number, source in _code_cells(path):
        plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        try:
            names.update(imports(ast.parse(plain)))
        except SyntaxError as error:
            raise NotebookCodeError(f"{path}: cell {number} is not valid Python: {error}") from error
        sources.append(source)
    return digest([sources, code_digest(tuple(sorted(_modules(names, path))), ())])


def _code_cells(path: Path) -> list[tuple[int, str]]:
    """Number (from 1, among all cells) and source of a notebook's own code cells; quicker than nbformat."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [
            (number, "".join(cell["source"]))
            for number, cell in enumerate(cells, 1)
            if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", [])
        ]
    except FileNotFoundError as error:
        raise NotebookCodeError(f"notebook {path} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookCodeError(f"{path}: not a notebook: {error!r}") from error


def digest(content: Any) -> str:
    """A hash of anything JSON can hold; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def module_file(name: str) -> Path | None:
    """The source file of a module of this package; None for the package itself and for anything else."""
    first, *rest = name.split(".")
    if first != "prefmoe" or not rest:
        return None
    path = PACKAGE.joinpath(*rest)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imports(tree: ast.Module, package: str = "") -> Iterator[str]:
    """Names of the modules that a module imports, at its top level or inside functions."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree and the statements in it at any depth; their expressions, ten times as many nodes, hold none."""
    yield tree
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(tree, name, ()):
            yield from _statements(statement)


@cache
def _module(source: str, package: str) -> tuple[tuple[str, ...], str]:
    """What a module imports of this package, and its code; most modules are imported by several notebooks."""
    tree = ast.parse(source)
    names = dict.fromkeys(name for name in imports(tree, package) if name.startswith("prefmoe."))
    return tuple(names), _without_docstrings(tree)


def _without_docstrings(tree: ast.Module) -> str:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return ast.dump(tree)
