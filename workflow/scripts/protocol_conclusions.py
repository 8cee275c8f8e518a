"""What came out of the questions about the protocol (`conclusions`)."""

from __future__ import annotations

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis.text import told_apart

BACKBONE = "llava-mini"
FRESH = "auc_untold_fresh"
WHERE = {"backbone": BACKBONE, "turns": 0, "grouping": "all"}


def curves_and_choices(t: Tables) -> list[str]:
    longest, reference = 1600, 800
    aucs = {
        method: rows.drop_duplicates("x").sort_values("x")
        for method, rows in t.rows("mini/protocol/more_training", **WHERE, metric="auc_same").groupby("method")
    }
    full, name, reader = (aucs[method] for method in ("PrefMoE", "LoRA", "LoRA with profile"))
    change = {x: _change(t, "more_training", str(x), method="PrefMoE") for x in (100, longest)}
    holds(told_apart(change[100]) and change[100]["difference"] < 0, "eight passes are better than one")
    holds(not told_apart(change[longest]), "twice as many steps are not told apart from the default's")
    holds(full["x"].max() == longest and name["high"].max() < full["value"].iloc[-1], "names alone stay below PrefMoE")
    fresh = {
        method: t.row("mini/protocol/more_training", **WHERE, metric=FRESH, method=method, x=longest) for method in aucs
    }
    ours = fresh["PrefMoE"]
    holds(ours["low"] < 0.5, "what nobody was told is not shown to be known after the longest training either")
    wide, narrow, full_budget = (_budget(t, m, "auc_same") for m in ("LoRA matched in parameters", "LoRA", "PrefMoE"))
    holds(wide["high"] < full_budget["value"], "parameters alone do not do what PrefMoE does")
    steps, values = (", ".join(texts) for texts in (full["x"].map("{:.0f}".format), full["value"].map(dot)))
    told, untold = (around(_budget(t, "LoRA with the statement asked about", m)) for m in ("auc_told", FRESH))
    routers, label = _change(t, "routers", "published"), _change(t, "facet_label", "oracle")
    residual, hidden = _change(t, "residual", "published"), _change(t, "anchors", "hidden")
    holds(told_apart(hidden), "anchors from last hidden states are worse")
    return [
        f"More training pays for PrefMoE up to {reference} steps: its AUC over pairs of users is {values} after "
        f"{steps} steps, and the last doubling changes it by {_said(change[longest])}. LoRA with names alone lies "
        f"between {dot(name['value'].min())} and {dot(name['value'].max())}; who reads the text reaches "
        f"{dot(reader['value'].max())}.",
        f"What no profile tells and nobody was asked is not shown to be known after {longest} steps either: PrefMoE's "
        f"AUC there is {around(ours)}, that of LoRA with profile {around(fresh['LoRA with profile'])}.",
        f"Parameters are no information: LoRA with as many as PrefMoE has an AUC of {around(wide)} beside "
        f"{around(narrow)}. Shown the one statement that a question is about, LoRA's AUC is {told} about what "
        f"profiles tell and {untold} about what they do not.",
        f"Routing: published routers change PrefMoE's AUC by {_said(routers)}, and the gold facet told to ours by "
        f"{_said(label)}.",
        f"Residuals as the code has them change it by {_said(residual)}, and anchors from last hidden states by "
        f"{_said(hidden)}: on miniatures that practised with centred means of input embeddings.",
    ]


def _change(t: Tables, experiment: str, variant: str, method: str = "PrefMoE", metric: str = "auc_same") -> pd.Series:
    where = {"backbone": BACKBONE, "turns": 0, "group": "all", "split": "test"}
    found = {"experiment": experiment, "variant": variant, "method": method, "metric": metric}
    return t.row("mini/protocol/differences", **found, **where)


def _budget(t: Tables, method: str, metric: str) -> pd.Series:
    return t.row("mini/protocol/budget", **WHERE, method=method, metric=metric)


def _said(row: pd.Series) -> str:
    return f"{around(row, 3, 'difference')} ({'told apart' if told_apart(row) else 'not told apart'})"
