"""Puts the explorer together: its page, what it draws and computes with, and others' programs if npm can fetch them.

Everything that the page reads is a script: a browser that opened it from a stick, as file://, may run neighbouring
files but not read them. Only what is committed and `npm ci` has a part in it; without npm, or without onnx to export
the model with, the page is made all the same, and says what is missing.
"""

import argparse
import base64
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from filelock import FileLock

from prefmoe import metrics
from prefmoe.analysis import pairs
from prefmoe.config import RESULTS, ROOT
from prefmoe.course import answers
from prefmoe.data.people import NAMES
from prefmoe.figures.style import METHODS, SERIES
from prefmoe.system import provenance
from prefmoe.system.file_digests import content_digest, files_below
from prefmoe.system.files import whole_file

SOURCE = Path("site/explorer")
ASSETS = SOURCE / "assets"
PICTURES = ("pictures.webp", "faces.webp")
CACHE = RESULTS / "explorer"
"""Where exported graphs and packages are kept between builds."""

PACKAGES = {
    "d3/dist/d3.min.js": "d3.min.js",
    "@observablehq/plot/dist/plot.umd.min.js": "plot.umd.min.js",
    "d3/LICENSE": "LICENCE-d3.txt",
    "@observablehq/plot/LICENSE": "LICENCE-plot.txt",
}
RUNTIME = "onnxruntime-web/dist"
RUNTIME_LICENCE = "LICENCE-onnxruntime.txt"
"""Committed, as the package has none in it."""

EXPORTED_WITH = ("torch", "transformers", "onnx", "onnxscript")


def build(target: Path, clone: Path = ROOT, cache: Path = CACHE) -> list[str]:
    """Makes the explorer in a folder; returns what is missing in it, a sentence each."""
    shutil.rmtree(target, ignore_errors=True)
    for part in ("", "data", "model", "vendor"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for path in [*(clone / SOURCE).glob("*.html"), *(clone / SOURCE).glob("*.css"), *(clone / SOURCE).glob("*.js")]:
        shutil.copyfile(path, target / path.name)
    for name in PICTURES:
        shutil.copyfile(clone / ASSETS / name, target / "data" / name)
    write_data(clone, target / "data")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        missing = [*write_packages(clone, target / "vendor", cache), *write_model(clone, target / "model", cache)]
    asked_for = [target / "vendor" / name for name in ("ort.wasm.min.js", "runtime.js")]
    size = sum(path.stat().st_size for path in [*asked_for, *(target / "model").iterdir()] if path.is_file())
    about = json.loads((clone / ASSETS / "about.json").read_bytes())
    commits = sorted({str(run["git_commit"])[:7] for run in about["runs"].values()})
    origin = {key: about[key] for key in ("edition", "backbone", "seed")} | {"commits": commits}
    received(target / "data" / "made.js", "made", {"missing": missing, "megabytes": round(size / 1e6)} | origin)
    return missing


# What is shown without any model


def write_data(clone: Path, folder: Path) -> None:
    """grid.js, answers.js and maps.js."""
    grid, people, maps = (json.loads((clone / ASSETS / f"{n}.json").read_bytes()) for n in ("grid", "people", "maps"))
    looks = {method["label"]: METHODS[method["label"]][:2] for method in grid["methods"]}
    received(
        folder / "grid.js",
        "grid",
        grid | people | {"looks": looks, "series": SERIES, "names": free_names(grid["users"])},
    )
    received(folder / "maps.js", "maps", maps)
    received(folder / "answers.js", "answers", shipped_answers())


def free_names(taken: Sequence[str]) -> list[str]:
    """The world's names that nobody has."""
    return [name for name in NAMES if name not in taken]


def shipped_answers(folder: Path = answers.FOLDER) -> dict[str, object]:
    """Yes/no questions about preferences that collapse and recall are about, with every shipped run's probabilities.

    Returns users (names); user (of each of N questions), side (1: recall, 0: collapse), asked (questions about the same
    thing have the same number, for pairs); runs: method, seed, held (base64 of N float32: the probability of answering
    as if the user held the preference).
    """
    runs, first = [], None
    for method, seeds in answers.methods(folder).items():
        frames = [answers.scored(method, seed, folder=folder).sort_values("index") for seed in seeds]
        first = frames[0] if first is None else first
        outside, inside, _, _ = metrics.boundary(frames[0])
        kept = outside | inside
        for seed, frame in zip(seeds, frames, strict=True):
            held = pairs.held_probability(frame)[kept].astype("<f4")
            runs.append({"method": method, "seed": seed, "held": base64.b64encode(held.tobytes()).decode()})
    names, user = np.unique(first["name"].to_numpy(dtype=str)[kept], return_inverse=True)
    holders = metrics.holders(first)
    keys = list(zip(first["concept"], first["item"], holders, strict=True))
    asked = [key if members else None for key, members, chosen in zip(keys, holders, kept, strict=True) if chosen]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(key for key in asked if key is not None))}
    return {
        "users": names.tolist(), "user": user.tolist(), "side": inside[kept].astype(int).tolist(),
        "asked": [-1 if key is None else numbers[key] for key in asked], "runs": runs,
    }  # fmt: skip


# Programs of others


def write_packages(clone: Path, folder: Path, cache: Path) -> Iterator[str]:
    """Plot, D3 and the runtime of the model, in the versions of package-lock.json; yields what is missing."""
    modules, reason = installed(clone, cache)
    if modules is None:
        yield f"The plots and the live model are missing: {reason} when this copy was made."
        return
    for source, name in PACKAGES.items():
        shutil.copyfile(modules / source, folder / name)
    runtime = {name: modules / RUNTIME / name for name in (
        "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")}  # fmt: skip
    loader, helper, program = runtime.values()
    shutil.copyfile(loader, folder / loader.name)
    shutil.copyfile(clone / SOURCE / RUNTIME_LICENCE, folder / RUNTIME_LICENCE)
    kept(
        modules.parent,
        folder / "runtime.js",
        lambda: {"helper": helper.read_text(encoding="utf-8"), "program": packed(program.read_bytes())},
    )


def installed(clone: Path, cache: Path) -> tuple[Path | None, str]:
    """node_modules of the explorer's lock, installed where it is not; or None and why not."""
    files = [clone / SOURCE / name for name in ("package.json", "package-lock.json")]
    place = cache / f"npm-{provenance.digest([content_digest(path) for path in files], 8)}"
    modules, finished = place / "node_modules", place / "finished"
    if finished.is_file():
        return modules, ""
    if (npm := shutil.which("npm")) is None:
        return None, "npm was not installed"
    place.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, place / path.name)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--loglevel=error"]
    try:
        result = subprocess.run([npm, "ci", *options], cwd=place, capture_output=True, text=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"npm did not answer ({type(error).__name__})"
    if result.returncode:
        print(result.stderr.strip()[-800:], file=sys.stderr)
        return None, "npm could not fetch its packages"
    finished.touch()
    return modules, ""


# The model


def write_model(clone: Path, folder: Path, cache: Path) -> Iterator[str]:
    """The graphs, the tables that users are computed from, and pictures dot by dot; yields what is missing."""
    made, reason = exported(clone, cache)
    if made is None:
        yield f"The live model is missing: {reason} when this copy was made."
        return
    for name in ("see", "ask"):
        kept(made, folder / f"{name}.js", lambda name=name: packed((made / f"{name}.onnx").read_bytes()))
    tables = json.loads((made / "tables.json").read_text(encoding="utf-8"))
    kept(made, folder / "tables.js", lambda: tables | {"numbers": packed((made / "tables.bin").read_bytes())})
    pixels = base64.b64encode((clone / ASSETS / "pixels.webp").read_bytes()).decode()
    received(folder / "pixels.js", "pixels", f"data:image/webp;base64,{pixels}")


def exported(clone: Path, cache: Path) -> tuple[Path | None, str]:
    """The folder with the exported graphs and tables of the committed adapters, made where it is not; or None and why
    not."""
    try:
        versions = {name: version(name) for name in EXPORTED_WITH}
    except PackageNotFoundError as error:
        return None, f"{error.name} was not installed (python -m pip install -e '.[docs]')"
    weights = ROOT / "prefmoe" / "weights" / json.loads((clone / ASSETS / "about.json").read_bytes())["backbone"]
    causes = sorted((clone / ASSETS).glob("*/method.*"))
    causes += [Path(__file__).with_name("explorer_model.py"), *files_below(weights)]
    code = provenance.code_digest(("prefmoe.models.moe_lora", "prefmoe.models.user_state", "prefmoe.backbones.loading"))
    place = cache / f"model-{provenance.digest([versions, code, *map(content_digest, causes)], 8)}"
    if (finished := place / "finished").is_file():
        return place, ""
    import explorer_model  # and with it torch, which takes seconds

    try:
        adapters = explorer_model.read(clone / ASSETS)
    except ValueError as error:
        print(error, file=sys.stderr)
        return None, "its trained parts did not belong to the shipped weights"
    place.mkdir(parents=True, exist_ok=True)
    found = explorer_model.tables(adapters)
    tensors = {name: tensor.detach().contiguous().numpy().astype("<f4") for name, tensor in found.items()}
    starts = np.cumsum([0, *(tensor.size for tensor in tensors.values())]).tolist()
    shapes = {name: [start, *tensor.shape] for (name, tensor), start in zip(tensors.items(), starts, strict=False)}
    ranks = {part: getattr(adapters.prefmoe, f"{part}_rank") for part in ("user", "preference", "profile")}
    sizes = {"ranks": ranks | {"lora": adapters.lora.rank}, "alpha": adapters.prefmoe.alpha}
    content = {"tensors": shapes, **sizes, **explorer_model.wording(adapters.backbone)}
    (place / "tables.json").write_text(json.dumps(content), encoding="utf-8")
    (place / "tables.bin").write_bytes(b"".join(tensor.tobytes() for tensor in tensors.values()))
    explorer_model.export(adapters, place)
    finished.touch()
    return place, ""


def packed(content: bytes) -> str:
    """Base64 of the compressed bytes, which a script can hold."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def kept(place: Path, path: Path, content: Callable[[], Mapping | str]) -> None:
    """What `received` writes of something that takes seconds to compress: made once for a folder of the cache (and this
    version of the script), then copied."""
    ready = place / f"{path.stem}-{content_digest(Path(__file__))[:8]}.js"
    if not ready.is_file():
        with whole_file(ready) as partial:
            received(partial, path.stem, content())
    shutil.copyfile(ready, path)


def received(path: Path, name: str, content: Mapping | Sequence | str) -> Path:
    """A script that hands something to the page."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_text(f"explorer.receive({json.dumps(name)}, {text});\n", encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS / "explorer" / "page")
    folder = parser.parse_args().folder.resolve()
    for sentence in build(folder):
        print(sentence, file=sys.stderr)
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
