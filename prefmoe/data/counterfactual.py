"""Counterfactual users: plausible people who do not exist, negatives for the contrastive losses."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prefmoe.data.benchmark import FACETS, Benchmark, Preference, User, named_items
from prefmoe.data.prompts import parse_preferences, preference_phrase
from prefmoe.data.rows import Columns, Mistakes, Row, read_rows
from prefmoe.system.file_digests import content_digest
from prefmoe.system.frozen import Frozen

log = logging.getLogger(__name__)

PREFERENCE_COLUMNS = tuple(f"pref_{facet}" for facet in FACETS)
FILE = Path("mmpb_clean/pseudo_users.csv")
"""Where a data folder has its counterfactual users, if it has any."""

COLUMNS = (
    "pseudo_id", "pseudo_name", "concept_family", "description_text", *PREFERENCE_COLUMNS,
    "uid_seed", "image_seed",
)  # fmt: skip
"""The columns of MMPB-clean's pseudo_users.csv."""

_PIECES = re.compile(r"(,\s+|\.\s+)")


class PseudoUser(Frozen):
    """Somebody who does not exist: a hard negative in the facet ``family``.

    ``preferences`` holds one phrase per facet, either like "enjoys a, b, dislikes c, d" or freely worded
    ("quiet travel"), where anybody real has a preference; the seeds fix what is random about this user's tokens.
    """

    pseudo_id: int
    name: str
    family: str
    description: str
    preferences: dict[str, str]
    uid_seed: int
    image_seed: int


def generate(benchmark: Benchmark, n: int, seed: int = 0) -> list[PseudoUser]:
    """``n`` counterfactual users made from the users of the training split (PrefMoE, Lyu et al. 2026).

    The families take turns. A user starts from a real one: in the family's facet one item is exchanged so
    that the result is nobody's preference, but close to somebody's (the more popular a preference, the more
    often it is the base). The other facets are drawn from the population, the description recombines two
    descriptions. The same seed gives the same users, and fewer users are the first of more.

    A facet in which nobody has a preference has no family, and counterfactual users have no preference there; a family
    in which no combination is left that nobody holds is left out from there on. When no family is left there are fewer
    than ``n`` users, and a warning says so.
    """
    rng = np.random.default_rng(seed)
    population = _Population([benchmark.users[name] for name in benchmark.trained_users])
    families = list(population.holders)
    turns, made = dict.fromkeys(families, 0), []
    turn = 0
    while len(made) < n and families:
        family = families[turn % len(families)]
        preferences = {}
        for facet, holders in population.holders.items():
            preferences[facet] = holders[rng.integers(len(holders))].preferences[facet]
        found = population.novel_preference(family, rng)
        if found is None:
            families.remove(family)
            turn = 0
            continue
        base, preferences[family] = found
        turn, turns[family] = turn + 1, turns[family] + 1
        made.append(
            PseudoUser(
                pseudo_id=len(made),
                name=f"Pseudo{family.capitalize()}{turns[family]}",
                family=family,
                description=population.recombine(base, rng),
                preferences={facet: preference_phrase(preference) for facet, preference in preferences.items()},
                uid_seed=int(rng.integers(2**31)),
                image_seed=int(rng.integers(2**31)),
            )
        )
    absent = [facet for facet in FACETS if facet not in population.holders]
    if absent and n:
        log.warning("no counterfactual users in %s: no user of the training split has a preference", ", ".join(absent))
    if len(made) < n and len(absent) < len(FACETS):
        log.warning("%d of %d counterfactual users: no combination of items is left that nobody holds", len(made), n)
    return made


def _content(preference: Preference) -> tuple[frozenset[str], frozenset[str]]:
    """What a preference says, whatever the order of its items."""
    return frozenset(preference.likes), frozenset(preference.dislikes)


class _Population:
    """Real users, looked through once: who has a preference in a facet, which items there are, who is alike.

    Attributes:
        holders: users with a preference in each facet, in order; facets without any are absent.
    """

    def __init__(self, users: Sequence[User]) -> None:
        of_facet = {facet: [user for user in users if facet in user.preferences] for facet in FACETS}
        self.holders = {facet: holders for facet, holders in of_facet.items() if holders}
        self._items = {facet: named_items(holders, facet) for facet, holders in self.holders.items()}
        self._taken = {
            facet: {_content(user.preferences[facet]) for user in holders} for facet, holders in self.holders.items()
        }
        self._users = users
        self._descriptions = {user.description for user in users}
        self._alike: dict[str, list[User]] = defaultdict(list)
        self._place: dict[str, int] = {}  # of a user among those of the same kind
        for user in users:
            self._place[user.name] = len(self._alike[user.attribute])
            self._alike[user.attribute].append(user)

    def novel_preference(self, facet: str, rng: np.random.Generator) -> tuple[User, Preference] | None:
        """A user and this user's preference with one item exchanged, such that nobody has it; None if all are taken."""
        holders = self.holders[facet]
        for position in rng.permutation(len(holders)):
            base = holders[position]
            for candidate in _exchanges(base.preferences[facet], self._items[facet], rng):
                if (content := _content(candidate)) not in self._taken[facet]:
                    self._taken[facet].add(content)
                    return base, candidate
        return None

    def recombine(self, base: User, rng: np.random.Generator) -> str:
        """The base's description with clauses from another user of the same kind; nobody has this description."""
        pieces = _PIECES.split(base.description)
        alike, own = self._alike[base.attribute], self._place[base.name]
        for position in rng.permutation(len(alike) - 1):
            donor = alike[position + (position >= own)]
            given = _PIECES.split(donor.description)
            # Clauses stand at the even places, separators between them; the first clause, who it is, stays.
            places = [k for k in range(2, min(len(pieces), len(given)), 2) if pieces[k] != given[k]]
            chosen = [k for k in places if rng.random() < 0.5] or places[:1]
            text = "".join(given[k] if k in chosen else piece for k, piece in enumerate(pieces))
            if text not in self._descriptions:
                return text
        others = [user.description for user in self._users if user is not base] or [base.description]
        return f"{base.description} {others[rng.integers(len(others))]}"


def _exchanges(preference: Preference, items: Sequence[str], rng: np.random.Generator) -> Iterator[Preference]:
    """The preference with one item replaced by one that it does not hold, in random order."""
    held = preference.items
    others = [item for item in items if item not in held]
    for choice in rng.permutation(len(held) * len(others)):
        slot, other = divmod(int(choice), len(others))
        changed = [*held[:slot], others[other], *held[slot + 1 :]]
        likes = len(preference.likes)
        yield Preference(likes=tuple(changed[:likes]), dislikes=tuple(changed[likes:]))


def groups(users: Sequence[PseudoUser], benchmark: Benchmark) -> list[list[int]]:
    """Preference group of each counterfactual user in each facet, (N, facets), by benchmark.groups' ids. -1 where no
    user of the training split has this preference: always so in the family of a generated user."""
    known: dict[tuple[str, tuple[frozenset[str], frozenset[str]]], int] = {}
    for name in benchmark.trained_users:
        ids = benchmark.groups[benchmark.row(name)]
        for facet, preference in benchmark.users[name].preferences.items():
            known[facet, _content(preference)] = ids[FACETS.index(facet)]

    def group(facet: str, phrase: str | None) -> int:
        preference = parse_phrase(phrase or "")
        return -1 if preference is None else known.get((facet, _content(preference)), -1)

    return [[group(facet, user.preferences.get(facet)) for facet in FACETS] for user in users]


def parse_phrase(phrase: str) -> Preference | None:
    """The preference behind a phrase such as "enjoys a, b, dislikes c, d"; None for free words."""
    if not phrase.startswith(("enjoys ", "dislikes ")):
        return None
    text = phrase if phrase.startswith("dislikes ") else phrase.replace(", dislikes ", ", but dislikes ", 1)
    return parse_preferences(f"In terms of travel, <sks> {text}.")["travel"]


def file_digest(root: Path) -> str:
    """A hash of a data folder's counterfactual users; empty where it has none."""
    path = root / FILE
    return content_digest(path) if path.is_file() else ""


def read(path: str | Path) -> list[PseudoUser]:
    """The counterfactual users of a pseudo_users.csv, by their ids. Raises MMPBError with one line per mistake, naming
    file, line, field and what was expected."""
    path = Path(path)
    mistakes = Mistakes(str(path))
    rows = list(read_rows(path, Columns(COLUMNS), mistakes, path.name))
    seen: dict[str, Row] = {}
    users = []
    for row in rows:
        pseudo_id, uid_seed, image_seed = (
            row.number(column, "a non-negative integer") for column in ("pseudo_id", "uid_seed", "image_seed")
        )
        first = seen.setdefault(row["pseudo_id"], row)
        row.require(first is row, "pseudo_id", f"an id that occurs once ({first.place} has it, too)")
        known = row.require(row["concept_family"] in FACETS, "concept_family", f"one of {', '.join(FACETS)}")
        texts = ("pseudo_name", "description_text", *([f"pref_{row['concept_family']}"] if known else []))
        complete = [row.require(row[column] != "", column, "a text") for column in texts]
        if known and all(complete) and None not in (pseudo_id, uid_seed, image_seed):
            users.append(
                PseudoUser(
                    pseudo_id=pseudo_id,
                    name=row["pseudo_name"],
                    family=row["concept_family"],
                    description=row["description_text"],
                    preferences={facet: row[f"pref_{facet}"] for facet in FACETS if row[f"pref_{facet}"]},
                    uid_seed=uid_seed,
                    image_seed=image_seed,
                )
            )
    mistakes.check()
    return sorted(users, key=lambda user: user.pseudo_id)
