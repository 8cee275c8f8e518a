"""A benchmark small enough to answer by hand, and made-up runs of an edition on it."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from prefmoe import metrics
from prefmoe.analysis.groupings import (
    questions,
)
from prefmoe.config import Edition, run_folder
from prefmoe.data.benchmark import Benchmark, Preference, User
from prefmoe.system import run_files

LIKES = {"ann": ("tea", "jam"), "bob": ("tea", "jam"), "cid": ("tea", "kites"), "dan": ("ice", "kites")}
DISLIKES = {"ann": ("ice",), "bob": ("ice",), "cid": ("maps",), "dan": ("tea",)}
HOLDERS = {item: [n for n, likes in LIKES.items() if item in likes] for item in ("tea", "jam", "ice", "kites", "maps")}


def yes_no(name: str, item: str, *, negated: bool = False, seen: bool = False) -> dict:
    holds = item in LIKES[name]
    return {
        "name": name, "category": "preference", "l2-category": "awareness" if holds else "overconcept",
        "concept": "travel", "question": f"{'not ' if negated else ''}like?", "answer": 4 if holds != negated else 5,
        "preference_semantic_invert": int(negated), "preference_bucket_names": " | ".join(HOLDERS[item]),
        "item": item, "seen_pair": int(seen),
    }  # fmt: skip


def choice(name: str, options: tuple[str, ...], right: str, target: str = "like") -> dict:
    return {
        "name": name, "category": "preference", "l2-category": "inconsistency", "concept": "travel", "target": target,
        "question": f"most {target}d?", **dict(zip("ABCD", options, strict=False)), "answer": options.index(right),
        "item": right,
    }  # fmt: skip


def present(name: str, answer: int) -> dict:
    kind = "awareness" if answer == 4 else "overconcept"
    return {"name": name, "category": "recognition", "l2-category": kind, "question": "here?", "answer": answer}


TRAIN = [
    yes_no("ann", "tea"), yes_no("bob", "tea"), yes_no("cid", "tea", negated=True), yes_no("dan", "tea"),
    yes_no("ann", "ice"), yes_no("bob", "ice", negated=True), yes_no("dan", "ice"), yes_no("dan", "maps"),
    choice("ann", ("tea", "ice", "maps", "kites"), "tea"), choice("bob", ("ice", "tea", "maps", "kites"), "tea"),
    choice("dan", ("ice", "tea", "maps", "jam"), "ice"),
    choice("ann", ("tea", "ice", "maps", "jam"), "ice", "dislike"),
    present("ann", 4), present("bob", 4), present("dan", 5),
]  # fmt: skip
TEST = [
    yes_no("ann", "tea", seen=True),  # popular says yes: right
    yes_no("dan", "tea", seen=True),  # popular says yes: the collapse
    yes_no("dan", "tea", negated=True, seen=True),  # popular says no, negated
    yes_no("cid", "ice"),  # popular says no: right
    yes_no("dan", "ice", seen=True),  # popular says no: wrong
    yes_no("dan", "kites"),  # never asked in training: the majority of all items, no
    choice("cid", ("maps", "tea", "ice", "jam"), "tea"),  # tea was right most often
    choice("dan", ("tea", "maps", "ice", "jam"), "ice"),  # tea again: wrong
    choice("cid", ("tea", "ice", "maps", "jam"), "maps", "dislike"),  # ice, by the wording
    present("cid", 5),  # majority yes: wrong
]
UNSEEN = [yes_no("dan", "jam")]


@cache
def made_up_benchmark() -> Benchmark:
    """Four users, and questions about five items."""
    rows = [*TRAIN, *TEST, *UNSEEN]
    defaults = dict.fromkeys((*"ABCD", "target", "concept", "preference_bucket_names", "item"), "")
    defaults |= {"preference_semantic_invert": 0, "preference_common_items": "", "seen_pair": 0}
    frame = pd.DataFrame([defaults | row for row in rows]).rename_axis("index")
    annotations = frame[["item", "seen_pair"]].assign(popularity=[len(HOLDERS.get(i, ())) for i in frame["item"]])
    users = {
        name: User(
            name=name, attribute="human", description=f"{name} smiles", images=(Path("x.png"),),
            preferences={"travel": Preference(likes=LIKES[name], dislikes=DISLIKES[name])},
        )
        for name in LIKES
    }  # fmt: skip
    ends = np.cumsum([0, len(TRAIN), len(TEST), len(UNSEEN)])
    names = ("train", "test", "unseen")
    splits = {name: tuple(range(*ends[k : k + 2])) for k, name in enumerate(names)} | {"validation": ()}
    frame = frame.drop(columns=["item", "seen_pair"])
    return Benchmark(root=Path("."), frame=frame, users=users, examples={}, splits=splits, annotations=annotations)


EDITION = Edition.model_validate(
    {
        "name": "tiny",
        "purpose": "tests",
        "seeds": [0, 1],
        "backbones": ["llava-mini"],
        "ablation_backbone": "llava-mini",
        "data": {"kind": "miniature"},
        "training": {"steps": 1, "batch_size": 1},
        "methods": {
            "nt": {"kind": "nontuned", "label": "Non-tuned", "profile": "none"},
            "fft": {"kind": "fft", "label": "Full fine-tuning", "lr": 1e-3},
            "e": {"kind": "prefmoe", "label": "Embedding", "components": "E", "lr": 1e-3, "lr_user": 1e-2},
            "full": {"kind": "prefmoe", "label": "PrefMoE", "lr": 1e-3, "lr_user": 1e-2},
        },
        "table1": ["nt", "fft", "full"],
        "table2": ["e", "full"],
    }
)


def shares(frame: pd.DataFrame, right: np.ndarray, skill: float) -> dict[str, np.ndarray]:
    """Probabilities of the answers, largest for the given one (the next of the allowed ones where it is wrong)."""
    columns = {answer: np.full(len(frame), np.nan) for answer in ("yes", "no", "a", "b", "c", "d")}
    for row, (gt, hit) in enumerate(zip(frame["gt"], right, strict=True)):
        allowed = ("yes", "no") if gt in ("yes", "no") else ("a", "b", "c", "d")
        for step in range(len(allowed)):
            answer = allowed[(allowed.index(gt) + step) % len(allowed)]
            given = step == (0 if hit else 1)
            columns[answer][row] = 0.5 + skill / 2 if given else (0.5 - skill / 2) / (len(allowed) - 1)
    return {f"p_{answer}": values for answer, values in columns.items()} | {"p_allowed": np.full(len(frame), 0.9)}


def write_run(benchmark: Benchmark, results: Path, key: str, seed: int, skill: float) -> None:
    rng = np.random.default_rng([seed, int(1000 * skill)])
    frames = []
    for split in ("test", "unseen"):
        for turns in (0, 10):
            frame = metrics.score(questions(benchmark, split).assign(prediction=""))
            other = {"yes": "no", "no": "yes", "a": "b", "b": "c", "c": "d", "d": "a"}
            right = rng.random(len(frame)) < skill
            words = [gt if hit else other[gt] for gt, hit in zip(frame["gt"], right, strict=True)]
            prediction = [word.upper() if len(word) == 1 else word for word in words]
            gates = {f"gate_task_{k}": np.full(len(frame), value) for k, value in enumerate((0.25 + seed / 2, 0.75))}
            more = {"split": split, "turns": turns, **gates, **shares(frame, right, skill)}
            frame = frame.assign(prediction=prediction, **more)
            frames.append(frame.drop(columns=["gt", "pred", "hit"]))
    keep(pd.concat(frames).sample(frac=1, random_state=seed), results, "llava-mini", key, seed)


def keep(frame: pd.DataFrame, results: Path, backbone: str, key: str, seed: int) -> None:
    """A finished run with these answers, in the place of any earlier one."""
    folder = run_folder(results, "tiny", backbone, key, seed)
    (folder / "method").mkdir(parents=True, exist_ok=True)
    (folder / "method" / "method.json").write_text("{}")
    frame.to_parquet(folder / "predictions.parquet")
    run_files.seal(folder, {"edition": "tiny", "backbone": backbone, "method": key, "seed": seed})


def key_of(path: Path) -> tuple[str, str, int]:
    """Backbone, method and seed of a run's file."""
    backbone, method, seed = path.parts[-4:-1]
    return backbone, method, int(seed.removeprefix("seed"))
