"""Turns an out-of-memory error into one that says which settings help."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

TRAINING_HINT = (
    "lower training.batch_size and raise training.gradient_accumulation as much (contrastive terms then see smaller "
    "batches), or set training.gradient_checkpointing: true, or hardware.four_bit: true for a frozen backbone"
)
EVALUATION_HINT = "lower evaluation.batch_size, or set hardware.four_bit: true"
LOADING_HINT = "set hardware.four_bit: true, or use more or larger GPUs (`prefmoe plan` says how many)"


@contextmanager
def explained(kind: type[Exception], what: str, hint: str) -> Iterator[None]:
    """Within it, running out of memory (of an accelerator or of the CPU) raises ``kind`` with the hint. ``what``: was
    being done."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        first = str(error).partition("\n")[0]
        raise kind(f"{what}: not enough memory ({first or type(error).__name__}); {hint}") from error
