#!/usr/bin/env bash
# irrCAC: weights for ordered ratings go by the alphabet, also where the table knows another order: kappa .79 becomes .46.
#
# Seen with irrCAC 0.4.4, numpy 1.26.4, pandas 2.2.3, scipy 1.12.0 (CPython 3.11, Linux). Two judges give 60 answers one of
# poor, fair, good and best, never more than one step apart. With quadratic weights, kappa is .793 by hand and for the
# same ratings as 0 to 3; for the words it is .460, because best, fair, good, poor is their order. An ordered categorical
# column, pandas' way to say the order, is read the same way. The documentation of `categories` speaks of ratings that
# nobody used, not of order; with the words in their order there, the value is right. With numbers it is the other way
# round: there `categories` in another order than theirs (as they first occur, say) has the weights of the sorted ones,
# so that rows and weights belong to different ratings. No warning. Without weights ("identity") all are equal.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet irrCAC==0.4.4 numpy==1.26.4 pandas==2.2.3 scipy==1.12.0
python - <<'PY'
import sys
import warnings

import numpy as np
import pandas as pd

WORDS = np.array(["poor", "fair", "good", "best"])
rng = np.random.default_rng(0)
first = rng.integers(0, 4, 60)
second = np.clip(first + rng.integers(-1, 2, 60), 0, 3)
by_hand = 1 - ((first - second) ** 2).mean() / ((first[:, None] - second[None]) ** 2).mean()

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from irrCAC.raw import CAC

    def kappa(make, weights="quadratic", categories=None):
        table = pd.DataFrame({"first": make(first), "second": make(second)})
        return float(CAC(table, weights=weights, categories=categories).conger()["est"]["coefficient_value"])

    def word(ratings):
        return WORDS[ratings]

    def ordered(ratings):
        return pd.Categorical(WORDS[ratings], categories=list(WORDS), ordered=True)

    seen = {"numbers": kappa(lambda ratings: ratings), "words": kappa(word), "ordered categorical": kappa(ordered),
            "words, categories in order": kappa(word, categories=WORDS.tolist()),
            "numbers, categories 3, 1, 2, 0": kappa(lambda ratings: ratings, categories=[3, 1, 2, 0])}
    plain = [kappa(make, "identity") for make in (lambda ratings: ratings, word, ordered)]

print(f"quadratic kappa by hand: {by_hand:.3f}")
for name, value in seen.items():
    print(f"  {name}: {value:.3f}")
print("without weights:", plain)
about = [str(w.message) for w in said if any(part in str(w.message).lower() for part in ("order", "categor", "sort"))]
print("warnings about it:", about)
right = [abs(value - by_hand) < 1e-4 for value in seen.values()]
same = right == [True, False, False, True, False] and seen["words"] == seen["ordered categorical"] < 0.5
same = same and len(set(plain)) == 1 and not about
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
