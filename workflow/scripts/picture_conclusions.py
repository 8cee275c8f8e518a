"""What came out of the notebooks about pictures drawn for users (`conclusions`)."""

import pandas as pd
from committed import Tables, around, dot, holds

from prefmoe.analysis.text import told_apart

EDITION = "generation-mini"
FULL, NOBODY = "All, MMD", "No user"
LEARNT = 0.9
"""An attribute that is drawn as told this often counts as learned."""


def main(t: Tables, condition: str, measure: str, users: str = "all") -> pd.Series:
    """A row of the edition's Table 1."""
    return t.row(f"{EDITION}/table1", condition=condition, measure=measure, users=users)


def minus(t: Tables, baseline: str, measure: str, users: str = "unseen", condition: str = FULL) -> pd.Series:
    """All parts with MMD, or another condition, minus one more, of the same pictures."""
    return t.row(f"{EDITION}/comparisons", condition=condition, baseline=baseline, measure=measure, users=users)


def drawer(t: Tables) -> list[str]:
    rows = t.rows(f"{EDITION}/drawer_abilities").pivot(index="attribute", columns="pictures", values="value")
    drawn = rows["the drawer's pictures"]
    good, bad = drawn[drawn >= LEARNT], drawn[drawn < LEARNT]
    holds(rows["drawings"].min() > 0.98, "the reader reads drawings")
    weak = "; ".join(f"{name} {dot(drawn[name])}, by chance {dot(rows['by chance'][name])}" for name in bad.index)
    return [
        f"The attribute reader is right about {dot(rows['drawings'].min(), 3)} or more of drawings that it has not "
        "seen. Of pictures that are no drawings its error is not known: it names a value of anything.",
        f"The drawer draws {len(good)} of {len(rows)} attributes as it is told, in {dot(good.min())} to "
        f"{dot(good.max())} of its pictures. It has not learned the others well: {weak}.",
    ]


def probes(t: Tables) -> list[str]:
    def best(task: str, rater: str) -> pd.Series:
        rows = t.rows(f"{EDITION}/probes", task=task, rater=rater, split="validation")
        layer = int(rows.loc[rows["value"].idxmax(), "layer"])
        return t.row(f"{EDITION}/probes", task=task, rater=rater, split="test", layer=layer)

    tuned, plain = best("intra", "Preference VQA"), best("intra", "Untuned backbone")
    last = t.rows(f"{EDITION}/probes")["layer"].max()
    holds(tuned["layer"] == plain["layer"] == last, "taste is clearest in the last layer")
    more = t.row(f"{EDITION}/probes_paired", task="intra", layer=last)
    holds(more["low"] > 0 and told_apart(more), "tuning makes taste clearer, on the same pictures")
    identity = t.rows(f"{EDITION}/probes", task="inter", split="test")
    holds(identity["value"].max() < 0.2, "identity is faint in every layer")
    above = identity[identity["low"] > identity["chance"] + 1e-9]
    holds(0 < len(above) and set(above["rater"]) == {"Preference VQA"}, "it is above chance in the tuned rater alone")
    rows = t.rows(f"{EDITION}/raters", users="unseen", candidates=2, k=1).set_index("method")
    asked, untold = (rows.loc[name] for name in ("Preference VQA", "Untuned backbone"))
    return [
        f"Whether a picture was liked is clearest in the last layer, {int(last)}: {around(tuned, 3)} with preference "
        f"VQA (mean of {int(tuned['seeds'])} seeds), {around(plain, 3)} in the untuned backbone: told apart on "
        f"the same pictures, by {around(more, 3, 'difference')}.",
        f"Whose history it is, of 40, is faint everywhere: between {dot(identity['value'].min(), 3)} and "
        f"{dot(identity['value'].max(), 3)}, by chance {dot(identity['chance'].iloc[0], 3)}, which the interval leaves "
        f"behind in layers {', '.join(map(str, above['layer']))} of the tuned rater alone. Users of one taste group "
        "are alike, and a history says what is liked, not by whom.",
        f"The answers: the tuned rater names the liked of two pictures of users whom nobody trained on in "
        f"{around(asked)}, the untuned backbone in {around(untold)}.",
    ]


def alignment(t: Tables) -> list[str]:
    rows = t.rows(f"{EDITION}/alignment").set_index("method")
    names = {"mmd": FULL, "mse": "All, MSE", "cosine": "All, cosine"}
    holds(all(rows[m].idxmin() == name for m, name in names.items() if m != "cosine"), "each loss lowers its own most")
    liked = {name: main(t, name, "liked", "unseen") for name in rows.index}
    most, least = max(liked, key=lambda n: liked[n]["value"]), min(liked, key=lambda n: liked[n]["value"])
    others = [name for name in rows.index if name != FULL]
    for users in ("all", "unseen"):
        apart = [name for name in others if told_apart(minus(t, name, "liked", users))]
        holds(not apart, f"no way of aligning is told apart from MMD in what is liked, of {users} users")
    gain, kept = (minus(t, "All, not aligned", measure, "all") for measure in ("liked", "faithful"))
    holds(not told_apart(kept), "nor from no alignment in what is kept of the prompt")
    return [
        "What is trained for is reached by MMD and by MSE, each the nearest by its own ruler: MMD to the text "
        f"embeddings is {dot(rows.loc[FULL, 'mmd'], 3)} with MMD as the loss, {dot(rows.loc['All, MSE', 'mmd'], 3)} "
        f"with MSE, {dot(rows.loc['All, cosine', 'mmd'], 3)} with cosine, and "
        f"{dot(rows.loc['All, not aligned', 'mmd'], 3)} without any alignment (the first seed). By cosine the nearest "
        f"is {rows['cosine'].idxmin()}, {dot(rows['cosine'].min(), 3)} beside "
        f"{dot(rows.loc['All, cosine', 'cosine'], 3)}.",
        f"In pictures it does not show, with {int(liked[FULL]['seeds'])} trainings each: for users whom nobody trained "
        f"on liked lies between {dot(liked[least]['value'])} ({least}) and {dot(liked[most]['value'])} ({most}), and "
        "nothing is told apart from MMD.",
        f"Over all users MMD minus no alignment is {around(gain, 3, 'difference')} in what is liked and "
        f"{around(kept, 3, 'difference')} in number and item (p = {dot(kept['p_users_holm'])} with Holm's correction). "
        "A single training each had said otherwise of the first (docs/history.md).",
    ]


def branch(t: Tables) -> list[str]:
    own, other = main(t, FULL, "liked", "unseen"), main(t, "Another user's history", "liked", "unseen")
    gap = minus(t, "Another user's history", "liked")
    holds(gap["low"] > 0 and told_apart(gap), "the own history shows more than another's")
    nobody = main(t, NOBODY, "liked", "unseen")
    beside, with_own = (minus(t, NOBODY, "liked", condition=c) for c in ("Another user's history", FULL))
    holds(not told_apart(beside), "another's history is not told apart from nobody's")
    return [
        f"For unseen users liked is {around(own)} with the user's own history and {around(nobody)} without a user, "
        f"which test and interval together {'tell' if told_apart(with_own) else 'do not tell'} apart (notebook 26).",
        f"With the history of a user of another taste group it is {around(other)}, not told apart from no user's; the "
        f"own one minus it, {around(gap, 3, 'difference')}, is what the history is worth. Whose history it is matters.",
    ]


def pictures(t: Tables) -> list[str]:
    favourites, three = "Favourites in the prompt", "Three favourites in the prompt"
    unseen = {c: main(t, c, "liked", "unseen") for c in (FULL, NOBODY, favourites)}
    told = {c: main(t, c, "faithful", "unseen") for c in unseen}
    ceiling = [main(t, three, measure, "unseen") for measure in ("liked", "faithful")]
    holds(ceiling[1]["value"] > told[favourites]["value"], "told less, the drawer keeps more of the prompt")
    all_told = dot(told[favourites]["value"])
    gain, over_all = (minus(t, NOBODY, "liked", users) for users in ("unseen", "all"))
    holds(gain["low"] > 0 and not told_apart(gain), "for unseen users by the interval alone")
    holds(over_all["low"] > 0 and not told_apart(over_all), "over all users by the interval alone, too")
    holds(told[FULL]["high"] < told[NOBODY]["value"], "and are less of the prompt")
    words = main(t, "Words of the history in the prompt", "liked", "unseen")
    beside, more = (minus(t, "Words of the history in the prompt", m) for m in ("liked", "faithful"))
    holds(not told_apart(beside), "words of the history are not told apart in what is liked")
    holds(not told_apart(more), "nor in what is kept of the prompt")
    one = t.row(f"{EDITION}/lengths", condition=FULL, n_ref=1, users="all", measure="liked")
    eight = main(t, FULL, "liked")
    both, plain = (main(t, c, "both") for c in (FULL, NOBODY))
    joint, other = (minus(t, c, "both", "all") for c in (NOBODY, "Another user's history"))
    holds(joint["low"] < 0 < joint["high"] and told_apart(other), "both at once: not above no user, above another's")
    own, crowd = (main(t, FULL, name) for name in ("own", "population"))
    return [
        f"Drawn for unseen users, pictures show {around(unseen[FULL])} of what they like; without a user "
        f"{around(unseen[NOBODY])}, a difference of {around(gain, 3, 'difference')}: above 0 by the interval, "
        f"not after Holm's correction (p = {dot(gain['p_users_holm'])}), as over all users, "
        f"{around(over_all, 3, 'difference')} (p = {dot(over_all['p_users_holm'])}); with the true favourites in the "
        f"prompt {around(unseen[favourites])}.",
        f"They pay for it: number and item are the prompt's in {dot(told[FULL]['value'])}, and in {all_told} with the "
        f"favourites in the prompt ({dot(ceiling[1]['value'])} with the three that liked counts, "
        f"{dot(ceiling[0]['value'])} of them drawn), beside {around(told[NOBODY])} without a user.",
        f"Both at once, what is liked in pictures of their prompt alone (all users), is {around(both)}, without a user "
        f"{around(plain)}: {around(joint, 3, 'difference')}, not told apart; with another user's history it is "
        f"{around(other, 3, 'difference')} less, told apart.",
        f"Words of the history, written into the prompt, are not told apart from the branch in what is liked, "
        f"{around(words)}, nor in what is kept of the prompt: the branch minus them is "
        f"{around(more, 3, 'difference')}.",
        f"One choice of history gives {around(one)}, eight {around(eight)} (all users); where a user's favourite is "
        f"not the population's, the user's is drawn in {dot(own['value'])}, the population's in {dot(crowd['value'])}.",
    ]


def rewards(t: Tables) -> list[str]:
    like, dislike, led, nobody = (
        main(t, name, "liked") for name in ("Best of 4 by like", "Best of 4 by dislike", "Noise led by like", NOBODY)
    )
    words = minus(t, "Best of 4 by like", "liked", "all", "Best of 4 by dislike")
    holds(not told_apart(words), "like and dislike are not told apart")
    more = minus(t, "Best of 4 by like", "liked", "all", "Noise led by like")
    holds(more["difference"] > 0 and told_apart(more), "the gradient does more than choosing")
    worst, against = main(t, "Best of 4 by displeasing", "liked"), main(t, "Noise led by dislike", "liked")
    below = minus(t, NOBODY, "liked", "all", "Best of 4 by displeasing")
    holds(below["difference"] < 0, "raising dislike draws less of what is liked")
    below_said = "told apart" if told_apart(below) else "not told apart"
    less = minus(t, "Best of 4 by like", "faithful", "all", "Noise led by like")
    holds(told_apart(less) and less["high"] < 0, "and costs more of the prompt")
    told = {name: main(t, name, "faithful") for name in ("Best of 4 by like", "Noise led by like")}
    pleased = [main(t, name, "reward") for name in ("Noise led by like", "Best of 4 by like", NOBODY)]
    first, second, third = pleased
    holds(first["low"] > second["high"] and second["low"] > third["high"], "a rater trained apart sees the same order")
    return [
        f'The best of four noises by "like" shows {around(like)} of what a user likes, by "dislike" '
        f"{around(dislike)}, a single noise {around(nobody)}: the two words are not told apart "
        f"({around(words, 3, 'difference')}).",
        f'Leading the noise along the gradient of "like" brings {around(led)}, {around(more, 3, "difference")} above '
        "choosing, told apart, and costs more of the prompt: number "
        f"and item are right in {dot(told['Noise led by like']['value'])}, and in "
        f"{dot(told['Best of 4 by like']['value'])} of the chosen ones. Led by \"dislike\" it is {around(against)}.",
        f"Choosing what displeases, as the paper's Figure 8 does, leaves {around(worst)}, "
        f"{around(below, 3, 'difference')} beside a single noise, {below_said}.",
        f"A rater that had no part in either gives {' and '.join(around(row) for row in pleased[:2])} to the led and "
        f"the chosen pictures, and {around(third)} to single noises.",
    ]
