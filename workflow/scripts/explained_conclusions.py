"""What came out of notebooks that explain, where a table holds the number that they are about (`conclusions`)."""

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis import published
from prefmoe.analysis.statistics import wilson_interval
from prefmoe.analysis.text import told_apart
from prefmoe.backbones import cards

TEXT = "LoRA with profile"


def paper(t: Tables) -> list[str]:
    table = published.read("table1")
    table = table[table["turns"] == 0]
    medians = table.groupby(["type", "group", "metric"])["value"].median()

    def of(kind: str, metric: str, group: str | None = None) -> float:
        found = medians[kind].xs(metric, level="metric")
        return float(found[group] if group else found.drop("PrefMoE", errors="ignore").iloc[0])

    frozen, tuned = (of(kind, "collapse") for kind in ("NT", "FFT"))
    full, others = of("PEFT", "collapse", "PrefMoE"), of("PEFT", "collapse")
    holds(full < others < tuned < frozen, "printed collapse falls from the non-tuned models to PrefMoE")
    steps = published.read("table2").query("turns == 0").pivot(index="components", columns="metric", values="value")
    one, factors, whole = (steps.loc[name] for name in ("E", "EP", "EPICDM"))
    falls = steps["collapse"].diff().drop("E")
    holds(falls.idxmin() == "EP", "factors are the ablation's largest step")
    return [
        f"As printed, collapse is {dot(frozen)} in the median of the non-tuned models, {dot(tuned)} after full "
        f"fine-tuning, {dot(others)} in the other parameter-efficient methods and {dot(full)} in PrefMoE's rows.",
        f"Preference accuracy goes the other way: {dot(of('NT', 'preference'))}, {dot(of('FFT', 'preference'))}, "
        f"{dot(of('PEFT', 'preference'))} and {dot(of('PEFT', 'preference', 'PrefMoE'))}.",
        f"In the printed ablation factors alone take collapse from {dot(one['collapse'])} to "
        f"{dot(factors['collapse'])}; all later steps together end at {dot(whole['collapse'])}.",
    ]


def by_hand(t: Tables) -> list[str]:
    cosine = r"mean cosine (-?[\d.]+) if centred, ([\d.]+) as published"
    centred, published_ = map(float, t.printed("05", cosine))
    holds(abs(centred) < 0.1 and published_ > 0.9, "published residuals are alike and centred ones are not")
    least, most = map(float, t.printed("05", r"Corrections use ([\d.]+) to ([\d.]+) of their bound"))
    holds(most < 0.5, "training uses little of what it may change")
    fall = r"answer's loss: ([\d.]+) before, ([\d.]+) after\. All other terms together: ([\d.]+) before, ([\d.]+) after"
    before, after, others, later = map(float, t.printed("05", fall))
    holds(after < before / 10 and later > others / 2, "what falls is the answer's loss")
    return [
        f"As published, the residuals of two users have a mean cosine of {dot(published_)}, since each holds the mean "
        f"of all; centred ones have {dot(centred)}, and what is left is what tells users apart.",
        f"Training uses {dot(least)} to {dot(most)} of what corrections may change (rms): a user is what the frozen "
        "backbone makes of the profile.",
        f"On sixteen training questions the answer's loss falls from {dot(before, 3)} to {dot(after, 3)}; all other "
        f"terms together go from {dot(others, 3)} to {dot(later, 3)}, because the anchors nearly meet them already.",
    ]


def backbones(t: Tables) -> list[str]:
    measured = cards.abilities().set_index(["ability", "backbone"])
    low, _ = wilson_interval(measured["value"], measured["n"])
    clear = measured["chance"] < low
    holds(clear.all() and measured["chance"].notna().all(), "every ability is above chance")

    def said(ability: str) -> str:
        return " and ".join(map(dot, measured.loc[ability, "value"]))

    text, prefix, choice = (said(f"preference {kind}") for kind in ("yes/no", "yes/no from a soft prefix", "choice"))
    described, shown = (said(f"presence from {what}") for what in ("description", "portrait"))
    names = " and ".join(measured.index.get_level_values("backbone").unique())
    return [
        f"All {len(measured)} abilities of {names} that were measured are above chance, by 95 % intervals: no method "
        "of the later notebooks fails because pictures or profiles cannot be read at all.",
        f"What an invented person likes is answered with yes or no from a text in {text} of the cases (of four things "
        f"in {choice}), from a soft prefix, practised, in {prefix}; a guess is .50.",
        f"Whether somebody is in a picture is told by a portrait in {shown}, by a description in no more than "
        f"{described}: recognition that rests on words has little to stand on.",
    ]


def benchmark(t: Tables) -> list[str]:
    asked = t.rows("mini/dataset_statistics").groupby("question_type")["count"].sum()
    about = asked[asked.index.str.startswith("preference")].sum()
    test = t.rows("mini/told_statistics", split="test", question_type="preference_yesno")
    liked = test[test["liked"] == "yes"].groupby("told")["count"].sum()
    fresh = test[(test["liked"] == "yes") & (test["told"] == "untold") & (test["fresh"] == 1)]["count"].sum()
    sharing = t.rows("mini/breakdown", metric="collapse", grouping="bucket", turns=0).drop_duplicates("group")
    sizes = sharing.set_index("group")["n"]
    wide = next(name for name in sizes.index if name.startswith("large"))
    holds(sizes[wide] > sizes.drop(wide).sum() / 2, "most collapse questions are about widely held preferences")
    return [
        f"Of {asked.sum()} questions {about} are about preferences, a share of {dot(about / asked.sum())}; the others "
        "ask who is in a picture.",
        f"Of {liked.sum()} yes/no test questions about something that the user likes, the profile tells "
        f"{liked['told']} and leaves {liked['untold']} untold; {fresh} of these were never asked in training: "
        "only there would knowing somebody go beyond reading and remembering.",
        f"Of the {int(sizes.sum())} questions that measure collapse, {int(sizes[wide])} are about preferences which "
        f"nine users or more hold, a share of {dot(sizes[wide] / sizes.sum())}.",
    ]


def two_users(t: Tables) -> list[str]:
    full, name = (t.main(method, "auc_same") for method in ("PrefMoE", "LoRA"))
    holds(full["low"] > 0.6 and name["low"] < 0.52, "PrefMoE tells two users apart, names alone hardly do")
    crowd = t.rows("mini/table1", method="Popular choice", metric="auc_same", turns=0).iloc[0]
    holds(crowd["value"] == 0.5, "who knows nobody is at .5")
    pattern = r"the same answer to both users of (\d) of (\d) pictures, right about both users of (\d)"
    alone, ours, reads = (list(map(int, t.printed("15", rf"\n?{m}: {pattern}"))) for m in ("LoRA", "PrefMoE", TEXT))
    holds(alone[0] == alone[1] > ours[0], "names alone answer alike about both users")
    return [
        f"Names alone (LoRA) give both users of {alone[0]} of {alone[1]} pictures the same answer, PrefMoE of "
        f"{ours[0]}, right about both of {ours[2]}; LoRA that is shown the profile is right about both of {reads[2]}.",
        f"Of all pairs of users who are asked the same ({int(full['n'])} questions stand in one), PrefMoE gives the "
        f"one who likes it the higher probability in {around(full)}; the popular choice, which says the same of both, "
        f"has {dot(crowd['value'])}.",
        f"LoRA, which reads the name alone, has {around(name, 3)}: ten questions can look better or worse.",
        f"LoRA that is shown the profile as text has {around(t.main(TEXT, 'auc_same'))}; PrefMoE minus it, over the "
        f"same pairs, is {around(t.paired(TEXT, 'auc_same'), 3, 'difference')}.",
    ]


def prototypes(t: Tables) -> list[str]:
    def against(baseline: str, method: str) -> pd.Series:
        where = {"n_ref": 8, "users": "all", "candidates": 2}
        return t.row("preference-mini/comparisons", method=method, baseline=baseline, **where)

    worth, pairs = against("+ losses of pairs", "Prototypes"), against("+ prompts", "+ losses of pairs")
    holds(not told_apart(worth) and not told_apart(pairs), "neither can be told from nothing")
    full, base = (t.choices(name) for name in ("+ losses of pairs", "+ prompts"))
    ideal = t.choices("Ideal reader of the history")
    holds(ideal > max(full, base), "an ideal reader is ahead")
    return [
        f"In notebook 19 one of two pictures is named rightly in {dot(full, 3)} with the losses of pairs and in "
        f"{dot(base, 3)} without: {around(pairs, 3, 'difference')}, not told apart from nothing.",
        f"Prototypes, trained alone in the second stage, change that by {around(worth, 3, 'difference')}: not told "
        "apart from nothing either.",
        f"An ideal reader of the same histories names {dot(ideal)} rightly: more can be known than any of these reads.",
    ]


def one_run(t: Tables) -> list[str]:
    def at(users: str, n_ref: int, method: str = "+ losses of pairs") -> pd.Series:
        where = {"method": method, "users": users, "n_ref": n_ref, "candidates": 2, "k": 1}
        return t.row("preference-mini/table1", **where)

    few, many, unseen = at("seen", 1), at("seen", 8), at("unseen", 8)
    holds(many["low"] > few["high"], "more history is better")
    holds(unseen["high"] > many["low"], "users whom nobody trained on are not told apart")
    holds(many["seeds"] == 3, "three trainings are shown")
    crowd = at("seen", 0, "Population's choice")
    holds(many["low"] > crowd["high"], "a history tells more than the population")
    return [
        f"The three trainings shown here name, of users whom they were trained on, the liked of two pictures in "
        f"{around(few)} of the cases after one choice of history and in {around(many)} after eight.",
        f"Of users whom they were not trained on, in {around(unseen)} after eight: what was learned is how to read a "
        "history, not who the users are.",
        f"Who names what most people like, and reads no history (notebook 19), is right in {around(crowd)}.",
    ]
