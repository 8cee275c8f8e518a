"""What a benchmark is made of, to look at: one question of every kind, its words, its picture as a mosaic."""

from collections import Counter
from pathlib import Path

from PIL import Image

from prefmoe.data.benchmark import OPTION_LETTERS, Benchmark, Example
from prefmoe.data.pictures import open_picture
from prefmoe.data.prompts import fill


def specimens(benchmark: Benchmark, split: str = "test") -> dict[str, Example]:
    """One question of every kind in a split, of different users where possible, preferences first. Returns kind ->
    question, such as "preference, negated", "recognition, no, Single" or "recognition, choice, Multi"."""
    found: dict[str, Example] = {}
    used: Counter[str] = Counter()
    for example in benchmark.select(split):
        found.setdefault(_kind(example), example)
    for kind in sorted(found):
        alike = [example for example in benchmark.select(split) if _kind(example) == kind]
        found[kind] = min(alike, key=lambda example: (used[example.name], example.index))
        used[found[kind].name] += 1
    return {kind: found[kind] for kind in sorted(found)}


def _kind(example: Example) -> str:
    if example.is_multiple_choice:
        parts = [example.category, "choice", example.target]
    else:
        parts = [example.category, "negated" if example.semantic_invert else example.answer_text, example.target]
    return ", ".join(part for part in parts if part)


def asked(example: Example) -> str:
    """A question with its options and its true answer, to print under its picture."""
    lines = [fill(example.question, example.name)]
    lines += [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, example.options, strict=False)]
    return "\n".join([*lines, f"→ {example.answer_text}"])


def mosaic(path: str | Path, cells: int = 10) -> Image.Image:
    """A picture as a coarse mosaic of its colours: shows that there is one, and not who is in it."""
    small = open_picture(path).resize((cells, cells), Image.Resampling.BOX)
    return small.resize((20 * cells, 20 * cells), Image.Resampling.NEAREST)
