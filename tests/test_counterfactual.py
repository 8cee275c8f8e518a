"""Counterfactual users: near somebody in their family facet, nobody's copy, decided by the seed."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_mmpb import make, rows, write_pseudo_users, write_split
from work import bytecodes

from prefmoe.data import counterfactual, mmpb, prompts
from prefmoe.data.benchmark import FACETS, Benchmark
from prefmoe.data.mmpb import MMPBError
from prefmoe.system.places import data_folder

REAL = data_folder(None)
real_rows = pytest.mark.skipif(REAL is None, reason="PREFMOE_DATA does not point to the real rows")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Benchmark:
    folder = make(tmp_path_factory.mktemp("drawn") / "data")
    write_split(folder, train=list(range(0, 15)), test=[15], unseen=list(range(16, 20)))
    return mmpb.read(folder)


def trained(benchmark: Benchmark):
    return [benchmark.users[name] for name in benchmark.trained_users]


def as_sets(preference):
    return set(preference.likes), set(preference.dislikes)


def check(benchmark: Benchmark, users: list[counterfactual.PseudoUser], *, in_turn: bool = True) -> None:
    """What holds for generated users, told from the sentences alone."""
    population = trained(benchmark)
    novel = []
    for number, user in enumerate(users):
        assert user.family == FACETS[number % 5] or not in_turn
        assert set(user.preferences) == set(FACETS)
        for facet in FACETS:
            sentence = prompts.facet_sentence(user, facet)
            held = [prompts.facet_sentence(real, facet) for real in population if facet in real.preferences]
            assert (sentence in held) == (facet != user.family)
        likes, dislikes = as_sets(counterfactual.parse_phrase(user.preferences[user.family]))
        assert not likes & dislikes
        distances = [
            len(likes - real_likes) + len(dislikes - real_dislikes)
            for real in population
            if user.family in real.preferences
            for real_likes, real_dislikes in [as_sets(real.preferences[user.family])]
        ]
        assert min(distances) == 1
        novel.append((user.family, frozenset(likes), frozenset(dislikes)))
        assert user.description not in {real.description for real in benchmark.users.values()}
        words = set(re.findall(r"\w+", " ".join(real.description for real in population)))
        assert set(re.findall(r"\w+", user.description)) <= words
        assert "<sks>" not in prompts.description_text(user)
    assert len(set(novel)) == len(users)
    assert len({user.name for user in users}) == len(users)


def test_generated_users_are_near_somebody_and_nobody(drawn):
    check(drawn, counterfactual.generate(drawn, 15, seed=3))


@real_rows
def test_generated_users_of_the_public_subset():
    benchmark = mmpb.read(REAL)
    check(benchmark, counterfactual.generate(benchmark, 20, seed=0))


def test_the_seed_decides_and_fewer_users_are_the_first_of_more(drawn):
    users = counterfactual.generate(drawn, 10, seed=1)
    assert counterfactual.generate(drawn, 10, seed=1) == users
    assert counterfactual.generate(drawn, 4, seed=1) == users[:4]
    assert counterfactual.generate(drawn, 10, seed=2) != users
    assert counterfactual.generate(drawn, 0) == []


def test_users_outside_the_training_split_are_not_used(drawn):
    """Zoe is unseen and alone in liking e and f together: no counterfactual user has her preference."""
    assert "Zoe" not in drawn.trained_users
    zoe = drawn.users["Zoe"]
    for user in counterfactual.generate(drawn, 30, seed=0):
        for facet in set(FACETS) - {user.family}:
            assert user.preferences[facet] != prompts.preference_phrase(zoe.preferences[facet])


def test_popular_preferences_are_more_often_the_base(drawn):
    """Two of three trained users share a preference; most counterfactual users start from it."""
    near = []
    for seed in range(60):
        (user,) = counterfactual.generate(drawn, 1, seed=seed)
        likes, dislikes = as_sets(counterfactual.parse_phrase(user.preferences["entertainment"]))
        real = as_sets(drawn.users["Ann"].preferences["entertainment"])
        near.append(len(likes - real[0]) + len(dislikes - real[1]) == 1)
    assert 0.5 < sum(near) / len(near) < 0.85


def without(benchmark: Benchmark, *facets: str) -> Benchmark:
    """The benchmark in which nobody has a preference in some facets."""
    users = {
        name: user.model_copy(update={"preferences": {f: p for f, p in user.preferences.items() if f not in facets}})
        for name, user in benchmark.users.items()
    }
    return replace(benchmark, users=users)


def test_when_combinations_are_exhausted_there_are_fewer_users_and_a_warning(drawn, caplog):
    users = counterfactual.generate(drawn, 5000)
    check(drawn, users, in_turn=False)
    assert f"{len(users)} of 5000 counterfactual users" in caplog.text
    assert counterfactual.generate(drawn, 5000)[:40] == counterfactual.generate(drawn, 40)
    sizes = Counter(user.family for user in users)
    assert set(sizes) == set(FACETS) and len(set(sizes.values())) == 1  # the same people hold all facets


@pytest.mark.parametrize("absent", [("travel",), ("entertainment", "fashion"), FACETS])
def test_facets_in_which_nobody_has_a_preference_have_no_counterfactual_users(drawn, tmp_path, caplog, absent):
    small = without(drawn, *absent)
    users = counterfactual.generate(small, 6)
    present = [facet for facet in FACETS if facet not in absent]
    assert [user.family for user in users] == (present * 6)[:6]
    assert all(list(user.preferences) == present for user in users)
    assert f"in {', '.join(absent)}: no user" in caplog.text
    for row in counterfactual.groups(users, small):
        assert [row[FACETS.index(facet)] for facet in absent] == [-1] * len(absent)
    write_pseudo_users(users, tmp_path / "pseudo_users.csv")
    assert counterfactual.read(tmp_path / "pseudo_users.csv") == users


@pytest.mark.parametrize("train", [[12], [0], [0, 12], [0, 4, 8]])
def test_one_to_three_users_are_enough_or_none_are_made(tmp_path, train):
    folder = make(tmp_path / "data")
    write_split(folder, train=train, test=[13])
    assert rows()[12]["name"] == "asian_doll"  # who has no preferences
    benchmark = mmpb.read(folder)
    users = counterfactual.generate(benchmark, 10)
    # A lone preference leaves no other item to exchange one with.
    assert bool(users) == (train == [0, 4, 8])
    check(benchmark, users)


def test_a_users_cost_does_not_grow_with_the_population(drawn):
    """What is looked through for each counterfactual user is found once: instructions of those beyond the first."""
    people = [drawn.users["Ann"], drawn.users["Bo"]]
    row = next(iter(drawn.examples.values()))

    def further(count: int) -> int:
        users = {f"{k}": people[k % 2].model_copy(update={"name": f"{k}"}) for k in range(count)}
        examples = {k: row.model_copy(update={"index": k, "name": f"{k}"}) for k in range(count)}
        crowd = replace(drawn, users=users, examples=examples, splits=drawn.splits | {"train": tuple(range(count))})
        few, many = (bytecodes(lambda n=n: counterfactual.generate(crowd, n), "counterfactual.py") for n in (1, 11))
        return many - few

    assert further(400) < 2 * further(40)


def test_groups_are_the_real_groups_except_in_the_family(drawn):
    users = counterfactual.generate(drawn, 10, seed=5)
    table = counterfactual.groups(users, drawn)
    for user, row in zip(users, table, strict=True):
        for column, facet in enumerate(FACETS):
            sentence = prompts.facet_sentence(user, facet)
            same = {
                drawn.groups[drawn.row(real.name)][column]
                for real in trained(drawn)
                if prompts.facet_sentence(real, facet) == sentence
            }
            assert same == (set() if row[column] == -1 else {row[column]})
            assert (row[column] == -1) == (facet == user.family)


def test_the_csv_is_read_back_exactly(drawn, tmp_path):
    users = counterfactual.generate(drawn, 7)
    write_pseudo_users(users, tmp_path / "pseudo_users.csv")
    assert counterfactual.read(tmp_path / "pseudo_users.csv") == users
    assert [path.name for path in tmp_path.iterdir()] == ["pseudo_users.csv"]


def test_free_words_make_facet_sentences_and_belong_to_no_group(drawn):
    user = counterfactual.PseudoUser(
        pseudo_id=0, name="PseudoTravel", family="travel", description="A virtual user",
        preferences=dict.fromkeys(FACETS, "quiet travel"), uid_seed=1, image_seed=2,
    )  # fmt: skip
    assert prompts.facet_sentence(user, "travel") == "User preference in travel: quiet travel"
    assert counterfactual.groups([user], drawn) == [[-1] * 5]


@pytest.mark.parametrize(
    ("phrase", "likes", "dislikes"),
    [
        ("enjoys a, b, dislikes c, d", ("a", "b"), ("c", "d")),
        ("enjoys a", ("a",), ()),
        ("dislikes c, d", (), ("c", "d")),
    ],
)
def test_phrases_are_read_back(phrase, likes, dislikes):
    preference = counterfactual.parse_phrase(phrase)
    assert (preference.likes, preference.dislikes) == (likes, dislikes)
    assert prompts.preference_phrase(preference) == phrase


def test_users_of_a_file_are_in_the_order_of_their_ids(drawn, tmp_path):
    """The first two of each family are negatives of recognition, whoever wrote the file."""
    users = counterfactual.generate(drawn, 6)
    for name, order in (("a.csv", users), ("b.csv", users[::-1])):
        write_pseudo_users(order, tmp_path / name)
    assert counterfactual.read(tmp_path / "b.csv") == counterfactual.read(tmp_path / "a.csv")


def test_mistakes_in_the_csv_are_named(tmp_path):
    path = tmp_path / "pseudo_users.csv"
    header = ",".join(counterfactual.COLUMNS)
    path.write_text(f"{header}\n0,A,cooking,d,a,b,c,d,e,1,2\n0,B,travel,,a,b,c,d,e,1,x\n2,C,fashion,d,a,b,c,d,,1,2\n")
    with pytest.raises(MMPBError) as caught:
        counterfactual.read(path)
    places = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert [place.split(" (index")[0] for place in places] == [
        "pseudo_users.csv, line 2, field concept_family",
        "pseudo_users.csv, line 3, field image_seed",
        "pseudo_users.csv, line 3, field pseudo_id",
        "pseudo_users.csv, line 3, field description_text",
        "pseudo_users.csv, line 4, field pref_fashion",
    ]


@real_rows
def test_the_published_csv_survives_the_round_trip(tmp_path):
    path = Path(REAL) / "mmpb_clean" / "pseudo_users.csv"
    users = counterfactual.read(path)
    assert [user.family for user in users] == list(FACETS)
    assert users[1].preferences["travel"] == "beach trips"
    write_pseudo_users(users, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()
