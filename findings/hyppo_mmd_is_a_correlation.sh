#!/usr/bin/env bash
# hyppo: the statistic of MMD is no multiple of the maximum mean discrepancy, even with a fixed kernel.
#
# Seen with hyppo 0.5.2, scikit-learn 1.9.1, numpy 2.4.6 on the CPU (CPython 3.11, Linux). The documentation gives the
# formula of Gretton et al. and calls what is computed the same up to a scaling factor. It is HSIC between the pooled
# samples and their labels, divided by the sizes of both kernel matrices: a correlation, whose divisor grows with the
# distance of the samples. For the same two samples, moved apart, the ratio to the formula (same kernel, same n) falls
# from .52 to .14. Permutation tests are right, as every permutation has the same divisor. But whoever reads the
# statistic as a distance of two sets of embeddings finds that moving them from two to fifty standard deviations apart
# adds a fifth to it, and half to the discrepancy. Expected: one factor for given sizes of samples.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet hyppo==0.5.2 scikit-learn==1.9.1 numpy==2.4.6
python - <<'PY'
import sys
import warnings
import numpy as np
warnings.simplefilter("ignore")
from hyppo.ksample import MMD
from sklearn.metrics.pairwise import rbf_kernel
rng = np.random.default_rng(0)
first, second = rng.normal(size=(2, 50, 2))
found = []
for apart in (0.5, 1, 2, 50):
    x, y = first, second + apart
    formula = sum(sign * rbf_kernel(a, b, gamma=0.5).mean() for sign, a, b in ((1, x, x), (1, y, y), (-2, x, y)))
    given = MMD(compute_kernel="rbf", bias=True, gamma=0.5).statistic(x, y)
    found.append((formula, given))
    print(f"{apart} apart: formula {formula:.3f}, statistic {given:.3f}, ratio {given / formula:.2f}")
ratios = [given / formula for formula, given in found]
(nearer, near), (farther, far) = found[-2:]
same = ratios[0] > 3 * ratios[-1] and far / near < 1.3 < 1.4 < farther / nearer
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
