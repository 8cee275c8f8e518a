"""Trains a method: the same batches for everybody, a loss log per term, checkpoints that resume exactly."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.distributed.tensor import DTensor

from prefmoe.backbones.batches import Batch
from prefmoe.config import Training
from prefmoe.data.benchmark import Example
from prefmoe.models.base import Method
from prefmoe.running.checkpoints import Checkpoints, TrainingError
from prefmoe.running.order import plan_batches
from prefmoe.system import distributed, memory
from prefmoe.system.files import write_parquet
from prefmoe.system.progress import progress_bar
from prefmoe.system.run_files import LOSSES_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did.

    Attributes:
        steps: optimiser steps in all, those before a resumption included.
        seconds: wall time of these steps, summed over resumptions.
        losses: one row per step: step, lr_factor, total, one column per term (weighted), gradient_norm.
        resumed_from: steps that had been done before this call.
    """

    steps: int
    seconds: float
    losses: pd.DataFrame
    resumed_from: int


def total_steps(training: Training, method_config: Any) -> int:
    """Optimiser steps of a method: the edition's, times its ``steps_factor``, but at least one."""
    return max(1, round(training.steps * getattr(method_config, "steps_factor", 1.0)))


def learning_rate_factor(step: int, steps: int, training: Training) -> float:
    """Multiplier of every learning rate at a step (from 0): linear warm-up, then by a cosine or a straight line to
    0, or constant."""
    warmup = round(training.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "linear":
        return (steps - step) / max(1, steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def auxiliary_factor(step: int, steps: int, training: Training) -> float:
    """Multiplier of the auxiliary losses at a step (from 0): it rises from 0 to 1 over training.auxiliary_ramp."""
    ramp = int(training.auxiliary_ramp * steps)
    return min(1.0, step / ramp) if ramp else 1.0


def _optimizers(method: Method, training: Training) -> list[torch.optim.Optimizer]:
    """AdamW over the method's parameter groups; SparseAdam over those that only move in the rows of a batch. Sharded
    and whole parameters of a group become groups of their own, because one kernel updates a group."""
    sparse = set(map(id, method.sparse_parameters()))
    parts: dict[str, list[dict[str, Any]]] = {"whole": [], "sharded": [], "sparse": []}
    for group in method.parameter_groups():
        chosen: dict[str, list[torch.nn.Parameter]] = {name: [] for name in parts}
        for parameter in group["params"]:
            sharded = isinstance(parameter, DTensor)
            chosen["sparse" if id(parameter) in sparse else "sharded" if sharded else "whole"].append(parameter)
        for name, params in chosen.items():
            if params:
                parts[name].append({**group, "params": params, "base_lr": group["lr"]})
    dense, betas = parts["whole"] + parts["sharded"], (0.9, training.beta2)
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        decay = training.weight_decay
        optimizers.append(torch.optim.AdamW(dense, lr=0.0, betas=betas, weight_decay=decay, fused=True))
    if parts["sparse"]:
        if training.weight_decay:
            raise TrainingError("user_updates: sparse has no weight decay; set training.weight_decay: 0")
        optimizers.append(torch.optim.SparseAdam(parts["sparse"], betas=betas))
    return optimizers


@dataclass(frozen=True)
class Batches:
    """Which examples each batch of a training has, and how they become one.

    Attributes:
        plan: positions of the examples, a list for each batch.
        collate: number of the batch, this process and how many there are -> what the method's losses take.
    """

    plan: Sequence[Sequence[int]]
    collate: Callable[[int, int, int], Any]


def question_batches(method: Method, examples: Sequence[Example], training: Training, seed: int) -> Batches:
    """Batches of questions in the order of `plan_batches`. Raises PromptError if a question and its answer are longer
    than the model's positions."""
    plan = plan_batches(
        examples,
        method.benchmark,
        count=total_steps(training, method.config) * training.gradient_accumulation,
        batch_size=training.batch_size,
        seed=seed,
        group_batches=training.group_batches,
        one_form=training.batches_of_one_form,
    )
    if method.collator.cache:  # what is encoded is kept: a question that cannot be read is found before the first step
        for place in sorted({place for batch in plan for place in batch}):
            method.collator.encode(examples[place], with_answer=True)

    def collate(number: int, rank: int, world: int) -> Batch:
        chosen = [examples[place] for place in plan[number][rank::world]]
        return method.collator(chosen, transcripts=None, with_answer=True)

    return Batches(plan, collate)


def _memory_explained(step: int, steps: int) -> AbstractContextManager[None]:
    return memory.explained(TrainingError, f"step {step + 1} of {steps}", memory.TRAINING_HINT)


def train(
    method: Method,
    examples: Sequence[Example],
    training: Training,
    *,
    folder: str | Path,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    make_batches: Callable[[Method, Sequence[Any], Training, int], Batches] | None = None,
) -> TrainingResult:
    """Trains a method in place and logs each loss term.

    AdamW with the method's parameter groups, linear warm-up, gradient clipping. ``training.batch_size`` examples enter
    a forward pass (shared among the processes of ``accelerate launch``), and ``gradient_accumulation`` of these make a
    step. All randomness of a step (dropout) is drawn from (seed, step), and the order of the examples from the seed, so
    that a run resumed from ``folder/checkpoint`` ends in exactly the weights of one that was never interrupted.

    Args:
        on_step: called after every step with the number of steps done and the weighted terms.
        make_batches: of examples that are no questions; `question_batches` by default.

    Returns the losses of all steps, and their time. ``folder/losses.parquet`` holds the same losses. Raises
    TrainingError if there is nothing to train, a loss, a gradient or a weight is not finite (the latest checkpoint
    stays), memory does not suffice (the message says which settings help), or processes cannot share a batch equally;
    PromptError if a question and its answer are longer than the model's positions; CheckpointError if
    ``folder/checkpoint`` belongs to another run.
    """
    if not examples:
        raise TrainingError("no training examples: the benchmark's train split is empty")
    optimizers = _optimizers(method, training)
    if not optimizers:
        raise TrainingError(f"method {method.config.kind!r} has no trainable parameters")
    accelerator = Accelerator()
    if accelerator.scaler is not None:
        raise TrainingError("mixed precision fp16 cannot resume exactly; use bf16 or no")
    rank, world = accelerator.process_index, accelerator.num_processes
    if training.batch_size % world:
        raise TrainingError(f"a batch of {training.batch_size} cannot be shared equally among {world} processes")
    folder, device = Path(folder), method.backbone.device
    bf16 = training.mixed_precision == "bf16"
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if bf16 else accelerator.autocast
    steps = total_steps(training, method.config)
    micro = training.gradient_accumulation
    batches = (make_batches or question_batches)(method, examples, training, seed)
    plan = batches.plan
    identity = {
        "backbone": method.backbone.entry.name,
        "weights": method.backbone.digest,
        "users": method.identity()["users"],
        "method": method.config.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "examples": [example.index for example in examples],
    }
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    checkpoints = Checkpoints(folder / "checkpoint", identity, optimizers, names)
    parameters = checkpoints.parameters
    done, seconds_before, rows = checkpoints.load()
    if done:
        log.info("%s: resuming after step %d of %d", folder, done, steps)
    started = time.perf_counter()
    method.train()
    if training.gradient_checkpointing:
        method.model.activation_checkpointing_enable({"use_reentrant": False})
    bar = progress_bar(steps, f"train {method.backbone.entry.name} {method.config.kind} seed {seed}", done)
    try:
        for step in range(done, steps):
            factor, ramp = learning_rate_factor(step, steps, training), auxiliary_factor(step, steps, training)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["base_lr"] * factor
            set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
            summed: torch.Tensor | None = None
            names: list[str] = []
            for number in range(step * micro, (step + 1) * micro):
                batch = batches.collate(number, rank, world).to(device)
                with _memory_explained(step, steps), method.context(batch):
                    with autocast():
                        losses = method.training_losses(batch)
                    names = list(losses)
                    if ramp < 1.0:
                        losses = {n: ramp * loss if n in method.auxiliary else loss for n, loss in losses.items()}
                    terms = torch.stack([losses[name].float().to(device) for name in names])
                    accelerator.backward(terms.sum() / micro)
                summed = terms.detach() / micro if summed is None else summed + terms.detach() / micro
            distributed.average_gradients(parameters)
            summed = accelerator.reduce(summed, reduction="mean")
            norm = distributed.clip_gradients(parameters, training.clip_norm)
            *values, gradient_norm = torch.cat([summed, norm.reshape(1).to(summed)]).tolist()
            row = dict(zip(names, values, strict=True))
            if not (math.isfinite(gradient_norm) and all(map(math.isfinite, values))):
                indices = [examples[p].index for b in plan[step * micro : (step + 1) * micro] for p in b]
                raise TrainingError(
                    f"step {step + 1} of {steps}: loss or gradient is not finite: {row}, "
                    f"gradient norm {gradient_norm}; question indices of the batch: {indices}"
                )
            with _memory_explained(step, steps):
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            rows.append(
                {"step": step + 1, "lr_factor": factor, "total": sum(values), **row, "gradient_norm": gradient_norm}
            )
            bar.update()
            if (step + 1) % training.checkpoint_every == 0 or step + 1 == steps:
                seconds = seconds_before + time.perf_counter() - started
                checkpoints.save(step + 1, seconds, pd.DataFrame(rows))
            if on_step is not None:
                on_step(step + 1, row)
    finally:
        bar.close()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if training.gradient_checkpointing:
            method.model.activation_checkpointing_disable()
        method.eval()
    seconds = seconds_before + (time.perf_counter() - started if done < steps else 0.0)
    table = pd.DataFrame(rows)
    if accelerator.is_main_process:
        write_parquet(folder / LOSSES_FILE, table)
    log.info("%s: %d steps in %.1f s, final answer loss %.4f", folder, steps, seconds, rows[-1]["answer"])
    return TrainingResult(steps, seconds, table, done)
