"""Makes a data folder from a table of questions, pictures inside it or beside it, on disk or on the hub."""

import difflib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefmoe.data import mmpb
from prefmoe.data.columns import CONVERTED, IMAGE_COLUMNS, INJECTION_COLUMNS
from prefmoe.data.rows import PARQUET, TABLES, Mistakes, MMPBError, Row
from prefmoe.system import hub
from prefmoe.system.files import read_regular, seal_of, write_json

SPLIT_WORDS = {split: split for split in ("train", "validation", "test", "unseen")} | {
    "val": "validation",
    "dev": "validation",
}
"""What a file's name, its folder's or a column `split` may say, and the split it means."""

ANSWERS = {text: str(code) for code, text in enumerate(mmpb.ANSWER_TEXTS)}
"""An answer as a letter or a word, as MMPB's own script and VLMEvalKit write it, and its code."""

SPLITS = "split.json"
BESIDE = ("annotations.csv", "pseudo_users.csv", SPLITS)
"""Files of a data folder that are taken over as they are, from beside the table."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(rf"({'|'.join(SPLIT_WORDS)})(-\d+-of-\d+(-[0-9a-f]{{16}})?)?")


@dataclass(frozen=True)
class Source:
    """Where the tables are.

    Attributes:
        name: as the user gave it. root: the folder that pictures' paths start from.
        tables: the files. inside: the folder that no link may leave.
        commit: of a hub repository.
    """

    name: str
    root: Path
    tables: tuple[Path, ...]
    inside: Path
    commit: str | None = None


def convert(
    source: str | Path, folder: str | Path, *, csv: str = "sample.csv", revision: str | None = None
) -> dict[str, Any]:
    """Makes the data folder; it appears under its name when everything in it has been checked.

    Taken are a table (CSV, TSV, parquet), a folder with one or with one per split, a data folder, the folder that
    MMPB's script writes, and dataset repositories of the hub in any of these forms. docs/data.md says which columns a
    table has. Splits come from a split.json beside the table, the names of files (``train-00000-of-00001.parquet``) or
    folders, or a column ``split``; without any of them all questions are for testing.

    Args:
        source: a file, a folder, or ``owner/name`` on the hub.
        folder: a name that is free, or an empty folder. csv: the name of the table in it.
        revision: of a hub repository, its full commit hash; None for the newest one.

    Returns users, questions (by split), transcripts, and revision (the commit; None for what is on disk). Raises
    MMPBError with one line per mistake: the source's file, row and field, and what was expected; or if the folder
    cannot be made; HubError if the repository cannot be downloaded.
    """
    folder = Path(folder).expanduser()
    if not re.fullmatch(r"\w[\w.-]*\.csv", csv) or csv in BESIDE:
        raise MMPBError(f"{csv!r}: expected the name of a CSV file, such as sample.csv")
    there = folder.is_dir()
    # A folder that is there stays: a shell may stand in it, a disk be mounted there, a link lead to it.
    building = folder / ".convert.partial" if there else folder.with_name(f".{folder.name}.partial")
    if folder.exists() and not (there and all(path == building for path in folder.iterdir())):
        raise MMPBError(f"{folder}: expected a name that is free, or an empty folder")
    found = _find(str(source), revision)
    shutil.rmtree(building, ignore_errors=True)
    try:
        (building / "mmpb_clean").mkdir(parents=True)
        checked = building / "checked.json"
        _write(found, building, csv, checked)
        benchmark = mmpb.read(building, csv=csv, seen=checked)
        for note in (checked, seal_of(checked)):
            note.unlink(missing_ok=True)
        moves = [(part, folder / part.name) for part in sorted(building.iterdir(), reverse=True)]  # mmpb_clean last
        for made, name in moves if there else [(building, folder)]:
            made.replace(name)
    except OSError as error:
        raise MMPBError(f"{folder}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {
        "users": len(benchmark.users),
        "questions": {split: len(indices) for split, indices in benchmark.splits.items()},
        "transcripts": len(benchmark.transcripts),
        "revision": found.commit,
    }


def _find(source: str, revision: str | None) -> Source:
    """The tables of a source; downloads a repository of the hub into its cache. Raises MMPBError if there is no such
    thing, or no way to tell which table is meant."""
    path, commit = Path(source).expanduser(), None
    if not path.exists():
        if not _HUB_ID.fullmatch(source):
            raise MMPBError(f"{source}: no such file or folder")
        if revision is not None and not _COMMIT.fullmatch(revision):
            raise MMPBError(f"{source}: expected a revision of 40 hexadecimal digits, found {revision!r}")
        otherwise = "or download it elsewhere and give the folder as the source"
        path = hub.download(source, repo_type="dataset", revision=revision, otherwise=otherwise)
        commit = path.name
    elif revision is not None:
        raise MMPBError(f"{source}: a revision is of a repository on the hub, and this is on disk")
    if path.is_file():
        return Source(source, path.parent, (path,), path.parent)
    inner = path / "mmpb_clean"
    tables = sorted(_tables(inner if inner.is_dir() else path))
    parquet = [table for table in tables if table.suffix.lower() == PARQUET]
    tables = parquet or tables
    if not tables:
        raise MMPBError(f"{path}: expected a table in it ({', '.join(TABLES)})")
    if len(tables) > 1 and not all(_split_of(table, path) for table in tables):
        names = ", ".join(table.relative_to(path).as_posix() for table in tables)
        raise MMPBError(f"{path}: expected one table, or several named by split, found {names}; give one as the source")
    inside = path.parent.parent if commit else path  # in the hub's cache, files are links to a folder beside
    return Source(source, path, tuple(tables), inside, commit)


def _tables(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in TABLES and path.is_file() and not hidden and path.name not in BESIDE:
            yield path


def _split_of(table: Path, root: Path) -> str | None:
    """The split that a table's name or its folder's says."""
    match = _SHARD.fullmatch(table.stem.lower())
    word = match[1] if match else table.parent.name.lower() if table.parent != root else ""
    return SPLIT_WORDS.get(word)


def _nearly_split(name: str) -> bool:
    """Whether a table's path has a word that seems to mean a split other than test, which questions are for anyway."""
    others = [word for word, split in SPLIT_WORDS.items() if split != "test"]
    long = [word for word in others if len(word) > 4]  # those near the short ones mean other things
    words = re.findall("[a-z]+", Path(name).with_suffix("").as_posix().lower())
    return any(
        word in others or word.startswith(("valid", *long)) or difflib.get_close_matches(word, long, cutoff=0.8)
        for word in words
    )


def _write(source: Source, building: Path, csv: str, checked: Path) -> None:
    """Fills the folder: table, pictures, splits, and what lies beside them. Raises MMPBError if the table has
    mistakes."""
    mistakes = Mistakes(source.name)
    rows: list[Row] = []
    splits: dict[str, list[int]] = {}
    copied: dict[tuple[Path, str], str] = {}
    for table in source.tables:
        name = table.relative_to(source.root).as_posix()
        own = [
            replace(row, fields=_converted(row, source, table, building, copied))
            for row in mmpb.question_rows(table, name, mistakes, building, mmpb.UNPACKED, CONVERTED)
        ]
        for row in own:
            word = row.fields.get("split", "").lower()
            split = _split_of(table, source.root) or SPLIT_WORDS.get(word, "" if word else "test")
            if row.require(split != "", "split", f"one of {', '.join(SPLIT_WORDS)}") and row["index"].isdecimal():
                splits.setdefault(f"{split}_idx", []).append(int(row["index"]))
        told = _split_of(table, source.root) or (table.parent / SPLITS).exists()
        if not told and _nearly_split(name) and not all(row.fields.get("split") for row in own):
            known = ", ".join(SPLIT_WORDS)
            mistakes.add(name, f"the name says no split; expected {known}, or a name like none of these")
        rows += own
    mmpb.check_questions(rows, building, checked)
    mistakes.check()
    target = building / "mmpb_clean"
    mmpb.frame_of(rows).reset_index().to_csv(target / csv, index=False, lineterminator="\n")
    write_json(target / SPLITS, [{"tasks": [splits]}])
    for file in BESIDE:
        if (source.tables[0].parent / file).exists():
            (target / file).write_bytes(_bytes(source.tables[0].parent / file, source.name))
    for talk in sorted((source.root / "multi_turn/generic_text").glob("*.json")):
        (building / "multi_turn/generic_text").mkdir(parents=True, exist_ok=True)
        (building / "multi_turn/generic_text" / talk.name).write_bytes(_bytes(talk, source.name))
    if source.commit:
        write_json(target / "origin.json", {"source": source.name, "revision": source.commit})


def _bytes(path: Path, source: str) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise MMPBError(f"{source}: {path.name} cannot be read: {error.strerror}") from error


def _converted(
    row: Row, source: Source, table: Path, building: Path, copied: dict[tuple[Path, str], str]
) -> dict[str, str]:
    """A row as the data folder has it: answers as codes, pictures copied; what is wrong stays, to be named later."""
    answer = ANSWERS.get(row["answer"].lower(), row["answer"])
    fields = mmpb.filled_in({**row.fields, "answer": answer})
    if not any(fields[column] for column in INJECTION_COLUMNS):
        fields |= dict(zip(INJECTION_COLUMNS, _script_faces(row, source.root), strict=False))
    for column in IMAGE_COLUMNS:
        path = fields[column]
        if path and not path.startswith(f"{mmpb.UNPACKED}/"):
            known = copied.setdefault((table.parent, path), "")
            copied[table.parent, path] = known or _copy(path, (source.root, table.parent), source.inside, building)
            fields[column] = copied[table.parent, path]
    return fields


def _script_faces(row: Row, root: Path) -> Sequence[str]:
    """The profile pictures where MMPB's script writes them: <attribute>/train/<name>/0.png to 4.png."""
    paths = (Path(row["attribute"], "train", row["name"], f"{number}.png") for number in range(len(INJECTION_COLUMNS)))
    return [path.as_posix() for path in paths if ".." not in path.parts and (root / path).is_file()]


def _copy(path: str, roots: Sequence[Path], inside: Path, building: Path) -> str:
    """Copies a picture into the folder, at most where its path says; the path from there, or as it was if it cannot."""
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts or "\\" in path or "\0" in path:
        return path
    relative = Path(path) if parts[0] == "mmpb_clean" else Path("mmpb_clean") / path
    for root in roots:
        try:
            if not (root / path).resolve().is_relative_to(inside.resolve()):
                continue
            data = read_regular(root / path)
        except OSError:
            continue
        (building / relative).parent.mkdir(parents=True, exist_ok=True)
        (building / relative).write_bytes(data)
        return relative.as_posix()
    return path
