#!/usr/bin/env bash
# implicit: BPR recommends items that nobody has ever liked, before many that others do.
#
# Seen with implicit 0.7.3, numpy 2.4.6, scipy 1.17.1 on the CPU (CPython 3.11, Linux). Rendle et al. (2009), whom the
# documentation names, draw the other item of a pair evenly among those that the user has not liked. Here it is the item of
# a like drawn at random: what is liked often is put below often, and an item of the catalogue without a like is drawn by
# nobody. It keeps the factors that it began with, a score around 0, and stands above the items that others like and this
# user does not, whose scores were pushed down. 200 users, 40 items, of which 10 were never liked: of the ten first places
# that are new to a user these fill 46 %, and 28 % without `verify_negative_samples` (which throws away drawn items that
# the user has liked); drawn evenly (a few lines of numpy, same rates) none. No setting draws them. In a small world, or
# one with new items, such a BPR is far below popularity. No warning.
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
from implicit.bpr import BayesianPersonalizedRanking

rng = np.random.default_rng(0)
USERS, ITEMS, NEVER, FACTORS, RATE, DECAY, ROUNDS = 200, 40, 10, 4, 0.05, 0.01, 100
liked = rng.random((USERS, ITEMS)) < np.linspace(0.05, 0.6, ITEMS)
liked[:, :NEVER] = False


def never_liked(scores):
    """The share of items without a like among the first ten that are new to a user."""
    order = np.where(liked, -np.inf, scores).argsort(axis=1)[:, ::-1][:, :10]
    return float((order < NEVER).mean())


shares = {}
for verify in (True, False):
    model = BayesianPersonalizedRanking(
        factors=FACTORS, learning_rate=RATE, regularization=DECAY, iterations=ROUNDS, random_state=0, num_threads=1,
        verify_negative_samples=verify,
    )
    model.fit(csr_matrix(liked.astype(np.float32)), show_progress=False)
    shares[f"implicit, verify_negative_samples={verify}"] = never_liked(model.user_factors @ model.item_factors.T)

user, item, bias = rng.normal(size=(USERS, FACTORS)) / 10, rng.normal(size=(ITEMS, FACTORS)) / 10, np.zeros(ITEMS)
likes = np.argwhere(liked)
for u, i in likes[rng.integers(len(likes), size=ROUNDS * len(likes))]:
    j = rng.integers(ITEMS)
    if not liked[u, j]:
        step = RATE / (1 + np.exp(user[u] @ (item[i] - item[j]) + bias[i] - bias[j]))
        user[u], item[i], item[j] = (
            (1 - RATE * DECAY) * old + step * new
            for old, new in ((user[u], item[i] - item[j]), (item[i], user[u]), (item[j], -user[u]))
        )
        bias[i], bias[j] = (1 - RATE * DECAY) * bias[i] + step, (1 - RATE * DECAY) * bias[j] - step
shares["items drawn evenly"] = never_liked(user @ item.T + bias)
for name, share in shares.items():
    print(f"{name}: of the first ten new items {share:.0%} were never liked by anybody")
*theirs, evenly = shares.values()
same = min(theirs) > 0.2 and evenly < 0.02
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
