"""What came out: sentences at the end of the notebooks, with the numbers of the committed tables, as long as they hold.

`python workflow/scripts/publish.py pages` writes them. A sentence that concludes something says under which condition
it does; where the tables no longer meet it, the command says which sentence has to be written anew.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import choice_conclusions as choices
import explained_conclusions as explained
import nbformat
import pandas as pd
import picture_conclusions as pictures
import protocol_conclusions as protocol
import ranking_conclusions as ranking
import rival_conclusions as rivals
from committed import Tables, around, dot, holds

from prefmoe.analysis import audit, published, survey
from prefmoe.analysis.answers import NO_BACKBONE, TableError
from prefmoe.analysis.text import ENOUGH, seeds_in_words, told_apart
from prefmoe.config import ROOT
from prefmoe.system.files import whole_file

CELL = "what-came-out"
TITLE = "## What came out"


def _collapse(t: Tables) -> list[str]:
    name, full, reader = (t.main(m, "auc_same") for m in ("LoRA", "PrefMoE", "LoRA with profile"))
    gain, there = (t.paired("LoRA", "auc_same", backbone=b) for b in ("llava-mini", "qwen2.5-vl-mini"))
    holds(name["low"] < 0.52 and gain["low"] > 0, "names alone hardly tell anybody apart, and PrefMoE does")
    holds(told_apart(there) and not told_apart(gain), "after Holm's correction one backbone tells the two apart")
    reads = t.paired("LoRA with profile", "auc_same")
    holds(reader["value"] > full["value"] and not told_apart(reads), "the reader is ahead, not told apart from PrefMoE")
    fresh, other = (t.main("PrefMoE", "auc_untold_fresh", b) for b in ("llava-mini", "qwen2.5-vl-mini"))
    holds(fresh["low"] > 0.5 > other["low"], "of what nobody was told one interval leaves .5 out, the other does not")
    frozen = t.paired("LoRA that reads frozen anchors", "auc_untold_fresh")
    holds(frozen["low"] < 0 < frozen["high"], "frozen anchors are not told apart")
    named = t.main("Full fine-tuning", "auc_untold_fresh")
    holds(abs(named["value"] - fresh["value"]) < 0.02, "a row that is shown names alone is as high")
    holds(all(t.refuted("b", b) for b in ("llava-mini", "qwen2.5-vl-mini")), "claim (b) is refuted on both backbones")
    where = {"backbone": "llava-mini", "turns": 0, "grouping": "popularity"}
    parts = {
        (method, group): t.row("mini/breakdown", metric="collapse", method=method, group=group, **where)
        for method in ("LoRA", "PrefMoE")
        for group in ("rare", "popular")
    }
    rises = {m: parts[m, "popular"]["low"] - parts[m, "rare"]["high"] for m in ("LoRA", "PrefMoE")}
    holds(min(rises.values()) > 0, "collapse rises with popularity in both")
    holds(rises["LoRA"] > rises["PrefMoE"], "LoRA's rises more")
    where |= {"metric": "recall", "method": "LoRA"}
    small = t.row("mini/breakdown", group="small_<=4", **where | {"grouping": "bucket"})
    rare = int(t.row("mini/breakdown", group="rare", **where)["n"])
    holds(rare < ENOUGH and small["n"] < ENOUGH, "there are few questions about rare likes")
    values = {key: dot(row["value"]) for key, row in parts.items()}
    return [
        f"Whom it is asked about is hardly known to a model that is shown names alone: LoRA's AUC is {around(name, 3)} "
        "after all its training.",
        f"PrefMoE's is {around(full)}, ahead by {around(gain, 3, 'difference')}, which the test corrected for all rows "
        f"does not tell apart (p = {dot(gain['p_users_holm'])}), on the other backbone by "
        f"{around(there, 3, 'difference')}, which it does; LoRA which reads the profile's text has {around(reader)}, "
        "not told apart from PrefMoE.",
        f"LoRA answers for the population: from rare to popular things its collapse rises from "
        f"{values['LoRA', 'rare']} to {values['LoRA', 'popular']}, and PrefMoE's, which knows its users in part, from "
        f"{values['PrefMoE', 'rare']} to {values['PrefMoE', 'popular']}.",
        "Claim (b), that users are learned beyond their profiles, is refuted by its rule: of what no "
        f"profile tells and nobody was asked PrefMoE's AUC is {around(fresh, 3)} on one backbone, where frozen anchors "
        f"are not told apart ({around(frozen, 3, 'difference')}) and full fine-tuning on names alone has "
        f"{dot(named['value'], 3)}, and {around(other, 3)} on the other, which includes a guess.",
        f"Of recall at the rare end nothing can be said: {rare} of its questions are about rare things, and "
        f"{int(small['n'])} about preferences that at most four users hold.",
    ]


def _training(t: Tables) -> list[str]:
    pattern = r"Loss of the answer.*? (\d\.\d+) to (\d\.\d+); all other terms together (\d\.\d+) to (\d\.\d+)"
    first, last, others, at_last = map(float, t.printed("06", pattern))
    holds(last < first / 2, "the answer loss falls by half")
    holds(others < first / 2 and last < at_last, "the other terms are small at first, and not at last")
    full = t.main("PrefMoE", "sensitivity")
    return [
        f"From the first tenth of the steps to the last the loss of the answer falls from {dot(first)} to "
        f"{dot(last, 3)}. All other terms together, weighted, go from {dot(others)} to {dot(at_last, 3)}: small "
        "beside it at first, since anchors nearly meet what the contrasts ask for before any training, and no smaller "
        "at last.",
        f"After 800 steps PrefMoE's sensitivity is {around(full)} (mean of {int(full['seeds'])} seeds). It is no "
        "measure of knowing users: see notebook 4.",
    ]


def _table(t: Tables) -> list[str]:
    rows = t.rows("mini/table1", backbone="llava-mini", turns=0, metric="auc_same").set_index("method")
    rivals = [m for m in rows.index if m != "PrefMoE"]
    found = pd.DataFrame([t.paired(m, "auc_same") for m in rivals], index=rivals)
    sure = found.loc[told_apart(found), "difference"].to_dict()
    better, worse = [m for m, d in sure.items() if d > 0], [m for m, d in sure.items() if d < 0]
    text = rows.loc[worse, "information"].str.contains("text|statement")
    holds(bool(text.all()), "only readers of the text are ahead in the AUC")
    popular, full = t.main("Popular choice", "preference", NO_BACKBONE), t.main("PrefMoE", "preference")
    holds(not told_apart(t.paired("Popular choice", "preference")), "the popular choice is not told apart from PrefMoE")
    people = [t.main(m, "profile")["value"] for m in ("PrefMoE", "LoRA")]
    recognised = people[0] > people[1] and told_apart(t.paired("LoRA", "profile"))
    holds(recognised, "people are recognised better than by LoRA")
    there = [t.main(m, "profile", "qwen2.5-vl-mini")["value"] for m in ("PrefMoE", "LoRA")]
    holds(not told_apart(t.paired("LoRA", "profile", backbone="qwen2.5-vl-mini")), "on the other backbone they are not")
    frozen = t.paired("LoRA that reads frozen anchors", "auc_same")
    holds(not told_apart(frozen), "frozen anchors are not told apart")
    return [
        f"In the AUC over pairs of users PrefMoE is better than {len(better)} of {len(rivals)} other methods, worse "
        f"than {f'{len(worse)}, all of which read the text' if worse else 'none'}, and not told apart from "
        f"{len(rivals) - len(sure)} (by the interval, and by the test with Holm's correction, .05).",
        "LoRA that reads frozen anchors is among those that are not told apart: the difference is "
        f"{around(frozen, 3, 'difference')}. That users were learned from answers is not shown.",
        f"In preference accuracy the popular choice, which knows nobody, has {dot(popular['value'], 3)} and PrefMoE "
        f"{dot(full['value'], 3)}: not told apart.",
        f"People are recognised on the LLaVA miniature: {dot(people[0])} of these questions, and {dot(people[1])} by "
        f"LoRA with names alone; on the Qwen2.5-VL miniature it is {dot(there[0])} beside {dot(there[1])}, not told "
        "apart.",
    ]


def _ablation(t: Tables) -> list[str]:
    steps = {
        "E": "User embedding only", "EP": "+ profile and preference factors", "EPI": "+ imbalance-aware term",
        "EPIC": "+ counterfactual users", "EPICD": "+ decorrelation",
    }  # fmt: skip
    auc = {key: t.paired(label, "auc_same") for key, label in steps.items()}
    holds(not any(told_apart(row) for row in auc.values()), "no row is told apart from the whole in AUC")
    right = {key: t.paired(label, "overall") for key, label in steps.items()}
    behind = [key for key, row in right.items() if told_apart(row) and row["difference"] > 0]
    holds(behind == ["E", "EPIC"], "the whole is ahead of E and of E P I C in accuracy, told apart")
    whole = t.rows("mini/table2", metric="overall", turns=0)
    rows = whole.set_index("components")["value"]
    between = rows[["EP", "EPI", "EPIC", "EPICD"]]
    holds(rows["E"] < between.min() and between.max() < rows["EPICDM"], "E is last and the whole first")
    holds(not told_apart(right["EP"]), "the whole is not told apart from E P")
    spread = t.rows("mini/table1_seeds", backbone="llava-mini", turns=0, metric="profile").set_index("method")["sd"]
    return [
        f"Accuracy goes from {dot(rows['E'], 3)} (E) to {dot(rows['EP'], 3)} with factors, and the whole has "
        f"{dot(rows['EPICDM'], 3)}: {around(right['E'], 3, 'difference')} above E, told apart from it, and "
        f"{around(right['EP'], 3, 'difference')} above E P, which is not.",
        f"No loss is shown to help: the rows between lie at {dot(between.min(), 3)} to {dot(between.max(), 3)}, and of "
        f"these only E P I C is told apart from the whole ({around(right['EPIC'], 3, 'difference')}). What a training "
        f"makes of a row differs as much: recognition in E P I C D has a standard deviation of "
        f"{dot(spread['+ decorrelation'], 3)} over seeds.",
        f"In the AUC no row is told apart from the whole (E {around(auc['E'], 3, 'difference')}, E P "
        f"{around(auc['EP'], 3, 'difference')}). Behind the rows: {seeds_in_words(whole, 'components')}.",
    ]


def _space(t: Tables) -> list[str]:
    def purity(colour: str, stage: str) -> pd.Series:
        return t.row("mini/neighbourhood_purity", colour=colour, stage=stage, tokens="residual")

    before, after = purity("facet", "before"), purity("facet", "after")
    group = purity("group", "before"), purity("group", "after")
    holds(group[0]["value"] == group[0]["best"] == group[1]["value"], "groups are at their ceiling before and after")
    holds(abs(before["value"] - after["value"]) < 0.02, "facets are as pure after as before")
    copies = r"lie on another: .*?([\d.]+) \({kind}, before\),.*? ([\d.]+) \({kind}, after\)"
    token, rest = (
        tuple(map(float, t.printed("09", copies.format(kind=kind)))) for kind in ("full token", "residual")
    )
    holds(min(token) > 0.9 and rest[0] > 0.9, "points lie on one another, but for residuals after training")
    pattern = r"after training: same group ([\d.]+), other group (-?[\d.]+)"
    same, other = map(float, t.printed("09", pattern))
    n = int(after["n"])
    return [
        "Training leaves the space as the anchors made it: a residual's neighbours are of its facet in "
        f"{dot(before['value'], 3)} of the cases before and {dot(after['value'], 3)} after, of its group in "
        f"{dot(group[0]['value'], 3)} before and after, which is the best possible.",
        f"Residuals of one group have a cosine of {dot(same, 3)}, of other groups {dot(other, 3)}, much as before "
        f"training.",
        f"The rosettes are no finding. Users of one group have the same anchor: of {n} full tokens {dot(token[0])} lie "
        f"within a hundredth of the picture's width from another one before training and {dot(token[1])} after, of "
        f"residuals {dot(rest[0])} and {dot(rest[1])}, and t-SNE arranges near copies in rings.",
    ]


def _attention(t: Tables) -> list[str]:
    above = int(t.printed("10", r"The interval lies above the attention elsewhere in (\d) of 5 facets")[0])
    holds(above == 0, "attention to the own facet's residual is no higher in any facet")
    share, token = t.printed("10", r"users: most from the answer to (p \w+) \(([\d.]+) %\)")[::-1]
    holds(token.startswith("p "), "most attention goes to a prototype")
    where = {"method": "PrefMoE", "backbone": "llava-mini", "metric": "auc_told"}
    plain, other = (t.row("mini/controls", control=c, **where) for c in ("none", "other_user"))
    holds(other["low"] < 0.5 < other["high"] < plain["low"], "another user's prefix takes the AUC to .5")
    return [
        f"In {above} of 5 facets is the answer's attention to the residual of the facet that is asked about told apart "
        "as higher than to the same token when another facet is asked about.",
        f"In the map of one picture and eight users the token that gets most, {share} %, is a prototype "
        f"({token.removeprefix('p ')}), the same for all users.",
        f"Yet the prefix decides: with somebody else's the AUC on what profiles tell falls from {around(plain)} "
        f"to {around(other)} "
        "(notebook 7); attention would not have told, and unit 6 of the course exchanges single residuals.",
    ]


def _routing(t: Tables) -> list[str]:
    gates = t.rows("mini/routing_gates").groupby(["router", "expert"])["value"]
    widest = (gates.max() - gates.min()).groupby("router").max()
    each = [float(gate) for gate in t.printed("11", r"seed 2\nentertainment" + 3 * r"\s+(0\.\d+)")]
    holds(max(each) > 2 * min(each), "seeds disagree about the entertainment expert")
    (difference,) = t.printed("11", r"own above elsewhere in \d of 5 facets, mean difference ([+-][\d.]+)")
    holds(widest["preference"] < 0.02 and abs(float(difference)) < 0.005, "the preference router does not route")
    holds(widest["task"] < 0.1, "the task router hardly routes")
    worth = t.paired("+ decorrelation", "overall")
    return [
        "The routers do not route by kind of question: between kinds, no mean gate of the preference router differs by "
        f"more than {dot(widest['preference'], 3)}, of the profile router by {dot(widest['profile'], 3)}, of the task "
        f"router by {dot(widest['task'], 3)}.",
        f"A question about a facet does not favour the facet's expert: by {dot(float(difference), 3)} on average. "
        "Which expert gets most is another one in every training (entertainment's mean gate "
        f"{', '.join(map(dot, each))}), so that a mean over seeds says little of an expert.",
        f"So what the mixture is worth (notebook 8: {around(worth, 3, 'difference')} of overall accuracy) does not "
        "come from other experts for other kinds of questions; whether gates differ between users was not asked here.",
    ]


def _audit(t: Tables) -> list[str]:
    table = published.read("table1")
    values, overall = audit.values(table), audit.overall(table)
    found = audit.recovered_denominators(table)
    holds(bool((found["recovered"] == found["questions"]).all()), "all four numbers of questions are recovered")
    constant = audit.turn_changes(table)["constant"].sum()
    n = ", ".join(f"{int(row.recovered)} {metric}" for metric, row in found.iterrows())
    worst = overall.iloc[0]
    return [
        f"The printed digits give the numbers of questions away: {n}.",
        f"{int((values['fits'] == 0).sum())} of {len(values)} printed values are no share of their questions, and "
        f"{int((overall['fits'] == 0).sum())} of {len(overall)} Overall values are not the mean of their parts; the "
        f"worst is printed {dot(worst['printed'], 4)} and computed {dot(worst['computed'], 4)}.",
        f"In {int(constant)} rows all three accuracies change by one and the same amount with small talk; such "
        f"rows are read without small talk.",
    ]


def _sure(t: Tables) -> list[str]:
    error = t.row("mini/detectable", backbone="llava-mini", turns=0, metric="overall", grouping="all")
    holds(error["paired"] < error["unpaired"], "pairing pays")
    talk = t.row("mini/turns", method="PrefMoE", backbone="llava-mini", turns=10, metric="overall")
    text = t.row("mini/turns", method="LoRA with profile", backbone="llava-mini", turns=10, metric="overall")
    seeds = t.row("mini/table1_seeds", method="PrefMoE", backbone="llava-mini", turns=0, metric="auc_same")
    where = {"backbone": "llava-mini", "turns": 0, "metric": "preference"}
    sure = t.row("mini/calibration", method="PrefMoE", **where)
    holds(sure["confidence"] > sure["accuracy"], "PrefMoE is too sure")
    change = f"{dot(talk['change'], 3)} [{dot(talk['change_low'], 3)}, {dot(talk['change_high'], 3)}]"
    theirs = f"{dot(text['change'], 3)} [{dot(text['change_low'], 3)}, {dot(text['change_high'], 3)}]"
    return [
        f"With {int(error['n'])} questions about {int(error['users'])} users a difference of "
        f"{dot(error['paired'], 3)} in overall accuracy can be "
        f"seen when both methods answer the same questions, {dot(error['unpaired'], 3)} when not; corrected for all "
        f"comparisons of the same questions it takes {dot(error['paired_corrected'], 3)} at the strictest step (seen "
        "in four of five repetitions; smaller ones may be told apart by luck or behind clearer ones).",
        f"PrefMoE's AUC differs between seeds by a standard deviation of {dot(seeds['sd'], 3)} (from "
        f"{dot(seeds['minimum'])} to {dot(seeds['maximum'])}).",
        f"Ten turns of small talk change PrefMoE's overall accuracy by {change}, and that of LoRA with profile by "
        f"{theirs}.",
        f"PrefMoE is too sure of preferences: confident by {dot(sure['confidence'])} on average, and right in "
        f"{dot(sure['accuracy'])}.",
    ]


def _map(t: Tables) -> list[str]:
    found = survey.read_map()
    numbers = survey.numbers(found, t.root / "figures").dropna(subset=["value"])
    cells = [cell for row in found.cells.values() for cell in row.values()]
    empty = [f"{application} by {way}" for application, row in found.cells.items() for way, c in row.items() if c.empty]
    above, below = numbers[numbers["low"] > numbers["chance"]], numbers[numbers["low"] <= numbers["chance"]]
    holds("PrefMoE" in " ".join(above["name"]) and 0 < len(below), "PrefMoE knows users, and something does not")
    short = below[below["high"] < below["chance"]]
    holds(0 < len(short) < len(below), "of those that are not above a guess some are below it")
    return [
        f"{len(cells) - len(empty)} of the survey's {len(cells)} cells can be run here; "
        + (f"nothing runs for {' and '.join(empty)}." if empty else "none is empty."),
        f"Of {len(numbers)} methods with a number, the whole interval of {len(above)} lies above what knowing nobody "
        f"is worth; it does not for {len(below)}, not all of which are above a guess: "
        + ", ".join(f"{n} in {of}" for of, n in below["application"].value_counts(sort=False).items())
        + " (marked in the map).",
        "The whole interval lies below it for " + "; ".join(_by_application(short)) + ": value, and behind the stroke "
        "what knowing nobody is worth.",
        "That takes what is behind the stroke as known; paired on the same users, as notebook 29 does, a difference "
        f"of {len(short)} may not be told apart.",
    ]


def _by_application(numbers: pd.DataFrame) -> Iterator[str]:
    for application, rows in numbers.groupby("application", sort=False):
        said = [f"{row.name} ({dot(row.value)} | {dot(row.chance)})" for row in rows.itertuples(index=False)]
        yield f"in {application} {', '.join(said)}"


CONCLUSIONS: dict[str, Callable[[Tables], list[str]]] = {
    "01": explained.paper, "02": explained.benchmark, "03": explained.backbones, "04": _collapse,
    "05": explained.by_hand, "06": _training, "07": _table, "08": _ablation, "09": _space,
    "10": _attention, "11": _routing, "12": _audit,
    "13": protocol.curves_and_choices, "14": _sure, "15": explained.two_users, "16": choices.known,
    "17": explained.prototypes, "18": explained.one_run, "19": choices.liked, "20": choices.prototypes,
    "21": choices.history, "22": pictures.drawer, "23": pictures.probes, "24": pictures.alignment,
    "25": pictures.branch, "26": pictures.pictures, "27": pictures.rewards, "28": rivals.rivals,
    "29": ranking.recommendation, "30": _map, "31": protocol.ladder,
}  # fmt: skip
"""The sentences of each notebook, by the beginning of its file name."""


def written(notebook: str, root: Path = ROOT) -> str:
    """The cell of a notebook. Raises TableError, naming the notebook, if a table is missing or a sentence does "
    "not hold."""
    try:
        sentences = CONCLUSIONS[notebook](Tables(root))
    except TableError as error:
        raise TableError(f"workflow/scripts/conclusions.py, notebook {notebook}: {error}") from error
    return "\n".join([TITLE, "", *(f"- {sentence}" for sentence in sentences)])


def with_conclusions(root: Path = ROOT) -> list[Path]:
    """Brings the cell `CELL` of every notebook up to date; a notebook without one gets it in front of its last cell.
    Returns the notebooks. Raises TableError: see `written`; then no notebook is changed."""
    paths = {name: next((root / "notebooks").glob(f"{name}_*.ipynb")) for name in CONCLUSIONS}
    texts = {name: written(name, root) for name in paths}
    for name, path in paths.items():
        content = nbformat.read(path, as_version=4)
        cells = [cell for cell in content.cells if cell.id == CELL]
        if not cells:
            cells = [nbformat.v4.new_markdown_cell(id=CELL)]
            content.cells.insert(len(content.cells) - 1, cells[0])
        cells[0].source = texts[name]
        with whole_file(path) as partial:
            partial.write_text(nbformat.writes(content) + "\n", encoding="utf-8")
    return list(paths.values())
