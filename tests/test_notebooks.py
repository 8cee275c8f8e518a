"""The notebook runner: finished means finished, parameters are known, outputs belong to their cells."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from publish import publish_notebooks, with_outputs

from prefmoe.cli import main
from prefmoe.system.provenance import notebook_digest
from prefmoe.workflow import notebooks
from prefmoe.workflow.kernel import die_with
from prefmoe.workflow.notebooks import NotebookError, check_outputs, execute, parse_parameters

REPOSITORY = Path(__file__).resolve().parent.parent
COMMITTED = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SHOWN = [*COMMITTED, *sorted((REPOSITORY / "course/solutions").glob("*.ipynb"))]
BARE = re.compile(r"(Posix|Windows)Path\(|<[\w.]+[^<>]* at 0x|<Axes|<Figure|<(module|function|class) ")
"""What a reader learns nothing from: where a file was written on somebody's machine, or the name of an object."""

LONGEST_CELL = 40
"""Lines of code that a student reads at once."""

MOST_SAID = 1200
"""Characters of an alternative text: about a minute and a half of a screen reader's time."""


def _notebook(path: Path, *sources: str, parameters: str = "") -> Path:
    """A small notebook: prose, a parameters cell when one is given, then one code cell per source."""
    cells = [nbformat.v4.new_markdown_cell("# A small notebook", id="title")]
    if parameters:
        tagged = {"tags": ["parameters"]}
        cells.append(nbformat.v4.new_code_cell(parameters, id="parameters", metadata=tagged))
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def _edit(path: Path, change) -> None:
    content = nbformat.read(path, as_version=4)
    change(content)
    nbformat.write(content, path)


def _printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """A source notebook and the result of running it with other parameters than its own, the data's folder relative."""
    folder = tmp_path_factory.mktemp("executed")
    source = _notebook(
        folder / "source.ipynb",
        "import os, sys, warnings",
        "print(word * times, sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'], end=' ')\n"
        "print(os.path.relpath(os.environ['PREFMOE_FIGURES']), os.environ['PREFMOE_DATA'])",
        "warnings.warn('seen in ' + 'the log only')\ntimes + 1",
        parameters="word = 'a'\ntimes: int = 2",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFMOE_DATA", "some/data")
        yield source, execute(source, folder / "out" / "result.ipynb", {"word": "b"}, threads=1)


def test_runs_in_this_interpreter_with_the_given_parameters(executed):
    source, result = executed
    assert _printed(result).split() == [
        "bb",
        str(notebooks._shorten(sys.executable, {str(Path.home()): "~", str(REPOSITORY): "."})),
        str(source.parent),
        "1",
        "out/result_figures",
        "./some/data",
    ]


def test_nothing_that_differs_between_two_equal_runs_is_stored(executed):
    source, result = executed
    first = result.read_bytes()
    assert execute(source, result, {"word": "b"}, threads=1).read_bytes() == first
    text = result.read_text()
    assert "seen in the log only" not in text and "papermill" not in text and "start_time" not in text


def test_what_a_cell_prints_is_one_output_however_many_pieces_arrived(tmp_path):
    code = "import time\nfor piece in 'abc':\n    print(piece, flush=True)\n    time.sleep(0.4)\n'd'"
    source = _notebook(tmp_path / "source.ipynb", code)
    (cell,) = notebooks.code_cells(notebooks.read(execute(source, tmp_path / "out.ipynb")))
    printed, value = cell.outputs
    assert printed.text == "a\nb\nc\n" and value.data["text/plain"] == "'d'"
    pieces = [nbformat.v4.new_output("stream", name="stdout", text=piece) for piece in "ab"]
    _edit(tmp_path / "out.ipynb", lambda content: content.cells[1].update(outputs=[*pieces, value]))
    _edit(tmp_path / "out.ipynb", lambda content: notebooks.record(content, {}))
    notebooks.write(with_outputs(tmp_path / "out.ipynb", source), source)
    check_outputs(source, executed=True)
    assert _printed(source) == "ab"


def test_only_the_result_is_left_beside_a_finished_notebook(executed):
    _, result = executed
    assert not list(result.parent.glob("*.running.ipynb")) and not list(result.parent.glob("*.failed.ipynb"))


def test_an_unknown_parameter_is_an_error_before_anything_runs(tmp_path):
    source = _notebook(tmp_path / "source.ipynb", "1", parameters="edition = 'mini'")
    with pytest.raises(NotebookError, match="unknown parameter 'editon'; it has edition"):
        execute(source, tmp_path / "out.ipynb", {"editon": "smoke"})
    with pytest.raises(NotebookError, match="no cell tagged 'parameters'"):
        execute(_notebook(tmp_path / "bare.ipynb", "1"), tmp_path / "out.ipynb", {"edition": "smoke"})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_missing_or_damaged_notebook_is_named(tmp_path):
    with pytest.raises(NotebookError, match="absent.ipynb does not exist"):
        execute(tmp_path / "absent.ipynb", tmp_path / "out.ipynb")
    (tmp_path / "damaged.ipynb").write_text("{")
    with pytest.raises(NotebookError, match="damaged.ipynb: not a notebook"):
        execute(tmp_path / "damaged.ipynb", tmp_path / "out.ipynb")


def test_a_failing_cell_is_never_mistaken_for_a_result(tmp_path):
    source = _notebook(tmp_path / "source.ipynb", "print('before')", "raise ValueError('no such user')")
    output = tmp_path / "out.ipynb"
    expected = r"source.ipynb: code cell 2 failed with ValueError: no such user.*out.failed"
    with pytest.raises(NotebookError, match=expected):
        execute(source, output)
    assert not output.exists() and not (tmp_path / "out.running.ipynb").exists()
    assert "before" in _printed(tmp_path / "out.failed.ipynb")
    _edit(source, lambda content: content.cells.pop())
    execute(source, output)
    assert output.exists() and not (tmp_path / "out.failed.ipynb").exists()


def test_a_dead_kernel_is_an_error(tmp_path):
    source = _notebook(tmp_path / "source.ipynb", "import os; os._exit(3)")
    with pytest.raises(NotebookError, match="died"):
        execute(source, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(("name", "transport"), [("k", "ipc"), ("long" * 20, "tcp")])
def test_kernels_that_start_together_take_no_port_from_each_other(tmp_path_factory, monkeypatch, name, transport):
    folder = tmp_path_factory.mktemp(name)
    source = _notebook(folder / "source.ipynb", "from ipykernel import get_connection_info\nget_connection_info()")
    (folder / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "t"))
    execute(source, folder / "out.ipynb")
    (output,) = nbformat.read(folder / "out.ipynb", as_version=4).cells[1].outputs
    assert f'"transport": "{transport}"' in output["data"]["text/plain"]
    assert not any((folder / "t").iterdir())


@pytest.mark.parametrize("leave", ["sys.exit(0)", "sys.exit()"])
def test_a_cell_that_leaves_the_notebook_has_not_finished_it(tmp_path, leave):
    source = _notebook(tmp_path / "source.ipynb", "import sys", "print('before')", leave, "", "print('after')")
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match=r"cell 4 left the notebook \(SystemExit\); cell 6 never ran; .*out.failed"):
        execute(source, output)
    assert not output.exists() and "before" in _printed(tmp_path / "out.failed.ipynb")


def test_an_output_of_a_runner_that_took_it_for_finished_is_refused(executed, tmp_path):
    copy, source = tmp_path / "copy.ipynb", tmp_path / "source.ipynb"
    copy.write_bytes(executed[1].read_bytes())
    source.write_bytes(executed[0].read_bytes())

    def never_ran(content):
        content.cells[-1].execution_count = None
        content.cells[-1].outputs = []
        notebooks.record(content, content.metadata["prefmoe"]["parameters"])

    _edit(copy, never_ran)
    with pytest.raises(NotebookError, match="cell 6 never ran"):
        check_outputs(copy)
    with pytest.raises(NotebookError, match="cell 6 never ran"):
        notebooks.write(with_outputs(copy, source), source)
    assert main(["check", str(copy)]) == 1
    assert source.read_bytes() == executed[0].read_bytes()


def test_check_asks_for_a_run_only_when_told_to(executed):
    assert main(["check", str(executed[0])]) == 0
    assert main(["check", "--executed", str(executed[0])]) == 1
    assert main(["check", "--executed", str(executed[1])]) == 0


@pytest.mark.parametrize("spelling", ["itself", "dots", "link", "hard link", "its running name", "its failed name"])
def test_a_notebook_never_takes_the_place_of_its_source(tmp_path, spelling):
    source = _notebook(tmp_path / "source.ipynb", "1")
    (tmp_path / "below").mkdir()
    output = {
        "itself": source,
        "dots": tmp_path / "below" / ".." / "source.ipynb",
        "link": tmp_path / "link.ipynb",
        "hard link": tmp_path / "hard.ipynb",
        "its running name": tmp_path / "result.ipynb",
        "its failed name": tmp_path / "result.ipynb",
    }[spelling]
    if spelling == "link":
        output.symlink_to(source)
    elif spelling == "hard link":
        output.hardlink_to(source)
    elif spelling.startswith("its "):
        source = source.rename(tmp_path / f"result.{spelling.split()[1]}.ipynb")
    before = source.read_bytes()
    with pytest.raises(NotebookError, match="would take the place of its source"):
        execute(source, output)
    assert source.read_bytes() == before


def test_a_folder_is_no_output_and_no_cell_runs_for_it(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(NotebookError, match="results: a folder, expected the file to write"):
        execute(_notebook(tmp_path / "source.ipynb", "1"), tmp_path / "results")
    assert not list(tmp_path.glob("results*.ipynb"))


def test_below_a_file_there_is_no_place_for_an_output_and_no_cell_runs_for_it(tmp_path, capsys):
    source = _notebook(tmp_path / "source.ipynb", "1")
    assert main(["notebook", str(source), str(source / "folder/result.ipynb")]) == 1
    assert f"result.ipynb: cannot be made: {source} is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_a_kernel_has_a_thread(tmp_path):
    with pytest.raises(NotebookError, match="threads: expected a number from 1, found 0"):
        execute(_notebook(tmp_path / "source.ipynb", "1"), tmp_path / "result.ipynb", threads=0)


WAITING = "time.sleep(60)"
HOLDING = "sum(range(10**13))"
"""Computes for hours without letting another thread of the kernel look whether its parent is there."""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, HOLDING), (signal.SIGKILL, HOLDING if sys.platform == "linux" else WAITING)],
)
def test_a_killed_runner_leaves_no_result_and_takes_its_kernel_along(tmp_path, number, code):
    code = f"import os, pathlib, time\npathlib.Path('kernel').write_text(str(os.getpid()))\n{code}"
    source, output = _notebook(tmp_path / "source.ipynb", code), tmp_path / "out.ipynb"
    call = f"from prefmoe.workflow.notebooks import execute; execute({str(source)!r}, {str(output)!r})"
    runner = subprocess.Popen([sys.executable, "-c", call], cwd=REPOSITORY)
    kernel = tmp_path / "kernel"
    _wait_for(lambda: kernel.exists() and kernel.read_text())
    runner.send_signal(number)
    assert runner.wait(timeout=60) != 0
    assert not output.exists()
    try:
        _wait_for(lambda: not _alive(int(kernel.read_text())), seconds=20)
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(kernel.read_text()), signal.SIGKILL)
    _edit(source, lambda content: content.cells[1].update(source="print('finished')"))
    assert _printed(execute(source, output)) == "finished\n"
    assert sorted(p.suffixes for p in tmp_path.glob("out*.ipynb")) == [[".ipynb"]]


def _wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_outputs_of_a_run_are_accepted(executed):
    check_outputs(executed[1], executed=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.cells[-2].update(source="1"), "cell 5, or a cell above it, was changed.*\n.*cell 6, or"),
        (lambda c: c.cells[-1].outputs[0].data.update({"text/plain": "4"}), "cell 6 carries outputs that"),
        (lambda c: c.cells[-2].outputs.clear(), "cell 5 carries outputs that its run did not produce"),
        (lambda c: c.cells.append(nbformat.v4.new_code_cell("1")), "cell 7 was added after the run"),
        (lambda c: c.metadata.pop("prefmoe"), "cell 5 has outputs that no run recorded"),
    ],
    ids=["edited code", "edited output", "removed output", "new cell", "foreign run"],
)
def test_outputs_of_other_code_are_refused(executed, tmp_path, change, message):
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes(executed[1].read_bytes())
    _edit(copy, change)
    with pytest.raises(NotebookError, match=f"(?s)do not belong.*{message}"):
        check_outputs(copy)


def test_a_notebook_without_outputs_passes_unless_it_should_have_some(executed):
    check_outputs(executed[0])
    with pytest.raises(NotebookError, match="never executed"):
        check_outputs(executed[0], executed=True)


def test_publishing_keeps_the_prose_and_brings_the_outputs(tmp_path):
    source = _notebook(tmp_path / "source.ipynb", "print(word)", parameters="word = 'a'")
    result = execute(source, tmp_path / "out.ipynb", {"word": "a"})
    _edit(source, lambda content: content.cells[0].update(source="# Better prose"))
    notebooks.write(with_outputs(result, source), source)
    check_outputs(source, executed=True)
    content = nbformat.read(source, as_version=4)
    assert [cell.source for cell in content.cells] == ["# Better prose", "word = 'a'", "print(word)"]
    assert _printed(source) == "a\n"
    assert notebook_digest(source) == notebook_digest(result)


def test_publishing_refuses_other_code_and_other_parameters(executed, tmp_path):
    source, result = Path(shutil.copy(executed[0], tmp_path)), executed[1]
    with pytest.raises(NotebookError, match="ran with word='b', the default is 'a'"):
        notebooks.write(with_outputs(result, source), source)
    _edit(source, lambda content: content.cells[-1].update(source="times + 2"))
    with pytest.raises(NotebookError, match="code differs"):
        notebooks.write(with_outputs(result, source), source)


def test_all_notebooks_that_were_executed_are_published(tmp_path):
    (tmp_path / "notebooks").mkdir()
    once, many, never = (tmp_path / "notebooks" / f"{name}.ipynb" for name in ("once", "many", "never"))
    _notebook(once, "print('once')")
    _notebook(many, "print(method)", parameters="backbone = 'b'\nmethod = 'LoRA'")
    _notebook(never, "print('never')")
    other = _notebook(tmp_path / "notebooks" / "other.ipynb", "print('other')", parameters="edition = 'another'")
    before, runs = never.read_bytes(), tmp_path / "executed"
    execute(once, runs / "once.ipynb")
    for method in ("LoRA", "FFT"):
        execute(many, runs / "many" / "b" / f"{method}.ipynb", {"method": method})
    execute(other, runs / "other.ipynb")
    assert publish_notebooks(runs, tmp_path / "notebooks", "this") == [many, once]
    assert (_printed(once), _printed(many)) == ("once\n", "LoRA\n")
    assert never.read_bytes() == before
    assert publish_notebooks(runs, tmp_path / "notebooks", "another") == [many, once, other]


def test_parameters_are_literals_and_what_is_a_text_stays_one():
    known = {"edition": "mini", "user": "", "seed": 0, "lr": 1e-4, "steps": None, "users": []}
    given = ["edition=smoke", "seed=3", "lr=1e-3", "steps=None", "users=['Ann', 'No']", "other=E"]
    expected = {"edition": "smoke", "seed": 3, "lr": 0.001, "steps": None, "users": ["Ann", "No"], "other": "E"}
    assert parse_parameters(given, known) == expected
    for name in ("Nan", "No", "007", "1e3", "None", "a=b", ""):
        assert parse_parameters([f"user={name}"], known) == {"user": name}
    with pytest.raises(NotebookError, match="name=value"):
        parse_parameters(["edition"], known)


def test_a_kernel_whose_parent_is_gone_already_ends(monkeypatch):
    with pytest.raises(SystemExit, match="has ended"):
        subprocess_parent = os.getppid() + 1
        monkeypatch.setattr(
            "prefmoe.workflow.kernel.sys.platform", "other"
        )  # this process is not to be bound to its parent
        die_with(subprocess_parent)


@pytest.mark.parametrize("notebook", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_carry_only_outputs_of_their_own(notebook):
    check_outputs(notebook)


@pytest.mark.parametrize("notebook", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_absolute_path_and_no_kernel_name(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert str(REPOSITORY) not in json.dumps([cell.get("outputs", []) for cell in content["cells"]])


@pytest.mark.parametrize("notebook", SHOWN, ids=lambda path: path.stem)
def test_committed_notebooks_show_readers_no_path_and_no_object(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not [found[0] for text in texts if (found := BARE.search(text))]


@pytest.mark.parametrize("notebook", SHOWN, ids=lambda path: path.stem)
def test_committed_notebooks_show_a_missing_value_as_a_dash(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not [text for text in texts if re.search(r"\b(NaN|nan|NaT)\b", text)]


def test_what_shows_readers_nothing_is_recognised():
    for value in (Path("table.csv"), object(), json, Path.exists, Path):
        assert BARE.search(repr(value)), value
    assert not BARE.search("users  46\ntrain  1600\n5 < 7 at 0.5")


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)
def test_a_picture_is_said_in_words_that_somebody_will_listen_to(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [out.data for cell in cells for out in cell.outputs if "<img" in out.get("data", {}).get("text/html", "")]
    for one in shown:
        assert 20 < len(one["text/plain"]) <= MOST_SAID, one["text/plain"][:200]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)
def test_a_cell_of_code_is_read_at_once(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    long = {cell.id: lines for cell in cells if (lines := cell.source.count("\n") + 1) > LONGEST_CELL}
    assert not long, f"{path.name}: more than {LONGEST_CELL} lines in {long}"
