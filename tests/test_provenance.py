"""Digests of code: what changes them, what does not, and what they follow."""

import re

import nbformat
import pytest

from prefmoe.system import provenance
from prefmoe.system.provenance import Memory, NotebookCodeError, UnknownModuleError, code_digest, notebook_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules in place of this one: first imports second, third stands alone."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "first.py").write_text("from prefmoe.deep import second\n\ndef f():\n    return second.g()\n")
    (tmp_path / "deep" / "__init__.py").write_text("")
    (tmp_path / "deep" / "second.py").write_text("def g():\n    return 1\n")
    (tmp_path / "third.py").write_text("h = 3\n")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    _forget()
    yield tmp_path
    _forget()


def _forget():
    """A process takes the package as it finds it: what it knows of the one before has to go."""
    code_digest.cache_clear()
    provenance.module_file.cache_clear()


def _digest(*modules, without=()):
    _forget()
    return code_digest(modules, without)


def test_a_digest_follows_imports(package):
    before = _digest("prefmoe.first")
    (package / "deep" / "second.py").write_text("def g():\n    return 2\n")
    assert _digest("prefmoe.first") != before


def test_a_digest_ignores_other_modules_comments_and_docstrings(package):
    before = _digest("prefmoe.first")
    (package / "third.py").write_text("h = 4\n")
    code = "from prefmoe.deep import second  # why\n\n\ndef f():\n    'Returns.'\n    return second.g()\n"
    (package / "first.py").write_text(f"'A module.'\n{code}")
    assert _digest("prefmoe.first") == before


def test_a_module_that_was_renamed_is_refused_wherever_it_is_still_named(package, tmp_path):
    for modules, without in ((("prefmoe.absent",), ()), (("prefmoe.first",), ("prefmoe.absent",))):
        with pytest.raises(UnknownModuleError, match=r"no module prefmoe\.absent"):
            _digest(*modules, without=without)
    (package / "deep" / "second.py").rename(package / "deep" / "renamed.py")
    with pytest.raises(UnknownModuleError, match=r"first\.py: imports prefmoe\.deep\.second\.g, .*no module"):
        (package / "first.py").write_text("from prefmoe.deep.second import g\n")
        _digest("prefmoe.first")
    notebook = _notebook(tmp_path / "a.ipynb", nbformat.v4.new_code_cell("from prefmoe import fourth"))
    with pytest.raises(UnknownModuleError, match=r"a\.ipynb: imports prefmoe\.fourth"):
        notebook_digest(notebook)


def test_names_of_the_package_itself_are_no_modules(package):
    (package / "__init__.py").write_text("from os import sep\n__version__ = '1'\n\ndef ask():\n    return sep\n")
    (package / "first.py").write_text("from prefmoe import __version__, ask, sep\nimport prefmoe\n")
    assert _digest("prefmoe.first")


def test_every_module_that_code_or_rules_name_exists():
    """Names in strings, which no import would miss."""
    files = [*provenance.PACKAGE.rglob("*.py"), *provenance.PACKAGE.parent.glob("workflow/**/*.smk")]
    named = {name for f in files for name in re.findall(r'"(prefmoe(?:\.\w+)+)"', f.read_text(encoding="utf-8"))}
    assert len(named) >= 8
    assert [name for name in sorted(named) if provenance.module_file(name) is None] == []


def test_a_module_can_be_left_out(package):
    before = _digest("prefmoe.first", without=("prefmoe.deep.second",))
    (package / "deep" / "second.py").write_text("def g():\n    return 2\n")
    assert _digest("prefmoe.first", without=("prefmoe.deep.second",)) == before


def test_relative_imports_are_followed(package):
    (package / "first.py").write_text("from .deep.second import g\n")
    before = _digest("prefmoe.first")
    (package / "deep" / "second.py").write_text("def g():\n    return 2\n")
    assert _digest("prefmoe.first") != before


def _notebook(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def test_a_notebook_digest_sees_code_and_nothing_else(tmp_path):
    title, code = nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("1 + 1")
    injected = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["injected-parameters"]})
    before = notebook_digest(_notebook(tmp_path / "a.ipynb", title, code))
    title.source, code.execution_count = "# Another title", 7
    code.outputs = [nbformat.v4.new_output("stream", text="2")]
    assert notebook_digest(_notebook(tmp_path / "b.ipynb", title, injected, code)) == before
    code.source = "1 + 2"
    assert notebook_digest(_notebook(tmp_path / "c.ipynb", title, code)) != before


def test_a_notebook_digest_follows_imports(tmp_path, package):
    code = nbformat.v4.new_code_cell("%matplotlib inline\nfrom prefmoe import third")
    notebook = _notebook(tmp_path / "a.ipynb", code)
    before = notebook_digest(notebook)
    (package / "first.py").write_text("0\n")
    assert notebook_digest(notebook) == before
    (package / "third.py").write_text("h = 4\n")
    code_digest.cache_clear()
    assert notebook_digest(notebook) != before


def test_a_memory_gives_what_reading_the_code_gives_and_reads_it_once(package, tmp_path, monkeypatch):
    def remembered(*modules):
        monkeypatch.setattr(provenance, "MEMORY", Memory())
        provenance.MEMORY.read(tmp_path / "memory.json")
        read.clear()
        return _digest(*modules)

    read, module = [], provenance._module
    first, third = _digest("prefmoe.first"), _digest("prefmoe.third")
    monkeypatch.setattr(provenance, "_module", lambda text, package: read.append(text) or module(text, package))
    assert remembered("prefmoe.first") == first and len(set(read)) == 3  # with the folder's own file
    assert remembered("prefmoe.first") == first and not read
    assert remembered("prefmoe.third") == third and set(read) == {"h = 3\n"}
    (package / "deep" / "second.py").write_text("from prefmoe import third\n\n\ndef g():\n    return third.h\n")
    changed = _digest("prefmoe.first")
    assert remembered("prefmoe.first") == changed not in (first, third)
    other = (tmp_path / "memory.json").read_text().replace('"made by": "', '"made by": "other')
    for damaged in ("{", "[]", "[" * 10**5, other):
        (tmp_path / "memory.json").write_text(damaged)
        assert remembered("prefmoe.first") == changed and read


def test_a_memory_that_cannot_be_written_is_no_loss(package, tmp_path, monkeypatch):
    expected = _digest("prefmoe.first")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(provenance, "MEMORY", Memory())
    provenance.MEMORY.read(tmp_path / "file" / "memory.json")
    assert _digest("prefmoe.first") == expected


def test_a_notebook_whose_code_cannot_be_read_is_named(tmp_path):
    with pytest.raises(NotebookCodeError, match="absent.ipynb does not exist"):
        notebook_digest(tmp_path / "absent.ipynb")
    for content in ("[]", '{"cells": [{"cell_type": "code", "source": "", "metadata": []}]}', "[" * 10**5):
        (tmp_path / "other.ipynb").write_text(content)
        with pytest.raises(NotebookCodeError, match="other.ipynb: not a notebook"):
            notebook_digest(tmp_path / "other.ipynb")
    with pytest.raises(NotebookCodeError, match="broken.ipynb: cell 1 is not valid Python"):
        notebook_digest(_notebook(tmp_path / "broken.ipynb", nbformat.v4.new_code_cell("def")))


def test_what_a_run_depends_on_is_found_and_figures_are_not_among_it(monkeypatch):
    seen = []
    original = provenance.module_file
    monkeypatch.setattr(provenance, "module_file", lambda name: seen.append(name) or original(name))
    code_digest.cache_clear()
    code_digest(methods=("prefmoe.models.prefmoe",))
    used = {name for name in seen if original(name)}
    assert {"prefmoe.losses", "prefmoe.data.prompts", "prefmoe.models.moe_lora", "prefmoe.running.training"} <= used
    assert {"prefmoe.backbones.loading", "prefmoe.backbones.conversations", "prefmoe.backbones.batches"} <= used
    assert not used & {
        "prefmoe.figures.forms",
        "prefmoe.analysis.tables",
        "prefmoe.workflow.notebooks",
        "prefmoe.running.runs",
    }
