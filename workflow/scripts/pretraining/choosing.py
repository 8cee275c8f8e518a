"""Makes the Idefics2 miniature: it learns to sort pictures by example, of words first and then of pictures.

Three stages, on generic drawings with attributes at random; nothing here knows a user, a group of users with one taste,
the labels "+" and "-", or a picture of the benchmark:

1. words: sums of words in the places of pictures. The language model learns to find a label by its picture, then to
   follow rules over more and more attributes;
2. tower: tower and perceiver learn to emit these sums (`pretraining.tower`);
3. joint: pictures take the place of words and entries have the form that histories have, with prompts and without;
   captions and questions about attributes in between.

Four layers that are shown labels alone do not learn this in as many steps. What helps is to say where a picture is to
be known: at its question and at its label, half-way up, all of its attributes can be read. In seven of ten episodes the
labels are vectors that no table of words holds, so that what is learned works for "+" and "-" as for any other word.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.running.record import hardware
from pretraining.episodes import NAMES, Episodes, PoolEpisodes, repeated, ruled
from pretraining.errors import PretrainingError
from pretraining.idefics2 import FOLDER, NAME, build_model
from pretraining.judging import judge
from pretraining.miniatures import write
from pretraining.place import Place, finished, work_folder
from pretraining.sorting import EpisodeReader, answered, questions_about
from pretraining.sorting_abilities import measure_sorting
from pretraining.tower import ChoicePictures, all_tokens, draw_choice_pool, train_tower

log = logging.getLogger(__name__)

RECIPE: dict = {
    "pool": 12000,
    "words": {
        "lr": 2e-3, "rows": 48,
        "lessons": [
            {"repeated": 0, "entries": 6, "goal": 0.9, "most": 400},
            {"repeated": 2, "entries": 12, "goal": 0.85, "most": 300},
            {"varying": 1, "entries": 10, "goal": 0.84, "most": 400},
            {"varying": 2, "entries": 12, "goal": 0.77, "most": 300},
            {"varying": 3, "entries": 16, "goal": 0.73, "most": 300},
            {"varying": 4, "entries": 16, "goal": 0.7, "most": 300},
            {"varying": 6, "entries": 16, "goal": 0.67, "most": 100},
            {"varying": 9, "entries": 17, "goal": 1.0, "most": 350},
        ],
    },
    "tower": {
        "lr": 2e-3, "shapes": {"easy": 700, "steps": 2500, "batch": 64}, "tokens": {"steps": 600, "batch": 40},
    },
    "joint": {"words": 100, "steps": 700, "rows": 24, "entries": 17, "lr": 1e-3},
}  # fmt: skip
"""Sizes of the stages."""

WANTED = {"telling the content": 0.8, "sorting by all attributes, + and -": 0.6}
"""Accuracies that the miniature is made for: those of the shipped weights are .88 and .66."""

WEIGHTS_OF_TERMS = {"label": 1.0, "word": 0.1, "picture": 1.0, "caption": 0.2, "question": 0.5}


def _step(reader: EpisodeReader, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], lr: float) -> None:
    """One step down the gradient of the weighted terms."""
    optimizer.zero_grad(set_to_none=True)
    with reader.others_stay():
        sum(WEIGHTS_OF_TERMS[name] * term for name, term in terms.items()).backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _episodes(rng: np.random.Generator, lesson: dict, rows: int) -> tuple[Episodes, int]:
    """Episodes of a lesson, and how many of their first pictures nobody could know."""
    entries = lesson["entries"]
    if "repeated" in lesson:
        return repeated(rng, rows, entries, lesson["repeated"]), entries // 2
    varying = lesson["varying"]
    relevant = (1, 3) if rng.random() < 0.5 else (varying, varying)
    return ruled(rng, rows, entries, varying, relevant), 2


def train_words(
    model, tokenizer, *, lessons: Sequence[dict], lr: float, rows: int, seed: int = 0, path: Path | None = None
) -> float:
    """Stage 1; a lesson ends when its goal is met, and every fourth batch repeats an earlier one with rules.

    Returns:
        the last lesson's accuracy over the second half of its episodes.

    Raises:
        PretrainingError: if a lesson before the last ends below its goal by more than .1.
    """
    rng, reader = np.random.default_rng([seed, 51]), EpisodeReader(model, tokenizer)
    optimizer = torch.optim.AdamW(model.model.text_model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    place = Place(path, rng, model, optimizer)
    start, first, done = (place.at.get(key, 0) for key in ("lesson", "step", "done"))
    hits: list[float] = place.at.get("hits", [])
    with_rules = [lesson for lesson in lessons if "varying" in lesson]
    for number, lesson in list(enumerate(lessons))[start:]:
        if number > start:
            first, hits = 0, []
        earlier = [one for one in with_rules if one in lessons[:number]]
        last = number == len(lessons) - 1
        bar = tqdm(range(first, lesson["most"]), desc=f"lesson {number}", initial=first, total=lesson["most"],
                   mininterval=5)  # fmt: skip
        for k in bar:
            if k and k % 25 == 0:
                bar.set_postfix(accuracy=f"{np.mean(hits[-20:]):.3f}")
                if np.mean(hits[-20:]) > lesson["goal"]:
                    break
            done += 1
            now = earlier[int(rng.integers(len(earlier)))] if earlier and k % 4 == 0 else lesson
            episodes, late = _episodes(rng, now, rows)
            terms, right = reader.losses(rng, episodes, "short", reader.in_words(episodes.values), late)
            left = 0.1 + 0.9 * (1 - k / lesson["most"]) if last else 1.0
            _step(reader, optimizer, terms, lr * min(1.0, done / 60) * left)
            if now is lesson:
                hits.append(right[:, lesson["entries"] // 2 :].float().mean().item())
            if place.due(done):
                place.keep(lesson=number, step=k + 1, done=done, hits=hits[-20:])
        reached = float(np.mean(hits[-20:]))
        log.info("lesson %d: accuracy %.3f, %d steps so far", number, reached, done)
        if not last and reached < lesson["goal"] - 0.1:
            raise PretrainingError(
                f"lesson {number} ended at an accuracy of {reached:.3f} where {lesson['goal']} was wanted: this model "
                f"has not learned to sort, and nothing that follows would teach it; another seed may: --seed {seed + 1}"
            )
    return reached


def train_joint(
    model, tokenizer, pool: ChoicePictures, tokens: Tensor, *, words: int, steps: int, rows: int, entries: int,
    lr: float, seed: int = 0, path: Path | None = None,
) -> float:  # fmt: skip
    """Stage 3: the language model alone, on the tokens (n, L, H) of the pool's pictures.

    Args:
        words: so many steps still have words in the places of pictures, as has every third one after them.

    Returns:
        the last steps' accuracy over the second half of episodes with pictures.
    """
    rng, reader, draw = np.random.default_rng([seed, 81]), EpisodeReader(model, tokenizer), PoolEpisodes(pool.values)
    optimizer = torch.optim.AdamW(model.model.text_model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    place = Place(path, rng, model, optimizer)
    first, hits = place.at.get("step", 0), place.at.get("hits", [[], []])
    bar = tqdm(range(first, steps), desc="joint", initial=first, total=steps, mininterval=5)
    for k in bar:
        form = "told" if rng.random() < 0.7 else "untold"
        relevant = (1, 3) if rng.random() < 0.6 else (1, len(NAMES))
        if in_words := k < words or k % 3 == 0:
            varying = int(rng.choice((1, 2, 3, 6, len(NAMES))))
            episodes = ruled(rng, rows, entries, varying, relevant)
            shown = reader.in_words(episodes.values)
        else:
            episodes = draw(rng, rows, entries, relevant, rivals=0.2)
            shown = tokens[torch.from_numpy(episodes.pictures)]
        terms, right = reader.losses(rng, episodes, form, shown, late=2)
        chosen = rng.integers(0, len(pool.values), rows)
        order = rng.permuted(np.tile(np.arange(len(NAMES)), (rows, 1)), axis=1)
        ids, where = questions_about(reader, pool.values[chosen], order)
        logits, wanted = answered(reader, ids, where, tokens[torch.from_numpy(chosen)])
        terms["question"] = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        _step(reader, optimizer, terms, lr * min(1.0, (k + 1) / 40) * (0.05 + 0.95 * (1 - k / steps)))
        hits[in_words].append(right[:, entries // 2 :].float().mean().item())
        if k % 50 == 49:
            reached = [round(float(np.mean(part[-30:])), 3) if part else None for part in hits]
            losses = {name: round(term.item(), 3) for name, term in terms.items()}
            log.info("joint %d: accuracy with pictures, words %s, %s", k + 1, reached, losses)
        if place.due(k + 1) and k + 1 < steps:
            place.keep(step=k + 1, hits=[part[-30:] for part in hits])
    return float(np.mean(hits[0][-30:]))


def pretrain_choices(
    *,
    folder: Path | None = None,
    work: Path | None = None,
    recipe: dict | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Makes the Idefics2 miniature from nothing; a finished stage is kept and not repeated.

    Args:
        folder: where the weights go; the package's own by default.
        work: where the stages are kept; `work_folder` by default.
        recipe: another one than RECIPE, for trying things out.
        device: where to train; the card says which it was.
        seed: of the first weights and of everything that is drawn but the pictures, which all seeds share.

    Returns:
        ``folder``.

    Raises:
        PretrainingError: if the model has not learned to sort (`train_words`), or worse weights would replace the
            package's (`judge`).
    """
    replaces = folder is None
    recipe, folder, work = recipe or RECIPE, folder or FOLDER, work or work_folder(NAME, seed)
    work.mkdir(parents=True, exist_ok=True)
    model, processor = build_model(seed)
    model.to(device)
    images, tokenizer = processor.image_processor, processor.tokenizer
    seconds: dict[str, float] = {}

    def stage(name: str, train: Callable[[Path], object]) -> None:
        seconds[name] = finished(name, work, model, train)

    stage("words", lambda place: train_words(model, tokenizer, **recipe["words"], seed=seed, path=place))
    pool = draw_choice_pool(recipe["pool"], seed=0, folder=work.parent)
    stage("tower", lambda place: train_tower(model, images, tokenizer, pool, **recipe["tower"], seed=seed, path=place))
    tokens = all_tokens(model, images, pool)
    stage("joint", lambda place: train_joint(model, tokenizer, pool, tokens, **recipe["joint"], seed=seed, path=place))
    abilities = measure_sorting(model.half().float(), processor)
    if recipe is RECIPE:
        judge(abilities, WANTED, NAME, seed=seed, replaces=replaces)
    card = {
        "backbone": NAME,
        "made_by": f"python workflow/scripts/pretrain.py {NAME} --seed {seed}",
        "seed": seed,
        "recipe": recipe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "hardware": hardware(model.device),
        "abilities": abilities,
    }
    write(model, processor, folder, card)
    return folder
