"""Makes what the explorer ships, site/explorer/assets/, from an edition's finished runs: `explorer.py assets`."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shipping
from explorer_page import ASSETS, free_names
from numpy.typing import NDArray
from PIL import Image
from sklearn.manifold import TSNE

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import RESULTS, ROOT, Edition, MiniatureData, load_edition, run_folder
from prefmoe.data.benchmark import FACETS, Benchmark, Example, Preference
from prefmoe.data.drawing import ITEM_FACET, ITEMS
from prefmoe.data.miniature import LIKES_QUESTIONS
from prefmoe.data.people import Person, people
from prefmoe.data.pictures import open_picture
from prefmoe.data.sources import load_benchmark
from prefmoe.inspection.users import FacetTokens, facet_tokens, neighbourhood_purity
from prefmoe.models.base import Method
from prefmoe.models.saved import CONFIG_FILE, WEIGHTS_FILE
from prefmoe.running.evaluation import evaluate
from prefmoe.system.file_digests import content_digest
from prefmoe.system.files import whole_file
from prefmoe.system.run_files import verify

FOLDER = ROOT / ASSETS
"""What is committed: of the trained parts, of the answers to one picture per item, and of the drawn pictures."""

METHODS = ("NT", "NT-profile", "PrefMoE-untrained", "LoRA-profile", "LoRA", "PrefMoE")
"""Whose answers the grid has, in its order: who is not trained, who reads the text, who knows names, PrefMoE."""

ADAPTERS = ("LoRA", "PrefMoE")
"""Whose trained parts go to the browser."""

SEED = 0
QUESTION = LIKES_QUESTIONS[0]
PERPLEXITIES, MAP_SEEDS, NEIGHBOURS = (5, 15, 30, 50), (0, 1, 2), 5
STAGES = {"before training": "PrefMoE-untrained", "after training": "PrefMoE"}
TOKENS = ("residual", "full token")
COLUMNS, SHOWN, SEEN, FACE = 10, 160, 64, 80
"""Pictures in a row of a sheet; sides of a shown picture, of one as the model sees it, and of a shown face."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("assets", help="site/explorer/assets/ from an edition's finished runs")
    shipping.of_runs(made, write_assets, FOLDER)
    return shipping.make(parser, arguments)


def write_assets(edition: str | Path, backbone: str | None, folder: Path, results: Path = RESULTS) -> list[Path]:
    """Writes everything that the explorer ships, from finished runs of one seed; returns the files.

    ``backbone``: the edition's first when None; it has to be the one whose weights the repository ships. Raises
    RunFileError for a run that is missing, unfinished or changed since, MethodError where a run belongs to other
    weights or users.
    """
    settings = load_edition(edition, seeds="all")
    backbone = backbone or settings.backbones[0]
    benchmark = load_benchmark(settings, results)
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: run_folder(results, settings.name, backbone, name, SEED) for name in METHODS}
    stories = {name: verify(place) for name, place in places.items()}
    methods = {
        name: Method.from_pretrained(place / "method", load_backbone(backbone), benchmark)
        for name, place in places.items()
    }
    chosen = pictures(benchmark)
    answers = {name: asked_of_everybody(method, chosen) for name, method in methods.items()}
    names = list(benchmark.users)
    tokens = {stage: facet_tokens(methods[name]) for stage, name in STAGES.items()}
    invented = {"made_up": made_up(methods["PrefMoE"], chosen, free_names(names))}  # who join the method's users
    written = [
        write(folder / "people.json", everybody(settings)),
        write(folder / "grid.json", grid(settings, chosen, names, answers) | invented),
        write(folder / "maps.json", maps(tokens)),
        *write_pictures(folder, chosen, benchmark, methods["NT"]),
    ]
    for name in ADAPTERS:
        (folder / name).mkdir(exist_ok=True)
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            written.append(folder / name / file)
            shutil.copyfile(places[name] / "method" / file, written[-1])
    about = {
        "made_by": "python workflow/scripts/explorer.py assets",
        "edition": settings.name,
        "backbone": backbone,
        "seed": SEED,
        "question": QUESTION,
        "pictures": "of each item, that of the first yes/no question about it in the test split",
        "training": settings.training.model_dump(mode="json"),
        "runs": {name: origin(story) for name, story in stories.items()},
        "files": {path.relative_to(folder).as_posix(): content_digest(path) for path in written},
    }  # fmt: skip
    return [*written, write(folder / "about.json", about)]


def origin(story: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a run was made: its settings, and digests of all that it depends on."""
    inputs = {key: story["inputs"][key] for key in ("method", "data", "weights", "code")}
    return {"inputs_digest": story["inputs_digest"], "git_commit": story.get("git_commit"), **inputs}


def write(path: Path, content: object) -> Path:
    """JSON without blanks: what is shipped is read by a browser; whole or not at all."""
    with whole_file(path) as partial:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def pictures(benchmark: Benchmark) -> dict[str, Example]:
    """Item -> the first yes/no test question about it. Raises ValueError naming items without one."""
    annotated = benchmark.told([example.index for example in benchmark.select("test")])["item"]
    found: dict[str, Example] = {}
    for example, item in zip(benchmark.select("test"), annotated, strict=True):
        if example.category == "preference" and not example.is_multiple_choice:
            found.setdefault(item, example)
    if missing := [item for item in ITEM_FACET if item not in found]:
        raise ValueError(f"no yes/no test question about {', '.join(missing)}; expected one of every item")
    return {item: found[item] for item in ITEM_FACET}


def about(example: Example, name: str) -> Example:
    """`QUESTION` about a user and an example's picture."""
    return example.model_copy(update={"name": name, "question": QUESTION, "semantic_invert": False})


def asked_of_everybody(method: Method, chosen: Mapping[str, Example]) -> NDArray:
    """(items, users) P(yes) of a method, asked `QUESTION` about every user with the picture of every item."""
    names = list(method.benchmark.users)
    examples = [about(example, name) for example in chosen.values() for name in names]
    frame = evaluate(method, examples, turns=0, batch_size=64, max_new_tokens=1)
    return frame["p_yes"].to_numpy().reshape(len(chosen), len(names))


def made_up(method: Method, chosen: Mapping[str, Example], names: Sequence[str]) -> dict[str, float | int]:
    """What a method answers about users whose likes and dislikes are drawn item by item, two of each in every facet.

    Each has the profile picture and the description of the first unseen user. Returns users, and of pairs of something
    that one of them likes and something that somebody dislikes the number and the share in which yes is likelier for
    what is liked (a tie is half).
    """
    rng, benchmark = np.random.default_rng(SEED), method.benchmark
    borrowed = next(user for name, user in benchmark.users.items() if name not in benchmark.trained_users)
    examples, liked = [], []
    for name in names:
        drawn = {facet: [str(item) for item in rng.choice(list(ITEMS[facet]), 4, replace=False)] for facet in FACETS}
        told = {f: Preference(likes=tuple(sorted(i[:2])), dislikes=tuple(sorted(i[2:]))) for f, i in drawn.items()}
        method.add_user(borrowed.model_copy(update={"name": name, "preferences": told}))
        for preference in told.values():
            for items, holds in ((preference.likes, True), (preference.dislikes, False)):
                examples += [about(chosen[item], name) for item in items]
                liked += [holds] * len(items)
    yes = evaluate(method, examples, turns=0, batch_size=64, max_new_tokens=1)["p_yes"].to_numpy()
    first, second = (yes[np.array(liked) == holds] for holds in (True, False))
    difference = first[:, None] - second
    share = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    return {"users": len(names), "pairs": difference.size, "share": round(share, 4)}


def everybody(settings: Edition) -> dict[str, object]:
    """Who lives in the world: profiles, what they like besides, and whether they were asked about in training."""
    if not isinstance(settings.data, MiniatureData):
        raise ValueError(f"edition {settings.name!r}: expected data of kind miniature, found {settings.data.kind}")
    trained, unseen = people(settings.data)

    def entry(person: Person, known: bool) -> dict[str, object]:
        told = {facet: [list(p.likes), list(p.dislikes)] for facet, p in person.preferences.items()}
        besides = {facet: list(items) for facet, items in person.untold.items()}
        described = {"name": person.name, "trained": known, "description": person.face.description()}
        return {**described, "told": told, "untold": besides}

    facets = {facet: list(ITEMS[facet]) for facet in FACETS}
    return {"facets": facets, "users": [*(entry(p, True) for p in trained), *(entry(p, False) for p in unseen)]}


def grid(
    settings: Edition, chosen: Mapping[str, Example], users: Sequence[str], answers: Mapping[str, NDArray]
) -> dict[str, object]:
    """Labels and P(yes) in ten-thousandths, a list of users per item and method."""
    methods = [{"name": name, "label": settings.methods[name].label} for name in answers]
    values = [np.round(10_000 * shares).astype(int).tolist() for shares in answers.values()]
    return {"methods": methods, "items": list(chosen), "users": list(users), "p_yes": values}


def maps(stages: Mapping[str, FacetTokens]) -> dict[str, object]:
    """t-SNE drawings of the users' tokens for several perplexities and seeds, and the purity of neighbourhoods.

    Unlike notebook 9's, which start from the principal components, these start at random: what a seed decides is shown.
    Coordinates are per mille of the drawing. The purity is that of the full space.
    """
    (labels,) = {tuple(map(tuple, tokens.labels[["user", "facet", "rank"]].to_numpy())) for tokens in stages.values()}
    drawn = []
    for stage, tokens in stages.items():
        for kind in TOKENS:
            vectors = tokens.vectors[kind].astype(np.float64)
            unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            names = tokens.labels["user"].to_numpy()
            purity = {
                colour: neighbourhood_purity(vectors, tokens.labels[column].to_numpy(), NEIGHBOURS, names)
                for colour, column in {"facet": "facet", "group": "group"}.items()
            }
            layouts = {f"{p}/{seed}": _layout(unit, p, seed) for p in PERPLEXITIES for seed in MAP_SEEDS}
            numbers = {colour: {key: round(float(value), 4) for key, value in found.items()}
                       for colour, found in purity.items()}  # fmt: skip
            drawn.append({"stage": stage, "tokens": kind, "purity": numbers, "layouts": layouts})
    points = [[user, facet, int(rank)] for user, facet, rank in labels]
    return {"perplexities": PERPLEXITIES, "seeds": MAP_SEEDS, "neighbours": NEIGHBOURS, "points": points, "maps": drawn}


def _layout(unit: NDArray, perplexity: float, seed: int) -> list[int]:
    model = TSNE(2, perplexity=perplexity, init="random", method="exact", random_state=seed, learning_rate="auto")
    found = model.fit_transform(unit)
    found = found - found.min(axis=0)
    return np.round(1000 * found / found.max()).astype(int).flatten().tolist()


def write_pictures(folder: Path, chosen: Mapping[str, Example], benchmark: Benchmark, method: Method) -> list[Path]:
    """Sheets of the items' pictures as they are shown and, dot by dot, as the model sees them, and of users' faces."""
    shown = [open_picture(example.image) for example in chosen.values()]
    seen = [Image.fromarray(seen_by(method, example.image)) for example in chosen.values()]
    faces = [open_picture(user.image) for user in benchmark.users.values()]
    lossy, exact = {"quality": 72, "method": 6}, {"lossless": True, "quality": 100, "method": 6, "exact": True}
    sheets = {"pictures": (shown, SHOWN, lossy), "pixels": (seen, SEEN, exact), "faces": (faces, FACE, lossy)}
    for name, (images, side, options) in sheets.items():
        with whole_file(folder / f"{name}.webp") as partial:
            sheet(images, side).save(partial, "WEBP", **options)
    return [folder / f"{name}.webp" for name in sheets]


def sheet(images: Sequence[Image.Image], side: int) -> Image.Image:
    """The pictures in rows of `COLUMNS`, each of side x side pixels."""
    whole = Image.new("RGB", (COLUMNS * side, -(-len(images) // COLUMNS) * side), "white")
    for place, image in enumerate(images):
        small = image if image.size == (side, side) else image.resize((side, side), Image.LANCZOS)
        whole.paste(small, (place % COLUMNS * side, place // COLUMNS * side))
    return whole


def seen_by(method: Method, picture: Path) -> NDArray:
    """(64, 64, 3) uint8: a picture when the processor has resized it, before it is normalised. Raises ValueError if
    what the model sees is no such picture."""
    values = method.backbone.process_pictures([picture]).inputs["pixel_values"][0]  # (3, 64, 64)
    processor = method.backbone.processor.image_processor
    mean, std = (np.array(part)[:, None, None] for part in (processor.image_mean, processor.image_std))
    dots = 255 * (values.double().numpy() * std + mean)
    if (rest := float(np.abs(dots - dots.round()).max())) > 1e-3:
        raise ValueError(f"{picture}: expected whole numbers from 0 to 255 before normalisation, off by {rest:.2g}")
    return dots.round().astype(np.uint8).transpose(1, 2, 0)


if __name__ == "__main__":
    sys.exit(main())
