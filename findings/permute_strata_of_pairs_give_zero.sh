#!/usr/bin/env bash
# permute: with one score per user and method, the stratified permutation test gives p = 0 for noise, or p = 1, by its tail.
#
# Seen with permute 0.2, cryptorandom 0.4, numpy 2.4.6, scipy 1.17.1 (CPython 3.11, Linux). Users are the groups, the two
# methods the conditions. (1) stratified_permutationtest() adds up the difference "if there are two treatment conditions,
# the standard deviation if there are more than two", by its docstring; it asks for the number of groups instead, and the
# difference has lost its sign. Swapping a pair then changes nothing, so that all permutations are as extreme as the data:
# "greater" gives 1, "less" and "two-sided" give 0, for noise as for a method that is better for each of 30 users. Of
# two users and three methods the third method is not read. stat="mean_within_strata" of stratified_two_sample() is the
# same. (2) The p-value of "less" is 1 - P(T >= t), which leaves out T = t, and the two-sided one is twice the smaller of
# these two: with stat="mean" and four users of whom each is answered right by one method alone, p is 0, even with plus1,
# or .12 when the methods are swapped; exact is 2 / 16 both times. one_sample() of the same package, on the differences,
# has it right. No warning; no issue of the project about it was found.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet permute==0.2 cryptorandom==0.4 numpy==2.4.6 scipy==1.17.1
python - <<'PY'
import itertools
import sys
import warnings

import numpy as np

TAILS = ("greater", "less", "two-sided")


def pairs(first, second):
    """Group, condition and response of every user's two scores."""
    users = np.repeat(np.arange(len(first)), 2)
    return users, np.tile([0, 1], len(first)), np.column_stack([first, second]).ravel().astype(float)


def by_hand(first, second):
    """Two-sided p-value of the mean difference over all changes of sign."""
    gaps = np.asarray(second, float) - first
    signs = np.array(list(itertools.product([1, -1], repeat=len(gaps))))
    means = signs @ gaps
    return min(1, 2 * min((means >= gaps.sum() - 1e-12).mean(), (means <= gaps.sum() + 1e-12).mean()))


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from permute.core import one_sample
    from permute.stratified import stratified_permutationtest, stratified_permutationtest_mean, stratified_two_sample

    rng = np.random.default_rng(0)
    base = rng.random(30)
    cases = {"noise": base + 0.1 * rng.standard_normal(30), "better": base + 0.1 + 0.01 * rng.standard_normal(30)}
    found, own = {}, {}
    for name, other in cases.items():
        kind = {"reps": 60, "seed": 1}
        found[name] = [stratified_permutationtest(*pairs(base, other), alternative=t, **kind)[0] for t in TAILS]
        within = {"stat": "mean_within_strata", **kind}
        both = [stratified_two_sample(*pairs(base, other), alternative=t, **within)[0] for t in TAILS]
        found[f"{name}, two_sample"] = both
        own[name] = one_sample(other - base, reps=500, seed=1, alternative="two-sided")[0]
    right, wrong = np.ones(4), np.zeros(4)
    four = [
        stratified_two_sample(*pairs(*both), stat="mean", alternative="two-sided", reps=2000, seed=1)[0]
        for both in ((wrong, right), (right, wrong))
    ]
    cells = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    third = [stratified_permutationtest_mean(*cells, np.array([0.1, 0.3, x, 0.2, 0.4, x])) for x in (0.2, 0.9)]

for name, values in found.items():
    print(f"{name}: " + ", ".join(f"{tail} {p:.3f}" for tail, p in zip(TAILS, values)))
print("one_sample() of the differences, two-sided: " + ", ".join(f"{name} {p:.3f}" for name, p in own.items()))
print(f"twelve of the noisy users by hand: {by_hand(base[:12], cases['noise'][:12]):.3f}")
print(f"four users, two-sided: {four[0]:.3f}, swapped {four[1]:.3f}, by hand {by_hand(wrong, right):.3f}")
print(f"two users, statistic with a third method of .2 and of .9: {third[0]:.3f}, {third[1]:.3f}")
print("warnings:", [str(one.message) for one in said])
same = all(np.allclose(values, [1, 0, 0]) for values in found.values()) and own["noise"] > 0.1 and own["better"] < 0.01
same = same and four[0] == 0 and abs(four[1] - 0.125) < 0.03 and by_hand(wrong, right) == 0.125
same = same and third[0] == third[1] and not said
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
