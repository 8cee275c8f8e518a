"""Checkpoints of a training: written whole, resumed exactly, and never used when damaged or not finite."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from prefmoe.system import distributed
from prefmoe.system.files import is_intact, read_json, whole_file, write_json, write_parquet
from prefmoe.system.finite import not_finite
from prefmoe.system.run_files import LOSSES_FILE

log = logging.getLogger(__name__)

STATE_FILE = "state.json"

State = tuple[int, float, list[dict[str, float]]]
"""Steps done, seconds they took, and a row of losses for each."""

Tensors = dict[str, torch.Tensor]


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message names the step, the loss terms and the examples."""


class CheckpointError(TrainingError):
    """A checkpoint that belongs to another method, backbone, seed or set of examples."""


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field, by its path, that has another value: a.b where a is a mapping; None if none has."""
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and (inner := _difference(old, new)):
            return f"{key}.{inner[0]}", *inner[1:]
        if old != new:
            return key, old, new
    return None


class Checkpoints:
    """Numbered folders ``step-NNNNNN`` under one folder, each complete from the moment it has its name.

    The main process writes what every process has; of a sharded parameter every process writes its own part. Every
    file has its digest beside it.

    ``identity``: of the run, so that no other one's checkpoint is taken; ``names``: of the parameters, by their id(),
    for messages.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        optimizers: Sequence[torch.optim.Optimizer],
        names: Mapping[int, str],
    ) -> None:
        self.folder, self.names = folder, names
        self.parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        self.optimizer_of = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
        self.sharded = any(isinstance(p, DTensor) for p in self.parameters)
        shapes = [list(p.shape) for p in self.parameters]
        over = distributed.processes() if self.sharded else None
        self.identity = identity | {"shapes": shapes, "layers_sharded_over": over}

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")

    def _moments(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        state = self.optimizer_of[id(parameter)].state.get(parameter, {})
        return {key: torch.as_tensor(value) for key, value in state.items()}

    def _check(self, step: int) -> None:
        """Refuses weights and moments that are not finite, in all processes at once."""
        named: list[tuple[str, torch.Tensor]] = []
        for parameter in self.parameters:
            name = self.names.get(id(parameter), "a parameter")
            named.append((name, parameter.detach()))
            named += [(f"{key} of {name}", value) for key, value in self._moments(parameter).items()]
        damaged = not_finite(named)
        if not distributed.agreed(not damaged):
            some = ", ".join(damaged[:5]) or "in another process"
            raise TrainingError(f"step {step}: weights or moments that are NaN or infinite: {some}; nothing was saved")

    def _files(self, path: Path, process: int) -> tuple[Path, Path]:
        suffix = f"-{process:05d}" if process else ""
        return path / f"parameters{suffix}.safetensors", path / f"optimizer{suffix}.safetensors"

    def _write_tensors(self, folder: Path, process: int) -> None:
        parameters, moments = {}, {}
        for i, p in enumerate(self.parameters):
            if process and not isinstance(p, DTensor):
                continue
            parameters[f"{i:05d}"] = distributed.local(p.detach()).contiguous()
            for key, value in self._moments(p).items():
                moments[f"{i:05d}.{key}"] = distributed.local(value).contiguous()
        for content, path in zip((parameters, moments), self._files(folder, process), strict=True):
            with whole_file(path, sealed=True) as partial:
                save_file(content, partial)

    def save(self, step: int, seconds: float, losses: pd.DataFrame) -> None:
        """Writes under a temporary name, renames, and only then removes the older ones; all processes call it. Raises
        TrainingError if a weight or a moment is not finite; the older checkpoint stays."""
        self._check(step)
        state, older = distributed.state(), self._complete()
        target = self.folder / f"step-{step:06d}"
        partial = target.with_suffix(".partial")
        if state.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        state.wait_for_everyone()
        if state.is_main_process or self.sharded:
            self._write_tensors(partial, state.process_index)
        state.wait_for_everyone()
        if state.is_main_process:
            write_parquet(partial / LOSSES_FILE, losses, sealed=True)
            content = {"step": step, "seconds": seconds, "identity": self.identity}
            write_json(partial / STATE_FILE, content, sealed=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            for path in older:
                if path != target:
                    shutil.rmtree(path, ignore_errors=True)
        state.wait_for_everyone()

    def load(self) -> State:
        """Restores parameters and optimisers in place from the newest undamaged checkpoint; (0, 0, []) without one.

        A damaged one is named in the log and removed.

        Raises CheckpointError if it was written for something else.
        """
        for path in reversed(self._complete()):
            found = self._read(path)
            if distributed.agreed(found is not None):
                self._restore(*found[1:])
                return found[0]
            log.warning("%s: damaged, training goes on from an earlier checkpoint or starts again", path)
            if distributed.state().is_main_process:
                shutil.rmtree(path, ignore_errors=True)
            distributed.state().wait_for_everyone()
        return 0, 0.0, []

    def _read(self, path: Path) -> tuple[State, Tensors, Tensors] | None:
        """Where a checkpoint stands, its parameters and its moments; None if a file is missing or damaged."""
        if not is_intact(path / STATE_FILE):
            return None
        state = read_json(path / STATE_FILE, "the state of a checkpoint")
        found = state["identity"]
        if different := _difference(found, self.identity):
            key, there, here = different
            raise CheckpointError(
                f"{path}: written for another run: {key} is {there!r} there, {here!r} here; delete the folder to start "
                "again"
            )
        process = distributed.state().process_index if self.sharded else 0
        files = [*self._files(path, 0), *(self._files(path, process) if process else ())]
        if not all([is_intact(file) for file in (path / LOSSES_FILE, *files)]):
            return None
        parameters, moments = map(load_file, files[:2])
        if process:
            own = map(load_file, files[2:])
            parameters, moments = (common | mine for common, mine in zip((parameters, moments), own, strict=True))
        rows = pd.read_parquet(path / LOSSES_FILE).to_dict("records")
        return (int(state["step"]), float(state["seconds"]), rows), parameters, moments

    def _restore(self, parameters: Tensors, moments: Tensors) -> None:
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                distributed.local(parameter).copy_(parameters[f"{i:05d}"])
                prefix = f"{i:05d}."
                mine = {k[len(prefix) :]: v for k, v in moments.items() if k.startswith(prefix)}
                if mine:
                    self.optimizer_of[id(parameter)].state[parameter] = {
                        key: self._restored(key, value, parameter) for key, value in mine.items()
                    }

    def _restored(self, key: str, value: torch.Tensor, parameter: torch.nn.Parameter) -> Any:
        """One entry of an optimiser's state, where the optimiser keeps it."""
        if key == "step":
            optimizer = self.optimizer_of[id(parameter)]
            if isinstance(optimizer, torch.optim.SparseAdam):
                return int(value)
            return value.to(parameter.device) if optimizer.defaults.get("fused") else value
        moment = torch.zeros_like(parameter)
        distributed.local(moment).copy_(value)
        return moment
