#!/usr/bin/env bash
# vendi-score: the order of the diversity is read for similarities, and not for features.
#
# Seen with vendi-score 0.0.3, numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1 (CPython 3.11, Linux). The Vendi Score is
# the exponential of the Renyi entropy of order q of the eigenvalues of K / n: small q counts rare modes, q = infinity
# the greatest one alone. score_K(K, q) and score_dual(X, q) follow q. score_X(X, q) takes it and hands 1 on: of ten
# pictures, eight nearly equal and two apart, it says 1.97 whatever q is, where score_K says 1.97, 1.54 and 1.26 for
# 1, 2 and infinity. A generator that collapses is told from one that does not by the higher orders: whoever passes
# features does not see it. No warning. Expected: three functions of one name's family that agree, or an error.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet vendi-score==0.0.3 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
python - <<'PY'
import sys
import warnings

import numpy as np

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from vendi_score import vendi

    rows = np.eye(4)[[0] * 8 + [1, 2]]
    rows[:8, 3] = np.linspace(0, 0.3, 8)  # eight nearly equal
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similar = rows @ rows.T
    orders = (1, 2, "inf")
    of_features = [vendi.score_X(rows, q=q) for q in orders]
    of_similarities = [vendi.score_K(similar, q=q) for q in orders]
    dual = [vendi.score_dual(rows, q=q) for q in orders]

shares = np.linalg.eigvalsh(similar / len(rows)).clip(1e-300)
by_hand = [np.exp(-(shares * np.log(shares)).sum()), 1 / (shares**2).sum(), 1 / shares.max()]
found = {"by hand": by_hand, "score_K": of_similarities, "score_dual": dual, "score_X": of_features}
for name, values in found.items():
    print(f"{name}: {', '.join(f'{value:.2f} (q = {q})' for value, q in zip(values, orders, strict=True))}")
words = [str(warning.message) for warning in said]
about = [text for text in words if "order" in text or "score_X" in text]
print("warnings about it:", about)
same = np.allclose(of_similarities, by_hand, rtol=1e-5) and np.allclose(dual, by_hand, rtol=1e-5)
same = same and np.allclose(of_features, by_hand[0], rtol=1e-5) and by_hand[0] > 1.25 * by_hand[1] and not about
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
