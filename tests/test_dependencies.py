"""The environment: imports are declared, declarations agree, and continuous integration runs README's words."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
import site_book
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from prefmoe.config import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCS = PROJECT["optional-dependencies"]["docs"]
REQUIRED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + DOCS
NOTEBOOKS = ("notebooks", "course/exercises", "course/solutions")
OWN = {"prefmoe", *(path.stem for folder in ("tests", "workflow/scripts") for path in (ROOT / folder).iterdir())}


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def _imported(source: str) -> Iterator[str]:
    """The first names of the modules that a source imports, at any depth of it."""
    waiting: list[ast.AST] = [ast.parse(source)] if "import" in source else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):  # of its expressions none imports
            inside = getattr(node, name, ())
            waiting += inside if isinstance(inside, list) else ()


def _sources() -> Iterator[tuple[str, str]]:
    """(file, source) of everything whose imports a user has to be able to satisfy."""
    for folder in ("prefmoe", "tests", "workflow/scripts", "site"):
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in (ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")):
        lines = path.read_text(encoding="utf-8").splitlines()
        alone = [line.strip() for line in lines if re.match(r"\s*(import [\w.]+|from [\w.]+ import [\w, ]+)$", line)]
        yield path.name, "\n".join(alone)
    for path in (path for folder in NOTEBOOKS for path in (ROOT / folder).glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                file = path.relative_to(ROOT).as_posix()
                yield file, "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_every_import_is_declared():
    """What the two commands do not install is an extra, which the file that imports it names."""
    declared = _names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    extras = {name: _names(requirements) for name, requirements in PROJECT["optional-dependencies"].items()}
    owners = importlib.metadata.packages_distributions()
    undeclared = {}
    for file, source in _sources():
        named = declared.union(*(names for extra, names in extras.items() if f".[{extra}]" in source))
        for name in set(_imported(source)) - OWN - sys.stdlib_module_names:
            if named.isdisjoint(canonicalize_name(owner) for owner in owners.get(name, [name])):
                undeclared.setdefault(name, []).append(file)
    assert not undeclared


def test_notebooks_of_the_course_are_looked_at_too():
    looked_at = {file for file, _ in _sources()}
    for path in (ROOT / "course").glob("[!.]*/[!.]*.ipynb"):
        assert path.relative_to(ROOT).as_posix() in looked_at


def test_a_book_without_what_it_needs_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(site_book, "NEEDED", ("sphinx_of_nobody",))
    monkeypatch.setattr(sys, "argv", ["site_book.py", str(tmp_path / "site")])
    with pytest.raises(SystemExit, match="1"):
        site_book.main()
    assert capsys.readouterr().err == "error: sphinx_of_nobody not installed: python -m pip install -e '.[docs]'\n"
    assert not (tmp_path / "site").exists()


def test_what_users_open_and_draw_with_is_installed_by_the_first_command():
    assert {"jupyterlab", "seaborn"} <= _names(PROJECT["dependencies"])


def test_the_conda_environment_has_the_pins_of_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][-1]["pip"] == REQUIRED


def test_the_lock_holds_one_exact_version_of_everything_required():
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    locked = dict(line.split("==") for line in lines)
    assert len(locked) == len(lines)
    for requirement in map(Requirement, REQUIRED):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def _installed(requirement: Requirement) -> bool:
    """Whether its own requirements can be asked for: README's commands leave out what the book needs."""
    return str(requirement) not in DOCS or importlib.util.find_spec(requirement.name.replace("-", "_")) is not None


def test_the_lock_holds_whatever_the_required_packages_require():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {line.partition("==")[0] for line in lines if line[0] != "#"}
    waiting, seen = [(r.name, frozenset(r.extras)) for r in map(Requirement, REQUIRED) if _installed(r)], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for inner in map(Requirement, importlib.metadata.requires(name) or []):
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((inner.name, frozenset(inner.extras)))
    found = {canonicalize_name(name) for name, _ in seen}
    # Which build of torch is installed decides about packages of the GPU's vendor.
    assert not {name for name in found - locked if not re.match("nvidia-|cuda-|triton", name)}


def test_what_decides_numbers_is_pinned_tightly():
    pins = {r.name: str(r.specifier) for r in map(Requirement, REQUIRED)}
    assert (pins["torch"], pins["transformers"], pins["peft"]) == ("==2.13.0", "<5.24,>=5.23", "<0.22,>=0.21")


def test_the_extra_for_pictures_belongs_to_the_torch_that_is_pinned():
    """A torchvision requires one torch: 0.15 was of torch 2.0, and both have counted alike since."""
    (extra,) = map(Requirement, PROJECT["optional-dependencies"]["torchvision"])
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    (own,), (other,) = ([Version(one.version) for one in r.specifier] for r in (extra, torch))
    assert (other.major, own.release) == (2, (0, 15 + other.minor, other.micro))


# Continuous integration, with programs in the place of the real ones that write down how they are called

PROGRAM = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
[[ $1 == -m && $2 == venv ]] && mkdir -p "$3/bin" && echo : > "$3/bin/activate"
[[ $* == *--dry-run* ]] && echo "Nothing to be done"
if [[ $0 == *pytest && -n $SPOIL ]]; then echo changed > README.md; fi
exit 0
"""


@pytest.fixture
def calls(tmp_path):
    """calls(spoil=False): runs a repository's .ci/run, and returns its exit status and the calls of programs."""
    repository, programs = tmp_path / "repository", tmp_path / "programs"
    (repository / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", repository / ".ci/run")
    (repository / "notebooks").mkdir()
    (repository / "notebooks/one.ipynb").write_text("{}")
    (repository / "README.md").write_text(
        "# Title\n\n```bash\nsnakemake not this\n```\n\n## Two commands\n\n```bash\n"
        "python -m pip install -e '.[all of it]' && snakemake --cores 7\npytest --word-of-readme\n```\n"
    )
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "."]):
        name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *name, *command], cwd=repository, check=True)
    programs.mkdir()
    for name in ("python3", "python", "snakemake", "pytest", "ruff", "lint-imports", "prefmoe", "chromium", "apt-get"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)

    def run(spoil: bool = False) -> tuple[int, list[str]]:
        log = tmp_path / "calls"
        places = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(log), "SPOIL": "1" if spoil else ""}
        result = subprocess.run(["bash", repository / ".ci/run"], env=os.environ | places, capture_output=True)
        return result.returncode, log.read_text().splitlines()

    return run


def test_continuous_integration_runs_the_two_commands_of_the_readme(calls):
    status, called = calls()
    assert status == 0
    assert "python -m pip install -e .[all of it]" in called
    assert "snakemake --cores 7 --config edition=smoke" in called
    assert {"ruff check .", "lint-imports ", "snakemake --lint", "prefmoe check notebooks/one.ipynb"} <= set(called)
    # As users have them: before anything else is installed.
    assert "pytest --word-of-readme" in called[: called.index("python -m pip install -e .[docs]")]
    assert called[-1].startswith("pytest tests/test_book_formulas.py ")


def test_continuous_integration_fails_where_a_command_changes_the_clone(calls):
    status, called = calls(spoil=True)
    assert status != 0 and "pytest --word-of-readme" in called


def test_continuous_integration_sets_nothing_that_a_user_does_not():
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "export" not in text and not re.search(r"[A-Z]_?THREADS", text)


def test_a_wheel_holds_every_file_of_the_package_that_is_no_code():
    package = ROOT / "prefmoe"
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    packed = {path for glob in globs["prefmoe"] for path in package.glob(glob) if path.is_file()}
    other = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert sorted(path.relative_to(package).as_posix() for path in other - packed) == []
