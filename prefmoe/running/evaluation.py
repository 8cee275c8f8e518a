"""Asks a method questions: greedy answers and the probability of each allowed answer, a row per question."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig

from prefmoe import metrics
from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.last_positions import last_positions_only
from prefmoe.config import TooLong
from prefmoe.data.benchmark import OPTION_LETTERS, Benchmark, Example, Turn, join_holders
from prefmoe.models.base import Method
from prefmoe.models.lora import merged_lora
from prefmoe.running import prefix_cache
from prefmoe.running.shortening import exchanges_left_out, fitting_talks
from prefmoe.system import distributed, memory, provenance
from prefmoe.system.files import is_intact, write_parquet
from prefmoe.system.progress import progress_bar

ANSWERS = ("yes", "no", *OPTION_LETTERS)
"""Every answer that some question allows; column p_<answer> holds its probability."""

QUESTION_COLUMNS = tuple(column for column in metrics.COLUMNS if column != "prediction")
"""What a question says of itself is repeated beside each prediction, so that tables need nothing else."""


class EvaluationError(RuntimeError):
    """An evaluation that cannot be done as asked."""


def allowed_answers(example: Example) -> tuple[str, ...]:
    """The answers a question allows: its option letters, or yes and no."""
    return OPTION_LETTERS[: len(example.options)] if example.is_multiple_choice else ("yes", "no")


def first_tokens(tokenizer: Any, *, letters: Literal["upper", "lower"] = "upper") -> dict[str, list[int]]:
    """The token ids with which each answer may begin: as it is, capitalised, and after a space.

    Option letters count in one case alone, that which a method is trained to say ("a" is a word). A token that could
    begin two of the answers, or that is unknown to the tokenizer, counts for none.

    Raises EvaluationError if an answer is left without a token.
    """
    found: dict[str, set[int]] = {}
    for answer in ANSWERS:
        letter = answer.lower() if letters == "lower" else answer
        spellings = {letter} if len(answer) == 1 else {answer, answer.capitalize(), answer.upper()}
        ids = set()
        for text in sorted(space + spelling for spelling in spellings for space in ("", " ")):
            encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
            if encoded and encoded[0] != tokenizer.unk_token_id:
                ids.add(encoded[0])
        found[answer] = ids
    own = {a: ids.difference(*(others for b, others in found.items() if b != a)) for a, ids in found.items()}
    if silent := [answer for answer, ids in own.items() if not ids]:
        raise EvaluationError(f"the tokenizer has no token of its own that begins the answer {silent[0]!r}")
    return {answer: sorted(ids) for answer, ids in own.items()}


def small_talk(example: Example, transcripts: Sequence[Sequence[Turn]], turns: int) -> tuple[Turn, ...]:
    """The first ``turns`` exchanges (two utterances each) of the transcript that belongs to a question. Raises
    EvaluationError if they are fewer than none, there is no transcript, or it is too short."""
    if turns < 0:
        raise EvaluationError(f"turns: expected a number from 0, found {turns}")
    if turns == 0:
        return ()
    if not transcripts:
        raise EvaluationError(f"{turns} turns of small talk were asked for, but the benchmark has no transcripts")
    transcript = transcripts[example.index % len(transcripts)]
    if len(transcript) < 2 * turns:
        raise EvaluationError(
            f"transcript {example.index % len(transcripts)} has {len(transcript)} utterances, "
            f"expected at least {2 * turns} for {turns} turns"
        )
    return tuple(transcript[: 2 * turns])


def answer_probabilities(
    logits: torch.Tensor, examples: Sequence[Example], tokens: dict[str, list[int]]
) -> pd.DataFrame:
    """Probabilities of the allowed answers' first tokens.

    Args:
        logits: (B, V) raw logits of the first generated position.
        examples: B questions.
        tokens: answer -> token ids (`first_tokens`).

    Returns B rows; p_yes, p_no, p_a ... p_d: softmax restricted to what the question allows (NaN for the rest),
    p_allowed: the mass of all allowed answers in the full softmax.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    mass = torch.stack([log_probabilities[:, tokens[answer]].logsumexp(-1) for answer in ANSWERS], dim=-1)
    allowed = torch.tensor([[answer in allowed_answers(example) for answer in ANSWERS] for example in examples])
    mass = mass.masked_fill(~allowed.to(mass.device), -torch.inf)
    total = mass.logsumexp(-1, keepdim=True)
    shares = (mass - total).exp().masked_fill(~allowed.to(mass.device), torch.nan)
    table = torch.cat([shares, total.exp()], dim=-1).cpu().numpy()
    return pd.DataFrame(table, columns=[*(f"p_{answer.lower()}" for answer in ANSWERS), "p_allowed"])


def question_columns(benchmark: Benchmark, examples: Sequence[Example]) -> pd.DataFrame:
    """What a question says of itself, a row for each of N examples, whatever the benchmark holds under its index.

    Returns split (empty for a question that is not the benchmark's), user (row in the benchmark's users),
    `QUESTION_COLUMNS` and, where its annotations say so, item, told and seen_pair (`Benchmark.told`).
    """
    split = {index: split for split, indices in benchmark.splits.items() for index in indices}
    owned = [benchmark.examples.get(example.index) == example for example in examples]
    rows = []
    for example, own in zip(examples, owned, strict=True):
        options = dict(zip(OPTION_LETTERS, example.options, strict=False))
        rows.append(
            {
                "split": split.get(example.index, "") if own else "",
                "user": benchmark.row(example.name),
                "name": example.name,
                "category": example.category,
                "l2-category": example.l2_category,
                "concept": example.concept,
                "question": example.question,
                **{letter: options.get(letter, "") for letter in OPTION_LETTERS},
                "answer": example.answer,
                "preference_bucket_names": join_holders(example.bucket_names),
                "preference_semantic_invert": int(example.semantic_invert),
            }
        )
    told = benchmark.told([example.index if own else -1 for example, own in zip(examples, owned, strict=True)])
    return pd.DataFrame(rows, columns=["split", "user", *QUESTION_COLUMNS]).join(told.reset_index(drop=True))


def generate(
    method: Method, examples: Sequence[Example], prompts: Sequence[Encoded], generation: GenerationConfig, *,
    reuse_prefixes: bool = True,
) -> Any:  # fmt: skip
    """What generate() returns for encoded questions: with what they share computed once, where that can be. Raises
    EvaluationError if the backbone's processor makes more or fewer image tokens of a picture than its model."""
    with last_positions_only(method.backbone, 1), _image_tokens_explained(method.backbone.entry.name):
        output = prefix_cache.generate(method, examples, prompts, generation) if reuse_prefixes else None
        if output is not None:
            return output
        batch = method.collator.pad(prompts, examples).to(method.backbone.device)
        options = {"generation_config": generation, "synced_gpus": distributed.sharding()}
        with method.context(batch):
            return method.model.generate(**batch.inputs, **options)


@contextmanager
def _image_tokens_explained(backbone: str) -> Iterator[None]:
    """Within it, what transformers' models raise of another number of image tokens than theirs names the backbone."""
    try:
        yield
    except ValueError as error:
        if "image tokens do not match" not in str(error):
            raise
        wrong = "its processor writes another number of image tokens than its model makes of the pictures"
        raise EvaluationError(f"backbone {backbone!r}: {wrong} ({error})") from error


def generation_config(method: Method, max_new_tokens: int) -> GenerationConfig:
    """Plain greedy decoding: no repetition penalty or temperature is inherited from the backbone's files."""
    end = method.backbone.model.generation_config.eos_token_id
    if end is None:
        end = method.backbone.tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=method.decodes_with_cache,
        eos_token_id=end,
        pad_token_id=method.backbone.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )


@torch.inference_mode()
def _answer(
    method: Method,
    examples: Sequence[Example],
    transcripts: Sequence[tuple[Turn, ...]],
    tokens: dict[str, list[int]],
    generation: GenerationConfig,
    reuse_prefixes: bool,
) -> pd.DataFrame:
    """Rows (prediction, probabilities, prompt digest, gates) of one batch."""
    prompts = [method.collator.encode(e, talk) for e, talk in zip(examples, transcripts, strict=True)]
    output = generate(method, examples, prompts, generation, reuse_prefixes=reuse_prefixes)
    # A NaN or an infinity is the largest logit wherever there is one; a row without any finite logit has none either.
    readable = torch.stack([step.amax(-1) for step in output.logits]).isfinite().all(0).tolist()
    if silent := [example.index for example, good in zip(examples, readable, strict=True) if not good]:
        raise EvaluationError(
            f"the model's answer is not a number (a weight is NaN or too large) for the question(s) with index "
            f"{', '.join(map(str, silent))}"
        )
    said = output.sequences[:, -len(output.logits) :]
    texts = method.backbone.tokenizer.batch_decode(said, skip_special_tokens=True)
    rows = answer_probabilities(output.logits[0], examples, tokens)
    rows["prediction"] = [text.strip() for text in texts]
    rows["prompt_digest"] = [prompt.prompt_digest for prompt in prompts]
    for name, gate in method.gates(output).items():
        for k, share in enumerate(gate.float().cpu().unbind(1)):
            rows[f"gate_{name}_{k}"] = share.numpy()
    return rows


def evaluate(
    method: Method,
    examples: Sequence[Example],
    *,
    turns: int,
    transcripts: Sequence[Sequence[Turn]] = (),
    batch_size: int,
    max_new_tokens: int,
    reuse_prefixes: bool = True,
    too_long: TooLong = "refuse",
    folder: str | Path | None = None,
    shard_batches: int = 50,
) -> pd.DataFrame:
    """Answers every question greedily; deterministic, and independent of the batch size.

    The processes of ``accelerate launch`` share the batches, and each of them returns all rows.

    Args:
        examples: questions, in the order of the rows returned.
        turns: exchanges of small talk between profile and question (0 for none).
        transcripts: conversations to take them from; a question's is chosen by its index.
        batch_size: questions per forward pass; questions of like length share one.
        max_new_tokens: longest answer; generation stops at the end-of-sequence token.
        reuse_prefixes: questions whose prompts begin alike share a batch, and compute that beginning once, where the
            method allows it (`prefix_cache`); the answers are the same, up to rounding.
        too_long: what is done with a prompt beyond the model's positions (`shortening.fitting_talks`).
        folder: where answers are kept after every ``shard_batches`` batches; a second call with the same
            questions continues from there, and a finished one removes the folder. None keeps nothing.

    Returns one row per question: index, split, turns, turns_left_out (because of too_long), user (row in the
    benchmark's users), the question's columns (`QUESTION_COLUMNS`), prediction (raw text), unparsed (whether the parser
    cannot read it), p_yes, p_no, p_a ... p_d, p_allowed (`answer_probabilities`), prompt_digest, and gate_<router>_<k>
    for routed methods. Raises EvaluationError if there are no questions, one is about a user whom the method does not
    know, a number is too small, there is no small talk, the tokenizer cannot say an answer, logits are not finite (the
    message names the questions), or memory does not suffice (it says which settings help); TooLongError if prompts are
    longer than the model's positions, and may not or cannot be shortened.
    """
    if not examples:
        raise EvaluationError("no questions to evaluate")
    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "shard_batches": shard_batches}
    for name, number in sizes.items():
        if number < 1:
            raise EvaluationError(f"{name}: expected a number from 1, found {number}")
    benchmark = method.benchmark
    for example in examples:
        if example.name not in benchmark.users:
            raise EvaluationError(f"question {example.index}: the method knows no user {example.name!r}")
    whole = [small_talk(example, transcripts, turns) for example in examples]
    talks = fitting_talks(method, examples, whole, max_new_tokens=max_new_tokens, too_long=too_long)
    tokens = first_tokens(method.backbone.tokenizer, letters=method.config.answers)
    generation = generation_config(method, max_new_tokens)

    def length(place: int) -> int:
        """In tokens where encoded questions are kept; else in characters, rather than encode everything twice."""
        example, talk = examples[place], talks[place]
        if method.collator.cache:
            return method.collator.length(example, talk)
        return sum(map(len, [example.question, *example.options, *(text for _, text in talk)]))

    def beginning(place: int) -> tuple[str, int, tuple[Turn, ...]] | tuple[()]:
        """What prompts that begin alike have in common."""
        if not reuse_prefixes or method.beginning == "question":
            return ()
        user = examples[place].name if method.beginning == "user" else ""
        facet = examples[place].facet_id if method.profile == "statement" else -1
        return (user, facet, talks[place])

    # Batches are of places in ``examples``: an index may occur twice.
    places = range(len(examples))
    ordered = sorted(places, key=lambda place: (beginning(place), -length(place), examples[place].index))
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    state, sharded = distributed.state(), distributed.sharding()
    rounds = math.ceil(len(batches) / state.num_processes)
    # Sharded layers need every process in every round: those without a batch repeat one, which counts once.
    extra = batches[-1:] * (rounds * state.num_processes - len(batches)) if sharded else []
    batches = [*batches, *extra][state.process_index :: state.num_processes]
    reuse_prefixes = reuse_prefixes and not sharded
    identity = {
        "places": batches,
        "questions": hashlib.blake2b(repr(list(examples)).encode(), digest_size=16).hexdigest(),
        "turns": turns,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "too_long": too_long,
        "shard_batches": shard_batches,
    }
    shards = None if folder is None else Path(folder) / f"{provenance.digest(identity, 8)}-{{:05d}}.parquet"
    method.eval()
    bar = progress_bar(len(batches), f"evaluate {method.backbone.entry.name} {method.config.kind}, {turns} turns")
    pieces = []
    for number, start in enumerate(range(0, len(batches), shard_batches)):
        path = shards and shards.with_name(shards.name.format(number))
        piece = pd.read_parquet(path) if path and is_intact(path) else None
        if not (distributed.agreed(piece is not None) if sharded else piece is not None):
            rows = []
            with merged_lora(method.model):
                for batch in batches[start : start + shard_batches]:
                    asked, spoken = [examples[place] for place in batch], [talks[place] for place in batch]
                    task = f"a batch of {len(batch)} questions"
                    with memory.explained(EvaluationError, task, memory.EVALUATION_HINT):
                        answers = _answer(method, asked, spoken, tokens, generation, reuse_prefixes)
                    rows.append(answers.assign(place=batch))
                    bar.update()
            piece = pd.concat(rows, ignore_index=True)
            if path:
                write_parquet(path, piece, sealed=True)
        else:
            bar.update(len(batches[start : start + shard_batches]))
        pieces.append(piece)
    bar.close()
    if state.num_processes > 1:
        pieces = gather_object(pieces)
    answers = pd.concat(pieces, ignore_index=True).drop_duplicates("place").set_index("place")
    frame = pd.concat([question_columns(benchmark, examples), answers.loc[list(places)]], axis=1)
    frame.insert(0, "index", [example.index for example in examples])
    frame.insert(2, "turns", turns)
    frame.insert(3, "turns_left_out", exchanges_left_out(whole, talks))
    unread = metrics.unreadable(metrics.score(frame)).tolist()
    frame.insert(frame.columns.get_loc("prediction") + 1, "unparsed", unread)
    if shards and state.is_main_process:
        shutil.rmtree(shards.parent, ignore_errors=True)
    return frame
