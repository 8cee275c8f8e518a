#!/usr/bin/env bash
# statsmodels: multipletests() counts a NaN among the p-values as a test, and by Holm's method even rejects it.
#
# Seen with statsmodels 0.15.0, numpy 2.4.6, scipy 1.17.1 (CPython 3.11, Linux), all warnings shown. A NaN is what a test
# gives that could not be made; expected is that it raises, or stays out of the family. For .02, NaN, .01, without a word:
# "holm" multiplies by three tests instead of two (.04 and .03, where .02 and .01 alone give .02 and .02) and returns
# reject = True for the NaN itself; "bonferroni" has .06 and loses the first rejection; "fdr_bh" makes every corrected
# p-value NaN, and beside them still rejects both real tests. Drop what is not finite first, and say how many were dropped.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
python - <<'PY'
import sys
import warnings

import numpy as np
from statsmodels.stats.multitest import multipletests

NAN, seen = np.nan, {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for method in ("holm", "bonferroni", "fdr_bh"):
        for values in ([.02, .01], [.02, NAN, .01]):
            reject, corrected = multipletests(values, alpha=.05, method=method)[:2]
            seen[method, len(values)] = reject.tolist(), corrected.round(6)
            print(f"{method}, {values}: reject {reject.tolist()}, corrected {corrected.round(6).tolist()}")
print("warnings:", [str(w.message) for w in said])
described = {
    ("holm", 2): ([True, True], [.02, .02]), ("holm", 3): ([True, True, True], [.04, NAN, .03]),
    ("bonferroni", 2): ([True, True], [.04, .02]), ("bonferroni", 3): ([False, False, True], [.06, NAN, .03]),
    ("fdr_bh", 2): ([True, True], [.02, .02]), ("fdr_bh", 3): ([True, False, True], [NAN, NAN, NAN]),
}
expected = not said and all(
    seen[key][0] == reject and np.allclose(seen[key][1], corrected, equal_nan=True)
    for key, (reject, corrected) in described.items())
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
