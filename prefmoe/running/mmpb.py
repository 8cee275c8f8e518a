"""Puts any vision-language model through MMPB's protocol: concept injection, small talk, a question about a picture.

A run is one of an edition, on a backbone that the edition need not name: kept, resumed and read as all others.
"""

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefmoe.backbones import whole
from prefmoe.config import RESULTS, Edition, Evaluation, InjectedMethod, Methods, load_edition
from prefmoe.config.registry import BackboneEntry, BackboneError
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.injection import Protocol
from prefmoe.data.pictures import picture_size
from prefmoe.data.sources import load_benchmark
from prefmoe.running.evaluation import small_talk
from prefmoe.running.runs import Workbench
from prefmoe.system.frozen import mistakes_of
from prefmoe.system.names import did_you_mean

PROTOCOL = "mmpb"
"""The edition with MMPB's conditions."""


class ProtocolError(ValueError):
    """A protocol that cannot be asked as it was put; the message says what was expected."""


def conditions_of(edition: Edition | str | Path) -> tuple[dict[str, InjectedMethod], list[str]]:
    """An edition's conditions by name, and those that it asks of every backbone; of `PROTOCOL` where it has none."""
    for one in map(load_edition, (edition, PROTOCOL)):
        found = {name: method for name, method in one.methods.items() if isinstance(method, InjectedMethod)}
        if found:
            return found, [name for name in one.table1 if name in found and name not in one.rivals]
    raise ProtocolError(f"edition {PROTOCOL!r} has no method of kind injected")


def condition(**switches: Any) -> tuple[str, InjectedMethod]:
    """The condition of these settings, and a name that says which differ from MMPB's. Raises ProtocolError if they do
    not go together."""
    try:
        settings = InjectedMethod(kind="injected", label="condition", **switches)
    except ValidationError as error:
        raise ProtocolError(_mistakes(error)) from error
    changed = settings.model_dump(exclude_defaults=True, exclude={"kind", "label"})
    words = [f"{key}-{str(value).lower()}" for key, value in changed.items()]
    name = ".".join(words) or "moderate"
    return name, settings.model_copy(update={"label": name})


def _mistakes(error: ValidationError) -> str:
    """What is wrong with settings that stand in no file."""
    return "; ".join(line.removeprefix("(file): ").replace("Value error, ", "") for line in mistakes_of(error))


def read_switches(words: Sequence[str]) -> dict[str, Any]:
    """Settings from words such as "pictures=2". Raises ProtocolError if a word has no =, or a setting is unknown or
    given twice."""
    found: dict[str, Any] = {}
    known = [name for name in InjectedMethod.model_fields if name not in ("kind", "label", "answers")]
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            near = did_you_mean(name, known)
            raise ProtocolError(f"--switch {word}: expected SETTING=VALUE, a setting of {', '.join(known)}{near}")
        if name in found:
            raise ProtocolError(f"--switch {word}: expected each setting once, found {name} twice")
        found[name] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value.lower(), value)
    return found


def edition_for(
    entry: BackboneEntry, edition: Edition | str | Path, conditions: dict[str, InjectedMethod], **evaluation: Any
) -> Edition:
    """An edition's data and settings, with these conditions on this backbone; ``evaluation``: settings that differ.
    Raises ProtocolError if it asks no questions, or such a setting has no such value."""
    base = load_edition(edition)
    if base.about_choices:
        raise ProtocolError(f"edition {base.name!r} is about choices between pictures, and MMPB asks questions")
    try:
        asked = Evaluation.model_validate(base.evaluation.model_dump() | {"controls": ()} | evaluation)
    except ValidationError as error:
        raise ProtocolError(_mistakes(error)) from error
    return base.model_copy(
        update={
            "backbones": (entry.name,),
            "ablation_backbone": None,
            "methods": Methods(conditions),
            "table1": tuple(conditions),
            "table2": (),
            "rivals": (),
            "more_seeds": {},
            "evaluation": asked,
            "cache_images": False,
        }
    )


def check(entry: BackboneEntry, edition: Edition, benchmark: Benchmark) -> None:
    """Whatever would fail later: the model by its small files, every question that will be asked, and of each condition
    the question with the most words and that with the most pixels as the model's processor encodes them, with pictures
    and small talk. Raises BackboneError about the model; ProtocolError naming condition and question; EvaluationError
    if there is too little small talk."""
    try:
        tried = whole.check(entry, 1 + max(method.pictures for method in edition.methods.values()))
    except BackboneError as error:
        if "torchvision" not in str(error).lower() or find_spec("torchvision"):
            raise
        extra = "its pictures need torchvision: python -m pip install -e '.[torchvision]'"
        raise BackboneError(f"{str(error).rstrip('.')}; {extra}") from error
    asked = [example for split in edition.evaluation.splits for example in benchmark.select(split)]
    if not asked:
        raise ProtocolError(f"{benchmark.root}: no questions in the split(s) {', '.join(edition.evaluation.splits)}")
    turns = max(edition.evaluation.turns)
    talks = [small_talk(example, benchmark.transcripts, turns) for example in asked]
    if edition.evaluation.too_long != "refuse":
        turns, talks = 0, [()] * len(asked)  # the talk is what goes
    area = cache(lambda path: math.prod(picture_size(path)))
    for name, method in edition.methods.items():
        shorter = {
            "tell a shorter description": method.description not in ("none", "simple"),
            "show fewer pictures": method.pictures,
            "ask after fewer turns or set evaluation.too_long": turns,
        }
        advice = "".join(f"; {words}" for words, helps in shorter.items() if helps)
        protocol, most = Protocol(method, benchmark), {}
        for example, talk in zip(asked, talks, strict=True):
            where = f"{name}, question {example.index} ({example.name})"
            try:
                conversation = protocol.conversation(example, talk)
                if tried is None or tried.positions is None:
                    continue
                pixels = sum(map(area, conversation.pictures))
            except ValueError as error:
                raise ProtocolError(f"{where}: {error}") from error
            words = sum(len(part.get("text", "")) for one in conversation.messages for part in whole.parts(one))
            for measure, size in (("words", words), ("pixels", pixels)):
                if measure not in most or size > most[measure][0]:
                    most[measure] = size, where, conversation
        for _, where, conversation in most.values():
            room = tried.positions - edition.evaluation.max_new_tokens
            if (count := tried.tokens(conversation.messages, conversation.pictures)) > room:
                raise ProtocolError(
                    f"{where}: {count:,} tokens with {turns} turns of small talk, and backbone {entry.name!r} has room "
                    f"for {room:,} beside the answer{advice}"
                )


def run(
    model: str | Path,
    *,
    edition: Edition | str | Path = PROTOCOL,
    conditions: Sequence[str] = (),
    switches: dict[str, Any] | None = None,
    results: str | Path = RESULTS,
    only_check: bool = False,
    **evaluation: Any,
) -> tuple[Edition, list[Path]]:
    """Asks a model all questions under each condition; finished runs are left alone, interrupted ones go on.

    Args:
        model: as `whole.find_any` takes it. edition: whose data and evaluation settings are used.
        conditions: names of the edition's (`conditions_of`); by default those of all its backbones.
        switches: settings of one condition of one's own (`InjectedMethod`), in the place of all these.
        only_check: stop before anything is asked, or weights are downloaded.
        evaluation: settings of the edition's evaluation that differ.

    Returns the edition as it was run, and the folders of its runs. Raises ProtocolError, BackboneError, HubError,
    MMPBError before anything is asked.
    """
    known, first = conditions_of(edition)
    if switches and conditions:
        raise ProtocolError(
            f"switches ({', '.join(switches)}) make one condition of their own, beside which no other is asked; "
            f"expected switches or conditions, found the conditions {', '.join(conditions)}, too"
        )
    if switches:
        chosen = dict([condition(**switches)])
    else:
        if unknown := [name for name in conditions if name not in known]:
            near = did_you_mean(unknown[0], known)
            raise ProtocolError(f"no condition {unknown[0]!r}; there are {', '.join(known)}{near}")
        if repeated := [name for place, name in enumerate(conditions) if name in conditions[:place]]:
            raise ProtocolError(f"conditions: expected each once, found {repeated[0]} twice")
        chosen = {name: known[name] for name in conditions or first}
    entry = whole.find_any(model)
    used = edition_for(entry, edition, chosen, **{key: value for key, value in evaluation.items() if value is not None})
    benchmark = load_benchmark(used, results)
    check(entry, used, benchmark)
    if only_check:
        return used, []
    workbench = Workbench(used, entry.name, results=results, benchmark=benchmark)
    return used, [workbench.run_method(name, 0) for name in chosen]
