"""One thing and everybody who was asked about it: what unit 0 looks at, chosen by a rule that sees no answer."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefmoe.config import load_edition
from prefmoe.course import answers
from prefmoe.data.drawing import draw_items, face_image
from prefmoe.data.people import Person, people
from prefmoe.figures import forms, style


@dataclass(frozen=True)
class Scene:
    """One thing, and everybody who was asked directly whether a picture of it is to their liking.

    Attributes:
        item, facet: what the picture shows, and of which part of a profile it is.
        likes, other: two of the users, the first of whom likes it.
        holders: how many users like it, and of how many.
        table: (users, methods) the probability of "yes", indexed by user.
        truly: (users,) true for those who like it.
    """

    item: str
    facet: str
    likes: str
    other: str
    holders: tuple[int, int]
    table: pd.DataFrame
    truly: pd.Series


@cache
def chosen() -> Scene:
    """The thing of this unit, by a rule that sees no answer: asked directly about as many users who like it as who do
    not, at least four each; of several such things the one that most users like. The two users are the first who were
    asked."""
    known = list(answers.methods())
    asked = {label: answers.preferences(label) for label in known}
    rows, users = asked[known[0]], set(asked[known[0]]["user"])
    rows = rows[~rows["negated"]]
    truly = rows["truth"] == "yes"
    sides = truly.groupby(rows["item"]).agg(["sum", "size"])
    even = sides.index[(sides["size"] == 2 * sides["sum"]) & (sides["sum"] >= 4)]
    held = {item: len(users.intersection(*rows.loc[rows["item"] == item, "holders"].iloc[:1])) for item in even}
    item = max(held, key=held.get)
    rows = rows[rows["item"] == item]
    table = pd.DataFrame({label: asked[label].loc[rows.index, "p_yes"].to_numpy() for label in known}, rows["user"])
    truly = pd.Series(truly[rows.index].to_numpy(), table.index)
    facet, first, other = rows["facet"].iloc[0], truly.index[truly][0], truly.index[~truly][0]
    return Scene(item, facet, first, other, (held[item], len(users)), table, truly)


def show() -> None:
    """Shows `drawn` as a notebook's output."""
    style.show(drawn())


def drawn(side: float = 2.2) -> Figure:
    """The picture, and beside it the two users with what their profiles tell of the facet; each so many inches wide."""
    shown, everybody = chosen(), _people()
    cells: list[Any] = [(draw_items([shown.item], np.random.default_rng(0)), f"Would this user like {shown.item}?")]
    for name in (shown.likes, shown.other):
        told = everybody[name].preferences[shown.facet]
        profile = f"{name}: likes {', '.join(told.likes)}; dislikes {', '.join(told.dislikes)}"
        face = face_image(everybody[name].face)
        cells.append((face.crop((0, 0, face.width, face.width)), profile))
    held, of = shown.holders
    return forms.pictures(
        [cells], widths=[side] * 3, text_width=int(15.5 * side), title="One picture, two users: who of them likes it",
        caption=f"Below the faces: what the profiles tell of {shown.facet}. {held} of {of} users like "
        f"{shown.item}, and a profile need not mention all that somebody likes.",
    )  # fmt: skip


def both() -> pd.DataFrame:
    """(methods, 2) the probability of "yes" about the two users."""
    return chosen().table.loc[[chosen().likes, chosen().other]].T.rename_axis("method")


def _people() -> dict[str, Person]:
    trained, unseen = people(load_edition(str(answers.about()["edition"])).data)
    return {person.name: person for person in [*trained, *unseen]}
