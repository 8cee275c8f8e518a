"""Pictures as a backbone's processor prepares them and as its tower sees them, in files that all runs share.

Decoding, resizing and looking at a few thousand small pictures takes as long as a short training.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import ProcessedPictures, stack_pictures
from prefmoe.system import provenance
from prefmoe.system.files import is_intact, keep, one_at_a_time
from prefmoe.system.progress import progress_bar

COUNT = ".count"
"""Ending of the tensor that says how many rows of another one belong to each picture."""


def prepared_pictures(
    backbone: Backbone, files: Iterable[Path], benchmark_digest: str, folder: Path
) -> dict[tuple[str, ...], ProcessedPictures]:
    """The prepared form of each picture, in the layout of a collator's memory: (path,) -> picture.

    The first process prepares them and writes the file (`files.keep`); later ones, and those that waited meanwhile,
    read it, unless it was damaged. Its name depends on pictures, on what opens them, on processor and library, so that
    an old one is never used. Pictures of which a processor makes crops of different numbers are prepared every time.

    Args:
        files: pictures that a prompt may show by themselves. benchmark_digest: of their contents.
        folder: where the file is kept.

    Raises CollationError if a picture cannot be read.
    """
    names = sorted({str(file) for file in files})
    processor = json.dumps(backbone.processor.image_processor.to_dict(), sort_keys=True, default=str)
    code = [provenance.code_digest(("prefmoe.backbones.pictures",)), version("transformers")]
    key = provenance.digest([benchmark_digest, processor, code, [Path(name).name for name in names]])
    path = folder / f"{backbone.entry.name}-{key}.safetensors"
    pictures = _read(path)
    if pictures is None:
        with one_at_a_time(path):
            pictures = _read(path)
            if pictures is None:
                pictures = [backbone.process_pictures([name]) for name in names]
                if _of_one_shape(pictures):
                    _write(pictures, path)
    return {(name,): picture for name, picture in zip(names, pictures, strict=True)}


def seen_pictures(
    backbone: Backbone, pictures: Iterable[ProcessedPictures], folder: Path, *, batch_size: int = 64
) -> None:
    """Fills a pristine backbone's vision cache with these pictures, each looked at by the first process alone.

    Waiting and partial files are as with `prepared_pictures`; the file's name depends on the pictures, the weights and
    their precision, and the code and libraries that look. Nothing is kept where the tower says different numbers of
    tokens about different pictures.
    """
    cache, pictures = backbone.vision_cache, list(pictures)
    code = [provenance.code_digest(("prefmoe.backbones.loading",)), torch.__version__, version("transformers")]
    shown = sorted(digest for picture in pictures for digest in picture.digests)
    key = provenance.digest([backbone.digest, str(backbone.dtype), code, shown])
    path = folder / f"{backbone.entry.name}-{key}.seen.safetensors"
    if is_intact(path):
        cache.load(path)
        return
    with one_at_a_time(path):
        if is_intact(path):  # made by the process that this one waited for
            cache.load(path)
        else:
            bar = progress_bar(len(pictures), f"look at pictures {backbone.entry.name}")
            for start in range(0, len(pictures), batch_size):
                batch = pictures[start : start + batch_size]
                inputs = {key: value.to(backbone.device) for key, value in stack_pictures(batch).items()}
                with torch.no_grad():
                    backbone.model.get_image_features(**inputs, return_dict=True)
                bar.update(len(batch))
            bar.close()
            cache.save(path)


def _of_one_shape(pictures: list[ProcessedPictures]) -> bool:
    """Whether all inputs agree but for their first dimension, as they do unless crops differ in number."""
    return len({tuple((key, *value.shape[1:]) for key, value in picture.inputs.items()) for picture in pictures}) == 1


def _write(pictures: list[ProcessedPictures], path: Path) -> None:
    tensors = {}
    for key in pictures[0].inputs:
        values = [picture.inputs[key] for picture in pictures]
        tensors[key] = torch.cat(values)
        tensors[key + COUNT] = torch.tensor([len(value) for value in values])
    texts = [[picture.replacements, picture.digests] for picture in pictures]
    keep(path, lambda partial: save_file(tensors, partial, metadata={"texts": json.dumps(texts)}))


def _read(path: Path) -> list[ProcessedPictures] | None:
    if not is_intact(path):
        return None
    with safe_open(path, "pt") as file:
        texts = json.loads(file.metadata()["texts"])
        parts = {
            key: file.get_tensor(key).split(file.get_tensor(key + COUNT).tolist())
            for key in file.keys()
            if not key.endswith(COUNT)
        }
    return [
        ProcessedPictures({key: rows[k] for key, rows in parts.items()}, tuple(replacements), tuple(digests))
        for k, (replacements, digests) in enumerate(texts)
    ]
