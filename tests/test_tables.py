"""Floors and ceilings on a benchmark small enough to answer by hand, and tables against sums made another way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefmoe import metrics
from prefmoe.analysis import answers, statistics, tables
from prefmoe.analysis.answers import REFERENCE, Answers, TableError, read_runs
from prefmoe.analysis.comparisons import (
    ALL_BACKBONES,
    COMPARISON_COLUMNS,
    DETECTABLE_COLUMNS,
    DIFFERENCE_COLUMNS,
    compare,
    comparisons_table,
    detectable_table,
    forest_table,
)
from prefmoe.analysis.groupings import (
    dataset_statistics,
    depicted_items,
    group_sizes,
    item_popularity,
    popularity_groups,
    questions,
)
from prefmoe.analysis.information import information_table
from prefmoe.analysis.references import (
    CHANCE,
    GROUP,
    POPULAR,
    READER,
    chance,
    popular_choice,
    profile_reader,
    read_references,
    references,
    untold_likes,
)
from prefmoe.analysis.text import counted, group_rises, mean_of_seeds, readable, told_apart, verdicts, with_dashes
from prefmoe.config import Edition, run_folder
from prefmoe.data.benchmark import Benchmark, Preference, User
from prefmoe.system import run_files
from prefmoe.system.places import weights_folder

LIKES = {"ann": ("tea", "jam"), "bob": ("tea", "jam"), "cid": ("tea", "kites"), "dan": ("ice", "kites")}
DISLIKES = {"ann": ("ice",), "bob": ("ice",), "cid": ("maps",), "dan": ("tea",)}
HOLDERS = {item: [n for n, likes in LIKES.items() if item in likes] for item in ("tea", "jam", "ice", "kites", "maps")}


def yes_no(name: str, item: str, *, negated: bool = False, seen: bool = False) -> dict:
    holds = item in LIKES[name]
    return {
        "name": name, "category": "preference", "l2-category": "awareness" if holds else "overconcept",
        "concept": "travel", "question": f"{'not ' if negated else ''}like?", "answer": 4 if holds != negated else 5,
        "preference_semantic_invert": int(negated), "preference_bucket_names": " | ".join(HOLDERS[item]),
        "item": item, "seen_pair": int(seen),
    }  # fmt: skip


def choice(name: str, options: tuple[str, ...], right: str, target: str = "like") -> dict:
    return {
        "name": name, "category": "preference", "l2-category": "inconsistency", "concept": "travel", "target": target,
        "question": f"most {target}d?", **dict(zip("ABCD", options, strict=False)), "answer": options.index(right),
        "item": right,
    }  # fmt: skip


def present(name: str, answer: int) -> dict:
    kind = "awareness" if answer == 4 else "overconcept"
    return {"name": name, "category": "recognition", "l2-category": kind, "question": "here?", "answer": answer}


TRAIN = [
    yes_no("ann", "tea"), yes_no("bob", "tea"), yes_no("cid", "tea", negated=True), yes_no("dan", "tea"),
    yes_no("ann", "ice"), yes_no("bob", "ice", negated=True), yes_no("dan", "ice"), yes_no("dan", "maps"),
    choice("ann", ("tea", "ice", "maps", "kites"), "tea"), choice("bob", ("ice", "tea", "maps", "kites"), "tea"),
    choice("dan", ("ice", "tea", "maps", "jam"), "ice"),
    choice("ann", ("tea", "ice", "maps", "jam"), "ice", "dislike"),
    present("ann", 4), present("bob", 4), present("dan", 5),
]  # fmt: skip
TEST = [
    yes_no("ann", "tea", seen=True),  # popular says yes: right
    yes_no("dan", "tea", seen=True),  # popular says yes: the collapse
    yes_no("dan", "tea", negated=True, seen=True),  # popular says no, negated
    yes_no("cid", "ice"),  # popular says no: right
    yes_no("dan", "ice", seen=True),  # popular says no: wrong
    yes_no("dan", "kites"),  # never asked in training: the majority of all items, no
    choice("cid", ("maps", "tea", "ice", "jam"), "tea"),  # tea was right most often
    choice("dan", ("tea", "maps", "ice", "jam"), "ice"),  # tea again: wrong
    choice("cid", ("tea", "ice", "maps", "jam"), "maps", "dislike"),  # ice, by the wording
    present("cid", 5),  # majority yes: wrong
]
UNSEEN = [yes_no("dan", "jam")]


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    rows = [*TRAIN, *TEST, *UNSEEN]
    defaults = dict.fromkeys((*"ABCD", "target", "concept", "preference_bucket_names", "item"), "")
    defaults |= {"preference_semantic_invert": 0, "preference_common_items": "", "seen_pair": 0}
    frame = pd.DataFrame([defaults | row for row in rows]).rename_axis("index")
    annotations = frame[["item", "seen_pair"]].assign(popularity=[len(HOLDERS.get(i, ())) for i in frame["item"]])
    users = {
        name: User(
            name=name, attribute="human", description=f"{name} smiles", images=(Path("x.png"),),
            preferences={"travel": Preference(likes=LIKES[name], dislikes=DISLIKES[name])},
        )
        for name in LIKES
    }  # fmt: skip
    ends = np.cumsum([0, len(TRAIN), len(TEST), len(UNSEEN)])
    names = ("train", "test", "unseen")
    splits = {name: tuple(range(*ends[k : k + 2])) for k, name in enumerate(names)} | {"validation": ()}
    frame = frame.drop(columns=["item", "seen_pair"])
    return Benchmark(root=Path("."), frame=frame, users=users, examples={}, splits=splits, annotations=annotations)


def test_popular_choice_answers_what_training_answered_most(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    answers = popular_choice(train, test, depicted_items(benchmark))
    assert answers["prediction"].tolist() == ["yes", "yes", "no", "no", "no", "no", "B", "A", "B", "yes"]


def test_popular_choice_never_looks_at_the_answers_it_predicts(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    items = depicted_items(benchmark)
    hidden = test.drop(columns="answer")
    expected = popular_choice(train, test, items)["prediction"]
    assert popular_choice(train, hidden, items)["prediction"].equals(expected)


def test_the_profile_reader_knows_every_preference_and_no_face(benchmark):
    train, test = questions(benchmark, "train"), questions(benchmark, "test")
    popular = popular_choice(train, test, depicted_items(benchmark))
    answers = profile_reader(popular, depicted_items(benchmark), benchmark.users)
    scored = metrics.score(answers)
    assert scored.loc[scored["category"] == "preference", "hit"].all()
    assert answers["prediction"].iloc[-1] == popular["prediction"].iloc[-1]


def test_chance_is_the_exact_expectation(benchmark):
    test = questions(benchmark, "test")
    test.loc[6, "D"] = ""  # a question with three options
    copies = [metrics.score(copy) for copy in chance(test)]
    expected = np.array([1 / 2] * 6 + [1 / 3, 1 / 4, 1 / 4] + [1 / 2])
    assert np.mean([copy["hit"] for copy in copies], axis=0) == pytest.approx(expected)
    _, numerator, denominator = metrics.user_counts(copies)
    estimates = metrics.estimates(numerator, denominator)
    values = [estimates[metric]["value"] for metric in ("collapse", "recall", "sensitivity")]
    assert values == pytest.approx([0.5, 0.5, 0])


def test_the_reader_is_left_out_without_annotations(benchmark):
    bare = Benchmark(
        root=benchmark.root, frame=benchmark.frame, users=benchmark.users, examples={}, splits=benchmark.splits
    )
    assert list(references(bare, "test")) == [CHANCE, POPULAR]
    assert list(references(benchmark, "test")) == [CHANCE, POPULAR, READER]


# An edition with runs


EDITION = Edition.model_validate(
    {
        "name": "tiny",
        "purpose": "tests",
        "seeds": [0, 1],
        "backbones": ["llava-mini"],
        "ablation_backbone": "llava-mini",
        "data": {"kind": "miniature"},
        "training": {"steps": 1, "batch_size": 1},
        "methods": {
            "nt": {"kind": "nontuned", "label": "Non-tuned", "profile": "none"},
            "fft": {"kind": "fft", "label": "Full fine-tuning", "lr": 1e-3},
            "e": {"kind": "prefmoe", "label": "Embedding", "components": "E", "lr": 1e-3, "lr_user": 1e-2},
            "full": {"kind": "prefmoe", "label": "PrefMoE", "lr": 1e-3, "lr_user": 1e-2},
        },
        "table1": ["nt", "fft", "full"],
        "table2": ["e", "full"],
    }
)


def shares(frame: pd.DataFrame, right: np.ndarray, skill: float) -> dict[str, np.ndarray]:
    """Probabilities of the answers, largest for the given one (the next of the allowed ones where it is wrong)."""
    columns = {answer: np.full(len(frame), np.nan) for answer in ("yes", "no", "a", "b", "c", "d")}
    for row, (gt, hit) in enumerate(zip(frame["gt"], right, strict=True)):
        allowed = ("yes", "no") if gt in ("yes", "no") else ("a", "b", "c", "d")
        for step in range(len(allowed)):
            answer = allowed[(allowed.index(gt) + step) % len(allowed)]
            given = step == (0 if hit else 1)
            columns[answer][row] = 0.5 + skill / 2 if given else (0.5 - skill / 2) / (len(allowed) - 1)
    return {f"p_{answer}": values for answer, values in columns.items()} | {"p_allowed": np.full(len(frame), 0.9)}


def write_run(benchmark: Benchmark, results: Path, key: str, seed: int, skill: float) -> None:
    rng = np.random.default_rng([seed, int(1000 * skill)])
    frames = []
    for split in ("test", "unseen"):
        for turns in (0, 10):
            frame = metrics.score(questions(benchmark, split).assign(prediction=""))
            other = {"yes": "no", "no": "yes", "a": "b", "b": "c", "c": "d", "d": "a"}
            right = rng.random(len(frame)) < skill
            words = [gt if hit else other[gt] for gt, hit in zip(frame["gt"], right, strict=True)]
            prediction = [word.upper() if len(word) == 1 else word for word in words]
            gates = {f"gate_task_{k}": np.full(len(frame), value) for k, value in enumerate((0.25 + seed / 2, 0.75))}
            more = {"split": split, "turns": turns, **gates, **shares(frame, right, skill)}
            frame = frame.assign(prediction=prediction, **more)
            frames.append(frame.drop(columns=["gt", "pred", "hit"]))
    keep(pd.concat(frames).sample(frac=1, random_state=seed), results, "llava-mini", key, seed)


def keep(frame: pd.DataFrame, results: Path, backbone: str, key: str, seed: int) -> None:
    """A finished run with these answers, in the place of any earlier one."""
    folder = run_folder(results, "tiny", backbone, key, seed)
    (folder / "method").mkdir(parents=True, exist_ok=True)
    (folder / "method" / "method.json").write_text("{}")
    frame.to_parquet(folder / "predictions.parquet")
    run_files.seal(folder, {"edition": "tiny", "backbone": backbone, "method": key, "seed": seed})


@pytest.fixture(scope="module")
def finished(benchmark, tmp_path_factory) -> Path:
    """A results folder with every run of the edition."""
    folder = tmp_path_factory.mktemp("finished")
    write_run(benchmark, folder, "nt", 0, 0.5)
    for key, skill in (("fft", 0.6), ("e", 0.4), ("full", 0.9)):
        for seed in (0, 1):
            write_run(benchmark, folder, key, seed, skill)
    return folder


@pytest.fixture
def results(finished, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def built(benchmark, finished, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """Another copy, with all tables, and their paths by name."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("built"), dirs_exist_ok=True)
    return folder, tables.build(EDITION, benchmark, results=folder)


def test_every_run_is_read_once_and_every_answer_scored_once(benchmark, results, monkeypatch):
    read, scored = [], []
    originals = answers.read_predictions, metrics.score
    monkeypatch.setattr(answers, "read_predictions", lambda at, *a, **k: read.append(at) or originals[0](at, *a, **k))
    monkeypatch.setattr(metrics, "score", lambda frame: scored.append(len(frame)) or originals[1](frame))
    tables.build(EDITION, benchmark, results=results)
    assert len(read) == len(set(read)) == 7  # the non-tuned model has one seed
    references = 2 * (1 + 12 + 1 + 1)  # of two splits: the training answers, chance's copies, two readers
    assert len(scored) == 7 + references


def test_build_writes_every_table_with_its_columns(built):
    results, written = built
    content = {name: tables.read_table(path) for name, path in written.items()}
    columns = {
        "table1": tables.TABLE1_COLUMNS,
        "table2": tables.TABLE2_COLUMNS,
        "table1_seeds": tables.SEEDS_COLUMNS,
        "comparisons": COMPARISON_COLUMNS,
        "breakdown": tables.BREAKDOWN_COLUMNS,
        "turns": tables.TURNS_COLUMNS,
        "forest": DIFFERENCE_COLUMNS,
        "detectable": DETECTABLE_COLUMNS,
        "calibration": tables.CALIBRATION_COLUMNS,
        "reliability": tables.RELIABILITY_COLUMNS,
        "unparsed": tables.UNPARSED_COLUMNS,
        "separation": tables.SEPARATION_COLUMNS,
        "unseen": tables.TABLE1_COLUMNS,
    }
    for name, expected in columns.items():
        own = [column for column in content[name] if column in expected or not column.endswith("information")]
        assert tuple(own) == expected, name
    table = content["table1"]
    assert dict(zip(table["method"], table["type"], strict=True)) == {
        "Non-tuned": "NT", "Full fine-tuning": "FFT", "PrefMoE": "PEFT",
        "Chance": "Reference", "Popular choice": "Reference", "Profile reader": "Reference",
    }  # fmt: skip
    assert set(table["turns"]) == {0, 10} and tuple(table["metric"].unique()) == (*metrics.METRICS, "auc_same")
    assert content["table2"]["components"].unique().tolist() == ["E", "EPICDM"]
    assert (table.loc[table["metric"] == "overall", "n"] == len(TEST)).all()
    unseen = content["unseen"]
    assert (unseen.loc[unseen["metric"] == "overall", "n"] == len(UNSEEN)).all()
    assert {path.parent for path in written.values()} == {results / "tiny" / "figures"}
    assert not list((results / "tiny" / "figures").glob(".*"))


def test_values_are_means_over_seeds(benchmark, results):
    answers = {(a.key, a.turns): a for a in read_runs(EDITION, results, "test")}
    table = tables.estimates_table(answers.values()).set_index(["key", "turns", "metric"])
    seeds = tables.seeds_table(answers.values()).set_index(["method", "turns", "metric"])
    per_seed = []
    for seed in (0, 1):
        frame = pd.read_parquet(run_folder(results, "tiny", "llava-mini", "full", seed) / "predictions.parquet")
        frame = frame[(frame["split"] == "test") & (frame["turns"] == 10)]
        per_seed.append(metrics.summarize(metrics.score(frame)))
    for metric in metrics.METRICS:
        values = [summary[metric]["value"] for summary in per_seed]
        row = table.loc[("full", 10, metric)]
        assert row["value"] == pytest.approx(np.mean(values))
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["seeds"], row["n"]) == (2, per_seed[0][metric]["n"])
        spread = seeds.loc[("PrefMoE", 10, metric)]
        assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (spread["minimum"], spread["maximum"]) == pytest.approx((min(values), max(values)))


def test_comparisons_are_paired_and_corrected(benchmark, results):
    answers = read_runs(EDITION, results, "test")
    table = comparisons_table(EDITION, answers)
    assert set(table["baseline"]) == {"Non-tuned", "Full fine-tuning", "Embedding"}
    values = tables.estimates_table(answers).set_index(["method", "turns", "metric"])["value"]
    for row in table.itertuples():
        expected = values[row.method, row.turns, row.metric] - values[row.baseline, row.turns, row.metric]
        assert row.difference == pytest.approx(expected)
    one = table[table["metric"] == "overall"]
    assert one["p_questions_holm"].to_numpy() == pytest.approx(statistics.holm(one["p_questions"]))
    full, base = (
        next(a for a in answers if (a.key, a.turns) == (key, 0)).right[..., 0].mean(axis=1) for key in ("full", "fft")
    )
    row = one[(one["baseline"] == "Full fine-tuning") & (one["turns"] == 0)].iloc[0]
    assert (row["better"], row["worse"], row["n"]) == ((full > base).sum(), (full < base).sum(), len(TEST))
    collapse = table[(table["metric"] == "collapse") & (table["baseline"] == "Embedding") & (table["turns"] == 0)]
    assert collapse["better"].iloc[0] >= collapse["worse"].iloc[0]  # fewer collapses count as better


def test_a_method_does_not_differ_from_itself(benchmark, results):
    entry = read_runs(EDITION, results, "test")[2]
    for row in compare(entry, entry):
        assert (row["difference"], row["low"], row["high"], row["p_users"]) == (0, 0, 0, 1)
        assert row["metric"] in ("sensitivity", "auc_same") or row["p_questions"] == 1


@pytest.mark.parametrize("metric", ["preference", "collapse"])
def test_exchanging_users_matches_a_loop(benchmark, results, metric):
    """The vectorised permutations against exchanging the two methods' answers user by user."""
    first, second = (a for a in read_runs(EDITION, results, "test") if a.key in ("fft", "e") and a.turns == 0)
    names, column = np.unique(first.users), metrics.METRICS.index(metric)

    def share(parts: list[tuple[Answers, np.ndarray | slice]]) -> float:
        right = sum(entry.right[rows].mean(axis=1)[:, column].sum() for entry, rows in parts)
        counted = sum(entry.counted[rows].mean(axis=1)[:, column].sum() for entry, rows in parts)
        return right / counted

    observed = share([(first, slice(None))]) - share([(second, slice(None))])
    extreme = 0
    for mask in statistics.swap_masks(len(names), permutations=40):
        swap = np.isin(first.users, names[mask == 1])
        difference = share([(first, ~swap), (second, swap)]) - share([(second, ~swap), (first, swap)])
        extreme += abs(difference) >= abs(observed) - 1e-12
    row = next(row for row in compare(first, second, permutations=40) if row["metric"] == metric)
    assert row["p_users"] == pytest.approx((extreme + 1) / 41)


def test_breakdown_agrees_with_scoring_each_group(benchmark, results):
    answers = [a for a in read_runs(EDITION, results, "test") if a.key == "nt" and a.turns == 0]
    table = tables.breakdown_table(benchmark, answers, "test")
    frame = pd.read_parquet(run_folder(results, "tiny", "llava-mini", "nt", 0) / "predictions.parquet")
    scored = metrics.score(frame[(frame["split"] == "test") & (frame["turns"] == 0)])
    buckets = table[(table["grouping"] == "bucket") & (table["metric"] == "collapse")]
    expected = metrics.collapse_by_bucket(scored)
    assert buckets["n"].tolist() == expected["n"].tolist()
    assert buckets["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), nan_ok=True)
    pairs = table[(table["grouping"] == "pair") & (table["metric"] == "preference")].set_index("group")
    seen = scored[scored["index"].isin([len(TRAIN) + k for k in (0, 1, 2, 4)])]
    assert pairs.loc["pair seen in training", "n"] == 4
    assert pairs.loc["pair seen in training", "value"] == pytest.approx(seen["hit"].mean())
    assert set(table["grouping"]) == {"bucket", "facet", "question", "popularity", "pair"}


# What no profile tells


@pytest.fixture(scope="module")
def secret(benchmark) -> Benchmark:
    """The benchmark with kites, which cid and dan like, told by no profile."""
    users = {}
    for name, user in benchmark.users.items():
        likes = tuple(item for item in LIKES[name] if item != "kites")
        told = {"travel": Preference(likes=likes, dislikes=DISLIKES[name])}
        users[name] = user.model_copy(update={"preferences": told})
    names = benchmark.frame["name"]
    told = [
        "" if not item else "untold" if item == "kites" and item in LIKES[name] else
        "told" if item in (*LIKES[name], *DISLIKES[name]) else "other"
        for name, item in zip(names, benchmark.annotations["item"], strict=True)
    ]  # fmt: skip
    return replace(benchmark, users=users, annotations=benchmark.annotations.assign(told=told))


def test_rows_by_what_is_told_stand_in_every_table_and_only_where_profiles_do_not_tell_everything(
    benchmark, secret, built, results
):
    for path in results.rglob("predictions.parquet"):
        frame = pd.read_parquet(path)
        backbone, method, seed = key_of(path)
        keep(frame.merge(secret.told(list(secret.frame.index)), on="index"), results, backbone, method, seed)
    made = {name: tables.read_table(path) for name, path in tables.build(EDITION, secret, results=results).items()}
    before = {name: tables.read_table(path) for name, path in built[1].items()}
    split = ["auc_told", "auc_untold", "auc_untold_fresh"]
    for name in ("table1", "table2", "table1_seeds", "turns", "comparisons", "forest"):
        assert set(made[name]["metric"]) == {*metrics.METRICS, "auc_same", *split}, name
        assert not set(split) & set(before[name]["metric"]), name
    assert {"told_statistics"} == set(made) - set(before)
    told = made["breakdown"].query("grouping == 'told' and method == 'Profile reader' and turns == 0")
    found = told.set_index(["metric", "group"])["value"]
    assert found["preference", "told"] == 1 and found["recall", "untold, pair unseen in training"] == 0
    assert told.set_index(["metric", "group"])["n"].loc["preference"].tolist() == [5, 0, 1]
    counted = made["told_statistics"].query("split == 'test' and told == 'untold'")
    assert counted[["question_type", "liked", "fresh", "count"]].to_numpy().tolist() == [
        ["preference_yesno", "yes", 1, 1]
    ]


def test_who_knows_the_groups_likes_knows_what_no_profile_tells(benchmark, secret):
    assert references(benchmark, "test").keys() == {CHANCE, POPULAR, READER}
    assert untold_likes(benchmark) == {} and untold_likes(secret) == {
        ("travel", secret.users["dan"].preferences["travel"]): {"kites"}
    }  # nobody is asked about cid's
    found = references(secret, "test")
    wrong = {name: found[name][0].query("category == 'preference' and hit == 0") for name in (READER, GROUP)}
    assert wrong[GROUP].empty and wrong[READER]["name"].tolist() == ["dan"]
    assert wrong[READER]["item"].tolist() == ["kites"]


def test_every_row_says_what_it_is_shown_and_a_main_table_without_that_is_refused(built, tmp_path):
    made = {name: tables.read_table(path) for name, path in built[1].items()}
    expected = {
        "Non-tuned": "name", "Full fine-tuning": "name", "PrefMoE": "anchors of profile text and picture",
        "Chance": "nobody", "Popular choice": "population's answers", "Profile reader": "profile text read perfectly",
    }  # fmt: skip
    assert dict(zip(made["table1"]["method"], made["table1"]["information"], strict=True)) == expected
    assert readable(made["table1"].query("turns == 0"))["information"].to_dict() == expected
    shown = expected | {"Embedding": "tokens learned from answers"}
    for name in made.keys() - {"information", "dataset_statistics", "detectable", "told_statistics"}:
        for who in {"method", "baseline"} & {*made[name]}:
            told = made[name]["information" if who == "method" else "baseline_information"]
            assert all(shown[one] == one_told for one, one_told in zip(made[name][who], told, strict=True)), name
    beside = made["comparisons"].query("turns == 0")
    assert readable(beside, rows="baseline")["information"].to_dict().items() <= shown.items()
    information = made["information"].set_index("method")
    assert information["at_test"].to_dict() == shown
    assert information["in_training"].to_dict() == {
        "Non-tuned": "nothing", "Full fine-tuning": "name and answers", "Embedding": "answers",
        "PrefMoE": "anchors of profile text and picture and answers",
    } | {reference: np.nan for reference in (CHANCE, POPULAR, READER)}  # fmt: skip
    folder = tmp_path / "figures" / "tiny"
    shutil.copytree(built[0] / "tiny" / "figures", folder)
    made["table1"].drop(columns="information").to_csv(folder / "table1.csv", index=False)
    with pytest.raises(TableError, match=r"tiny/table1.csv: no column information, .* expected method, type, .*again"):
        tables.read_table(folder / "table1.csv")


def test_information_has_sizes_from_runs_and_practice_from_cards(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 0)
    story = {"edition": "tiny", "backbone": "llava-mini", "method": "full", "seed": 0}
    run_files.seal(path, story | {"parameters": {"trainable_total": 77}, "context_tokens": 13.5})
    table = information_table(EDITION, results).set_index("method")
    columns = ["context_tokens", "trainable_parameters"]
    assert table.loc["PrefMoE", columns].tolist() == [13.5, 77] and table.loc["Non-tuned", columns].isna().all()
    card = json.loads((weights_folder("llava-mini") / "miniature.json").read_text())
    steps = 0
    for phase in card["recipe"]["joint"]["phases"]:
        steps += phase["steps"] if phase.get("prefix") else 0
    assert set(table["practice"]) == {f"prefixes like PrefMoE's, {steps} steps"} and steps > 0
    shutil.move(results / "tiny/runs/llava-mini", results / "tiny/runs/llava-1.5-7b")
    hub = EDITION.model_copy(update={"backbones": ("llava-1.5-7b",), "ablation_backbone": "llava-1.5-7b"})
    assert set(information_table(hub, results)["practice"]) == {""}


def test_the_popular_choice_is_tested_like_every_other_row(benchmark, results, built):
    table = tables.read_table(built[1]["comparisons"])
    assert set(table["baseline"]) == {"Non-tuned", "Full fine-tuning", "Embedding", "Popular choice"}
    popular = [entry for entry in read_references(EDITION, benchmark, "test") if entry.method == POPULAR]
    runs = read_runs(EDITION, results, "test")
    for turns in (0, 10):
        first = next(entry for entry in runs if (entry.key, entry.turns) == ("full", turns))
        second = next(entry for entry in popular if entry.turns == turns)
        here = table[(table["baseline"] == POPULAR) & (table["turns"] == turns)].set_index("metric")
        for metric in first.metrics:
            difference = first.estimates[metric]["value"] - second.estimates[metric]["value"]
            assert here.loc[metric, "difference"] == pytest.approx(difference, abs=2e-6)
    assert table.query("metric == 'auc_same'")["p_users_holm"].notna().all()
    tests = table.query("metric == 'auc_same'")
    assert tests["p_users_holm"].to_numpy() == pytest.approx(statistics.holm(tests["p_users"]), abs=2e-6)


def test_a_run_without_probabilities_is_named(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 1) / "predictions.parquet"
    keep(pd.read_parquet(path).drop(columns=["p_yes", "p_no"]), results, *key_of(path))
    with pytest.raises(TableError, match=r"1 run\(s\).*\n.*full/seed1/predictions.parquet: no column p_yes, p_no"):
        tables.build(EDITION, benchmark, results=results)


# Uncertainty


MORE_TURNS = EDITION.model_copy(update={"evaluation": EDITION.evaluation.model_copy(update={"turns": (0, 5, 10)})})


def add_turns(results: Path, turns: int = 5) -> None:
    """Every run has answered after five turns as well: as after none, but for questions with an even index."""
    for path in results.rglob("predictions.parquet"):
        frame = pd.read_parquet(path)
        more = frame[frame["turns"] == 0].assign(turns=turns)
        more.loc[more["index"] % 2 == 0, "prediction"] = "perhaps"
        keep(pd.concat([frame, more]), results, *key_of(path))


def key_of(path: Path) -> tuple[str, str, int]:
    """Backbone, method and seed of a run's file."""
    backbone, method, seed = path.parts[-4:-1]
    return backbone, method, int(seed.removeprefix("seed"))


def test_turns_have_their_change_and_stay_out_of_the_paper_s_tables(benchmark, results):
    add_turns(results)
    written = tables.build(MORE_TURNS, benchmark, results=results)
    content = {name: tables.read_table(path) for name, path in written.items()}
    for name in ("table1", "table2", "table1_seeds", "comparisons", "breakdown", "forest", "unparsed"):
        assert set(content[name]["turns"]) == {0, 10}, name
    assert set(content["unseen"]["turns"]) == {0}  # all that the edition asks of new users
    table = content["turns"]
    assert table.groupby("method")["turns"].unique().map(list).tolist() == [[0, 5, 10]] * table["method"].nunique()
    row = table.set_index(["method", "turns", "metric"])
    assert (table.loc[table["turns"] == 0, ["change", "change_low", "change_high"]] == 0).all().all()
    for method in ("PrefMoE", "Embedding"):
        key = (method, 5, "overall")
        assert row.loc[key, "change"] == pytest.approx(row.loc[key, "value"] - row.loc[(method, 0, "overall"), "value"])
        assert row.loc[key, "change_low"] <= row.loc[key, "change"] <= row.loc[key, "change_high"] <= 0
    assert (table.loc[table["type"] == REFERENCE, "change"] == 0).all()


def two_backbones(results: Path) -> Edition:
    """The edition on a second backbone, whose runs answer as the first one's do with the seeds exchanged."""
    for path in list((results / "tiny" / "runs" / "llava-mini").rglob("predictions.parquet")):
        _, method, seed = key_of(path)
        keep(pd.read_parquet(path), results, "qwen2.5-vl-mini", method, 1 - seed if method != "nt" else seed)
    return EDITION.model_copy(update={"backbones": ("llava-mini", "qwen2.5-vl-mini")})


def test_the_forest_s_mean_resamples_all_backbones_together(benchmark, results):
    """Twice the same answers: the mean over backbones and its interval are those of either backbone."""
    edition = two_backbones(results)
    answers = read_runs(edition, results, "test")
    table = forest_table(edition, answers).set_index(["baseline", "backbone", "turns", "metric"])
    numbers = ["difference", "low", "high"]
    for baseline in ("Non-tuned", "Full fine-tuning"):
        for metric in metrics.METRICS:
            mean = table.loc[(baseline, ALL_BACKBONES, 0, metric), numbers].astype(float)
            alone = table.loc[(baseline, "llava-mini", 0, metric), numbers].astype(float)
            assert mean.tolist() == pytest.approx(alone.tolist(), nan_ok=True)
    assert ("Embedding", ALL_BACKBONES) not in table.droplevel(["turns", "metric"]).index  # one backbone only
    compared = comparisons_table(edition, answers).set_index(["baseline", "backbone", "turns", "metric"])
    for key, row in compared.iterrows():
        assert table.loc[key, numbers].astype(float).tolist() == pytest.approx(row[numbers].tolist(), nan_ok=True)


def test_detectable_differences_follow_the_bootstrap_and_the_number_of_comparisons(benchmark, results):
    answers = [a for a in read_runs(EDITION, results, "test") if a.turns == 0]
    table = detectable_table(EDITION, benchmark, answers, "test").set_index(["grouping", "group", "metric"])
    row = table.loc[("all", "all", "preference")]
    assert (row["n"], row["users"], row["methods"]) == (9, 3, 4)
    by_key = {a.key: a for a in answers}
    column = metrics.METRICS.index("preference")

    def error(values: np.ndarray) -> float:  # the same with a loop over users
        users = [values[answers[0].users == user].sum() for user in np.unique(answers[0].users)]
        return np.sqrt(3 / 2 * sum(value**2 for value in users))

    influence = {key: a.influences()[:, column] for key, a in by_key.items()}
    paired = np.median([error(influence["full"] - influence[key]) for key in ("nt", "fft", "e")])
    assert row["paired"] == pytest.approx(2.801585 * paired, rel=1e-6)
    unpaired = np.sqrt(2) * np.median([error(values) for values in influence.values()])
    assert row["unpaired"] == pytest.approx(2.801585 * unpaired, rel=1e-6)
    assert row["paired_corrected"] == pytest.approx((2.393980 + 0.841621) * paired, rel=1e-6)  # .05 / 3
    collapse = table.loc[("bucket", metrics.BUCKETS[0], "collapse")]
    assert collapse["n"] == round(answers[0].counted[..., 3].mean(axis=1).sum()) and collapse["users"] == 2
    alone = table[table["users"] < 2]
    assert (alone["n"] > 0).any()
    assert alone[["design_effect", "unpaired", "paired", "paired_corrected"]].isna().all(axis=None)


def test_calibration_and_reliability_are_per_kind_of_question(benchmark, results):
    answers = read_runs(EDITION, results, "test") + read_references(EDITION, benchmark, "test")
    table = tables.calibration_table(answers).set_index(["method", "turns", "metric"])
    assert not {CHANCE, POPULAR} & set(table.index.get_level_values("method"))
    row = table.loc[("PrefMoE", 0, "preference")]
    assert (row["n"], row["confidence"]) == (9, pytest.approx(0.95))
    entry = next(a for a in answers if (a.key, a.turns) == ("full", 0))
    assert row["accuracy"] == pytest.approx(entry.seed_values[:, 1].mean())
    assert row["value"] == pytest.approx(np.abs(entry.seed_values[:, 1] - 0.95).mean())  # all in one bin
    bins = tables.reliability_table(answers).set_index(["method", "turns", "metric"])
    assert bins.loc[("PrefMoE", 0, "preference"), "n"] == 2 * 9
    assert bins.loc[("PrefMoE", 0, "preference"), "value"] == pytest.approx(row["accuracy"])


def test_unreadable_answers_are_counted_by_kind_of_question(benchmark, results):
    add_turns(results)
    answers = [a for a in read_runs(MORE_TURNS, results, "test") if a.key == "full"]
    table = tables.unparsed_table(answers).set_index(["turns", "group"])
    even = [index % 2 == 0 for index in range(len(TRAIN), len(TRAIN) + len(TEST))]
    assert table.loc[(5, "all"), "value"] == pytest.approx(np.mean(even))
    assert table.loc[(5, "preference yes/no"), "value"] == pytest.approx(np.mean(even[:6]))
    clean = table.loc[(0, "preference yes/no")]
    assert (clean["value"], clean["low"], clean["n"]) == (0, 0, 6)
    assert clean["high"] == pytest.approx(1.959964**2 / (6 + 1.959964**2), rel=1e-5)
    assert table["allowed_mass"].tolist() == pytest.approx([0.9] * len(table))


def test_separation_knows_the_references(benchmark, results):
    answers = read_runs(EDITION, results, "test") + read_references(EDITION, benchmark, "test")
    table = tables.separation_table(answers).set_index(["method", "turns", "measure"])["value"]
    for measure in ("distance", "alignment", "auc", "auc_same"):
        assert table[READER, 0, measure] == pytest.approx(1)
    assert table[POPULAR, 0, "alignment"] == pytest.approx(0)
    assert table[POPULAR, 0, "auc_same"] == table[CHANCE, 0, "auc_same"] == pytest.approx(0.5)


def _row(**fields) -> dict:
    return {"backbone": "b", "method": "PrefMoE", "baseline": "LoRA", "metric": "recall", **fields}


def test_verdicts_follow_test_and_interval_and_the_direction_of_the_metric():
    rows = [
        _row(difference=0.1, p_users_holm=0.01),
        _row(metric="collapse", difference=0.1, p_users_holm=0.01),
        _row(metric="overall", difference=0.1, p_users_holm=0.2),
        _row(metric="profile", difference=0.0, p_users_holm=np.nan),
        _row(baseline="FFT", metric="collapse", difference=-0.1, p_users_holm=0.01),
    ]
    table = pd.DataFrame(rows)
    words = verdicts(table.assign(low=table["difference"] - 0.05, high=table["difference"] + 0.05))
    assert words.loc[("b", "PrefMoE", "LoRA")].tolist() == ["better", "worse", "not told apart", "–"]
    assert words.loc[("b", "PrefMoE", "FFT"), "collapse"] == "better"
    wide = verdicts(table.assign(low=table["difference"] - 0.15, high=table["difference"] + 0.15))
    assert set(wide.to_numpy().ravel()) - {np.nan} == {"not told apart", "–"}


def test_told_apart_is_asked_of_a_table_or_of_one_row():
    cases = [
        (0.02, 0.3, 0.01, True), (-0.3, -0.02, 0.01, True), (-0.02, 0.3, 0.01, False), (0.02, 0.3, 0.06, False),
        (0.0, 0.3, 0.01, False), (0.02, 0.3, np.nan, False), (np.nan, np.nan, 0.01, False),
    ]  # fmt: skip
    table = pd.DataFrame(cases, columns=["low", "high", "p_users_holm", "apart"])
    assert told_apart(table).tolist() == table["apart"].tolist()
    assert [bool(told_apart(row)) for _, row in table.iterrows()] == table["apart"].tolist()
    assert told_apart(table, alpha=0.1).tolist()[3] and not told_apart(table, alpha=0.005).any()


def test_one_is_counted_without_a_plural():
    assert [counted(k, "choice") for k in (0, 1, 8)] == ["0 choices", "1 choice", "8 choices"]
    assert [mean_of_seeds(k) for k in (1, 3)] == ["one seed", "mean of 3 seeds"]


def test_group_rises_compares_intervals_of_the_outer_groups():
    ends = {"rare": (0.1, 0.2), "middle": (0.5, 0.6), "popular": (0.25, 0.4)}
    rows = [
        {"method": "LoRA", "grouping": "popularity", "metric": metric, "group": group, "n": 20, "low": low,
         "high": high}
        for metric, shift in (("collapse", 0.0), ("recall", 0.05))
        for group, (low, high) in (ends | {"rare": (0.1, 0.2 + shift)}).items()
    ]  # fmt: skip
    words = group_rises(pd.DataFrame(rows)).loc["LoRA"]
    assert words["rare → popular items"].to_dict() == {"collapse": "rises", "recall": "not told apart"}
    assert set(words["small → large groups"]) == {"–"}
    few = [row | {"n": 19} if row["group"] == "rare" and row["metric"] == "collapse" else row for row in rows]
    words = group_rises(pd.DataFrame(few)).loc["LoRA", "rare → popular items"]
    assert words.to_dict() == {"collapse": "too few questions", "recall": "not told apart"}


def test_readable_keeps_the_order_and_shows_intervals_where_there_are_any():
    rows = [("z", "recall", 0.5, 0.4, 0.6), ("z", "collapse", -0.0001, np.nan, np.nan), ("a", "recall", np.nan, 0, 1)]
    grid = readable(pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high"]))
    assert grid.columns.tolist() == ["recall", "collapse"] and grid.index.tolist() == ["z", "a"]
    assert grid.to_numpy().tolist() == [["0.500 [0.400, 0.600]", "0.000"], ["–", "–"]]


def test_missing_values_of_any_table_are_dashes_and_numbers_keep_their_places():
    nothing = float("nan")
    table = pd.DataFrame(
        {
            "at_test": ["names", None, "text"],
            "parameters": [9512.0, nothing, 0.0],
            "value": [0.5, -0.00001, nothing],
            "n": [8, 9, 10],
            "empty": [nothing] * 3,
        },
        index=["a", "b", "b"],
    )
    shown = with_dashes(table)
    assert shown.index.equals(table.index) and shown.columns.equals(table.columns)
    assert shown.to_numpy().tolist() == [
        ["names", "9512", "0.500", 8, "–"],
        ["–", "–", "0.000", 9, "–"],
        ["text", "0", "–", 10, "–"],
    ]
    assert with_dashes(table, 1)["value"].tolist() == ["0.5", "0.0", "–"]
    assert table["value"].isna().sum() == 1


def test_popularity_groups_are_thirds_of_the_items(benchmark):
    groups = popularity_groups(benchmark)
    items = depicted_items(benchmark)
    by_item = {items[index]: group for index, group in groups.items()}
    assert by_item["tea"] == "popular" and by_item["maps"] == "rare" and by_item["ice"] == "rare"


def test_missing_runs_are_all_named(benchmark, results):
    for key, seed, file in (("fft", 1, "run.json"), ("full", 0, "predictions.parquet")):
        (run_folder(results, "tiny", "llava-mini", key, seed) / file).unlink()
    with pytest.raises(TableError, match="(?s)2 run.*tiny.*fft/seed1: no finished.*full/seed0/pred.*: missing"):
        tables.build(EDITION, benchmark, results=results)
    assert not (results / "tiny" / "figures").exists()


def test_runs_with_other_questions_are_refused(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "full", 1) / "predictions.parquet"
    frame = pd.read_parquet(path)
    keep(frame[frame["index"] != len(TRAIN)], results, *key_of(path))
    with pytest.raises(TableError, match="full/seed1.*9 test questions with 0 turns.*other runs' 10"):
        read_runs(EDITION, results, "test")


def test_answers_that_changed_since_the_run_ended_are_refused_by_name(benchmark, results):
    """Whatever the change: a lone bit, half a file, another run's answers, another run's whole folder."""
    runs = {seed: run_folder(results, "tiny", "llava-mini", "full", seed) for seed in (0, 1)}
    path = runs[0] / "predictions.parquet"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    for damage in (bytes(flipped), whole[: len(whole) // 2], b"", (runs[1] / path.name).read_bytes()):
        path.write_bytes(damage)
        with pytest.raises(TableError, match="full/seed0/predictions.parquet: changed since the run"):
            read_runs(EDITION, results, "test")
    path.write_bytes(whole)
    read_runs(EDITION, results, "test")
    shutil.rmtree(runs[0])
    shutil.copytree(runs[1], runs[0])
    with pytest.raises(TableError, match="full/seed0/run.json, seed: expected 0, found 1"):
        read_runs(EDITION, results, "test")


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "<html>Please log in</html>", "{}", '{"files": null}'])
def test_a_story_that_is_no_run_s_is_refused_by_name(benchmark, results, content):
    (run_folder(results, "tiny", "llava-mini", "e", 1) / "run.json").write_text(content)
    with pytest.raises(TableError, match="1 run(?s:.*)e/seed1/run.json: expected"):
        read_runs(EDITION, results, "test")


def test_a_story_that_was_edited_is_refused_by_name(benchmark, results):
    path = run_folder(results, "tiny", "llava-mini", "e", 1) / "run.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 1, "steps": 3'))
    with pytest.raises(TableError, match="e/seed1/run.json: changed since"):
        read_runs(EDITION, results, "test")


def test_gates_are_averaged_over_seeds(benchmark, results):
    runs = [
        pd.read_parquet(run_folder(results, "tiny", "llava-mini", "full", seed) / "predictions.parquet")
        for seed in (0, 1)
    ]
    runs = [run[(run["split"] == "test") & (run["turns"] == 0)] for run in runs]
    table = tables.gates_table(runs).set_index(["router", "group", "expert"])
    row = table.loc[("task", "preference, travel", 0)]
    assert (row["value"], row["n"]) == (pytest.approx(0.5), 9)
    assert set(table.index.get_level_values("group")) == {"preference, travel", "recognition, yes/no"}
    with pytest.raises(TableError, match="no gates"):
        tables.gates_table([runs[0].drop(columns=["gate_task_0", "gate_task_1"])])


def test_popularity_and_group_sizes(benchmark):
    popularity = item_popularity(benchmark)
    assert popularity.set_index("item")["users"].to_dict() == {"tea": 3, "jam": 2, "kites": 2, "ice": 1, "maps": 0}
    sizes = group_sizes(benchmark)
    assert sizes["users"].tolist() == [2, 1, 1] and sizes["rank"].tolist() == [0, 1, 2]


def test_dataset_statistics(benchmark):
    table = dataset_statistics(benchmark).set_index(["question_type", "split"])["count"]
    assert table["preference_yesno", "train"] == 8 and table["preference_mcq", "test"] == 3
    assert table.sum() == len(TRAIN) + len(TEST) + len(UNSEEN)
