"""Which kinds of method there are: the settings of each are a class that registers itself, wherever it is defined."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, TypeAdapter

from prefmoe.config.strict import ConfigError, Strict
from prefmoe.system.names import did_you_mean
from prefmoe.system.provenance import Source

KINDS: dict[str, type[MethodSettings]] = {}
"""The settings of every kind of method that is known, by kind."""

OWN_FILES: dict[str, Source] = {}
"""The files outside the package that editions named (`own_methods`), by the module that each became."""

INFORMATION = {
    "none": "name", "text": "profile text", "statement": "statement retrieved by the gold label",
    "image": "profile picture", "both": "profile text and picture",
}  # fmt: skip
"""What each setting `profile` shows of a user, in the words of the tables."""

OF_OTHERS = "mean of other users' tokens"
"""What tokens that are learned from a user's answers are, of whom there are none."""


def _one_line(label: str) -> str:
    if not label.isprintable():
        raise ValueError("expected one line that can be printed")
    return label


Label = Annotated[
    str, Field(min_length=1, description="a method's name in tables and figures"), AfterValidator(_one_line)
]


class MethodSettings(Strict):
    """What the settings of every kind of method have; a subclass with a kind of its own, a Literal, registers itself.

    Attributes:
        table_type: of the class, its type in Table 1 (what is not trained has "NT" there).
        about_choices: of the class, whether it chooses between pictures instead of answering questions.
        generates: of the class, whether it draws pictures for users.
        random_start: of the class, whether what has no training steps is fitted from a random start all the same.
        module: of the class, where the class is that does it; by default the one with the settings.
        implementation: that class, once its module has been imported (`prefmoe.models.base.Method` notes it here).
    """

    table_type: ClassVar[Literal["NT", "FFT", "PEFT"]]
    about_choices: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    random_start: ClassVar[bool] = False
    module: ClassVar[str]
    implementation: ClassVar[type | None] = None

    kind: str
    label: Label
    answers: Literal["upper", "lower"] = Field(
        "upper", description="case of the option letters that it is trained to say; lower as published"
    )

    @property
    def information(self) -> str:
        """What a question's prompt, or the method itself, shows of the user asked about; in every table."""
        profile = getattr(self, "profile", "none")
        return INFORMATION.get(profile, f"profile {profile}")

    @property
    def information_unseen(self) -> str:
        """The same of a user without training questions, in tables of such users."""
        return self.information

    @property
    def information_in_training(self) -> str:
        """What training shows of users; "nothing" where there is none."""
        return f"{self.information} and answers" if is_trained(self) else "nothing"

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        if not hasattr(cls, "table_type"):
            raise TypeError(f"{cls.__name__} has no table_type: expected the type that Table 1 gives to such methods")
        cls.implementation = None
        if "module" not in cls.__dict__:
            cls.module = cls.__module__
        for kind in get_args(cls.model_fields["kind"].annotation):
            other = KINDS.get(kind)
            if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                file = _file(other.__module__) or other.__module__
                raise TypeError(f"{cls.__name__}: kind {kind!r} is taken by {other.__qualname__} of {file}")
            KINDS[kind] = cls

    @classmethod
    def source(cls) -> str | Source:
        """The code of the class that does it, as `provenance.code_digest` follows it. Raises ConfigError if it is in no
        file (a notebook's cell, say), where nobody could tell whether it has changed."""
        if cls.module.partition(".")[0] == "prefmoe":
            return cls.module
        if cls.module in OWN_FILES:
            return OWN_FILES[cls.module]
        if (file := _file(cls.module)) is None:
            raise ConfigError(
                f"{cls.__name__} is defined in {cls.module}, which is no file: runs could not tell when it changes"
            )
        return Source(file, file.read_text(encoding="utf-8"))


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file else None


def is_trained(method: MethodSettings) -> bool:
    """Whether a method has training steps at all."""
    return method.table_type != "NT" and getattr(method, "steps_factor", 1.0) > 0


@cache
def _any_of(kinds: tuple[type[MethodSettings], ...]) -> TypeAdapter[MethodSettings]:
    return TypeAdapter(Annotated[Union[kinds], Field(discriminator="kind")])  # noqa: UP007


def _by_kind(content: Any) -> MethodSettings:
    """The settings of a method, checked by the class of its kind."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        raise ValueError(
            f"unknown kind of method {kind!r}; known kinds: {', '.join(KINDS)}; one of your own is known where its "
            f"file has been imported, or an edition names it in own_methods{did_you_mean(kind, KINDS)}"
        )
    return content if isinstance(content, MethodSettings) else _any_of(tuple(KINDS.values())).validate_python(content)


Method = Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_by_kind)]
"""The settings of a method of any known kind."""
