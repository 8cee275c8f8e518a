"""Makes a data folder from a table of questions, pictures inside it or beside it, on disk or on the hub."""

import csv as csv_files
import difflib
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefmoe.data import mmpb
from prefmoe.data.columns import CONVERTED, IMAGE_COLUMNS, INJECTION_COLUMNS, SPLIT
from prefmoe.data.packed import named_by_content
from prefmoe.data.rows import TABLES, Columns, Mistakes, MMPBError, Row, read_rows, whole_number
from prefmoe.data.splits import read_splits
from prefmoe.system import hub
from prefmoe.system.files import read_regular, seal_of, write_json

log = logging.getLogger(__name__)

SPLIT_WORDS = {split: split for split in ("train", "validation", "test", "unseen")} | {
    "val": "validation",
    "dev": "validation",
}
"""What a file's name, its folder's or a column `split` may say, and the split it means."""

ANSWERS = {text: str(code) for code, text in enumerate(mmpb.ANSWER_TEXTS)}
"""An answer as a letter or a word, as MMPB's own script and VLMEvalKit write it, and its code."""

SPLITS = "split.json"
KEYS = {"annotations.csv": "index", "pseudo_users.csv": "pseudo_id"}
"""Tables of a data folder that are taken over as they are, and the column that tells their rows apart."""

BESIDE = (*KEYS, SPLITS)
"""Files that are taken from beside the tables and from the folders above them, up to the source's root."""

PICTURES = "mmpb_clean/pictures"
"""Where the pictures go that lie in a table, or whose name another one has: not to what reading unpacks."""

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
    table has. Splits come from a split.json beside the table or in a folder above it, the names of files
    (``train-00000-of-00001.parquet``) or folders, or a column ``split``; without any of them all questions are for
    testing. A column is never overruled: what contradicts it is a mistake.

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
    tables: list[tuple[Path, list[Row]]] = []
    copied: dict[tuple[Path, str], str] = {}
    for table in source.tables:
        name = _name(table, source)
        own = [
            replace(row, fields=_converted(row, source, table, building, copied))
            for row in mmpb.question_rows(table, name, mistakes, building, PICTURES, CONVERTED)
        ]
        told = _split_of(table, source.root) or _beside(source, SPLITS, [table])
        if not told and _nearly_split(name) and not all(row.fields.get(SPLIT) for row in own):
            known = ", ".join(SPLIT_WORDS)
            mistakes.add(name, f"the name says no split; expected {known}, or a name like none of these")
        tables.append((table, own))
    rows = [row for _, own in tables for row in own]
    splits = _splits(source, tables, mistakes)
    target = building / "mmpb_clean"
    mmpb.check_questions(rows, building, checked)
    mistakes.check()
    mmpb.frame_of(rows).reset_index().to_csv(target / csv, index=False, lineterminator="\n")
    write_json(target / SPLITS, [{"tasks": [splits]}])
    for file, key in KEYS.items():
        _merge(_beside(source, file), key, source, target / file, mistakes)
    mistakes.check()
    for talk in sorted((source.root / "multi_turn/generic_text").glob("*.json")):
        (building / "multi_turn/generic_text").mkdir(parents=True, exist_ok=True)
        (building / "multi_turn/generic_text" / talk.name).write_bytes(_bytes(talk, source.name))
    if source.commit:
        write_json(target / "origin.json", {"source": source.name, "revision": source.commit})


def _name(path: Path, source: Source) -> str:
    return path.relative_to(source.root).as_posix()


def _folders(source: Source, tables: Sequence[Path]) -> list[Path]:
    """The folders of tables, and those above them up to the source's root; each once."""
    above = (folder for table in tables for folder in table.parents if folder.is_relative_to(source.root))
    return list(dict.fromkeys(above))


def _beside(source: Source, file: str, tables: Sequence[Path] | None = None) -> list[Path]:
    """The files of this name that tell something of some tables, or of all."""
    folders = _folders(source, source.tables if tables is None else tables)
    return [folder / file for folder in folders if (folder / file).exists()]


def _splits(source: Source, tables: Sequence[tuple[Path, list[Row]]], mistakes: Mistakes) -> dict[str, list[int]]:
    """The indices of each split, by its key in split.json. What a split.json says counts first, then a table's name,
    then its column; where one contradicts the column, or another split.json, that is noted. The log says of how many
    questions a table's name is overruled."""
    numbered = {whole_number(row["index"]): row["name"] for _, rows in tables for row in rows}
    names = {index: name for index, name in numbered.items() if index is not None}
    told: dict[int, tuple[str, str]] = {}
    for path in (saying := _beside(source, SPLITS)):
        name = _name(path, source)
        for split, indices in read_splits(path, names, mistakes, name).items():
            for index in indices:
                said, first = told.setdefault(index, (split, name))
                if said != split and first != name:
                    problem = f"expected index {index} in {said}_idx, as in {first}"
                    mistakes.add(name, problem, column=f"{split}_idx")
    if not saying:
        for path in (path for folder in _folders(source, source.tables) for path in sorted(folder.glob("*.json"))):
            if path.name != SPLITS and path.stem.lower().rstrip("s") == "split":
                mistakes.add(_name(path, source), f"did you mean {SPLITS}?")
    splits: dict[str, list[int]] = {}
    for index, (split, _) in told.items():
        splits.setdefault(f"{split}_idx", []).append(index)
    for table, rows in tables:
        named = _split_of(table, source.root)
        files = " and ".join(_name(path, source) for path in _beside(source, SPLITS, [table]))
        filled = any(row.fields.get(SPLIT) for row in rows)
        homes = [told.get(whole_number(row["index"]), ("no split",))[0] for row in rows]
        if named and files and (others := Counter(home for home in homes if home != named)):
            counted = ", ".join(f"{count} in {home}" for home, count in others.items())
            name, all_ = _name(table, source), len(rows)
            log.warning("%s: the name says %s, but %s counts: of %d questions %s", name, named, files, all_, counted)
        for row in rows:
            index, word = whole_number(row["index"]), row.fields.get(SPLIT, "").lower()
            split = SPLIT_WORDS.get(word)
            if index in told or files:
                home, by = told.get(index, ("nothing", files))
                row.require(not word or split == home, SPLIT, f"{home}, as {by} says")
            elif row.require(split or not filled, SPLIT, f"one of {', '.join(SPLIT_WORDS)}"):
                agree = None in (split, named) or split == named
                row.require(agree, SPLIT, f"{named}, as the table's name or its folder's says")
                if index is not None:
                    splits.setdefault(f"{named or split or 'test'}_idx", []).append(index)
    return splits


def _merge(files: Sequence[Path], key: str, source: Source, target: Path, mistakes: Mistakes) -> None:
    """Writes the rows of some tables into one, as it is where it is the only one; notes those that contradict."""
    if len(files) == 1:
        target.write_bytes(_bytes(files[0], source.name))
    if len(files) < 2:
        return
    found: dict[str, Row] = {}
    for file in files:
        for row in read_rows(file, Columns((key,), {}), mistakes, _name(file, source)):
            first = found.setdefault(row[key], row)
            same = first is row or (first.file != row.file and first.fields == row.fields)
            row.require(same, key, f"a row that is there once, or as {first.place_for(row)} has it")
    with target.open("w", encoding="utf-8", newline="") as merged:
        columns = dict.fromkeys(column for row in found.values() for column in row.fields)
        writer = csv_files.DictWriter(merged, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.fields for row in found.values())


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
        if path:
            known = copied.setdefault((table.parent, path), "")
            copied[table.parent, path] = known or _copy(path, (source.root, table.parent), source.inside, building)
            fields[column] = copied[table.parent, path]
    return fields


def _script_faces(row: Row, root: Path) -> Sequence[str]:
    """The profile pictures where MMPB's script writes them: <attribute>/train/<name>/0.png to 4.png."""
    paths = (Path(row["attribute"], "train", row["name"], f"{number}.png") for number in range(len(INJECTION_COLUMNS)))
    return [path.as_posix() for path in paths if ".." not in path.parts and (root / path).is_file()]


def _copy(path: str, roots: Sequence[Path], inside: Path, building: Path) -> str:
    """Copies a picture into the folder, where its path says or, if another one is there, to PICTURES; the path from
    there, or as it was if it cannot."""
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
        if (building / relative).exists() and (building / relative).read_bytes() != data:
            relative = Path(named_by_content(data, PICTURES))
        (building / relative).parent.mkdir(parents=True, exist_ok=True)
        (building / relative).write_bytes(data)
        return relative.as_posix()
    return path
