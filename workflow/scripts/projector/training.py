"""What the tower says of lessons' pictures, kept; and the projector's training on it: losses, steps, and going on."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretraining.judging import judge
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import stack_pictures
from prefmoe.backbones.smollm2_lite import WEIGHTS
from prefmoe.backbones.tower_layout import tower_states
from prefmoe.system.files import is_intact, whole_file, write_json
from prefmoe.system.finite import check_finite
from prefmoe.system.places import PACKAGE
from projector.lessons import COLUMNS, Lesson, asked


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
            save({"states": states.half().cpu()}, path, sealed=True)
        parts.append(load_file(path)["states"])
    return torch.cat(parts)


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None, sealed: bool = False) -> None:
    with whole_file(path, sealed=sealed) as partial_path:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial_path, metadata)


def unread(folder: Path) -> dict[str, Any]:
    """The card of a folder whose language model is as published. Raises AssemblyError if it has learned to read, or the
    folder is none of smollm2_lite.fetch."""
    card = smollm2_lite.read_card(folder)
    if card.get("reading"):
        raise smollm2_lite.AssemblyError(f"{folder} can read; `prefmoe fetch smollm2 --unread` makes one that cannot")
    return card


def note(folder: Path, part: str, card: dict[str, Any]) -> None:
    """Writes into a model folder's card how a part was made, and the digest of the weights that hold it now."""
    origin = smollm2_lite.read_card(folder)
    digests = {**origin.get("sha256", {}), WEIGHTS: smollm2_lite.sha256(folder / WEIGHTS)}
    write_json(folder / smollm2_lite.CARD, {**origin, part: card, "sha256": digests})


def ship_part(tensors: dict[str, Tensor], card: dict[str, Any], path: Path, wanted: Mapping[str, float]) -> Path:
    """Puts what a part learned into the package, with its card beside it. Raises PretrainingError if it can less than
    it is made for, in the ``wanted`` abilities of its card (`judge`); of a path elsewhere, that is a warning."""
    judge(card["abilities"], wanted, path.stem, replaces=path.is_relative_to(PACKAGE))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(tensors, path)
    write_json(path.with_suffix(".json"), {**card, "sha256": smollm2_lite.sha256(path)})
    return path


def fit(
    module: nn.Module, loss: Callable[[np.random.Generator], Tensor], path: Path, *, steps: int, lr: float,
    every: int = 25, decay: bool = True,
) -> float:  # fmt: skip
    """Trains a module with AdamW; weights and moments are kept in ``path``. ``loss``: of one step; everything random in
    it comes from the generator, which depends on the step alone. ``decay``: of the learning rate, by a cosine.

    Returns the seconds that all steps took, those of interrupted calls included.
    """
    named = dict(module.named_parameters())
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    first, seconds, began = 0, 0.0, time.perf_counter()
    if is_intact(path):
        with safe_open(path, "pt") as file:
            seconds = float(file.metadata().get("seconds", 0))
            first, kept = int(file.metadata()["step"]), {name: file.get_tensor(name) for name in file.keys()}
        for name, parameter in named.items():
            parameter.data.copy_(kept[name])
            moments = {moment: kept[f"{name}/{moment}"].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(first)), **moments}
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=path.stem, disable=None)
    for step in bar:
        warmup = min(1.0, (step + 1) / max(1, steps // 20))
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup * (0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0)
        value = loss(np.random.default_rng([step, 41]))
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == steps:
            bar.set_postfix(loss=f"{value.item():.3f}")
            tensors = {name: parameter.detach() for name, parameter in named.items()}
            for name, parameter in named.items():
                for moment in ("exp_avg", "exp_avg_sq"):
                    tensors[f"{name}/{moment}"] = optimizer.state[parameter][moment]
            check_finite(tensors.items(), f"{path} is left as it was")
            seconds, began = seconds + time.perf_counter() - began, time.perf_counter()
            save(tensors, path, {"step": str(step + 1), "seconds": f"{seconds:.1f}"}, sealed=True)
    module.requires_grad_(False)
    return seconds


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
        return F.cross_entropy(*answers(backbone, rows, self.states[torch.from_numpy(chosen)]))


def answers(backbone: Backbone, rows: Sequence[tuple[Tensor, Tensor]], states: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and token ids (N,) of all that is to be said in these rows.

    Args:
        rows: token ids (T,) of a row, and which of them are to be said (T,).
        states: (n, tokens, D) of the rows' pictures, in order; there may be none.
    """
    ids = pad_sequence([row for row, _ in rows], batch_first=True, padding_value=backbone.pad_token_id)
    ids = ids.to(backbone.device)
    learned = pad_sequence([row for _, row in rows], batch_first=True).to(backbone.device)[:, 1:]
    embeddings = backbone.embed_tokens(ids)
    if len(states):
        tokens = backbone.projector(states.to(backbone.device, backbone.dtype))
        places = (ids == backbone.image_token_id).unsqueeze(-1).expand_as(embeddings)
        embeddings = embeddings.masked_scatter(places, tokens.to(embeddings.dtype))
    # Blanks stand behind a row, so that nothing in it looks at them.
    hidden = backbone.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    return backbone.lm_head(hidden[:, :-1][learned]).float(), ids[:, 1:][learned]


def tokenized(backbone: Backbone, lesson: Lesson, tokens: int) -> tuple[Tensor, Tensor]:
    """A lesson as token ids (T,), answer and end of sequence included, and which of them are to be said (T,)."""
    prompt = backbone.processor.apply_chat_template(asked(lesson), tokenize=False, add_generation_prompt=True)
    prompt = prompt.replace(backbone.entry.image_token, backbone.entry.image_token * tokens)
    texts = (prompt, lesson.answer)
    before, answer = (backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    ids = torch.tensor([*before, *answer, backbone.tokenizer.eos_token_id])
    return ids, torch.arange(len(ids)) >= len(before)
