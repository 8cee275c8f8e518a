"""Methods of one's own: Python files outside the package that an edition names, so that their kinds are known to it."""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from prefmoe.config.method_settings import KINDS, OWN_FILES
from prefmoe.config.strict import ConfigError
from prefmoe.system.files import read_regular
from prefmoe.system.provenance import Source


def read_own_methods(path: Path) -> None:
    """Runs a file that defines methods, unless it has been run and is as it was; after an error nothing has changed.

    Raises ConfigError naming file and reason, if it is missing or raises, defines no method, or one of a kind that is
    taken, or settings and no class that does what they say.
    """
    name = f"prefmoe_own_{hashlib.blake2b(bytes(path), digest_size=8).hexdigest()}"
    try:
        source = Source(path, read_regular(path).decode("utf-8").replace("\r\n", "\n"))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if OWN_FILES.get(name) == source:
        return
    kinds, module = dict(KINDS), sys.modules.get(name)
    for kind in [kind for kind, settings in KINDS.items() if settings.__module__ == name]:
        del KINDS[kind]  # of what the file said before
    try:
        _run(source, name)
    except ConfigError:
        KINDS.clear()
        KINDS.update(kinds)
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
        raise
    OWN_FILES[name] = source


def _run(source: Source, name: str) -> None:
    path = source.path
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module
    try:
        exec(compile(source.text, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
        place = path if line is None else f"{path}, line {line}"
        raise ConfigError(f"{place}: {type(error).__name__}: {error}") from error
    defined = [settings for settings in KINDS.values() if settings.__module__ == name]
    if not defined:
        raise ConfigError(f"{path} defines no method: expected a subclass of MethodSettings with a kind of its own")
    for settings in defined:
        if settings.module == name and settings.implementation is None:
            raise ConfigError(
                f"{path} defines {settings.__name__} and nothing that does it: expected a class that opens with "
                f"class ...(Method, settings={settings.__name__})"
            )
