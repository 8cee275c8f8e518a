"""Answers that somebody without training questions is given, for a method to make that user of."""

from collections.abc import Sequence

from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.models.base import MethodError


def check_given(benchmark: Benchmark, name: str, examples: Sequence[Example], use: str) -> None:
    """Raises MethodError if the user is unknown or has training questions, which are ``use``, or a question is about
    somebody else."""
    if name not in benchmark.users:
        raise MethodError(f"user {name!r} is unknown; add_user makes somebody known")
    if name in benchmark.trained_users:
        raise MethodError(f"user {name!r} has training questions, which are {use}")
    if wrong := [example.index for example in examples if example.name != name]:
        raise MethodError(f"question {wrong[0]} is not about {name!r}")
