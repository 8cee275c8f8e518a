"""What a run needs: parameters, memory, disk, GPUs and hours, estimated from shapes without loading anything.

docs/scale.md derives the formulas; tests hold them to measurements on small models. Bytes of parameters, gradients
and optimiser are exact, activations are within a factor of 1.5, hours are a guide.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import psutil

from prefmoe.config import (
    Edition,
    GraphExpertsMethod,
    LoRAMethod,
    Method,
    MiniatureData,
    PrefMoEMethod,
    ProbesMethod,
    PrototypesMethod,
    load_edition,
)
from prefmoe.config.registry import Shape, find_backbone
from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import ANCHORS, PREFIX_LENGTH, Ranks, published_router_shapes
from prefmoe.workflow import drawers, rivals
from prefmoe.workflow.lengths import longest, positions_of, prompt_tokens, too_long
from prefmoe.workflow.sessions import learns_to_see, reading, tower_activations
from prefmoe.workflow.shapes import ResourceError, shape_of

GIGABYTE = 1e9
WORKSPACE = 2 * GIGABYTE
"""Of each GPU: libraries, kernels' scratch space, a picture in the vision tower."""
FRAGMENTATION = 1.1
FOUR_BIT_BYTES = 0.5 + 0.127 / 8 + 1 / 64 / 8
"""Per weight: NF4 and its doubly quantised scales (a byte for 64 weights, and 4 bytes for 256 of these)."""

H100_FLOPS, H100_BANDWIDTH = 989e12, 3.35e12
"""Dense bfloat16 operations and bytes of memory per second of an H100 SXM, by its data sheet."""
USED = 0.35
"""Share of them that a run is assumed to reach."""

MMPB_USERS, MMPB_QUESTIONS = 111, 2145
"""Users of MMPB-clean, and its test questions (the paper's tables)."""


# --- parameters ---------------------------------------------------------------------------------------------------


def adapter_rows(shape: Shape) -> int:
    """Inputs plus outputs of the adapted projections (q, v, o, gate, up, down) of one layer: LoRA's size per rank."""
    if shape.adapted:
        return shape.adapted
    query, value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    attention = (shape.hidden + query) + (shape.hidden + value) + (query + shape.hidden)
    return attention + 3 * (shape.hidden + shape.intermediate)


def adapted_layers(method: Method, shape: Shape) -> int:
    """Decoder layers with adapters."""
    return min(shape.layers, getattr(method, "last_layers", None) or shape.layers)


def adapter_rank(method: Method) -> int:
    """Total rank of the adapters of one projection; 0 without."""
    if isinstance(method, PrefMoEMethod):
        return Ranks(method.preference_rank, method.user_rank, method.profile_rank).total
    if isinstance(method, GraphExpertsMethod):
        return method.pooled_rank + method.experts * method.expert_rank
    return getattr(method, "rank", 0) + getattr(method, "pooled_rank", 0)


def trained_parameters(method: Method, shape: Shape, users: int) -> int:
    """How many parameters a method trains, for so many users (all of them in the training split)."""
    if method.table_type == "FFT":
        return shape.parameters - shape.vision
    hidden = shape.hidden
    rows = adapter_rows(shape)
    if getattr(method, "targets", "projections") == "all_linear" and not shape.adapted:
        rows += hidden + shape.key_value_heads * shape.head_size  # k
    count = adapter_rank(method) * rows * adapted_layers(method, shape)
    if (of_rival := rivals.parameters(method, hidden, rows * adapted_layers(method, shape), users)) is not None:
        return of_rival
    if isinstance(method, PrototypesMethod):
        return method.prototypes * hidden or count + method.vision * shape.vision
    if getattr(method, "projector", False):
        count += 2 * hidden * (hidden + 1)  # at most: two maps, of which the first reads the tower's narrower states
    if isinstance(method, PrefMoEMethod):
        factorised = len(FACETS) * hidden + users * (len(ANCHORS) - 1) * hidden
        if method.user_state == "trained":
            anchored = "P" in method.components or method.user_embedding == "anchors"
            count += factorised if anchored else users * PREFIX_LENGTH * hidden
        if "M" in method.components and method.routers == "published":
            ranks = Ranks(method.preference_rank, method.user_rank, method.profile_rank)
            count += sum(map(math.prod, published_router_shapes(hidden, ranks).values()))
        elif "M" in method.components:
            task, preference, profile = 2 * (3 * hidden + 1), len(FACETS) * (2 * hidden + 1), 2 * (2 * hidden + 1)
            context = method.user_rank * (len(FACETS) * hidden + 1)
            label = (len(FACETS) + 1) * hidden if method.facet_label == "oracle" else 0
            count += task + preference + profile + context + label
    return count


def held_parameters(method: Method, shape: Shape, users: int) -> int:
    """How many parameters are the method's own: those that it trains, and in a second stage those of the first."""
    trained = trained_parameters(method, shape, users)
    if isinstance(method, PrototypesMethod) and method.prototypes:
        return trained + trained_parameters(method.model_copy(update={"prototypes": 0}), shape, users)
    return trained


def _held_bytes(method: Method, shape: Shape, users: int, width: int) -> int:
    """Of these in float32 beside the backbone's weights, which a tower that learned is among."""
    tower = shape.vision if isinstance(method, PrototypesMethod) and method.vision else 0
    return 4 * held_parameters(method, shape, users) - width * tower


# --- memory -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes in all processes' accelerators together, when one copy of the backbone is used.

    Attributes:
        parameters: weights, and what is trained beside them. gradients, optimiser: of what is trained.
        activations: kept for the backward pass, or the key-value cache.
    """

    parameters: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimiser + self.activations


def weight_bytes(shape: Shape, width: int, four_bit: bool = False) -> int:
    """Bytes of the frozen backbone at ``width`` bytes per weight, the decoder layers in 4 bits if asked for."""
    quantised = shape.decoder if four_bit else 0
    return round((shape.parameters - quantised) * width + quantised * FOUR_BIT_BYTES)


def activations_per_token(shape: Shape, method: Method, width: int) -> float:
    """Bytes that the backward pass needs per token, without gradient checkpointing.

    Counted per decoder layer in numbers of ``width`` bytes, with h, kv and m the widths of states, keys and MLP:
    8h + kv + 3m for a frozen layer, of which 2h only in half precision, where norms are computed in float32; 2h + m
    more where inputs of projections are needed for adapters' or weights' gradients. Adapters in float32 beside half
    precision keep float32 copies of these inputs, 5h + m, and each adapter four times its rank.
    """
    h, kv, m = shape.hidden, shape.key_value_heads * shape.head_size, shape.intermediate
    half = width < 4
    frozen = (8 if half else 6) * h + kv + 3 * m
    if method.table_type == "FFT":
        whole = frozen + 2 * h + m
        if half:  # autocast: the residual stream stays in float32
            whole += 4 * h
        return width * shape.layers * whole
    adapted = frozen + 2 * h + m + ((5 * h + m) * 4 / width if half else 0)
    adapted += 6 * 4 * adapter_rank(method) * 4 / width
    layers = adapted_layers(method, shape) if adapter_rank(method) else 0
    # Below the adapted layers gradients flow only towards soft tokens at the input, or the projector.
    towards_input = type(method) is not LoRAMethod or method.projector
    below = shape.layers - layers if towards_input and method.table_type != "NT" else 0
    return width * (layers * adapted + below * frozen)


def training_memory(
    method: Method,
    shape: Shape,
    *,
    users: int,
    tokens: int,
    width: int = 2,
    four_bit: bool = False,
    checkpointing: bool = False,
) -> Memory:
    """Memory of a training step over ``tokens`` tokens (batch times length) with a backbone of ``width`` bytes."""
    trained = trained_parameters(method, shape, users)
    whole = method.table_type == "FFT"
    kept = weight_bytes(shape, 4 if whole else width, four_bit)
    if not whole:
        kept += _held_bytes(method, shape, users, width)
        if isinstance(method, PrefMoEMethod) and "P" in method.components:
            kept += 4 * users * len(ANCHORS) * shape.hidden
    elif width < 4:
        kept += width * trained  # autocast's copies
    per_token = activations_per_token(shape, method, width)
    if checkpointing:
        per_token = per_token / shape.layers + width * shape.hidden * shape.layers
    return Memory(kept, 4 * trained, 8 * trained, round(tokens * per_token))


def evaluation_memory(
    method: Method, shape: Shape, *, users: int, tokens: int, width: int, four_bit: bool
) -> Memory:
    """Memory of answering prompts of ``tokens`` tokens in all: weights, key-value cache, and one layer's states."""
    whole = method.table_type == "FFT"
    kept = weight_bytes(shape, 4 if whole else width, four_bit)
    kept += 0 if whole else _held_bytes(method, shape, users, width)
    cache = 2 * shape.layers * shape.key_value_heads * shape.head_size * width
    states = (4 * shape.hidden + 3 * shape.intermediate) * max(width, 4)
    return Memory(kept, 0, 0, round(tokens * (cache + states)))


# --- a run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What one run needs. Bytes; hours on H100s; ``gpus`` is 0 for a miniature."""

    training: int
    evaluation: int
    download: int
    results: int
    gpus: int
    hours: float
    memory: int


def _users_and_questions(edition: Edition) -> tuple[int, int]:
    data = edition.data
    if isinstance(data, MiniatureData):
        return data.users + data.unseen_users, (data.users + data.unseen_users) * data.test_per_user
    return (MMPB_USERS, MMPB_QUESTIONS) if data.csv == "full.csv" else (MMPB_USERS, 40)


def needs(edition: Edition, backbone: str, method_name: str) -> Needs:
    """What the runs of a method on a backbone, all seeds one after the other, need. Raises ResourceError if the
    registry does not know the backbone's shape."""
    entry, method = find_backbone(backbone), edition.methods[method_name]
    shape, settings, training = shape_of(entry), edition.hardware, edition.training
    if method.generates or isinstance(method, ProbesMethod):
        rater = needs(edition, backbone, drawers.rater_behind(edition, method_name))
        return drawers.with_drawer(rater, edition, method_name, shape.hidden, USED * H100_FLOPS)
    small = entry.hub_id is None
    width = 4 if small else 2
    four_bit = settings.four_bit and not small and method.table_type != "FFT"
    length, read = prompt_tokens(method, shape, 0), None
    if edition.about_choices:
        read = reading(edition, method, method_name, shape)
        users, asked, learned = read.users, read.asked, read.learned
    else:
        users, questions = _users_and_questions(edition)
        asked = edition.evaluation.batch_size * prompt_tokens(method, shape, max(edition.evaluation.turns))
        learned = training.batch_size * length
    weights, again = {"users": users, "width": width, "four_bit": four_bit}, training.gradient_checkpointing
    answering, learning = evaluation_memory(method, shape, tokens=asked, **weights), Memory(0, 0, 0, 0)
    if method.table_type != "NT":
        learning = training_memory(method, shape, tokens=learned, checkpointing=again, **weights)
        if read is not None and learns_to_see(method):
            pictures = tower_activations(shape, read.learned_pictures, checkpointing=again)
            learning = replace(learning, activations=learning.activations + pictures)
    most = FRAGMENTATION * max(learning.total, answering.total)
    usable = settings.gpu_gigabytes * GIGABYTE - WORKSPACE
    gpus = 0 if small else math.ceil(most / usable)
    if gpus and settings.processes:
        gpus = settings.processes
    elif settings.launch == "ddp" and gpus == 1:
        gpus = settings.gpus_per_node
    seeds = len(edition.seeds_of(method_name))
    if read is not None:
        hours = seeds * read.operations / (USED * H100_FLOPS) / 3600
    else:
        hours = seeds * _hours(edition, method, shape, questions, width, four_bit)
    if settings.launch != "one" and gpus > 1:
        hours /= gpus
    trained = trained_parameters(method, shape, users)
    finished = 4 * held_parameters(method, shape, users) + (0 if read else 4 * users * len(ANCHORS) * shape.hidden)
    disk = seeds * finished + 2 * 12 * trained  # two checkpoints stand side by side while the newer one is written
    copies = gpus if settings.launch == "ddp" else 1
    memory = copies * weight_bytes(shape, 4 if method.table_type == "FFT" else width) + 16 * GIGABYTE
    if method.table_type == "FFT":
        memory += 12 * trained
    return Needs(
        training=round(FRAGMENTATION * learning.total),
        evaluation=round(FRAGMENTATION * answering.total),
        download=0 if small else 2 * shape.parameters,
        results=round(disk),
        gpus=gpus,
        hours=hours,
        memory=round(memory),
    )


def seconds_per_step(edition: Edition, method: Method, shape: Shape) -> float:
    """Seconds of one update on an H100, with all that accumulates for it; 0 for what is not trained."""
    training = edition.training
    if method.table_type == "NT":
        return 0.0
    tokens = training.batch_size * training.gradient_accumulation * prompt_tokens(method, shape, 0)
    passes = (3 if method.table_type == "FFT" else 2) + (1 if training.gradient_checkpointing else 0)
    return tokens * passes * _forward(shape) / (USED * H100_FLOPS)


def _forward(shape: Shape) -> int:
    """Operations of a forward pass for each token."""
    return 2 * ((shape.active or shape.decoder) + shape.vision)


def _hours(edition: Edition, method: Method, shape: Shape, questions: int, width: int, four_bit: bool) -> float:
    """Hours of one seed on one H100: operations of the passes, and reading the weights for every generated token."""
    evaluation = edition.evaluation
    learning = edition.training.steps * getattr(method, "steps_factor", 1.0) * seconds_per_step(edition, method, shape)
    operations = reading = 0.0
    for turns in (*evaluation.turns, *(0 for _ in evaluation.controls)):
        operations += questions * prompt_tokens(method, shape, turns) * _forward(shape)
        reads = math.ceil(questions / evaluation.batch_size) * evaluation.max_new_tokens
        reading += reads * weight_bytes(shape, width, four_bit)
    return (learning + operations / (USED * H100_FLOPS) + reading / (USED * H100_BANDWIDTH)) / 3600


# --- the workflow and the command ---------------------------------------------------------------------------------


def job(edition: Edition, pairs: list[tuple[str, str]], *, training: bool) -> dict[str, Any]:
    """GPUs, main memory (MB) and minutes of a job that works on these (backbone, method) pairs one after the other.
    Without training, a notebook loads finished runs. Where the registry knows no shape, a node's GPUs are asked for."""
    gpus, memory, minutes = 0, 16000, 60.0
    for backbone, method in pairs:
        try:
            need = needs(edition, backbone, method)
        except ResourceError:
            gpus, memory, minutes = edition.hardware.gpus_per_node, max(memory, 400_000), max(minutes, 24 * 60.0)
            continue
        usable = edition.hardware.gpu_gigabytes * GIGABYTE - WORKSPACE
        gpus = max(gpus, need.gpus if training else min(need.gpus, math.ceil(need.evaluation / usable)))
        memory = max(memory, round(need.memory / 1e6))
        if training:  # three times the estimate, and a start
            minutes = max(minutes, 30 + 3 * 60 * need.hours)
    return {"gpus": gpus, "mem_mb": memory, "runtime": math.ceil(minutes)}


def machine() -> tuple[str, float]:
    """What this machine has: a description, and the bytes that a backbone could use."""
    import torch  # for nothing else here: a workflow is planned without it

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        total = sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
        return f"{count} x {torch.cuda.get_device_name(0)}, {total / GIGABYTE:.0f} GB", total - count * WORKSPACE
    total = psutil.virtual_memory().total
    return f"no GPU, {total / GIGABYTE:.0f} GB of main memory", 0.8 * total


def _trained(edition: Edition, method: Method, shape: Shape, users: int) -> int:
    if method.generates:
        return drawers.trained(edition, method, shape.hidden)
    return trained_parameters(method, shape, users)


def table(edition: Edition | str) -> pd.DataFrame:
    """One row per backbone and method of an edition's tables; gigabytes (1e9 bytes), hours on an H100; tokens of the
    longest prompt at most, and the positions that the backbone has for them, "?" where nobody wrote it down."""
    edition = load_edition(edition)
    has, room = machine()
    on_cpu = has.startswith("no GPU")
    rows = []
    for backbone in edition.backbones:
        entry = find_backbone(backbone)
        for name in (method for owner, method in edition.runs() if owner == backbone):
            try:
                shape, need = shape_of(entry), needs(edition, backbone, name)
            except ResourceError:
                rows.append({"backbone": backbone, "method": name, "fits": "shape not in the registry"})
                continue
            method = edition.methods[name]
            doubled = on_cpu and entry.hub_id and method.table_type != "FFT"  # the CPU computes in float32
            fits = [
                word
                for word, size in (("train", need.training), ("evaluate", need.evaluation))
                if size and size * (1 + bool(doubled)) <= room
            ]
            users = 0 if edition.about_choices else _users_and_questions(edition)[0]
            rows.append(
                {
                    "backbone": backbone,
                    "method": name,
                    "tokens": "-" if edition.about_choices else longest(edition, method, entry),
                    "positions": positions_of(entry) or "?",
                    "parameters": f"{shape.parameters / 1e9:.3g}e9",
                    "trained": f"{_trained(edition, method, shape, users) / 1e6:.4g}e6",
                    "train_GB": round(need.training / GIGABYTE, 2) if need.training else "-",
                    "evaluate_GB": round(need.evaluation / GIGABYTE, 2),
                    "GPUs": need.gpus,
                    "download_GB": round(need.download / GIGABYTE, 1),
                    "results_GB": round(need.results / GIGABYTE, 2),
                    "H100_hours": float(f"{need.hours:.2g}") if need.gpus else "-",
                    "fits": " and ".join(fits) or "no",
                }
            )
    return pd.DataFrame(rows)


def warnings(edition: Edition | str) -> list[str]:
    """A line for each row whose prompts may be longer than its backbone has positions for."""
    edition = load_edition(edition)
    if edition.about_choices:
        return []
    found = []
    for backbone, name in edition.runs():
        with suppress(ResourceError):
            found.append(too_long(edition, find_backbone(backbone), name))
    return [line for line in found if line]
