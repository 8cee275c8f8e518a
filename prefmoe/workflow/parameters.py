"""What a notebook's parameters may be: looked at before its kernel starts, and before minutes of work."""

from collections.abc import Mapping
from typing import Any

import yaml

from prefmoe.config import ROOT, Edition, PrefMoEMethod, load_edition
from prefmoe.system.names import did_you_mean

SHAPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list"}
"""Kinds of values that a cell of parameters has, in words."""


class ParameterError(ValueError):
    """A parameter with a value that its notebook cannot use."""


def check(given: Mapping[str, Any], usual: Mapping[str, Any], notebook: str = "") -> None:
    """Refuses values that a notebook cannot use.

    A value is of the kind that the notebook's own is of; beside a parameter called edition, those called backbone,
    method, split and turns are something that this edition has, the notebook's own values, too. Other parameters may
    have any value of their kind.

    Args:
        given: values by the parameters' names, all of which the notebook has.
        usual: every parameter's own value.
        notebook: its name without .ipynb; what it needs of an edition stands in workflow/notebooks.yaml.

    Raises ParameterError, in one line that holds the parameter, its value and what was expected; ConfigError for an
    edition that is unknown or has mistakes.
    """
    for name, value in given.items():
        _check_kind(name, value, usual[name])
    if "edition" not in usual or not {"edition", "backbone", "method", "split", "turns"} & given.keys():
        return
    edition, needs = load_edition(given.get("edition", usual["edition"])), _needs_of(notebook)
    if "edition" in given:
        own = load_edition(usual["edition"])
        if own.about != edition.about:
            raise ParameterError(
                f"edition: expected one about {own.about}, as {own.name!r} is; {edition.name!r} is about "
                f"{edition.about}"
            )
        if lacking := _lacking(needs, edition):
            raise ParameterError(f"edition: expected one with {lacking}, which {edition.name!r} has not")
    known = {
        "backbone": edition.backbones,
        "method": tuple(edition.methods),
        "split": edition.evaluation.splits,
        "turns": edition.evaluation.turns,
    }
    for name, choices in known.items():
        value = given.get(name, usual.get(name))
        if name in usual and value not in choices and not (value is None and usual[name] is None):
            raise ParameterError(
                f"{name}: expected one of {', '.join(map(str, choices))}, which edition {edition.name!r} has, found "
                f"{value!r:.80}{did_you_mean(value, map(str, choices))}"
            )
    method = given.get("method", usual.get("method"))
    with_tokens = [name for name, one in edition.methods.items() if isinstance(one, PrefMoEMethod)]
    if method is not None and method not in with_tokens and needs.get("model") == "full":
        raise ParameterError(f"method: expected one with tokens of users, {', '.join(with_tokens)}; found {method!r}")


def _lacking(needs: Mapping[str, Any], edition: Edition) -> str:
    """What a notebook with these needs does not find in an edition; empty if nothing, or nobody knows."""
    if "table2" in needs.get("tables", ()) and not edition.table2:
        return "table2, its ablation"
    kinds = set(needs.get("kinds", ())) - {method.kind for method in edition.methods.values()}
    return f"methods of kind {', '.join(sorted(kinds))}" if kinds else ""


def _needs_of(notebook: str) -> dict[str, Any]:
    """A notebook's row of workflow/notebooks.yaml; empty for any other notebook."""
    return yaml.safe_load((ROOT / "workflow/notebooks.yaml").read_text(encoding="utf-8")).get(notebook, {})


def _check_kind(name: str, value: Any, usual: Any) -> None:
    """A whole number may stand for any number, and truths for none; None, a notebook's own value, says nothing."""
    kinds = {float: (int, float)}.get(type(usual), (type(usual),))
    if usual is not None and type(value) not in kinds:
        kind = SHAPES.get(type(usual), f"a {type(usual).__name__}")
        raise ParameterError(f"{name}: expected {kind}, such as {usual!r}, found {value!r:.80}")
    if name == "seed" and type(value) is int and not 0 <= value < 2**32:
        raise ParameterError(f"seed: expected a whole number from 0 to {2**32 - 1}, found {value}")
