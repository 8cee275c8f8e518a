"""Reads MMPB-clean from a dataset repository with the same columns, on the Hugging Face hub or on disk."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from csv import DictWriter
from pathlib import Path
from typing import Any

import pyarrow.parquet

from prefmoe import hub

from . import mmpb
from .benchmark import Benchmark
from .mmpb import COLUMNS, IMAGE_COLUMNS, MMPBError

_HASH = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<split>[a-z]+)(-\d+-of-\d+)?\.parquet")


def read(
    repo: str | Path, folder: str | Path, *, revision: str | None = None, csv: str = "sample.csv"
) -> Benchmark:
    """The benchmark in a dataset repository of the Hugging Face hub, or in a local copy of one.

    Two forms are understood: a repository that holds ``mmpb_clean/`` like a data folder, and parquet files
    with exactly mmpb.COLUMNS, pictures as ``{"bytes", "path"}`` and the split in the file name
    (``train-00000-of-00001.parquet``, ``test-...``). Parquet is unpacked once, under a temporary name.

    Args:
        repo: ``owner/name``, or a local folder.
        folder: where the data folder is written; one that already holds mmpb_clean/ is read as it is.
        revision: the repository's full commit hash (a branch would not be reproducible); for a local
            folder none.

    Raises:
        MMPBError: if the revision is no full hash, the repository has neither form, or the data has mistakes.
        HubError: if the repository cannot be downloaded.
    """
    folder = Path(folder)
    if (folder / "mmpb_clean").is_dir():
        return mmpb.read(folder, csv=csv)
    source = Path(repo)
    if not source.is_dir():
        if revision is None or not _HASH.fullmatch(revision):
            raise MMPBError(f"{repo}: expected a revision of 40 hexadecimal digits, found {revision!r}")
        source = folder / "download"
        hub.download(str(repo), repo_type="dataset", revision=revision, local_dir=source)
    if (source / "mmpb_clean").is_dir():
        return mmpb.read(source, csv=csv)
    shards = sorted(path for path in source.rglob("*.parquet") if _SHARD.fullmatch(path.name))
    if not shards:
        expected = "mmpb_clean/, or parquet files named by split (train-00000-of-00001.parquet)"
        raise MMPBError(f"{source}: expected {expected}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpacking-") as temporary:
        _unpack(shards, Path(temporary), csv)
        mmpb.read(temporary, csv=csv)
        (Path(temporary) / "mmpb_clean").rename(folder / "mmpb_clean")
    return mmpb.read(folder, csv=csv)


def _unpack(shards: Sequence[Path], root: Path, csv: str) -> None:
    """Writes parquet shards as a data folder: the CSV, the pictures, and the splits by file name."""
    target = root / "mmpb_clean"
    target.mkdir()
    splits: dict[str, list[int]] = {"train_idx": [], "test_idx": []}
    with open(target / csv, "w", encoding="utf-8", newline="") as file:
        writer = DictWriter(file, COLUMNS)
        writer.writeheader()
        for shard in shards:
            key = f"{_SHARD.fullmatch(shard.name)['split']}_idx"
            parquet = pyarrow.parquet.ParquetFile(shard)
            if set(parquet.schema_arrow.names) != set(COLUMNS):
                wrong = sorted(set(parquet.schema_arrow.names) ^ set(COLUMNS))
                raise MMPBError(f"{shard}: missing or unexpected column(s): {', '.join(map(repr, wrong))}")
            for batch in parquet.iter_batches(batch_size=64):
                for record in batch.to_pylist():
                    splits.setdefault(key, []).append(record["index"])
                    for column in IMAGE_COLUMNS:
                        record[column] = _unpack_picture(record[column], column, record["index"], target)
                    writer.writerow({column: "" if v is None else v for column, v in record.items()})
    (target / "split.json").write_text(json.dumps([{"tasks": [splits]}]), encoding="utf-8")


def _unpack_picture(value: Any, column: str, index: int, target: Path) -> str:
    """Writes one picture under the name that the folder form gives it; returns its path in the CSV."""
    if not isinstance(value, dict) or not value.get("bytes"):
        found = repr(value)[:60]
        raise MMPBError(f"index {index}, field {column}: expected a picture with its bytes, found {found}")
    place = "images" if column == "image_path" else f"injection/{column}"
    suffix = Path(value.get("path") or "").suffix or ".png"
    path = target / place / f"{index:06d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value["bytes"])
    return path.relative_to(target.parent).as_posix()
