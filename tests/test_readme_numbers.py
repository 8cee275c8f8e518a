"""Numbers in README's sentences, and in those of docs/results.md that say whether it holds, are those of the tables."""

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from prefmoe.analysis import claims
from prefmoe.analysis.tables import read_table
from prefmoe.analysis.text import told_apart

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures" / "mini"
LLAVA = {"backbone": "llava-mini", "turns": 0}
QWEN = {"backbone": "qwen2.5-vl-mini", "turns": 0}
NO_BACKBONE = {"backbone": "none", "turns": 0}
NUMBER = r"(\.\d+)"


def row(table, edition="mini", **where):
    """The one row of a committed table."""
    rows = pd.read_csv(ROOT / "figures" / edition / f"{table}.csv")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, (table, where)
    return rows.iloc[0]


def table1(method, metric, where=LLAVA):
    return row("table1", method=method, metric=metric, **where)


def prefixed(control):
    return row("controls", method="PrefMoE", backbone="llava-mini", control=control, metric="auc_told")["value"]


def after(steps, metric="auc_same", method="PrefMoE"):
    where = {"experiment": "more_training", "backbone": "llava-mini", "method": method, "x": steps, "turns": 0}
    where |= {"split": "test", "grouping": "all", "metric": metric}
    return row("protocol/more_training", **where)


def interval(found, estimate="value"):
    return [found[estimate], found["low"], found["high"]]


def difference(found):
    return interval(found, "difference")


def shown_names():
    """Rows that are shown the name and nothing else."""
    return pd.read_csv(FIGURES / "information.csv").query("at_test == 'name'")


def names_alone():
    """Those of them that are trained, on one backbone."""
    return shown_names().query("type != 'NT' and backbone == 'llava-mini'")["method"]


def compared(baseline, metric, where=LLAVA):
    return row("comparisons", method="PrefMoE", baseline=baseline, metric=metric, **where)


def beside_names():
    rows = [compared("LoRA", "auc_same", where) for where in (LLAVA, QWEN)]
    return [number for row in rows for number in (*difference(row), row["p_users_holm"])]


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


PAIRS = "+ losses of pairs"


def against(baseline, method="Prototypes"):
    rows = pd.read_csv(ROOT / "figures" / "preference-mini" / "comparisons.csv")
    rows = rows[(rows["method"] == method) & (rows["baseline"] == baseline) & (rows["n_ref"] == 8)]
    rows = rows[rows["candidates"] == 2]
    assert len(rows) == 1
    return rows.iloc[0]


def drawn(condition, measure="liked"):
    rows = pd.read_csv(ROOT / "figures" / "generation-mini" / "table1.csv").set_index(["condition", "users", "measure"])
    return rows.loc[(condition, "unseen", measure), "value"]


def above_no_user(users="unseen", measure="liked"):
    rows = pd.read_csv(ROOT / "figures" / "generation-mini" / "comparisons.csv")
    rows = rows.set_index(["condition", "baseline", "users", "measure"])
    return rows.loc[("All, MMD", "No user", users, measure)]


def as_published(method, metric="auc_same", table="table1", **where):
    return row(table, "published-mini", method=method, metric=metric, turns=0, **where)


def behind_ours():
    return as_published("PrefMoE", table="comparisons", baseline="PrefMoE as published")


FRONT_PAGE = {
    rf"on names alone reach {NUMBER} to {NUMBER}\.": lambda: [
        choose(row["value"] for row in [*(table1(method, "auc_same") for method in names_alone()),
                                        table1("LoRA", "auc_same", QWEN)]) for choose in (min, max)
    ],
    rf"PrefMoE {NUMBER} \[{NUMBER}, {NUMBER}\], {NUMBER} before any training, and {NUMBER} with somebody else's prefix "
    rf".*; LoRA that reads the text itself {NUMBER} \|": lambda: [
        *interval(table1("PrefMoE", "auc_told")), table1("PrefMoE before training", "auc_told")["value"],
        prefixed("other_user"), table1("LoRA with profile", "auc_told")["value"],
    ],
    rf"never asked: {NUMBER} \[{NUMBER}, {NUMBER}\], but .* and {NUMBER} \[{NUMBER}, {NUMBER}\], which includes .5 "
    rf"\(after 6,400 steps {NUMBER} \[{NUMBER}, {NUMBER}\]\)": lambda: [
        *(number for where in (LLAVA, QWEN) for number in interval(table1("PrefMoE", "auc_untold_fresh", where))),
        *interval(after(6400, "auc_untold_fresh")),
    ],
    rf"6,400 steps: name-only LoRA {NUMBER} \[{NUMBER}, {NUMBER}\], PrefMoE {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] \|": lambda: [
        number
        for method in ("LoRA", "PrefMoE") for number in interval(after(6400, method=method))
    ],
    rf"AUC {NUMBER} \[{NUMBER}, {NUMBER}\] higher \(p = {NUMBER}, corrected for all rows\) and {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] \(p = {NUMBER}\)": beside_names,
    rf"AUC {NUMBER} \[{NUMBER}, {NUMBER}\] higher; accuracy about preferences {NUMBER} beside {NUMBER} "
    rf"\({NUMBER} \[(-\.\d+), {NUMBER}\]\) \|": lambda: [
        *difference(compared("Popular choice", "auc_same")),
        table1("PrefMoE", "preference")["value"], table1("Popular choice", "preference", NO_BACKBONE)["value"],
        *difference(compared("Popular choice", "preference")),
    ],
    rf"as published {NUMBER} \[{NUMBER}, {NUMBER}\], with our settings under the same training {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] \({NUMBER} \[{NUMBER}, {NUMBER}\] higher\)": lambda: [
        *interval(as_published("PrefMoE as published")), *interval(as_published("PrefMoE")), *difference(behind_ours()),
    ],
    rf"unseen users: {NUMBER} \[{NUMBER}, {NUMBER}\]; the population's choice {NUMBER}, a linear reader of the same "
    rf"histories {NUMBER}, an ideal one {NUMBER}; unseen minus seen users (-\.\d+) \[(-\.\d+), {NUMBER}\] \|": lambda: [
        *interval(choices("Prototypes", "unseen")),
        *(
            choices(name, "unseen")["value"]
            for name in ("Population's choice", "Low rank", "Ideal reader of the history")
        ),
        *difference(row("../preference-mini/table2", method="Prototypes", n_ref=8)),
    ],
    rf"prototypes (-\.\d+) \[(-\.\d+), {NUMBER}\]; all parts {NUMBER} \[(-\.\d+), {NUMBER}\] above": lambda: [
        *difference(against(PAIRS)), *difference(against("Choices alone"))
    ],
    rf"\| {NUMBER} \[{NUMBER}, {NUMBER}\] more of what they like than without a user, of unseen users {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] \(neither .*\); number and item of the prompt in {NUMBER}, without a user in {NUMBER}; "
    rf"both at once (-\.\d+) \[(-\.\d+), {NUMBER}\]": lambda: [
        *difference(above_no_user("all")), *difference(above_no_user()), drawn("All, MMD", "faithful"),
        drawn("No user", "faithful"), *difference(above_no_user("all", "both"))
    ],
}  # fmt: skip
AT_LENGTH = {
    rf"users show {NUMBER} of what they like \(three seeds; no user {NUMBER}, another user's history {NUMBER}, "
    rf"favourites in the prompt {NUMBER}\), {NUMBER} \[{NUMBER}, {NUMBER}\] more .* over all users, {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\]\)": lambda: [
        *map(drawn, ("All, MMD", "No user", "Another user's history", "Favourites in the prompt")),
        *difference(above_no_user()), *difference(above_no_user("all")),
    ],
    rf"the prompt's number and item in {NUMBER} \(no user": lambda: [drawn("All, MMD", "faithful")],
    rf"nobody trained on in {NUMBER} \[{NUMBER}, {NUMBER}\] of the cases": lambda: interval(
        choices("Prototypes", "unseen")
    ),
    rf"the population's choice {NUMBER}, an ideal reader {NUMBER}\)": lambda: [
        choices("Population's choice", "unseen")["value"], choices("Ideal reader of the history", "unseen")["value"]
    ],
    rf"and of seen users in {NUMBER}\.": lambda: [choices("Prototypes", "seen")["value"]],
    rf"told apart from learning by choices alone \({NUMBER} \[(-\.\d+), {NUMBER}\], n 1536": lambda: difference(
        against("Choices alone")
    ),
    rf"three trainings show \(prototypes (-\.\d+) \[(-\.\d+), {NUMBER}\]\)": lambda: difference(
        against("+ losses of pairs")
    ),
    rf"PrefMoE's AUC is {NUMBER} \[{NUMBER}, {NUMBER}\] \(n": lambda: interval(table1("PrefMoE", "auc_told")),
    rf"{NUMBER} with somebody else's prefix, and {NUMBER} with a prefix of zeros": lambda: [
        prefixed("other_user"), prefixed("zero_prefix")
    ],
    rf"is ahead: the non-tuned reader \({NUMBER}\), told apart, and LoRA with profile \({NUMBER}\), not": lambda: [
        table1(method, "auc_told")["value"] for method in ("Non-tuned with profile", "LoRA with profile")
    ],
    rf"before any training PrefMoE is at {NUMBER} already": lambda: [
        table1("PrefMoE before training", "auc_told")["value"]
    ],
    rf"by the rule that was set: {NUMBER} \[{NUMBER}, {NUMBER}\]": lambda: interval(
        table1("PrefMoE", "auc_untold_fresh")
    ),
    rf"the other backbone's {NUMBER} \[{NUMBER}, {NUMBER}\]": lambda: interval(
        table1("PrefMoE", "auc_untold_fresh", QWEN)
    ),
    rf"frozen anchors is not told apart from it \({NUMBER} \[(-\.\d+), {NUMBER}\]\)": lambda: difference(
        frozen_behind()
    ),
    rf"is {NUMBER}, {NUMBER}, {NUMBER}, {NUMBER} and {NUMBER} after 100 to 1,600 steps, and of what is untold "
    rf"and fresh {NUMBER} \[{NUMBER}, {NUMBER}\] at": lambda: [
        *(after(steps)["value"] for steps in (100, 200, 400, 800, 1600)), *interval(after(1600, "auc_untold_fresh"))
    ],
    rf"after 6,400 steps {NUMBER} and {NUMBER} \[{NUMBER}, {NUMBER}\], and names alone .*? \({NUMBER}\)": lambda: [
        after(6400)["value"],
        *interval(after(6400, "auc_untold_fresh")),
        after(6400, method="LoRA")["value"],
    ],
    rf"is learned on the first \({NUMBER}; name-only LoRA {NUMBER}\)": lambda: [
        table1("PrefMoE", "profile")["value"], table1("LoRA", "profile")["value"]
    ],
    rf"not told apart on the second \({NUMBER}; {NUMBER}\)": lambda: [
        table1("PrefMoE", "profile", QWEN)["value"], table1("LoRA", "profile", QWEN)["value"]
    ],
    rf"PrefMoE is {NUMBER} \[{NUMBER}, {NUMBER}\] above name-only LoRA .* \(p = {NUMBER}\), and {NUMBER} "
    rf"\[{NUMBER}, {NUMBER}\] on the Qwen2.5-VL miniature, which is \(p = {NUMBER}\)": beside_names,
    rf"full fine-tuning, shown names alone, has {NUMBER};": lambda: [
        table1("Full fine-tuning", "auc_untold_fresh")["value"]
    ],
    rf"\(names alone reach {NUMBER}, somebody else's prefix leaves {NUMBER} where": lambda: [
        table1("LoRA", "auc_told")["value"], prefixed("other_user")
    ],
    rf"popular choice \({NUMBER}\), which knows nobody, is not told apart from PrefMoE \({NUMBER}\)": lambda: [
        table1("Popular choice", "preference", NO_BACKBONE)["value"], table1("PrefMoE", "preference")["value"]
    ],
}  # fmt: skip


PAGES = {"README.md": FRONT_PAGE, "docs/results.md": AT_LENGTH}


@cache
def text(page):
    """A page, or what it says under the heading that asks whether it holds, in one line."""
    whole = (ROOT / page).read_text(encoding="utf-8")
    return " ".join((whole if page == "README.md" else whole.split("## Does it hold?")[1].split("\n## ")[0]).split())


@pytest.mark.parametrize(("page", "sentence"), [(page, sentence) for page in PAGES for sentence in PAGES[page]])
def test_numbers_in_sentences_are_those_of_the_tables(page, sentence):
    found = re.findall(sentence, text(page))
    assert len(found) == 1, "the sentence is gone, or there twice"
    said = [found[0]] if isinstance(found[0], str) else list(found[0])
    for number, value in zip(said, PAGES[page][sentence](), strict=True):
        places = len(number.partition(".")[2])
        assert abs(float(number) - value) <= 0.5 * 10**-places + 1e-9, (number, value)


def test_the_numbers_of_questions_are_those_of_the_tables():
    sizes = [table1("PrefMoE", metric)["n"] for metric in ("auc_told", "auc_untold_fresh")]
    sizes += [choices("Prototypes", "unseen")["n"], above_no_user()["n"]]
    assert re.findall(r"\(n (\d+)(?=[,;)])", text("docs/results.md")) == list(map(str, sizes))


def test_what_the_sentences_conclude_follows_from_the_tables():
    fresh, other = (table1("PrefMoE", "auc_untold_fresh", backbone) for backbone in (LLAVA, QWEN))
    assert fresh["low"] > 0.5 > other["low"]  # "above a guess on the first", "the other backbone's includes a guess"
    tables = [read_table(FIGURES / f"{name}.csv") for name in ("table1", "controls", "comparisons")]
    for where in (LLAVA, QWEN):
        held = claims.claims_table(*tables, backbone=where["backbone"])
        assert claims.refuted_by(held, "b") and not claims.refuted_by(held, "a")  # "refuted on both", "it holds"
    held = claims.claims_table(*tables, backbone="llava-mini")
    expected = held.loc[(held["claim"] == "a") & (held["kind"] == claims.EXPECTED), "outcome"]
    assert (len(expected), (expected == "no").sum()) == (5, 2)  # "two of its five expectations failed"
    assert told_apart(compared("Non-tuned with profile", "auc_told"))  # "the non-tuned reader, told apart"
    assert told_apart(compared("LoRA", "auc_same", QWEN)) and not told_apart(compared("LoRA", "auc_same"))
    assert told_apart(compared("LoRA", "profile")) and not told_apart(compared("LoRA", "profile", QWEN))
    rows = pd.read_csv(FIGURES / "comparisons.csv").query("turns == 0")
    rows = rows.merge(shown_names()[["backbone", "method"]].rename(columns={"method": "baseline"}))
    ahead = {"collapse": (-1, 4), "recall": (1, 0), "profile": (1, 6)}  # "told apart in 4, 0 and 6 of 7 rows"
    for metric, (better, count) in ahead.items():
        asked = rows[rows["metric"] == metric].to_dict("records")
        found = [told_apart(one) and better * one["difference"] > 0 for one in asked]
        assert (sum(found), len(found)) == (count, 7)
    lows = [table1(method, "auc_same")["low"] for method in names_alone()]
    assert (len(lows), sum(low > 0.5 for low in lows)) == (4, 1)  # "one of four name-only rows"
    assert told_apart(behind_ours()) and behind_ours()["difference"] > 0  # "the contrary is"
    assert not told_apart(frozen_behind())  # "is not told apart from PrefMoE"
    assert table1("LoRA with profile", "auc_told")["value"] > table1("PrefMoE", "auc_told")["value"]  # "is ahead"
    assert not told_apart(compared("LoRA with profile", "auc_told"))  # "not told apart from it"
    assert above_no_user()["low"] > 0 and not told_apart(above_no_user())  # "not told apart once corrected"
    assert not told_apart(above_no_user("all"))  # "nor over all users"
    assert above_no_user("all", "both")["low"] < 0 < above_no_user("all", "both")["high"]  # "not shown"
    assert not told_apart(against("Choices alone"))  # "is not told apart from learning by choices alone"
    assert not told_apart(against("+ losses of pairs"))  # "prompts, losses of pairs and prototypes are each nothing"
    assert not told_apart(against("Choices alone", "+ prompts")) and not told_apart(against("+ prompts", PAIRS))
    assert not told_apart(compared("Popular choice", "preference"))  # "is not told apart from PrefMoE"
    assert told_apart(compared("Popular choice", "auc_same"))  # "told apart by the AUC"
