"""Evaluation: batch-size independence, probabilities against a plain forward pass, small talk, continuation."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_world import small_backbone, small_benchmark, small_edition
from tiny_models import DEEPSEEK_VL2

from prefmoe import metrics
from prefmoe.models.base import build_method
from prefmoe.running.evaluation import (
    QUESTION_COLUMNS,
    EvaluationError,
    allowed_answers,
    answer_probabilities,
    evaluate,
    first_tokens,
    question_columns,
    small_talk,
)

PROBABILITIES = ["p_yes", "p_no", "p_a", "p_b", "p_c", "p_d"]


def method_of(name: str, kind: str = "llava", **options):
    backbone = small_backbone(kind, **options)
    return build_method(small_edition("tiny").methods[name], backbone, small_benchmark(), seed=0)


def questions(count: int = 20):
    return small_benchmark().select("test")[:count]


def ask(method, examples=None, **changes) -> pd.DataFrame:
    options = {"turns": 0, "transcripts": small_benchmark().transcripts, "batch_size": 7, "max_new_tokens": 3}
    return evaluate(method, examples or questions(), **(options | changes))


@pytest.mark.parametrize(
    ("name", "kind"), [("NT", "llava"), *(("PrefMoE", kind) for kind in ("llava", "qwen2_5_vl", *DEEPSEEK_VL2))]
)
@pytest.mark.parametrize("turns", [0, 1])
def test_answers_do_not_depend_on_the_batch_size(name, kind, turns):
    method = method_of(name, kind)
    alone, together = (ask(method, questions(12), turns=turns, batch_size=size) for size in (1, 12))
    numbers = alone.select_dtypes("number").columns
    assert set(PROBABILITIES) < set(numbers)
    pd.testing.assert_frame_equal(alone.drop(columns=numbers), together.drop(columns=numbers))
    np.testing.assert_allclose(alone[numbers].to_numpy(), together[numbers].to_numpy(), atol=1e-5)


def test_answers_do_not_depend_on_whether_lora_is_merged(monkeypatch):
    method = method_of("LoRA")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in method.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.2, generator=generator)
    merged, plain = ask(method, turns=1), ask(method_of("LoRA"), turns=1)
    monkeypatch.setattr("prefmoe.running.evaluation.merged_lora", lambda model: nullcontext())
    apart = ask(method, turns=1)
    numbers = apart.select_dtypes("number").columns
    pd.testing.assert_frame_equal(merged.drop(columns=numbers), apart.drop(columns=numbers))
    np.testing.assert_allclose(merged[numbers].to_numpy(), apart[numbers].to_numpy(), atol=1e-5)
    assert not np.allclose(plain["p_yes"].dropna(), apart["p_yes"].dropna(), atol=1e-3)


def test_rows_come_in_the_order_of_the_questions_with_all_columns():
    benchmark, examples = small_benchmark(), questions()[::-1]
    frame = ask(method_of("NT"), examples)
    assert frame["index"].tolist() == [example.index for example in examples]
    assert set(metrics.COLUMNS) | {"split", "turns", "user", "unparsed", "prompt_digest", "p_allowed"} < set(frame)
    assert set(frame["split"]) == {"test"} and set(frame["turns"]) == {0}
    assert [list(benchmark.users)[row] for row in frame["user"]] == frame["name"].tolist()
    repeated = benchmark.frame.loc[[e.index for e in examples], list(QUESTION_COLUMNS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame[list(QUESTION_COLUMNS)], repeated)
    scored = metrics.score(frame)
    readable = [pred in ("yes", "no", "a", "b", "c", "d") for pred in scored["pred"]]
    assert frame["unparsed"].tolist() == [not value for value in readable]


def test_predictions_say_what_profiles_tell_where_the_benchmark_does():
    benchmark, examples = small_benchmark(), questions(4)
    assert not {"item", "told", "seen_pair"} & set(question_columns(benchmark, examples))
    told = ["untold", *["other"] * (len(benchmark.annotations) - 1)]
    first = examples[0].index
    order = [first, *(index for index in benchmark.annotations.index if index != first)]
    annotations = benchmark.annotations.loc[order].assign(told=told).sort_index()
    secret = replace(benchmark, annotations=annotations)
    stranger = examples[1].model_copy(update={"question": "another one"})
    found = question_columns(secret, [*examples, stranger]).set_index([pd.Index([*range(len(examples)), "own"])])
    for row, example in enumerate(examples):
        expected = annotations.loc[example.index, ["item", "told", "seen_pair"]].tolist()
        assert found.loc[row, ["item", "told", "seen_pair"]].tolist() == expected
    assert found.loc["own", ["item", "told", "seen_pair"]].tolist() == ["", "", 0]
    nothing = replace(benchmark, annotations=annotations.assign(told="told"))
    assert "told" not in question_columns(nothing, examples)  # profiles tell everything


def test_probabilities_are_those_of_a_plain_forward_pass():
    method = method_of("NT")
    frame = ask(method)
    ids = {word: method.backbone.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "Yes", "No", *"ABCD")}
    for example, row in zip(questions(), frame.to_dict("records"), strict=True):
        batch = method.collator([example], transcripts=[()], with_answer=False)
        with torch.no_grad(), method.context(batch):
            shares = method.model(**batch.inputs).logits[0, -1].softmax(-1)
        if example.is_multiple_choice:
            masses = {letter: shares[ids[letter]].item() for letter in "ABCD"[: len(example.options)]}
        else:
            masses = {w: (shares[ids[w]] + shares[ids[w.capitalize()]]).item() for w in ("yes", "no")}
        total = sum(masses.values())
        assert row["p_allowed"] == pytest.approx(total, rel=1e-4)
        for answer, mass in masses.items():
            assert row[f"p_{answer.lower()}"] == pytest.approx(mass / total, rel=1e-4)
        empty = {column for column in PROBABILITIES if np.isnan(row[column])}
        assert empty == set(PROBABILITIES) - {f"p_{answer.lower()}" for answer in masses}


def test_predictions_are_greedy_continuations_that_stop_at_the_end_token():
    method = method_of("NT")
    with torch.no_grad():  # the uncached reference cannot go on after an image token
        method.backbone.lm_head.weight[method.backbone.image_token_id] = 0
    frame = ask(method, questions(6), max_new_tokens=4)
    tokenizer, end = method.backbone.tokenizer, method.model.generation_config.eos_token_id
    for example, prediction in zip(questions(6), frame["prediction"], strict=True):
        inputs = dict(method.collator([example], transcripts=[()], with_answer=False).inputs)
        said: list[int] = []
        while len(said) < 4 and (not said or said[-1] != end):
            with torch.no_grad():
                best = method.model(**inputs).logits[0, -1].argmax()
            said.append(int(best))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], best.view(1, 1)], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert prediction == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_a_repetition_penalty_of_the_backbone_is_not_inherited():
    plain, other = method_of("NT"), method_of("NT")
    other.model.generation_config.repetition_penalty = 5.0
    pd.testing.assert_frame_equal(ask(plain, max_new_tokens=4), ask(other, max_new_tokens=4))


def test_gates_are_recorded_per_question_and_sum_to_one():
    frame = ask(method_of("PrefMoE"))
    for name, size in {"task": 2, "preference": 5, "profile": 2}.items():
        gates = frame[[f"gate_{name}_{k}" for k in range(size)]].to_numpy()
        np.testing.assert_allclose(gates.sum(1), 1, atol=1e-5)
    assert not [column for column in ask(method_of("LoRA"), questions(3)) if column.startswith("gate")]


def test_training_mode_and_caches_change_nothing():
    method = method_of("LoRA")
    first = ask(method)
    method.train()
    pd.testing.assert_frame_equal(first, ask(method))
    cached = ask(method_of("LoRA", cache_images=True))
    pd.testing.assert_frame_equal(first, cached, rtol=1e-4)


def test_small_talk_is_chosen_by_the_questions_index_and_cut_to_the_turns():
    benchmark, example = small_benchmark(), questions()[0]
    talk = small_talk(example, benchmark.transcripts, 3)
    assert talk == benchmark.transcripts[example.index % len(benchmark.transcripts)][:6]
    assert small_talk(example, (), 0) == ()
    with pytest.raises(EvaluationError, match="no transcripts"):
        small_talk(example, (), 1)
    with pytest.raises(EvaluationError, match="20 utterances, expected at least 22"):
        small_talk(example, benchmark.transcripts, 11)
    with pytest.raises(EvaluationError, match="turns: expected a number from 0, found -1"):
        small_talk(example, benchmark.transcripts, -1)
    method = method_of("NT")
    digests = [ask(method, questions(4), turns=turns)["prompt_digest"] for turns in (0, 1, 2)]
    assert len({digest for column in digests for digest in column}) == 12


@pytest.mark.parametrize("name", ["turns", "batch_size", "max_new_tokens", "shard_batches"])
def test_a_number_that_is_too_small_is_refused_by_name(name):
    least = int(name != "turns")
    with pytest.raises(EvaluationError, match=f"{name}: expected a number from {least}, found {least - 1}"):
        ask(method_of("NT"), questions(2), **{name: least - 1})


@pytest.mark.parametrize("name", ["NT", "LoRA"])
@pytest.mark.parametrize("cache_images", [True, False])
def test_a_question_from_elsewhere_is_reported_as_it_is_whatever_its_index(name, cache_images):
    """A copied index, one that nobody has, and one index twice in a call."""
    method, own = method_of(name, cache_images=cache_images), next(e for e in questions() if not e.is_multiple_choice)
    known = ask(method, [own])
    other = next(user for user in small_benchmark().users if user != own.name)
    new = {"name": other, "question": "Is this <sks>?", "answer": 9 - own.answer, "bucket_names": ("Smith, John",)}
    copied = own.model_copy(update=new)
    stranger = copied.model_copy(update={"index": 10**9})
    frame = ask(method, [copied, own, stranger])
    assert frame["index"].tolist() == [own.index, own.index, 10**9]
    assert frame["name"].tolist() == [other, own.name, other] and frame["split"].tolist() == ["", "test", ""]
    assert frame["question"].tolist() == ["Is this <sks>?", own.question, "Is this <sks>?"]
    assert frame["answer"].tolist() == [9 - own.answer, own.answer, 9 - own.answer]
    assert metrics.holders(frame)[0] == {"Smith, John"}
    pd.testing.assert_frame_equal(frame.iloc[[1]].reset_index(drop=True), known, rtol=1e-4)
    asked = [column for column in frame if column not in ("index",)]
    pd.testing.assert_frame_equal(
        frame.iloc[[0]].reset_index(drop=True)[asked], frame.iloc[[2]].reset_index(drop=True)[asked], rtol=1e-4
    )
    assert frame["prompt_digest"].nunique() == 2
    with pytest.raises(EvaluationError, match=f"question {own.index}: the method knows no user 'Nobody'"):
        ask(method, [own.model_copy(update={"name": "Nobody"})])


class Interruption(Exception):
    """Stands for a killed process."""


def test_an_interrupted_evaluation_goes_on_from_its_shards(tmp_path, monkeypatch):
    method = method_of("LoRA")
    whole = ask(method, batch_size=4)
    generate, calls = method.model.generate, []

    def limited(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise Interruption
        return generate(*arguments, **options)

    monkeypatch.setattr(method.model, "generate", limited)
    with pytest.raises(Interruption):
        ask(method, batch_size=4, folder=tmp_path / "answers", shard_batches=2)
    assert len(list((tmp_path / "answers").glob("*.parquet"))) == 1
    calls.clear()
    calls += [1] * 10
    pd.testing.assert_frame_equal(ask(method, batch_size=4, folder=tmp_path / "answers", shard_batches=2), whole)
    assert len(calls) == 13  # five batches, two of them kept
    assert not (tmp_path / "answers").exists()


def test_a_damaged_shard_is_named_and_its_questions_are_asked_again(tmp_path, monkeypatch, caplog):
    method = method_of("LoRA")
    whole = ask(method, batch_size=4)
    with monkeypatch.context() as patch:  # every shard is kept, as after a kill
        patch.setattr("prefmoe.running.evaluation.shutil.rmtree", lambda *_, **__: None)
        ask(method, batch_size=4, folder=tmp_path, shard_batches=2)
    first, second, *_ = sorted(tmp_path.glob("*.parquet"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 2
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:100])
    pd.testing.assert_frame_equal(ask(method, batch_size=4, folder=tmp_path, shard_batches=2), whole)
    assert f"{first.name}: damaged" in caplog.text and f"{second.name}: damaged" in caplog.text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_answer_that_is_not_a_number_is_refused_with_its_question(value):
    method = method_of("NT")
    with torch.no_grad():
        method.backbone.lm_head.weight[7] = value
    with pytest.raises(EvaluationError, match=rf"not a number.* index .*\b{questions()[3].index}\b"):
        ask(method)


def test_kept_answers_of_other_questions_are_not_used(tmp_path):
    method = method_of("NT")
    ask(method, questions(3), folder=tmp_path / "answers")
    (tmp_path / "answers").mkdir()
    assert ask(method, questions(5), folder=tmp_path / "answers")["index"].tolist() == [
        example.index for example in questions(5)
    ]


def test_no_questions_is_an_error():
    method = method_of("NT")
    with pytest.raises(EvaluationError, match="no questions"):
        evaluate(method, [], turns=0, batch_size=2, max_new_tokens=2)


class Pieces:
    """A tokenizer that begins every word with a separate blank, and knows few words."""

    unk_token_id = 0

    def __init__(self, *words: str) -> None:
        self.words = {word: number for number, word in enumerate(words, start=2)}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        blank = [1] if text.startswith(" ") else []
        return {"input_ids": [*blank, self.words.get(text.strip(), 0)]}


def test_tokens_that_could_begin_two_answers_count_for_none():
    tokens = first_tokens(Pieces("yes", "no", "Yes", "A", "B", "C", "D", "a"))
    assert tokens == {"yes": [2, 4], "no": [3], "A": [5], "B": [6], "C": [7], "D": [8]}
    with pytest.raises(EvaluationError, match="'no'"):
        first_tokens(Pieces("yes", "A", "B", "C", "D"))


def test_probability_of_improbable_answers_is_still_split_exactly():
    logits = torch.full((1, 12), -200.0)
    logits[0, 11], logits[0, 2], logits[0, 3] = 0.0, -150.0, -150.0 - np.log(3)
    tokens = first_tokens(Pieces("yes", "no", "A", "B", "C", "D"))
    example = next(e for e in questions() if not e.is_multiple_choice)
    row = answer_probabilities(logits, [example], tokens).iloc[0]
    assert (row["p_yes"], row["p_no"]) == pytest.approx((0.75, 0.25), rel=1e-5)
    assert allowed_answers(example) == ("yes", "no")
