#!/usr/bin/env bash
# deepsig: the "paired bootstrap test" draws both systems' questions anew, each on its own.
#
# Seen with deepsig 1.2.8, scipy 1.17.1, numpy 2.4.6 (CPython 3.11, Linux). bootstrap_test() is documented as the paired
# bootstrap test and insists on two lists of one length; it draws the positions of the first list and those of the second
# independently, and what the pairs had in common stays in the difference. One method is better than another by .02 on
# each of 40 questions, give or take .005, and the questions differ by much more: p = .37, the value of a t-test of
# unrelated samples. Shuffling one list, which destroys all pairs, changes next to nothing. Pairs drawn as pairs give 0,
# as do the paired t-test and permutation_test() of the same package, 1/1001 being its smallest. Where both methods are
# asked the same questions, differences that are there are thus not told apart. No warning. Expected: one draw of
# positions for both.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet deepsig==1.2.8 scipy==1.17.1 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import numpy as np
from deepsig import bootstrap_test, permutation_test
from scipy import stats

rng = np.random.default_rng(0)
worse = rng.random(40)
better = worse + 0.02 + rng.normal(0, 0.005, 40)
shuffled = rng.permutation(better)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    p = {"deepsig, bootstrap": bootstrap_test(better, worse, seed=0),
         "deepsig, bootstrap, one list shuffled": bootstrap_test(shuffled, worse, seed=0),
         "deepsig, permutation": permutation_test(better, worse, seed=0)}
print("warnings:", [str(warning.message) for warning in said])
gains = better - worse
drawn = rng.integers(0, 40, (2, 10_000, 40))
p["by hand, pairs"] = (gains[drawn[0]].mean(1) >= 2 * gains.mean()).mean()
p["by hand, each on its own"] = (better[drawn[0]].mean(1) - worse[drawn[1]].mean(1) >= 2 * gains.mean()).mean()
p["scipy, t-test of pairs"] = stats.ttest_rel(better, worse, alternative="greater").pvalue
p["scipy, t-test of unrelated samples"] = stats.ttest_ind(better, worse, alternative="greater").pvalue
print(f"the first is better on {(gains > 0).sum()} of 40 questions, by {gains.mean():.3f}")
for name, value in p.items():
    print(f"{name}: p = {value:.3g}")
high = {name for name, value in p.items() if 0.3 < value < 0.45}
low = {name for name, value in p.items() if value < 0.0011}
same = not said and (gains > 0).all() and low == {"deepsig, permutation", "by hand, pairs", "scipy, t-test of pairs"}
same = same and len(high) == 4 and not high & low
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
