"""README.md says nothing that does not hold: tables are those of the CSV files, commands and paths exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import PAGES, TABLES, with_tables

from prefmoe.cli import _parser
from prefmoe.config import CONFIG_FOLDER, DEFAULT_EDITION, load_edition

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RULES = "\n".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "workflow/rules").glob("*.smk"))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_are_those_of_the_csv_files(name):
    page = (REPOSITORY / name).read_text(encoding="utf-8")
    assert with_tables(page) == page, "run `python workflow/scripts/publish.py pages`"


def test_the_front_page_is_short_and_has_one_kind_of_table_and_the_other_pages_have_all_others():
    assert len(README.splitlines()) < 200
    assert re.findall("<!-- table: (.*) -->", README) == ["headline"]
    others = [(REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES[1:]]
    assert sorted(["headline", *re.findall("<!-- table: (.*) -->", "\n".join(others))]) == sorted(TABLES)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("prefmoe ")])
def test_every_prefmoe_command_is_understood(command):
    options = _parser().parse_args(shlex.split(command)[1:])
    if hasattr(options, "notebook"):
        assert (REPOSITORY / options.notebook).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "snakemake " in c])
def test_every_snakemake_command_names_a_known_edition_target_and_profile(command):
    words = shlex.split(command.partition("snakemake ")[2])
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--profile":
            assert (REPOSITORY / following / "config.yaml").is_file()
        if word == "--config":
            settings = dict(setting.split("=") for setting in words[words.index(word) + 1 :] if "=" in setting)
            assert settings.keys() <= {"edition", "seeds"} and following.partition("=")[0] in settings
            assert load_edition(settings.get("edition", DEFAULT_EDITION), seeds=settings.get("seeds"))
            assert not [later for later in words[words.index(word) + 1 :] if "=" not in later], "taken for a setting"
    targets = [w for w in words if re.fullmatch("[a-z]+", w) and w != "all"]
    assert all(f"rule {target}:" in RULES for target in targets)


def test_every_path_exists():
    paths = re.findall(r"`((?:figures|notebooks|config|profiles)/[\w./-]*|[\w-]+\.(?:yml|cff|lock)|LICENSE)`", README)
    paths += re.findall(r"\]\(([^)]+)\)", README)
    assert paths
    assert not [p for p in paths if not (REPOSITORY / p.partition("#")[0]).exists()]
    for page, _, place in (p.partition("#") for p in paths if "#" in p):
        titles = re.findall("^#+ (.*)$", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert place in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_edition_is_described():
    first_cells = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", README, re.MULTILINE)
    described = {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert described == {path.stem for path in CONFIG_FOLDER.glob("*.yaml")}


def test_the_numbers_of_the_notebooks_are_those_of_the_folder():
    section = README.split("The notebooks in `notebooks/`")[1].split("## ")[0]
    notebooks = sorted(path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
    assert re.findall(r"\((\d\d)\)", section) == [name[:2] for name in notebooks]


def test_the_citation_names_the_paper_and_the_licence():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["preferred-citation"]["title"] in README.replace("\n", " ")
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
