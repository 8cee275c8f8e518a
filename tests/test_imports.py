"""The direction of imports: contracts of pyproject.toml hold, no module imports itself by way of others; lengths."""

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent


def test_the_contracts_hold() -> None:
    """In a process of its own: the linter switches off the loggers of whoever runs it."""
    code = "from importlinter.cli import lint_imports_command as main; main()"
    found = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_wing_has_a_layer() -> None:
    wings = {path.stem for path in (ROOT / "prefmoe").glob("*.py")} - {"__init__", "__main__"}
    wings |= {path.parent.name for path in (ROOT / "prefmoe").glob("*/__init__.py")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = " ".join(next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"))
    assert {f"prefmoe.{wing}" for wing in wings} == set(layers.split()) - {":", "|"}


def test_no_file_is_longer_than_420_lines() -> None:
    """Of the package, the workflow and the tests."""
    files = [path for folder in ("prefmoe", "workflow", "tests") for path in (ROOT / folder).rglob("*")]
    ours = [path for path in files if path.suffix in (".py", ".smk") and "node_modules" not in path.parts]
    assert len(ours) > 300
    assert not [path for path in ours if path.read_text(encoding="utf-8").count("\n") > 420]


def test_the_linter_reads_every_module() -> None:
    """It leaves out folders without __init__.py, whose modules Python imports all the same
    (findings/import_linter_folders_without_init.sh)."""
    files = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "prefmoe").rglob("*.py")}
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert grimp.build_graph("prefmoe", cache_dir=None).modules == modules


def test_no_module_imports_itself_by_way_of_others() -> None:
    """What is imported inside functions and for types alone counts as well."""
    graph = grimp.build_graph("prefmoe", cache_dir=None)
    left = {name: graph.find_modules_directly_imported_by(name) - {name} for name in graph.modules}
    while ends := {name for name, imported in left.items() if not imported & left.keys()}:
        left = {name: imported for name, imported in left.items() if name not in ends}
    assert not left, sorted(left)


def test_the_package_does_not_know_the_scripts() -> None:
    scripts = {path.stem for path in (ROOT / "workflow/scripts").iterdir() if not path.stem.startswith("_")}
    graph = grimp.build_graph("prefmoe", include_external_packages=True, cache_dir=None)
    assert not scripts & graph.modules
