"""Checks of unit 6: an intervention on the residuals, what it does to answers, and what attention would have said."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefmoe.course import answers, checking
from prefmoe.data.benchmark import FACETS


def exchange(function: Callable) -> None:
    """exchange(prefix (13, H), other (13, H), facet) -> (13, H), with the other user's residual in that facet."""
    generator = torch.Generator().manual_seed(6)
    one, other = (torch.randn(13, 4, generator=generator) for _ in range(2))
    for place, facet in enumerate(FACETS):
        before = one.clone()
        found = checking.called(function, before, other.clone(), facet, name="exchange")
        rows = checking.tensor(found, (13, 4), f"exchange(..., {facet!r})")
        expected = one.clone()
        expected[4 + 2 * place] = other[4 + 2 * place]
        changed = [k for k in range(13) if not torch.equal(rows[k], one[k])]
        if not torch.equal(rows, expected):
            raise checking.NotYet(
                f"exchange(..., {facet!r}) changes the rows {changed}: expected row {4 + 2 * place} alone, the "
                f"residual of {facet} (name, image, description; then prototype and residual of {', '.join(FACETS)})."
            )
        if not torch.equal(before, one):
            raise checking.NotYet("exchange changed the prefix that it was given: expected a new tensor (`clone`).")
    checking.right("One row of thirteen is somebody else's.")


def guess(answer: Any) -> None:
    """Which exchange flips more answers: a prediction, before looking."""
    if not isinstance(answer, str) or answer not in ("asked", "others"):
        raise checking.NotYet(f"guess is {checking.described(answer)}: expected 'asked' or 'others', in quotes.")
    whose = "the asked facet's residual is" if answer == "asked" else "the four other facets' residuals are"
    print(f"Noted: you expect more answers to flip when {whose} exchanged. Now look.")


def three(after: bool = False) -> pd.DataFrame:
    """Three answers that are `likes it`, the first of as many facets; ``after``: what the exchange makes of them."""
    rows = answers.exchanges()
    rows = rows[(rows["told"] == "told") & (rows["own"] > 0.5)].drop_duplicates("facet").head(3)
    shown = ["user", "counterpart", "facet", "item", "own", *(["asked_facet"] if after else [])]
    return rows[shown].reset_index(drop=True)


def turns(answer: Any) -> None:
    """For each of `three` whether it turns to `does not`: a prediction, before looking."""
    said = checking.array(answer, (3,), "turns", "true or false")
    found = int((said == (three(after=True)["asked_facet"] <= 0.5)).sum())
    print(f"Noted: {found} of 3 do what you expect. Which ones, `check.three(after=True)` shows below.")


def flips(function: Callable) -> None:
    """flips(before, after) -> the share of questions whose answer changes from `likes it` to `does not`."""
    before, after = np.array([0.9, 0.6, 0.4, 0.7, 0.5]), np.array([0.2, 0.55, 0.6, 0.4, 0.1])
    value = checking.number(checking.called(function, before, after, name="flips"), "flips(before, after)")
    hint = "Above one half is `likes it`: count those above before and not after, among those above before."
    checking.close(value, 2 / 3, "flips(before, after)", hint)
    checking.right("Only answers that were `likes it` can flip to `does not`.")


def effect(function: Callable) -> None:
    """effect(exchanges) -> mean change of P(likes it): of the asked facet's residual, and of the four others'."""
    rows = answers.exchanges()
    rows = rows[rows["told"] == "told"]
    found = checking.called(function, rows.copy(), name="effect")
    values = checking.array(found, (2,), "effect(exchanges)")
    expected = [(rows[column] - rows["own"]).mean() for column in ("asked_facet", "other_facets")]
    hint = "First the mean of asked_facet minus own, then that of other_facets minus own."
    checking.close(values, expected, "effect(exchanges)", hint, tolerance=1e-5)
    checking.right(f"{expected[0]:+.3f} for one residual, {expected[1]:+.3f} for the four others together.")


def attention_share() -> tuple[float, float]:
    """Of the answer's attention, the mean share of one residual: of the facet that is asked about, and of another one;
    over users and layers of one question that many were asked (figures/mini/attention_prefix.csv)."""
    rows = answers.table("attention_prefix", origin="answer")
    question = int(rows["index"].iloc[0])
    asked = answers.scored(next(iter(answers.methods()))).set_index("index").loc[question, "concept"]
    residuals = rows[rows["token"].str.startswith("r ")]
    own = residuals["token"] == f"r {asked}"
    return float(residuals.loc[own, "share"].mean()), float(residuals.loc[~own, "share"].mean())


def cause(answer: Any) -> None:
    """What attention and exchange say about each other."""
    reasons = {
        "a": "The exchange is an intervention: nothing but one residual changed, in the prefix and where routers and "
        "experts read it, so that this is what changed the answer.",
        "b": "Attention says from where information may flow. A row with a small share may still decide, as here.",
        "c": "What a token causes is seen by changing it, not by looking at how much it is looked at.",
    }
    checking.choice(answer, "cause", reasons, "c")
