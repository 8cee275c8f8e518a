"""Whether weights can what they are made for, before they replace those that ship."""

import logging
from collections.abc import Mapping

from pretraining.errors import PretrainingError

log = logging.getLogger(__name__)


def judge(found: Mapping[str, Mapping[str, float]], wanted: Mapping[str, float], name: str, *, replaces: bool,
          seed: int | None = None) -> None:  # fmt: skip
    """Says which of the wanted abilities weights do not have.

    Args:
        found: ability -> its accuracy and n. wanted: ability -> accuracy.
        name: of what was made; seed: that it was made with, where there is a choice.
        replaces: whether the package's weights are to be replaced.

    Raises PretrainingError if they are, by what can do less; else it is a warning.
    """
    short = [f"{ability} {found[ability]['accuracy']:.2f} ({goal:.2f} was wanted)" for ability, goal in wanted.items()
             if found[ability]["accuracy"] < goal]  # fmt: skip
    if not short:
        return
    said = f"{name} has learned too little: {', '.join(short)}"
    if seed is not None:
        said += f"; another seed may learn it: --seed {seed + 1}"
    if replaces:
        raise PretrainingError(f"{said}. The shipped weights stay, and what was made is kept in its own folder")
    log.warning("%s", said)
