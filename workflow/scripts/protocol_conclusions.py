"""What came out of the questions about the protocol (`conclusions`)."""

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis.text import told_apart

BACKBONE = "llava-mini"
FRESH = "auc_untold_fresh"
WHERE = {"backbone": BACKBONE, "turns": 0, "grouping": "all"}


def curves_and_choices(t: Tables) -> list[str]:
    shortest, reference, longest = 100, 800, 6400
    factors, text = "+ profile and preference factors", "LoRA with profile"
    aucs = t.rows("mini/protocol/more_training", **WHERE, metric="auc_same").drop_duplicates(["method", "x"])
    aucs = aucs.pivot(index="method", columns="x", values="value")
    ends = {method: f"{dot(row[reference])} and {dot(row[longest])}" for method, row in aucs.iterrows()}
    change = {method: _change(t, "more_training", str(longest), method=method) for method in aucs.index}
    holds(not any(map(told_apart, change.values())), "no row's AUC is told apart from that after 800 steps")
    fewer = _change(t, "more_training", str(shortest))
    holds(fewer["high"] < 0, "eight passes are better than one, by the interval")
    met = _change(t, "more_training", str(longest), metric="profile")
    name, full = (_trained(t, longest, method) for method in ("LoRA", "PrefMoE"))
    holds(name["high"] < full["value"], "names alone stay below PrefMoE for ever")
    holds(name["low"] < 0.5, "and are not told apart from the population")
    wide, narrow, full_budget = (_budget(t, m, "auc_same") for m in ("LoRA matched in parameters", "LoRA", "PrefMoE"))
    holds(wide["high"] < full_budget["value"], "parameters alone do not do what PrefMoE does")
    curve = aucs.loc["PrefMoE"]
    steps, values = (", ".join(texts) for texts in (curve.index.map("{:.0f}".format), curve.map(dot)))
    told, untold = (around(_budget(t, "LoRA with the statement asked about", m)) for m in ("auc_told", FRESH))
    routers, label = _change(t, "routers", "published"), _change(t, "facet_label", "oracle")
    people = _change(t, "routers", "published", metric="profile")
    untold_label = _change(t, "facet_label", "oracle", metric="auc_untold")
    holds(not told_apart(label) and not told_apart(untold_label), "the gold facet changes nothing that is told apart")
    holds(all(told_apart(row) and row["high"] < 0 for row in (routers, people)), "published routers lose in both")
    residual, hidden = _change(t, "residual", "published"), _change(t, "anchors", "hidden")
    holds(not told_apart(residual) and not told_apart(hidden), "neither is told apart in the AUC of all pairs")
    reading = [_change(t, *which, metric="auc_told") for which in (("residual", "published"), ("anchors", "hidden"))]
    holds(all(told_apart(row) and row["high"] < 0 for row in reading), "both lose in what is told")
    return [
        f"PrefMoE's AUC over pairs of users is {values} after {steps} steps; after {reference} and {longest} that of "
        f"the factors without the mixture is {ends[factors]}, of who reads the text {ends[text]}, of names alone "
        f"{ends['LoRA']}.",
        f"There is a plateau of the AUC: eight times the default's steps change PrefMoE's by "
        f"{around(change['PrefMoE'], 3, 'difference')}, that of the factors by "
        f"{around(change[factors], 3, 'difference')} and that of who reads the text by "
        f"{around(change[text], 3, 'difference')}, none told apart; names alone stay with the population "
        f"({around(name)}), and in whom PrefMoE recognises it changes by {_said(met)}.",
        f"Parameters are no information: LoRA with as many as PrefMoE has an AUC of {around(wide)} beside "
        f"{around(narrow)}; shown the one statement that a question is about, it has {told} about what "
        f"profiles tell and {untold} about what they do not.",
        f"Routing: published routers change recognition by {_said(people)} and PrefMoE's AUC by {_said(routers)}, "
        f"which three earlier trainings did not show (docs/history.md); the gold facet told to ours changes the AUC by "
        f"{_said(label)}, and that of what no profile tells by {_said(untold_label)}.",
        f"Residuals as the code has them change it by {_said(residual)}, and anchors from last hidden states by "
        f"{_said(hidden)}, but what is told by {_said(reading[0])} and {_said(reading[1])}, on miniatures that "
        "practised with centred means of input embeddings.",
    ]


def _change(t: Tables, experiment: str, variant: str, method: str = "PrefMoE", metric: str = "auc_same") -> pd.Series:
    where = {"backbone": BACKBONE, "turns": 0, "group": "all", "split": "test"}
    found = {"experiment": experiment, "variant": variant, "method": method, "metric": metric}
    return t.row("mini/protocol/differences", **found, **where)


def _trained(t: Tables, steps: int, method: str = "PrefMoE", metric: str = "auc_same") -> pd.Series:
    return t.row("mini/protocol/more_training", **WHERE, method=method, x=steps, metric=metric)


def _budget(t: Tables, method: str, metric: str) -> pd.Series:
    return t.row("mini/protocol/budget", **WHERE, method=method, metric=metric)


def _said(row: pd.Series) -> str:
    return f"{around(row, 3, 'difference')} ({'told apart' if told_apart(row) else 'not told apart'})"


def ladder(t: Tables) -> list[str]:
    """Text or prefix, by what the backbone reads and has practised."""

    def told(rung: str, method: str, metric: str = "auc_told") -> pd.Series:
        return t.row("ladder/table1", backbone=f"{BACKBONE}-{rung}", method=method, metric=metric, turns=0)

    def gained(method: str, metric: str = "auc_told") -> list[pd.Series]:
        """What the reader's two kinds of practice give a method: in PrefMoE's prefixes, and in free tokens."""
        found = {"method": method, "metric": metric, "turns": 0}
        rungs = (f"{BACKBONE}-reader-{practice}" for practice in ("practised", "placebo"))
        return [t.row("ladder/practice", backbone=rung, **found) for rung in rungs]

    low, high = (told(rung, "LoRA with profile") for rung in ("unread", "reader"))
    untuned = told("unread-practised", "Non-tuned with profile")
    holds(low["value"] < 0.55 and untuned["value"] > 0.65, "two expectations of claim (bb) failed")
    holds(low["high"] < high["low"], "who is given the text is as good as the backbone reads")
    where = {"method": "PrefMoE", "baseline": "LoRA with profile", "metric": "auc_told", "turns": 0}
    beside_text = t.rows("ladder/comparisons", **where).set_index("backbone")
    unread, reader = (beside_text.loc[f"{BACKBONE}-{rung}"] for rung in ("unread-practised", "reader"))
    holds(not (told_apart(beside_text) & (beside_text["difference"] > 0)).any(), "no rung has the prefix ahead")
    holds(unread["low"] < 0 < unread["high"], "the prefix is not ahead of the text where nobody reads")
    holds(reader["difference"] < 0 and told_apart(reader), "without practice the text is ahead of the prefix")
    own, free = gained("PrefMoE")
    holds(own["low"] > 0 and free["low"] > 0, "both kinds of practice pay")
    reading, other = gained("LoRA that reads frozen anchors")
    holds(reading["low"] > 0 > other["low"], "who reads frozen anchors gains by their own practice alone")
    before = [told(rung, "PrefMoE before training") for rung in ("reader-practised", "reader-placebo")]
    holds(before[0]["low"] > 0.5 and before[1]["low"] < 0.5, "untrained PrefMoE is read after its own practice alone")
    embedding = gained("Free user embedding", "auc_same")
    holds(all(row["low"] < 0 < row["high"] for row in embedding), "the free embedding's gain is not told from nothing")
    return [
        f"Who is given the text is as good as the backbone reads: the AUC of LoRA with the profile about what profiles "
        f"tell is {around(low)} where nobody reads (.55 to .85 was expected) and {around(high)} where the backbone "
        f"reads well; without tuning, where prefixes were practised and nobody reads, it is {around(untuned)} "
        "(expected: .45 to .65).",
        f"On no rung is the compressed profile told apart as better than the text: PrefMoE minus LoRA with it is "
        f"{around(unread, name='difference')} where nobody reads but prefixes were practised, and "
        f"{around(reader, name='difference')} where the backbone reads well and practised nothing.",
        f"Practice is a privilege: it gives PrefMoE {around(own, name='difference')} on the backbone that reads, and "
        f"LoRA that reads frozen anchors {around(reading, name='difference')}. Free tokens of invented people, which "
        f"no profile made, give {around(free, name='difference')} and {around(other, name='difference')}: what learns "
        "of its users may do with any practice in soft tokens, what only reads may need practice in these (the gains "
        "were not tested against one another), and PrefMoE before training does "
        f"({dot(before[0]['value'])}; after the placebo's {dot(before[1]['value'])}).",
        f"The free user embedding gains {around(embedding[0], 3, 'difference')} by PrefMoE's practice over all pairs, "
        f"{around(embedding[1], 3, 'difference')} by the placebo's: not told apart from nothing.",
    ]
