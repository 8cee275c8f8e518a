"""The verdict on a run is the one that its numbers deserve: equal, as other seeds would have it, or something else."""

import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefmoe import cli
from prefmoe.analysis import tables
from prefmoe.config import CONFIG_FOLDER, FIGURES, load_edition
from prefmoe.workflow import reproduction
from prefmoe.workflow.reproduction import NOT, REPRODUCED, WITHIN, ReproductionError, compare, compare_edition
from prefmoe.workflow.reproduction_report import sentence, summary

NAMES = ("table1", "table2", "table1_seeds", "comparisons", "breakdown", "dataset_statistics", "user_space")
SENSITIVITY = {"method": "PrefMoE", "backbone": "llava-mini", "turns": 0, "metric": "sensitivity"}
READER = {"method": "Profile reader", "turns": 0, "metric": "profile"}
LONE_SEED = SENSITIVITY | {"method": "LOVA3"}
WITHOUT_SEEDS = SENSITIVITY | {"method": "Non-tuned with profile", "metric": "recall"}
WRITTEN: dict[int, tuple[pd.DataFrame, Path]] = {}


@pytest.fixture(scope="module")
def whole() -> dict[str, pd.DataFrame]:
    return {name: tables.read_table(FIGURES / "mini" / f"{name}.csv") for name in NAMES}


@pytest.fixture(scope="module")
def committed(whole) -> dict[str, pd.DataFrame]:
    """Few rows of the long tables, which do not decide."""
    return whole | {name: whole[name].head(60) for name in ("breakdown", "user_space")}


@cache
def ablation() -> tuple[str, dict[str, str]]:
    edition = load_edition("mini", seeds="all")
    return edition.ablation_backbone, {edition.methods[k].components: edition.methods[k].label for k in edition.table2}


def where(table: pd.DataFrame, about: dict) -> pd.Series:
    found = pd.Series(True, index=table.index)
    for column, value in about.items():
        found &= table[column] == value
    return found


def put(table: pd.DataFrame, path: Path) -> None:
    """Writes a table, or copies the file that the same one has been written to."""
    _, before = WRITTEN.setdefault(id(table), (table, path))  # held, so that no other gets its number
    if before == path:
        tables.write_csv(table, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(before, path)


def both(folder: Path, committed, **changed) -> reproduction.Comparison:
    """The committed tables compared with the same ones but for those that are given."""
    for side, content in (("committed", committed), ("made", committed | changed)):
        for name, table in content.items():
            if table is not None:
                put(table, folder / side / f"{name}.csv")
    return compare(folder / "made", folder / "committed", ablation=ablation())


def moved(table: pd.DataFrame, about: dict, by: float, column: str = "value") -> pd.DataFrame:
    rows = where(table, about)
    assert rows.sum() == 1
    return table.assign(**{column: table[column].where(~rows, table[column] + by)})


def expected_unit(committed, about: dict) -> float:
    """Two means of a cell's seeds, with the larger of its spread and the usual one; computed another way."""
    seeds = committed["table1_seeds"]
    (row,) = seeds[where(seeds, about)].to_dict("records")
    alike = seeds[(seeds["metric"] == about["metric"]) & (seeds["turns"] == about["turns"])]["sd"].dropna()
    usual = float(np.linalg.norm(alike) / len(alike) ** 0.5)
    return (usual if np.isnan(row["sd"]) else max(row["sd"], usual)) * (2 / row["seeds"]) ** 0.5


def test_equal_tables_are_reproduced_whatever_the_order_of_their_rows(tmp_path, committed):
    shuffled = {name: table.sample(frac=1, random_state=3) for name, table in committed.items()}
    shuffled["table1"] = shuffled["table1"][shuffled["table1"].columns[::-1]]
    found = both(tmp_path, committed, **shuffled)
    assert found.verdict == REPRODUCED and not found.problems and not found.conclusions
    numbers = sum(len(committed[name]) for name in NAMES if name not in ("table1_seeds", "user_space"))
    assert f"all {numbers} numbers of 5 tables" in sentence(found)


def test_rows_that_are_not_made_at_first_are_compared_where_they_are_made(tmp_path, committed):
    later = ["+ imbalance-aware term", "PrefMoE with published routers"]
    fewer = {}
    for name, table in committed.items():
        about = [column for column in ("method", "baseline", "components") if column in table]
        said = [table[column].isin([*later, "EPI"]) for column in about]
        fewer |= {name: table[~np.any(said, axis=0)]} if said else {}
    assert all(len(fewer[name]) < len(committed[name]) for name in ("table1", "table2", "comparisons"))
    both(tmp_path, committed, **fewer)
    folders = tmp_path / "made", tmp_path / "committed"
    found = compare(*folders, ablation=ablation(), later=later)
    assert found.verdict == REPRODUCED and not found.problems
    assert found.notes == [f"not made at first, and not compared: {', '.join(later)}"]
    assert compare(*folders, ablation=ablation(), later=later[:1]).verdict == NOT, "one of them is made at first"
    (tmp_path / "made/table1_seeds.csv").unlink()
    against = committed["comparisons"]["baseline"].isin(later)
    put(committed["comparisons"][against], tmp_path / "committed/beside.csv")  # of nothing else, and not made
    assert compare(*folders, ablation=ablation(), later=later).problems == ["table1_seeds.csv is missing"]
    put(committed["table1"], tmp_path / "made/table1.csv")
    half_made = compare(*folders, ablation=ablation(), later=later)
    assert any("table2.csv has no row for EPI," in line for line in half_made.problems) and not half_made.notes
    moved_away = moved(committed["table1"], SENSITIVITY | {"method": later[1], "backbone": "llava-mini"}, 0.5)
    assert both(tmp_path / "all", committed, table1=moved_away).verdict == NOT
    assert compare(tmp_path / "all/made", tmp_path / "all/committed", ablation=ablation(), later=later).verdict == NOT


def test_the_last_printed_decimal_is_no_difference(tmp_path, committed):
    assert both(tmp_path, committed, table1=moved(committed["table1"], SENSITIVITY, 1e-6)).verdict == REPRODUCED
    assert both(tmp_path, committed, table1=moved(committed["table1"], SENSITIVITY, 3e-6)).verdict == WITHIN


@pytest.mark.parametrize("about", [SENSITIVITY, LONE_SEED])
def test_what_other_seeds_would_give_is_reproduced_within_seeds(tmp_path, committed, about):
    if about == LONE_SEED:
        seeds = committed["table1_seeds"]
        lone = where(seeds, {k: v for k, v in about.items() if k in ("method", "backbone")})
        bare = seeds.assign(sd=seeds["sd"].mask(lone), seeds=seeds["seeds"].mask(lone, 1))
        committed = committed | {"table1_seeds": bare}
    unit = expected_unit(committed, about)
    found = both(tmp_path, committed, table1=moved(committed["table1"], about, 2 * unit))
    assert found.verdict == WITHIN
    (cell,) = found.cells[found.cells["state"] == "within"].to_dict("records")
    assert cell["units"] == pytest.approx(2, rel=1e-3) and cell["scale"] == "seeds"
    assert "1 of " in sentence(found) and "at most 2.0 times the spread" in sentence(found)


@pytest.mark.parametrize(
    ("table", "about", "column"),
    [
        ("table1", SENSITIVITY, "value"),
        ("table2", {"components": "EP", "turns": 0, "metric": "sensitivity"}, "value"),
        ("comparisons", SENSITIVITY | {"baseline": "LoRA"}, "difference"),
    ],
)
def test_a_number_that_is_too_far_is_named(tmp_path, committed, table, about, column):
    found = both(tmp_path, committed, **{table: moved(committed[table], about, 0.5, column)})
    assert found.verdict == NOT
    (cell,) = found.cells[found.cells["state"] == "too far"].to_dict("records")
    assert cell["table"] == table and cell["units"] > found.limit > 3
    assert f"{table}: {cell['cell']}" in sentence(found)
    assert set(map(str, about.values())) <= set(re.split(r", | turns", cell["cell"]))


def test_two_runs_with_other_seeds_are_seldom_called_different(tmp_path, committed):
    """Both runs drawn from the same distribution, with the seeds of every trained method: no alarm in ten draws."""
    rng, table, seeds = np.random.default_rng(0), committed["table1"], committed["table1_seeds"]
    keys = ["method", "backbone", "turns", "metric"]
    found = table.merge(seeds[[*keys, "sd", "seeds"]], on=keys, how="left", suffixes=("", " of"))
    usual = found.groupby(["metric", "turns"])["sd"].transform(lambda sd: (sd**2).mean() ** 0.5)
    trained = ~table["type"].isin(["NT", "Reference"]).to_numpy()
    spread = (found["sd"].fillna(usual) * (2 / found["seeds of"]) ** 0.5).where(trained, 0).fillna(0).to_numpy()
    verdicts = []
    for draw in range(10):
        change = rng.normal(size=len(table)) * spread
        drawn = table.assign(value=table["value"] + change)
        verdicts.append(both(tmp_path / str(draw), committed, table1=drawn, breakdown=None).cells["state"])
    assert sum((states == "too far").any() for states in verdicts) <= 1


def test_without_training_or_seeds_the_interval_is_the_allowance_and_references_have_none(tmp_path, committed):
    table = committed["table1"]
    row = table[where(table, WITHOUT_SEEDS)].iloc[0]
    inside, outside = (
        both(tmp_path / str(by), committed, table1=moved(table, WITHOUT_SEEDS, -by * (row["high"] - row["low"]) / 2))
        for by in (0.9, 1.1)
    )
    assert (inside.verdict, outside.verdict) == (WITHIN, NOT)
    assert both(tmp_path / "reader", committed, table1=moved(table, READER, 0.001)).verdict == NOT
    counts = committed["dataset_statistics"]
    about = counts.iloc[0][["question_type", "split"]].to_dict()
    assert both(tmp_path / "count", committed, dataset_statistics=moved(counts, about, 1, "count")).verdict == NOT


def test_finer_tables_are_shown_and_not_judged(tmp_path, whole):
    table = whole["breakdown"].assign(value=whole["breakdown"]["value"].mask(whole["breakdown"]["value"].notna(), 0.5))
    found = both(tmp_path, whole, breakdown=table, user_space=whole["user_space"].assign(x=0.0))
    assert found.verdict == WITHIN
    line = summary(found).loc["breakdown"]
    assert line["not judged"] > 1000 and line["too far"] == 0 and line["outside committed interval"] > 100
    assert summary(found)["not judged"].drop("breakdown").sum() == 0


def test_missing_and_additional_rows_columns_and_tables_are_named(tmp_path, committed):
    table = committed["table1"]
    fewer = both(tmp_path / "fewer", committed, table1=table[~where(table, SENSITIVITY)])
    assert fewer.verdict == NOT
    assert fewer.problems == ["table1.csv has no row for PrefMoE, llava-mini, 0 turns, sensitivity"]
    more = pd.concat([table, table.head(1).assign(method="Another")])
    more = both(tmp_path / "more", committed, table1=more)
    assert more.verdict == NOT and "not committed, Another, llava-mini, 0 turns, overall" in more.problems[0]
    column = both(tmp_path / "column", committed, table2=committed["table2"].drop(columns="seeds").assign(more=1))
    assert column.problems == ["table2.csv has no column seeds", "table2.csv has a column more that is not committed"]
    assert column.verdict == NOT
    absent = both(tmp_path / "absent", committed, comparisons=None)
    assert absent.verdict == NOT and absent.problems == ["comparisons.csv is missing"]
    added = both(tmp_path / "added", committed, new_table=table)
    assert added.verdict == REPRODUCED and added.notes == ["new_table.csv is not committed"]
    with pytest.raises(ReproductionError, match="this machine's table1.csv: two rows for Non-tuned with profile"):
        both(tmp_path / "twice", committed, table1=pd.concat([table, table.head(1)]))
    with pytest.raises(ReproductionError, match="^this machine's table1.csv: no column metric, which tells its rows"):
        both(tmp_path / "key", committed, table1=table.drop(columns="metric"))


def test_a_blank_equals_a_blank_and_nothing_else(tmp_path, committed):
    blank = committed["table1"].assign(value=committed["table1"]["value"].mask(where(committed["table1"], SENSITIVITY)))
    assert both(tmp_path / "equal", committed | {"table1": blank}).verdict == REPRODUCED
    for name, before, after in (("gone", committed["table1"], blank), ("new", blank, committed["table1"])):
        found = both(tmp_path / name, committed | {"table1": before}, table1=after)
        assert found.verdict == NOT and "sensitivity" in sentence(found)


def test_a_blank_in_the_place_of_a_number_is_too_far_off_in_a_finer_table_too(tmp_path, whole):
    table = whole["breakdown"]
    first = table["value"].first_valid_index()
    found = both(tmp_path, whole, breakdown=table.assign(value=table["value"].mask(table.index == first)))
    assert found.verdict == NOT and "1 of" in sentence(found) and "breakdown" in sentence(found)


def test_pictures_of_several_trainings_are_held_to_their_spread(tmp_path):
    """The sampling error over users, of differences of pictures of the same noise, is much smaller."""
    committed = {name: tables.read_table(FIGURES / f"generation-mini/{name}.csv")
                 for name in ("table1", "table1_seeds", "comparisons")}  # fmt: skip
    spread = committed["table1_seeds"].set_index(["condition", "users", "measure"])
    usual = (spread["sd"].dropna() ** 2).groupby(level=["users", "measure"]).mean() ** 0.5
    pair = {"condition": "All, MMD", "baseline": "All, not aligned", "users": "all", "measure": "liked"}
    one = {"condition": "Best of 4 by like", "users": "all", "measure": "liked"}
    spreads = [spread.loc[(pair[side], "all", "liked"), "sd"] for side in ("condition", "baseline")]
    units = [max(sd, usual["all", "liked"]) for sd in spreads]
    limit = both(tmp_path / "same", committed).limit
    unit = (units[0] ** 2 * 2 / 3 + units[1] ** 2 * 2 / 3) ** 0.5
    for factor, verdict in ((0.95, WITHIN), (1.05, NOT)):
        table = moved(committed["comparisons"], pair, factor * limit * unit, "difference")
        assert both(tmp_path / f"pair {factor}", committed, comparisons=table).verdict == verdict
        table = moved(committed["table1"], one, factor * limit * 2**0.5 * usual["all", "liked"])
        assert both(tmp_path / f"one {factor}", committed, table1=table).verdict == verdict
    about = {"condition": "No user", "users": "all", "measure": "liked"}
    row = committed["table1"][where(committed["table1"], about)].squeeze()
    table = moved(committed["table1"], about, 1.05 * (row["high"] - row["low"]) / 2)
    assert both(tmp_path / "untrained", committed, table1=table).verdict == NOT, "nothing was trained for it"


def test_choices_of_several_trainings_are_held_to_their_spread(tmp_path):
    """A difference between methods, or of unseen and seen users, has the spread of both sides."""
    committed = {name: tables.read_table(FIGURES / f"preference-mini/{name}.csv")
                 for name in ("table1", "table1_seeds", "table2", "comparisons")}  # fmt: skip
    places = ["method", "users", "n_ref", "candidates", "k"]
    spread = committed["table1_seeds"].set_index(places)["sd"]
    usual = (spread**2).groupby(level=["users", "candidates", "k"]).mean() ** 0.5

    def unit(method, users):
        return max(spread[method, users, 8, 2, 1], usual[users, 2, 1]) * (2 / 3) ** 0.5

    limit = both(tmp_path / "same", committed).limit
    assert 4.5 < limit < 6, "the trainings of seven methods, each asked after histories of several lengths"
    rows = {
        "table1": ({"method": "Prototypes", "users": "all", "n_ref": 8, "candidates": 2, "k": 1}, "value",
                   unit("Prototypes", "all")),
        "table2": ({"method": "Prototypes", "n_ref": 8}, "difference",
                   np.hypot(unit("Prototypes", "seen"), unit("Prototypes", "unseen"))),
        "comparisons": ({"method": "Prototypes", "baseline": "Choices alone", "n_ref": 8, "candidates": 2},
                        "difference", np.hypot(unit("Prototypes", "all"), unit("Choices alone", "all"))),
    }  # fmt: skip
    for name, (about, column, size) in rows.items():
        for factor, verdict in ((0.95, WITHIN), (1.05, NOT)):
            table = moved(committed[name], about, factor * limit * size, column)
            assert both(tmp_path / f"{name} {factor}", committed, **{name: table}).verdict == verdict, (name, factor)
    about = {"method": "Aesthetic scorer", "users": "all", "n_ref": 0, "candidates": 2, "k": 1}
    row = committed["table1"][where(committed["table1"], about)].squeeze()
    table = moved(committed["table1"], about, 1.05 * (row["high"] - row["low"]) / 2)
    assert both(tmp_path / "scorer", committed, table1=table).verdict == NOT, "nothing is drawn at random for it"


def test_a_changed_conclusion_about_pictures_names_the_condition_and_the_measure(tmp_path):
    """The verdict of the third paper's edition ended in a KeyError, in its first run that was not the committed one."""
    committed = {name: tables.read_table(FIGURES / f"generation-mini/{name}.csv") for name in ("table1", "comparisons")}
    table = committed["comparisons"]
    row = table[(table["p_users_holm"] < 0.05) & (table["low"] > 0)].iloc[0]
    about = row[["condition", "baseline", "users", "measure"]].to_dict()
    (said,) = both(tmp_path, committed, comparisons=moved(table, about, 1, "p_users_holm")).conclusions
    assert said == (
        f"{row['condition']} against {row['baseline']}, {row['measure']}, {row['users']}: better as committed, "
        "not told apart here"
    )


def test_conclusions_that_change_are_said_and_decide_nothing(tmp_path, committed):
    about = SENSITIVITY | {"metric": "profile", "baseline": "LoRA"}
    for column, change in (("p_users_holm", 1), ("low", -2)):  # the test or the interval no longer tells them apart
        table = moved(committed["comparisons"], about, change, column)
        found = both(tmp_path / column, committed, comparisons=table)
        assert found.conclusions == [
            "PrefMoE against LoRA, llava-mini, 0 turns, profile: better as committed, not told apart here"
        ]
        if column == "p_users_holm":
            assert found.verdict == REPRODUCED


@pytest.mark.usefixtures("coarse_pictures")
def test_the_command_prints_the_verdict_writes_it_and_ends_with_its_status(tmp_path, committed, capsys):
    both(tmp_path, committed, table1=moved(committed["table1"], SENSITIVITY, 0.5))
    command = ["compare", "mini", "--committed", f"{tmp_path}/committed", "--output", f"{tmp_path}/out", "--made"]
    assert cli.main([*command, f"{tmp_path}/committed"]) == 0
    assert "Verdict: reproduced: all" in capsys.readouterr().out
    assert cli.main([*command, f"{tmp_path}/made"]) == 1
    text = capsys.readouterr().out
    assert "Verdict: not reproduced: 1 of" in text and (tmp_path / "out/verdict.txt").read_text() == text[:-1]
    written = pd.read_csv(tmp_path / "out/reproduction.csv")
    assert (written["state"] == "too far").sum() == 1
    assert (tmp_path / "out/reproduction.png").read_bytes().startswith(b"\x89PNG")


def test_an_edition_without_committed_tables_or_without_own_ones_is_said(tmp_path, capsys):
    with pytest.raises(ReproductionError, match=r"no tables in .*figures/smoke.*\(committed: .*mini, .*small"):
        compare_edition("smoke", made=FIGURES / "mini")
    assert cli.main(["compare", "mini", "--made", str(tmp_path)]) == 1
    assert cli.main(["compare", str(CONFIG_FOLDER / "mini.yaml"), "--made", str(tmp_path)]) == 1
    assert "make them with `snakemake --cores all --config edition=mini`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("breakdown.csv", b"", "breakdown.csv, line 1: expected a header, found nothing"),
        ("breakdown.csv", b"method\n\0\0", "breakdown.csv, line 2: expected text, found a NUL byte"),
        ("breakdown.csv", b"<html>\n<body>, x\n", "breakdown.csv, line 2: expected 1 fields, found 2"),
        ("breakdown.csv", b"<html>\n<body>\n", "breakdown.csv: expected columns such as method, .*; found '<html>'"),
        ("breakdown.csv", b"\xff\xfe", "breakdown.csv: expected UTF-8 text"),
        ("x.csv", None, "x.csv: cannot be read: Is a directory"),
        ("table1.csv", {"value": "abc"}, "table1.csv, row 1, column value: expected a number, found 'abc'"),
        ("table1.csv", {"turns": "ten"}, "table1.csv, row 1, column turns: expected a number, found 'ten'"),
        ("table1.csv", {"value": "0.5,1"}, "table1.csv, line 2: expected 11 fields, found 12"),
        ("table1_seeds.csv", {"method": None}, "table1_seeds.csv: no column method; found 'other'"),
        ("table1_seeds.csv", {"seeds": None}, "table1_seeds.csv: no column seeds; found 'method'"),
        ("table1_seeds.csv", {"sd": "wide"}, "table1_seeds.csv, row 1, column sd: expected a number, found 'wide'"),
        ("comparisons.csv", {"p_users_holm": None}, "comparisons.csv: no column p_users_holm; found 'method'"),
        ("told_statistics.csv", {"fresh": "no"}, "told_statistics.csv, column fresh: numbers in one table, and text"),
    ],
)
def test_a_damaged_table_is_named_with_what_was_expected(tmp_path, capsys, name, content, expected):
    path = tmp_path / name
    for table in ("table1.csv", name):
        if (FIGURES / "mini" / table).exists():
            shutil.copy(FIGURES / "mini" / table, tmp_path)
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        ((column, value),) = content.items()
        header, first, *rest = path.read_text().splitlines()
        place = header.split(",").index(column)
        fields = [header.split(","), first.split(",")]
        fields[0 if value is None else 1][place] = value or "other"
        path.write_text("\n".join([*map(",".join, fields), *rest]))
    assert cli.main(["compare", "mini", "--made", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert re.search(expected, capsys.readouterr().err)


@pytest.mark.parametrize(
    "edition",
    ["generation-mini", "ladder", "mini", "preference-mini", "published-mini", "ranking", "rivals", "small",
     "small-sample"],
)  # fmt: skip
def test_every_committed_edition_reproduces_itself(edition):
    assert compare_edition(edition, made=FIGURES / edition).verdict == REPRODUCED


def test_rankings_that_nobody_asked_for_are_not_missing(tmp_path):
    """They have a command of their own; one of them alone says that it was given and failed."""
    names = ("table1", "ranking", "ranking_comparisons", "recommended")
    committed = {name: tables.read_table(FIGURES / f"ranking/{name}.csv") for name in names}
    found = both(tmp_path / "none", committed, **dict.fromkeys(names[1:]))
    assert found.verdict == REPRODUCED and "ranking.csv was not made (prefmoe rank)" in found.notes
    found = both(tmp_path / "some", committed, ranking=None)
    assert found.verdict == NOT and found.problems == ["ranking.csv is missing"]


def test_tables_of_one_seed_are_held_to_the_sampling_error_of_two_runs(tmp_path):
    """They have no spread over seeds, and those of choices neither backbone nor metric; references know no chance."""
    committed = {name: tables.read_table(FIGURES / f"preference-mini/{name}.csv")
                 for name in ("table1", "table2", "comparisons", "references")}  # fmt: skip
    table = committed["table1"]
    about = {"method": "Prototypes", "users": "seen", "n_ref": 8, "candidates": 2, "k": 1}
    row = table[where(table, about)].squeeze()
    error = 2**0.5 * (row["high"] - row["low"]) / 3.92
    limit = both(tmp_path / "same", committed).limit
    assert 3 < limit < 5
    near = both(tmp_path / "near", committed, table1=moved(table, about, 0.95 * limit * error))
    assert near.verdict == WITHIN and set(near.cells["metric"]) >= {"accuracy, 1 of 2", "accuracy, 2 of 4"}
    assert "sampling error of a difference, as one seed has no spread" in sentence(near)
    assert both(tmp_path / "far", committed, table1=moved(table, about, 1.05 * limit * error)).verdict == NOT
    rng, alarms = np.random.default_rng(0), 0
    errors = (2**0.5 * (table["high"] - table["low"]) / 3.92).fillna(0)
    for draw in range(10):  # as far apart as two runs are whose seeds differ as much as their users do
        drawn = table.assign(value=table["value"] + rng.normal(size=len(table)) * errors)
        alarms += both(tmp_path / str(draw), committed, table1=drawn).verdict == NOT
    assert alarms <= 1
    known = {"method": "Best possible", "users": "seen", "n_ref": 0, "candidates": 2, "k": 1}
    other = both(tmp_path / "known", committed, references=moved(committed["references"], known, 0.001))
    assert other.verdict == NOT, "nothing was trained for it"
    pair = {"method": "Prototypes", "baseline": "Population scorer", "users": "all", "n_ref": 8, "candidates": 2}
    turned = committed["comparisons"].copy()
    turned.loc[where(turned, pair), "difference"] *= -1
    (said,) = both(tmp_path / "turned", committed, comparisons=turned).conclusions
    assert said.startswith("Prototypes against Population scorer, all, 8, 2, 1: better") and said.endswith("worse here")
