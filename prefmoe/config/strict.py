"""Settings that refuse what they do not know: the base of everything that an edition says."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, ValidationError

from prefmoe.system.frozen import Frozen

Setting = bool | int | float | str
"""The value of a single setting, as a grid or a protocol varies it."""


class ConfigError(ValueError):
    """A configuration file with mistakes; the message names every one of them."""


class Strict(Frozen):
    """Settings that are frozen and finite, and of which none is unknown."""

    model_config = ConfigDict(validate_default=True, protected_namespaces=(), allow_inf_nan=False)

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
