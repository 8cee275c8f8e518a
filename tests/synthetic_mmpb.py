"""A small data folder in MMPB-clean's form, drawn for the tests, and ways to spoil it."""

import csv
import json
from pathlib import Path

from PIL import Image

from prefmoe.data import counterfactual
from prefmoe.data.columns import COLUMNS, INJECTION_COLUMNS
from prefmoe.data.counterfactual import PseudoUser

USERS = {
    "Ann": ("a", "b", "c", "d"),
    "Ye Wen": ("a", "b", "c", "d"),
    "Bo": ("a", "e", "b", "f"),
    "asian_doll": None,
    "Zoe": ("e", "f", "a", "b"),
}
"""User -> two liked and two disliked items (the same names in every facet), or nothing; Zoe is unseen."""

FACETS = ("entertainment", "travel", "lifestyle", "shopping", "fashion")


def preference_text(items: tuple[str, str, str, str] | None) -> str:
    if items is None:
        return "Unknown preferences"
    return " ".join(
        "In terms of {0}, <sks> enjoys {0} {1}, {0} {2}, but dislikes {0} {3}, {0} {4}.".format(facet, *items)
        for facet in FACETS
    )


def rows() -> list[dict[str, str]]:
    """Four questions per user: preference and recognition, yes/no and multiple choice."""
    result = []
    for name, items in USERS.items():
        kinds = ("preference_yesno", "preference_mcq", "recognition_yesno", "recognition_mcq")
        for number, kind in enumerate(kinds):
            index = len(result)
            choice = kind.endswith("mcq")
            row = dict.fromkeys(COLUMNS, "")
            row |= {
                "index": str(index),
                "name": name,
                "attribute": "object" if items is None else "human",
                "category": kind.split("_")[0],
                "l2-category": "inconsistency" if choice else "awareness",
                "concept": FACETS[len(result) % 5] if number < 2 else "",
                "task_family": kind,
                "question": "What\u00a0 suits <sks>?",
                "answer": str(index % 4 if choice else 4 + number % 2),
                "answer_text": "abcd"[index % 4] if choice else ("yes", "no")[number % 2],
                "image_path": f"mmpb_clean/images/{index:06d}.png",
                "preference": preference_text(items),
                "description_moderate": f"<sks> is tall, with {len(name)} hats,\nin style {name[0]}.",
                "preference_semantic_invert": "0",
                "preference_bucket_names": "Ann | Ye Wen" if kind == "preference_yesno" else "",
            }
            row |= {letter: f"{letter} of {index}" if choice else "" for letter in "ABCD"}
            first = index - number  # portraits are the user's, whatever is asked
            row |= {column: f"mmpb_clean/injection/{column}/{first:06d}.png" for column in INJECTION_COLUMNS}
            result.append(row)
    return result


def write_csv(folder: Path, table: list[dict[str, str]], name: str = "sample.csv") -> None:
    with open(folder / "mmpb_clean" / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def write_split(folder: Path, **splits: list[int]) -> None:
    task = {f"{split}_idx": indices for split, indices in splits.items()}
    (folder / "mmpb_clean" / "split.json").write_text(json.dumps([{"tasks": [task]}]))


def change_row(folder: Path, index: int, **fields: str) -> None:
    """Changes fields of one question; a dash in a column's name is written as two underscores."""
    table = rows()
    table[index] |= {column.replace("__", "-"): value for column, value in fields.items()}
    write_csv(folder, table)


def make(folder: Path) -> Path:
    """Draws the data folder: 20 questions about five users, 45 pictures of 8 by 8 pixels."""
    table = rows()
    (folder / "multi_turn" / "generic_text").mkdir(parents=True)
    (folder / "mmpb_clean").mkdir()
    for number, row in enumerate(table):
        for shade, column in enumerate(("image_path", *INJECTION_COLUMNS)):
            path = folder / row[column]
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number * 10, shade * 40, 90)).save(path)
    write_csv(folder, table)
    write_split(folder, train=[0, 1, 2, 3, 4, 5, 8, 9, 12], test=[6, 7, 10, 11, 13], unseen=[16, 17, 18, 19])
    roles = ("user", "assistant")
    talk = [{"role": role, "content": f"{role} says {k}."} for k in range(3) for role in roles]
    (folder / "multi_turn" / "generic_text" / "talk.json").write_text(json.dumps(talk))
    return folder


def write_pseudo_users(users: list[PseudoUser], path: Path) -> None:
    """A pseudo_users.csv, as `prefmoe.data.counterfactual.read` reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(counterfactual.COLUMNS)
        for user in users:
            texts = (user.preferences.get(facet, "") for facet in FACETS)
            about = user.pseudo_id, user.name, user.family, user.description
            table.writerow([*about, *texts, user.uid_seed, user.image_seed])
