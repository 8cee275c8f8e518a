#!/usr/bin/env bash
# implicit: recommend(filter_already_liked_items=True) hands back liked items as soon as fewer than N are left.
#
# Seen with implicit 0.7.3, numpy 2.4.6, scipy 1.17.1 on the CPU (CPython 3.11, Linux). The documentation says that liked
# items are not returned. For a user who has fewer than N other items the list is filled up with the liked ones, valid
# indices in valid places, whose only mark is the score -3.4028235e+38, the least float32; nothing is said. Whoever
# takes the indices alone recommends what was to be left out, and coverage or novelty over them count it. With few
# items, as in a small benchmark, that is most users. Expected: a shorter list, or -1 as other indices of nearest
# neighbours give. Cut the list where scores are the least float. The same in ALS and in BPR.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet implicit==0.7.3 numpy==2.4.6 scipy==1.17.1
python - <<'PY'
import sys
import warnings
import numpy as np
from scipy.sparse import csr_matrix
warnings.simplefilter("ignore")
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
liked = csr_matrix(np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 1, 0]], dtype=np.float32))
found = {}
for make in (AlternatingLeastSquares, BayesianPersonalizedRanking):
    model = make(factors=2, iterations=5, random_state=0, num_threads=1)
    model.fit(liked, show_progress=False)
    items, scores = model.recommend(np.arange(3), liked, N=4, filter_already_liked_items=True)
    again = [len(set(row.tolist()) & set(liked[user].indices.tolist())) for user, row in enumerate(items)]
    least = [int((row == np.finfo(np.float32).min).sum()) for row in scores]
    found[make.__name__] = again, least
    print(f"{make.__name__}: of 4 items, liked before: {again}; with the least float as score: {least}")
same = all(value == ([2, 0, 1], [2, 0, 1]) for value in found.values())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
