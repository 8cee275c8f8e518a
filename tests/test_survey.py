"""The survey's map: whole, checked when it is read, and every command, notebook and number of it is there."""

import csv
import re

import nbformat
import pytest
import yaml

from prefmoe.analysis import survey
from prefmoe.analysis.answers import TableError
from prefmoe.cli import _parser
from prefmoe.config import CONFIG_FOLDER, FIGURES, ROOT, load_edition


@pytest.fixture(scope="module")
def written() -> dict:
    return yaml.safe_load(survey.MAP.read_text(encoding="utf-8"))


def test_all_sixteen_cells_are_there_and_each_is_filled_or_says_why_not(written):
    found = survey.read_map()
    cells = [(a, m, cell) for a, row in found.cells.items() for m, cell in row.items()]
    assert [(a, m) for a, m, _ in cells] == [(a, m) for a in survey.APPLICATIONS for m in survey.MECHANISMS]
    assert all(bool(cell.here) != bool(cell.empty) for *_, cell in cells)
    assert sum(len(cell.here) for *_, cell in cells) == len(survey.numbers(found))


def test_numbers_are_those_of_the_committed_tables(written):
    """Looked up a second time, with the csv module alone."""
    numbers = iter(survey.numbers(survey.read_map()).itertuples())
    looked_up = 0
    for row in written["cells"].values():
        for entry in (entry for cell in row.values() for entry in cell.get("here", ())):
            number = next(numbers)
            assert number.name == entry["name"]
            if "table" not in entry:
                assert number.value != number.value
                continue
            with (FIGURES / f"{entry['table']}.csv").open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file))
            value, chance = (
                [float(line["value"]) for line in lines if all(line[k] == str(v) for k, v in where.items())]
                if isinstance(where, dict)
                else [where]
                for where in (entry["where"], entry["chance"])
            )
            assert [number.value] == value and [number.chance] == chance
            assert number.low <= number.value <= number.high and number.n > 0
            looked_up += 1
    assert looked_up > 10


def test_every_command_can_be_given_and_every_notebook_opened():
    commands, rules = _parser().parse_args, (ROOT / "README.md").read_text(encoding="utf-8")
    for _, _, entry in survey.entries(survey.read_map()):
        if entry.command.startswith("prefmoe "):
            commands(entry.command.split()[1:])
        else:
            assert entry.command.startswith("snakemake --cores all") and "snakemake --cores all" in rules
            for edition in re.findall(r"edition=([\w-]+)", entry.command):
                assert (CONFIG_FOLDER / f"{edition}.yaml").is_file()
        assert not entry.notebook or len(list((ROOT / "notebooks").glob(f"{entry.notebook}_*.ipynb"))) == 1


def test_every_entry_leads_to_what_came_out():
    """A row of a table, or a heading of a page, which the page of the map links to."""
    shown = (ROOT / "docs/map.md").read_text(encoding="utf-8")
    for _, _, entry in survey.entries(survey.read_map()):
        assert bool(entry.table) != bool(entry.page), entry.name
        if entry.page:
            file, _, place = entry.page.partition("#")
            heads = re.findall(r"^#+ (.+)$", (ROOT / "docs" / file).read_text(encoding="utf-8"), re.M)
            assert place in [head.lower().replace(" ", "-") for head in heads] and f"]({entry.page})" in shown


def test_every_rival_has_a_place_with_its_own_row():
    """The edition rivals is the default one's methods, which stand on the map by other tables, and the rivals."""
    rivals, usual = load_edition("rivals"), load_edition("mini")
    kinds = {method.label: method.kind for key, method in rivals.methods.items() if key not in usual.methods}
    placed = [entry for *_, entry in survey.entries(survey.read_map()) if entry.table == "rivals/table1"]
    shown = [kinds[entry.where["method"]] for entry in placed]  # of two forms of one kind, one
    assert sorted(shown) == sorted(set(kinds.values())) and len(shown) == 6
    assert {entry.notebook for entry in placed} == {"28"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cells: cells.pop("retrieval"), "applications: expected text generation, .*retrieval"),
        (lambda cells: cells["retrieval"].pop("alignment"), "retrieval: expected instruction, alignment"),
        (lambda cells: cells["retrieval"]["alignment"].pop("here"), "`here`, or `empty` with a reason"),
        (lambda cells: cells["retrieval"]["alignment"]["here"][0].pop("measure"), "together or not at all"),
        (lambda cells: cells["recommendation"]["generation"]["empty"].update(arxiv="soon"), "arxiv"),
    ],
)
def test_a_map_with_a_hole_is_refused_and_the_hole_is_named(written, tmp_path, change, said):
    content = yaml.safe_load(yaml.safe_dump(written, allow_unicode=True))
    change(content["cells"])
    path = tmp_path / "map.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    with pytest.raises(TableError, match=said):
        survey.read_map(path)


def test_a_number_that_no_table_has_is_named(written, tmp_path):
    content = yaml.safe_load(yaml.safe_dump(written, allow_unicode=True))
    for where, said in (({"method": "Nobody's"}, "0 rows with"), ({"metod": "LoRA"}, "no column 'metod'")):
        content["cells"]["retrieval"]["alignment"]["here"][0]["where"] = where
        found = survey.SurveyMap.model_validate(content)
        with pytest.raises(TableError, match=said):
            survey.numbers(found)
    with pytest.raises(TableError, match="needs this table"):
        survey.numbers(survey.read_map(), tmp_path)


def test_the_workflow_draws_the_map_again_when_a_table_that_it_reads_changes():
    read = {f"figures/{entry.table}.csv" for *_, entry in survey.entries(survey.read_map()) if entry.table}
    rows = yaml.safe_load((ROOT / "workflow/notebooks.yaml").read_text(encoding="utf-8"))
    (told,) = [one["files"] for name, one in rows.items() if name.startswith("30_")]
    assert set(told) == read | {"published/survey_map.yaml"}


def test_the_committed_notebook_shows_the_numbers_of_the_committed_tables():
    """Its table and its picture were once of tables that had been made anew, beside sentences that had not."""
    (path,) = (ROOT / "notebooks").glob("30_*.ipynb")
    *_, last = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    (shown,) = [output["data"]["text/html"] for output in last.outputs if "text/html" in output.get("data", {})]
    lines = shown.partition("<tbody>")[2].split("<tr>")[1:]
    numbers = survey.numbers(survey.read_map()).round(3)
    assert len(lines) == len(numbers)
    for line, row in zip(lines, numbers.itertuples(), strict=True):
        cells = re.findall(r"<td>(.*?)</td>", line)
        wanted = [] if row.measure != row.measure else [row.value, row.low, row.high, row.n]
        assert [float(cell) for cell in cells[4:8] if cell] == pytest.approx([one for one in wanted if one == one])
