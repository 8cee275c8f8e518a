"""Runs of editions about choices between pictures: sessions of users, training in two stages, ratings of candidates."""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.histories import Rated, Session
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import (
    RESULTS,
    ControlKind,
    Edition,
    Histories,
    Method,
    RaterMethod,
    Training,
    is_trained,
    load_edition,
)
from prefmoe.data.choices import Choice, ChoiceBenchmark
from prefmoe.data.sources import load_choices
from prefmoe.models.lora import merged_lora
from prefmoe.models.raters import RatedBatch, Rater
from prefmoe.models.scorers import Scorer
from prefmoe.running.evaluation import EvaluationError
from prefmoe.running.runs import Asked, RunError, Workbench
from prefmoe.running.training import Batches, total_steps, train
from prefmoe.system import distributed, memory
from prefmoe.system.files import is_intact, write_parquet
from prefmoe.system.progress import progress_bar
from prefmoe.system.run_files import METHOD_FOLDER, PREDICTIONS_FILE, read_story, verify

MEMORY_HINT = "lower histories.batch_size, or set hardware.four_bit: true"

TRAINING_DRAWS = 2**20
"""Histories for training are drawn under numbers from here, those for questions under smaller ones."""

COLUMNS = ("index", "split", "user", "n_ref", "draw", "candidate", "plus", "minus", "score")
"""Of predictions: a row per candidate (0: liked); plus and minus: M+ and M-; score: Q = softmax(M+, M-)[+]."""


# --- sessions


def told(benchmark: ChoiceBenchmark, user: str, n_ref: int, draw: int, targets: Sequence[Choice]) -> tuple[Rated, ...]:
    """A history of a user as rated pictures in random order, the same for the same draw. Raises HistoryError if the
    user has fewer choices without a picture of the targets."""
    entries = []
    for choice in benchmark.history(user, n_ref, draw, targets):
        entries += [Rated(choice.liked, choice.prompt, "+"), Rated(choice.disliked, choice.prompt, "-")]
    order = np.random.default_rng([draw, n_ref, benchmark.users[user]]).permutation(len(entries))
    return tuple(entries[place] for place in order)


def session(benchmark: ChoiceBenchmark, choices: Sequence[Choice], *, n_ref: int, draw: int, pairs: bool) -> Session:
    """Choices of one user behind one history. ``pairs``: only the liked and the disliked picture of each; all
    candidates otherwise."""
    shown = [(picture, c.prompt) for c in choices for picture in (c.candidates[:2] if pairs else c.candidates)]
    return Session(told(benchmark, choices[0].user, n_ref, draw, choices), tuple(shown))


def plan_sessions(
    choices: Sequence[Choice], *, count: int, batch_size: int, targets: int, seed: int
) -> list[list[int]]:
    """The positions (into ``choices``) of every batch: sessions of ``targets`` choices of one user each.

    Every epoch shows each choice once, in a session with others of its user that are drawn anew; a user's last session
    is filled up with choices of this user. Batches run on across epochs.

    Raises ValueError if there are no choices.
    """
    if not choices:
        raise ValueError("no choices to make batches of")
    by_user: dict[str, list[int]] = {}
    for place, choice in enumerate(choices):
        by_user.setdefault(choice.user, []).append(place)

    def epochs() -> Iterator[list[int]]:
        for epoch in count_up():
            rng, sessions = np.random.default_rng([seed, epoch]), []
            for own in by_user.values():
                order = [own[place] for place in rng.permutation(len(own))]
                filled = (order * targets)[: -(-len(order) // targets) * targets]
                sessions += [filled[start : start + targets] for start in range(0, len(filled), targets)]
            yield from (sessions[place] for place in rng.permutation(len(sessions)))

    size, stream = batch_size // targets, epochs()
    return [[place for part in islice(stream, size) for place in part] for _ in range(count)]


def pictures(benchmark: ChoiceBenchmark, users: set[str], targets: Sequence[Choice] = ()) -> set[Path]:
    """All that histories of some users may show, and all candidates of some choices."""
    told = (benchmark.choices[index] for user in users for index in benchmark.references[user])
    return {file for c in told for file in c.candidates[:2]} | {file for c in targets for file in c.candidates}


def choice_batches(settings: Histories) -> Any:
    """What `train` makes batches of choices with: sessions with histories that are drawn anew each time."""

    def make(method: Rater, choices: Sequence[Choice], training: Training, seed: int) -> Batches:
        benchmark, targets = method.benchmark, settings.targets
        steps = total_steps(training, method.config) * training.gradient_accumulation
        plan = plan_sessions(choices, count=steps, batch_size=training.batch_size, targets=targets, seed=seed)
        for places in plan:  # a session that is refused is found before the first step
            for place in range(0, len(places), targets):
                chosen = [choices[k] for k in places[place : place + targets]]
                benchmark.history(chosen[0].user, settings.n_ref, 0, chosen)
        method.look_at(pictures(benchmark, {choice.user for choice in choices}))

        def collate(number: int, rank: int, world: int) -> RatedBatch:
            places, sessions = plan[number], []
            for place in range(rank * targets, len(places), world * targets):
                chosen = [choices[k] for k in places[place : place + targets]]
                draw = TRAINING_DRAWS + (seed * steps + number) * len(places) + place
                sessions.append(session(benchmark, chosen, n_ref=settings.n_ref, draw=draw, pairs=True))
            return method.collate(sessions)

        return Batches(plan, collate)

    return make


# --- ratings


def rate(
    method: Rater, split: str, *, n_ref: int, draw: int, batch_size: int, folder: Path | None = None
) -> pd.DataFrame:
    """Rates all candidates of a split's choices, each user's behind one history.

    Args:
        batch_size: users at once. folder: where ratings are kept, and read from when they are asked for again.

    Returns a row per candidate: `COLUMNS`. Raises EvaluationError if a rating is not finite, or memory does not
    suffice; HistoryError if a user has fewer than n_ref choices for a history.
    """
    path = folder / f"answers-{split}-{n_ref}-{draw}.parquet" if folder else None
    if path is not None and is_intact(path):
        return pd.read_parquet(path)
    method.eval()
    with merged_lora(method.model), torch.inference_mode():
        frame = _rate(method, split, n_ref=n_ref, draw=draw, batch_size=batch_size)
    if path is not None and distributed.state().is_main_process:
        write_parquet(path, frame, sealed=True)
    distributed.state().wait_for_everyone()
    return frame


def _rate(method: Rater, split: str, *, n_ref: int, draw: int, batch_size: int) -> pd.DataFrame:
    benchmark, by_user = method.benchmark, method.benchmark.by_user(split)
    groups, rows = list(by_user.values()), []
    method.look_at(pictures(benchmark, set(by_user), benchmark.select(split)))
    bar = progress_bar(len(groups), f"rate {split} after {n_ref} choices, draw {draw}")
    state = distributed.state()
    for start in range(state.process_index * batch_size, len(groups), state.num_processes * batch_size):
        chosen = groups[start : start + batch_size]
        sessions = [session(benchmark, own, n_ref=n_ref, draw=draw, pairs=False) for own in chosen]
        task = f"a batch of {len(chosen)} users"
        with memory.explained(EvaluationError, task, MEMORY_HINT):
            logits = method.rate(method.collator(sessions).to(method.backbone.device)).float().cpu()
        for own, row in zip(chosen, logits, strict=True):
            places = [(choice, candidate) for choice in own for candidate in range(len(choice.candidates))]
            for (choice, candidate), (plus, minus) in zip(places, row.tolist(), strict=False):
                rows.append((choice.index, split, choice.user, n_ref, draw, candidate, plus, minus))
        bar.update(len(chosen))
    bar.close()
    if state.num_processes > 1:
        rows = gather_object(rows)
    frame = pd.DataFrame(rows, columns=list(COLUMNS[:-1])).sort_values(
        ["user", "index", "candidate"], ignore_index=True
    )
    if not np.isfinite(frame[["plus", "minus"]].to_numpy()).all():
        bad = frame.loc[~np.isfinite(frame[["plus", "minus"]]).all(axis=1), "index"].iloc[0]
        raise EvaluationError(f"choice {bad}: a rating is not a number (a weight is NaN or too large)")
    frame["score"] = 1 / (1 + np.exp(frame["minus"] - frame["plus"]))
    return frame


# --- runs


class ChoiceWorkbench(Workbench):
    """A workbench (`prefmoe.running.runs`) for choices between pictures."""

    modules = (__name__,)

    @cached_property
    def benchmark(self) -> ChoiceBenchmark:
        """The choices, read and checked."""
        return load_choices(self.edition, self.results) if self._benchmark is None else self._benchmark

    def backbone(self, *, trained: bool = False, look: bool = False) -> Backbone:
        """A backbone as it was saved; what its pictures look like, methods keep for themselves."""
        return self._load(trained, cache_images=False)

    def needed(self, name: str, seed: int) -> Path:
        """The run of a method that another one needs, made first if it is not there: with the same seed or, where it
        has none such, its first."""
        seeds = self.edition.seeds_of(name)
        return self.run_method(name, seed if seed in seeds else seeds[0])

    def begun_with(self, config: Method, seed: int) -> Path | None:
        """The run that a method begins with; None for what begins with nothing."""
        name = getattr(config, "begins_with", None)
        return None if name is None else self.needed(name, seed)

    def method(self, config: Method, seed: int, *, look: bool = False) -> Rater | Scorer:
        """An untrained method on a pristine backbone; in stage 2 with what stage 1 has learned."""
        built = super().method(config, seed)
        if (before := self.begun_with(config, seed)) is not None:
            verify(before)
            built.begin_with(before / METHOD_FOLDER)
        return built

    def _asked_inputs(self, config: Method, seed: int, asked: Asked, controls: Sequence[ControlKind]) -> dict[str, Any]:
        before = self.begun_with(config, seed)
        begun = read_story(before)["inputs_digest"] if before else None
        return {"begins_with": begun, "histories": self._histories(asked)}

    def asked(self, method: str) -> Asked:
        """The splits whose choices are predicted, after histories of the lengths that the edition has for a method."""
        return dict.fromkeys(self.edition.evaluation.splits, self.edition.histories.asked(method))

    def validation(self) -> Asked:
        """What settings are chosen by: validation choices, after whole histories."""
        return {"validation": (self.edition.histories.n_ref,)}

    def _histories(self, asked: Asked) -> dict[str, Any]:
        """The edition's histories in JSON types, with what is asked in the place of what others are."""
        settings = self.edition.histories.model_dump(mode="json", exclude={"lengths", "at_lengths"})
        return {**settings, "asked": {split: list(lengths) for split, lengths in asked.items()}}

    def _work(
        self,
        config: Method,
        seed: int,
        folder: Path,
        asked: Asked,
        controls: Sequence[ControlKind],
        about: dict[str, Any],
    ) -> None:
        """Fills a run's folder; run.json comes last."""
        settings, training = self.edition.histories, None
        self.benchmark.check_histories(max(settings.n_ref, *(max(lengths) for lengths in asked.values())))
        self.check_training(config)
        method = self.method(config, seed)
        if is_trained(config):
            choices = self.benchmark.select("train")
            options = {"folder": folder, "seed": seed, "make_batches": choice_batches(settings)}
            training = train(method, choices, self.edition.training, **options)
        started, frames = time.perf_counter(), []
        splits = [split for split in asked if self.benchmark.splits.get(split)]
        if not splits:
            raise RunError(f"{self.benchmark.root}: no choices in the split(s) {', '.join(asked)}")
        for split in splits:
            if isinstance(method, Scorer) and not method.reads_history:
                frames.append(method.rate(split, n_ref=0, draw=0))
                continue
            for n_ref, draw in ((n_ref, draw) for n_ref in asked[split] for draw in range(settings.draws)):
                if isinstance(method, Scorer):
                    frames.append(method.rate(split, n_ref=n_ref, draw=draw))
                else:
                    sizes = {"batch_size": settings.batch_size, "folder": folder}
                    frames.append(rate(method, split, n_ref=n_ref, draw=draw, **sizes))
        seconds = time.perf_counter() - started
        method.save_pretrained(folder / METHOD_FOLDER)
        if not distributed.state().is_main_process:
            return
        write_parquet(folder / PREDICTIONS_FILE, pd.concat(frames, ignore_index=True))
        about |= {"parameters": method.describe(), "context_tokens": self._context_tokens(config, method)}
        where = {"sections": {"histories": self._histories(asked)}, "device": method.backbone.device}
        self._seal(config, seed, folder, about, training, {"evaluate": seconds}, **where)

    def _context_tokens(self, config: Method, method: Rater | Scorer) -> float:
        """How many tokens tell a rater of its user, on average; what reads no tokens has none."""
        if not isinstance(config, RaterMethod):
            return 0.0
        users, n_ref = list(self.benchmark.users), self.edition.histories.n_ref
        entries = [entry for user in users for entry in told(self.benchmark, user, n_ref, 0, ())]
        tokens = sum(len(method.collator.question(entry.prompt)) + 1 for entry in entries)
        return method.prefix_length + tokens / len(users)


run_all_seeds = ChoiceWorkbench.run_all_seeds


def trained_rater(
    edition: Edition | str | Path,
    backbone_name: str,
    method_name: str,
    seed: int,
    *,
    results: str | Path = RESULTS,
    attention: str = "sdpa",
) -> Rater:
    """A rater as its run left it; the run is made first if it is not there. ``attention``: "eager" for a language model
    that returns attention maps."""
    workbench = ChoiceWorkbench(load_edition(edition), backbone_name, results=results)
    folder = workbench.run_method(method_name, seed)
    verify(folder)
    backbone = load_backbone(backbone_name, attn=attention)
    return Rater.from_pretrained(folder / METHOD_FOLDER, backbone, workbench.benchmark)
