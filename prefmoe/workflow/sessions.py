"""How much a run on choices reads: tokens of histories and targets, pictures, and the operations that they take.

An upper estimate: prompts are counted at the length at which they are cut, users at their largest number of targets.
"""

import math
from dataclasses import dataclass

from prefmoe.config import ChoicesData, Edition, Method, PickAPicData, PrototypesMethod, RaterMethod
from prefmoe.config.registry import Shape

ENTRY_TOKENS = 16
"""Of an entry beside its picture's and its prompt's: what surrounds them, the question, the label."""
MINIATURE_PROMPT = 8
"""Tokens of a prompt of the miniature, which is never cut."""

PATCHES = 36 * 36
"""Of a picture of 512 x 512 pixels, where 14 x 14 make a patch."""
TOWER_LAYERS, TOWER_WIDTHS = 27, 16
"""Of the tower of IDEFICS2: its layers, and how many times its width a layer keeps of a patch for the backward pass."""

PICK_A_PIC = (2_337, 230, 888, 24)
"""Of the paper's dataset (Section 4.1): users of training and test, choices of seen and of unseen users that are asked
about (459 and 1,775 pictures, two each), and the most targets that a user is assumed to have."""


@dataclass(frozen=True)
class Reading:
    """What the runs of one seed read.

    Attributes:
        users: all of the benchmark.
        learned, learned_pictures: tokens, and pictures, of one process's part of a forward pass in training.
        asked: tokens of a forward pass in evaluation.
        operations: of all passes.
    """

    users: int
    learned: int
    learned_pictures: int
    asked: int
    operations: float


def session_tokens(method: Method, shape: Shape, choices: int, targets: int, prompt: int) -> int:
    """Tokens of a history of so many choices and so many pictures behind it; what reads pictures alone has theirs."""
    if not isinstance(method, RaterMethod):
        return shape.image_tokens * (2 * choices + targets)
    entry = shape.image_tokens + ENTRY_TOKENS + (min(prompt, method.max_prompt_tokens) if method.prompts else 0)
    return getattr(method, "prototypes", 0) + (2 * choices + targets) * entry


def reading(edition: Edition, method: Method, name: str, shape: Shape) -> Reading:
    """What the runs of a method of an edition about choices read."""
    settings, training, data = edition.histories, edition.training, edition.data
    prompt = MINIATURE_PROMPT if isinstance(data, ChoicesData) else 10**6
    users, seen, unseen, most = PICK_A_PIC
    if isinstance(data, ChoicesData):
        users, most = data.users + data.unseen_users, max(data.test_per_user, data.unseen_per_user)
        seen, unseen = data.users * data.test_per_user, data.unseen_users * data.unseen_per_user
    candidates = 2 if isinstance(data, PickAPicData) else 4
    longest = max(settings.asked(name))
    asked = settings.batch_size * session_tokens(method, shape, longest, candidates * most, prompt)
    tower = 2 * (shape.vision * PATCHES + shape.connector * shape.image_tokens)  # operations for a picture
    decoder = 2 * (shape.active or shape.decoder)  # and for a token
    operations, learned, pictures = 0.0, 0, 0
    if method.table_type != "NT":
        histories = training.batch_size // settings.targets
        tokens = session_tokens(method, shape, settings.n_ref, 2 * settings.targets, prompt)
        shown = 2 * settings.n_ref + 2 * settings.targets
        part = math.ceil(histories / (edition.hardware.processes or 1))
        learned, pictures = part * tokens, part * shown
        again = 1 if training.gradient_checkpointing else 0
        passes = training.steps * getattr(method, "steps_factor", 1.0) * training.gradient_accumulation * histories
        looks = 3 + again if learns_to_see(method) else 1
        operations += passes * (tokens * (2 + again) * decoder + shown * looks * tower)
    for n_ref in settings.asked(name):
        sessions = settings.draws * (seen + unseen) / most
        tokens = session_tokens(method, shape, n_ref, candidates * most, prompt)
        operations += sessions * (tokens * decoder + (2 * n_ref + candidates * most) * tower)
    return Reading(users, learned, pictures, asked, operations)


def learns_to_see(method: Method) -> bool:
    """Whether the vision tower is trained."""
    return isinstance(method, PrototypesMethod) and method.vision and not method.prototypes


def tower_activations(shape: Shape, pictures: int, *, checkpointing: bool) -> int:
    """Bytes that a tower in float32 keeps of so many pictures for the backward pass; its width is that of a
    transformer of its parameters (12 of its squared width in each layer)."""
    width = math.sqrt(shape.vision / 12 / TOWER_LAYERS)
    kept = TOWER_LAYERS + TOWER_WIDTHS if checkpointing else TOWER_LAYERS * TOWER_WIDTHS
    return round(4 * width * kept * PATCHES * pictures)
