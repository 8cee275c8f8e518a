"""Says which code a result depends on: digests of modules with everything they import, and of notebooks' code."""

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefmoe.system.files import FileError, read_json, write_json

PACKAGE = Path(__file__).resolve().parent.parent

RUN_MODULES = (
    "prefmoe.running.training", "prefmoe.running.evaluation", "prefmoe.models.base", "prefmoe.backbones.loading",
    "prefmoe.models.controls",
)  # fmt: skip
"""Where weights and answers come from, beside the module of the method (`methods`)."""

IMPORTS_METHODS = "prefmoe.models.base"
"""The module that imports what settings name, which nobody can see in its code: whoever reaches it says which."""

NOT_A_CAUSE = (
    "prefmoe.config", "prefmoe.metrics", "prefmoe.analysis.statistics", "prefmoe.system.provenance",
    "prefmoe.system.names", "prefmoe.system.places", "prefmoe.system.file_digests", "prefmoe.system.run_files",
)  # fmt: skip
"""Imported by the modules above, yet unable to change weights or answers (settings are compared by value)."""


class UnknownModuleError(LookupError):
    """A module of this package that is named or imported and has no file, or methods that are imported and not named:
    the digest would not change when they do."""


@dataclass(frozen=True)
class Source:
    """A Python file outside this package, and what it said when it was run."""

    path: Path
    text: str


class NotebookCodeError(ValueError):
    """A notebook whose code cannot be read; the message names the file and the cell."""


class Memory:
    """What was found in modules, by their texts, in a JSON file: no loss where it is missing, unreadable or old."""

    MOST = 5000
    """Entries, of which the oldest are forgotten."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.known: dict[str, Any] = {}
        self.news = False

    def read(self, path: Path | None) -> None:
        """From now on what the file holds is known, and what is found is written to it; None: nothing, and nowhere."""
        self.path, self.known, self.news = path, {}, False
        with suppress(FileError):
            content = read_json(path, "what was found in modules") if path else {}
            if content.pop("made by", None) == _maker():
                self.known = content

    def look_up(self, key: str, kind: type, find: Callable[[], Any]) -> Any:
        """What is known by this key, or is found now."""
        if not isinstance(value := self.known.get(key), kind):
            value = find()
            if self.path:
                self.known[key], self.news = value, True
        return value

    def write(self) -> None:
        """Where there are news; nothing happens in a folder that cannot be written to."""
        if self.path and self.news:
            self.known = dict(list(self.known.items())[-self.MOST :])
            with suppress(OSError):
                write_json(self.path, {"made by": _maker(), **self.known})
            self.news = False


@cache
def _maker() -> str:
    """What all of a memory depends on besides the texts."""
    return digest([sys.version, Path(__file__).read_text(encoding="utf-8")])


MEMORY = Memory()
"""Of this process; nothing is read or written before `Memory.read`."""


@cache
def code_digest(
    modules: tuple[str, ...] = RUN_MODULES,
    without: tuple[str, ...] = NOT_A_CAUSE,
    methods: tuple[str | Source, ...] | None = None,
) -> str:
    """A hash of the named modules and of all they import from this package; computing it imports nothing.

    Comments, docstrings and layout are not part of it.

    Args:
        without: modules that are left out, with what only they import.
        methods: the code (`MethodSettings.source`) of the methods that `IMPORTS_METHODS` may build, where that is
            among the modules or what they import.

    Raises UnknownModuleError if a module of this package that is named here, or that one of them imports, has no file;
    or if methods may be built and are not named.
    """
    named = [*modules, *without, *(name for name in methods or () if isinstance(name, str))]
    if unknown := sorted(name for name in named if module_file(name) is None):
        raise UnknownModuleError(f"no module {', '.join(unknown)} in {PACKAGE}: was it moved or renamed?")
    waiting, texts = list(modules), {}
    while waiting:
        one = waiting.pop()
        if one in texts or one in without:
            continue
        if isinstance(one, Source):
            path, text, package = one.path, one.text, ""
        elif path := module_file(one):
            text, package = path.read_text(encoding="utf-8"), one if path.stem == "__init__" else one.rpartition(".")[0]
        else:
            continue
        texts[one] = text, package
        key = f"{package} imports {_mark(text)}"
        waiting += _modules(MEMORY.look_up(key, list, lambda: _module(text, package)[0]), path)  # noqa: B023
        if one == IMPORTS_METHODS:
            if methods is None:
                raise UnknownModuleError(f"{', '.join(modules)}: {one} builds methods, and nobody says which")
            waiting += methods
    named = {one: one if isinstance(one, str) else one.path.name for one in texts}
    key = digest(sorted((named[one], _mark(text)) for one, (text, _) in texts.items()))
    found = MEMORY.look_up(key, str, lambda: digest(sorted((named[one], _module(*texts[one])[1]) for one in texts)))
    MEMORY.write()
    return found


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


def notebook_digest(notebook: str | Path, methods: tuple[str | Source, ...] | None = None) -> str:
    """A hash of a notebook's code cells and of what they import from this package.

    Prose, outputs, metadata and the cell that papermill injects do not change it.

    ``methods``: as of `code_digest`, that the notebook may build. Raises NotebookCodeError if the file is not a
    notebook, or a code cell is not valid Python; UnknownModuleError if a cell imports a module that this package does
    not have, or as `code_digest`.
    """
    path, names, sources = Path(notebook), set(), []
    for number, source in _code_cells(path):
        plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        try:
            names.update(imports(ast.parse(plain)))
        except SyntaxError as error:
            raise NotebookCodeError(f"{path}: cell {number} is not valid Python: {error}") from error
        sources.append(source)
    return digest([sources, code_digest(tuple(sorted(_modules(names, path))), (), methods)])


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotebookCodeError(f"{path}: not a notebook: {error!r}") from error


def digest(content: Any, size: int = 16) -> str:
    """A hash of anything JSON can hold, of so many bytes; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=size).hexdigest()


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
def _mark(text: str) -> str:
    return digest(text)


@cache
def _module(source: str, package: str) -> tuple[list[str], str]:
    """What a module imports of this package, and its code; most modules are imported by several notebooks."""
    tree = ast.parse(source)
    names = dict.fromkeys(name for name in imports(tree, package) if name.startswith("prefmoe."))
    return list(names), _without_docstrings(tree)


def _without_docstrings(tree: ast.Module) -> str:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return ast.dump(tree)
