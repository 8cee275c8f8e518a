#!/usr/bin/env bash
# crowd-kit: BradleyTerry stops after two steps, whatever n_iter is, and ranks a model above another that beats it.
#
# Seen with crowd-kit 1.4.2, choix 0.4.1, numpy 2.4.6, pandas 3.1.1 (CPython 3.11, Linux). It is said to maximise the
# likelihood, in at most n_iter steps, until the scores change by less than tol. What it compares them with is the array
# that it has just filled with them: the change is 0 from the second step on. Where all models met equally often the order
# is right and the differences are too small. Where they did not, two steps are close to each model's share of wins,
# whoever it met: of two leagues joined by ten duels, nine of them won by B, the first of the weaker league is put above B,
# which the scores give .45 in that duel. At the maximum, which choix reaches, and the same steps when there are more of
# them, B is second and has .90. No warning; loss_history_ stays empty. tol=0 makes it take all its steps.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet crowd-kit==1.4.2 choix==0.4.1 numpy==2.4.6 pandas==3.1.1
python - <<'PY'
import sys
import warnings

import choix
import numpy as np
import pandas as pd
from crowdkit.aggregation import BradleyTerry

NAMES = list("ABCD")
ARENAS = {
    "each meets each": np.array([[0, 7, 8, 9], [3, 0, 7, 8], [2, 3, 0, 7], [1, 2, 3, 0]]),
    "two leagues": np.array([[0, 40, 0, 0], [20, 0, 9, 0], [0, 1, 0, 40], [0, 0, 20, 0]])}


def by_hand(wins, steps):
    """Hunter's steps: a model's wins over the sum of its duels, each divided by both models' scores."""
    scores = np.ones(4)
    for _ in range(steps):
        scores = wins.sum(1) / ((wins + wins.T) / (scores[:, None] + scores)).sum(1)
        scores /= scores.sum()
    return scores


def told(scores):
    """The models from the first to the last, with their scores."""
    return {NAMES[i]: round(float(scores[i]), 3) for i in np.argsort(-scores)}


seen = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for arena, wins in ARENAS.items():
        duels = [(i, j) for i in range(4) for j in range(4) for _ in range(wins[i, j])]
        table = pd.DataFrame([(NAMES[i], NAMES[j], NAMES[i]) for i, j in duels], columns=["left", "right", "label"])
        fitted = {}
        for steps, tol in ((1, 1e-5), (2, 1e-5), (1000, 1e-5), (1000, 1e-300), (1000, 0)):
            model = BradleyTerry(n_iter=steps, tol=tol)
            fitted[steps, tol] = model.fit_predict(table)[NAMES].to_numpy()
            print(f"{arena}, n_iter={steps}, tol={tol}: {told(fitted[steps, tol])}, losses {model.loss_history_}")
        best = np.exp(choix.mm_pairwise(4, duels, max_iter=10_000))
        best /= best.sum()
        print(f"{arena}, choix: {told(best)}; by hand, 2 steps: {told(by_hand(wins, 2))}, "
              f"1,000 steps: {told(by_hand(wins, 1000))}")
        given = fitted[1000, 1e-5]
        chance = [round(float(scores[1] / (scores[1] + scores[2])), 2) for scores in (given, best)]
        print(f"{arena}: B beats C in {wins[1, 2] / (wins + wins.T)[1, 2]:.2f} of their duels, by crowd-kit in {chance[0]}, "
              f"by choix in {chance[1]}")
        two = all(np.allclose(fitted[key], by_hand(wins, 2)) for key in fitted if key[0] > 1 and key[1])
        all_steps = np.allclose(fitted[1000, 0], best, atol=1e-3) and np.allclose(by_hand(wins, 1000), best, atol=1e-3)
        seen[arena] = two, all_steps, "".join(told(given)), "".join(told(best)), chance
print("warnings:", [str(warning.message) for warning in said])
same = not said and seen == {"each meets each": (True, True, "ABCD", "ABCD", [0.64, 0.67]),
                             "two leagues": (True, True, "ACBD", "ABCD", [0.45, 0.9])}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
