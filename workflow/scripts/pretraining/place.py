"""Where a stage stands, so that an interrupted one goes on."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model

from prefmoe.config import RESULTS
from prefmoe.system.files import is_intact, seal_of, sole_process, whole_file
from prefmoe.system.finite import check_finite
from pretraining.errors import PretrainingError

log = logging.getLogger(__name__)


def work_folder(name: str, seed: int = 0) -> Path:
    """Where the stages of what is made are kept, wherever its weights go; another seed's are others."""
    return RESULTS / "pretraining" / (name if seed == 0 else f"{name}-seed{seed}")


def alone(folder: Path) -> AbstractContextManager[None]:
    """Keeps the stages of a folder from every other process, as two workflows may ask for the same weights at once."""
    message = f"{folder}: another process is making these weights; wait for it, or stop it: the same command goes on"
    return sole_process(folder, PretrainingError(f"{message} from its last place"))


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a `Place` kept in words and in tensors, of a file that `is_intact`."""
    with safe_open(path, "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
        return told, {name: file.get_tensor(name) for name in file.keys()}


def forget(path: Path) -> None:
    """Removes the place of a stage that is finished, and its seal."""
    for file in (path, seal_of(path)):
        file.unlink(missing_ok=True)


def finished(name: str, work: Path, model: torch.nn.Module, train: Callable[[Path], object]) -> float:
    """A stage's weights in the model: trained, or those that were kept when it was finished. Raises PretrainingError
    if training has made a NaN of them; what was kept before is left.

    Args:
        name: of the stage; work: the folder where its weights, and until then its place, are kept.
        train: trains the model in place, from the `Place` of this path on.

    Returns the seconds that the stage took, those of interrupted runs included.
    """
    path, place = work / f"{name}.safetensors", work / f"{name}.place"
    if not is_intact(path):
        began = time.time()
        if is_intact(place):  # what an interrupted run had spent
            began -= read(place)[0]["at"]["seconds"]
        train(place)
        check_finite(model.state_dict().items(), f"{path} is not written", PretrainingError)
        with whole_file(path, sealed=True) as partial:
            save_model(model, str(partial), metadata={"seconds": f"{time.time() - began:.0f}"})
        forget(place)
    load_model(model, path)
    with safe_open(path, "pt") as file:
        return float((file.metadata() or {}).get("seconds", 0))


class Place:
    """How far a stage is, kept in a file with the model, the optimiser, its schedule and the random generator.

    Args:
        path: a safetensors file; None keeps nothing. The four other things are restored in place. A damaged file is
            named in the log, and the stage begins again.

    Attributes:
        at: what `keep` was given last, and the stage's seconds; empty at the beginning.
    """

    EVERY = 100
    """Steps between two writings."""

    def __init__(
        self, path: Path | None, rng: np.random.Generator, model: torch.nn.Module, optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ):  # fmt: skip
        self.path, self.rng, self.model, self.optimizer, self.schedule = path, rng, model, optimizer, schedule
        self.at: dict = {}
        self.began = time.time()
        if path is None or not is_intact(path):
            return
        self._restore(*read(path))
        self.began -= self.at["seconds"]
        log.info("%s: goes on from %s", path, {k: v for k, v in self.at.items() if k != "hits"})

    def _restore(self, told: dict, tensors: dict[str, torch.Tensor]) -> None:
        own = self._own()
        for name, tensor in own.items():
            tensor.copy_(tensors[f"model.{name}"])
        for group, settings in zip(self.optimizer.param_groups, told["groups"], strict=True):
            group.update(settings)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name in tensors.keys() - {f"model.{name}" for name in own}:
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensors[name]
        parameters = self._parameters()
        for number, state in moments.items():  # the count of steps stays where the optimiser looks for it
            state.update({k: v.to(parameters[number].device) for k, v in state.items() if k != "step"})
        self.optimizer.state.update({parameters[number]: state for number, state in moments.items()})
        if self.schedule is not None:
            self.schedule.load_state_dict(told["schedule"])
        self.rng.bit_generator.state, self.at = told["rng"], told["at"]

    def _own(self) -> dict[str, torch.Tensor]:
        """The model's tensors; one that has two names (tied embeddings) under the first of them."""
        own: dict[int, tuple[str, torch.Tensor]] = {}
        for name, tensor in self.model.state_dict().items():
            own.setdefault(tensor.data_ptr(), (name, tensor))
        return dict(own.values())

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def due(self, steps: int) -> bool:
        """Whether it is time to keep the place, after so many steps."""
        return steps % self.EVERY == 0

    def keep(self, **at) -> None:
        """Writes everything; ``at`` is whatever the stage needs to go on, as JSON can hold it.

        Raises PretrainingError if a weight or a moment is not finite; then the file is as it was.
        """
        if self.path is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self._own().items()}
        for number, parameter in enumerate(self._parameters()):
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"moments.{number}.{moment}": tensor for moment, tensor in state.items()}
        check_finite(tensors.items(), f"{self.path} is left as it was", PretrainingError)
        told = {
            "at": at | {"seconds": time.time() - self.began},
            "rng": self.rng.bit_generator.state,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }
        with whole_file(self.path, sealed=True) as partial:
            save_file(tensors, partial, metadata={key: json.dumps(value) for key, value in told.items()})
