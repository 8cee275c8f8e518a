#!/usr/bin/env bash
# nltk: Spearman's correlation of two rankings with ties is above 0 for people who have nothing in common.
#
# Seen with nltk 3.9.2, scipy 1.17.1, numpy 2.4.6 (CPython 3.11, Linux). ranks_from_scores makes ranks of scores and gives
# equal scores the same rank, that of the first of them; spearman_correlation takes such ranks and computes
# 1 - 6 sum d^2 / (n (n^2 - 1)), which is the correlation only where no two ranks are equal. Ratings have few grades and
# therefore many ties: ratings drawn by independent coins correlate by .25 on average, those of five grades by .05, two
# raters who say the opposite of one another of everything by -.83, and two with one grade each for all things
# perfectly. scipy's has 0 on average, -1, and no number where somebody is constant. No warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet nltk==3.9.2 scipy==1.17.1 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import numpy as np
from nltk.metrics.spearman import ranks_from_scores, spearman_correlation
from scipy.stats import spearmanr


def by_nltk(first, second):
    """Its two functions, one after the other: things from the best to the worst, their ranks, the correlation."""
    sorted_scores = (sorted(enumerate(scores), key=lambda pair: -pair[1]) for scores in (first, second))
    return spearman_correlation(*(list(ranks_from_scores(scores)) for scores in sorted_scores))


found, rng = {}, np.random.default_rng(0)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for grades in (2, 5, 20):
        pairs = rng.integers(0, grades, (2000, 2, 20))
        if grades == 20:  # no two things have the same
            pairs = np.argsort(rng.random((2000, 2, 20)))
        ours = [by_nltk(*pair.tolist()) for pair in pairs]
        theirs = [spearmanr(*pair).statistic for pair in pairs]
        found[grades] = round(float(np.mean(ours)), 2), round(float(np.nanmean(theirs)), 2)
        print(f"{grades} grades, 20 things, independent raters: nltk {found[grades][0]}, scipy {found[grades][1]} on average")
    likes = [1, 1, 2, 2, 3, 3]
    opposite = [4 - grade for grade in likes]
    against = round(by_nltk(likes, opposite), 2), round(float(spearmanr(likes, opposite).statistic), 2)
    print(f"opposite in everything: nltk {against[0]}, scipy {against[1]}")
    constant = by_nltk([3] * 6, [1] * 6)
    print(f"two raters, each with one grade for all things: nltk {constant}")
    print("warnings:", len(said))
same = not said and found[20][0] == found[20][1] == 0 and found[2][0] > 0.15 and abs(found[2][1]) < 0.03
same = same and 0.02 < found[5][0] < 0.08 and against == (-0.83, -1.0) and constant == 1.0
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
