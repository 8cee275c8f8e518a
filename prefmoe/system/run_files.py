"""What belongs to a finished run, and whether it is still what the run left behind; reading it needs no model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from prefmoe.system import provenance
from prefmoe.system.files import FileError, read_json, sha256, write_json

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
PREDICTIONS_FILE = "predictions.parquet"
CONTROLS_FILE = "controls.parquet"
LOSSES_FILE = "losses.parquet"
METHOD_FOLDER = "method"


class RunFileError(FileError):
    """A run that is not finished, or whose files are not those it left behind; the message names the file."""


def seal(folder: Path, story: Mapping[str, Any]) -> None:
    """Writes run.json, by which a run is finished: its story, and the digests of all that belongs to it. Raises
    RunFileError if predictions or method are missing."""
    files = [path for name in (PREDICTIONS_FILE, CONTROLS_FILE, LOSSES_FILE) if (path := folder / name).is_file()]
    files += [path for path in sorted((folder / METHOD_FOLDER).rglob("*")) if path.is_file()]
    content = {**story, "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files}}
    _check_list(folder, content)
    write_json(folder / RUN_FILE, {**content, "digest": provenance.digest(content)})


def read_story(folder: Path) -> dict[str, Any]:
    """The content of a finished run's run.json, which is as it was written. Raises RunFileError if there is none, or it
    is damaged."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunFileError(f"{folder}: no finished run ({RUN_FILE} is missing)")
    content = read_json(path, "the story of a run", kind=RunFileError)
    noted = content.pop("digest", None)
    if noted is None:
        raise RunFileError(f"{path}: expected the digests of the run's files, found none")
    if noted != provenance.digest(content):
        raise RunFileError(f"{path}: changed since the run was finished")
    _check_list(folder, content)
    return content


def _check_list(folder: Path, content: Mapping[str, Any]) -> None:
    files = content.get("files")
    expected = [PREDICTIONS_FILE, *([LOSSES_FILE] if content.get("steps") else [])]
    missing = [name for name in expected if not isinstance(files, dict) or name not in files]
    if missing or not any(name.startswith(f"{METHOD_FOLDER}/") for name in files):
        raise RunFileError(f"{folder}: expected {', '.join(missing or [METHOD_FOLDER])} in a finished run")


def verify(folder: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The story of a finished run whose files are those it left behind. ``names``: only these of its files, because no
    others will be read; all when None. Raises RunFileError for the first file that is missing or changed."""
    story = read_story(folder)
    for name, noted in story["files"].items():
        if names is not None and name not in names:
            continue
        path = folder / name
        if not path.is_file():
            raise RunFileError(f"{path}: missing in a finished run{_remedy(story)}")
        if sha256(path) != noted:
            raise RunFileError(f"{path}: changed since the run was finished{_remedy(story)}")
    return story


def _remedy(story: Mapping[str, Any]) -> str:
    names = [str(story.get(key, "")) for key in ("edition", "backbone", "method")]
    if not all(names) or "protocol" in story:
        return ""
    return f"; make it again: {'PREFMOE_SEEDS=all ' if story.get('seed') else ''}prefmoe run {' '.join(names)}"


def is_complete(folder: Path, inputs_digest: str | None = None) -> bool:
    """Whether a run is finished and undamaged (and, given a digest, made from just these inputs). One that is finished
    and damaged is named in the log."""
    if not (folder / RUN_FILE).is_file():
        return False
    try:
        story = read_story(folder)
        if inputs_digest is not None and story.get("inputs_digest") != inputs_digest:
            return False
        verify(folder)
    except RunFileError as error:
        log.warning("%s", error)
        return False
    return True


def read_predictions(
    folder: Path,
    columns: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    file: str = PREDICTIONS_FILE,
    **told: Any,
) -> pd.DataFrame:
    """A finished run's answers, a row per question, as the run wrote them.

    Args:
        columns: all when absent. optional: further ones, read where they are there.
        told: what run.json has to say (edition, backbone, method, seed): a folder may have been put in another's place.

    Raises RunFileError if the run is not finished or another one, or its answers are missing, changed or lack columns.
    """
    story = verify(folder, [file])
    for name, value in told.items():
        if story.get(name) != value:
            raise RunFileError(f"{folder / RUN_FILE}, {name}: expected {value!r}, found {story.get(name)!r}")
    path = folder / file
    if columns is None:
        return pd.read_parquet(path)
    there = set(pyarrow.parquet.read_schema(path).names)
    if missing := [column for column in columns if column not in there]:
        raise RunFileError(f"{path}: no column {', '.join(missing)}")
    return pd.read_parquet(path, columns=[*columns, *(column for column in optional if column in there)])


def read_controls(folder: Path, columns: Sequence[str] | None = None, **told: Any) -> pd.DataFrame | None:
    """A finished run's answers under controls (column control); None where it was asked under none. See
    `read_predictions`."""
    there = CONTROLS_FILE in read_story(folder)["files"]
    return read_predictions(folder, columns, file=CONTROLS_FILE, **told) if there else None


def read_losses(folder: Path) -> pd.DataFrame:
    """A finished run's losses, a row per step, as the run wrote them; see `read_predictions`."""
    verify(folder, [LOSSES_FILE])
    return pd.read_parquet(folder / LOSSES_FILE)
