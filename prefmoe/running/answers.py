"""What a run answers: its questions after so much small talk, and the test questions under controls."""

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from prefmoe.config import ControlKind, Evaluation
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.models.base import Method
from prefmoe.models.controls import controlled, controls_of
from prefmoe.running.evaluation import evaluate
from prefmoe.system import distributed
from prefmoe.system.files import FileError, is_intact, read_json, write_json, write_parquet

log = logging.getLogger(__name__)

Kept = tuple[pd.DataFrame, float]
"""Answers, and the seconds they took."""


def answers(
    method: Method,
    examples: Sequence[Example],
    settings: Evaluation,
    folder: Path,
    *,
    turns: int,
    benchmark: Benchmark,
    control: ControlKind | None = None,
) -> Kept | None:
    """Answers to questions after so much small talk, under a control if one is given; None but in the main process.
    Those of an interrupted run are read."""
    name = f"answers-{turns}" if control is None else f"answers-{turns}-{control}"
    file, timing = folder / f"{name}.parquet", folder / f"{name}.json"
    if (kept := _kept(file, timing)) is not None:
        return kept
    under: AbstractContextManager[None] = nullcontext() if control is None else controlled(method, control)
    started = time.perf_counter()
    with under:
        frame = evaluate(
            method,
            examples,
            turns=turns,
            transcripts=benchmark.transcripts,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            reuse_prefixes=settings.reuse_prefixes,
            too_long=settings.too_long,
            folder=folder / name,
        )
    if not distributed.state().is_main_process:
        return None
    seconds = time.perf_counter() - started
    write_parquet(file, frame, sealed=True)
    write_json(timing, {"seconds": seconds})
    return pd.read_parquet(file), seconds


def controlled_answers(
    method: Method, settings: Evaluation, folder: Path, *, kinds: Sequence[ControlKind], benchmark: Benchmark
) -> tuple[pd.DataFrame | None, dict[str, float]]:
    """Answers to the test questions without small talk, under each control that the method has. Returns the columns of
    predictions and ``control``, and the seconds of each control; None where there is nothing."""
    chosen = [kind for kind in controls_of(method) if kind in kinds]
    tested = [benchmark.examples[index] for index in benchmark.splits.get("test", ())]
    if skipped := [kind for kind in kinds if kind not in chosen]:
        log.info("%s has no control %s: left out", method.config.label, ", ".join(skipped))
    frames, seconds = [], {}
    for kind in chosen if tested else ():
        if (kept := answers(method, tested, settings, folder, turns=0, benchmark=benchmark, control=kind)) is not None:
            frames.append(kept[0].assign(control=kind))
            seconds[kind] = kept[1]
    return (pd.concat(frames, ignore_index=True) if frames else None), seconds


def context_tokens(method: Method, examples: Sequence[Example]) -> float:
    """How many tokens of a prompt tell the model of its user, on average over these questions.

    They are soft tokens, and what stands before the question without small talk: a profile with its picture, an opening
    that a method adds, and that these were acknowledged.
    """
    collator = method.collator
    if collator.profile == "none" and not collator.wording.opening:
        return float(collator.prefix_length)
    plain = collator.untold()
    # How long it is depends on the user, and on the question where a part of the profile is all that is shown.
    counts: dict[Any, int] = {}
    total = 0
    for example in examples:
        key = example.name, collator.told(example)
        if key not in counts:
            counts[key] = collator.length(example) - plain.length(example)
        total += counts[key]
    return total / len(examples)


def _kept(file: Path, timing: Path) -> Kept | None:
    """What an interrupted run had answered; None where either file is missing or damaged."""
    if not (timing.is_file() and is_intact(file)):
        return None
    try:
        return pd.read_parquet(file), float(read_json(timing, "the time that answers took")["seconds"])
    except (FileError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: asked again (%s: %r)", file, timing.name, error)
        return None
