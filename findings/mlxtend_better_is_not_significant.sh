#!/usr/bin/env bash
# mlxtend: the p-value of a difference of proportions is large where the first model is clearly better.
#
# Seen with mlxtend 0.25.0, scipy 1.17.1, numpy 2.4.6, pandas 3.1.1 (CPython 3.11, Linux). proportion_difference compares two
# accuracies; the null hypothesis of its guide is that they are equal. What it gives as p is the normal distribution's
# lower tail at z: right for one question, whether the first model is worse, and neither for "do they differ?" nor for
# "is it better?". 184 right answers of 200 beside 168 (z = 2.48): p is .993; the same two, the other
# way round: .007. The two-sided value is .013 both times (scipy and by hand), and equal accuracies have p = .5 instead of 1.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet mlxtend==0.25.0 scipy==1.17.1 numpy==2.4.6 pandas==3.1.1
python - <<'PY'
import math
import sys

from mlxtend.evaluate import proportion_difference
from scipy.stats import norm

found = {}
for name, first, second in (("better", 0.92, 0.84), ("worse", 0.84, 0.92), ("equal", 0.9, 0.9)):
    z, p = proportion_difference(first, second, n_1=200)
    error = math.sqrt(first * (1 - first) / 200 + second * (1 - second) / 200)
    two_sided = 2 * norm.sf(abs(first - second) / error)
    found[name] = round(float(p), 3)
    print(f"{name}: z {z:.2f}, p {p:.3f}, two-sided {two_sided:.3f}")
same = found == {"better": 0.993, "worse": 0.007, "equal": 0.5}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
