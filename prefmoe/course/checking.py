"""What every check of the course does: calls a student's function, and says in a sentence what was expected."""

import dis
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from IPython import get_ipython


class NotYet(AssertionError):
    """An answer that is not right yet; a notebook shows its message and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet. {self}"]


def explain_missing_names(shell: Any = None) -> None:
    """Where a student's cell was emptied or not run, the next one says so, in the place of a NameError's traceback."""
    if shell := shell or get_ipython():
        shell.set_custom_exc((NameError,), _missing_name)


def _missing_name(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> list[str]:
    told = [f"Not yet. `{error.name}` is not there: run the cells above in order, each with your answer in it."]
    shell._showtraceback(kind, error, told)
    return told


def right(text: str) -> None:
    print(f"Right. {text}")


def called(function: Any, *arguments: Any, name: str) -> Any:
    """What a student's function returns. Raises NotYet if it is none, fails, or returns nothing."""
    if not callable(function):
        raise NotYet(f"{name} is {described(function)}: expected a function.")
    try:
        found = function(*arguments)
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == getattr(function, "__name__", "")]
        line = f", in its line `{frames[-1].line}`" if frames and frames[-1].line else ""
        raise NotYet(f"{name} stops with {type(error).__name__}: {error}{line}.") from None
    if found is None or found is Ellipsis:
        raise NotYet(f"{name} returned nothing: write its body, and end it with `return`.")
    return found


def ready(*functions: Callable) -> None:
    """Raises NotYet, in a cell that shows what a student's functions give, if one of them has not been written."""
    for function in functions:
        steps = [step for step in dis.get_instructions(function) if step.opname != "RESUME"]
        if all(step.argval is None and re.search("CONST|RETURN", step.opname) for step in steps):
            raise NotYet(f"This cell shows what `{function.__name__}` gives: write it first.")


def number(found: Any, name: str, expected: str = "a number") -> float:
    """A number that a student gave, as float. Raises NotYet for anything else, arrays and truth values included."""
    if isinstance(found, np.ndarray | torch.Tensor) and found.ndim == 0:
        found = found.item()
    if isinstance(found, bool | np.bool_) or not isinstance(found, Real):
        raise NotYet(f"{name} is {described(found)}: expected {expected}.")
    try:
        value = float(found)
    except OverflowError:
        raise NotYet(f"{name} is a whole number of {len(str(abs(found)))} digits: expected {expected}.") from None
    if np.isnan(value):
        raise NotYet(f"{name} is NaN: expected {expected}. Is something divided by zero?")
    return value


def array(
    found: Any, shape: Sequence[int], name: str, kind: str = "numbers", ignored: Sequence[bool] | None = None
) -> np.ndarray:
    """An array that a student gave; ``shape`` is what it has to be. Raises NotYet with both shapes otherwise.

    Truth values may stand in an array of objects, as pandas makes them; where ``ignored`` is true anything may.
    """
    if isinstance(found, torch.Tensor):
        found = _whole(found, name, truth=kind == "true or false").numpy()
    wanted = f"expected {kind} in shape {tuple(shape)}"
    try:
        values = np.asarray(found)
    except (ValueError, TypeError):
        raise NotYet(f"{name} is {described(found)}: {wanted}.") from None
    if values.ndim == 0:
        raise NotYet(f"{name} is {described(found)}: {wanted}.")
    if values.shape != tuple(shape):
        raise NotYet(f"{name} has shape {values.shape}: {wanted}.")
    if kind == "true or false" and values.dtype == object:
        free = np.zeros(values.shape, dtype=bool) if ignored is None else np.asarray(ignored, dtype=bool)
        strange = [value for value, may in zip(values.flat, free.flat, strict=True)
                   if not may and not isinstance(value, bool | np.bool_)]  # fmt: skip
        if strange:
            raise NotYet(f"{name} holds {described(strange[0])}: expected true or false in every place.")
        values = np.where(free, False, values).astype(bool)
    if values.dtype.kind not in "biuf":
        raise NotYet(f"{name} holds {described(values.flat[0]) if values.size else 'nothing'}: expected {kind}.")
    if kind == "true or false" and values.dtype != bool:
        raise NotYet(f"{name} holds {values.dtype}: expected true or false in every place.")
    return values


def tensor(found: Any, shape: Sequence[int], name: str) -> torch.Tensor:
    """The same of a torch tensor."""
    if not isinstance(found, torch.Tensor):
        raise NotYet(f"{name} is {described(found)}: expected a tensor of shape {tuple(shape)}.")
    if tuple(found.shape) != tuple(shape):
        raise NotYet(f"{name} has shape {tuple(found.shape)}: expected {tuple(shape)}.")
    return _whole(found, name)


def _whole(found: torch.Tensor, name: str, truth: bool = False) -> torch.Tensor:
    """A tensor of whatever precision in double precision, or of truth values as it is. Raises NotYet if it is sparse or
    complex."""
    if found.layout != torch.strided or found.is_complex() or found.is_quantized:
        kind = f"{found.layout}, {found.dtype}".replace("torch.", "")
        raise NotYet(f"{name} is a tensor of another kind ({kind}): expected a dense one of real numbers.")
    found = found.detach().cpu()
    return found if truth and found.dtype == torch.bool else found.double()


def close(found: Any, expected: Any, name: str, hint: str = "", *, tolerance: float = 1e-6) -> None:
    """Raises NotYet, with both values and a hint, if two numbers or arrays differ by more than the tolerance."""
    values, wanted = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    wrong = ~(np.abs(values - wanted) <= tolerance)
    if not wrong.any():
        return
    if values.ndim == 0:
        told = f"{name} is {_digits(values)}: expected {_digits(wanted)}."
    else:
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        told = f"{name} is {_digits(values[place])} at {list(place)}: expected {_digits(wanted[place])}."
    raise NotYet(f"{told} {hint}".strip())


def _digits(value: Any) -> str:
    """Four decimals; none where a number is whole."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"


def names(found: Any, name: str, known: Iterable[str], kind: str) -> set[str]:
    """A set out of known names; ``kind``: what they are names of. Raises NotYet for anything else."""
    known = list(known)
    listed = ", ".join(known) if len(known) < 10 else f"{', '.join(known[:3])} and {len(known) - 3} more"
    scalar = isinstance(found, np.ndarray | torch.Tensor) and found.ndim == 0
    if found is None or isinstance(found, str) or not isinstance(found, Iterable) or scalar:
        raise NotYet(f"{name} is {described(found)}: expected a set of {kind}, out of {listed}.")
    given = list(found)
    if strange := [one for one in given if not isinstance(one, str) or one not in known]:
        raise NotYet(f"{name} names {described(strange[0])}: expected {kind} out of {listed}.")
    return set(given)


def same_names(found: set[str], expected: set[str], name: str, kind: str, hint: str) -> None:
    """Raises NotYet, with how many are missing and which do not belong, unless two sets of names are equal."""
    if found != expected:
        strange = sorted(found - expected)
        also = f", and {', '.join(strange)} {'does' if len(strange) == 1 else 'do'} not belong" if strange else ""
        raise NotYet(f"{name} lacks {len(expected - found)} of {len(expected)} {kind}{also}: {hint}")


def choice(found: Any, name: str, reasons: dict[str, str], answer: str) -> None:
    """One of several letters. ``reasons``: what is wrong with each of the others, and why ``answer`` is right."""
    letters = ", ".join(reasons)
    if not isinstance(found, str) or found.strip().lower() not in reasons:
        raise NotYet(f"{name} is {described(found)}: expected one of the letters {letters}, in quotes.")
    letter = found.strip().lower()
    if letter != answer:
        raise NotYet(f"{name}: not {letter}. {reasons[letter]}")
    right(reasons[answer])


def described(value: Any) -> str:
    """A value in few words: "still empty", "the text 'a'", "an array of shape (3,)", "an int, 5"."""
    if value is None or value is Ellipsis:
        return "still empty"
    if isinstance(value, str):
        return f"the text {str(value)!r}"  # without numpy's own name for it
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{'an array' if isinstance(value, np.ndarray) else 'a tensor'} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | set | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Callable):
        return "a function"
    kind = type(value).__name__
    kind = f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"
    return f"{kind}, {value!r}" if len(repr(value)) < 40 else kind


explain_missing_names()
