"""What a benchmark is made of, as tables: questions by kind and split, users, preference groups, items."""

from collections import Counter
from pathlib import Path

import pandas as pd
from PIL import Image

from prefmoe.data.benchmark import OPTION_LETTERS, Benchmark, Example
from prefmoe.data.pictures import open_picture
from prefmoe.data.prompts import fill


def question_counts(benchmark: Benchmark, by: str = "task_family") -> pd.DataFrame:
    """Questions per value of a column and split.

    ``by``: a column of the benchmark's frame, such as task_family, concept, attribute or answer; questions where it is
    empty (the concept of a recognition question) are left out. Returns columns ``by``, split, n; splits in the
    benchmark's order, those without questions left out.
    """
    parts = []
    for split, indices in benchmark.splits.items():
        values = benchmark.frame.loc[list(indices), by]
        counts = values[values.astype(str) != ""].value_counts().sort_index()
        parts.append(pd.DataFrame({by: counts.index, "split": split, "n": counts.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


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


def transcript(benchmark: Benchmark, number: int = 0) -> pd.DataFrame:
    """One small-talk conversation: columns turn (from 1), user, assistant; no rows where the benchmark has none."""
    utterances = benchmark.transcripts[number] if benchmark.transcripts else ()
    pairs = zip(utterances[::2], utterances[1::2], strict=True)
    rows = [(turn, said[1], answered[1]) for turn, (said, answered) in enumerate(pairs, 1)]
    table = pd.DataFrame(rows, columns=["turn", "user", "assistant"]).set_index("turn")
    return table if rows else table.rename_axis("turn (this benchmark has no small talk)")


def mosaic(path: str | Path, cells: int = 10) -> Image.Image:
    """A picture as a coarse mosaic of its colours: shows that there is one, and not who is in it."""
    small = open_picture(path).resize((cells, cells), Image.Resampling.BOX)
    return small.resize((20 * cells, 20 * cells), Image.Resampling.NEAREST)
