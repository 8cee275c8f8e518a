"""What the rivals have made of their users: what was retrieved, whose adapters are alike, which experts serve whom."""

from itertools import combinations

import numpy as np
import pandas as pd
import torch

from prefmoe.data.benchmark import Benchmark
from prefmoe.models.graph_experts import GraphExperts
from prefmoe.models.retrieved import ENTRIES, RetrievedLoRA, entry_of
from prefmoe.models.user_lora import LinearPerUser, UserLoRA


def found_entries(method: RetrievedLoRA, split: str) -> pd.DataFrame:
    """For questions about each entry of a profile (rows) the share of those for which the index finds each first."""
    counts = pd.DataFrame(0.0, index=list(ENTRIES), columns=list(ENTRIES))
    for example in method.benchmark.select(split):
        counts.loc[entry_of(example), method.index.entries(example, 1)[0]] += 1
    return counts.div(counts.sum(axis=1).clip(lower=1), axis=0)


def retrieval_table(method: RetrievedLoRA) -> pd.DataFrame:
    """How often the index is right, by split: split, n, first, shown (`RetrievedLoRA.retrieval`)."""
    splits = [split for split, indices in method.benchmark.splits.items() if indices]
    return pd.DataFrame([{"split": split, **method.retrieval(split)} for split in splits])


@torch.no_grad()
def likeness_of_adapters(method: UserLoRA) -> pd.DataFrame:
    """Pairs of trained users: first, second, shared (facets in which their preferences are the same), cosine of their
    updates B A, all layers taken as one vector.

    The inner product of two updates is the sum of (B_u^T B_v) * (A_u A_v^T): no update is multiplied out.
    """
    products = 0.0
    for layer in method.model.modules():
        if isinstance(layer, LinearPerUser):
            outer = torch.einsum("uor,vos->uvrs", layer.lora_B.double(), layer.lora_B.double())
            inner = torch.einsum("uri,vsi->uvrs", layer.lora_A.double(), layer.lora_A.double())
            products = products + (outer * inner).sum((2, 3))
    lengths = products.diagonal().clamp_min(1e-300).sqrt()
    cosines = (products / lengths[:, None] / lengths).cpu().numpy()
    names = method.benchmark.trained_users
    rows = []
    for (u, first), (v, second) in combinations(enumerate(names), 2):
        rows.append({"first": first, "second": second, "shared": shared(method.benchmark, first, second),
                     "cosine": float(cosines[u, v])})  # fmt: skip
    return pd.DataFrame(rows, columns=["first", "second", "shared", "cosine"])


def shared(benchmark: Benchmark, first: str, second: str) -> int:
    """In how many facets two users have the same preferences."""
    groups = np.array([benchmark.groups[benchmark.row(name)] for name in (first, second)])
    return int(((groups[0] == groups[1]) & (groups[0] >= 0)).sum())


@torch.no_grad()
def gates_of_users(method: GraphExperts) -> pd.DataFrame:
    """Each user's gates (rows), users with training questions first, the alike beside one another."""
    users = torch.arange(len(method.benchmark.users), device=method.backbone.device)
    gates = method.user_gates(users).cpu().numpy()
    trained = set(method.benchmark.trained_users)
    table = pd.DataFrame(gates, index=list(method.benchmark.users))
    table.columns = [f"expert {k + 1}" for k in range(gates.shape[1])]
    order = sorted(table.index, key=lambda name: (name not in trained, int(table.loc[name].to_numpy().argmax())))
    return table.loc[order]
