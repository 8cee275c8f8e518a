"""What came out of the notebooks about choices between pictures (`conclusions`)."""

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis.text import told_apart


def known(t: Tables) -> list[str]:
    best, reader, first, crowd = (
        t.choices(*which)
        for which in (
            ("Best possible", "all", 0), ("Ideal reader of the history",),
            ("Ideal reader of the history", "all", 1), ("Population's choice", "all", 0),
        )
    )  # fmt: skip
    holds(crowd < first < reader < best, "bounds are in their order")
    where = {"method": "Ideal reader of the history", "users": "all", "n_ref": 8}
    theirs, own = (t.row("preference-mini/collapse", measure=m, **where)["value"] for m in ("population", "user"))
    return [
        f"Nobody can name the liked of two pictures in more than {dot(best)} of the cases; whoever knows the "
        f"population alone does in {dot(crowd)}.",
        f"One choice of history brings an ideal reader to {dot(first)}, eight to {dot(reader)}.",
        f"Where the population's favourite of four is not the user's, that reader names the population's in "
        f"{dot(theirs)} and the user's in {dot(own)}.",
    ]


def liked(t: Tables) -> list[str]:
    def against(baseline: str, method: str = "Prototypes") -> pd.Series:
        return t.row("preference-mini/comparisons", method=method, baseline=baseline, n_ref=8, candidates=2)

    seen, unseen = (t.choices("Prototypes", users) for users in ("seen", "unseen"))
    holds(abs(seen - unseen) < 0.02, "users who were trained on are not known better")
    prompts, pairs = against("Choices alone", "+ prompts"), against("+ prompts", "+ losses of pairs")
    worth, whole, viper = against("+ losses of pairs"), against("Choices alone"), against("ViPer-like")
    holds(not any(map(told_apart, (prompts, pairs, worth, whole))), "no part is told apart from nothing")
    crowd, reader = t.choices("Population's choice", n_ref=0), t.choices("Ideal reader of the history")
    told = "told apart" if told_apart(viper) else "not told apart"
    linear = against("Low rank")
    reads = [t.choices(f"Low rank{how}", "seen", n) for how, n in (("", 8), (", learned", 0))]
    holds(linear["difference"] < 0 and not told_apart(linear), "a linear reader is ahead, not told apart")
    return [
        f"After eight choices the complete method names the liked of two pictures in {dot(seen)} of the cases of "
        f"users who were trained "
        f"on, and in {dot(unseen)} of others; the population's choice {dot(crowd)}, an ideal reader {dot(reader)}.",
        f"That is not told apart from learning by choices alone: {around(whole, 3, 'difference')}. Nor is any part "
        f"from the row before it: prompts {around(prompts, 3, 'difference')}, losses of pairs "
        f"{around(pairs, 3, 'difference')}, prototypes {around(worth, 3, 'difference')}.",
        f"ViPer-like is {around(viper, 3, 'difference')} behind, {told} after correction; a linear reader of the "
        "same history and pictures (low rank) is ahead, not told apart after correction either: the complete method "
        f"minus it is {around(linear, 3, 'difference')}; of seen users it names {dot(reads[0])}, and {dot(reads[1])} "
        "where it has learned them from their training choices.",
    ]


def prototypes(t: Tables) -> list[str]:
    attention = t.rows("preference-mini/prototype_attention").groupby(["user", "order"])["attention"].sum().mean()
    changes = t.rows("preference-mini/order_of_history")["changes"].mean()
    between, alike, near = (
        t.row("preference-mini/prototype_measures", measure=name)
        for name in ("attention between users", "like-minded users look more alike",
                     "a liked target's neighbours are the same user's")
    )  # fmt: skip
    holds(between["value"] > between["chance"] and near["low"] > near["chance"], "users differ a little")
    holds(attention < 0.05, "prototypes get little attention")
    holds(alike["value"] < alike["chance_high"], "like-minded users do not look alike")
    random = t.rows("preference-mini/random_prototypes").query("prototypes != 'learned'")
    holds((random["low"] < 0).all() and random["high"].max() < 0.02, "random prototypes answer as well, nearly")
    beside = " and ".join(around(row, 3, "learned_minus") for _, row in random.iterrows())
    return [
        f"In the layer that gives them most, prototypes get {100 * attention:.1f} % of a target picture's attention, "
        f"of whose variance {dot(between['value'])} lies between users, where {dot(between['chance'])} would if users "
        "did not matter.",
        f"Like-minded users do not look more alike than others: in {dot(alike['value'], 3)} of the comparisons, where "
        f"{dot(alike['chance_low'], 3)} to {dot(alike['chance_high'], 3)} is what knowing no groups gives, so that the "
        "paper's Figure 3 is not found again.",
        f"Random vectors of the same sizes in their place get {100 * random['attention'].min():.1f} to "
        f"{100 * random['attention'].max():.1f} %, of whose variance {dot(random['between_users'].min())} to "
        f"{dot(random['between_users'].max())} lies between users; that the learned ones name the "
        f"liked picture more often is not shown (one training, two drawings): {beside}.",
        f"The mere order of a seen user's history decides against the majority in {100 * changes:.1f} % of the "
        "readings.",
        f"Of a liked target's ten nearest neighbours {around(near)} are the same user's, by chance "
        f"{dot(near['chance'])}: a trace, not a map of tastes.",
    ]


def history(t: Tables) -> list[str]:
    one, eight = (t.choices("Prototypes", n_ref=n) for n in (1, 8))
    first, last = (t.choices("Ideal reader of the history", n_ref=n) for n in (1, 8))
    near, far = (t.choices("Neighbours in the history", n_ref=n) for n in (1, 8))
    holds(0 < eight - one < last - first, "the model gains less than the ideal reader")
    holds(far - near > eight - one, "neighbours gain more from a lower start")
    gain = t.row("preference-mini/more_history", method="Prototypes", users="all")
    every = t.rows("preference-mini/more_history", users="all")
    holds(told_apart(every).all() and (every["low"] > 0).all(), "whoever reads a history gains by a longer one")
    gaps = [t.row("preference-mini/table2", method="Prototypes", n_ref=n) for n in (1, 8)]
    holds(all(gap["low"] < 0 < gap["high"] for gap in gaps), "seen and unseen users are not told apart")
    return [
        f"From one choice of history to eight the complete method rises from {dot(one)} to {dot(eight)} over all "
        f"users, an ideal reader from {dot(first)} to {dot(last)}: it reads its history, and less well than could be.",
        f"On the same choices that is {around(gain, 3, 'difference')}; every row that reads a history is told "
        "apart from itself after one choice.",
        f"Neighbours in the history, which learn nothing, rise from {dot(near)} to {dot(far)}.",
        f"Unseen minus seen users is {around(gaps[0], 3, 'difference')} after one choice and "
        f"{around(gaps[1], 3, 'difference')} after eight: not told apart.",
    ]
