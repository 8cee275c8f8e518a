"""One method beside another on the same questions: paired differences, their tests, and what could be detected."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefmoe import metrics
from prefmoe.analysis import statistics
from prefmoe.analysis.answers import NO_BACKBONE, REFERENCE, Answers, TableError
from prefmoe.analysis.groupings import breakdowns
from prefmoe.analysis.pairs import Duels, beats
from prefmoe.config import COMPONENTS, Edition, PrefMoEMethod, is_trained
from prefmoe.data.benchmark import Benchmark
from prefmoe.metrics import LOWER_IS_BETTER

COMPARISON_COLUMNS = (
    "method", "baseline", "backbone", "turns", "metric", "difference", "low", "high", "n", "seeds", "better",
    "worse", "p_questions", "p_questions_holm", "p_users", "p_users_holm",
)  # fmt: skip

DIFFERENCE_COLUMNS = (
    "method", "baseline", "backbone", "turns", "metric", "difference", "low", "high", "n", "seeds"
)  # fmt: skip

DETECTABLE_COLUMNS = (
    "backbone", "turns", "metric", "grouping", "group", "n", "users", "methods", "design_effect", "unpaired", "paired",
    "paired_corrected",
)  # fmt: skip

ALL_BACKBONES = "mean of all"
"""What the backbone column says for a mean over backbones."""


def compare(first: Answers, second: Answers, *, permutations: int = 9999) -> list[dict]:
    """Paired comparison of two methods on the same questions, one row per metric.

    difference is first minus second, mean over seeds, with an interval over users and seeds (both methods are resampled
    together). p_questions: exact sign test on the seed means of single questions (McNemar's with one seed); it takes
    questions as independent. p_users: permutation test that exchanges the two methods' results of whole users; it does
    not. better and worse count the questions that favour the first and the second, information says what the first is
    shown of the user.

    AUCs are over pairs of questions (`pairs.duels`), whose users exchange their answers each, and there is no test that
    takes questions as independent. Their intervals are wider than they need be, up to 1.5 times: drawing both users of
    a pair anew counts what is chance in a single pair three times (docs/scoring.md).

    Raises TableError if the questions differ, or only one of them says what profiles tell.
    """
    if not np.array_equal(first.index, second.index):
        raise TableError(f"{first.method} and {second.method} answered different questions; nothing to pair")
    if first.metrics != second.metrics:
        measured = (f"{one.method} has {', '.join(one.metrics)}" for one in (first, second))
        raise TableError(f"{', and '.join(measured)}; nothing to pair")
    sums = [entry.user_sums for entry in (first, second)]
    values = [entry.seed_values.mean(axis=0) for entry in (first, second)]
    difference = values[0] - values[1]
    users = len(sums[0][0])
    low, high = statistics.percentile_interval(first.resampled - second.resampled)
    (right_a, counted_a), (right_b, counted_b) = ([part.mean(axis=1) for part in pair] for pair in sums)
    swap = statistics.swap_masks(users, permutations=permutations)

    def shares(right: NDArray, other_right: NDArray, counted: NDArray, other_counted: NDArray) -> NDArray:
        numerator = right.sum(0) + swap @ (other_right - right)
        denominator = counted.sum(0) + swap @ (other_counted - counted)
        return metrics.with_sensitivity(statistics.ratio(numerator, denominator))

    permuted = shares(right_a, right_b, counted_a, counted_b) - shares(right_b, right_a, counted_b, counted_a)
    observed = metrics.with_sensitivity(statistics.ratio(right_a.sum(0), counted_a.sum(0)))
    observed = observed - metrics.with_sensitivity(statistics.ratio(right_b.sum(0), counted_b.sum(0)))
    aucs = [_exchanged(one, second.duels[name], swap) for name, one in first.duels.items()]
    permuted = np.column_stack([permuted, *(exchanged for _, exchanged in aucs)])
    p_users = statistics.permutation_p([*observed, *(difference for difference, _ in aucs)], permuted)
    scores = [statistics.ratio(entry.right.sum(1), entry.counted.sum(1)) for entry in (first, second)]
    rows = []
    for column, metric in enumerate(first.metrics):
        row = {"method": first.method, "baseline": second.method, "backbone": first.backbone, "turns": first.turns}
        row |= {"metric": metric, "difference": difference[column], "low": low[column], "high": high[column]}
        if column < scores[0].shape[1]:
            pair = [score[:, column] for score in scores]
            both = ~np.isnan(pair[0]) & ~np.isnan(pair[1])
            better, worse, p = statistics.sign_test(pair[0][both], pair[1][both])
            if metric in LOWER_IS_BETTER:
                better, worse = worse, better
            row |= {"n": int(both.sum()), "better": better, "worse": worse}
            row |= {"p_questions": p if both.any() else np.nan}
        else:
            shares = [r["n"] for r in rows if r["metric"] in ("collapse", "recall")]  # behind sensitivity
            row |= {"n": first.duels[metric].n if metric in first.duels else sum(shares)}
            row |= {"better": np.nan, "worse": np.nan, "p_questions": np.nan}
        row |= {"p_users": p_users[column], "seeds": min(first.seeds, second.seeds)}
        rows.append(row | {"information": first.information})
    return rows


def _exchanged(first: Duels, second: Duels, swap: NDArray) -> tuple[float, NDArray]:
    """The difference of two methods' AUCs over the same pairs, and what it is when users exchange their answers.

    Where one user of a pair has exchanged and the other has not, the two methods meet in that pair: their ranks are
    compared, each seed of one with each seed of the other. With s = 1 for a user who keeps the answers and -1 for one
    who does not, the difference is the mean over pairs (i, j) of (s_i + s_j)/2 times what the methods won of the pair
    more or less often, and (s_i - s_j)/2 times what the first won against the second more often than the second
    against the first. ``swap``: (B, U) 0/1 of `statistics.swap_masks`.
    """
    if not len(first.won):
        return float("nan"), np.full(len(swap), np.nan)
    within = first.won.mean(axis=1) - second.won.mean(axis=1)
    across = _against(first, second) - _against(second, first)
    brought = np.zeros(first.users)
    np.add.at(brought, first.user[first.inside], (within + across) / 2)
    np.add.at(brought, first.user[first.outside], (within - across) / 2)
    brought /= len(within)
    return float(within.mean()), brought.sum() - 2 * swap @ brought


def _against(first: Duels, second: Duels) -> NDArray:
    """(P,) how often the first's inside questions are ranked above the second's outside ones, mean over their seeds."""
    inside, outside = first.ranks[first.inside][:, :, None], second.ranks[second.outside][:, None, :]
    return beats(inside, outside).mean(axis=(1, 2))


def focus_method(edition: Edition) -> str | None:
    """The complete PrefMoE of an edition (all components, trained), the ablation's before others, and one without facet
    label and with routers of ours if there is; or None."""
    methods = edition.methods

    def others(key: str) -> tuple[bool, bool]:
        return methods[key].facet_label != "none", methods[key].routers != "own"

    named = (key for key in (*edition.table2, *edition.table1) if isinstance(methods[key], PrefMoEMethod))
    complete = [key for key in named if methods[key].components == COMPONENTS and is_trained(methods[key])]
    return min(complete, key=others, default=None)  # of equals the first


def compared(edition: Edition, answers: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
    """PrefMoE beside every other method of the same backbone and turns, and every reference among the answers."""
    focus = focus_method(edition)
    return [
        (first, second)
        for first in answers
        if first.key == focus and focus is not None
        for second in answers
        if second.key != focus and second.turns == first.turns and second.backbone in (first.backbone, NO_BACKBONE)
    ]


def comparisons_table(edition: Edition, answers: Sequence[Answers]) -> pd.DataFrame:
    """PrefMoE against every other method of the same backbone and turns, and the references among the answers. Holm's
    correction runs over all comparisons of the same metric in the edition, for each of the two tests."""
    return _tested(compared(edition, answers))


def beside_table(edition: Edition, answers: Sequence[Answers]) -> pd.DataFrame:
    """Every method, and reference among the answers, against those that the edition names for it (`Edition.beside`):
    the same columns, and corrections over these comparisons."""
    return _tested(
        [
            (first, second)
            for second in answers
            if second.key in edition.beside
            for first in answers
            if first.key != second.key and first.turns == second.turns
            if first.backbone in (second.backbone, NO_BACKBONE)
        ]
    )


def _tested(pairs: Sequence[tuple[Answers, Answers]]) -> pd.DataFrame:
    rows = [row for first, second in pairs for row in compare(first, second)]
    table = statistics.corrected(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)), ["metric"], "p_questions")
    return statistics.corrected(table, ["metric"])


def forest_table(edition: Edition, answers: Sequence[Answers]) -> pd.DataFrame:
    """PrefMoE minus every other method on the same questions: each backbone, and the mean over the backbones.

    All backbones answer the same questions about the same users, so the mean's interval resamples users in all of
    them together; it does not say how other backbones would scatter.

    Returns the columns of `DIFFERENCE_COLUMNS`; backbone is `ALL_BACKBONES` for the mean, which needs all of them.
    """
    focus = focus_method(edition)
    rows = []
    keys = dict.fromkeys((entry.key, entry.turns) for entry in answers if entry.key != focus and entry.key)
    for key, turns in keys if focus is not None else ():
        here = {(entry.key, entry.backbone): entry for entry in answers if entry.turns == turns}
        pairs = [(first, here[key, b]) for (k, b), first in here.items() if k == focus and (key, b) in here]
        values = [first.seed_values.mean(axis=0) - second.seed_values.mean(axis=0) for first, second in pairs]
        samples = [first.resampled - second.resampled for first, second in pairs]
        estimates = list(zip([first.backbone for first, _ in pairs], values, samples, strict=True))
        if len(pairs) == len(edition.backbones) > 1:
            estimates.append((ALL_BACKBONES, np.mean(values, axis=0), np.mean(samples, axis=0)))
        for backbone, value, sample in estimates:
            low, high = statistics.percentile_interval(sample)
            first, second = pairs[0]
            for column, (metric, estimate) in enumerate(first.estimates.items()):
                row = {"method": first.method, "baseline": second.method, "backbone": backbone, "turns": turns}
                row |= {"metric": metric, "difference": value[column], "low": low[column], "high": high[column]}
                rows.append(row | {"n": estimate["n"], "seeds": min(first.seeds, second.seeds)})
    return pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))


def detectable_table(
    edition: Edition, benchmark: Benchmark, answers: Sequence[Answers], split: str, *, power: float = 0.8
) -> pd.DataFrame:
    """The smallest true difference that each number of questions would show with probability ``power``, at p < .05.

    From linearised standard errors over users (`statistics.standard_error`), medians over the methods of a backbone.
    References among the answers count as comparisons, and for nothing else.

    Returns the columns of `DETECTABLE_COLUMNS`, for all questions and for the groups of `breakdown_table`. n:
    questions, users: those asked any of them, design_effect: variance over that of independent questions, unpaired:
    between two methods that answer different questions of as many other users, paired: between PrefMoE and another
    method on the same questions, paired_corrected: the same at .05 / (comparisons of the metric in the edition), the
    first step of Holm's correction. NaN where there is nothing to compare.
    """
    focus = focus_method(edition)
    whole = pd.Series("all", index=list(benchmark.splits[split]))
    tested = len(compared(edition, answers))
    answers = [entry for entry in answers if entry.type != REFERENCE]
    every = answers[0].metrics if answers else ()
    groupings = [("all", whole, ("all",), every), *breakdowns(benchmark, split)]
    rows = []
    for backbone, turns in dict.fromkeys((entry.backbone, entry.turns) for entry in answers):
        entries = [entry for entry in answers if (entry.backbone, entry.turns) == (backbone, turns)]
        for grouping, labels, groups, chosen in groupings:
            label = labels.reindex(entries[0].index).to_numpy(dtype=object)
            for group in groups:
                member = (label == group).astype(float)
                single = {entry.key: entry.influences(None if grouping == "all" else member) for entry in entries}
                by_user = {k: statistics.cluster_sums(v, entries[0].users)[1] for k, v in single.items()}
                errors = np.stack([statistics.standard_error(v) for v in by_user.values()])
                naive = np.stack([statistics.standard_error(v) for v in single.values()])
                effect = statistics.ratio(errors**2, naive**2)
                pairs = [statistics.standard_error(by_user[focus] - v) for k, v in by_user.items()
                         if k != focus] if focus in by_user else []  # fmt: skip
                paired = _median(np.stack(pairs)) if pairs else np.full(len(every), np.nan)
                unpaired = np.sqrt(2) * _median(errors)
                for metric in chosen:
                    column = every.index(metric)
                    asked = _asked(entries[0], metric) * member
                    row = {"backbone": backbone, "turns": turns, "metric": metric, "grouping": grouping}
                    row |= {"group": group, "n": round(asked.sum()), "methods": len(entries)}
                    users = len(np.unique(entries[0].users[asked > 0]))
                    row |= {"users": users, "design_effect": _median(effect)[column] if users > 1 else np.nan}
                    for name, error, alpha in (
                        ("unpaired", unpaired, 0.05),
                        ("paired", paired, 0.05),
                        ("paired_corrected", paired, 0.05 / max(1, tested)),
                    ):
                        smallest = statistics.detectable_difference(error[column], alpha=alpha, power=power)
                        row[name] = float(smallest) if users > 1 else np.nan  # one user says nothing of others
                    rows.append(row)
    return pd.DataFrame(rows, columns=list(DETECTABLE_COLUMNS))


def _asked(entry: Answers, metric: str) -> NDArray:
    """(N,) in how large a share of the seeds each question counts for a metric."""
    if metric in entry.duels:
        return (entry.duels[metric].by_question[1] > 0).mean(axis=1)
    counted = entry.counted.mean(axis=1)
    parts = ("collapse", "recall") if metric == "sensitivity" else (metric,)
    return sum(counted[:, metrics.METRICS.index(part)] for part in parts)


def _median(values: NDArray) -> NDArray:
    """Median over the rows that are defined; NaN in columns without any."""
    undefined = np.isnan(values).all(axis=0)
    return np.where(undefined, np.nan, np.nanmedian(np.where(undefined, 0.0, values), axis=0))
