"""Teaches the small edition's projector to say what the frozen vision tower sees, in LLaVA's two stages.

1. drawings: pictures of the drawing world, drawn for this. First the token of each place learns to resemble the words
   for what is there, without running the language model; then captions, through the frozen language model;
2. photographs: portraits and training photographs of MMPB-clean with the descriptions of who is in them. They are
   for research only, so that what is learned from them stays with whoever has them.

The tower's output is computed once per picture, and everything can be interrupted: the same call goes on.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.pictures import load_pictures, stack_pictures
from prefmoe.backbones.tower_layout import tower_states
from prefmoe.config import RESULTS, Edition, MiniatureData
from prefmoe.data import miniature
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET, Face, draw_items, draw_people
from prefmoe.data.prompts import fill
from prefmoe.data.sources import load_benchmark
from prefmoe.system import provenance
from prefmoe.system.files import is_intact, whole_file, write_json

log = logging.getLogger(__name__)

Stage = Literal["drawings", "photographs"]

RECIPE: dict[str, dict[str, Any]] = {
    "drawings": {"items": 1200, "quarters": 240, "people": 720},
    "words": {"steps": 600, "batch": 512, "lr": 2e-3},
    "captions": {"steps": 150, "batch": 6, "lr": 5e-4},
    "photographs": {"steps": 200, "batch": 8, "lr": 2e-4},
}
"""How many drawings of each kind, and for each part of the stages its steps, examples per step and learning rate."""

UNSEEN = {"items": 120, "quarters": 0, "people": 60}
"""Drawings that abilities are measured on: of the same kinds, by another seed."""

COLUMNS = [list(ITEM_FACET), *(list(words) for words in ATTRIBUTES.values())]
"""The words a place of a drawing can be named by: of its item, and of each attribute of its person."""

NAME_IT, LIST_THEM, DESCRIBE = "What is this?", "What is in this picture?", "Describe this picture."

_WHAT = {"human": "person"}
"""What a description calls its subject in the place of the name, where that is not MMPB's word for the kind."""


@dataclass(frozen=True)
class Lesson:
    """A picture with what should be said about it.

    Attributes:
        picture: makes it, always the same.
        labels: (side, side, 7), for each place the index of its word in each of COLUMNS, or -1; None for photographs.
    """

    picture: Callable[[], Image.Image]
    question: str
    answer: str
    labels: np.ndarray | None = None


# --- lessons ------------------------------------------------------------------------------------------------------


def drawings(items: int, quarters: int, people: int, *, seed: int, side: int = 7) -> list[Lesson]:
    """Drawings of one item, of four, and of one to three invented people, who never look like a benchmark's user."""
    rng = np.random.default_rng([seed, 31])
    avoid = {person.face for group in miniature.people(MiniatureData(kind="miniature")) for person in group}
    words = list(ITEM_FACET)
    lessons = []
    for index in range(items + quarters):
        shown = [words[index % len(words)]] if index < items else [str(w) for w in rng.choice(words, 4, replace=False)]
        picture = partial(_drawn, draw_items, shown, int(rng.integers(2**62)))
        labels = np.full((side, side, len(COLUMNS)), -1)
        half = side // 2
        for place, item in enumerate(shown):
            rows, columns = (slice(None),) * 2 if len(shown) == 1 else (
                slice(place // 2 * (side - half), place // 2 * (side - half) + half),
                slice(place % 2 * (side - half), place % 2 * (side - half) + half),
            )  # fmt: skip
            labels[rows, columns, 0] = words.index(item)
        answer = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
        lessons.append(Lesson(picture, NAME_IT if len(shown) == 1 else LIST_THEM, answer, labels))
    for index in range(people):
        faces: list[Face] = []
        while len(faces) < 1 + index % 3:
            if (face := Face.random(rng)) not in avoid:
                faces.append(face)
        picture = partial(_drawn, draw_people, faces, int(rng.integers(2**62)))
        labels = np.full((side, side, len(COLUMNS)), -1)
        edges = np.linspace(0, side, len(faces) + 1)
        for face, left, right in zip(faces, edges[:-1], edges[1:], strict=True):
            columns = slice(math.ceil(left), math.floor(right))  # a place that two people share belongs to neither
            for column, (attribute, values) in enumerate(ATTRIBUTES.items(), start=1):
                labels[:, columns, column] = list(values).index(getattr(face, attribute))
        descriptions = [fill(face.description(), "This") for face in faces]
        answer = descriptions[0] if len(faces) == 1 else " ".join(
            text.replace("This is a", f"On the {where} is a")
            for text, where in zip(descriptions, miniature.PLACES[len(faces)], strict=True)
        )  # fmt: skip
        lessons.append(Lesson(picture, DESCRIBE, answer, labels))
    return lessons


def _drawn(draw: Callable[..., Image.Image], content: Sequence[Any], seed: int) -> Image.Image:
    return draw(content, np.random.default_rng(seed))


def photographs(benchmark: Benchmark) -> list[Lesson]:
    """Every user's portraits, and the training photographs that show a user, with the description of who it is."""
    shown = {(path, name) for name, user in benchmark.users.items() for path in user.images}
    for example in benchmark.select("train"):
        if example.category == "recognition" and example.l2_category == "awareness":
            shown.add((example.image, example.name))
    lessons = []
    for path, name in sorted(shown, key=str):
        user = benchmark.users[name]
        subject = f"This {_WHAT.get(user.attribute, user.attribute)}"
        lessons.append(Lesson(partial(_opened, path), DESCRIBE, fill(user.description, subject)))
    return lessons


def _opened(path: Path) -> Image.Image:
    return load_pictures([path])[0]


# --- features -----------------------------------------------------------------------------------------------------


def features(backbone: Backbone, lessons: Sequence[Lesson], folder: Path, chunk: int = 32) -> Tensor:
    """What the projector receives for each lesson's picture, (n, tokens, D) in half precision.

    Kept in ``folder``, a file per ``chunk`` pictures, so that the tower reads every picture once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in tqdm(range(0, len(lessons), chunk), desc=f"features, {folder.name}", disable=None):
        path = folder / f"{start:06d}.safetensors"
        if not is_intact(path):
            images = [lesson.picture() for lesson in lessons[start : start + chunk]]
            inputs = stack_pictures([backbone.process_pictures([image]) for image in images])
            states = tower_states(backbone, {key: value.to(backbone.device) for key, value in inputs.items()})
            _save({"states": states.half().cpu()}, path, sealed=True)
        parts.append(load_file(path)["states"])
    return torch.cat(parts)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None, sealed: bool = False) -> None:
    with whole_file(path, sealed=sealed) as partial_path:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial_path, metadata)


# --- training -----------------------------------------------------------------------------------------------------


def fit(
    projector: nn.Module, loss: Callable[[np.random.Generator], Tensor], path: Path, *, steps: int, lr: float,
    every: int = 25,
) -> None:  # fmt: skip
    """Trains a projector with AdamW and a cosine schedule; weights and moments are kept in ``path``.

    Args:
        loss: of one step; everything random in it comes from the generator, which depends on the step alone.
    """
    named = dict(projector.named_parameters())
    projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    first = 0
    if is_intact(path):
        with safe_open(path, "pt") as file:
            first, kept = int(file.metadata()["step"]), {name: file.get_tensor(name) for name in file.keys()}
        for name, parameter in named.items():
            parameter.data.copy_(kept[name])
            moments = {moment: kept[f"{name}/{moment}"].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(first)), **moments}
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=path.stem, disable=None)
    for step in bar:
        warmup = min(1.0, (step + 1) / max(1, steps // 20))
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(np.random.default_rng([step, 41]))
        value.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == steps:
            bar.set_postfix(loss=f"{value.item():.3f}")
            tensors = {name: parameter.detach() for name, parameter in named.items()}
            for name, parameter in named.items():
                for moment in ("exp_avg", "exp_avg_sq"):
                    tensors[f"{name}/{moment}"] = optimizer.state[parameter][moment]
            _save(tensors, path, {"step": str(step + 1)}, sealed=True)
    projector.requires_grad_(False)


def word_vectors(backbone: Backbone) -> tuple[list[Tensor], Tensor]:
    """For each of COLUMNS, a word's mean input embedding less that of all tokens, (words, H); and the latter (H,).

    Tokens have most of their embedding in common, which says nothing about which one it is.
    """
    common = backbone.embed_tokens.weight.mean(0).detach()
    return [backbone.text_anchors([f" {word}" for word in words], "embedding") - common for words in COLUMNS], common


class Words:
    """The loss of single places: cross entropy over each column's words by cosine, and distance to the words' mean."""

    def __init__(self, backbone: Backbone, states: Tensor, labels: np.ndarray, *, batch: int) -> None:
        """states: (n, tokens, D). labels: (n, tokens, columns)."""
        self.projector, self.batch = backbone.projector, batch
        self.vectors, self.common = word_vectors(backbone)
        named = torch.from_numpy((labels >= 0).any(-1))
        self.states, self.labels = states[named], torch.from_numpy(labels)[named].to(backbone.device)
        self.scale = torch.cat(self.vectors).var()

    def __call__(self, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(len(self.states), size=self.batch))
        labels = self.labels[chosen]
        tokens = self.projector(self.states[chosen].to(labels.device, self.common.dtype)) - self.common
        target, loss = torch.zeros_like(tokens), tokens.new_zeros(())
        for column, vectors in enumerate(self.vectors):
            own = labels[:, column]
            has = own >= 0
            cosines = F.normalize(tokens, dim=-1) @ F.normalize(vectors, dim=-1).T
            loss = loss + F.cross_entropy(cosines[has] / 0.07, own[has], reduction="sum") / len(labels)
            target[has] += vectors[own[has]]
        target = target / (labels >= 0).sum(-1, keepdim=True)
        return loss + F.mse_loss(tokens, target) / self.scale


class Captions:
    """The loss of answers, through the frozen language model."""

    def __init__(self, backbone: Backbone, states: Tensor, lessons: Sequence[Lesson], *, batch: int) -> None:
        """states: (n, tokens, D) of the lessons' pictures."""
        self.backbone, self.states, self.batch = backbone, states, batch
        self.sequences = [tokenized(backbone, lesson, states.shape[1]) for lesson in lessons]

    def __call__(self, rng: np.random.Generator) -> Tensor:
        backbone = self.backbone
        chosen = rng.choice(len(self.sequences), min(self.batch, len(self.sequences)), replace=False)
        rows = [self.sequences[index] for index in chosen]
        ids = pad_sequence([row for row, _ in rows], batch_first=True, padding_value=backbone.pad_token_id)
        ids = ids.to(backbone.device)
        tokens = backbone.projector(self.states[torch.from_numpy(chosen)].to(backbone.device, backbone.dtype))
        embeddings = backbone.embed_tokens(ids)
        places = (ids == backbone.image_token_id).unsqueeze(-1).expand_as(embeddings)
        embeddings = embeddings.masked_scatter(places, tokens)
        attention = torch.zeros_like(ids)
        answered = torch.zeros_like(ids, dtype=torch.bool)
        for row, (sequence, prompt) in enumerate(rows):  # a few rows, to write masks
            attention[row, : len(sequence)] = 1
            answered[row, prompt : len(sequence)] = True
        hidden = backbone.language_model(
            inputs_embeds=embeddings, attention_mask=attention, use_cache=False
        ).last_hidden_state
        logits = backbone.lm_head(hidden[:, :-1][answered[:, 1:]])
        return F.cross_entropy(logits, ids[:, 1:][answered[:, 1:]])


def asked(lesson: Lesson) -> list[dict[str, Any]]:
    """The chat in which a lesson's question is asked, its picture first."""
    content = [{"type": "image"}, {"type": "text", "text": f"\n{lesson.question}\n"}]
    return [{"role": "user", "content": content}]


def tokenized(backbone: Backbone, lesson: Lesson, tokens: int) -> tuple[Tensor, int]:
    """A lesson as token ids (T,), answer and end of sequence included, and where the answer begins."""
    prompt = backbone.processor.apply_chat_template(asked(lesson), tokenize=False, add_generation_prompt=True)
    prompt = prompt.replace(backbone.entry.image_token, backbone.entry.image_token * tokens)
    texts = (prompt, lesson.answer)
    before, answer = (backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return torch.tensor([*before, *answer, backbone.tokenizer.eos_token_id]), len(before)


# --- abilities ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def abilities(backbone: Backbone, lessons: Sequence[Lesson], states: Tensor) -> dict[str, dict[str, float | int]]:
    """What the model says about drawings it has not learned from, by its own forward path.

    Returns:
        name -> accuracy and n: of items named in the model's own words; of items whose word is the nearest to the
        mean token; of attribute words of a lone person that the model's description has.
    """
    nearest, spoken, described, attributes = [], [], 0, 0
    (items, *_), common = word_vectors(backbone)
    items = F.normalize(items, dim=-1)
    for lesson, state in zip(tqdm(lessons, desc="abilities", disable=None), states, strict=True):
        if lesson.question == NAME_IT:
            mean = backbone.projector(state.to(backbone.device, backbone.dtype)).mean(0)
            nearest.append(COLUMNS[0][int((items @ (mean - common)).argmax())] == lesson.answer)
            spoken.append(said(backbone, lesson, 6).strip(" .").lower() == lesson.answer)
        elif lesson.answer.startswith("This"):
            wanted = set(re.findall(r"\w+", lesson.answer)) & {word for words in COLUMNS[1:] for word in words}
            described += len(wanted & set(re.findall(r"\w+", said(backbone, lesson, 32))))
            attributes += len(wanted)
    return {
        "naming items of unseen drawings": {"accuracy": round(float(np.mean(spoken)), 3), "n": len(spoken)},
        "nearest word of unseen items": {"accuracy": round(float(np.mean(nearest)), 3), "n": len(nearest)},
        "attributes said of unseen people": {"accuracy": round(described / attributes, 3), "n": attributes},
    }


def said(backbone: Backbone, lesson: Lesson, tokens: int) -> str:
    """The model's greedy answer, of at most so many tokens."""
    batch = pad([encode(backbone, asked(lesson), [lesson.picture()])], backbone.pad_token_id)
    batch = batch.to(backbone.device)
    output = backbone.model.generate(**batch.inputs, max_new_tokens=tokens, do_sample=False)
    return backbone.tokenizer.decode(output[0, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# --- stages -------------------------------------------------------------------------------------------------------


def teach(
    folder: str | Path, stage: Stage, *, edition: Edition | None = None, work: str | Path | None = None,
    recipe: dict[str, dict[str, Any]] = RECIPE, unseen: dict[str, int] = UNSEEN,
) -> dict[str, Any]:  # fmt: skip
    """Runs one stage for a folder of smollm2_lite.fetch and puts the projector into it.

    The first stage starts from a random projector, the second from the one in the folder.

    Args:
        edition: whose benchmark has the photographs of the second stage.
        work: where features and interrupted training are kept; results/projector/<stage> by default.

    Returns:
        the card: recipe, minutes, language model, and abilities.

    Raises:
        SourceError: if the photographs are missing. BackboneError: if the folder holds no such model.
    """
    folder, began = Path(folder), time.time()
    origin = smollm2_lite.read_card(folder)
    backbone = load_backbone(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    start = origin["weights"] if stage == "photographs" else origin["language_model"]
    code = provenance.code_digest(("prefmoe.data.drawing",), ())
    kept = Path(work or RESULTS / "projector" / stage)
    work = kept / provenance.digest([recipe, start, code])[:12]
    work.mkdir(parents=True, exist_ok=True)

    def seen(name: str, lessons: Sequence[Lesson], made_from: Any) -> Tensor:
        digest = provenance.digest([made_from, origin["vision_tower"], code])[:12]
        return features(backbone, lessons, kept / f"{name}-{digest}")

    side = backbone.model.config.vision_config.image_size // backbone.model.config.vision_config.patch_size
    checked = drawings(**unseen, seed=1, side=side)
    if stage == "drawings":
        backbone.projector.load_state_dict(smollm2_lite.new_projector(backbone.model.config, seed=0))
        lessons = drawings(**recipe["drawings"], seed=0, side=side)
        states = seen("drawings", lessons, recipe["drawings"])
        labels = np.stack([lesson.labels for lesson in lessons]).reshape(len(lessons), side * side, -1)
        _part(backbone, "words", Words, recipe, work, states, labels)
        _part(backbone, "captions", Captions, recipe, work, states, lessons)
    else:
        benchmark = load_benchmark(edition)
        lessons = photographs(benchmark)
        states = seen("photographs", lessons, benchmark.digest)
        _part(backbone, "photographs", Captions, recipe, work, states, lessons)
    parts = ["drawings", "words", "captions"] if stage == "drawings" else ["photographs"]
    card = {
        "made_by": f"prefmoe align <folder> {stage}",
        "recipe": {name: recipe[name] for name in parts},
        "pictures": len(lessons),
        "language_model": origin["language_model"],
        "vision_tower": origin["vision_tower"],
        "minutes": round((time.time() - began) / 60, 1),
        "abilities": abilities(backbone, checked, seen("unseen", checked, unseen)),
    }
    put_projector(folder, backbone.projector.state_dict(), card)
    return card


def _part(backbone: Backbone, name: str, loss: Callable[..., Any], recipe: dict, work: Path, *data: Any) -> None:
    options = recipe[name]
    fit(
        backbone.projector, loss(backbone, *data, batch=options["batch"]), work / f"{name}.safetensors",
        steps=options["steps"], lr=options["lr"],
    )  # fmt: skip


def put_projector(folder: Path, projector: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Writes a projector into a model folder, and into its card how it was made; the rest stays as it is."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for name, value in projector.items():
        (place,) = [key for key in tensors if key.endswith(f"multi_modal_projector.{name}")]
        tensors[place] = value.detach().cpu().half().float()  # as precise as the one that the package holds
    _save(tensors, weights, {"format": "pt"})
    digest = {"file": weights.name, "sha256": smollm2_lite.sha256(weights)}
    smollm2_lite.write_card(folder, {**smollm2_lite.read_card(folder), "projector": card, "weights": digest})


def ship(folder: str | Path, path: Path = smollm2_lite.PROJECTOR) -> Path:
    """Copies a folder's projector into the package, in half precision, with a card beside it.

    Raises:
        AssemblyError: if it is not one of the first stage: photographs of the second must not be redistributed.
    """
    folder = Path(folder)
    card = smollm2_lite.read_card(folder)["projector"]
    if not isinstance(card, dict) or "drawings" not in card["recipe"]:
        raise smollm2_lite.AssemblyError(f"{folder} holds no projector that was made from drawings alone")
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(dict(_projector_tensors(folder)), path)
    card = {**card, "sha256": smollm2_lite.sha256(path)}
    write_json(path.with_suffix(".json"), card)
    return path


def _projector_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():
            _, found, part = name.partition("multi_modal_projector.")
            if found:
                yield part, file.get_tensor(name).half()
