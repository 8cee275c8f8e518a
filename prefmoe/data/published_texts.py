"""The texts of which the published code makes anchors, and the preference groups that it reads off them."""

from collections.abc import Sequence

from prefmoe.data.benchmark import FACETS, Benchmark
from prefmoe.data.counterfactual import PseudoUser, parse_phrase
from prefmoe.data.prompts import UNKNOWN, Profiled, clean, format_preferences

MAX_TOKENS = 192
"""Longest of these texts in tokens; what is behind is cut off."""

NO_ANNOTATION = {"", "nan", "none", "unknown", UNKNOWN.lower()}
"""Statements, in lower case, of users who take no part in a facet's contrast."""


def statement(user: Profiled, facet: str) -> str:
    """What is said of a user in a facet: "In terms of travel, <sks> enjoys a, but dislikes b.".

    Of a real user without a statement about it the whole preference text, and of a counterfactual user its free words,
    or nothing.
    """
    found = user.preferences.get(facet)
    if isinstance(found, str) or isinstance(user, PseudoUser):
        return _folded(found or "")
    return format_preferences(user.preferences if found is None else {facet: found})


def worded(user: PseudoUser) -> PseudoUser:
    """A drawn counterfactual user whose phrases are worded as real users' statements are, whose groups they then share;
    free words stay. (Those of a file stand there as they are to be read.)"""
    read = {facet: parse_phrase(phrase) for facet, phrase in user.preferences.items()}
    said = {facet: format_preferences({facet: found}) for facet, found in read.items() if found}
    return user.model_copy(update={"preferences": user.preferences | said})


def _folded(text: str) -> str:
    """The text with every run of blanks and line breaks as one space."""
    return clean(" ".join(text.split()))


def anchor_texts(user: Profiled) -> list[str]:
    """Name, description and the five facets, as the published code hands them to the backbone; <sks> stays."""
    facets = [f"User preference in {facet}: {statement(user, facet)}." for facet in FACETS]
    return [f"User name: {_folded(user.name)}.", f"User description: {_folded(user.description)}.", *facets]


def preference_groups(
    benchmark: Benchmark, pseudo_users: Sequence[PseudoUser] = ()
) -> tuple[list[list[int]], list[list[int]]]:
    """Preference groups by the exact statement in lower case, (users, facets) and (counterfactual users, facets).

    Ids are a facet's own; -1 takes no part. Users without training questions have those of the others, as far as these
    share their statements.
    """
    known: list[dict[str, int]] = [{} for _ in FACETS]

    def row(user: Profiled) -> list[int]:
        texts = [statement(user, facet).lower() for facet in FACETS]
        return [-1 if t in NO_ANNOTATION else ids.setdefault(t, len(ids)) for t, ids in zip(texts, known, strict=True)]

    return [row(user) for user in benchmark.users.values()], [row(user) for user in pseudo_users]
