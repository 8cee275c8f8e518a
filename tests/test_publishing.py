"""Only `publish` changes what is committed, and it changes what it should: figures, notebooks, README's tables."""

import re
import shutil
import warnings
from pathlib import Path

import nbformat
import pandas as pd
import publish
import pytest
import yaml
from pages import PAGES, with_tables

from prefmoe.analysis import tables
from prefmoe.config import DEFAULT_EDITION, FIGURES, ROOT, load_edition, outputs
from prefmoe.config.outputs import OutputError, figures_folder, made_folder, tables_folder
from prefmoe.system.files import FileError
from prefmoe.workflow import notebooks
from prefmoe.workflow.notebooks import NotebookError


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone in which the default edition was made: other numbers than the committed ones, and fewer figures."""
    made, committed = tmp_path / "results/mini/figures", tmp_path / "figures/mini"
    for folder in (made, committed, committed / "protocol", tmp_path / "notebooks", tmp_path / "results/speed"):
        folder.mkdir(parents=True)
    for name in ("table1", "table2"):
        table = tables.read_table(FIGURES / "mini" / f"{name}.csv")
        tables.write_csv(table, committed / f"{name}.csv")
        tables.write_csv(table.assign(value=table["value"] / 2), made / f"{name}.csv")
    (made / "forest.png").write_text("new")
    (made / ".half.png.partial").write_text("not finished")
    for name in ("forest.png", "renamed.png", "protocol/differences.csv", "protocol/anchors.png", "note.md"):
        (committed / name).write_text("old")
    # The map of the survey shows them too.
    shown = ("preference-mini/table1", "generation-mini/table1", "ranking/ranking", "rivals/table1")
    for other in (f"{table}.csv" for table in shown):
        (tmp_path / "figures" / other).parent.mkdir()
        shutil.copy(FIGURES / other, tmp_path / "figures" / other)
    (tmp_path / "docs").mkdir()
    for name in PAGES:
        shutil.copy(ROOT / name, tmp_path / name)
    publish.update_pages(root=tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "edition",
    ["any_vlm", "generation-mini", "ladder", "mini", "preference-mini", "published-mini", "ranking", "rivals", "small",
     "small-sample", "speed"],
)  # fmt: skip
def test_what_pages_show_is_no_file_that_git_ignores(edition):
    shown, other = FIGURES / edition / "table1.csv", FIGURES / "somebody-s-own" / "table1.csv"
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    assert publish.ignored_by_git([shown, other]) == [other]


def test_figures_are_those_that_were_made_and_what_was_not_made_stays(clone):
    pages = {name: (clone / name).read_text(encoding="utf-8") for name in PAGES}
    written = publish.publish("mini", root=clone)
    made, committed = contents(clone / "results/mini/figures"), contents(clone / "figures/mini")
    del made[".half.png.partial"]
    assert set(committed) == {*made, "protocol/differences.csv", "protocol/anchors.png", "note.md"}
    assert {name: committed[name] for name in made} == made and committed["protocol/anchors.png"] == b"old"
    assert {clone / name for name in ("figures/mini/forest.png", *PAGES)} <= set(written)
    for name in PAGES:
        text = (clone / name).read_text(encoding="utf-8")
        assert (text != pages[name]) == ("any_vlm" not in name)  # that page shows no edition's tables
        assert text == with_tables(text, figures=clone / "figures")


def test_protocol_experiments_are_replaced_once_they_were_made(clone):
    (clone / "results/mini/figures/protocol").mkdir()
    (clone / "results/mini/figures/protocol/differences.csv").write_text("experiment\nnew\n")
    publish.publish("mini", root=clone)
    assert contents(clone / "figures/mini/protocol") == {"differences.csv": b"experiment\nnew\n"}


def test_trials_of_settings_and_measurements_of_speed_go_to_their_places(clone):
    trials = outputs.trials_file("mini", clone / "results")
    trials.parent.mkdir()
    tried = (ROOT / "config/tuning/mini.csv").read_bytes()
    trials.write_bytes(tried)
    publish.publish("mini", root=clone)
    assert (clone / "config/tuning/mini.csv").read_bytes() == tried
    assert "| mini | LoRA | name | 4 | 4 | 600 |" in (clone / "docs/results.md").read_text(encoding="utf-8")
    assert not (clone / "figures/speed").exists()
    command = "python workflow/scripts/speed.py"
    with pytest.raises(OutputError, match=f"no measurements in .*results/speed; make them with `{command}`"):
        publish.publish("speed", root=clone)
    measured = (FIGURES / "speed/cpu.csv").read_bytes()
    (clone / "results/speed/cpu.csv").write_bytes(measured)
    (clone / "figures/speed").mkdir()
    (clone / "figures/speed/cuda.csv").write_text("another machine's")
    publish.publish("speed", root=clone)
    assert contents(clone / "figures/speed") == {"cpu.csv": measured, "cuda.csv": b"another machine's"}
    assert "adapted projection" in (clone / "docs/results.md").read_text(encoding="utf-8")


def test_tables_of_any_model_are_one_for_an_edition_and_say_nothing_twice(clone):
    rows = pd.DataFrame(
        [
            {"method": method, "backbone": "m", "split": "test", "turns": turns, "category": category,
             "attribute": "all", "task": "all", "information": f"{method} shown",
             "value": 0.25 + turns / 100, "low": 0.2, "high": 0.6, "n": 8,
             "unread": 3}
            for method, turns in (("Text", 0), ("Text", 10), ("Blind", 0))
            for category in ("all", "recognition", "preference")
        ]
    )  # fmt: skip
    for name, some in (("m-text", rows[rows["method"] == "Text"]), ("m-switches", rows[rows["turns"] == 0])):
        tables.write_csv(some, clone / "results/mini/mmpb" / f"{name}.csv")
    about = {"method": "Blind", "baseline": "Text", "backbone": "m", "split": "test", "turns": 0, "category": "all"}
    for name, method in (("m-switches", "Blind"), ("m-text-blind", "Blind"), ("m-text-pictures", "Pictures")):
        paired = pd.DataFrame([about | {"method": method, "difference": -0.2, "p_users": 0.02, "p_users_holm": 0.02}])
        tables.write_csv(paired, clone / "results/mini/mmpb" / f"{name}-differences.csv")
    written = publish.publish(publish.ANY_VLM, root=clone)
    paired = tables.read_table(clone / "figures/any_vlm/mini-differences.csv")
    assert paired["method"].tolist() == ["Pictures", "Blind"], "each once, in the order of edition mmpb"
    assert paired["p_users_holm"].tolist() == [0.04, 0.04], "corrected over what is published"
    assert clone / "figures/any_vlm/mini.csv" in written and not (clone / "figures/any_vlm/sample.csv").exists()
    whole = tables.read_table(clone / "figures/any_vlm/mini.csv")
    assert len(whole) == len(rows)
    page, cell = (clone / "docs/any_vlm.md").read_text(encoding="utf-8"), "0.350 [0.200, 0.600]"
    assert f"| m | Text | Text shown | 10 | {cell} | {cell} | {cell} | 3 |" in page
    assert "| Blind | Blind shown | 0.250 [0.200, 0.600] | 0.250 [0.200, 0.600] |" in page and "| m | Blind" not in page


def test_nothing_is_changed_where_nothing_was_made_or_a_notebook_is_another(clone):
    source = clone / "notebooks/01_small.ipynb"
    cell = nbformat.v4.new_code_cell("1", execution_count=1, id="one")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source)
    run = notebooks.read(source)
    notebooks.record(run, {})
    (clone / "results/mini/notebooks").mkdir()
    notebooks.write(run, clone / "results/mini/notebooks/01_small.ipynb")
    run.cells[0].source = "2"
    notebooks.write(run, source)
    before = contents(clone)
    with pytest.raises(NotebookError, match="01_small.ipynb: its code differs from"):
        publish.publish("mini", root=clone)
    with pytest.raises(OutputError, match="no .*results/smoke/figures/table1.csv; make it with .*edition=smoke"):
        publish.publish("smoke", root=clone)
    assert contents(clone) == before


def test_another_edition_leaves_notebooks_and_the_front_page_alone(clone):
    shutil.copytree(clone / "results/mini", clone / "results/small")
    before = contents(clone)
    publish.publish("small", root=clone)
    after = contents(clone)
    assert {name for name in after if after[name] != before.get(name)} == {
        "docs/results.md",
        *(f"figures/small/{name}" for name in ("table1.csv", "table2.csv", "forest.png")),
    }


def test_of_real_data_only_tables_that_name_nobody_are_published(clone):
    shutil.copytree(clone / "results/mini", clone / "results/small-sample")
    pd.DataFrame({"user": ["A Person"], "x": [1.0]}).to_csv(clone / "results/small-sample/figures/user_space.csv")
    publish.publish("small-sample", root=clone)
    assert load_edition("small-sample").data.kind == "mmpb"
    assert set(contents(clone / "figures/small-sample")) == {"table1.csv", "table2.csv"}


@pytest.mark.parametrize(
    ("output", "values", "expected"),
    [
        ("results/mini/notebooks/07.ipynb", {}, "results/mini/figures"),
        ("results/smoke/notebooks/07.ipynb", {"edition": "smoke"}, "results/smoke/figures"),
        ("results/mini/notebooks/07.ipynb", {"turns": 10}, "results/mini/notebooks/07_figures"),
        ("results/mini/notebooks/07.ipynb", {"edition": "smoke"}, "results/mini/notebooks/07_figures"),
        ("results/mini/notebooks/mine.ipynb", {}, "results/mini/notebooks/mine_figures"),
        ("elsewhere/07.ipynb", {}, "elsewhere/07_figures"),
    ],
)
def test_only_the_workflows_execution_saves_in_the_editions_folder(monkeypatch, tmp_path, output, values, expected):
    monkeypatch.setattr(notebooks, "RESULTS", tmp_path / "results")
    usual = {"edition": "mini", "turns": 0}
    folder = notebooks._figures(Path("notebooks/07.ipynb"), tmp_path / output, usual | values, usual)
    assert folder == tmp_path / expected


def test_a_notebook_by_hand_saves_in_a_folder_of_its_own(monkeypatch):
    monkeypatch.delenv(outputs.NOTEBOOK_FIGURES, raising=False)
    by_hand = figures_folder("mini")
    assert by_hand not in (made_folder("mini"), FIGURES / "mini") and FIGURES not in by_hand.parents
    monkeypatch.setenv(outputs.NOTEBOOK_FIGURES, "somewhere")
    assert figures_folder("mini") == Path("somewhere")


def test_tables_are_this_machines_or_all_committed_ones(monkeypatch, clone):
    monkeypatch.setattr(outputs, "RESULTS", clone / "results")
    monkeypatch.setattr(outputs, "FIGURES", clone / "figures")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tables_folder("mini") == clone / "results/mini/figures"
    with pytest.warns(UserWarning, match="this machine has not made them. Reading .*figures/mini/protocol"):
        assert tables_folder("mini", "protocol") == clone / "figures/mini/protocol"
    with pytest.raises(OutputError, match="make them with `snakemake --cores all protocol --config edition=smoke`"):
        tables_folder("smoke", "protocol")
    (clone / "results/mini/figures/table1.csv").unlink()
    with pytest.warns(UserWarning):
        assert tables_folder("mini") == clone / "figures/mini", "never a mixture of both"


def test_tables_that_an_earlier_version_made_are_named_with_what_they_lack(monkeypatch, tmp_path):
    monkeypatch.setattr(outputs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(outputs, "FIGURES", tmp_path / "figures")
    made, committed = tmp_path / "results/mini/figures", tmp_path / "figures/mini"
    for folder, header in ((made, "method,value,new"), (committed, "method,turns,value")):
        folder.mkdir(parents=True)
        (folder / "table1.csv").write_text("method,value\n")
        (folder / "comparisons.csv").write_text(f"{header}\n")
    said = "results/mini/figures/comparisons.csv: no column turns, which .*/comparisons.csv has; .*make it again with"
    with pytest.raises(OutputError, match=said):
        tables_folder("mini")
    (made / "comparisons.csv").write_text('"method","value","turns","new"\n')
    assert tables_folder("mini") == made


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_notebook_knows_where_figures_are_committed(notebook):
    code = "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    assert not {"FIGURES", "committed_folder", "made_folder", "ROOT"} & set(code.replace("(", " ").split())
    saved = re.findall(r'/ f?"[\w{}]+\.(?:png|csv)"\)', code)
    assert ("figures_folder(edition)" in code) == bool(saved)


def test_the_default_edition_is_the_notebooks_but_of_those_about_choices_or_pictures():
    rows = yaml.safe_load((ROOT / "workflow/notebooks.yaml").read_text(encoding="utf-8"))
    about = {kind: {name for name, row in rows.items() if row.get("about") == kind} for kind in ("choices", "pictures")}
    about_choices = about["choices"] | {"18_train_and_choose"}
    about_pictures = about["pictures"] | {"25_train_and_draw"}
    assert (len(about_choices), len(about_pictures)) == (6, 6)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        expected = "preference-mini" if path.stem in about_choices else DEFAULT_EDITION
        expected = "generation-mini" if path.stem in about_pictures else expected
        expected = "rivals" if "kinds" in rows.get(path.stem, {}) else expected
        expected = rows.get(path.stem, {}).get("edition", expected)
        assert notebooks.defaults(notebooks.read(path))["edition"] == expected


def test_the_command_names_what_it_wrote_and_refuses_what_nobody_knows(monkeypatch, capsys):
    monkeypatch.setattr(publish, "update_pages", lambda: [Path("README.md")])
    monkeypatch.setattr(publish, "with_conclusions", lambda: [Path("one.ipynb")])
    monkeypatch.setattr(publish, "update_slides", lambda: [Path("slides.md")])
    assert publish.main(["pages"]) == 0 and capsys.readouterr().out == "README.md\none.ipynb\nslides.md\n"
    assert publish.main(["mimi"]) == 1
    assert "edition 'mimi' is unknown" in capsys.readouterr().err


ELSEWHERE = {
    "preference-mini/references.csv": "preference-mini/table1.csv",
    "generation-mini/alignment.csv": "generation-mini/table1.csv",
    "mini/protocol/trends.csv": "mini/protocol/more_training.csv",
}
"""Tables that notebooks write, or show whole, without the column -> a table of the same rows that has it."""

PRINTED = {"mini/published_intervals.csv"}
"""Tables of the paper's rows: what these were shown stands in docs/departures.md and docs/baselines.md."""

ROW = {"method": "", "condition": "", "components": "", "baseline": "baseline_"}
"""Columns that name a row -> what comes before the name of the column that says what it is shown."""


def test_every_committed_table_of_methods_says_what_its_rows_are_shown_of_users():
    found, others = set(), {*ELSEWHERE, *PRINTED}
    for path in sorted(FIGURES.rglob("*.csv")):
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
        named, name = [key for key in ROW if key in table], path.relative_to(FIGURES).as_posix()
        told = {key: "at_test" if path.stem == "information" else f"{ROW[key]}information" for key in named}
        if name in others:
            others.remove(name)
            assert not {*told.values()} & {*table}, f"{name} says it: take it out of this list"
            continue
        for key in named:
            assert table[told[key]].notna().all(), (name, key)
            found.add(path.stem)
    assert found >= {"table1", "table2", "comparisons", "controls", "differences", "ranking", "practice", "full_size"}
    assert not others, "no such table"
    for name, neighbour in ELSEWHERE.items():
        table, beside = (pd.read_csv(FIGURES / one) for one in (name, neighbour))
        rows = beside["condition" if "condition" in beside else "method"][beside["information"].notna()]
        assert {*table["method"]} <= {*rows}, (name, neighbour)


@pytest.mark.parametrize("edition", ["ladder", "small-sample"])
def test_what_tables_say_that_rows_are_shown_is_what_the_edition_shows_them(edition):
    settings = load_edition(edition)
    methods = {one.label: one.information for one in settings.methods.values()}
    parts = {getattr(settings.methods[key], "components", key): settings.methods[key].information
             for key in settings.table2}  # fmt: skip
    for path in sorted((FIGURES / edition).glob("*.csv")):
        table = pd.read_csv(path, keep_default_na=False)
        for key in (key for key in ROW if key in table and path.stem != "information"):
            for row in table.drop_duplicates(key).to_dict("records"):
                known = (parts if key == "components" else methods).get(row[key])
                assert known in (None, row[f"{ROW[key]}information"]), (path, row)


def test_tables_of_fewer_seeds_or_methods_than_the_edition_has_are_not_published(clone):
    """The first seed alone, and not of every method, is what the default command makes."""
    made = clone / "results/mini/figures/table1_seeds.csv"
    table = tables.read_table(FIGURES / "mini/table1_seeds.csv")
    tables.write_csv(table.assign(seeds=1), made)
    before = contents(clone)
    with pytest.raises(OutputError, match=r"table1_seeds.csv: .* has 1 of 3 seeds; published are all .*seeds=all"):
        publish.publish("mini", root=clone)
    assert contents(clone) == before
    tables.write_csv(table[table["method"] != "Full fine-tuning"], made)
    before = contents(clone)
    with pytest.raises(OutputError, match=r"table1_seeds.csv: no row of Full fine-tuning; published are all"):
        publish.publish("mini", root=clone)
    assert contents(clone) == before
    settings = load_edition("mini", seeds="all")
    shown = pd.DataFrame({"method": [settings.methods[key].label for key in settings.later]})
    tables.write_csv(shown, made.with_name("information.csv"))
    assert not publish._too_few_seeds(settings, made), "one seed of choices has no row in the table of seeds"


def test_a_file_in_the_place_of_the_committed_tables_is_named(clone):
    shutil.rmtree(clone / "figures/mini")
    (clone / "figures/mini").write_text("")
    with pytest.raises(FileError, match=r"figures/mini/table1.csv: cannot be made: .*figures/mini is no folder"):
        publish.publish("mini", root=clone)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="seeds"), "no column seeds; make the table again with `prefmoe tables`"),
        (lambda table: table.drop(columns="method"), "no column method; make"),
        (lambda table: table.head(0), "no rows; make"),
        (lambda table: table.assign(method="Old"), "edition 'mini' has no method with the label 'Old'; make"),
    ],
)
def test_a_table_of_seeds_that_an_older_version_left_is_not_published(clone, change, said):
    made, committed = clone / "results/mini/figures/table1_seeds.csv", clone / "figures/mini/table1.csv"
    tables.write_csv(change(tables.read_table(FIGURES / "mini/table1_seeds.csv")), made)
    before = committed.read_bytes()
    with pytest.raises(OutputError, match=f"table1_seeds.csv: {said}"):
        publish.publish("mini", root=clone)
    assert committed.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="value"), "value"),
        (lambda table: table.drop(columns="turns"), "turns"),
        (lambda table: table.head(0), "table"),
    ],
)
def test_tables_that_pages_cannot_show_are_refused_before_any_file_is_changed(clone, change, said):
    made = clone / "results/mini/figures/table1.csv"
    tables.write_csv(change(tables.read_table(made)), made)
    before = contents(clone)
    with pytest.raises(OutputError, match=f"results/mini/figures: the pages' tables cannot be made of these: .*{said}"):
        publish.publish("mini", root=clone)
    assert contents(clone) == before
