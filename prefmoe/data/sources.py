"""Where an edition's benchmark comes from: drawn into the results folder, or a folder of real data."""

from functools import lru_cache
from pathlib import Path

from prefmoe.config import RESULTS, ChoicesData, Edition, MiniatureData, MMPBData, PickAPicData
from prefmoe.data import choice_folder, choice_world, miniature, mmpb, pick_a_pic
from prefmoe.data.benchmark import Benchmark
from prefmoe.data.choices import ChoiceBenchmark
from prefmoe.system import places
from prefmoe.system.file_digests import state_of


class SourceError(RuntimeError):
    """An edition whose data are not where they should be."""


def prepare_data(edition: Edition, results: str | Path = RESULTS) -> Path:
    """The data folder of an edition (it holds mmpb_clean/); draws the miniature when it is not there yet.

    Raises SourceError if the edition is about choices, or wants real data and neither its ``folder`` nor PREFMOE_DATA
    names a folder with it.
    """
    if not isinstance(edition.data, MiniatureData | MMPBData):
        raise SourceError(f"edition {edition.name!r} is about choices between pictures: `load_choices` loads them")
    if isinstance(edition.data, MiniatureData):
        return miniature.build(edition.data, Path(results) / edition.name / "data")
    source = "data.folder" if edition.data.folder else places.DATA_VARIABLE
    folder = places.data_folder(edition.data.folder)
    if folder is None:
        raise SourceError(
            f"edition {edition.name!r} needs MMPB-clean: set the environment variable PREFMOE_DATA, or data.folder in "
            f"config/{edition.name}.yaml, to the folder that holds mmpb_clean/"
        )
    if not (folder / "mmpb_clean").is_dir():
        raise SourceError(f"{source} is {str(folder)!r}, but {folder / 'mmpb_clean'} is not a folder with MMPB-clean")
    return folder


def load_benchmark(edition: Edition, results: str | Path = RESULTS) -> Benchmark:
    """An edition's benchmark, read and checked row by row; the miniature is drawn first when it is not there yet.

    A process that asks again gets the same one, for as long as no file of the folder changes.

    Raises SourceError: see `prepare_data`; MMPBError if the data have mistakes; the message names file, row and field
    of each.
    """
    folder = prepare_data(edition, results)
    csv = {} if isinstance(edition.data, MiniatureData) else {"csv": edition.data.csv}
    return _read(folder, _files(folder), seen=Path(results) / edition.name / "pictures" / "complete.json", **csv)


def load_choices(edition: Edition, results: str | Path = RESULTS) -> ChoiceBenchmark:
    """An edition's choices, read and checked row by row; the miniature is drawn first when it is not there yet.

    A process that asks again gets the same ones, for as long as no file of the folder changes.

    Raises SourceError if the edition is about questions, or its data are nowhere; MMPBError if the data have mistakes;
    the message names file, row and field of each.
    """
    made = Path(results) / edition.name
    folder = _choice_folder(edition, made / "data")
    return _read_choices(folder, _files(folder), seen=made / "pictures" / "complete.json")


def _choice_folder(edition: Edition, drawn: Path) -> Path:
    """The folder with an edition's choices.csv, made in ``drawn`` where it is not the user's own."""
    data = edition.data
    if isinstance(data, ChoicesData):
        return choice_world.build(data, drawn)
    if isinstance(data, MiniatureData | MMPBData):
        raise SourceError(f"edition {edition.name!r} asks questions: `load_benchmark` loads them")
    folder = places.data_folder(data.folder)
    if folder is None:
        raise SourceError(
            f"edition {edition.name!r} needs a folder of choices: set the environment variable PREFMOE_DATA, or "
            f"data.folder in config/{edition.name}.yaml"
        )
    return pick_a_pic.unpack(data, folder, drawn) if isinstance(data, PickAPicData) else folder


@lru_cache(maxsize=4)
def _read_choices(folder: Path, files: frozenset[tuple[str, ...]], *, seen: Path) -> ChoiceBenchmark:
    return choice_folder.read(folder, seen=seen)


@lru_cache(maxsize=4)
def _read(folder: Path, files: frozenset[tuple[str, ...]], **options: str | Path) -> Benchmark:
    return mmpb.read(folder, **options)


def _files(folder: Path) -> frozenset[tuple[str, ...]]:
    """Name, size and all that tells a file from another one there, of every file below a folder."""
    return frozenset((str(path), *state_of(path)) for path in folder.rglob("*") if path.exists())  # a dead link is none
