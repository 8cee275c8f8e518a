"""A very small edition that draws: the small choices, a random drawer of 32 x 32 pixels, a random attribute reader."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import small_choices
import torch
from small_choices import LEARNED, backbone, benchmark
from tiny_drawers import tiny_drawer

from prefmoe.config import Edition
from prefmoe.generation.branch import UserBranch
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.reader import READER, AttributeReader
from prefmoe.generation.states import History
from prefmoe.generation.user_tokens import Known

BRANCH = {
    "kind": "user_tokens", "begins_with": "Probes", "hidden": 16, "draws": 2, "lr": 1e-2,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "Untuned": {"kind": "zero_shot", "label": "Untuned"},
    "Reward": {**LEARNED, "label": "Reward", "prompts": False, "auxiliary": False, "vision": False},
    "Questions": {**LEARNED, "kind": "preference_vqa", "label": "Questions", "prompts": False},
    "Probes": {"kind": "probes", "label": "Probes", "begins_with": "Questions", "users": 3, "draws": 2},
    "Drawings": {"kind": "drawings", "label": "Drawings"},
    "Favourites": {"kind": "drawings", "label": "Favourites", "told": "favourites"},
    "Nobody": {"kind": "drawer", "label": "Nobody"},
    "Told": {"kind": "drawer", "label": "Told", "told": "favourites"},
    "Words": {"kind": "drawer", "label": "Words", "told": "history"},
    "All": {**BRANCH, "label": "All"},
    "Image": {**BRANCH, "label": "Image", "parts": ["img"], "alignment": "none"},
    "Wrong": {"kind": "wrong_user", "label": "Wrong", "begins_with": "All"},
    "Like": {"kind": "rewarded", "label": "Like", "begins_with": "Questions", "by": "like", "candidates": 2},
    "Gradient": {
        "kind": "rewarded", "label": "Gradient", "begins_with": "Questions", "by": "dislike", "how": "gradient",
        "candidates": 2, "few_steps": 2,
    },
}  # fmt: skip
_FOLDER = TemporaryDirectory()


@cache
def drawer_folder() -> Path:
    """The folder of the drawer, with the reader in it."""
    folder = Path(_FOLDER.name) / "drawer"
    tiny_drawer().save_pretrained(folder)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        AttributeReader(channels=(8, 8, 8, 8), hidden=16).save_pretrained(folder / READER.name)
    return folder


def generation(**changes: Any) -> dict[str, Any]:
    return {
        "drawer": str(drawer_folder()), "reward": "Reward", "prompts": ["two cameras", "one crown"], "users": 3,
        "noises": 2, "steps": 2, "scales": [0.0], "at_scales": ["All"], "batch_size": 16, **changes,
    }  # fmt: skip


def content(**changes: Any) -> dict[str, Any]:
    histories = {"n_ref": 3, "draws": 1, "targets": 2, "lengths": [1], "at_lengths": ["All"]}
    raters = ("zero_shot", "prototypes", "preference_vqa")
    drawing = [name for name, method in METHODS.items() if method["kind"] not in raters]
    common = {"histories": histories, "generation": generation(), "methods": METHODS, "table1": drawing}
    return small_choices.content(**{**common, "table2": ["Image", "All"], **changes})


def small_edition(**changes: Any) -> Edition:
    """The edition, on the model in the folder "tiny"."""
    on = {"backbones": ("tiny",), "ablation_backbone": "tiny"}
    return Edition.model_validate(content(**changes)).model_copy(update=on)


def branch(
    kind: type[UserBranch] = UserBranch, seed: int = 0, drawer: Drawer | None = None, **changes: Any
) -> UserBranch:
    """An untrained user branch on a new drawer, of the last of the rater's layers."""
    edition = Edition.model_validate(content(methods=METHODS | {"All": METHODS["All"] | changes}))
    on = backbone()
    layers = on.model.config.text_config.num_hidden_layers
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return kind(
            edition.methods["All"], on, benchmark(), drawer=drawer or tiny_drawer(), generation=edition.generation,
            seed=seed, core_layer=layers, layers=layers, picture_width=on.hidden_size,
        )  # fmt: skip


def known_of(one: UserBranch, histories: list[History], seed: int = 0) -> Known:
    """Random states, another row for each history."""
    generator, hidden = torch.Generator().manual_seed(seed), one.backbone.hidden_size
    layers = one.backbone.model.config.text_config.num_hidden_layers
    states = torch.randn(len(histories), 2, layers, hidden, generator=generator)
    return Known(states, torch.randn(len(histories), 4, hidden, generator=generator))


def asked_of(
    users: list[str], scale: float = 2.0, n_ref: int = 3, prompts: tuple[str, ...] = ("two cameras", "one crown")
) -> pd.DataFrame:
    """Requests for one picture of each prompt for some users."""
    rows = [("test", user, prompt, 0, n_ref, 0, scale) for user in users for prompt in prompts]
    return pd.DataFrame(rows, columns=["split", "user", "prompt", "noise", "n_ref", "draw", "scale"])
