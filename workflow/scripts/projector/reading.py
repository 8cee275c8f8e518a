"""Teaches the small edition's language model to look up in a profile what somebody likes, before it meets any user.

Conversations are the miniatures' own (pretraining.conversations), about people invented for one of them each; at first
they name the item, later a drawing shows it. Low-rank updates (Hu et al. 2022) of the decoder's linear layers learn;
tower and projector stay as they are. What was learned becomes part of the folder's weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from pretraining.conversations import Conversations, Say
from pretraining.drawings import Pictures
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import RESULTS
from prefmoe.data.prompts import message
from prefmoe.running.record import hardware
from prefmoe.system import provenance
from projector.lessons import LIST_THEM, NAME_IT, Lesson, drawings
from projector.training import answers, features, fit, note, save, ship_part, unread

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

PROFILES = {"facets": 3, "negated": 0.0, "choices": 0.0, "questions": 6, "pictures": False}
FULL = {"facets": 5, "negated": 0.3, "choices": 0.4, "questions": 6, "pictures": False}

RECIPE: dict[str, dict[str, Any]] = {
    "drawings": {"items": 1200, "quarters": 240, "people": 0},
    "updates": {"rank": 8, "alpha": 16},
    "words": {"lesson": 2, "steps": 30, "lr": 1.5e-3},
    "sentences": {"lesson": 3, "steps": 10, "lr": 1e-3},
    "profiles": {**PROFILES, "steps": 15, "lr": 1e-3},
    "negations": {**PROFILES, "negated": 0.3, "steps": 50, "lr": 1e-3},
    "choices": {**FULL, "steps": 40, "lr": 1e-3},
    "pictures": {**FULL, "choices": 0.3, "questions": 3, "pictures": True, "steps": 60, "lr": 1e-3},
}
"""What is drawn; the updates; and of each part what its conversations are like, its steps and its learning rate. A
lesson is one of the miniatures' first; elsewhere: most facets of a profile, shares of questions with a "not" and with
four options, questions in a conversation, and whether drawings show what is asked about."""

CONVERSATIONS = 8
"""In a step."""

WANTED = {"preference yes/no, in words": 0.9, "preference yes/no, of a drawing": 0.85}
"""Accuracies that the language model is made for: those of the shipped one are 1.00 and .96."""


def low_rank_updates(backbone: Backbone, rank: int, alpha: int) -> nn.ParameterDict:
    """Puts updates that change nothing yet on the decoder's linear layers; returns what learns, by layer and matrix."""
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=LINEAR), backbone.language_model)
    found = {}
    for name, value in backbone.language_model.named_parameters():
        if "lora_" in name:
            layer, _, matrix = name.removesuffix(".default.weight").partition(".lora_")
            found[f"{layer}.{matrix}".replace(".", "/")] = value
    return nn.ParameterDict(found)


def pool_of(lessons: Sequence[Lesson]) -> Pictures:
    """The lessons' drawings of items, for conversations to choose from."""
    items: dict[str, list[int]] = {}
    for index, lesson in enumerate(lessons):
        if lesson.question == NAME_IT:
            items.setdefault(lesson.answer, []).append(index)
    quarters: dict[int, list[str]] = {k: [] for k, lesson in enumerate(lessons) if lesson.question == LIST_THEM}
    return Pictures(np.empty(0), np.empty(0), items, quarters, groups={}, faces=[])


def tokenized(backbone: Backbone, turns: Sequence[Say], tokens: int) -> tuple[Tensor, Tensor, list[int]]:
    """A conversation by the chat template: token ids (T,), which of them are to be said (T,), pictures in order.

    Args:
        tokens: of one picture.
    """
    ids: list[int] = []
    learned: list[bool] = []

    def add(text: str, learn: bool = False) -> None:
        more = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(more)
        learned.extend([learn] * len(more))

    for number, say in enumerate(turns):
        if say.role == "assistant":
            add(f"{say.text}{backbone.tokenizer.eos_token}", learn=say.learn)
            continue
        asked = turns[number + 1].learn
        content = message("user", f"\n{say.text.rstrip()}\n" if asked else say.text, pictures=len(say.pictures))
        prompt = backbone.processor.apply_chat_template([content], tokenize=False, add_generation_prompt=True)
        prompt = prompt.replace(backbone.entry.image_token, backbone.entry.image_token * tokens)
        add(f"\n{prompt}" if number else prompt)
    return torch.tensor(ids), torch.tensor(learned), [picture for say in turns for picture in say.pictures]


class Reading:
    """The loss of answers in a part's conversations, through the decoder with its updates."""

    def __init__(self, backbone: Backbone, states: Tensor, lessons: Sequence[Lesson], part: dict[str, Any]) -> None:
        """states: (n, tokens, D) of the lessons' pictures. part: of the recipe."""
        self.backbone, self.states, self.part, self.pool = backbone, states, part, pool_of(lessons)

    def conversations(self, rng: np.random.Generator, count: int) -> list[list[Say]]:
        """So many, as the part wants them."""
        part = self.part
        if "lesson" in part:
            drawn = Conversations(None, rng)
            return [drawn.lesson(part["lesson"]) for _ in range(count)]
        drawn = Conversations(self.pool if part["pictures"] else None, rng, part["negated"])
        facets = rng.integers(1, part["facets"] + 1, size=count)
        return [drawn.preferences(int(n), part["questions"], choices=part["choices"]) for n in facets]

    def answers(self, conversations: Sequence[Sequence[Say]]) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and token ids (N,) of all that is to be said in these conversations."""
        rows = [tokenized(self.backbone, turns, self.states.shape[1]) for turns in conversations]
        shown = [picture for _, _, pictures in rows for picture in pictures]
        return answers(self.backbone, [row[:2] for row in rows], self.states[shown])

    def __call__(self, rng: np.random.Generator) -> Tensor:
        with torch.autocast(self.backbone.device.type, torch.bfloat16):
            return F.cross_entropy(*self.answers(self.conversations(rng, CONVERSATIONS)))


@torch.no_grad()
def abilities(backbone: Backbone, states: Tensor, lessons: Sequence[Lesson], count: int) -> dict[str, dict[str, float]]:
    """Shares of right answers, of "yes" and "no" or of four letters the likelier, about people invented for one
    conversation each.

    states, lessons: drawings that were not learned from. count: conversations of one question for each of four kinds.
    """
    found = {}
    for kind, choices, words in (("preference yes/no", 0.0, ["yes", "no"]), ("preference choice", 1.0, list("ABCD"))):
        known = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(words), device=backbone.device)
        for shown, pictures in (("in words", False), ("of a drawing", True)):
            part = {**FULL, "choices": choices, "pictures": pictures, "questions": 1}
            reading, right = Reading(backbone, states, lessons, part), []
            for first in range(0, count, CONVERSATIONS):
                talks = reading.conversations(np.random.default_rng([first, 43]), min(CONVERSATIONS, count - first))
                with torch.autocast(backbone.device.type, torch.bfloat16):
                    logits, wanted = reading.answers(talks)
                answer = torch.isin(wanted, known)
                right += (known[logits[:, known].argmax(-1)] == wanted)[answer].tolist()
            found[f"{kind}, {shown}"] = {"accuracy": round(float(np.mean(right)), 3), "n": len(right)}
    return found


def teach(
    folder: str | Path, *, work: str | Path | None = None, recipe: dict[str, dict[str, Any]] = RECIPE, count: int = 100
) -> dict[str, Any]:
    """Teaches the language model of a folder of `smollm2_lite.fetch`, and puts what it learned into its weights.

    Args:
        work: where features and interrupted training are kept; results/projector/reading by default.
        count: conversations that each ability is measured in.

    Returns the card: recipe, minutes of training, hardware, and abilities before and after. Raises AssemblyError if the
    folder's model has learned to read before.
    """
    folder = Path(folder)
    origin = unread(folder)
    backbone = load_backbone(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    start = smollm2_lite.sha256(folder / smollm2_lite.WEIGHTS)
    work = Path(work or RESULTS / "projector/reading") / provenance.digest([recipe, start])[:12]
    work.mkdir(parents=True, exist_ok=True)
    side = backbone.model.config.vision_config.image_size // backbone.model.config.vision_config.patch_size
    lessons = drawings(**recipe["drawings"], seed=0, side=side)
    states = features(backbone, lessons, work / "drawings")
    others = drawings(**{**recipe["drawings"], "items": 120}, seed=1, side=side)
    measured = features(backbone, others, work / "unseen"), others, count
    before = abilities(backbone, *measured)
    updates = low_rank_updates(backbone, **recipe["updates"])
    parts, seconds = [name for name, part in recipe.items() if "steps" in part], 0.0
    for name in parts:
        part = recipe[name]
        loss, place = Reading(backbone, states, lessons, part), work / f"{name}.safetensors"
        seconds += fit(updates, loss, place, steps=part["steps"], lr=part["lr"], decay=name == parts[-1])
    learned = {name.replace("/", "."): value.detach() for name, value in updates.items()}
    scale = recipe["updates"]["alpha"] / recipe["updates"]["rank"]
    halves = {name: (value * (scale if name.endswith(".B") else 1)).cpu().half() for name, value in learned.items()}
    save(halves, folder / smollm2_lite.READING.name)
    read = smollm2_lite.with_reading(load_file(folder / smollm2_lite.WEIGHTS), halves)
    save(read, folder / smollm2_lite.WEIGHTS, {"format": "pt"})
    card = {
        "made_by": "python workflow/scripts/align.py <folder> reading",
        "recipe": {**recipe, "conversations": CONVERSATIONS},
        "minutes": round(seconds / 60, 1),
        "hardware": hardware(backbone.device),
        "language_model": origin["language_model"],
        "abilities before": before,
        "abilities": abilities(load_backbone(folder, device=backbone.device), *measured),
    }
    note(folder, "reading", card)
    return card


def ship(folder: str | Path, path: Path = smollm2_lite.READING) -> Path:
    """Copies what a folder's language model has learned into the package, with a card beside it. Raises
    PretrainingError as `ship_part`."""
    folder = Path(folder)
    learned = load_file(folder / smollm2_lite.READING.name)
    return ship_part(learned, smollm2_lite.read_card(folder)["reading"], path, WANTED)
