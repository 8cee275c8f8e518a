"""The ladder of readers: LLaVA miniatures that read profiles not at all, half-way or well, with practice and without.

How well a backbone reads a profile text, and whether it has practised reading soft prefixes, are variables of the
experiments that compare a text with a compressed profile. Each rung starts from what `pretrain` kept on its way; all
rungs of one height take the same number of steps, with the same shares of each kind of conversation.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, load_model

from prefmoe.running.record import hardware
from prefmoe.system.files import FileError, is_intact
from pretraining import MIXED
from pretraining.abilities import measure_abilities
from pretraining.drawings import pool_without_users
from pretraining.language import Practice, train_joint
from pretraining.miniatures import build_model, of_language_model, save
from pretraining.place import forget
from pretraining.vision import pool_features

_PRACTICE = [
    {"steps": 900, "lr": 8e-4, "prefix": {"steps": 600, "goal": 0.8}, "recognition": MIXED},
    {"steps": 1100, "lr": 8e-4, "prefix": {"steps": 600, "goal": 0.74}, "recognition": MIXED},
]
"""The last phases of every rung; with practice "none" they are phases without prefixes, of equal length."""


@dataclass(frozen=True)
class Rung:
    """Where a rung starts, and what it sees.

    Attributes:
        language: the snapshot that the language model is taken from.
        preferences: how many conversations of a batch of 16 are about preferences, told by a text.
        steps: of pictures in the place of words, before the practice; none where the snapshot knows pictures.
        practice: what the last phases practise.
    """

    language: str
    preferences: int
    steps: int
    practice: Practice


RUNGS: dict[str, Rung] = {
    "llava-mini-unread": Rung("lesson0", 0, 2000, "none"),
    "llava-mini-unread-practised": Rung("lesson0", 0, 2000, "anchors"),
    "llava-mini-half": Rung("lesson3", 1, 2000, "none"),
    "llava-mini-half-practised": Rung("lesson3", 1, 2000, "anchors"),
    "llava-mini-reader": Rung("before practice", 6, 0, "none"),
    "llava-mini-reader-practised": Rung("before practice", 6, 0, "anchors"),
    "llava-mini-reader-placebo": Rung("before practice", 6, 0, "free"),
}
"""Backbones of config/registry.yaml; "before profiles are read" is "unread": it has learned to look up words alone."""


def phases_of(rung: Rung) -> list[dict]:
    """The phases of `train_joint` for a rung."""
    others = 15 - rung.preferences
    shares = [rung.preferences, others - others // 4 - 1, others // 4, 2]
    joint = {"steps": rung.steps, "lr": 1.2e-3, "shares": shares, "recognition": {"level": 2}}
    return [*([joint] if rung.steps else []), *({**phase, "shares": shares} for phase in _PRACTICE)]


def climb(name: str, folder: Path, *, work: Path, pool: dict, device: str = "cpu", phases: list | None = None,
          seed: int = 0) -> Path:  # fmt: skip
    """Makes the backbone of a rung.

    Args:
        folder: where it goes; a folder of this name in $PREFMOE_WEIGHTS.
        work: of the run of `pretrain` for llava-mini, whose snapshots are needed.
        pool: sizes of the drawings, as in that run's recipe.
        phases: in the place of `phases_of`, for trying things out.
        seed: of what is drawn but the pictures; of that run, too.

    Raises FileError if that run has not come so far.
    """
    rung = RUNGS[name]
    model, image_processor, tokenizer = build_model("llava", seed)
    model.to(device)
    for snapshot in ("vision", rung.language):
        if not is_intact(work / f"{snapshot}.safetensors"):
            raise FileError(f"{work / snapshot}.safetensors is missing: make llava-mini first, with the same --seed")
    load_model(model, work / "vision.safetensors")
    if rung.steps:  # the language model alone: the tower aims at words that no lesson moves
        learned = load_file(work / f"{rung.language}.safetensors", device=device)
        own = {key: value for key, value in learned.items() if of_language_model(key)}
        model.load_state_dict(own, strict=False)
    else:
        load_model(model, work / f"{rung.language}.safetensors")
    drawings = pool_without_users(pool, work.parent)
    features, began = pool_features(model, image_processor, drawings), time.time()
    steps = phases_of(rung) if phases is None else phases
    train_joint(model, "llava", image_processor, tokenizer, drawings, features, phases=steps, practice=rung.practice,
                seed=seed, path=work / f"{name}.place")  # fmt: skip
    forget(work / f"{name}.place")
    card = {
        "backbone": name,
        "made_by": f"python workflow/scripts/pretrain.py {name} --seed {seed}",
        "seed": seed,
        "recipe": {"language": rung.language, "practice": rung.practice, "phases": steps},
        "minutes": round((time.time() - began) / 60, 1),
        "hardware": hardware(model.device),
        "abilities": measure_abilities(model.half().float(), "llava", image_processor, tokenizer),
    }
    save(model, image_processor, tokenizer, "llava", folder, card)
    return folder
