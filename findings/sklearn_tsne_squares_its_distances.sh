#!/usr/bin/env bash
# scikit-learn: TSNE with a matrix of distances and method="exact" squares the matrix of its caller, anew in every fit.
#
# Seen with scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1 (CPython 3.11, Linux). With metric="precomputed" t-SNE squares
# the distances, and method="exact" does so in the array it was given: after one fit the caller's distances are squared,
# after two they are to the fourth power. A loop over seeds or perplexities therefore maps other data in every turn: the
# same seed gives another map the second time. What is computed from the matrix afterwards is off as well: here the
# silhouette of the groups, as it is written under such a map, rises from 0.13 to 0.22 and 0.31. method="barnes_hut",
# the default, and a float16 matrix, which is converted first, leave it as it is. No warning; the documentation has no
# word of it, and expected is that fit() leaves its input alone. Give distances.copy().
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
python - <<'PY'
import sys
import warnings

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances, silhouette_score

draw = np.random.default_rng(0)
groups = np.repeat([0, 1, 2], 10)
points = draw.normal(size=(30, 5)) + groups[:, None]
distances = pairwise_distances(points)


def fit(matrix, method):
    settings = dict(metric="precomputed", init="random", perplexity=5, random_state=0, max_iter=250)
    return TSNE(method=method, **settings).fit_transform(matrix)


changed, again, silhouettes = {}, {}, [silhouette_score(distances, groups, metric="precomputed")]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for method in ("exact", "barnes_hut"):
        for kind in (np.float64, np.float32, np.float16):
            given = distances.astype(kind)
            before = given.copy()
            first = fit(given, method)
            powers = [p for p in (1, 2, 4) if np.allclose(given, before ** p, rtol=1e-4, atol=1e-4)]
            if method == "exact" and kind is np.float64:
                silhouettes.append(silhouette_score(given, groups, metric="precomputed"))
            second = fit(given, method)
            powers += [p for p in (1, 2, 4) if np.allclose(given, before ** p, rtol=1e-4, atol=1e-4)]
            if method == "exact" and kind is np.float64:
                silhouettes.append(silhouette_score(given, groups, metric="precomputed"))
            changed[method, kind.__name__] = powers
            again[method, kind.__name__] = bool(np.array_equal(first, second))
            print(f"{method}, {kind.__name__}: after one and two fits the distances to the power {powers}; "
                  f"same map with the same seed: {again[method, kind.__name__]}")
        copied = fit(distances.copy(), method), fit(distances.copy(), method)
        print(f"{method}, copies: same map with the same seed: {np.array_equal(*copied)}")
        again[method, "copy"] = bool(np.array_equal(*copied))
print("silhouette before, after one, after two fits:", [round(float(value), 3) for value in silhouettes])
print("warnings:", [str(warning.message) for warning in said])
in_place = {("exact", "float64"), ("exact", "float32")}
same = not said and silhouettes == sorted(silhouettes) and silhouettes[2] > silhouettes[0] + 0.05
same = same and all(powers == ([2, 4] if key in in_place else [1, 1]) for key, powers in changed.items())
same = same and all(equal == (key not in in_place) for key, equal in again.items())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
