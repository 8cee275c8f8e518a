"""Ranks all items of the miniature world for every user: P(yes) to one question about one picture of each item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from prefmoe.analysis import ranking
from prefmoe.backbones.batches import Collator
from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.last_positions import last_positions_only
from prefmoe.config import RESULTS, Edition, load_edition, run_folder
from prefmoe.data.benchmark import Example
from prefmoe.data.drawing import ITEM_FACET, draw_items
from prefmoe.data.made_once import make_once
from prefmoe.data.miniature import LIKES_QUESTIONS
from prefmoe.models.base import Method
from prefmoe.models.lora import merged_lora
from prefmoe.running import prefix_cache
from prefmoe.running.evaluation import EvaluationError, answer_probabilities, first_tokens
from prefmoe.running.runs import Workbench
from prefmoe.system.run_files import METHOD_FOLDER, verify

BATCH = 240
"""Questions per forward pass: four users' at once."""


def item_pictures(folder: Path, seed: int = 0) -> dict[str, Path]:
    """A picture of every item, the same for all users and none of the benchmark's; drawn into ``folder`` once."""

    def write(place: Path) -> None:
        for number, item in enumerate(ITEM_FACET):
            draw_items([item], np.random.default_rng([seed, 6, number])).save(place / f"{item}.png")

    made_from = {"version": 1, "seed": seed}
    make_once(folder, "pictures.json", made_from, "pictures of items", write)
    return {item: folder / f"{item}.png" for item in ITEM_FACET}


def questions(users: Sequence[str], pictures: dict[str, Path]) -> list[Example]:
    """For every user, and for each of them every item, whether the user would like what a picture shows."""
    asked = [(user, item) for user in users for item in pictures]
    return [
        Example(
            index=index, name=user, category="preference", l2_category="awareness", concept=ITEM_FACET[item], target="",
            question=LIKES_QUESTIONS[0], options=(), answer=4, image=pictures[item], semantic_invert=False,
            bucket_names=(),
        )
        for index, (user, item) in enumerate(asked)
    ]  # fmt: skip


@torch.inference_mode()
def score(method: Method, examples: Sequence[Example], *, batch_size: int = BATCH) -> NDArray:
    """(N,) P(yes) of yes/no questions, as `evaluation.evaluate` has it for each of them alone.

    Questions of one user in a row share what stands before the picture (`prefix_cache`); prompts that differ in
    nothing but the picture are rendered and tokenised once, and a picture is prepared and looked at once.

    Raises EvaluationError if a question is about a user whom the method does not know, or logits are not finite.
    """
    for example in examples:
        if example.name not in method.benchmark.users:
            raise EvaluationError(f"question {example.index}: the method knows no user {example.name!r}")
    tokens = first_tokens(method.backbone.tokenizer, letters=method.config.answers)
    generation = GenerationConfig(
        max_new_tokens=1, do_sample=False, use_cache=method.decodes_with_cache, output_logits=True,
        return_dict_in_generate=True, pad_token_id=method.backbone.pad_token_id,
    )  # fmt: skip
    method.eval()
    encoded, found = _encoded(method, examples), []
    with merged_lora(method.model):
        for start in range(0, len(examples), batch_size):
            asked = examples[start : start + batch_size]
            prompts = [next(encoded) for _ in asked]
            with last_positions_only(method.backbone, 1):
                output = prefix_cache.generate(method, asked, prompts, generation)
                if output is None:
                    batch = method.collator.pad(prompts, asked).to(method.backbone.device)
                    with method.context(batch):
                        output = method.model.generate(**batch.inputs, generation_config=generation)
            found.append(answer_probabilities(output.logits[0], asked, tokens)["p_yes"].to_numpy(dtype=float))
    scores = np.concatenate(found)
    if not np.isfinite(scores).all():
        at = examples[int(np.argmin(np.isfinite(scores)))]
        raise EvaluationError(f"question {at.index} ({at.name}): the model's answer is not a number")
    return scores


def _encoded(method: Method, examples: Sequence[Example]) -> Iterator[Encoded]:
    """Every question as the method's collator encodes it; of prompts that differ in their picture alone the first."""
    collator, backbone = method.collator, method.backbone
    # A class that is asked as a whole, or a collator of its own kind, may read a picture into more than its place.
    alike = type(collator).encode is Collator.encode and backbone.entry.architecture is not None
    prepared: dict[tuple[str, ...], Any] = {}
    first: dict[tuple[Any, ...], Encoded] = {}
    for example in examples:
        if not alike:
            yield collator.encode(example)
            continue
        user = method.benchmark.users[collator.whose(example)]
        messages, images = collator.conversation(collator.asked(example), user, ())
        files = tuple(map(str, images))
        if files not in prepared:
            prepared[files] = backbone.process_pictures(images)
        pictures = prepared[files]
        sizes = tuple((k, v.shape if v.is_floating_point() else repr(v.tolist())) for k, v in pictures.inputs.items())
        key = (repr(messages), pictures.replacements, sizes)
        if key not in first:
            first[key] = collator.encode(example)
        yield replace(first[key], pictures=pictures)


def rank(
    edition: Edition | str, *, results: str | Path = RESULTS, depths: Sequence[int] = ranking.DEPTHS
) -> list[Path]:
    """Ranks all items for all users with every finished run of an edition, beside recommenders that see the same
    training answers; writes and returns the tables of `ranking.write`.

    Raises RankingError if the edition is not about the miniature; RunFileError naming a run that is not finished, or
    whose saved method is missing or changed.
    """
    edition = load_edition(edition)
    ranking.check(edition, depths)
    places = {
        (backbone, key, seed): run_folder(results, edition.name, backbone, key, seed)
        for backbone, key in edition.runs()
        for seed in edition.seeds_of(key)
    }
    for folder in places.values():
        verify(folder)
    scores: dict[tuple[str, str], list[NDArray]] = {}
    for name in edition.backbones:
        bench = Workbench(edition, name, results=results)
        pictures = item_pictures(Path(results) / edition.name / "items", edition.data.seed)
        taste = ranking.taste_of(edition, bench.benchmark)
        asked = questions(taste.users, pictures)
        for (backbone, key, _), folder in places.items():
            if backbone == name:
                method = Method.from_pretrained(folder / METHOD_FOLDER, bench.backbone(), bench.benchmark)
                found = score(method, asked).reshape(taste.told.shape)
                scores.setdefault((backbone, key), []).append(found)
    return ranking.write(edition, taste, scores, results=results, depths=depths)
