#!/usr/bin/env bash
# evalica: eigen() gives the item that loses most the highest score, and the command gives it rank 1.
#
# Seen with evalica 0.4.2, numpy 2.4.6, pandas 3.1.1 (CPython 3.11, Linux), both solvers. Of four models each beats
# every one that is worse, seven to nine times of ten. Six of the seven methods, pagerank() among them, rank them in
# this order; eigen() in the reverse one. It takes the eigenvector of the transposed table of wins, in which an item
# counts for much when it lost to items that lost; its scores are sorted from high to low like all others, and the
# documentation names no other direction. Expected: the eigenvector of the table of wins, which has the right order and
# which eigen() gives when the two columns of items are swapped. Rank correlations between methods, read as agreement,
# change their sign. No warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet evalica==0.4.2 numpy==2.4.6 pandas==3.1.1
python - <<'PY'
import subprocess
import sys
import warnings
from pathlib import Path

import evalica
import numpy as np
from evalica import Winner

MODELS = ["best", "good", "fair", "poor"]
wins = np.array([[0, 7, 8, 9], [3, 0, 7, 8], [2, 3, 0, 7], [1, 2, 3, 0]])
games = [(MODELS[i], MODELS[j], Winner.X) for i in range(4) for j in range(4) for _ in range(wins[i, j])]
left, right, winners = map(list, zip(*games))


def ordered(vector):
    vector = np.abs(vector)
    return [MODELS[i] for i in np.argsort(-vector)], vector.round(3).tolist()


def leading(matrix):
    values, vectors = np.linalg.eig(matrix)
    return vectors[:, values.real.argmax()].real


found = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for solver in ("pyo3", "naive"):
        for name in ("counting", "average_win_rate", "bradley_terry", "newman", "elo", "pagerank", "eigen"):
            scores = getattr(evalica, name)(left, right, winners, solver=solver).scores
            found[solver, name] = scores.index.tolist()
            print(f"{solver}, {name}: {scores.round(3).to_dict()}")
        swapped = evalica.eigen(right, left, winners, solver=solver).scores
        found[solver, "swapped"] = swapped.index.tolist()
        print(f"{solver}, eigen, columns swapped: {swapped.round(3).to_dict()}")
print("warnings:", [str(warning.message) for warning in said])
of_wins, of_losses = ordered(leading(wins)), ordered(leading(wins.T))
print("numpy, eigenvector of the table of wins:", of_wins, "of the transposed table:", of_losses)
Path("games.csv").write_text(
    "left,right,winner\n" + "".join(f"{x},{y},left\n" for x, y, _ in games))
command = subprocess.run(
    [sys.executable, "-m", "evalica", "-i", "games.csv", "pairwise", "eigen"], capture_output=True, text=True)
print("command, eigen:", command.stdout.split(), command.stderr)
turned = MODELS[::-1]
same = not said and of_wins[0] == MODELS and of_losses[0] == turned and all(
    order == (turned if name == "eigen" else MODELS) for (_, name), order in found.items())
same = same and [line.split(",")[0] for line in command.stdout.split()[1:]] == turned
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
