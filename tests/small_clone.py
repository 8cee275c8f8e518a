"""Copies of this repository for tests of its workflow, also with notebooks that only count and touch files."""

import shutil
from pathlib import Path

import nbformat
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent

COUNTING = """\
import time
from prefmoe.config import RESULTS
folder = RESULTS / edition / "runs" / backbone / method
folder.mkdir(parents=True, exist_ok=True)
log = folder / "steps"
done = len(log.read_text().split()) if log.exists() else 0
for step in range(done, 8):
    with log.open("a") as lines:
        lines.write(f"{step}\\n")
    while method == "LoRA" and done == 0 and step == 2:
        time.sleep(60)
print("started from", done)
"""
"""A run that counts to eight in a file and goes on from there; that of LoRA waits half way to be killed, once."""

DRAWING = """\
from prefmoe.config.outputs import figures_folder
figures_folder(edition).mkdir(parents=True, exist_ok=True)
for name in files:
    (figures_folder(edition) / name).write_text("drawn")
"""

OWN_METHOD = """\
from typing import Literal

from prefmoe.config import MethodSettings
from prefmoe.models.base import Method


class Settings(MethodSettings):
    table_type = "PEFT"
    kind: Literal["own"]
    size: int = 1


class Own(Method, settings=Settings):
    pass
"""
"""A file of an edition that holds a method of the kind "own"."""


def copy_of_the_repository(folder: Path, *left_out: str) -> Path:
    """The files that a run of the workflow needs; neither results and tests nor what else is left out at the top."""
    tops = shutil.ignore_patterns("results", "tests", *left_out)
    nowhere = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")

    def ignored(place: str, names: list[str]) -> set[str]:
        return nowhere(place, names) | (tops(place, names) if Path(place) == REPOSITORY else set())

    return shutil.copytree(REPOSITORY, folder, ignore=ignored)


def copy_with_small_notebooks(folder: Path) -> Path:
    """This repository with an edition `tiny`, and in place of its notebooks ones that only count and touch files."""
    copy_of_the_repository(folder, "figures", "notebooks")
    (folder / "notebooks").mkdir()
    for name in ("06_train_and_evaluate", "18_train_and_choose", "25_train_and_draw"):
        _notebook(folder, name, "edition = 'tiny'\nbackbone = ''\nmethod = ''", COUNTING)
    rows = yaml.safe_load((folder / "workflow/notebooks.yaml").read_text(encoding="utf-8"))
    for name, row in rows.items():
        files = [file.format(backbone="llava-mini") for file in row["makes"]]
        _notebook(folder, name, "edition = 'tiny'", f"files = {files}\n{DRAWING}")
        for table in (Path(file) for file in row.get("files", ()) if file.startswith("figures/")):
            (folder / table).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / table, folder / table)
    _notebook(folder, "13_protocol_questions", "edition = 'tiny'", f"files = []\n{DRAWING}")
    tiny = yaml.safe_load((folder / "config/smoke.yaml").read_text(encoding="utf-8"))
    tiny |= {"name": "tiny", "backbones": ["llava-mini"], "table1": ["NT", "LoRA"], "table2": []}
    tiny["data"] |= {"users": 4, "unseen_users": 0, "train_per_user": 5, "validation_per_user": 1, "test_per_user": 5}
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    return folder


def _notebook(clone: Path, name: str, parameters: str, code: str) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}", id="title"),
        nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code, id="code"),
    ]
    path = clone / "notebooks" / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path
