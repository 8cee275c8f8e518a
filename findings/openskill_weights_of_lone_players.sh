#!/usr/bin/env bash
# openskill: weights of players that play alone are not read, and that some were given counts winners double.
#
# Seen with openskill 6.2.0 (CPython 3.11, Linux), all five models. rate(weights=...) is said to take each player's raw
# values; the manual's example is a match of four players, each alone: [[20], [1], [3], [15]]. Every team's weights are
# first brought to between 1 and 2, and a team of one gets 2 whatever stands there: with those four numbers, with the
# same four in another order and with four ones the means move alike. They do not move as without weights: who goes up
# does so twice as far, who goes down half as far, and the mean of all rises with each match. No warning. Expected: that
# the numbers matter, and that equal weights are no weights, as in teams of two. An arena of single models, weighted by
# how sure its judges were, is such a match. The documented weight_bounds=None raises a TypeError;
# model.weight_bounds = None, set afterwards, makes the model take the numbers as they are.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet openskill==6.2.0
python - <<'PY'
import sys
import warnings

from openskill import models

KINDS = ("PlackettLuce", "BradleyTerryFull", "BradleyTerryPart", "ThurstoneMostellerFull", "ThurstoneMostellerPart")
WEIGHTS = {
    "none": None, "ones": [[1], [1], [1], [1]], "manual": [[20], [1], [3], [15]], "turned": [[1], [20], [15], [3]]}


def moved(model, teams, weights):
    """How far each player's mean moves in a match that the teams end in the order given."""
    players = [[model.rating() for _ in range(teams)] for _ in range(4)]
    rated = model.rate(players, ranks=[1, 2, 3, 4], weights=weights)
    return [player.mu - 25 for team in rated for player in team]


def near(left, right):
    return all(abs(x - y) < 1e-9 for x, y in zip(left, right, strict=True))


seen = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for kind in KINDS:
        make = getattr(models, kind)
        bound, free = make(), make()
        free.weight_bounds = None
        alone = {name: moved(bound, 1, weights) for name, weights in WEIGHTS.items()}
        as_given = {name: moved(free, 1, weights) for name, weights in WEIGHTS.items()}
        pairs = moved(bound, 2, None), moved(bound, 2, [[1, 1]] * 4)
        asymmetric = [2 * value if value > 0 else value / 2 for value in alone["none"]]
        seen[kind] = {
            "numbers ignored": near(alone["ones"], alone["manual"]) and near(alone["ones"], alone["turned"]),
            "up twice, down half": near(alone["ones"], asymmetric) and not near(alone["ones"], alone["none"]),
            "mean rises": abs(sum(alone["none"])) < 1e-9 < 0.1 < sum(alone["ones"]),
            "ones are none in pairs": near(*pairs),
            "without bounds ones are none": near(as_given["ones"], as_given["none"]),
            "without bounds numbers matter": not near(as_given["manual"], as_given["turned"])}
        for name, values in alone.items():
            print(f"{kind}, weights {name}: means move by {[round(value, 3) for value in values]}")
        print(f"{kind}: {seen[kind]}")
print("warnings:", [str(warning.message) for warning in said])
same = not said and all(all(facts.values()) for facts in seen.values())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
