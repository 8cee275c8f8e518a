"""How pictures drawn for users are measured: taste, prompt, variety, distance to drawings, collapse; by user.

What a picture shows is what an attribute reader says of it (docs/generation.md has the reader's own error). Pictures of
one user are not independent: intervals resample users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe.analysis import distances, statistics
from prefmoe.analysis.answers import TableError, check_seeds, finished
from prefmoe.analysis.choices import USERS
from prefmoe.config import DrawingMethod, Edition
from prefmoe.data.choice_drawing import ATTRIBUTES, PROMPTED, content_of
from prefmoe.data.choice_tastes import CARED, favourites
from prefmoe.data.choice_world import OPEN
from prefmoe.data.choices import ChoiceBenchmark

ASKED = ["split", "user", "prompt", "noise"]
"""What tells the pictures of one setting apart."""

SETTING = ["n_ref", "scale"]

VALUES = tuple(value for values in ATTRIBUTES.values() for value in values)

MEASURES = {
    "liked": "share of the user's liked attributes in the picture",
    "utility": "expected true utility of what the prompt leaves open",
    "reward": "Q of a rater trained apart",
    "faithful": "number and item are those of the prompt",
    "both": "liked, and 0 where number or item are not those of the prompt",
    "diversity": "distance between pictures of one prompt",
    "own": "the user's favourite value, where the population's is another",
    "population": "the population's favourite value there",
    "distance": "MMD to drawings of the same prompts with random attributes",
}  # fmt: skip
"""The measures and what each says. The last is of a whole set of pictures, the others are means over pictures."""

PAIRED = ("liked", "utility", "reward", "faithful", "both")
"""What `comparison_table` compares."""

TABLE1_COLUMNS = ("condition", "users", "measure", "value", "low", "high", "n", "seeds")

SEEDS_COLUMNS = ("condition", "users", "measure", "value", "sd", "minimum", "maximum", "seeds")

COMPARISON_COLUMNS = (
    "condition", "baseline", "users", "measure", "difference", "low", "high", "n", "p_users", "p_users_holm"
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """What one condition drew with each of its seeds.

    Attributes:
        condition: label shown in tables. key: its name in the configuration. kind: its kind.
        frames: a frame per seed: ASKED, SETTING, group, reward, picture (bytes of size x size x 3), a probability
            p_<value> for each value of an attribute as the reader sees it, features f_0, f_1, ...
    """

    condition: str
    key: str
    kind: str
    frames: tuple[pd.DataFrame, ...]

    @cached_property
    def settings(self) -> list[tuple[int, float]]:
        """The lengths of history and scales of guidance that were drawn with."""
        return sorted(set(map(tuple, self.frames[0][SETTING].to_numpy().tolist())))

    def at(self, n_ref: int, scale: float) -> Drawn:
        """What was drawn with one setting; a condition without histories or guidance has only one."""
        kept = []
        for frame in self.frames:
            own = frame
            for name, value in zip(SETTING, (n_ref, scale), strict=True):
                if (frame[name] != 0).any():  # else it has none; 0 beside others is a setting like them
                    own = own[own[name] == value]
            if own.empty:
                raise TableError(f"{self.condition}: nothing was drawn with n_ref {n_ref} and scale {scale}")
            kept.append(own)
        return Drawn(self.condition, self.key, self.kind, tuple(kept))


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The most probable value of each attribute, a row per picture."""
    return pd.DataFrame(
        {
            name: np.array(values)[frame[[f"p_{value}" for value in values]].to_numpy().argmax(1)]
            for name, values in ATTRIBUTES.items()
        },
        index=frame.index,
    )


def measured(frame: pd.DataFrame, benchmark: ChoiceBenchmark) -> pd.DataFrame:
    """The measures of every picture of a frame, a column each of `MEASURES` but distance; NaN where one does not apply.

    Raises TableError if the benchmark does not know its users' true tastes.
    """
    if benchmark.utilities is None:
        raise TableError(f"{benchmark.root}: true tastes are not known (utilities.csv)")
    told = shown(frame)
    utilities = benchmark.utilities.loc[frame["user"], list(VALUES)].to_numpy()
    open_values = [value for name in OPEN for value in ATTRIBUTES[name]]
    columns = [VALUES.index(value) for value in open_values]
    probabilities = frame[[f"p_{value}" for value in open_values]].to_numpy()
    crowd = favourites(benchmark.utilities.loc[benchmark.trained_users].mean(numeric_only=True))
    tastes = {user: favourites(benchmark.utilities.loc[user], CARED) for user in frame["user"].unique()}
    liked, own, population = [], [], []
    for user, picture in zip(frame["user"], told.to_dict("records"), strict=True):
        taste = tastes[user]
        liked.append(np.mean([picture[name] == value for name, value in taste.items()]))
        apart = [name for name, value in taste.items() if crowd[name] != value]
        own.append(np.mean([picture[name] == taste[name] for name in apart]) if apart else np.nan)
        population.append(np.mean([picture[name] == crowd[name] for name in apart]) if apart else np.nan)
    content = pd.DataFrame([content_of(prompt) for prompt in frame["prompt"]], index=frame.index)
    faithful = (content[list(PROMPTED)] == told[list(PROMPTED)]).all(axis=1).to_numpy(float)
    return pd.DataFrame(
        {
            "liked": liked,
            "utility": (probabilities * utilities[:, columns]).sum(1),
            "reward": frame["reward"].to_numpy(),
            "faithful": faithful,
            "both": liked * faithful,
            "diversity": _diversity(frame),
            "own": own,
            "population": population,
        },
        index=pd.MultiIndex.from_frame(frame[ASKED]),
    )


def pixels(frame: pd.DataFrame) -> np.ndarray:
    """The pictures of a frame, (N, size, size, 3) of 0 to 255."""
    flat = np.stack([np.frombuffer(one, np.uint8) for one in frame["picture"]])
    size = round((flat.shape[1] / 3) ** 0.5)
    return flat.reshape(-1, size, size, 3)


def _diversity(frame: pd.DataFrame) -> np.ndarray:
    """How far each picture is from the others of its user and prompt: root mean square of pixels in [0, 1]."""
    flat = pixels(frame).reshape(len(frame), -1).astype(float) / 255
    found = np.full(len(frame), np.nan)
    for rows in frame.reset_index(drop=True).groupby(["split", "user", "prompt"]).indices.values():
        if len(rows) > 1:
            apart = np.sqrt(((flat[rows][:, None] - flat[rows][None]) ** 2).mean(-1))
            found[rows] = apart.sum(1) / (len(rows) - 1)
    return found


def of_seeds(drawn: Drawn, benchmark: ChoiceBenchmark) -> pd.DataFrame:
    """`measured` of every picture, a column per measure and seed. Raises TableError if seeds drew for other users or
    prompts."""
    tables = [measured(frame, benchmark).sort_index() for frame in drawn.frames]
    if any(not one.index.equals(tables[0].index) for one in tables):
        raise TableError(f"{drawn.condition}: its seeds did not draw the same pictures; make the runs again")
    return pd.concat(tables, axis=1, keys=range(len(tables))).swaplevel(axis=1)


def _groups(table: pd.DataFrame | pd.Series) -> Iterator[tuple[str, pd.DataFrame | pd.Series]]:
    for users, splits in USERS.items():
        inside = table[table.index.get_level_values("split").isin(splits)]
        if len(inside):
            yield users, inside


def measure_rows(drawn: Drawn, benchmark: ChoiceBenchmark, reference: Drawn | None) -> list[dict]:
    """The rows of table1.csv of one condition at one setting; ``reference``: drawings that distance is measured to."""
    table, rows = of_seeds(drawn, benchmark), []
    for users, inside in _groups(table):
        for measure in MEASURES:
            values = inside[measure].dropna() if measure in inside else ()
            if len(values):
                estimate = statistics.cluster_bootstrap(values.to_numpy(), values.index.get_level_values("user"))
                rows.append({"users": users, "measure": measure, **estimate})
        if found := _distances(drawn, reference, users):
            rows.append({"users": users, "measure": "distance", **distances.over_seeds(found)})
    return [{"condition": drawn.condition, **row, "seeds": len(drawn.frames)} for row in rows]


def seed_rows(drawn: Drawn, benchmark: ChoiceBenchmark, reference: Drawn | None) -> list[dict]:
    """How much every measure differs between seeds: `SEEDS_COLUMNS`; sd is NaN where there is one. ``reference``: as in
    `measure_rows`."""
    rows = []
    for users, inside in _groups(of_seeds(drawn, benchmark)):
        found = dict(iter(inside.mean().groupby(level=0, sort=False)))
        if apart := _distances(drawn, reference, users):
            found["distance"] = pd.Series([one["value"] for one in apart])
        for measure, values in found.items():
            row = {"condition": drawn.condition, "users": users, "measure": measure, "value": values.mean()}
            rows.append({**row, **statistics.spread_over_seeds(values), "seeds": len(values)})
    return rows


def _distances(drawn: Drawn, reference: Drawn | None, users: str) -> list[dict[str, float]]:
    """The distance of each seed's pictures from the reference's; none without a reference, or of itself."""
    if reference is None or reference.key == drawn.key:
        return []

    def of_users(frame: pd.DataFrame) -> tuple[np.ndarray, pd.Series]:
        own = frame[frame["split"].isin(USERS[users])]
        return own.filter(regex=r"^f_\d+$").to_numpy(float), own["user"]

    there, _ = of_users(reference.frames[0])
    scales = distances.bandwidths(there)
    return [distances.mmd(here, there, owners, scales) for here, owners in map(of_users, drawn.frames)]


def comparison_table(pairs: Sequence[tuple[Drawn, Drawn]], benchmark: ChoiceBenchmark) -> pd.DataFrame:
    """One condition minus another, picture by picture (same user, prompt and noise), for every pair of them.

    Returns `COMPARISON_COLUMNS`; the interval is over users and, where there are several, over seeds, which are paired
    (a condition that has only one seed stands beside each of the other's); p_users: permutation test in which users
    exchange the two conditions' pictures, with Holm's correction over the pairs, for each measure and group of users.
    """
    drawn = {one.condition: one for pair in pairs for one in pair}
    measures, rows = {name: of_seeds(one, benchmark) for name, one in drawn.items()}, []
    for focus, other in pairs:
        mine = measures[focus.condition]
        theirs = measures[other.condition].reindex(mine.index)
        if theirs["liked"].isna().any(axis=None):
            raise TableError(f"{other.condition} was drawn for others than {focus.condition}; nothing to pair")
        check_seeds({one.condition: len(one.frames) for one in (focus, other)})
        difference = pd.concat(
            {name: pd.DataFrame(mine[name].to_numpy() - theirs[name].to_numpy(), mine.index) for name in PAIRED}, axis=1
        )
        for users, inside in _groups(difference):
            for measure in PAIRED:
                values = inside[measure].dropna()
                owners = values.index.get_level_values("user")
                where = {"condition": focus.condition, "baseline": other.condition, "users": users, "measure": measure}
                rows.append({**where, **statistics.paired_difference(values, owners)})
    return statistics.corrected(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)), ["users", "measure"])


def read_drawn(edition: Edition, results: str | Path) -> dict[str, Drawn]:
    """What every method of table1 and table2 drew, by method, in their order; see `answers.finished`."""
    runs = ((edition.methods[key], key, frames) for _, key, frames in finished(edition, results, kind=DrawingMethod))
    return {key: Drawn(method.label, key, method.kind, tuple(frames.values())) for method, key, frames in runs}
