"""Recommendation: measures by their definitions, recommenders that see no test answer, all items asked at once."""

import json
from dataclasses import replace
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_world import lay_out, small_backbone, small_benchmark, small_edition

from prefmoe.analysis import ranking, recommenders, statistics
from prefmoe.analysis.ranking import ALL, FRESH, TOLD, TRAINED, UNSEEN, UNTOLD, RankingError
from prefmoe.backbones.batches import Collator
from prefmoe.cli import main
from prefmoe.config import FIGURES, load_edition
from prefmoe.models.base import build_method
from prefmoe.running import ranking as asking
from prefmoe.running.evaluation import EvaluationError, evaluate
from prefmoe.running.runs import run_method
from prefmoe.system.run_files import RunFileError

SCORES = np.array([3, 1, 2, 2, 1, 2, 0.0])
RELEVANT = np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool)
EVERYTHING = np.ones((1, 7), dtype=bool)

FEW = {
    recommenders.ALS: {"factors": (8,), "regularization": (1.0,), "alpha": (1.0,), "dislikes": (0.0, 2.0)},
    recommenders.BPR: {"k": (4,), "lambda_reg": (1e-2,), "learning_rate": (1e-2, 5e-2), "max_iter": (100,)},
}


@pytest.fixture(autouse=True)
def _few_trials(monkeypatch):
    monkeypatch.setattr(recommenders, "GRIDS", FEW)



def orders() -> list[list[int]]:
    """The seven items from the best to the worst, once for every way to break ties."""
    keys = permutations(range(7))
    return [sorted(range(7), key=lambda item: (-SCORES[item], key[item])) for key in keys]


def taste(users: int = 12, items: int = 20, seed: int = 0, unseen: int = 2) -> ranking.Taste:
    """Users who like about half of the items, some of them told, and were asked about half of them."""
    rng = np.random.default_rng(seed)
    told, untold = rng.random((2, users, items)) < 0.3
    untold &= ~told
    answers = np.where(told | untold, 1, -1)
    asked = rng.random((users, items)) < np.linspace(0.2, 0.6, items)
    asked[users - unseen :] = False
    names, words = tuple(f"user{n}" for n in range(users)), tuple(f"item{n}" for n in range(items))
    validation = np.where(~asked & (rng.random(asked.shape) < 0.3), answers, 0)
    return ranking.Taste(names, words, told, untold, answers * asked, validation, asked.any(axis=1))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_measures_are_means_over_all_ways_to_break_ties(k):
    discounts = 1 / np.log2(np.arange(k) + 2)
    lists = [order[:k] for order in orders()]
    best = discounts[: RELEVANT.sum()].sum()
    by_hand = np.mean([(RELEVANT[shown] * discounts).sum() / best for shown in lists])
    found = ranking.ndcg(SCORES[None], EVERYTHING, RELEVANT[None], k)
    assert found == pytest.approx([by_hand])
    shown = ranking.exposure(SCORES[None], EVERYTHING, k)[0]
    assert shown == pytest.approx([np.mean([item in some for some in lists]) for item in range(7)])
    assert shown.sum() == pytest.approx(k)


def test_a_pick_is_the_mean_over_all_sets_of_other_pictures():
    by_hand = []
    for right in np.flatnonzero(RELEVANT):
        for others in combinations(np.flatnonzero(~RELEVANT), 3):
            best = max(SCORES[[right, *others]])
            ahead = [item for item in (right, *others) if SCORES[item] == best]
            by_hand.append((right in ahead) / len(ahead))
    assert ranking.picked(SCORES[None], EVERYTHING, RELEVANT[None]) == pytest.approx([np.mean(by_hand)])
    assert ranking.picked(np.zeros((1, 7)), EVERYTHING, RELEVANT[None]) == pytest.approx([0.25])
    few = EVERYTHING & (RELEVANT | (np.arange(7) == 0))  # one other item is left
    assert np.isnan(ranking.picked(SCORES[None], few, RELEVANT[None])).all()


def test_the_order_of_items_changes_nothing():
    one, rng = taste(), np.random.default_rng(1)
    scores, moved = rng.integers(0, 6, one.told.shape).astype(float), rng.permutation(20)
    columns = {name: getattr(one, name)[:, moved] for name in ("told", "untold", "training", "validation")}
    other = replace(one, items=tuple(np.array(one.items)[moved]), **columns)
    for liked in (ALL, TOLD, UNTOLD):
        first = ranking.measures(one, scores, FRESH, liked, (3,))
        second = ranking.measures(other, scores[:, moved], FRESH, liked, (3,))
        assert first.keys() == second.keys() and len(first) == (4 if liked == ALL else 3)
        for key, values in first.items():
            assert values == pytest.approx(second[key]), key
    everybody = np.ones(12, dtype=bool)
    shares = [ranking.coverage(t, s, ALL, 3, everybody) for t, s in ((one, scores), (other, scores[:, moved]))]
    assert shares[0] == pytest.approx(shares[1])


def test_recall_and_coverage_count_lists():
    one = taste()
    scores = np.random.default_rng(2).random(one.told.shape)  # no ties
    candidates, relevant = one.chosen(FRESH, ALL)
    lists = [sorted(np.flatnonzero(row), key=lambda i: -score[i])[:4] for row, score in zip(candidates, scores)]  # noqa: B905
    by_hand = [relevant[u, shown].sum() / relevant[u].sum() for u, shown in enumerate(lists)]
    sums = ranking.measures(one, scores, FRESH, ALL, (4,))["recall", 4]
    assert sums[:, 0] / sums[:, 1] == pytest.approx(by_hand)
    shared = ranking.coverage(one, scores, FRESH, 4, np.ones(12, dtype=bool))
    assert shared == pytest.approx(len({item for shown in lists for item in shown}) / 20)


@pytest.mark.parametrize("items", [FRESH, ALL])
def test_nothing_is_lifted_more_than_popularity(items):
    one = taste(users=30)
    references = {row.method: row.scores[0, 0] for row in ranking.references(one)[0]}
    references["random"] = np.random.default_rng(3).random(one.told.shape)
    lifts = {}
    for name, scores in references.items():
        sums = ranking.measures(one, scores, items, ALL, (5,))["lift", 5].sum(axis=0)
        lifts[name] = sums[0] / sums[1] - 1
    assert len(lifts) == 6 and max(lifts, key=lifts.__getitem__) == recommenders.POPULARITY
    assert lifts[recommenders.POPULARITY] > lifts["random"] + 0.05


def test_candidates_were_not_asked_about_and_likes_of_the_other_kind_are_none():
    one = taste()
    for liked, own, other in ((TOLD, one.told, one.untold), (UNTOLD, one.untold, one.told)):
        candidates, relevant = one.chosen(FRESH, liked)
        assert not (candidates & (one.training != 0)).any() and not (candidates & other).any()
        assert np.array_equal(relevant, own & (one.training == 0))
    candidates, relevant = one.chosen(ALL, ALL)
    assert candidates.all() and np.array_equal(relevant, one.told | one.untold)


def test_recommenders_find_groups_of_taste_and_give_strangers_what_is_popular():
    group = np.arange(24) % 2
    likes = group[:, None] == (np.arange(16) % 2)[None]
    rng = np.random.default_rng(4)
    asked = rng.random(likes.shape) < 0.6
    asked[-2:] = False
    answers = np.where(likes, 1, -1)
    fitted, trials = recommenders.fit(answers * asked, answers * ~asked, (0, 1), FEW)
    assert trials.groupby("recommender")["chosen"].sum().to_dict() == dict.fromkeys(fitted, 1)
    assert trials["recommender"].value_counts().to_dict() == {recommenders.ALS: 2, recommenders.BPR: 2, "Popularity": 1}
    for name, rows in trials.groupby("recommender"):
        assert rows.loc[rows["chosen"] == 1, "auc"].item() == rows["auc"].max(), name
    both = int(((answers * ~asked > 0).any(axis=1) & (answers * ~asked < 0).any(axis=1)).sum())
    assert (trials["n"] == both).all() and (trials["seeds"] == [1, 2, 2, 2, 2]).all()
    assert (trials["low"] <= trials["auc"]).all() and (trials["auc"] <= trials["high"]).all()
    assert all(fitted[name].shape == (2, *likes.shape) for name in FEW)
    assert all((fitted[name][0] != fitted[name][1]).any() for name in FEW)  # other first values
    found = {name: scores[0] for name, scores in fitted.items()}
    popular = found[recommenders.POPULARITY]
    assert np.array_equal(popular[0], (likes & asked).sum(axis=0))
    for name in (recommenders.ALS, recommenders.BPR):
        ahead = found[name][:-2, :, None] > found[name][:-2, None, :]
        pairs = (likes & ~asked)[:-2, :, None] & (~likes & ~asked)[:-2, None, :]
        assert ahead[pairs].mean() > 0.8, name
        assert np.array_equal(found[name][-2:], popular[-2:])
        # Seeded; and what is asked twice is left out.
        again, _ = recommenders.fit(answers * asked, np.where(asked, -answers, answers), (0, 1), FEW)
        assert np.array_equal(fitted[name], again[name])


def test_no_answer_of_the_test_reaches_a_recommender():
    benchmark, edition = small_benchmark(), small_edition("tiny-llava")
    held_back = {*benchmark.splits["test"], *benchmark.splits["unseen"]}
    turned = {"awareness": "overconcept", "overconcept": "awareness", "inconsistency": "inconsistency"}
    lies = {
        index: one.model_copy(
            update={"l2_category": turned[one.l2_category], "target": {"like": "dislike"}.get(one.target, "like")}
        )
        if index in held_back else one
        for index, one in benchmark.examples.items()
    }  # fmt: skip
    first, second = (ranking.taste_of(edition, b) for b in (benchmark, replace(benchmark, examples=lies)))
    known, known_again = (ranking.references(one) for one in (first, second))
    assert known[1].equals(known_again[1])
    for row, again in zip(known[0], known_again[0], strict=True):
        assert np.array_equal(row.scores, again.scores), row.method
    assert first.trained.tolist() == [True] * 6 + [False]
    # What was answered in training, read from the table of questions instead of the examples.
    rows = benchmark.frame.loc[list(benchmark.splits["train"])]
    yes = rows[rows["preference_bucket_kind"] == "positive_bucket"]
    no = rows[rows["preference_bucket_kind"] == "negative_bucket"]
    for part, answer in ((yes, 1), (no, -1)):
        assert len(part)
        for name, item in zip(part["name"], part["preference_common_items"], strict=True):
            assert first.training[benchmark.row(name), first.items.index(item)] == answer
    assert (first.training > 0).sum() <= len(yes) + (rows["task_family"] == "preference_mcq").sum()
    assert not (first.training[first.likes] < 0).any() and not (first.training[~first.likes] > 0).any()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    benchmark = small_benchmark()
    pictures = asking.item_pictures(tmp_path_factory.mktemp("items") / "pictures")
    chosen = dict(list(pictures.items())[::6])
    return asking.questions(list(benchmark.users)[:4], chosen)


KINDS = {"NT": {}, "LoRA": {}, "PrefMoE": {}, "image": {"kind": "nontuned", "label": "shown", "profile": "image"}}


@pytest.mark.parametrize("backbone", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_items_at_once_are_the_questions_one_by_one(kind, backbone, asked):
    methods = small_edition("tiny-llava", methods={"NT": KINDS["image"]}, table1=["NT"]).methods if KINDS[kind] else {}
    config = methods["NT"] if KINDS[kind] else small_edition("tiny-llava").methods[kind]
    method = build_method(config, small_backbone(backbone), small_benchmark(), seed=1)
    found = asking.score(method, asked, batch_size=17)
    alone = [evaluate(method, [one], turns=0, batch_size=1, max_new_tokens=2)["p_yes"].item() for one in asked]
    assert found == pytest.approx(alone, abs=1e-4) and np.ptp(found) > 1e-3


def test_a_user_is_put_into_words_once_and_a_picture_is_prepared_once(asked, monkeypatch):
    method = build_method(small_edition("tiny-llava").methods["NT"], small_backbone(), small_benchmark(), seed=1)
    encoded, prepared = [], []
    plain, pictures = Collator.encode, method.backbone.process_pictures
    monkeypatch.setattr(
        method.backbone, "process_pictures", lambda images: (prepared.append(images), pictures(images))[1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            Collator, "encode", lambda self, one, *more: (encoded.append(one.name), plain(self, one, *more))[1]
        )
        asking.score(method, asked)
    assert encoded == list(dict.fromkeys(one.name for one in asked)) and len(encoded) == 4
    assert len({tuple(map(str, images)) for images in prepared}) == 10 and len(prepared) <= 10 + len(encoded)


def test_an_edition_is_ranked_from_its_finished_runs(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, "llava")
    monkeypatch.chdir(tmp_path)
    chosen = {"table1": ["NT", "PrefMoE"], "seeds": [0], "more_seeds": {"PrefMoE": [0, 1]}, "table2": []}
    edition = small_edition("tiny-llava", **chosen)
    with pytest.raises(RunFileError, match="no finished run"):
        asking.rank(edition, results="results")
    for key in edition.table1:
        for seed in edition.seeds_of(key):
            folder = run_method(edition, "tiny-llava", key, seed, results="results")
    path, compared, examples, _ = asking.rank(edition, results="results", depths=(2, 5), galleries=3)
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    assert list(table) == list(ranking.RANKING_COLUMNS) and set(table["k"]) == {0, 2, 5}
    names = ["non-tuned", "full", "Chance", "Popularity", "ALS", "BPR", "True taste"]
    assert list(dict.fromkeys(table["method"])) == names and (table["information"] != "").all()
    assert {*zip(table["users"], table["items"], strict=True)} == {(TRAINED, FRESH), (TRAINED, ALL), (UNSEEN, FRESH)}
    part = ["users", "items", "measure", "k"]
    values = table.set_index(["method", *part])["value"]
    assert values["True taste", TRAINED, ALL, "ndcg", 5] == 1
    assert values["Chance", TRAINED, FRESH, "pick", 0] == pytest.approx(0.25)
    made = table.drop_duplicates("method").set_index("method")[["seeds", "galleries"]]
    expected = {"non-tuned": [1, 3], "full": [2, 3], **dict.fromkeys(names[2:], [1, 1]),
                    **dict.fromkeys(FEW, [3, 1])}  # fmt: skip
    assert {name: list(made.loc[name]) for name in names} == expected
    assert sorted(place.name for place in Path("results/small-world/items").glob("[0-9]*")) == ["0", "1", "2"]
    pairs = pd.read_csv(compared)
    cases = pairs.assign(fitted=pairs["baseline"].isin(FEW)).groupby(["method", "fitted"])["cases"].unique()
    assert {key: list(found) for key, found in cases.items()} == {
        ("full", False): [6], ("full", True): [6],  # seeds that both have, in three galleries
        ("non-tuned", False): [3], ("non-tuned", True): [9],
        ("ALS", False): [3], ("BPR", False): [3], ("BPR", True): [3],
    }  # fmt: skip
    told = ["information", "baseline_information"]
    assert list(pairs) == [*ranking.COMPARISON_COLUMNS, *told] and pairs["p_users"].between(0, 1).all()
    assert pairs[told].notna().all(axis=None)
    assert (pairs["p_users"] <= pairs["p_users_holm"]).all()
    beside = {key: list(dict.fromkeys(rows["baseline"])) for key, rows in pairs.groupby("method")}
    few = {"ALS": ["Popularity"], "BPR": ["Popularity", "ALS"]}
    assert beside == {"full": [n for n in names if n != "full"], "non-tuned": ["Popularity", "ALS", "BPR"]} | few
    assert set(pairs[pairs["method"].isin(few)]["users"]) == {TRAINED}, "strangers get what is popular from each"
    for row in pairs.itertuples():
        of = (row.users, row.items, row.measure, row.k)
        assert row.difference == pytest.approx(values[row.method, *of] - values[row.baseline, *of], abs=3e-6)
    lists = pd.read_csv(examples)
    assert lists.groupby(["user", "method"])["place"].apply(list).map(lambda places: places == [1, 2, 3, 4, 5]).all()
    (folder / "method" / "method.safetensors").unlink()
    with pytest.raises(RunFileError, match=r"method\.safetensors: missing in a finished run.*prefmoe run small-world"):
        asking.rank(edition, results="results")


def test_what_cannot_be_ranked_is_said(asked, capsys):
    one = taste()
    with pytest.raises(RankingError, match=r"k = 21: user 0 has \d+ items to rank"):
        ranking.exposure(np.zeros(one.told.shape), one.chosen(ALL, ALL)[0], 21)
    broken = np.where(np.arange(20) == 3, np.nan, 1.0) * np.ones(one.told.shape)
    with pytest.raises(RankingError, match="a score is not a number"):
        ranking.exposure(broken, one.chosen(ALL, ALL)[0], 3)
    method = build_method(small_edition("tiny-llava").methods["NT"], small_backbone(), small_benchmark(), seed=1)
    with pytest.raises(EvaluationError, match="question 0: the method knows no user 'Nobody'"):
        asking.score(method, [asked[0].model_copy(update={"name": "Nobody"})])
    assert (
        main(["rank", "mini", "--k", "61"]) == 1 and "k = 61: expected a number from 1 to 60" in capsys.readouterr().err
    )
    assert main(["rank", "mini", "--k", "5", "5"]) == 1 and "k = 5: given more than once" in capsys.readouterr().err
    assert main(["rank", "mini", "--pictures", "0"]) == 1 and "0 pictures of every item" in capsys.readouterr().err
    assert main(["rank", "preference-mini"]) == 1 and "expected a miniature" in capsys.readouterr().err
    benchmark = small_benchmark()
    stranger = replace(benchmark, users={"Nobody": next(iter(benchmark.users.values())), **benchmark.users})
    with pytest.raises(RankingError, match="users who are not of edition 'small-world': Nobody"):
        ranking.taste_of(small_edition("tiny-llava"), stranger)


def test_differences_are_of_the_same_users():
    rng = np.random.default_rng(6)
    first, second = (np.stack([rng.random(15), np.ones(15)], axis=1) for _ in range(2))
    row = ranking._difference(first, second)
    interval = statistics.cluster_bootstrap(first[:, 0] - second[:, 0], [f"{n:02d}" for n in range(15)])
    assert row["difference"] == pytest.approx(interval["value"])
    assert row["low"] == pytest.approx(interval["low"], abs=0.02)
    assert ranking._difference(first, first)["p_users"] == 1
    assert ranking._difference(first + [[0.5, 0]], first)["p_users"] < 0.01


def shown(what: str) -> dict[str, str]:
    return {ranking.TRAINED: what, ranking.UNSEEN: f"less than {what}"}


def several(tastes: ranking.Taste, sizes: dict[str, tuple[int, ...]], galleries: int = 3) -> list[ranking.Row]:
    """Rows of random scores of some seeds, drawn around the truth, and popularity."""
    rng = np.random.default_rng(8)
    rows = []
    for name, seeds in sizes.items():
        noise = rng.normal(0, 1, (len(seeds), galleries, *tastes.told.shape))
        rows.append(ranking.Row(name, "llava-mini", shown("names"), name, seeds, tastes.likes + noise))
    popular = np.broadcast_to(tastes.popularity, tastes.told.shape)[None, None]
    return [*rows, ranking.Row(recommenders.POPULARITY, "none", shown("answers"), "", (0,), popular)]


def test_seeds_and_galleries_are_averaged_for_each_user_and_their_spread_is_told():
    one = taste(users=20)
    edition = small_edition("tiny-llava", table1=["LoRA", "PrefMoE"], table2=[])
    rows = several(one, {"LoRA": (0, 1, 2), "PrefMoE": (0, 1, 2)})
    estimates, _ = ranking.tables(edition, one, rows, (3,))
    member, (candidates, relevant) = one.trained, one.chosen(FRESH, ALL)
    values = {}
    for row in rows:
        seeds, galleries = row.scores.shape[:2]
        for s, g in product(range(seeds), range(galleries)):
            found = ranking.ndcg(row.scores[s, g], candidates, relevant, 3)[member]
            values.setdefault(row.method, np.zeros((seeds, galleries)))[s, g] = np.nanmean(found)
    where = (estimates["users"] == TRAINED) & (estimates["items"] == FRESH) & (estimates["liked"] == ALL)
    table = estimates[where & (estimates["measure"] == "ndcg")].set_index("method")
    for name, own in values.items():
        found = table.loc[name]
        assert found["value"] == pytest.approx(own.mean())
        assert (found["seeds"], found["galleries"]) == own.shape
        if own.size == 1:
            assert np.isnan(found["sd_seeds"]) and np.isnan(found["sd_galleries"])
            continue
        spreads = [np.sqrt(((m - m.mean()) ** 2).sum() / (len(m) - 1)) for m in (own.mean(1), own.mean(0))]
        assert [found["sd_seeds"], found["sd_galleries"]] == pytest.approx(spreads)
    # More copies of the same thing say nothing new: the interval is about users.
    again = [replace(row, seeds=tuple(range(4)), scores=np.repeat(row.scores[:1], 4, axis=0)) for row in rows[:2]]
    first = [replace(row, seeds=(0,), scores=row.scores[:1]) for row in rows[:2]]
    for other, few in zip(
        *(ranking.tables(edition, one, r, (3,))[0].itertuples() for r in (again, first)), strict=True
    ):
        assert (other.value, other.n) == pytest.approx((few.value, few.n), nan_ok=True)
        assert (other.low, other.high) == pytest.approx((few.low, few.high), nan_ok=True)
        assert other.sd_seeds == pytest.approx(0, abs=1e-12) and np.isnan(few.sd_seeds)
        assert other.sd_galleries == pytest.approx(few.sd_galleries, nan_ok=True)


@pytest.mark.parametrize(("seeds", "cases"), [((0, 1, 2), 9), ((1,), 9), ((2, 5), 3)])
def test_a_difference_is_counted_in_every_pair_of_the_same_seed_and_gallery(seeds, cases):
    """Of who has a single seed, that one; of whoever shares seeds, those."""
    one = taste(users=20)
    edition = small_edition("tiny-llava", table1=["LoRA", "PrefMoE"], table2=[])
    rows = several(one, {"PrefMoE": (0, 1, 2), "LoRA": seeds})
    _, compared = ranking.tables(edition, one, rows, (3,))
    candidates, relevant = one.chosen(ALL, ALL)
    full, lora, popular = (
        [[np.nanmean(ranking.ndcg(copy, candidates, relevant, 3)[one.trained]) for copy in line] for line in row.scores]
        for row in rows
    )
    pairs = [(s, t) for s in range(3) for t in range(len(seeds)) if len(seeds) == 1 or s == seeds[t]]
    expected = {
        "LoRA": [full[s][g] - lora[t][g] for s, t in pairs for g in range(3)],
        "Popularity": [full[s][g] - popular[0][0] for s in range(3) for g in range(3)],
    }
    where = (compared["users"] == TRAINED) & (compared["items"] == ALL) & (compared["liked"] == ALL)
    found = compared[where & (compared["measure"] == "ndcg") & (compared["method"] == "PrefMoE")].set_index("baseline")
    for name, apart in expected.items():
        row = found.loc[name]
        signs = np.sign(apart) == np.sign(row["difference"])
        assert (row["cases"], row["agree"]) == (len(apart), signs.sum())
    assert found.loc["LoRA", "cases"] == cases and found.loc["Popularity", "cases"] == 9
    assert found.loc["LoRA", "difference"] == pytest.approx(np.mean(full) - np.mean(lora))


def test_the_edition_has_the_benchmark_the_steps_and_the_methods_of_the_default_one():
    mine, usual = load_edition("ranking"), load_edition("mini", seeds="all")
    assert (mine.data, mine.training) == (usual.data, usual.training)
    assert all(set(mine.seeds_of(key)) <= set(usual.seeds_of(key)) for key in mine.methods)
    assert all(method == usual.methods[key] for key, method in mine.methods.items())


@pytest.mark.parametrize("edition", ["ranking", "rivals"])
def test_the_committed_recommenders_are_the_best_of_their_trials_with_worse_ones_on_both_sides(edition):
    """Four trials with the best at an end had put ALS below the popular list."""
    trials = pd.read_csv(FIGURES / f"{edition}/recommender_trials.csv")
    assert list(trials) == list(recommenders.TRIAL_COLUMNS)
    assert ((trials["low"] < trials["auc"]) & (trials["auc"] < trials["high"]) & (trials["n"] == 40)).all()
    for name, rows in trials.groupby("recommender"):
        assert rows.loc[rows["chosen"] == 1, "auc"].item() == rows["auc"].max(), name
    popularity = trials.loc[trials["recommender"] == recommenders.POPULARITY, "auc"].item()
    for name, size in ((recommenders.ALS, "factors"), (recommenders.BPR, "k")):
        rows = trials[trials["recommender"] == name]
        settings = pd.DataFrame(rows["settings"].map(json.loads).tolist(), index=rows.index)
        best = settings.loc[rows["chosen"] == 1].iloc[0]
        for setting in settings:
            inside = settings[setting].min() < best[setting] < settings[setting].max()
            few = rows.loc[settings[size] <= settings[size].median(), "auc"].max()  # no more is gained by size
            assert inside or (setting == size and few > rows["auc"].max() - 0.005), (name, setting)
        assert rows["auc"].max() > popularity
