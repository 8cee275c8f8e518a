"""Data of three users, without small talk, preferences in a facet, or any at all: what cannot be shown is left out."""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
from method_checks import fit
from notebook_cells import cells
from synthetic_mmpb import make, rows, write_csv, write_split

from prefmoe.analysis import tables
from prefmoe.config import FIGURES, PrefMoEMethod, load_edition
from prefmoe.data import mmpb
from prefmoe.data.benchmark import FACETS, Benchmark
from prefmoe.inspection import attention
from prefmoe.inspection.questions import InspectionError, shared_questions
from prefmoe.models.base import build_method

CASES = {
    "three users": (("Ann", "Bo", "asian_doll"), ()),
    "a facet nobody has": (("Ann", "Bo", "Ye Wen"), ("fashion",)),
    "equal users": (("Ann", "Ye Wen"), ("travel", "shopping")),
    "no preferences": (("Ann", "Bo", "asian_doll"), FACETS),
}
EVERY = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Callable[[str], Benchmark]:
    """small(case): a benchmark whose test questions are about preferences (yes or no) and recognition (choice)."""

    def read(case: str) -> Benchmark:
        people, absent = CASES[case]
        folder = make(tmp_path_factory.mktemp("small") / "data")
        table = [row for row in rows() if row["name"] in people]
        for row in table:
            said = re.split(r"(?<=\.) (?=In terms)", row["preference"])
            kept = [part for part in said if not any(f"In terms of {facet}" in part for facet in absent)]
            row["preference"] = " ".join(kept) or "Unknown preferences"
        write_csv(folder, table)
        indices = [int(row["index"]) for row in table]
        write_split(folder, train=[i for i in indices if i % 4 in (1, 2)], test=[i for i in indices if i % 4 in (0, 3)])
        return replace(mmpb.read(folder), transcripts=())

    return read


@EVERY
def test_what_a_benchmark_is_made_of_is_shown(small, case):
    """The figures and tables of notebook 02, and none of them warns of being empty."""
    benchmark = small(case)
    ids = ("portraits", "question-pictures", "recognition-pictures", "item-likes", "skew-figure", "split-figure")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        shown = cells("02", *ids, benchmark=benchmark, picture=lambda path: path).figures
    assert len(shown) == 5 and all(figure.get_label() for figure in shown)
    assert cells("02", "transcript", benchmark=benchmark)["conversation"].empty


@EVERY
def test_prefmoe_with_all_components_is_trained_and_looked_into(small, tiny_backbone, case):
    """Counterfactual users where there are preferences; then the tables of notebook 10."""
    benchmark = small(case)
    config = PrefMoEMethod(
        kind="prefmoe", label="PrefMoE", lr=1e-3, lr_user=1e-2, preference_rank=2, user_rank=4, profile_rank=2,
        counterfactual_users=6,
    )  # fmt: skip
    method = build_method(config, tiny_backbone(attn="eager"), benchmark, seed=0)
    assert (method.counterfactual is None) == (case in ("equal users", "no preferences"))
    assert all(value == value for terms in fit(method, 2) for value in terms.values())
    questions, others = shared_questions(benchmark, pictures=2, users=8)
    assert others and {e.name for e in questions} <= set(benchmark.users)
    seen = attention.attention(method, questions)
    draw = cells("10", "prefix-function", backbone="b", seed=0)["to_prefix"]
    draw({"all": seen.answer_to_prefix.mean(1)}, [e.name for e in questions], "All", "")
    made = cells("10", "groups-function", "own-function")
    by_group = made["attention_by_group"](method, benchmark.select("test"))
    assert made["own_residual"](by_group)["n"].sum() > 0


def test_users_without_any_preference_are_mapped_and_routed_as_far_as_they_can_be(small, tiny_backbone, tmp_path):
    """Notebooks 5, 9 and 11: tables without rows, a word in the place of a map, and no average of nothing."""
    config = PrefMoEMethod(kind="prefmoe", label="PrefMoE", lr=1e-3, lr_user=1e-2, counterfactual_users=0,
                           preference_rank=2, user_rank=4, profile_rank=2)  # fmt: skip
    method = build_method(config, tiny_backbone(), small("no preferences"), seed=0)
    assert cells("05", "residual-function", "residual-real", untrained=method)["variants"].empty
    ids = ("tokens", "tsne-function", "purity-function", "purity", "panels-function", "space-function", "facet",
           "facet-detail", "group", "group-detail", "ceiling", "apart", "apart-words", "seeds")  # fmt: skip
    shown = cells("09", *ids, folder=tmp_path, backbone="b", seed=0, untrained=method, trained=method)
    assert len(shown.figures) == 5 and all("too few facet tokens" in f.get_label() for f in shown.figures)
    assert tables.read_table(tmp_path / "neighbourhood_purity.csv").columns.tolist() == shown["PURITY_COLUMNS"]
    about = {"group": "recognition, yes/no", "low": 0.4, "high": 0.6, "n": 8}
    gates = [{"router": "preference", "expert": k, "value": 0.2, **about} for k in range(5)]
    assert cells("11", "own-function", "own", gates=pd.DataFrame(gates))["own"].empty


def test_a_lone_question_stands_for_both_pictures(small):
    benchmark = small("three users")
    first = next(e.index for e in benchmark.select("test") if e.category == "preference")
    alone = replace(benchmark, splits=benchmark.splits | {"test": (first,)})
    one, other = shared_questions(alone, pictures=2, users=8)
    assert one == other and {e.index for e in one} == {first}


def test_where_nobody_holds_a_preference_pictures_are_asked_about_one_user_each(small):
    benchmark = small("no preferences")
    unheld = {i: e.model_copy(update={"bucket_names": ()}) for i, e in benchmark.examples.items()}
    faces = [i for i, e in unheld.items() if e.category == "recognition" and not e.is_multiple_choice]
    benchmark = replace(benchmark, examples=unheld, splits=benchmark.splits | {"test": tuple(faces)})
    one, other = shared_questions(benchmark, pictures=2, users=8)
    assert [one, other] == [[unheld[i]] for i in faces[:2]]
    nothing = replace(benchmark, splits=benchmark.splits | {"test": ()})
    with pytest.raises(InspectionError, match="'test' has no yes/no question about"):
        shared_questions(nothing, pictures=2, users=8)


def test_choices_of_nobody_but_seen_users_are_shown():
    """Notebooks 19 and 21 where every user was trained on: what is said of others is left out."""
    table1, shown = (
        pd.read_csv(FIGURES / "preference-mini" / f"{name}.csv", keep_default_na=False, na_values=[""])
        for name in ("table1", "information")
    )
    table1 = table1[table1["users"] != "unseen"]
    settings = load_edition("preference-mini")
    given = {"settings": settings, "shown": shown, "focus": "Prototypes", "n_ref": 8}
    main = table1[table1["n_ref"].isin([0, 8])]
    nobody = main.iloc[:0].rename(columns={"value": "difference"})
    others = cells("19", "main-figure", "unseen-figure", main=main, table2=nobody, **given).figures[1]
    assert "Every user of these data was trained on" in others.get_label()
    two = table1[(table1["candidates"] == 2) & (table1["k"] == 1)]
    asked = [settings.methods[name].label for name in settings.histories.at_lengths]
    (curve,) = cells("21", "curve", rows=two, lengths=[1, 2, 4, 8], asked=asked, **given).figures
    assert "960 of seen users" in curve.get_label() and "unseen" not in curve.get_label()
