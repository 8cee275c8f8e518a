"""Makes the miniature backbones: real architectures, small configurations, trained on user-free drawings and texts.

Three stages, all on randomly invented people and on pictures of the drawing world, never on benchmark users:

1. text: the language model learns to read a profile and answer questions about it, from one facet to five;
2. vision: the tower and its projector learn to emit, at the place of an item or a person, the sum of the word
   embeddings that name it (cross entropy over the words, plus MSE to the sum);
3. joint: pictures take the place of words; items, preferences, captions, recognition from a portrait or a
   description, small talk in between; and, last, soft tokens in the place of a profile text.

Large language models make something of the mean of a few word embeddings; four layers do not, unless they have met
such a thing. The last lessons therefore lead from single words in the place of a soft prefix to means of sentences,
about people invented for one conversation.
"""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_model, save_model

from prefmoe.running.record import hardware
from prefmoe.system.files import is_intact, whole_file
from pretraining.abilities import WANTED, measure_abilities
from pretraining.drawings import pool_without_users
from pretraining.errors import PretrainingError
from pretraining.judging import judge
from pretraining.language import LESSONS, train_joint, train_text
from pretraining.miniatures import FOLDERS, WEIGHTS, adopt_language_model, build_model, save
from pretraining.place import finished, work_folder
from pretraining.vision import pool_features, train_vision

_POOL = {"items": 18000, "quarters": 4000, "groups": 18000, "people": 2250}
"""The drawings, which both miniatures share."""

MIXED = {"level": 2, "places": 0.5, "in_words": 0.2}
"""Recognition with lookalikes, in all forms of question."""

_SPELLED = {
    "steps": 600, "lr": 1e-3, "shares": [4, 11, 1], "recognition": {"level": 1, "places": 0.7, "in_words": 0.6},
}  # fmt: skip
_STRANGERS = {
    "steps": 1000, "lr": 1e-3, "shares": [5, 8, 1, 2], "recognition": MIXED,
}  # fmt: skip

_TALKATIVE = {
    "name": "before practice", "steps": 500, "lr": 6e-4, "shares": [4, 6, 1, 5], "talk_every": 2,
    "recognition": MIXED,
}  # fmt: skip

_INTRODUCED = {
    "steps": 1300, "lr": 8e-4, "shares": [4, 8, 1, 3], "prefix": {"steps": 800, "goal": 0.83},
    "recognition": MIXED,
}  # fmt: skip

_READ = {
    "steps": 2000, "lr": 9e-4, "shares": [6, 7, 1, 2], "prefix": {"steps": 800, "goal": 0.74},
    "recognition": MIXED,
}  # fmt: skip

_PHASES = [
    {"steps": 2600, "lr": 1.2e-3, "shares": [8, 6, 2], "recognition": {"level": 2}},
    {"steps": 600, "lr": 1e-3, "shares": [4, 10, 2], "recognition": {"level": 0}},
    {"steps": 600, "lr": 1e-3, "shares": [4, 10, 2], "recognition": {"level": 1}},
    {"steps": 1500, "lr": 1e-3, "shares": [5, 8, 3], "recognition": {"level": 2}},
    {"steps": 700, "lr": 1e-3, "shares": [3, 11, 2], "recognition": {"level": 1, "places": 0.6}},
    {"steps": 900, "lr": 1e-3, "shares": [5, 9, 2], "recognition": {"level": 2, "places": 0.4}},
    _SPELLED,
    _STRANGERS,
    _TALKATIVE,
    _INTRODUCED,
    {**_INTRODUCED, "steps": 700, "prefix": {"steps": 800, "goal": 0.8}},
    {**_READ, "steps": 1200, "lr": 8e-4},
    {**_READ, "steps": 2600, "lr": 1e-3, "shares": [7, 6, 1, 2]},
]

RECIPES: dict[str, dict] = {
    "llava": {"pool": _POOL, "vision": {"steps": 4500, "batch": 64, "lr": 1e-3}, "joint": {"phases": _PHASES}},
    "qwen2.5-vl": {"pool": _POOL, "vision": {"steps": 4500, "batch": 40, "lr": 1e-3}, "joint": {"phases": _PHASES}},
}
"""Sizes of the stages. The Qwen2.5-VL text model starts from what the LLaVA miniature's has learned in stage 1."""


MADE_BY = "snakemake --cores all pretrain"


def pretrain(
    backbone: str,
    *,
    folder: Path | None = None,
    work: Path | None = None,
    recipe: dict | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Makes a miniature backbone from nothing; a finished stage is kept and not repeated.

    Args:
        backbone: "llava-mini" or "qwen2.5-vl-mini" (which needs what llava-mini has kept of its first stage).
        folder: where the weights go; the package's own by default.
        work: where the stages are kept; `work_folder` by default.
        recipe: another entry than that of RECIPES, for trying things out.
        device: where to train; the card says which it was.
        seed: of the first weights and of everything that is drawn but the pictures, which all seeds share.

    Returns ``folder``. Raises PretrainingError if the backbone is not one of the two, llava-mini has not come so far,
    its text stage has not learned to read (`train_text`), or worse weights would replace the package's (`judge`).
    """
    kinds = {name: kind for kind, name in FOLDERS.items()}
    if backbone not in kinds:
        raise PretrainingError(f"there is no recipe for {backbone!r}, only for {', '.join(kinds)}")
    kind = kinds[backbone]
    recipe = recipe or RECIPES[kind]
    replaces, folder = folder is None, folder or WEIGHTS / backbone
    work = work or work_folder(backbone, seed)
    work.mkdir(parents=True, exist_ok=True)
    model, image_processor, tokenizer = build_model(kind, seed)
    model.to(device)
    seconds = 0.0

    def keep(name: str) -> None:
        with whole_file(work / f"{name}.safetensors", sealed=True) as partial:
            save_model(model, str(partial))

    def stage(name: str, train: Callable[[Path], object]) -> None:
        nonlocal seconds
        seconds += finished(name, work, model, train)

    def adopt_text(place: Path) -> None:
        learned = work.parent / work_folder("llava-mini", seed).name / "text.safetensors"
        if not is_intact(learned):
            raise PretrainingError(
                f"{learned} is missing: llava-mini comes first (of the same --seed), whose words {backbone} starts from"
            )
        llava, _, words = build_model("llava")
        load_model(llava, learned)
        adopt_language_model(model, tokenizer, llava, words)

    pool = pool_without_users(recipe["pool"], work.parent)
    if kind == "llava":
        lessons = recipe.get("lessons", LESSONS)
        stage("text", lambda place: train_text(model, kind, tokenizer, seed=seed, lessons=lessons, path=place,
                                               keep=keep))  # fmt: skip
    else:
        stage("text", adopt_text)
    seeing, talking = recipe["vision"], recipe["joint"]
    stage("vision", lambda place: train_vision(model, image_processor, tokenizer, pool, **seeing, seed=seed,
                                                 path=place))  # fmt: skip
    features = pool_features(model, image_processor, pool)
    stage("joint", lambda place: train_joint(model, kind, image_processor, tokenizer, pool, features, **talking,
                                             seed=seed, path=place, keep=keep))  # fmt: skip
    abilities = measure_abilities(model.half().float(), kind, image_processor, tokenizer)
    if recipe is RECIPES[kind]:
        judge(abilities, WANTED, backbone, seed=seed, replaces=replaces)
    card = {
        "backbone": backbone,
        "made_by": f"python workflow/scripts/pretrain.py {backbone} --seed {seed}" if seed else MADE_BY,
        "seed": seed,
        "recipe": recipe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(seconds / 60, 1),
        "hardware": hardware(model.device),
        "abilities": abilities,
    }
    save(model, image_processor, tokenizer, kind, folder, card)
    return folder
