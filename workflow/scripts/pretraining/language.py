"""Stages 1 and 3: the language model learns from conversations, in words first and then with pictures."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from prefmoe.system.files import is_intact
from pretraining.abilities import measure_abilities
from pretraining.conversations import Conversations, Encoder, Say
from pretraining.drawings import Pictures
from pretraining.errors import PretrainingError
from pretraining.miniatures import BLANK, of_language_model
from pretraining.place import Place, forget, read
from pretraining.reading import CIRCLE, FreePeople, learned_in_one_pass, learned_tokens, soft_prefix
from pretraining.vision import word_ids

log = logging.getLogger(__name__)


class LanguageTrainer:
    """Optimises a miniature's language model on conversations; image features are frozen and given.

    Args:
        model, kind, tokenizer: as build_model returns them.
        features: (n pictures, 16, H) projected image tokens, or None for stage 1.
        fixed_words: token ids whose input embeddings must not move (the vision stage aims at them).
    """

    def __init__(self, model, kind: str, tokenizer, features: torch.Tensor | None = None,
                 fixed_words: torch.Tensor | None = None):  # fmt: skip
        self.model, self.features = model, features
        self.encoder = Encoder(kind, tokenizer)
        self.parameters = [p for n, p in model.named_parameters() if of_language_model(n)]
        fused = self.parameters[0].is_cuda or None
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
        if fixed_words is not None:
            moves = torch.ones(len(tokenizer), 1, device=model.device)
            moves[fixed_words] = 0
            model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * moves)

    def loss(
        self, conversations: Sequence[list[Say]], prefix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        """Cross entropy, and the accuracy over the learned tokens, ends of turns not counted."""
        return self._loss(*learned_tokens(self.model, self.encoder, conversations, self.features, prefix))

    def losses(
        self, plain: Sequence[list[Say]], introduced: Sequence[list[Say]], prefix: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """The sum of both losses, and the accuracy in the conversations that a prefix introduces."""
        if self.model.device.type == "cpu":
            (first, _), (second, hits) = self.loss(plain), self.loss(introduced, prefix)
        else:
            both = learned_in_one_pass(self.model, self.encoder, plain, introduced, self.features, prefix)
            (first, _), (second, hits) = (self._loss(*part) for part in both)
        return first + second, hits

    def _loss(self, logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
        answer = wanted != self.encoder.tokenizer.eos_token_id
        hits = (logits.argmax(-1) == wanted)[answer].float().mean().item()
        return F.cross_entropy(logits, wanted), hits

    def step(self, loss: torch.Tensor, lr: float) -> None:
        """One step down the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


LESSONS = (
    *((0, 0.95, 600), (1, 0.95, 400), (2, 0.95, 500), (3, 0.93, 500), (4, 0.93, 900), (5, 0.95, 900)),
    *((6, 0.95, 500), (7, 0.93, 700), (8, 0.95, 700)),
)
"""Stage 1: level, the accuracy at which the next level begins, and the most steps a level may take."""


RATES = (2e-3, 1e-3, 5e-4)
"""Stage 1 begins with the first of these learning rates, and from its first weights again with the next one where it
has not learned to read (docs/miniatures.md says how often)."""

SHORT_OF_GOAL = 0.1
"""How far below its goal a lesson may end. A model further below has not learned what the next lessons build on, and
none that was watched has made up for it."""

Snapshot = Callable[[str], object]
"""Keeps the model as it is, under a name."""

Practice = Literal["anchors", "free", "none"]
"""What the last phases practise: prefixes of PrefMoE's form, learned tokens of a circle of invented people, nothing."""


class NotLearnedError(PretrainingError):
    """A model that has not learned to read."""


def train_text(model, kind: str, tokenizer, *, seed: int = 0, rates: Sequence[float] = RATES, lessons=LESSONS,
               path: Path | None = None, keep: Snapshot | None = None) -> float:  # fmt: skip
    """Stage 1; every fourth conversation repeats an earlier level. ``path`` keeps its `Place`.

    ``keep``: called after each lesson with its name, "lesson0" and so on. Returns the last level's accuracy. Raises
    PretrainingError if at each of the rates some lesson ends more than `SHORT_OF_GOAL` below its goal.
    """
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at = read(path)[0]["at"].get("rate") if path is not None and is_intact(path) else None
    for rate in rates[rates.index(at) if at in rates else 0 :]:
        try:
            return _train_text(model, kind, tokenizer, seed, rate, lessons, path, keep)
        except NotLearnedError as error:
            if rate == rates[-1]:
                raise NotLearnedError(f"{error}; another seed may: --seed {seed + 1}") from None
            log.warning("at a rate of %g, %s; the stage begins again at the next lower rate", rate, error)
            model.load_state_dict(untrained)
            if path is not None:
                forget(path)


def _train_text(model, kind: str, tokenizer, seed: int, lr: float, lessons: Sequence, path: Path | None,
                keep: Snapshot | None) -> float:  # fmt: skip
    rng = np.random.default_rng([seed, 31])
    conversations = Conversations(None, rng)
    fixed = torch.cat([*word_ids(tokenizer), torch.tensor([tokenizer.convert_tokens_to_ids(BLANK)])])
    trainer = LanguageTrainer(model, kind, tokenizer, fixed_words=fixed)
    place = Place(path, rng, model, trainer.optimizer)
    start, first, done = (place.at.get(key, 0) for key in ("lesson", "step", "done"))
    hits: list[float] = place.at.get("hits", [])
    for number, (level, goal, limit) in list(enumerate(lessons))[start:]:
        if number > start:
            first, hits = 0, []
        bar = tqdm(range(first, limit), desc=f"lesson {level}", initial=first, total=limit, mininterval=5)
        for k in bar:
            if k and k % 50 == 0:
                bar.set_postfix(accuracy=f"{np.mean(hits[-25:]):.3f}")
                if np.mean(hits[-25:]) > goal:
                    break
            done += 1
            levels = [
                level if level == 0 or i % 4 else int(rng.integers(level)) for i in range(24 if level < 4 else 16)
            ]
            rate = (lr if level < 4 else 0.75 * lr) * min(1.0, done / 60)
            loss, accuracy = trainer.loss([conversations.lesson(n) for n in levels])
            trainer.step(loss, rate)
            hits.append(accuracy)
            if place.due(done):
                place.keep(lesson=number, step=k + 1, done=done, hits=hits[-25:], rate=lr)
        reached = float(np.mean(hits[-25:]))
        log.info("lesson %d: accuracy %.3f, %d steps so far", level, reached, done)
        if reached < goal - SHORT_OF_GOAL:
            raise NotLearnedError(
                f"lesson {level} ended at an accuracy of {reached:.3f} where {goal} was wanted: this model has not "
                "learned to read, and nothing that follows would teach it"
            )
        if keep:
            keep(f"lesson{number}")
    return reached


def train_joint(model, kind: str, image_processor, tokenizer, pool: Pictures, features: torch.Tensor, *,
                phases: Sequence[dict], batch: int = 16, seed: int = 0, path: Path | None = None,
                keep: Snapshot | None = None, practice: Practice = "anchors") -> float:  # fmt: skip
    """Stage 3: preferences, recognition and captions with pictures, in some batches with small talk in between.

    Args:
        phases: one after the other, each with steps, lr (its peak), recognition (arguments of that lesson), and
            shares: how many conversations of a batch are about preferences, recognition, captions and, if there is a
            fourth number, strangers. Every fifth batch has small talk, or every ``talk_every``th. With ``prefix``
            (steps, goal and, to go on from somewhere, begin) half of a batch makes room for introduced people, whose
            soft prefix turns from single words to means of sentences in that many steps, each of them taken when the
            accuracy is above the goal. The model is kept after a phase with a ``name``.
        path: keeps the stage's `Place`.
        keep: called with that name.
        practice: what phases with ``prefix`` practise; "none" makes them phases without it.

    Returns the last steps' accuracy.
    """
    rng = np.random.default_rng([seed, 41])
    conversations = Conversations(pool, rng)
    trainer = LanguageTrainer(model, kind, tokenizer, features)
    circle = None
    if practice == "free":
        circle = FreePeople(conversations, model.get_input_embeddings().weight, CIRCLE)
        trainer.optimizer.add_param_group({"params": list(circle.parameters()), "weight_decay": 0.0})
    whole = model if circle is None else torch.nn.ModuleDict({"model": model, "circle": circle})
    place = Place(path, rng, whole, trainer.optimizer)
    start, first, way = (place.at.get(key, 0) for key in ("phase", "step", "way"))
    hits: list[float] = place.at.get("hits", [])
    table = model.get_input_embeddings()
    for number, phase in list(enumerate(phases))[start:]:
        if number > start:
            first, hits = 0, []
        steps, prefix = phase["steps"], phase.get("prefix") if practice != "none" else None
        if prefix and not first:
            way = prefix.get("begin", way)
        bar = tqdm(range(first, steps), desc=f"joint, phase {number}", initial=first, total=steps, mininterval=5)
        for k in bar:
            every = phase.get("talk_every", 5)
            talk = k % every == every - 1
            drawn = []
            topics = rng.permutation(np.repeat(np.arange(len(phase["shares"])), phase["shares"]))
            for topic in topics[: batch // 2 if talk or prefix else batch]:
                if topic == 0:
                    drawn.append(conversations.preferences(int(rng.integers(1, 6)), 4, talk, choices=0.4))
                elif topic == 1:
                    drawn.append(conversations.recognition(4, talk, **phase["recognition"]))
                elif topic == 2:
                    drawn.append(conversations.captions(4))
                else:
                    drawn.append(conversations.strangers(talk))
            rate = phase["lr"] * min(1.0, (k + 1) / 60) * (0.05 + 0.95 * min(1.0, 1.6 * (1 - k / steps)))
            if not prefix:
                loss, accuracy = trainer.loss(drawn)
            elif circle:
                tokens, asked = circle.ask(batch // 2 if talk else batch, 5, talk)
                loss, accuracy = trainer.losses(drawn, asked, tokens)
            else:
                people, asked = zip(
                    *(conversations.introduced(5, talk) for _ in range(batch // 2 if talk else batch)), strict=True
                )
                tokens = soft_prefix(
                    table.weight, trainer.encoder, features, people, 40, rng,
                    blend=_ramp(way, 0.0, 0.6), dislikes=_ramp(way, 0.6, 1.0),
                )  # fmt: skip
                loss, accuracy = trainer.losses(drawn, asked, tokens)
                if k > 100 and np.mean(hits[-20:]) > prefix["goal"]:
                    way += 1 / prefix["steps"]
            trainer.step(loss, rate)
            hits.append(accuracy)
            if k % 100 == 99:
                bar.set_postfix(accuracy=f"{np.mean(hits[-100:]):.3f}")
                log.info("joint, phase %d, %d (%.2f): accuracy %.3f", number, k + 1, way, np.mean(hits[-100:]))
            if place.due(k + 1):
                place.keep(phase=number, step=k + 1, way=way, hits=hits[-100:])
        if keep and "name" in phase:
            keep(phase["name"])
        found = measure_abilities(model, kind, image_processor, tokenizer, count=150)
        log.info("abilities %s", {name: ability["accuracy"] for name, ability in found.items()})
    return float(np.mean(hits[-100:]))


def _ramp(value: float, first: float, last: float) -> float:
    """From 0 to 1 between two values."""
    return min(1.0, max(0.0, (value - first) / (last - first)))
