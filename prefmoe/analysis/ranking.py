"""Recommendation and retrieval: all items ranked for every user, measured, with recommenders that see answers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import comb
from sklearn.metrics import ndcg_score

from prefmoe.analysis import recommenders, statistics
from prefmoe.analysis.answers import NO_BACKBONE
from prefmoe.analysis.comparisons import focus_method
from prefmoe.analysis.references import CHANCE
from prefmoe.analysis.tables import write_csv
from prefmoe.config import RESULTS, Edition, MiniatureData
from prefmoe.config.outputs import made_folder
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.drawing import ITEM_FACET
from prefmoe.data.people import people

RANKING_COLUMNS = (
    "method", "backbone", "information", "users", "items", "liked", "k", "measure", "value", "low", "high", "n",
    "seeds", "galleries", "sd_seeds", "sd_galleries",
)  # fmt: skip

COMPARISON_COLUMNS = (
    "method", "baseline", "backbone", "users", "items", "liked", "k", "measure", "difference", "low", "high", "n",
    "cases", "agree", "p_users", "p_users_holm",
)  # fmt: skip

RECOMMENDED_COLUMNS = ("user", "users", "method", "place", "item", "liked")

DEPTHS = (5, 10)
"""How many items a list holds: the k of every measure."""

OTHERS = 3
"""Pictures beside the liked one, of which it is to be picked."""

TRAINED, UNSEEN = "trained", "unseen"
FRESH, ALL = "fresh", "all"
TOLD, UNTOLD = "told", "untold"


class RankingError(ValueError):
    """Items that cannot be ranked as asked; the message says what was expected."""


@dataclass(frozen=True)
class Taste:
    """What U users truly like of I items, and what training and validation answers say of it.

    Attributes:
        told, untold: (U, I) bool, whether it is liked and the user's profile tells so, or no profile does.
        training, validation: (U, I) 1 where an answer of the split says that the user likes the item, -1 where one
            says the opposite, 0 where it was not asked about.
        trained: (U,) bool, whether there are training questions about the user.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    told: NDArray
    untold: NDArray
    training: NDArray
    validation: NDArray
    trained: NDArray

    @property
    def likes(self) -> NDArray:
        return self.told | self.untold

    @property
    def popularity(self) -> NDArray:
        """(I,) how many users liked an item in their training answers."""
        return (self.training > 0).sum(axis=0).astype(float)

    def chosen(self, items: str, liked: str) -> tuple[NDArray, NDArray]:
        """(U, I) candidates, and the relevant ones among them.

        ``items``: "fresh", never asked about in training of this user, or "all". ``liked``: "all" likes; those that
        are "told" or "untold", where likes of the other kind are no candidates.
        """
        relevant = {ALL: self.likes, TOLD: self.told, UNTOLD: self.untold}[liked]
        candidates = (self.training == 0) | (items == ALL)
        candidates = candidates & (relevant | ~self.likes)
        return candidates, relevant & candidates


def check(edition: Edition, depths: Sequence[int] = DEPTHS, galleries: int = 1) -> None:
    """Raises RankingError if the edition is not about the miniature, a depth is none of 1 to the number of items or is
    given twice, or there is no gallery."""
    if galleries < 1:
        raise RankingError(f"{galleries} pictures of every item: expected one at least")
    if not isinstance(edition.data, MiniatureData):
        raise RankingError(
            f"edition {edition.name!r}: data are {edition.data.kind}; expected a miniature, whose true tastes are known"
        )
    for k in depths:
        if not 1 <= k <= len(ITEM_FACET):
            raise RankingError(f"k = {k}: expected a number from 1 to {len(ITEM_FACET)}, the items there are")
        if list(depths).count(k) > 1:
            raise RankingError(f"k = {k}: given more than once")


def taste_of(edition: Edition, benchmark: Benchmark) -> Taste:
    """The true tastes behind an edition's benchmark, and its answers. Raises RankingError if they are unknown."""
    check(edition, ())
    seen, unseen = people(edition.data)
    persons = {person.name: person for person in (*seen, *unseen)}
    if strangers := [name for name in benchmark.users if name not in persons]:
        raise RankingError(f"the benchmark has users who are not of edition {edition.name!r}: {', '.join(strangers)}")
    users, items = tuple(benchmark.users), tuple(ITEM_FACET)

    def marked(name: str) -> NDArray:
        return np.array([[item in getattr(persons[user], name) for item in items] for user in users])

    training, validation = (answered(benchmark, split, items) for split in ("train", "validation"))
    return Taste(
        users, items, marked("told_likes"), marked("untold_likes"), training, validation, (training != 0).any(axis=1)
    )


def answered(benchmark: Benchmark, split: str, items: Sequence[str]) -> NDArray:
    """(U, I) what the true answers of a split say: 1 liked, -1 not, 0 not asked. What a choice among four is about
    counts as liked or not, as it is asked; the pictures beside it do not count."""
    place = {item: column for column, item in enumerate(items)}
    found = np.zeros((len(benchmark.users), len(items)), dtype=int)
    for index, item in benchmark.annotations["item"].reindex(benchmark.splits[split]).items():
        example = benchmark.examples[index]
        if item and example.category == "preference":
            liked = example.target == "like" if example.is_multiple_choice else example.l2_category == "awareness"
            found[benchmark.row(example.name), place[item]] = 1 if liked else -1
    return found


# --- measures; ties are broken by chance: what is measured is the mean over all orders of tied items


def exposure(scores: NDArray, candidates: NDArray, k: int) -> NDArray:
    """(U, I) the probability that an item is among the k best candidates of a user.

    Raises RankingError if a user has fewer than k candidates, or a score is not a number.
    """
    if np.isnan(scores[candidates]).any():
        raise RankingError("a score is not a number")
    if (few := candidates.sum(axis=1) < k).any():
        row = int(np.argmax(few))
        raise RankingError(f"k = {k}: user {row} has {candidates[row].sum()} items to rank; expected as many at least")
    masked = np.where(candidates, scores, -np.inf)
    last = -np.sort(-masked, axis=1)[:, k - 1 : k]  # the k-th best
    above, tied = masked > last, candidates & (masked == last)
    return above + tied * (k - above.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)


def ndcg(scores: NDArray, candidates: NDArray, relevant: NDArray, k: int) -> NDArray:
    """(U,) NDCG@k (Jarvelin and Kekalainen 2002) of every user; NaN without a relevant item."""
    found = np.full(len(scores), np.nan)
    for row in np.flatnonzero(relevant.any(axis=1)):
        inside = candidates[row]
        found[row] = ndcg_score(relevant[row][None, inside], scores[row][None, inside], k=k)
    return found


def picked(scores: NDArray, candidates: NDArray, relevant: NDArray, others: int = OTHERS) -> NDArray:
    """(U,) the probability that a relevant item has a higher score than ``others`` irrelevant ones, mean over all
    such sets; t of them that are tied with it share the pick. NaN without a relevant item or enough others."""
    found = np.full(len(scores), np.nan)
    for row in range(len(scores)):
        right, wrong = scores[row][relevant[row]], scores[row][candidates[row] & ~relevant[row]]
        if len(right) and len(wrong) >= others:
            below, tied = ((right[:, None] > wrong).sum(axis=1), (right[:, None] == wrong).sum(axis=1))
            ways = sum(comb(below, others - t) * comb(tied, t) / (t + 1) for t in range(others + 1))
            found[row] = (ways / comb(len(wrong), others)).mean()
    return found


def measures(taste: Taste, scores: NDArray, items: str, liked: str, depths: Sequence[int]) -> dict[tuple, NDArray]:
    """By measure and k (0 without): (U, 2) numerators and denominators, whose sums' ratio over users is the measure.

    ndcg, recall (share of the relevant items in the list) and pick are means over users; lift is how much more popular
    a list is than what the user likes of the candidates, as a ratio (Abdollahpouri et al. 2020, less their 1).
    """
    candidates, relevant = taste.chosen(items, liked)
    popularity, count = taste.popularity, relevant.sum(axis=1)
    found: dict[tuple, NDArray] = {}

    def mean(values: NDArray) -> NDArray:
        known = ~np.isnan(values)
        return np.stack([np.where(known, values, 0.0), known], axis=1)

    for k in depths:
        shown = exposure(scores, candidates, k)
        found["ndcg", k] = mean(ndcg(scores, candidates, relevant, k))
        found["recall", k] = mean(statistics.ratio((shown * relevant).sum(axis=1), count))
        if liked == ALL:
            own = statistics.ratio(relevant @ popularity, count)
            lists = np.where(np.isnan(own), np.nan, shown @ popularity / k)
            found["lift", k] = np.stack([mean(lists)[:, 0], mean(own)[:, 0]], axis=1)
    found["pick", 0] = mean(picked(scores, candidates, relevant))
    return found


def coverage(taste: Taste, scores: NDArray, items: str, k: int, rows: NDArray) -> float:
    """Share of all items that are in some user's list, expected where ties are broken by chance. ``rows``: (U,)."""
    shown = exposure(scores, taste.chosen(items, ALL)[0], k)[rows]
    return float((1 - (1 - shown).prod(axis=0)).mean())


# --- tables


@dataclass(frozen=True)
class Row:
    """Whose scores a row of the tables is about; ``key`` is empty for a reference, which looks at no picture.

    ``information``: what is shown of the users, of `TRAINED` and of `UNSEEN` ones.
    ``scores``: (S, G, U, I), of each of ``seeds`` and of G galleries, which are sets of a picture of every item.
    """

    method: str
    backbone: str
    information: Mapping[str, str]
    key: str
    seeds: tuple[int, ...]
    scores: NDArray


def rows_of(edition: Edition, scores: Mapping[tuple[str, str], Mapping[int, NDArray]]) -> list[Row]:
    """The methods whose scores, (G, U, I) of every seed, are given by backbone and key."""
    rows = []
    for (backbone, key), by_seed in scores.items():
        method, copies = edition.methods[key], np.stack(list(by_seed.values()))
        information = {TRAINED: method.information, UNSEEN: method.information_unseen}
        rows.append(Row(method.label, backbone, information, key, tuple(by_seed), copies))
    return rows


def tables(edition: Edition, taste: Taste, rows: Sequence[Row], depths: Sequence[int]) -> list[pd.DataFrame]:
    """What every row comes to, and some rows beside others: the columns of `RANKING_COLUMNS` and `COMPARISON_COLUMNS`.

    A user's result is the mean over seeds and galleries, and intervals resample users; coverage, which is of all users
    at once, has none. What another seed or other pictures would change is told by sd_seeds, the standard deviation of
    the seeds' values (each a mean over galleries), and sd_galleries, that of the galleries' (over seeds).

    The edition's PrefMoE is compared with every other row of its backbone, every method with every recommender, and a
    recommender with those before it in `recommenders.KNOWN` (where users were trained on; a family of its own):
    difference is the method's value minus the baseline's on the same users, p_users exchanges two rows' results of
    whole users, and Holm's correction runs over the comparisons of the same measure, k, users, items and likes. Of all
    pairs of the same seed and gallery (cases; who has one stands beside all of the other's) agree counts those in which
    the difference has the sign that it has on average.
    """
    focus, estimates, comparisons = focus_method(edition), [], []
    for users, items, liked in _parts(taste):
        member = taste.trained == (users == TRAINED)
        part = {"users": users, "items": items, "liked": liked}
        sums = []
        for row in rows:
            seeds, galleries = row.scores.shape[:2]
            copies = [[measures(taste, copy, items, liked, depths) for copy in line] for line in row.scores]
            sums.append({k: np.array([[one[k][member] for one in line] for line in copies]) for k in copies[0][0]})
            first = {"method": row.method, "backbone": row.backbone, "information": row.information[users], **part}
            first |= {"seeds": seeds, "galleries": galleries}
            for (measure, k), values in sums[-1].items():
                where, less = first | {"measure": measure, "k": k}, float(measure == "lift")
                spread = _spread(statistics.ratio(values[..., 0].sum(axis=2), values[..., 1].sum(axis=2)))
                estimates.append(where | _estimate(values.mean(axis=(0, 1)), less) | spread)
            for k in depths if liked == ALL else ():
                shares = np.array([[coverage(taste, one, items, k, member) for one in line] for line in row.scores])
                value = {"value": float(shares.mean()), "n": int(member.sum())}
                estimates.append(first | {"measure": "coverage", "k": k} | value | _spread(shares))
        for (one, mine), (other, theirs) in product(zip(rows, sums, strict=True), repeat=2):
            if _compared(one, other, focus, users):
                who = {"method": one.method, "baseline": other.method, "backbone": one.backbone, **part}
                for (measure, k), values in mine.items():
                    where = who | {"measure": measure, "k": k}
                    means = (side.mean(axis=(0, 1)) for side in (values, theirs[measure, k]))
                    agree = _agreement(one.seeds, values, other.seeds, theirs[measure, k])
                    comparisons.append(where | _difference(*means) | agree)
    compared = pd.DataFrame(comparisons, columns=list(COMPARISON_COLUMNS[:-1]))
    recommended = compared["backbone"] == NO_BACKBONE
    family = compared.groupby(["users", "items", "liked", "measure", "k", recommended.rename("recommended")])["p_users"]
    compared["p_users_holm"] = family.transform(statistics.holm)
    return [pd.DataFrame(estimates, columns=list(RANKING_COLUMNS)), compared]


def _compared(one: Row, other: Row, focus: str, users: str) -> bool:
    """Whether a table has the first row beside the second."""
    known = list(recommenders.KNOWN)
    if one.key:
        beside = other.backbone in (one.backbone, NO_BACKBONE) and other is not one
        return beside and (one.key == focus or other.method in known)
    return users == TRAINED and one.method in known and other.method in known[: known.index(one.method)]


def references(taste: Taste) -> tuple[list[Row], pd.DataFrame]:
    """Chance, recommenders and the taste itself, and what was tried of the recommenders (`recommenders.fit`)."""

    def row(name: str, scores: NDArray, trained: str, unseen: str) -> Row:
        seeds = tuple(range(len(scores)))
        return Row(name, NO_BACKBONE, {TRAINED: trained, UNSEEN: unseen}, "", seeds, scores[:, None])

    fitted, trials = recommenders.fit(taste.training, taste.validation)
    rows = [row(CHANCE, np.zeros((1, *taste.told.shape)), "nobody", "nobody")]
    known = recommenders.KNOWN
    rows += [row(name, scores, known[name], recommenders.KNOWN_UNSEEN) for name, scores in fitted.items()]
    return [*rows, row("True taste", taste.likes.astype(float)[None], "everything", "everything")], trials


def _parts(taste: Taste) -> list[tuple[str, str, str]]:
    """Users, items and likes that are looked at; of unseen users nothing was asked, and all items are fresh."""
    groups = [(TRAINED, FRESH), (TRAINED, ALL), (UNSEEN, FRESH)]
    there = [group for group in groups if (taste.trained == (group[0] == TRAINED)).any()]
    kinds = (ALL, TOLD, UNTOLD) if taste.untold.any() else (ALL,)  # without untold likes all of them are told
    return [(*group, liked) for group in there for liked in kinds]


def _spread(values: NDArray) -> dict[str, float]:
    """sd_seeds and sd_galleries of the values (S, G) of every seed and gallery."""
    return {
        "sd_seeds": statistics.seed_spread(values.mean(axis=1)),
        "sd_galleries": statistics.seed_spread(values.mean(axis=0)),
    }


def _agreement(seeds: Sequence[int], mine: NDArray, others: Sequence[int], theirs: NDArray) -> dict[str, int]:
    """cases and agree (`tables`) of sums over users, (S, G, U, 2) of each side."""
    pairs = [(s, t) for s in range(len(seeds)) for t in range(len(others))]
    if min(len(seeds), len(others)) > 1:
        pairs = [(s, t) for s, t in pairs if seeds[s] == others[t]]
    apart = np.stack([(mine[s] - theirs[t])[..., 0].sum(axis=1) for s, t in pairs])  # (cases' seeds, G)
    whole = mine[..., 0].sum(axis=2).mean() - theirs[..., 0].sum(axis=2).mean()
    return {"cases": apart.size, "agree": int((np.sign(apart) == np.sign(whole)).sum())}


def _estimate(values: NDArray, less: float) -> dict[str, float]:
    """value, low, high and n of a ratio of sums over users, (U, 2), less a constant."""
    value = statistics.ratio(*values.sum(axis=0)) - less
    low, high = statistics.interval(statistics.ratio_bootstrap(*values.T) - less, len(values))
    return {"value": float(value), "low": low, "high": high, "n": int((values[:, 1] > 0).sum())}


def _difference(first: NDArray, second: NDArray) -> dict[str, float]:
    """How much the first of two ratios is larger, on the same users (their denominators are equal), and its p."""
    apart, total = first[:, 0] - second[:, 0], first[:, 1].sum()
    swapped = (apart.sum() - 2 * statistics.swap_masks(len(apart)) @ apart) / total
    observed = apart.sum() / total
    low, high = statistics.interval(statistics.ratio_bootstrap(apart, first[:, 1]), len(apart))
    row = {"difference": observed, "low": low, "high": high, "n": int((first[:, 1] > 0).sum())}
    return row | {"p_users": float(statistics.permutation_p(observed, swapped))}


def recommended_table(taste: Taste, rows: Sequence[Row], k: int = 5) -> pd.DataFrame:
    """The k best fresh items for the first two trained users and the first unseen one, and whether they are liked: the
    columns of `RECOMMENDED_COLUMNS`, of every row's first seed and gallery; ties in the order of items."""
    candidates, _ = taste.chosen(FRESH, ALL)
    found = []
    for user in [*np.flatnonzero(taste.trained)[:2], *np.flatnonzero(~taste.trained)[:1]]:
        where = {"user": taste.users[user], "users": TRAINED if taste.trained[user] else UNSEEN}
        for row in rows:
            best = np.argsort(np.where(candidates[user], -row.scores[0, 0, user], np.inf), kind="stable")[:k]
            for place, item in enumerate(best, 1):
                liked = TOLD if taste.told[user, item] else UNTOLD if taste.untold[user, item] else "no"
                shown = {"method": row.method, "place": place, "item": taste.items[item], "liked": liked}
                found.append(where | shown)
    return pd.DataFrame(found, columns=list(RECOMMENDED_COLUMNS))


def write(
    edition: Edition,
    taste: Taste,
    scores: Mapping[tuple[str, str], Mapping[int, NDArray]],
    *,
    results: str | Path = RESULTS,
    depths: Sequence[int] = DEPTHS,
) -> list[Path]:
    """Writes ranking.csv, ranking_comparisons.csv, recommended.csv and recommender_trials.csv among the edition's
    tables; returns their paths.

    ``scores``: (G, U, I) of every seed, by backbone and method of the edition.
    """
    beside, trials = references(taste)
    rows = [*rows_of(edition, scores), *beside]
    ranked, compared = tables(edition, taste, rows, depths)
    models = [row for row in rows if row.key or row.method in recommenders.KNOWN]
    made = {"ranking": ranked, "ranking_comparisons": compared, "recommended": recommended_table(taste, models)}
    shown = {(row.method, users): told for row in rows for users, told in row.information.items()}
    for table in made.values():
        for column, who in (("information", "method"), ("baseline_information", "baseline")):
            if who in table and column not in table:
                table[column] = [shown[key] for key in zip(table[who], table["users"], strict=True)]
    made["recommender_trials"] = trials
    folder = made_folder(edition.name, results)
    return [write_csv(table, folder / f"{name}.csv") for name, table in made.items()]
