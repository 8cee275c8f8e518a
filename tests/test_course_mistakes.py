"""The course: answers that are wrong, and almost right, and answers that are right in another form."""

import importlib
import sys

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from prefmoe.course import answers, checking

NEAR = {
    ("unit0", "guess"): {"LoRA": {"Carla"}},
    ("unit0", "both_right"): 1,
    ("unit0", "alike"): {"LoRA", "PrefMoE"},
    ("unit0", "strangers"): 0.5,
    ("unit0", "silent"): [0.0, 1.0],
    ("unit0", "pairs"): 8,
    ("unit0", "whom"): "a",
    ("unit1", "said_likes"): lambda q: (q["answer"] == "yes").to_numpy(),
    ("unit1", "collapse"): lambda q: float((q["answer"] == "yes").mean()),
    ("unit1", "recall"): lambda q: float(((q["answer"] == "yes") & (q["truth"] == "yes")).mean()),
    ("unit1", "auc_same"): lambda q: 0.5,
    ("unit1", "quiet"): "a",
    ("unit2", "popular"): lambda t, q: np.array(
        [(t["truth"][t["item"] == i] == "yes").mean() > 0.5 for i in q["item"]]
    ),
    ("unit2", "auc"): 0.69,
    ("unit2", "better"): {"LoRA", "PrefMoE"},
    ("unit3", "split"): lambda a, reading: (a.mean(0), a - a.mean(0)),
    ("unit3", "prefix"): lambda profile, p, r: torch.cat([profile, p, r]),
    ("unit4", "mass"): lambda r, g, t: (torch.softmax(r @ r.T, 1) * (g[:, None] == g)).sum(1),
    ("unit4", "contrast"): lambda p: -p.log10().mean(),
    ("unit4", "preservation"): lambda p, g, eta: -((1 - p) * p.log()).mean(),
    ("unit4", "weight"): 3.3,
    ("unit5", "mixture"): importlib.import_module("prefmoe.course.unit5").loop,
    ("unit5", "widest"): lambda g: dict(g.groupby("router")["value"].agg(np.ptp)),
    ("unit5", "routes"): "b",
    ("unit6", "exchange"): lambda p, o, facet: o.clone(),
    ("unit6", "flips"): lambda before, after: ((before > 0.5) != (after > 0.5)).mean(),
    ("unit6", "effect"): lambda e: [0.0, 0.0],
    ("unit7", "interval"): lambda v, u, c: (v.mean() - 0.1, v.mean() + 0.1),
    ("unit7", "permuted"): lambda a, b, u, s: 0.05,
    ("unit7", "holm"): lambda p: np.minimum(1, p * len(p)),
    ("unit8", "fits"): lambda v, n: np.isclose(np.round(v * n), v * n),
    ("unit8", "excess"): lambda v, n: 0.0,
    ("unit8", "recovered"): {"overall": 1000, "preference": 750, "profile": 1395, "collapse": 219},
    ("unit8", "constant"): {"LOVA3"},
}


@pytest.mark.parametrize(("unit", "name"), NEAR, ids="-".join)
def test_answers_of_the_right_kind_that_are_wrong_are_told_why(unit, name):
    module = importlib.import_module(f"prefmoe.course.{unit}")
    with pytest.raises(checking.NotYet, match=r"expected|not a\.|not b\.|not it|lacks"):
        getattr(module, name)(NEAR[unit, name])


def truly(q):
    return (q["truth"] == "yes") != q["negated"]


def holds(q):
    return np.array([user in group for user, group in zip(q["user"], q["holders"], strict=True)])


def likes(q):
    return (q["answer"] == "yes") != q["negated"]


def read(q):
    return q["answer"] != ""


ALMOST = {
    "unit1 collapse, negation forgotten": (
        "unit1", "collapse", lambda q: (q["answer"] == "yes")[~holds(q) & (q["truth"] == "no") & read(q)].mean()
    ),
    "unit1 collapse, negation forgotten in the answer": (
        "unit1", "collapse", lambda q: (q["answer"] == "yes")[~holds(q) & ~truly(q) & read(q)].mean()
    ),
    "unit1 recall, whatever is true": ("unit1", "recall", lambda q: likes(q)[holds(q) & read(q)].mean()),
    "unit1 recall, as accuracy": (
        "unit1", "recall", lambda q: (q["answer"] == q["truth"])[holds(q) & read(q)].mean()
    ),
    "unit4 mass, softmax along the other axis": (
        "unit4", "mass", lambda r, g, t: (
            torch.softmax(torch.cosine_similarity(r[:, None], r[None], dim=-1) / t, 0) * (g[:, None] == g)
        ).sum(1)
    ),
    "unit4 mass, without a computation": (
        "unit4", "mass",
        lambda r, g, t: torch.tensor([0.8446, 0.8446, 0.5761]) if len(r) == 3 else torch.full((12,), 0.9726),
    ),
    "unit5 mixture, without a product": (
        "unit5", "mixture", lambda x, A, B, gate: torch.stack([
            gate[:, e, None, None] * ((x[:, :, None] * A[e]).sum(-1)[:, :, None] * B[e]).sum(-1) for e in range(len(A))
        ]).sum(0)
    ),
    "unit7 permuted, means per user": (
        "unit7", "permuted", lambda a, b, u, s: _p([(a - b)[u == one].mean() for one in np.unique(u)], s)
    ),
    "unit8 excess, chance of n/10000": (
        "unit8", "excess", lambda v, n: _excess(v, n, n / 10000)
    ),
}  # fmt: skip
"""Wrong functions, each of which one check or another has called right."""


def _p(differences, swaps):
    totals = np.abs((1 - 2 * swaps) @ np.array(differences))
    return (1 + (totals >= abs(np.sum(differences)) - 1e-9).sum()) / (1 + len(swaps))


def _excess(values, n, chance):
    found = (np.round(np.round(values * n) / n, 4) == values).sum()
    return (found - len(values) * chance) / np.sqrt(len(values) * chance * (1 - chance))


@pytest.mark.parametrize("case", ALMOST)
def test_answers_that_are_almost_right_are_not_called_right(case):
    unit, name, function = ALMOST[case]
    with pytest.raises(checking.NotYet, match="expected"):
        getattr(importlib.import_module(f"prefmoe.course.{unit}"), name)(function)


def test_truth_values_may_be_objects_as_pandas_makes_them(capsys):
    unit1, unit2 = (importlib.import_module(f"prefmoe.course.unit{k}") for k in (1, 2))
    unit1.said_likes(lambda q: [None if not a else bool(b) for a, b in zip(q["answer"], likes(q), strict=True)])

    def popular(training, questions):
        shares = truly(training).groupby(training["item"]).mean() > 0.5
        return questions["item"].map(shares.astype(object)).fillna(truly(training).mean() > 0.5)

    unit2.popular(popular)
    assert capsys.readouterr().out.count("Right.") == 2
    with pytest.raises(checking.NotYet, match="holds a float, 0.5: expected true or false in every place"):
        checking.array(np.array([True, 0.5], dtype=object), (2,), "these", "true or false")


def test_the_course_s_own_popular_choice_is_the_table_s():
    unit2 = importlib.import_module("prefmoe.course.unit2")
    asked = answers.preferences("LoRA")
    guessed = unit2.popular_choice(asked)
    held, true = holds(asked), truly(asked)
    for metric, part in (("collapse", ~held & ~true), ("recall", held & true)):
        assert guessed[part].mean() == pytest.approx(unit2.value_of(metric), abs=1e-6)
    assert unit2.auc_same(asked, guessed) == unit2.value_of("auc_same") == 0.5
    seeds = [
        unit2.auc_same(rows, rows["p_yes"].where(~rows["negated"], rows["p_no"]))
        for rows in (answers.preferences("LoRA", seed) for seed in answers.methods()["LoRA"])
    ]
    table = answers.table("table1", method="LoRA", backbone="llava-mini", turns=0, metric="auc_same")
    assert np.mean(seeds) == pytest.approx(table["value"].item(), abs=1e-6)


def _scaled(hidden, gate):
    return hidden * gate.repeat_interleave(hidden.shape[2] // gate.shape[1], dim=1)[:, None]


def _half(x, A, B, gate):
    hidden = torch.einsum("bti,eri->bter", x, A) * gate[:, None, :, None]
    return sum(hidden[:, :, e] @ B[e].T for e in range(len(B)))


def _of_all(per_expert, gate):
    """(batch, tokens, experts * out) outputs of all experts, weighed and summed."""
    return (per_expert.unflatten(2, (gate.shape[1], -1)) * gate[:, None, :, None]).sum(2)


TWO_PRODUCTS = {
    "flat": lambda x, A, B, gate: _scaled(x @ A.flatten(0, 1).T, gate) @ torch.cat(list(B), 1).T,
    "linear": lambda x, A, B, gate: torch.nn.functional.linear(
        _scaled(torch.nn.functional.linear(x, A.flatten(0, 1)), gate), torch.cat(list(B), 1)
    ),
    "a convolution": lambda x, A, B, gate: torch.nn.functional.conv1d(
        _scaled(torch.nn.functional.conv1d(x.mT, A.flatten(0, 1)[..., None]).mT, gate).mT,
        torch.cat(list(B), 1)[..., None],
    ).mT,
    "batched over experts": lambda x, A, B, gate: ((x[:, None] @ A.mT * gate[..., None, None]) @ B.mT).sum(1),
    "one einsum": lambda *given: torch.einsum("bti,eri,eor,be->bto", *given),
    "gates spread by a third, small one": lambda x, A, B, gate: (
        (x @ A.flatten(0, 1).T * (gate @ torch.eye(len(A)).repeat_interleave(A.shape[1], 1))[:, None])
        @ torch.cat(list(B), 1).T
    ),
}
LOOPS = {
    "over experts": importlib.import_module("prefmoe.course.unit5").loop,
    "over experts, under another name": lambda x, A, B, gate: sum(
        gate[:, e, None, None] * torch.inner(torch.inner(x, A[e]), B[e]) for e in range(len(A))
    ),
    "over experts, in the second half": _half,
    "over questions": lambda x, A, B, gate: torch.stack(
        [_scaled(one[None] @ A.flatten(0, 1).T, g[None])[0] @ torch.cat(list(B), 1).T
         for one, g in zip(x, gate, strict=True)]
    ),
}  # fmt: skip
WASTE = {
    "a full matrix for every expert": lambda x, A, B, gate: _of_all(x @ (B @ A).flatten(0, 1).T, gate),
    "a full matrix for every question": lambda x, A, B, gate: x @ torch.einsum("be,eoi->boi", gate, B @ A).mT,
    "every expert meets every part": lambda x, A, B, gate: _of_all(
        x @ A.flatten(0, 1).T @ torch.block_diag(*B.mT), gate
    ),
}


@pytest.mark.parametrize("form", TWO_PRODUCTS)
def test_two_products_are_right_however_they_are_called(form, capsys):
    importlib.import_module("prefmoe.course.unit5").mixture(TWO_PRODUCTS[form])
    assert "Right." in capsys.readouterr().out


@pytest.mark.parametrize("form", LOOPS)
def test_a_loop_is_refused_by_the_work_that_its_largest_products_do(form):
    with pytest.raises(checking.NotYet, match=r"is right .* by \d+ products of matrices .* expected 2"):
        importlib.import_module("prefmoe.course.unit5").mixture(LOOPS[form])


@pytest.mark.parametrize("form", WASTE)
def test_full_products_are_refused_by_their_floating_point_operations(form):
    with pytest.raises(checking.NotYet, match=r"is right .* \d+\.\d times the floating point operations .* expected"):
        importlib.import_module("prefmoe.course.unit5").mixture(WASTE[form])


def test_what_a_student_s_cell_may_do_otherwise_is_a_sentence_too():
    """A number too large for any float, and a function that ends the process."""
    with pytest.raises(checking.NotYet, match="a whole number of 401 digits: expected a number"):
        checking.number(10**400, "both_right")
    with pytest.raises(checking.NotYet, match="mixture stops with SystemExit: 0"):
        checking.called(lambda: sys.exit(0), name="mixture")


def test_a_name_that_an_emptied_cell_no_longer_makes_is_explained():
    shell = InteractiveShell()
    checking.explain_missing_names(shell)
    told = []
    shell._showtraceback = lambda kind, error, lines: told.extend(lines)
    result = shell.run_cell("both_right + 1")
    assert not result.success and told == [
        "Not yet. `both_right` is not there: run the cells above in order, each with your answer in it."
    ]


def test_predictions_of_single_answers_are_counted(capsys):
    unit6 = importlib.import_module("prefmoe.course.unit6")
    before, after = unit6.three(), unit6.three(after=True)
    assert (before["own"] > 0.5).all() and before["facet"].is_unique and "asked_facet" not in before
    truth = (after["asked_facet"] <= 0.5).tolist()
    unit6.turns(truth)
    unit6.turns([not one for one in truth])
    assert capsys.readouterr().out.count("Noted: 3 of 3") == 1
    with pytest.raises(checking.NotYet, match="turns is still empty: expected true or false in shape"):
        unit6.turns(...)
