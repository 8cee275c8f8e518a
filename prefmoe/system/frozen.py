"""Records that are frozen and of which no field is unknown, and what is wrong with one, in words."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """A record that never changes and refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def mistakes_of(error: ValidationError) -> list[str]:
    """One line per mistake: the field's path, and what was expected."""
    return [f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors()]
