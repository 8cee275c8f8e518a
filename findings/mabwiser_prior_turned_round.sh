#!/usr/bin/env bash
# mabwiser: a strong prior makes an arm that nobody has tried more attractive, not less.
#
# Seen with mabwiser 2.7.4, numpy 2.4.6, pandas 3.1.1, scikit-learn 1.9.1 (CPython 3.11, Linux). LinUCB adds to an arm's
# expectation alpha sqrt(x' A^-1 x), where A = l2_lambda I + X'X; an arm without data has A = l2_lambda I, so a unit context
# should get alpha / sqrt(l2_lambda). An arm that has been tried gets that (here with a context at right angles to the one
# asked about, which teaches nothing of it): .316 for l2_lambda = 10 and 3.162 for .1. One that has not gets the inverse,
# 3.162 and .316: A itself stands in the place of A^-1 until the first fit of that arm. So with l2_lambda above 1 whatever
# is new (a user's first picture, an item of this week) has a bonus that is l2_lambda times too large, and below 1 one
# that is too small by as much. With the default, l2_lambda = 1, both are 1 and nothing is seen. LinTS starts from the same matrix.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet mabwiser==2.7.4 numpy==2.4.6 pandas==3.1.1 scikit-learn==1.9.1
python - <<'PY'
import sys

import numpy as np
from mabwiser.mab import MAB, LearningPolicy

asked, aside = np.array([[1.0, 0.0]]), [0.0, 1.0]
found = {}
for prior in (0.1, 1.0, 10.0):
    for tried in (["old"], ["old", "new"]):
        bandit = MAB(["old", "new"], LearningPolicy.LinUCB(alpha=1.0, l2_lambda=prior))
        bandit.fit(decisions=tried, rewards=[0] * len(tried), contexts=np.array([aside] * len(tried)))
        bonus = {arm: round(float(value), 3) for arm, value in bandit.predict_expectations(asked).items()}
        found[prior, len(tried)] = bonus
        print(f"l2_lambda {prior}: tried {', '.join(tried)}: {bonus}; by the formula {prior**-0.5:.3f}")
same = all(bonus["old"] == round(prior**-0.5, 3) for (prior, _), bonus in found.items())
same = same and all(found[prior, 2]["new"] == round(prior**-0.5, 3) for prior in (0.1, 1.0, 10.0))
same = same and all(found[prior, 1]["new"] == round(prior**0.5, 3) for prior in (0.1, 1.0, 10.0))
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
