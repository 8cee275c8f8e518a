"""Drawing without a user branch: nobody is known, or the user is told in words; and drawings that nobody generated."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prefmoe.config import PlainDrawingMethod
from prefmoe.data.choice_drawing import content_of, draw_choice_picture, random_attributes
from prefmoe.data.choice_tastes import CARED, TasteError, excess, favourites, words
from prefmoe.generation.captions import caption, reduced
from prefmoe.generation.drawing import Drawing
from prefmoe.generation.pictures import small_pictures
from prefmoe.generation.reader import AttributeReader


class Plain(Drawing, settings=PlainDrawingMethod):
    """The drawer as it is, or the drawing world itself, which shows what a perfect drawer would reach."""

    config: PlainDrawingMethod

    def told(self, asked: pd.DataFrame) -> list[dict[str, str]]:
        """The open attributes that each picture is to show, attribute -> value. Raises TasteError if these are true
        tastes, or of pictures, that nobody knows."""
        if self.config.told == "nobody":
            return [{} for _ in range(len(asked))]
        known: dict[tuple, dict[str, str]] = {}
        read = self._read(asked) if self.config.told == "read" else None
        for user, n_ref, draw in set(zip(asked["user"], asked["n_ref"], asked["draw"], strict=True)):
            if self.config.reads_history:
                found = excess(self.benchmark, self.benchmark.history(user, n_ref, draw), read)
                known[user, n_ref, draw] = words(found, 3)
            elif self.benchmark.utilities is None:
                raise TasteError(f"{self.benchmark.root}: true tastes are not known (utilities.csv)")
            else:
                count = CARED if self.config.told == "three" else None
                known[user, n_ref, draw] = favourites(self.benchmark.utilities.loc[user], count)
        return [known[key] for key in zip(asked["user"], asked["n_ref"], asked["draw"], strict=True)]

    def see_with(self, reader: AttributeReader) -> None:
        """Takes what reads attributes off pictures; its weights are not this method's."""
        self._reader = [reader]

    def _read(self, asked: pd.DataFrame) -> pd.DataFrame:
        """The attributes that the reader finds in the pictures of all histories, a row for each picture's name."""
        told = asked[["user", "n_ref", "draw"]].drop_duplicates().itertuples(index=False)
        choices = [choice for one in told for choice in self.benchmark.history(*one)]
        files = list(dict.fromkeys(file for choice in choices for file in (choice.liked, choice.disliked)))
        names = [self.benchmark.relative(file) for file in files]
        return self._reader[0].read(small_pictures(files, self.drawer.size)).set_axis(names)

    def prompts(self, asked: pd.DataFrame) -> list[str]:
        """The prompt, with the attributes behind it."""
        if self.config.told == "nobody":
            return list(asked["prompt"])
        told = self.told(asked)
        return [caption({**content_of(p), **one}, one.keys()) for p, one in zip(asked["prompt"], told, strict=True)]

    def draw(self, asked: pd.DataFrame) -> Tensor:
        """As `Drawing.draw`; drawings are drawn by the world's own code, each from a number of its own."""
        if self.config.kind == "drawer":
            return super().draw(asked)
        found, size = [], self.drawer.size
        for number, (prompt, told) in enumerate(zip(asked["prompt"], self.told(asked), strict=True)):
            rng = np.random.default_rng([self.seed, number])
            attributes = random_attributes(rng, **content_of(prompt), **told)
            found.append(reduced(draw_choice_picture(attributes, rng), size).astype(np.float32) / 255)
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
