"""What a notebook shows of a benchmark: one question of every kind, a transcript, mosaics instead of photographs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from notebook_cells import cells
from PIL import Image
from synthetic_mmpb import make

from prefmoe.data import composition, mmpb


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return mmpb.read(make(tmp_path_factory.mktemp("drawn") / "data"))


def test_specimens_are_one_question_of_every_kind(benchmark):
    found = composition.specimens(benchmark, "train")
    questions = benchmark.select("train")
    kinds = {
        (e.category, e.is_multiple_choice, not e.is_multiple_choice and (e.semantic_invert or e.answer), e.target)
        for e in questions
    }
    assert len(found) == len(kinds) and list(found) == sorted(found)
    for kind, example in found.items():
        assert example in questions and kind.startswith(example.category)
        assert ("negated" in kind) == (example.semantic_invert and not example.is_multiple_choice)


def test_a_question_is_printed_with_its_options_and_its_answer(benchmark):
    for example in benchmark.examples.values():
        lines = composition.asked(example).split("\n")
        assert "<sks>" not in lines[0] and lines[-1] == f"→ {example.answer_text}"
        assert [line[3:] for line in lines[1:-1]] == list(example.options)


def test_a_transcript_pairs_what_is_said_with_what_is_answered(benchmark):
    table = cells("02", "transcript", benchmark=benchmark)["conversation"]
    said = [text for _, text in benchmark.transcripts[0]]
    assert table.to_numpy().ravel().tolist() == said and table.index.tolist() == list(range(1, len(said) // 2 + 1))


def test_without_small_talk_the_table_says_so(benchmark):
    table = cells("02", "transcript", benchmark=replace(benchmark, transcripts=()))["conversation"]
    assert table.columns.tolist() == ["user", "assistant"] and table.empty and "no small talk" in table.index.name


def test_a_mosaic_keeps_the_colours_and_nothing_else(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    seen = np.asarray(composition.mosaic(tmp_path / "photograph.png", cells=4), dtype=float)
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) == 16
    assert seen[0, 0] == pytest.approx(pixels[:15, :15].mean(axis=(0, 1)), abs=1)
