"""The numbers in README's sentences are those of the committed tables."""

import re
from pathlib import Path

import pandas as pd
import pytest

from prefmoe.analysis.text import told_apart

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures" / "mini"
LLAVA = {"backbone": "llava-mini", "turns": 0}
QWEN = {"backbone": "qwen2.5-vl-mini", "turns": 0}
NO_BACKBONE = {"backbone": "none", "turns": 0}
NUMBER = r"(\.\d+)"


def row(table, **where):
    """The one row of a committed table."""
    rows = pd.read_csv(FIGURES / f"{table}.csv")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, (table, where)
    return rows.iloc[0]


def table1(method, metric, where=LLAVA):
    return row("table1", method=method, metric=metric, **where)


def prefixed(control):
    return row("controls", method="PrefMoE", backbone="llava-mini", control=control, metric="auc_told")["value"]


def after(steps, metric="auc_same"):
    where = {"experiment": "more_training", "backbone": "llava-mini", "method": "PrefMoE", "x": steps, "turns": 0}
    where |= {"split": "test", "grouping": "all", "metric": metric}
    return row("protocol/more_training", **where)


def interval(found):
    return [found["value"], found["low"], found["high"]]


def names_alone():
    """Trained rows that are shown the name and nothing else."""
    rows = pd.read_csv(FIGURES / "information.csv")
    return rows.loc[(rows["at_test"] == "name") & (rows["type"] != "NT") & (rows["backbone"] == "llava-mini"), "method"]


def compared(baseline, metric):
    return row("comparisons", method="PrefMoE", baseline=baseline, metric=metric, **LLAVA)


def frozen_behind():
    return compared("LoRA that reads frozen anchors", "auc_untold_fresh")


def choices(method, users, table="table1"):
    where = {"method": method, "users": users, "candidates": 2, "k": 1}
    rows = pd.read_csv(ROOT / "figures" / "preference-mini" / f"{table}.csv")
    rows = rows[rows["n_ref"].isin([0, 8])]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, where
    return rows.iloc[0]


def against(baseline):
    rows = pd.read_csv(ROOT / "figures" / "preference-mini" / "comparisons.csv")
    rows = rows[(rows["baseline"] == baseline) & (rows["n_ref"] == 8)]
    assert len(rows) == 1
    return rows.iloc[0]


SENTENCES = {
    rf"nobody trained on in {NUMBER} \[{NUMBER}, {NUMBER}\] of the cases": lambda: interval(
        choices("Prototypes", "unseen")
    ),
    rf"the population's choice {NUMBER}, an ideal reader {NUMBER}\)": lambda: [
        choices("Population's choice", "unseen")["value"], choices("Ideal reader of the history", "unseen")["value"]
    ],
    rf"and of seen users in {NUMBER}\.": lambda: [choices("Prototypes", "seen")["value"]],
    rf"told apart from learning by choices alone \({NUMBER} \[(-\.\d+), {NUMBER}\], n 1536": lambda: [
        against("Choices alone")[column] for column in ("difference", "low", "high")
    ],
    rf"prototypes are worth nothing \((-\.\d+) \[(-\.\d+), {NUMBER}\]\)": lambda: [
        against("+ losses of pairs")[column] for column in ("difference", "low", "high")
    ],
    rf"PrefMoE's AUC is {NUMBER} \[{NUMBER}, {NUMBER}\] \(n": lambda: interval(table1("PrefMoE", "auc_told")),
    rf"names alone reach {NUMBER} to {NUMBER}\.": lambda: [
        choose(table1(method, "auc_same")["value"] for method in names_alone()) for choose in (min, max)
    ],
    rf"{NUMBER} with somebody else's prefix, and {NUMBER} with a prefix of zeros": lambda: [
        prefixed("other_user"), prefixed("zero_prefix")
    ],
    rf"is ahead \(LoRA with profile {NUMBER}\)": lambda: [table1("LoRA with profile", "auc_told")["value"]],
    rf"before any training PrefMoE is at {NUMBER} already": lambda: [
        table1("PrefMoE before training", "auc_told")["value"]
    ],
    rf"Neither shown nor refuted: {NUMBER} \[{NUMBER}, {NUMBER}\]": lambda: interval(
        table1("PrefMoE", "auc_untold_fresh")
    ),
    rf"the other backbone's {NUMBER} \[{NUMBER}, {NUMBER}\]": lambda: interval(
        table1("PrefMoE", "auc_untold_fresh", QWEN)
    ),
    rf"told apart from PrefMoE \({NUMBER} \[(-\.\d+), {NUMBER}\]\)": lambda: [
        frozen_behind()[column] for column in ("difference", "low", "high")
    ],
    rf"was {NUMBER}, {NUMBER}, {NUMBER}, {NUMBER} and {NUMBER} after 100 to 1,600 steps, and of what is untold "
    rf"and fresh {NUMBER} \[{NUMBER}, {NUMBER}\] at": lambda: [
        *(after(steps)["value"] for steps in (100, 200, 400, 800, 1600)), *interval(after(1600, "auc_untold_fresh"))
    ],
    rf"is learned \({NUMBER}; name-only LoRA {NUMBER}\)": lambda: [
        table1("PrefMoE", "profile")["value"], table1("LoRA", "profile")["value"]
    ],
    rf"popular choice \({NUMBER}\), which knows nobody, is not told apart from PrefMoE \({NUMBER}\)": lambda: [
        table1("Popular choice", "preference", NO_BACKBONE)["value"], table1("PrefMoE", "preference")["value"]
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_numbers_in_sentences_are_those_of_the_tables(text, sentence):
    found = re.findall(sentence, text)
    assert len(found) == 1, "the sentence is gone from README, or there twice"
    said = [found[0]] if isinstance(found[0], str) else list(found[0])
    for number, value in zip(said, SENTENCES[sentence](), strict=True):
        places = len(number.partition(".")[2])
        assert abs(float(number) - value) <= 0.5 * 10**-places + 1e-9, (number, value)


def test_the_numbers_of_questions_are_those_of_the_tables(text):
    sizes = [table1("PrefMoE", metric)["n"] for metric in ("auc_told", "auc_untold_fresh")]
    sizes.append(choices("Prototypes", "unseen")["n"])
    assert re.findall(r"\(n (\d+)(?=[,;)])", text) == list(map(str, sizes))


def test_what_the_sentences_conclude_follows_from_the_tables():
    fresh, other = (table1("PrefMoE", "auc_untold_fresh", backbone) for backbone in (LLAVA, QWEN))
    assert other["low"] < 0.5 < fresh["low"]  # "leaves a guess behind, the other backbone's does not"
    assert not told_apart(frozen_behind())  # "is not told apart from PrefMoE"
    assert table1("LoRA with profile", "auc_told")["value"] > table1("PrefMoE", "auc_told")["value"]  # "is ahead"
    assert not told_apart(compared("LoRA with profile", "auc_told"))  # "not told apart from it"
    assert not told_apart(against("Choices alone"))  # "is not told apart from learning by choices alone"
    assert not told_apart(against("+ losses of pairs"))  # prototypes: "nothing"
    assert not told_apart(compared("Popular choice", "preference"))  # "is not told apart from PrefMoE"
