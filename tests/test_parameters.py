"""What is said of a notebook's parameter that has a value which it cannot have, and when."""

import nbformat
import pytest

from prefmoe.config import ROOT, ConfigError, load_edition, run_folder
from prefmoe.config.outputs import figures_folder, tables_folder
from prefmoe.inspection.questions import InspectionError, answers
from prefmoe.running import runs
from prefmoe.workflow import notebooks

GIVEN = [
    ("04", {"turns": "none"}, "parameter turns: expected a whole number, such as 0, found 'none'"),
    ("04", {"turns": True}, "parameter turns: expected a whole number, such as 0, found True"),
    ("04", {"turns": []}, r"parameter turns: expected a whole number, such as 0, found \[\]"),
    ("08", {"turns": 3}, "parameter turns: expected one of 0, 10, which edition 'mini' has, found 3"),
    ("04", {"backbone": "lava-mini"}, "parameter backbone: expected one of llava-mini.*; did you mean 'llava-mini'"),
    ("04", {"backbone": []}, r"parameter backbone: expected one of .*, found \[\]"),
    ("05", {"method": "Prefmoe"}, "parameter method: expected one of .*found 'Prefmoe'; did you mean 'PrefMoE'"),
    ("05", {"method": "LoRA"}, "parameter method: expected one with tokens of users, .*PrefMoE.*; found 'LoRA'"),
    ("09", {"edition": "smoke", "method": "FFT"}, "method: expected one with tokens of users, E, EP, .*'FFT'"),
    ("17", {"method": ""}, "parameter method: expected one of .*which edition 'preference-mini' has, found ''"),
    ("09", {"seed": -1}, "parameter seed: expected a whole number from 0 to 4294967295, found -1"),
    ("09", {"seed": 1.5}, "parameter seed: expected a whole number, such as 0, found 1.5"),
    ("11", {"split": "tset"}, "parameter split: expected one of .*found 'tset'; did you mean 'test'"),
    ("02", {"show_photographs": "yes"}, "parameter show_photographs: expected True or False, such as False"),
    ("07", {"edition": "mini2"}, "parameter edition 'mini2' is unknown: .*known editions: "),
    ("07", {"edition": None}, "parameter edition: expected a text, such as 'mini', found None"),
    ("07", {"edition": "preference-mini"}, "edition: expected one about questions, as 'mini' is; .*is about choices"),
    ("19", {"edition": "generation-mini"}, "expected one about choices, as 'preference-mini' is; .*about pictures"),
    ("08", {"edition": "ranking"}, "edition: expected one with table2, its ablation, which 'ranking' has not"),
    ("28", {"edition": "mini"}, "edition: expected one with methods of kind .*retrieved.*, which 'mini' has not"),
    ("06", {"edition": "ladder"}, "backbone: expected one of .*which edition 'ladder' has, found 'llava-mini'"),
]


@pytest.mark.parametrize(("number", "given", "said"), GIVEN, ids=lambda value: str(value)[:30])
def test_a_value_that_a_parameter_cannot_have_is_refused_in_one_line_before_any_cell(
    tmp_path, monkeypatch, number, given, said
):
    monkeypatch.setattr(notebooks, "run_in_kernel", None)
    (source,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    with pytest.raises(notebooks.NotebookError, match=said) as caught:
        notebooks.execute(source, tmp_path / "out" / "executed.ipynb", given)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing is written for it"


@pytest.mark.parametrize("source", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_a_notebook_takes_its_own_values(tmp_path, monkeypatch, source):
    started = []
    monkeypatch.setattr(notebooks, "run_in_kernel", lambda *given: started.append(given) or 1 / 0)
    with pytest.raises(notebooks.NotebookError, match="ZeroDivisionError"):
        notebooks.execute(source, tmp_path / "executed.ipynb", notebooks.defaults(nbformat.read(source, 4)))
    assert started


def test_values_of_ones_own_notebook_are_of_the_kind_of_its_own(tmp_path):
    from prefmoe.workflow.parameters import ParameterError, check

    usual = {"rate": 0.1, "who": None, "users": ["Ann"], "edition": "none of ours"}
    check({"rate": 1, "who": 3, "users": []}, usual)
    with pytest.raises(ParameterError, match=r"^users: expected a list, such as \['Ann'\], found 'Ann'$"):
        check({"users": "Ann"}, usual)
    with pytest.raises(ParameterError, match=r"^rate: expected a number, such as 0.1, found 'fast'$"):
        check({"rate": "fast"}, usual)


@pytest.mark.parametrize("place", [figures_folder, tables_folder])
@pytest.mark.parametrize("edition", ["mini2", None, 3, "../mini"])
def test_no_folder_is_given_for_what_is_no_edition(monkeypatch, place, edition):
    monkeypatch.delenv("PREFMOE_FIGURES", raising=False)
    with pytest.raises(ConfigError, match="edition"):
        place(edition)


def test_an_edition_of_ones_own_has_the_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFMOE_FIGURES", raising=False)
    text = (ROOT / "config" / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("name: smoke", "name: mine"), encoding="utf-8")
    assert figures_folder(str(tmp_path / "mine.yaml")) == ROOT / "results" / "mine" / "by_hand"


@pytest.mark.parametrize("seed", ["0", -1, None, [], 0.0, True])
def test_what_is_no_seed_takes_the_place_of_none(tmp_path, seed):
    with pytest.raises(ConfigError, match="seed: expected a whole number from 0, found"):
        run_folder(tmp_path, "mini", "llava-mini", "PrefMoE", seed)


def test_answers_that_nobody_asks_for_are_refused_before_a_run_is_made(monkeypatch):
    monkeypatch.setattr(runs, "run_method", None)
    edition = load_edition("mini")
    for split, turns in (("tset", 0), ("test", 3), ("unseen", 10), (None, 0), ([], 0)):
        with pytest.raises(InspectionError, match="edition 'mini' asks test after 0, 10; unseen after 0$"):
            answers(edition, "llava-mini", "PrefMoE", split, turns)
