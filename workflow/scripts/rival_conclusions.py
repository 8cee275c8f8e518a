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
    behind, ahead = ([n for n, d in sure.items() if (d > 0) == side] for side in (True, False))
    undecided = [name for name in others if name not in sure]
    guessing = [name for name in others if told.loc[name, "low"] <= 0.5]
    unseen = t.rows("rivals/unseen", backbone=BACKBONE, turns=0, metric="overall").set_index("method")["value"]
    lost = {name: overall.loc[name, "value"] - unseen[name] for name in others if name in unseen.index}
    most = max(lost, key=lambda name: lost[name])
    return [
        f"An index that nobody trained finds the right entry of a profile first for {dot(index['first'])} of "
        f"{int(index['n'])} test questions. Who is shown what it finds tells users apart by what profiles say: AUC "
        f"{around(retrieved)}, PrefMoE {around(ours)}; PrefMoE minus it is {around(beside, 3, 'difference')}: behind, "
        f"after Holm's correction too (p = {dot(beside['p_users_holm'], 3)}).",
        f"In overall accuracy PrefMoE is ahead of {listed(behind)}, behind {listed(ahead)}, and not told apart from "
        f"{listed(undecided)} (by the interval, and by the test with Holm's correction, .05).",
        f"About told likes the interval reaches a guess, .5, of the {len(others)} rivals for {listed(guessing)}; for "
        f"name-only LoRA it {'does' if told.loc['LoRA', 'low'] <= 0.5 else 'does not'}.",
        f"Users without training questions cost {most} most, in points: from {dot(overall.loc[most, 'value'])} of all "
        f"questions to {dot(unseen[most])}; they are few, and the falls were not tested against one another.",
    ]
