"""Which experts a question gets: the gates of the three routers, by kind of question."""

from collections.abc import Sequence

import pandas as pd
import torch

from prefmoe.data.benchmark import FACETS, Example
from prefmoe.inspection.questions import InspectionError, asked_text, prompts
from prefmoe.models.base import Method
from prefmoe.models.moe_lora import PROFILE_EXPERTS
from prefmoe.models.prefmoe import PrefMoE

EXPERTS = {"task": ("preference branch", "profile branch"), "preference": FACETS, "profile": PROFILE_EXPERTS}
"""What each router chooses between, in the order of its gates."""


def routed(method: Method) -> PrefMoE:
    """A method with component M, as what it is. Raises InspectionError for another one."""
    if not isinstance(method, PrefMoE) or method.router is None:
        raise InspectionError(f"{method.config.label!r} has no routers (component M)")
    return method


@torch.no_grad()
def gates(method: Method, examples: Sequence[Example]) -> pd.DataFrame:
    """The gates that each question gets: user, question, router, expert, gate. Raises InspectionError if the method has
    no routers."""
    method, batch = routed(method), prompts(method, examples)
    with method.context(batch):
        method.model.base_model(**batch.inputs, use_cache=False)
        found = {name: gate.float().cpu().numpy() for name, gate in method.gates().items()}
    table = []
    for row, example in enumerate(examples):
        for router, experts in EXPERTS.items():
            for expert, gate in zip(experts, found[router][row], strict=True):
                asked = {"user": example.name, "question": asked_text(example), "router": router}
                table.append({**asked, "expert": expert, "gate": float(gate)})
    return pd.DataFrame(table)
