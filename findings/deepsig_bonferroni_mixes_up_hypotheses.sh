#!/usr/bin/env bash
# deepsig: bonferroni_correction() hands the corrected p-values to other comparisons, unless they came in sorted.
#
# Seen with deepsig 1.2.8, statsmodels 0.15.0, numpy 2.4.6 (CPython 3.11, Linux). The corrected values are computed in the
# order of the p-values and are then to be put back; what is applied is the order that sorted them, once more, instead of
# its inverse. Of three methods against a baseline with p = .04, .001 and .02, the second is given .04 and the third .003:
# the surest result becomes the weakest, and another one takes its place. Nothing shows, as the values are the right ones,
# two p-values cannot be mixed up this way, nor can sorted ones. Also, what is called Bonferroni's method multiplies the
# smallest by n, the next by n - 1 and so on, as Holm's does, but without keeping the order: .030, .031 and .032 become
# .09, .062 and .032, so that of three equally weak results one passes a level of 5 %. In statsmodels none does, by either
# method. No warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet deepsig==1.2.8 statsmodels==0.15.0 numpy==2.4.6
python - <<'PY'
import itertools
import sys
import warnings

import numpy as np
from deepsig import bonferroni_correction
from statsmodels.stats.multitest import multipletests

found = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for values in ((0.04, 0.001, 0.02), (0.001, 0.02, 0.04), (0.02, 0.001), (0.03, 0.031, 0.032)):
        given = found[values] = bonferroni_correction(np.array(values)).round(4).tolist()
        others = {name: multipletests(values, method=name)[1].round(4).tolist() for name in ("bonferroni", "holm")}
        print(f"p-values {[*values]}: deepsig {given}, statsmodels {others}")
    wrong = 0
    for values in itertools.permutations((0.001, 0.002, 0.01, 0.02, 0.2)):
        given = bonferroni_correction(np.array(values))
        wrong += not np.allclose(given, multipletests(values, method="holm")[1])
    print(f"five p-values on which both agree when they are sorted, in all their 120 orders: other than Holm's in {wrong}")
print("warnings:", [str(warning.message) for warning in said])
same = not said and wrong == 94 and found == {
    (0.04, 0.001, 0.02): [0.04, 0.04, 0.003], (0.001, 0.02, 0.04): [0.003, 0.04, 0.04],
    (0.02, 0.001): [0.02, 0.002], (0.03, 0.031, 0.032): [0.09, 0.062, 0.032]}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
