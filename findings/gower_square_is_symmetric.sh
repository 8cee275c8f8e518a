#!/usr/bin/env bash
# gower: distances between two sets of rows are wrong where both sets have the same size.
#
# Seen with gower 0.1.2, numpy 2.4.6, scipy 1.17.1, pandas 3.1.1 (CPython 3.11, Linux). gower_matrix(x, y) gives one row
# per row of x and one column per row of y. Where x and y have equally many rows, it computes half of them and mirrors it,
# as if y were x: three users and three products are 0 apart in a place where they are .25 apart, .625 for .5, .125 for
# .5; with the last product given twice, the same distances are right. So a split in two halves, or as many candidates as
# users, gets other neighbours. And a column of numbers whose greatest one is 0 counts as constant: scores of -4, -2 and 0
# are not read, and adding 1 to all of them takes the distance of the first two rows from 0 to .25 and that of the first
# and the last from .5 to 1. Gower (1971), whom its README cites, divides by the range, which no shift changes. No
# warning. Expected: the distance of each pair.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet gower==0.1.2 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
python - <<'PY'
import sys
import warnings

import numpy as np

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from gower import gower_matrix

    users = np.array([[20.0, "cats"], [40.0, "dogs"], [60.0, "cats"]], dtype=object)
    products = np.array([[60.0, "dogs"], [20.0, "cats"], [30.0, "dogs"]], dtype=object)
    square = gower_matrix(users, products).round(3)
    wide = gower_matrix(users, np.vstack([products, products[-1:]])).round(3)
    scores = np.array([[-4.0, 20.0], [-2.0, 20.0], [0.0, 30.0]])
    to_zero, shifted = gower_matrix(scores).round(3), gower_matrix(scores + [1.0, 0.0]).round(3)


def by_hand(first, second):
    """Half the difference of ages over their range, and half for another animal."""
    return [[round(abs(a - b) / 40 / 2 + (likes != other) / 2, 3) for b, other in second] for a, likes in first]


expected = by_hand(users, products)
print("by hand:", expected)
print("3 users, 3 products:", square.tolist())
print("the last product twice:", wide.tolist())
print("scores that end at 0:", to_zero.tolist())
print("the same scores plus 1:", shifted.tolist())
about = [str(warning.message) for warning in said if "gower" in str(warning.filename)]
print("warnings:", about)
same = np.allclose(wide[:, :3], expected, atol=1e-3) and np.allclose(square, square.T) and not about
same = same and np.allclose(np.triu(square), np.triu(expected), atol=1e-3)
same = same and (square[1, 0], expected[1][0]) == (0.0, 0.25)
same = same and to_zero[0, 1] == 0.0 and np.isclose(shifted[0, 1], 0.25) and np.isclose(to_zero[0, 2], 0.5)
same = same and np.isclose(shifted[0, 2], 1.0)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
