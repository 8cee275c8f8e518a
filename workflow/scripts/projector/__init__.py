"""Teaches the small edition's projector to say what the frozen vision tower sees, in LLaVA's two stages.

1. drawings: pictures of the drawing world, drawn for this. First the token of each place learns to resemble the words
   for what is there, without running the language model; then captions, through the frozen language model;
2. photographs: portraits and training photographs of MMPB-clean with the descriptions of who is in them. They are
   for research only, so that what is learned from them stays with whoever has them.

The tower's output is computed once per picture, and everything can be interrupted: the same call goes on.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.backbones import smollm2_lite
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.smollm2_lite import WEIGHTS
from prefmoe.config import RESULTS, Edition
from prefmoe.data.sources import load_benchmark
from prefmoe.system import provenance
from projector.lessons import COLUMNS, NAME_IT, Lesson, asked, drawings, photographs
from projector.training import Captions, Words, features, fit, note, save, ship_part, unread, word_vectors

Stage = Literal["drawings", "photographs"]

RECIPE: dict[str, dict[str, Any]] = {
    "drawings": {"items": 1200, "quarters": 240, "people": 720},
    "words": {"steps": 600, "batch": 512, "lr": 2e-3},
    "captions": {"steps": 150, "batch": 6, "lr": 5e-4},
    "photographs": {"steps": 200, "batch": 8, "lr": 2e-4},
}
"""How many drawings of each kind, and for each part of the stages its steps, examples per step and learning rate."""

WANTED = {"naming items of unseen drawings": 0.6, "nearest word of unseen items": 0.8}
"""Accuracies that the projector is made for: those of the shipped one are .76 and .91."""

UNSEEN = {"items": 120, "quarters": 0, "people": 60}
"""Drawings that abilities are measured on: of the same kinds, by another seed."""

# --- abilities ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def abilities(backbone: Backbone, lessons: Sequence[Lesson], states: Tensor) -> dict[str, dict[str, float | int]]:
    """What the model says about drawings it has not learned from, by its own forward path.

    Returns name -> accuracy and n: of items named in the model's own words; of items whose word is the nearest to the
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

    Returns the card: recipe, minutes of training, language model, and abilities. Raises SourceError if the photographs
    are missing; BackboneError if the folder holds no such model; AssemblyError if the first stage is asked of one whose
    language model has learned to read: what it would make is no part of a model as published.
    """
    folder = Path(folder)
    origin = unread(folder) if stage == "drawings" else smollm2_lite.read_card(folder)
    backbone = load_backbone(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    start = smollm2_lite.sha256(folder / WEIGHTS) if stage == "photographs" else origin["language_model"]
    drawing = Path(__file__).with_name("lessons.py").read_text(encoding="utf-8")  # may change, and its settings not
    code = provenance.digest([drawing, provenance.code_digest(("prefmoe.data.drawing",), ())])
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
        seconds = _part(backbone, "words", Words, recipe, work, states, labels)
        seconds += _part(backbone, "captions", Captions, recipe, work, states, lessons)
    else:
        benchmark = load_benchmark(edition)
        lessons = photographs(benchmark)
        states = seen("photographs", lessons, benchmark.digest)
        seconds = _part(backbone, "photographs", Captions, recipe, work, states, lessons)
    parts = ["drawings", "words", "captions"] if stage == "drawings" else ["photographs"]
    card = {
        "made_by": f"python workflow/scripts/align.py <folder> {stage}",
        "recipe": {name: recipe[name] for name in parts},
        "pictures": len(lessons),
        "language_model": origin["language_model"],
        "vision_tower": origin["vision_tower"],
        "minutes": round(seconds / 60, 1),
        "abilities": abilities(backbone, checked, seen("unseen", checked, unseen)),
    }
    put_projector(folder, backbone.projector.state_dict(), card)
    return card


def _part(backbone: Backbone, name: str, loss: Callable[..., Any], recipe: dict, work: Path, *data: Any) -> float:
    options = recipe[name]
    return fit(
        backbone.projector, loss(backbone, *data, batch=options["batch"]), work / f"{name}.safetensors",
        steps=options["steps"], lr=options["lr"],
    )  # fmt: skip


def put_projector(folder: Path, projector: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Writes a projector into a model folder, and into its card how it was made; the rest stays as it is."""
    weights = folder / WEIGHTS
    tensors = load_file(weights)
    for name, value in projector.items():
        (place,) = [key for key in tensors if key.endswith(f"multi_modal_projector.{name}")]
        tensors[place] = value.detach().cpu().half().float()  # as precise as the one that the package holds
    save(tensors, weights, {"format": "pt"})
    note(folder, "projector", card)


def ship(folder: str | Path, path: Path = smollm2_lite.PROJECTOR) -> Path:
    """Copies a folder's projector into the package, in half precision, with a card beside it. Raises AssemblyError if
    it is not one of the first stage: photographs of the second must not be redistributed; PretrainingError as
    `ship_part`."""
    folder = Path(folder)
    card = smollm2_lite.read_card(folder)["projector"]
    if not isinstance(card, dict) or "drawings" not in card["recipe"]:
        raise smollm2_lite.AssemblyError(f"{folder} holds no projector that was made from drawings alone")
    return ship_part(dict(_projector_tensors(folder)), card, path, WANTED)


def _projector_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(folder / WEIGHTS, "pt") as file:
        for name in file.keys():
            _, found, part = name.partition("multi_modal_projector.")
            if found:
                yield part, file.get_tensor(name).half()
