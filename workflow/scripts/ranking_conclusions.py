"""What came out of the notebook about recommendation (`conclusions`)."""

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis.text import told_apart


def value(t: Tables, method: str, measure: str = "ndcg", liked: str = "all", k: int = 10) -> pd.Series:
    """A row about trained users and things that they were not asked about."""
    where = {"users": "trained", "items": "fresh", "liked": liked, "measure": measure, "k": k}
    return t.row("ranking/ranking", method=method, **where)


def minus(t: Tables, method: str, baseline: str, measure: str = "ndcg", liked: str = "all") -> pd.Series:
    where = {"users": "trained", "items": "fresh", "liked": liked, "measure": measure, "k": 10}
    return t.row("ranking/ranking_comparisons", method=method, baseline=baseline, **where)


def recommendation(t: Tables) -> list[str]:
    full, popular, chance = (value(t, method) for method in ("PrefMoE", "Popularity", "Chance"))
    above = {}
    for baseline in ("Popularity", "ALS"):
        rows = t.rows("ranking/ranking_comparisons", baseline=baseline, measure="ndcg", k=10, liked="all")
        rows = rows[(rows["users"] == "trained") & (rows["items"] == "fresh") & told_apart(rows)]
        above[baseline] = list(rows.loc[rows["difference"] > 0, "method"])
    holds(above == {"Popularity": ["ALS"], "ALS": []}, "ALS alone is told apart above popularity, and nobody above ALS")
    lead = minus(t, "ALS", "Popularity")
    tuned_reader = minus(t, "LoRA with profile", "ALS")
    beside, reader = minus(t, "PrefMoE", "Popularity"), minus(t, "LoRA with profile", "Popularity")
    holds(reader["low"] > 0, "the reader is above popularity by its interval")
    holds(beside["difference"] < 0 and told_apart(beside), "PrefMoE is below the popular list")
    told, untold = (value(t, "Non-tuned with profile", liked=liked) for liked in ("told", "untold"))
    nobody, listed = (value(t, method, liked="untold") for method in ("Chance", "Popularity"))
    holds(told["low"] > 0.9 and untold["high"] < listed["low"], "who only reads knows little that is not told")
    learned = minus(t, "PrefMoE", "LoRA that reads frozen anchors", liked="untold")
    still = minus(t, "PrefMoE", "Popularity", liked="untold")
    below = learned["difference"] < 0 and still["difference"] < 0 and told_apart(still)
    holds(below, "PrefMoE is no better than frozen anchors, and below popularity, in untold likes")
    lift = value(t, "LoRA", "lift", k=5)  # follows seed and pictures, so that nothing is concluded from it
    covered = [value(t, method, "coverage", k=5)["value"] for method in ("LoRA", "PrefMoE", "True taste")]
    holds(2 * covered[0] < covered[1], "name-only LoRA repeats itself")
    return [
        f"The popular list is hard to beat: its NDCG is {dot(popular['value'])} (chance {dot(chance['value'])}), "
        f"PrefMoE's {dot(full['value'])}, below it ({around(beside, name='difference')}); ALS alone, a tuned "
        f"recommender that sees answers, is told apart above it ({around(lead, name='difference')}), LoRA with the "
        f"profile's text by its interval ({around(reader, name='difference')}, p = {dot(reader['p_users_holm'], 3)}; "
        f"minus ALS {around(tuned_reader, name='difference')}).",
        f"Who only reads finds what is told (NDCG of told likes {dot(told['value'])}) and little else: NDCG of likes "
        f"that no profile tells is {dot(untold['value'])}, chance {dot(nobody['value'])}, the popular list "
        f"{dot(listed['value'])}.",
        "In untold likes PrefMoE is no better than LoRA that reads frozen anchors, "
        f"{around(learned, name='difference')} (the same sign in {learned['agree']} of {learned['cases']} pairs of "
        f"seed and gallery), and it is below the popular list, {around(still, name='difference')}, told apart: that "
        "its users were trained does not show here.",
        f"Name-only LoRA recommends the same to everybody: five things for each of {nobody['n']:.0f} users are "
        f"{dot(covered[0])} of all things, PrefMoE's {dot(covered[1])}; five that each user likes would be "
        f"{dot(covered[2])} (the row True taste of ranking.csv, not shown above). How popular LoRA's five are (lift "
        f"{around(lift)}) follows seed and pictures (docs/results.md), and says nothing about it.",
    ]
