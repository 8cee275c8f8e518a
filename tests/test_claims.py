"""The two claims held against tables whose outcome is known."""

import pandas as pd
import pytest

from prefmoe.analysis import claims
from prefmoe.analysis.text import seeds_in_words

AUCS = {  # method -> told, untold and fresh, as everything is expected
    claims.READER: (0.99, 0.50), claims.PREFMOE: (0.82, 0.68), claims.LORA: (0.51, 0.49),
    claims.LORA_READER: (0.97, 0.60), claims.ANCHORS: (0.75, 0.55), claims.FREE: (0.60, 0.52),
}  # fmt: skip


def held(half: float = 0.06, other: float = 0.45, difference: float = 0.13, **changed: tuple) -> pd.DataFrame:
    """The claims where intervals reach so far to both sides, `other` is left with somebody else's prefix, and PrefMoE
    is ahead of the frozen anchors by `difference` where nothing was told or asked."""
    main = [
        {"method": method, "backbone": backbone, "turns": turns, "metric": metric, "value": value, "low": value - half,
         "high": value + half}
        for backbone, turns, shift in (("b", 0, 0.0), ("b", 10, 0.3), ("another", 0, 0.3))
        for method, aucs in (AUCS | changed).items()
        for metric, value in zip((claims.TOLD, claims.FRESH), (auc - shift for auc in aucs), strict=True)
    ]  # fmt: skip
    controls = [
        {"method": method, "backbone": "b", "control": control, "metric": claims.TOLD, "value": value,
         "low": value - half, "high": value + half}
        for method, shift in ((claims.PREFMOE, 0.0), (claims.ANCHORS, 0.2))
        for control, value in (("none", 0.82 - shift), ("other_user", other - shift), ("zero_prefix", 0.52 - shift))
    ]  # fmt: skip
    paired = {"method": claims.PREFMOE, "baseline": claims.ANCHORS, "backbone": "b", "turns": 0, "metric": claims.FRESH}
    paired |= {"difference": difference, "low": difference - half, "high": difference + half}
    return claims.claims_table(pd.DataFrame(main), pd.DataFrame(controls), pd.DataFrame([paired]), backbone="b")


def outcome(table: pd.DataFrame, about: str, said: str) -> str:
    (row,) = table[table["about"].eq(about) & table["said"].str.contains(said, regex=False)]["outcome"]
    return row


def test_what_comes_out_as_expected_is_refuted_by_nothing():
    table = held()
    assert list(table.columns) == list(claims.CLAIMS_COLUMNS)
    sizes = table.groupby(["claim", "kind"], sort=True).size()
    assert list(sizes) == [5, 3, 5, 2]
    assert set(table.loc[table["kind"] == claims.EXPECTED, "outcome"]) == {"yes"}
    assert set(table.loc[table["kind"] == claims.REFUTING, "outcome"]) == {"no"}
    assert claims.refuted_by(table, "a") == claims.refuted_by(table, "b") == []
    assert "0.820 [0.760, 0.880]" in set(table["measured"]) and "+0.130 [+0.070, +0.190]" in " ".join(table["measured"])


def test_each_sentence_can_fail():
    table = held(**{claims.PREFMOE: (0.54, 0.52)})
    assert outcome(table, claims.PREFMOE, "interval of auc_told") == "yes"
    assert outcome(table, claims.PREFMOE, "interval of auc_untold_fresh") == "yes"
    assert outcome(table, claims.PREFMOE, "between 0.75") == outcome(table, claims.PREFMOE, "above .5") == "no"
    assert outcome(held(**{claims.ANCHORS: (0.6, 0.5)}), claims.ANCHORS, "no higher than") == "yes"
    assert outcome(held(difference=0.05), claims.ANCHORS, "as good as") == "yes"
    assert claims.refuted_by(held(difference=0.05), "b") == [claims.ANCHORS]
    assert claims.refuted_by(table, "b") == [claims.PREFMOE]
    changeless = held(other=0.8)
    assert outcome(changeless, "somebody else's prefix", "changes nothing") == "yes"
    assert outcome(changeless, "PrefMoE with somebody else's prefix", "falls to .5") == "no"
    assert outcome(held(**{claims.LORA: (0.6, 0.6)}), claims.LORA, "not told apart") == "no"
    assert outcome(held(**{claims.READER: (0.8, 0.5)}), claims.READER, "above PrefMoE") == "no"


def test_an_edition_without_these_rows_is_held_to_what_it_has():
    columns = ["method", "baseline", "backbone", "turns", "metric", "control", "value", "difference"]
    empty = pd.DataFrame(columns=columns)
    assert claims.claims_table(empty, empty, empty, backbone="b").empty
    row = {"method": "LoRA", "backbone": "b", "turns": 0, "metric": claims.TOLD, "value": 0.5, "low": 0.4, "high": 0.6}
    table1 = pd.DataFrame([row])
    assert list(claims.claims_table(table1, empty, empty, backbone="b")["about"]) == ["LoRA"]


@pytest.mark.parametrize(("seeds", "words"), [
    ({"LoRA": 3, "PrefMoE": 3, "FFT": 1, "E": 1, "EP": 1},
     "mean of 3 seeds for LoRA and PrefMoE, one seed for other trained rows"),
    ({"LoRA": 2, "PrefMoE": 2}, "mean of 2 seeds"), ({"LoRA": 1}, "one seed"), ({}, "nothing here is trained"),
])  # fmt: skip
def test_seeds_are_told_as_they_are(seeds, words):
    rows = [{"method": name, "type": "PEFT", "seeds": n} for name, n in seeds.items() for _ in range(2)]
    rows += [{"method": name, "type": kind, "seeds": 1} for name, kind in (("NT", "NT"), ("Chance", "Reference"))]
    assert seeds_in_words(pd.DataFrame(rows)) == words
