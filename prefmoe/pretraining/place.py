"""Where a stage stands, so that an interrupted one goes on."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch

from prefmoe.files import whole_file

log = logging.getLogger(__name__)


class Place:
    """How far a stage is, kept in a file with its weights, its optimiser and its random generator.

    Args:
        path: the file; None keeps nothing.
        rng: continues where it was.
        parts: name -> whatever has a state_dict (model, optimiser, schedule); restored in place.

    Attributes:
        at: what `keep` was given last, empty at the beginning.

    Raises:
        ValueError: if the file cannot be read.
    """

    EVERY = 100
    """Steps between two writings."""

    def __init__(self, path: Path | None, rng: np.random.Generator, **parts):
        self.path, self.rng, self.parts = path, rng, parts
        self.at: dict = {}
        self.began = time.time()
        if path is None or not path.is_file():
            return
        try:
            kept = torch.load(path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(kept[name])
            self.at, rng.bit_generator.state = kept["at"], json.loads(kept["rng"])
        except Exception as error:
            raise ValueError(f"{path}: cannot be read ({error}); delete the file to begin the stage again") from error
        self.began -= self.at["seconds"]
        log.info("%s: goes on from %s", path, {k: v for k, v in self.at.items() if k != "hits"})

    def due(self, steps: int) -> bool:
        """Whether it is time to keep the place, after so many steps."""
        return steps % self.EVERY == 0

    def keep(self, **at) -> None:
        """Writes everything, under a temporary name first."""
        if self.path is None:
            return
        at["seconds"] = time.time() - self.began
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with whole_file(self.path) as partial:
            torch.save({**states, "at": at, "rng": json.dumps(self.rng.bit_generator.state)}, partial)
