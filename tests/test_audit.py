"""The audit against enumeration, tables made up with known slips, and numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from notebook_cells import cells

from prefmoe.analysis import audit, published, statistics

QUESTIONS = published.QUESTIONS


@pytest.fixture(scope="module")
def table1() -> pd.DataFrame:
    return published.read("table1")


def honest_table(methods: int = 30, seed: int = 0) -> pd.DataFrame:
    """Rows that a real experiment could print: counts of right answers over the numbers of questions."""
    rng = np.random.default_rng(seed)
    rows = []
    for method in range(methods):
        for turns in (0, 10):
            counts = {metric: rng.binomial(n, rng.uniform(0.3, 0.8)) for metric, n in QUESTIONS.items()}
            counts["overall"] = counts["preference"] + counts["profile"]
            for metric, n in QUESTIONS.items():
                row = {"method": f"m{method}", "type": "PEFT", "group": "g", "turns": turns, "metric": metric}
                rows.append(row | {"value": round(counts[metric] / n, 4)})
    return pd.DataFrame(rows)


def _repeated(table: pd.DataFrame) -> pd.DataFrame:
    return cells("12", "repeated-rows", table1=table)["again"]


def test_a_share_fits_if_some_count_is_printed_so():
    for n in (7, 219, 750, 1395):
        printed = {f"{k / n:.4f}" for k in range(n + 1)}
        shares = np.arange(0, 10001) / 10000
        expected = [f"{share:.4f}" in printed for share in shares]
        assert audit.fits(shares, n).tolist() == expected


def test_an_honest_table_passes_every_check():
    table = honest_table()
    assert audit.values(table)["fits"].all() and audit.overall(table)["fits"].all()
    assert not audit.turn_changes(table)["constant"].any() and _repeated(table).empty


def test_denominators_are_recovered_from_the_printed_values_alone(table1):
    for table in (honest_table(seed=3), table1):
        found = audit.recovered_denominators(table)
        assert found["recovered"].to_dict() == QUESTIONS
        assert (found["excess"] > 2 * found["runner_up_excess"].clip(lower=1)).sum() >= 2
        assert (found["excess"] > found["runner_up_excess"]).all()
    other = honest_table()
    rng = np.random.default_rng(0)
    other.loc[other["metric"] == "collapse", "value"] = (rng.integers(20, 180, 60) / 223).round(4)
    assert audit.recovered_denominators(other).loc["collapse", "recovered"] == 223


def test_slips_are_found_where_they_were_made():
    table = honest_table()
    odd = table.index[table["metric"] == "collapse"][5]
    table.loc[odd, "value"] = 0.1457  # between 31/219 = .1416 and 32/219 = .1461
    moved = table.index[table["metric"] == "overall"][7]
    table.loc[moved, "value"] += 1 / 2145
    values, overall = audit.values(table), audit.overall(table)
    assert values.index[values["fits"] == 0].tolist() == [odd] and values.loc[odd, "nearest"] == 32
    assert overall.index[overall["fits"] == 0].tolist() == [tuple(table.loc[moved, ["type", "method", "turns"]])]
    table = table.assign(value=table["value"].round(4))
    first, second = (table["method"] == name for name in ("m1", "m4"))
    table.loc[second, "value"] = table.loc[first, "value"].to_numpy()
    again = _repeated(table)
    assert set(again.index.get_level_values("method")) == {"m1", "m4"} and len(again) == 4


def test_the_printed_tables_counted_by_enumeration(table1):
    values = audit.values(table1)
    for metric, n in QUESTIONS.items():
        printed = {f"{k / n:.4f}" for k in range(n + 1)}
        rows = values[values["metric"] == metric]
        assert rows["fits"].tolist() == [int(f"{value:.4f}" in printed) for value in rows["value"]]
    worst = audit.overall(table1)
    assert worst.index[0] == ("NT", "Qwen2.5-VL-7B", 0) and (worst["fits"] == 0).sum() == 11
    assert worst.iloc[0]["printed"] == 0.4276 and worst.iloc[0]["computed"] == pytest.approx(0.4931, abs=5e-5)


def test_small_talk_takes_one_constant_from_each_of_four_baselines(table1):
    changes = audit.turn_changes(table1)
    constant = changes[changes["constant"] == 1]
    expected = {"Yo'LLaVA": 0.02, "LLaVA-NeXT-34B": 0.03, "LOVA3": 0.035, "TG-LLaVA": 0.04}
    for method, offset in expected.items():
        row = constant.loc[("PEFT", method)]
        assert row[list(audit.ACCURACIES)].tolist() == pytest.approx([-offset] * 3)
    assert set(constant.index) - {("PEFT", method) for method in expected} == {("FFT", "LLaVA-1.5-13B")}
    # 22.5 of 750 questions are no number of questions; 15 of 750 and 28 of 1395 (.0201) can be.
    assert constant["whole"].to_dict()["PEFT", "LLaVA-NeXT-34B"] == 0 and constant["whole"].sum() == 2


def test_intervals_are_those_of_the_printed_share(table1):
    chosen = "method == 'PrefMoE (LLaVA-1.5-7B)' and turns == 0 and metric == 'collapse'"
    row = audit.values(table1).query(chosen).iloc[0]
    assert (row["value"], row["nearest"], row["fits"]) == (0.1233, 27, 1)
    z2, p, n = 1.959964**2, 0.1233, 219
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    bounds = [(p + z2 / (2 * n) + sign * half) / (1 + z2 / n) for sign in (-1, 1)]
    assert [row["low"], row["high"]] == pytest.approx(bounds)


def test_differences_pair_every_backbone_with_its_own_baselines(table1):
    table = audit.differences(table1)
    assert len(table) == 9 * 2 * 2 * 4 and table["p_holm"].ge(table["p"]).all()
    chosen = "backbone == 'Qwen2.5-VL-7B' and baseline == 'NT' and turns == 10 and metric == 'profile'"
    row = table.query(chosen).iloc[0]
    assert row["difference"] == pytest.approx(0.6638 - 0.4315)
    low, high = statistics.newcombe_interval(0.6638, 0.4315, 1395)
    assert (row["low"], row["high"]) == pytest.approx((float(low), float(high)))
    one = table[table["metric"] == "collapse"]
    assert one["p_holm"].to_numpy() == pytest.approx(statistics.holm(one["p"]))
    assert table["clear"].equals((table["p_holm"] < 0.05).astype(int))


def test_steps_subtract_the_row_before():
    steps = cells("12", "step-differences", table2=published.read("table2"))["steps"]
    assert list(dict.fromkeys(steps["step"])) == ["+P", "+I", "+C", "+D", "+M"] and len(steps) == 5 * 2 * 4
    row = steps.query("step == '+C' and turns == 0 and metric == 'collapse'").iloc[0]
    assert row["difference"] == pytest.approx(0.2283 - 0.3288) and row["components"] == "EPIC"


def test_small_talk_compares_a_row_with_itself(table1):
    talk = cells("12", "talk-differences", table1=table1)["talk"]
    assert len(talk) == 31 * 4
    row = talk.query("method == 'Qwen2.5-VL-7B' and type == 'FFT' and metric == 'preference'").iloc[0]
    assert row["difference"] == pytest.approx(0.3707 - 0.3013)


def test_detectable_differences_shrink_with_the_root_of_n():
    table = cells("12", "detectable")["detectable"]
    scaled = (table["detectable"] ** 2 * table["questions"]).to_numpy()
    assert scaled == pytest.approx(np.full(4, 2 * 0.25 * (1.959964 + 0.841621) ** 2), rel=1e-5)
    assert table.loc["collapse", "half_interval"] == pytest.approx(0.0656, abs=5e-4)


def test_an_editions_gains_are_the_rows_of_its_comparisons(tmp_path):
    rows = [
        {"method": "PrefMoE", "baseline": b, "backbone": "llava-mini", "turns": 0, "metric": m, "difference": 0.1,
         "low": -0.01 if m == "collapse" else 0.01, "high": 0.2, "n": 40, "p_users_holm": 0.03 if b == "LoRA" else 0.2}
        for b in ("LoRA", "Non-tuned", "an ablation", "Popular choice") for m in ("overall", "recall", "collapse")
    ]  # fmt: skip
    kinds = {"LoRA": "PEFT", "Non-tuned": "NT", "PrefMoE": "PEFT", "Popular choice": "Reference"}
    main = pd.DataFrame({"method": kinds.keys(), "type": kinds.values()})
    for name, content in (("table1", main), ("comparisons", pd.DataFrame(rows))):
        content.to_csv(tmp_path / f"{name}.csv", index=False)
    table = cells("12", "measured", edition="tiny", tables_folder=lambda edition: tmp_path)["measured"]
    assert set(table["metric"]) == {"overall", "collapse"} and set(table["baseline"]) == {"LoRA", "Non-tuned"}
    assert table.set_index(["baseline", "metric"])["clear"].to_dict() == {
        ("LoRA", "overall"): 1, ("LoRA", "collapse"): 0, ("Non-tuned", "overall"): 0, ("Non-tuned", "collapse"): 0,
    }  # fmt: skip
