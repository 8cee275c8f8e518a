"""What a user's choices show of a taste: attribute values that liked pictures have more often than disliked ones."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.data.choice_world import OPEN
from prefmoe.data.choices import Choice, ChoiceBenchmark

CARED = 3
"""A user's liked attributes: the favourite values of so many open attributes, those that matter most to the user."""


class TasteError(ValueError):
    """Choices that cannot tell of a taste: none at all, or of pictures whose attributes nobody knows."""


def excess(
    benchmark: ChoiceBenchmark, choices: Sequence[Choice], attributes: pd.DataFrame | None = None
) -> pd.Series:
    """How much more often liked pictures have each value of an open attribute than disliked ones: (attribute, value).

    In standard deviations of what would be seen if the two did not differ: with n choices and k values, liked minus
    disliked pictures over sqrt(2 n p (1 - p)), p = 1 / k.

    ``attributes``: what somebody has read off the pictures, in the place of what the benchmark knows of them.

    Raises TasteError if there is no choice, or nobody knows the pictures' attributes.
    """
    if not choices:
        raise TasteError("a user without liked pictures: expected at least one choice")
    known = benchmark.attributes if attributes is None else attributes
    if known is None:
        raise TasteError(f"{benchmark.root}: attributes of the pictures are not known (attributes.csv)")
    liked, disliked = (
        known.loc[[benchmark.relative(picture) for picture in some]]
        for some in ([c.liked for c in choices], [c.disliked for c in choices])
    )
    found = {}
    for name in OPEN:
        p = 1 / len(ATTRIBUTES[name])
        noise = np.sqrt(2 * len(choices) * p * (1 - p))
        for value in ATTRIBUTES[name]:
            found[name, value] = ((liked[name] == value).sum() - (disliked[name] == value).sum()) / noise
    return pd.Series(found, dtype=float).rename_axis(["attribute", "value"])


def words(found: pd.Series, count: int, *, liked: bool = True, least: float = 0.0) -> dict[str, str]:
    """The values that stand out most in `excess`, attribute -> value, one for each attribute and the clearest first.

    Args:
        count: at most so many. liked: what liked pictures have; else what disliked ones have.
        least: only values that stand out more than this.
    """
    signed = (found if liked else -found).sort_values(ascending=False, kind="stable")
    best = signed[~signed.index.get_level_values("attribute").duplicated()]
    return dict(best[best > least].index[:count])


def favourites(utilities: pd.Series, count: int | None = None) -> dict[str, str]:
    """A user's true favourite value of each open attribute, attribute -> value: those first for which it matters most.

    Args:
        utilities: of one user, a number for each value. count: only so many attributes.
    """
    spread = {name: np.ptp([utilities[value] for value in ATTRIBUTES[name]]) for name in OPEN}
    order = sorted(OPEN, key=lambda name: -spread[name])[:count]
    return {name: max(ATTRIBUTES[name], key=lambda value: utilities[value]) for name in order}
