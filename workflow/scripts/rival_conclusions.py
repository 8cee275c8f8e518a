"""What came out of the notebook about rivals (`conclusions`)."""

from committed import Tables, around, dot, holds

from prefmoe.analysis.text import listed, told_apart

BACKBONE = "llava-mini"
RETRIEVED = "Retrieved statements"
BESIDE = {"PrefMoE", "LoRA", "LoRA with profile", "Non-tuned with profile"}
"""Rows that are no rivals."""


def rivals(t: Tables) -> list[str]:
    rows = t.rows("rivals/table1", backbone=BACKBONE, turns=0)
    told, overall = (rows[rows["metric"] == metric].set_index("method") for metric in ("auc_told", "overall"))
    others = [name for name in told.index if name not in BESIDE]
    index = t.row("rivals/retrieval", split="test")
    retrieved, ours = told.loc[RETRIEVED], told.loc["PrefMoE"]
    beside = t.paired(RETRIEVED, "auc_told", "rivals")
    holds(beside["high"] < 0 and told_apart(beside), "who looks up words is ahead")
    holds(retrieved["value"] == told.loc[others, "value"].max(), "of the rivals, who looks up words knows most")
    against = {name: t.paired(name, "overall", "rivals") for name in others}
    sure = {name: row["difference"] for name, row in against.items() if told_apart(row)}
    behind = [d for d in sure.values() if d > 0]
    holds([n for n, d in sure.items() if d < 0] == [RETRIEVED], "who looks up words is the only one ahead in accuracy")
    undecided = [name for name in others if name not in sure]
    fresh = rows[(rows["metric"] == "auc_untold_fresh") & rows["low"].notna()].set_index("method")
    above = set(fresh.index[fresh["low"] > 0.5])
    holds(above == {RETRIEVED, "PrefMoE"}, "one rival is above a guess in what no profile tells, and PrefMoE")
    guessing = [name for name in others if told.loc[name, "low"] <= 0.5]
    unseen = t.rows("rivals/unseen", backbone=BACKBONE, turns=0, metric="overall").set_index("method")["value"]
    lost = {name: overall.loc[name, "value"] - unseen[name] for name in others if name in unseen.index}
    most = max(lost, key=lambda name: lost[name])
    return [
        f"An index that nobody trained finds the right entry of a profile first for {dot(index['first'])} "
        f"[{dot(index['first_low'])}, {dot(index['first_high'])}] of {int(index['n'])} test questions; who is shown "
        f"what it finds has, of what profiles tell, an AUC of {around(retrieved)}, PrefMoE {around(ours)}: "
        f"{around(beside, 3, 'difference')}, after Holm's correction too (p = {dot(beside['p_users_holm'], 3)}).",
        f"In overall accuracy PrefMoE is ahead of {len(behind)} of {len(others)} rivals, by {dot(min(behind), 3)} to "
        f"{dot(max(behind), 3)}, behind {RETRIEVED} by {dot(-sure[RETRIEVED], 3)}, and not told apart from "
        f"{listed(undecided)} (interval, and test with Holm's correction).",
        f"About told likes {len(guessing)} of {len(others)} rivals are not above a guess, .5, by their intervals: "
        f"{', '.join(f'{name} ({around(told.loc[name])})' for name in guessing)}; name-only LoRA, "
        f"{around(told.loc['LoRA'])}, {'is not either' if told.loc['LoRA', 'low'] <= 0.5 else 'is'}.",
        f"Of what no profile tells and nobody was asked, where a perfect reader of profiles is at .5, {RETRIEVED} have "
        f"{around(fresh.loc[RETRIEVED], 3)}, PrefMoE {around(fresh.loc['PrefMoE'], 3)}: the only two of {len(fresh)} "
        "rows above a guess, not corrected for their number; a statement may say of which taste group somebody is.",
        f"Users without training questions cost {most} most, in points: from {dot(overall.loc[most, 'value'])} of all "
        f"questions to {dot(unseen[most])}; they are few, and the falls were not tested against one another.",
    ]
