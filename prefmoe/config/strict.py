"""Settings that refuse what they do not know: the base of everything that an edition says."""

from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args

from pydantic import ConfigDict, ValidationError, model_validator

from prefmoe.system.frozen import Frozen

Setting = bool | int | float | str
"""The value of a single setting, as a grid or a protocol varies it."""


class ConfigError(ValueError):
    """A configuration file with mistakes; the message names every one of them."""


class Strict(Frozen):
    """Settings that are frozen and finite, and of which none is unknown."""

    model_config = ConfigDict(validate_default=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, content: Any) -> Any:
        """YAML reads yes and no as truths, and a truth would be taken for 1 or 0."""
        for name, value in content.items() if isinstance(content, dict) else ():
            given = value if isinstance(value, (list, tuple)) else [value]
            if name in cls.model_fields and any(isinstance(one, bool) for one in given):
                kinds = [*_types(cls.model_fields[name].annotation)]
                if (int in kinds or float in kinds) and bool not in kinds:
                    raise ValueError(f"{name}: expected numbers alone; yes, no, on and off are read as truths")
        return content

    def with_settings(self, settings: Mapping[str, Setting]) -> Self:
        """A copy with some settings changed; dotted names reach nested ones. Raises ConfigError if there is no such
        setting, or a value is refused."""
        content = self.model_dump(mode="json")
        for name, value in settings.items():
            *parents, leaf = name.split(".")
            inner: Any = content
            for parent in parents:
                inner = inner.get(parent) if isinstance(inner, dict) else None
            if not isinstance(inner, dict) or leaf not in inner:
                raise ConfigError(f"no setting {name!r}")
            inner[leaf] = value
        try:
            return type(self).model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"refused {dict(settings)}: {error.errors()[0]['msg']}") from error


def _types(annotation: Any) -> Iterator[Any]:
    """The annotation of a setting, and everything that stands inside of it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)
