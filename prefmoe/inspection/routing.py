"""Which experts a question gets: the gates of the three routers, by kind of question."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from prefmoe import metrics
from prefmoe.data.benchmark import FACETS, Example
from prefmoe.inspection.questions import InspectionError, asked_text, prompts
from prefmoe.models.base import Method
from prefmoe.models.moe_lora import PROFILE_EXPERTS
from prefmoe.models.prefmoe import PrefMoE

EXPERTS = {"task": ("preference branch", "profile branch"), "preference": FACETS, "profile": PROFILE_EXPERTS}
"""What each router chooses between, in the order of its gates."""


def _prefmoe(method: Method) -> PrefMoE:
    if not isinstance(method, PrefMoE) or method.router is None:
        raise InspectionError(f"{method.config.label!r} has no routers (component M)")
    return method


@torch.no_grad()
def gates(method: Method, examples: Sequence[Example]) -> pd.DataFrame:
    """The gates that each question gets: user, question, router, expert, gate. Raises InspectionError if the method has
    no routers."""
    method, batch = _prefmoe(method), prompts(method, examples)
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


def own_expert(gates: pd.DataFrame) -> pd.DataFrame:
    """Whether the preference router favours the expert of the facet that is asked about, which no prompt names.

    ``gates``: mean gates per group of questions (`tables.gates_table`). Returns facet, own (mean gate of its expert on
    its questions), elsewhere (the same expert's mean gate on questions about other facets), difference.
    """
    chosen = gates[gates["router"] == "preference"].pivot(index="group", columns="expert", values="value")
    asked = [facet for facet in FACETS if f"preference, {facet}" in chosen.index]
    table = []
    for facet in asked:
        column = chosen.loc[[f"preference, {name}" for name in asked], FACETS.index(facet)]
        own, elsewhere = column.pop(f"preference, {facet}"), column.mean()
        table.append({"facet": facet, "own": own, "elsewhere": elsewhere, "difference": own - elsewhere})
    return pd.DataFrame(table, columns=["facet", "own", "elsewhere", "difference"])


def gate_ranges(gates: pd.DataFrame) -> pd.DataFrame:
    """How far the mean gates of an expert lie apart between kinds of questions; 0 is a mixture that never changes.

    ``gates``: mean gates per group of questions (`tables.gates_table`). Returns router, expert (its name), lowest,
    highest, range.
    """
    table = []
    for (router, expert), values in gates.groupby(["router", "expert"], sort=False)["value"]:
        low, high = values.min(), values.max()
        name = EXPERTS[router][expert]
        table.append({"router": router, "expert": name, "lowest": low, "highest": high, "range": high - low})
    return pd.DataFrame(table)


def gates_by_outcome(answers: pd.DataFrame) -> pd.DataFrame:
    """Mean gates of questions that were answered right and wrong.

    ``answers``: per-question answers with gate columns; seeds may be stacked. Returns router, expert, question
    ("preference", "recognition"), right, wrong (NaN where there is none).
    """
    scored = metrics.score(answers)
    outcome = np.where(scored["hit"].astype(bool), "right", "wrong")
    table = []
    for router, experts in EXPERTS.items():
        for k, expert in enumerate(experts):
            means = scored[f"gate_{router}_{k}"].groupby([scored["category"], outcome]).mean().unstack()
            for question, row in means.reindex(columns=["right", "wrong"]).iterrows():
                table.append({"router": router, "expert": expert, "question": question, **row})
    return pd.DataFrame(table)


@torch.no_grad()
def mixture_effect(method: Method, examples: Sequence[Example]) -> float:
    """The largest change of a next-token logit that the experts make; 0 before training, the B being zero. Raises
    InspectionError if the method has no experts."""
    method, batch = _prefmoe(method), prompts(method, examples)
    with method.context(batch):
        routed = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    with method.prefix.active(method.user_state(batch.user).prefix, batch.prefix_mask):
        plain = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    return float((routed - plain).abs().max())
