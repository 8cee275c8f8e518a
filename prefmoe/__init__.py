"""PrefMoE companion: user state, losses, mixture of LoRA experts, benchmark and evaluation."""

from typing import Any

__version__ = "0.1.0"

__all__ = ["assistant"]


def __getattr__(name: str) -> Any:
    """`prefmoe.assistant`, whose imports take a second, when it is asked for."""
    if name == "assistant":
        from prefmoe.running.asking import assistant

        return assistant
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
