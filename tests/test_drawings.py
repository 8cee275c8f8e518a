"""How drawn pictures are measured: every measure by hand on pictures that show what we say, tables, pairs and Holm."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from small_choices import benchmark

from prefmoe.analysis import drawings, statistics
from prefmoe.analysis.answers import TableError
from prefmoe.analysis.drawings import Drawn, comparison_table, measure_rows, measured, of_seeds
from prefmoe.data.choice_drawing import ATTRIBUTES, content_of
from prefmoe.data.choice_tastes import CARED, favourites
from prefmoe.data.choice_world import OPEN

PROMPTS = ("two cameras", "one crown")


def users() -> dict[str, list[str]]:
    world = benchmark()
    unseen = [name for name in world.users if name not in world.trained_users]
    return {"test": world.trained_users[:4], "unseen": unseen[:3]}


def frame(shown, seed: int = 0, noises: int = 2, n_ref: int = 3, scale: float = 2.0) -> pd.DataFrame:
    """Pictures of which a reader is certain; ``shown`` says of a request what they show: attribute -> value."""
    rng, rows = np.random.default_rng(seed), []
    for split, names in users().items():
        for user in names:
            for prompt in PROMPTS:
                for noise in range(noises):
                    there = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
                    there |= content_of(prompt) | shown(user, prompt, noise)
                    row = {"split": split, "user": user, "prompt": prompt, "noise": noise, "n_ref": n_ref, "draw": 0,
                           "scale": scale, "reward": rng.random()}  # fmt: skip
                    for name, values in ATTRIBUTES.items():
                        row |= {f"p_{v}": 0.9 * (there[name] == v) + 0.1 / len(values) for v in values}
                    row |= {f"f_{k}": rng.normal() for k in range(3)}
                    rows.append({**row, "picture": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).tobytes()})
    return pd.DataFrame(rows)


def taste(user: str, prompt: str, noise: int) -> dict[str, str]:
    return favourites(benchmark().utilities.loc[user])


def crowd() -> dict[str, str]:
    world = benchmark()
    return favourites(world.utilities.loc[world.trained_users].mean(numeric_only=True))


def drawn(
    name: str = "Mine", key: str = "Mine", kind: str = "drawer", shown=lambda *_: {}, seeds: int = 1, **named
) -> Drawn:
    return Drawn(name, key, kind, tuple(frame(shown, seed, **named) for seed in range(seeds)))


def test_pictures_of_favourites_show_all_that_is_liked_and_nothing_of_the_crowd():
    table = measured(frame(taste), benchmark())
    assert (table["liked"] == 1).all() and (table["faithful"] == 1).all()
    assert (table["own"].dropna() == 1).all() and (table["population"].dropna() == 0).all()
    theirs = measured(frame(lambda *_: crowd()), benchmark())
    assert (theirs["population"].dropna() == 1).all() and (theirs["own"].dropna() == 0).all()
    assert table["own"].isna().equals(theirs["own"].isna()) and not table["own"].isna().all()


def test_liked_is_the_share_of_the_attributes_that_matter_most():
    one = frame(lambda *_: {"palette": "grey", "tilt": "tilted"})
    for (_, user, _, _), value, (_, picture) in zip(
        measured(one, benchmark()).index,
        measured(one, benchmark())["liked"],
        drawings.shown(one).iterrows(),
        strict=True,
    ):
        utilities = benchmark().utilities.loc[user]
        spread = {name: np.ptp([utilities[v] for v in ATTRIBUTES[name]]) for name in OPEN}
        cared = sorted(spread, key=spread.get)[-CARED:]
        best = {name: max(ATTRIBUTES[name], key=utilities.__getitem__) for name in cared}
        assert value == pytest.approx(sum(picture[name] == best[name] for name in cared) / CARED)
        assert picture["palette"] == "grey" and picture["tilt"] == "tilted"


def test_utility_is_expected_over_what_the_reader_is_unsure_of():
    one = frame(lambda *_: {}).head(1).copy()
    user = one["user"].iloc[0]
    expected = sum(
        benchmark().utilities.loc[user, value] * one[f"p_{value}"].iloc[0]
        for name in OPEN
        for value in ATTRIBUTES[name]
    )
    assert measured(one, benchmark())["utility"].iloc[0] == pytest.approx(expected)


def test_a_picture_of_another_number_or_item_is_not_faithful():
    table = measured(frame(lambda user, prompt, noise: {"item": "dogs"} if noise else {}), benchmark())
    assert table["faithful"].groupby("noise").mean().tolist() == [1, 0]
    other = measured(frame(lambda *_: {"number": "three"}), benchmark())
    assert (other["faithful"] == 0).all()


def test_diversity_is_the_distance_between_pictures_of_one_prompt():
    one = frame(lambda *_: {}, noises=3)
    table, pixels = measured(one, benchmark()), drawings.pixels(one).astype(float) / 255
    rows = [0, 1, 2]  # the first user's, of the first prompt
    apart = {pair: np.sqrt(((pixels[pair[0]] - pixels[pair[1]]) ** 2).mean()) for pair in combinations(rows, 2)}
    assert table["diversity"].iloc[0] == pytest.approx((apart[0, 1] + apart[0, 2]) / 2)
    assert table["diversity"].iloc[:3].mean() == pytest.approx(np.mean(list(apart.values())))
    assert measured(frame(lambda *_: {}, noises=1), benchmark())["diversity"].isna().all()


def test_rows_have_intervals_over_users_and_means_over_seeds():
    one = drawn(seeds=2)
    rows = pd.DataFrame(measure_rows(one, benchmark(), drawn("Drawings", "Drawings", "drawings")))
    assert set(rows.columns) == set(drawings.TABLE1_COLUMNS)
    assert set(rows["measure"]) == set(drawings.MEASURES) and set(rows["users"]) == {"seen", "unseen", "all"}
    both = pd.concat([measured(f, benchmark())["liked"] for f in one.frames], axis=1).sort_index()
    found = rows[(rows["measure"] == "liked") & (rows["users"] == "all")].iloc[0]
    expected = statistics.cluster_bootstrap(both, both.index.get_level_values("user"))
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (expected["value"], expected["low"], expected["high"])
    )
    assert found["n"] == len(both) and found["seeds"] == 2
    assert "distance" not in {row["measure"] for row in measure_rows(one, benchmark(), one)}


def test_what_is_liked_counts_for_both_only_where_the_picture_is_of_its_prompt():
    """Pictures that showed more of what users like were those that had lost the prompt, and neither mean said so."""
    one = frame(lambda user, prompt, noise: taste(user, prompt, noise) | ({"item": "dogs"} if noise else {}))
    found = measured(one, benchmark())
    lost = found.index.get_level_values("noise") == 1
    assert lost.any() and (found["liked"] == 1).all()
    assert (found["both"] == found["faithful"]).all() and (found["faithful"] == ~lost).all()


def test_a_setting_is_told_from_others_and_a_missing_one_is_named():
    two = Drawn("Mine", "Mine", "drawer", (pd.concat([frame(taste, n_ref=3), frame(lambda *_: {}, n_ref=1)]),))
    assert two.settings == [(1, 2.0), (3, 2.0)]
    assert measured(two.at(3, 2.0).frames[0], benchmark())["liked"].mean() == 1
    assert measured(two.at(1, 2.0).frames[0], benchmark())["liked"].mean() < 1
    with pytest.raises(TableError, match="Mine: nothing was drawn with n_ref 2 and scale 2.0"):
        two.at(2, 2.0)


def test_pictures_without_guidance_are_no_part_of_those_with_it():
    """Found in a first run: the condition with several scales, 0 among them, was half a condition without a user."""
    scales = Drawn("Mine", "Mine", "drawer", (pd.concat([frame(taste), frame(lambda *_: {}, scale=0.0)]),))
    assert set(scales.at(3, 2.0).frames[0]["scale"]) == {2.0} and set(scales.at(3, 0.0).frames[0]["scale"]) == {0.0}
    nobody = drawn("No user", n_ref=0, scale=0.0)
    assert len(nobody.at(3, 2.0).frames[0]) == len(nobody.frames[0]), "neither histories nor guidance: all there is"


def test_comparisons_pair_pictures_and_correct_for_how_many_they_are():
    focus, good, poor = drawn(), drawn("Good", shown=taste), drawn("Poor", shown=lambda *_: {"palette": "grey"})
    table = comparison_table([(focus, good), (focus, poor)], benchmark())
    assert list(table.columns) == list(drawings.COMPARISON_COLUMNS) and len(table) == 2 * 3 * len(drawings.PAIRED)
    rows = table[(table["users"] == "all") & (table["measure"] == "liked")].set_index("baseline")
    mine = of_seeds(focus, benchmark())["liked"]
    assert rows["difference"]["Good"] == pytest.approx(mine.to_numpy().mean() - 1)
    np.testing.assert_allclose(rows["p_users_holm"], statistics.holm(rows["p_users"]))
    assert rows["p_users"]["Good"] < 0.05


def test_trainings_that_differ_widen_the_interval_of_a_difference_and_are_paired_by_seed():
    """Two conditions of one training each were told apart, the other way round by another processor's arithmetic."""
    taken = [taste, taste, lambda *_: {}]
    mine = Drawn("Mine", "Mine", "drawer", tuple(frame(one) for one in taken))
    same = Drawn("Same", "Same", "drawer", mine.frames)
    other = drawn("Other", shown=lambda *_: {})
    table = comparison_table([(mine, same), (mine, other)], benchmark())
    liked = table[(table["users"] == "all") & (table["measure"] == "liked")].set_index("baseline")
    assert (liked.loc["Same", ["difference", "low", "high"]] == 0).all(), "each seed beside its own"
    each = [measured(f, benchmark())["liked"].mean() for f in mine.frames]
    low, high = liked.loc["Other", ["low", "high"]]
    assert liked.loc["Other", "difference"] == pytest.approx(np.mean(each) - each[-1])
    assert low <= 1e-9 and high >= 0.9 * (each[0] - each[-1]), "as likely as not, both drawn seeds are of one kind"
    two = Drawn("Two", "Two", "drawer", mine.frames[:2])
    with pytest.raises(TableError, match="Mine has 3 and Two has 2 seeds, which cannot be paired"):
        comparison_table([(mine, two)], benchmark())
    there = Drawn("There", "There", "drawings", (frame(lambda *_: {}, seed=9),))
    rows = pd.DataFrame(drawings.seed_rows(mine, benchmark(), there))
    row = rows[(rows["users"] == "all") & (rows["measure"] == "liked")].iloc[0]
    assert (row["sd"], row["minimum"], row["maximum"]) == pytest.approx((np.std(each, ddof=1), min(each), max(each)))
    assert row["seeds"] == 3
    far = rows[(rows["users"] == "all") & (rows["measure"] == "distance")].iloc[0]
    mean = next(r for r in measure_rows(mine, benchmark(), there) if r["users"] == "all" and r["measure"] == "distance")
    assert far["value"] == pytest.approx(mean["value"]) and far["minimum"] <= far["value"] <= far["maximum"]
    assert "distance" not in set(pd.DataFrame(drawings.seed_rows(there, benchmark(), there))["measure"])


def test_what_cannot_be_measured_is_refused():
    from dataclasses import replace

    with pytest.raises(TableError, match=r"true tastes are not known \(utilities.csv\)"):
        measured(frame(taste), replace(benchmark(), utilities=None))
    fewer = Drawn("Fewer", "Fewer", "drawer", (frame(taste).iloc[:-1],))
    with pytest.raises(TableError, match="Fewer was drawn for others than Mine"):
        comparison_table([(drawn(), fewer)], benchmark())
    with pytest.raises(TableError, match="its seeds did not draw the same pictures"):
        of_seeds(Drawn("Two", "Two", "drawer", (frame(taste), frame(taste).iloc[:-1])), benchmark())


def test_probes_are_means_over_seeds_and_their_intervals_hold_both(monkeypatch):
    """Three seeds that differ by .2 each, equal in all users: all of the interval is the seeds'."""
    from prefmoe.analysis import answers, generation_tables
    from prefmoe.config import load_edition

    asked = pd.DataFrame({"layer": 1, "task": "intra", "split": "test", "user": [f"u{k // 10}" for k in range(80)]})
    right = {seed: np.arange(80) % 10 < 5 + 2 * seed for seed in range(3)}

    def read(folder, *_, **__):
        return asked.assign(value=right[int(folder.name[-1])].astype(float))

    monkeypatch.setattr(answers, "read_predictions", read)
    edition = load_edition("generation-mini", seeds="all")
    table = generation_tables.probe_table(edition, "results").set_index("rater")
    own = table.loc["Preference VQA"]
    assert (own["value"], own["n"], own["seeds"], own["chance"]) == (pytest.approx(0.7), 80, 3, 0.5)
    error = 0.2 / np.sqrt(3)
    assert own["low"] < 0.7 - error and own["high"] > 0.7 + error
    alone = table.loc["Untuned backbone"]
    assert (alone["value"], alone["low"], alone["high"], alone["seeds"]) == (pytest.approx(0.5), 0.5, 0.5, 1)
    paired = generation_tables.paired_probes(edition, "results").iloc[0]
    assert (paired["rater"], paired["baseline"]) == ("Preference VQA", "Untuned backbone")
    assert paired["difference"] == pytest.approx(0.2) and paired["n"] == 80 and paired["low"] < 0.2 < paired["high"]
    assert paired["p_users"] <= paired["p_users_holm"] < 0.05, "all eight users have the same difference"
    fewer = asked.iloc[:-1].assign(value=0.0)
    monkeypatch.setattr(
        answers, "read_predictions", lambda folder, *_, **__: read(folder) if folder.name == "seed0" else fewer
    )
    with pytest.raises(TableError, match="generation-mini, Probes: its seeds were not asked about the same"):
        generation_tables.probe_table(edition, "results")
