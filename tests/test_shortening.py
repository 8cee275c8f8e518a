"""Prompts beyond the model's positions: counted and refused, or asked with the latest small talk that fits."""

from types import SimpleNamespace

import pytest
from small_world import small_backbone, small_benchmark, small_edition

from prefmoe.analysis.tables import SHORTENED_COLUMNS, shortened_table
from prefmoe.backbones.errors import PromptTooLong
from prefmoe.config import Training
from prefmoe.models.base import build_method
from prefmoe.running.evaluation import evaluate, small_talk
from prefmoe.running.shortening import TooLongError, fitting_talks
from prefmoe.running.training import train

TURNS, NEW = 10, 3


@pytest.fixture(scope="module")
def method():
    return build_method(small_edition("tiny").methods["NT"], small_backbone("qwen2_5_vl"), small_benchmark(), seed=0)


@pytest.fixture(scope="module")
def asked():
    benchmark = small_benchmark()
    examples = benchmark.select("test")[:6]
    return examples, [small_talk(example, benchmark.transcripts, TURNS) for example in examples]


@pytest.fixture
def limited(method, asked, monkeypatch):
    """limited(share): the model has positions for so much of the way from no small talk to the longest prompt."""

    def lengths(talks):
        return [method.collator.encode(e, t).taken_positions for e, t in zip(asked[0], talks, strict=True)]

    short, long = lengths([()] * len(asked[0])), lengths(asked[1])

    def limit(share: float) -> int:
        positions = max(short) + round(share * (max(long) - max(short))) + NEW - 1
        text = method.backbone.model.config.get_text_config()
        monkeypatch.setattr(text, "max_position_embeddings", positions)
        method.collator._examples.clear()
        return positions

    yield limit
    method.collator._examples.clear()


def test_what_fits_is_left_alone(method, asked, limited):
    limited(1)
    for rule in ("refuse", "drop_small_talk"):
        assert fitting_talks(method, *asked, max_new_tokens=NEW, too_long=rule) == asked[1]


def test_too_long_questions_are_counted_and_refused(method, asked, limited):
    limited(1)
    with pytest.raises(
        TooLongError,
        match=r"^1 of 6 questions after 10 turns .* too long .*: question .* with an answer"
        r" of 4 tokens takes .* positions.*what helps: evaluation.too_long: drop_",
    ):
        fitting_talks(method, *asked, max_new_tokens=NEW + 1, too_long="refuse")
    limited(0)
    with pytest.raises(TooLongError, match="^6 of 6 questions"):
        evaluate(method, asked[0], turns=TURNS, transcripts=small_benchmark().transcripts, batch_size=3,
                 max_new_tokens=NEW)  # fmt: skip


def test_the_oldest_exchanges_go_and_no_more_than_need_be(method, asked, limited):
    limit = limited(0.5)
    fitting = fitting_talks(method, *asked, max_new_tokens=NEW, too_long="drop_small_talk")
    assert any(len(shown) < len(talk) for shown, talk in zip(fitting, asked[1], strict=True))
    for example, shown, talk in zip(asked[0], fitting, asked[1], strict=True):
        assert len(shown) % 2 == 0 and shown == talk[len(talk) - len(shown) :]
        assert method.collator.encode(example, shown).taken_positions + NEW - 1 <= limit
        if shown != talk:
            with pytest.raises(TooLongError, match="1 of 1"):
                one_more = talk[len(talk) - len(shown) - 2 :]
                fitting_talks(method, [example], [one_more], max_new_tokens=NEW, too_long="refuse")


def test_answers_to_shortened_questions_are_those_to_short_ones_and_say_so(method, asked, limited):
    limited(0.5)
    transcripts = small_benchmark().transcripts
    options = {"transcripts": transcripts, "batch_size": 3, "max_new_tokens": NEW}
    frame = evaluate(method, asked[0], turns=TURNS, too_long="drop_small_talk", **options)
    fitting = fitting_talks(method, *asked, max_new_tokens=NEW, too_long="drop_small_talk")
    missing = [TURNS - len(talk) // 2 for talk in fitting]
    assert frame["turns_left_out"].tolist() == missing and max(missing) > 0
    digests = [method.collator.encode(e, t).prompt_digest for e, t in zip(asked[0], fitting, strict=True)]
    assert frame["prompt_digest"].tolist() == digests
    entry = SimpleNamespace(frames=[frame], where=lambda: dict.fromkeys(SHORTENED_COLUMNS[:4], "x"))
    (row,) = shortened_table([entry]).to_dict("records")
    assert (row["questions"], row["shortened"]) == (6, sum(m > 0 for m in missing))
    assert row["exchanges_left_out"] == sum(missing)


def test_a_question_that_is_too_long_by_itself_is_refused_by_either_rule(method, asked, limited):
    limited(-0.5)
    with pytest.raises(TooLongError, match="questions after 10 turns .*what helps: a shorter profile"):
        fitting_talks(method, *asked, max_new_tokens=NEW, too_long="drop_small_talk")


def test_training_refuses_before_the_first_step(tmp_path, monkeypatch):
    benchmark = small_benchmark()
    trained = build_method(small_edition("tiny").methods["LoRA"], small_backbone(), benchmark, seed=0)
    examples = benchmark.select("train")
    longest = max(examples, key=lambda example: trained.collator.length(example, with_answer=True))
    limit = trained.collator.length(longest, with_answer=True) - 1
    monkeypatch.setattr(trained.backbone.model.config.get_text_config(), "max_position_embeddings", limit)
    trained.collator._examples.clear()
    steps = []
    with pytest.raises(PromptTooLong, match=rf"question \d+ .*takes {limit + 1} positions"):
        training = Training(steps=len(examples), batch_size=2, checkpoint_every=1)
        train(trained, examples, training, folder=tmp_path, seed=0, on_step=lambda *_: steps.append(1))
    assert not steps and not (tmp_path / "checkpoint").exists()
