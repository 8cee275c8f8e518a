"""Trained methods, the questions put to them about one picture and several users, and what they answer."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from prefmoe.backbones.batches import Batch
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import RESULTS, Edition, run_folder
from prefmoe.config.registry import find_backbone
from prefmoe.data.benchmark import FACETS, Benchmark, Example
from prefmoe.data.prompts import PLACEHOLDER
from prefmoe.data.sources import load_benchmark
from prefmoe.models.base import Method
from prefmoe.running import runs
from prefmoe.running.evaluation import ANSWERS, answer_probabilities, first_tokens
from prefmoe.system import run_files


class InspectionError(ValueError):
    """Something that cannot be looked at: a run that is missing, or a method without the part asked for."""


def trained_method(
    edition: Edition,
    backbone_name: str,
    method_name: str,
    seed: int,
    *,
    attn: str = "sdpa",
    results: str | Path = RESULTS,
) -> Method:
    """A trained method from its run folder, on a backbone loaded anew, ready to answer.

    A run on a miniature backbone that is absent, or older than its settings, is made first; that takes a minute or two.

    ``attn``: "eager" where attention maps will be asked for. Raises InspectionError if the run of a large backbone is
    absent; the message holds the command that makes it; MethodError if the run belongs to other weights or other users
    than those of today.
    """
    folder = _run(edition, backbone_name, method_name, seed, results)
    backbone = load_backbone(backbone_name, attn=attn)
    return Method.from_pretrained(folder / "method", backbone, load_benchmark(edition, results))


def _run(edition: Edition, backbone_name: str, method_name: str, seed: int, results: str | Path) -> Path:
    """The folder of a complete run; see `trained_method`."""
    if find_backbone(backbone_name).hub_id is None:
        return runs.run_method(edition, backbone_name, method_name, seed, results=results)
    folder = run_folder(results, edition.name, backbone_name, method_name, seed)
    try:
        run_files.verify(folder)
    except run_files.RunFileError as error:
        raise InspectionError(
            f"{folder}: no complete run ({error}); make it with: prefmoe notebook "
            f"notebooks/06_train_and_evaluate.ipynb results/run.ipynb "
            f"-p edition={edition.name} -p backbone={backbone_name} -p method={method_name}"
        ) from error
    return folder


def answers(edition: Edition, backbone_name: str, method_name: str, split: str = "test", turns: int = 0,
            results: str | Path = RESULTS) -> list[pd.DataFrame]:  # fmt: skip
    """The per-question answers of a method to one split after so many turns of small talk, a frame per seed.

    Runs on a miniature backbone that are absent, or older than their settings, are made first.

    Raises InspectionError if the edition does not ask that split after so many turns, or a run of a large backbone is
    absent.
    """
    asked = edition.evaluation.asked
    if (split, turns) not in [(name, after) for name in asked for after in asked[name]]:
        known = "; ".join(f"{name} after {', '.join(map(str, after))}" for name, after in asked.items())
        raise InspectionError(
            f"split {split!r:.80} after {turns!r:.80} turns of small talk: edition {edition.name!r} asks {known}"
        )
    frames = []
    for seed in edition.seeds_of(method_name):
        folder = _run(edition, backbone_name, method_name, seed, results)
        frame = run_files.read_predictions(folder)
        frames.append(frame[(frame["split"] == split) & (frame["turns"] == turns)])
    return frames


def prompts(method: Method, examples: Sequence[Example]) -> Batch:
    """The questions without answers."""
    return method.collator(examples, with_answer=False).to(method.backbone.device)


def asked_text(example: Example) -> str:
    """A question with the user's name in it."""
    return example.question.replace(PLACEHOLDER, example.name)


def same_picture(example: Example, names: Sequence[str]) -> list[Example]:
    """A preference question and its picture, asked about each of several users, with the answer true of each. Raises
    InspectionError for another kind of question: its answer does not follow from who holds the preference."""
    if example.category != "preference" or example.is_multiple_choice or not example.bucket_names:
        raise InspectionError(
            f"question {example.index}: expected a preference yes/no question with its holders, found "
            f"{example.category}, {example.l2_category}"
        )
    yes = [(name in example.bucket_names) != example.semantic_invert for name in names]
    return [
        example.model_copy(update={"name": name, "answer": 4 if true else 5})
        for name, true in zip(names, yes, strict=True)
    ]


def shared_questions(benchmark: Benchmark, pictures: int, users: int, split: str = "test") -> list[list[Example]]:
    """For a few pictures the same question about several trained users, half of whom (if possible) would say yes.

    Plain (not negated) questions whose holders divide the users most evenly come first, at most one per facet until
    every facet had its turn. Where nobody is known to hold a preference, yes/no questions about recognition as they
    are, each about its one user.

    Args:
        pictures: how many questions; where there are fewer they come again. users: about how many users each.

    Raises InspectionError if the split has no yes/no question of either kind.
    """
    trained = benchmark.trained_users
    usable = [
        example
        for example in benchmark.select(split)
        if example.category == "preference" and not example.is_multiple_choice and not example.semantic_invert
        and set(example.bucket_names) & set(trained)
    ]  # fmt: skip
    if not usable:
        faces = [e for e in benchmark.select(split) if e.category == "recognition" and not e.is_multiple_choice]
        if not faces:
            raise InspectionError(f"split {split!r} has no yes/no question about recognition or a known preference")
        return [[example] for example in islice(cycle(faces), pictures)]
    half = users // 2

    def balance(example: Example) -> int:
        holders = len(set(example.bucket_names) & set(trained))
        return -min(holders, len(trained) - holders, half)

    queues = {facet: sorted((e for e in usable if e.concept == facet), key=balance) for facet in FACETS}
    turn = sorted(
        ((k, balance(example), FACETS.index(facet), example.index, example)
         for facet, queue in queues.items() for k, example in enumerate(_distinct(queue))),
        key=lambda entry: entry[:4],
    )  # fmt: skip
    chosen = []
    for *_, example in islice(cycle(turn), pictures):
        holders = [name for name in trained if name in example.bucket_names][:half]
        others = [name for name in trained if name not in example.bucket_names][: users - len(holders)]
        chosen.append(same_picture(example, [*holders, *others]))
    return chosen


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """One example for each set of holders, the first."""
    return list({example.bucket_names: example for example in reversed(examples)}.values())[::-1]


@torch.inference_mode()
def most_probable_answers(method: Method, examples: Sequence[Example]) -> pd.DataFrame:
    """What a method would answer to each question, by the probabilities of the allowed answers' first tokens. Returns a
    row per question: user, question, answer, probability (of it, among those allowed) and right (0/1)."""
    batch = prompts(method, examples)
    with method.context(batch):
        logits = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    tokens = first_tokens(method.backbone.tokenizer, letters=method.config.answers)
    table = answer_probabilities(logits, examples, tokens)
    shares = table[[f"p_{answer.lower()}" for answer in ANSWERS]].to_numpy()
    best = np.nanargmax(shares, axis=1)
    answers = [ANSWERS[k] for k in best]
    return pd.DataFrame(
        {
            "user": [example.name for example in examples],
            "question": [asked_text(example) for example in examples],
            "answer": answers,
            "probability": shares[np.arange(len(best)), best],
            "right": [int(a == e.answer_text) for a, e in zip(answers, examples, strict=True)],
        }
    )
