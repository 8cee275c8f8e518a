#!/usr/bin/env bash
# pytrec_eval and ir-measures: scores are rounded to float32, and names then decide who is first.
#
# Seen with pytrec-eval-terrier 0.5.11, ir-measures 0.4.3 (CPython 3.11, Linux). Python's scores are doubles; the
# evaluation keeps them in single precision, and breaks the ties that this makes by document name, the later name first.
# Scores 1 - 1e-9, 1 - 2e-9 and 1 - 3e-9, as a confident model's probabilities are, become equal: the item ranked first is
# found at place 3 when its name is "a" and at place 1 when it is "z". The logits of the same probabilities, in the same
# order, give 1 for either name. No warning. Expected: the order of the scores that were handed over. Give ranks or
# logits; and mind that names such as "10" and "9" are compared as texts.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet pytrec-eval-terrier==0.5.11 ir-measures==0.4.3 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
python - <<'PY'
import math
import sys
import warnings

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import ir_measures
    import pytrec_eval
    said.clear()
    shortfall = (1e-9, 2e-9, 3e-9)
    kinds = {"probabilities": [1 - x for x in shortfall], "logits": [math.log((1 - x) / x) for x in shortfall]}
    found = {}
    for kind, scores in kinds.items():
        for names in (["a", "m", "z"], ["z", "m", "a"]):
            liked, run = {"user": {names[0]: 1}}, {"user": dict(zip(names, scores))}
            first = max(run["user"], key=run["user"].get)
            one = pytrec_eval.RelevanceEvaluator(liked, {"recip_rank"}).evaluate(run)["user"]["recip_rank"]
            other = ir_measures.calc_aggregate([ir_measures.RR], liked, run)[ir_measures.RR]
            found[kind, names[0]] = round(one, 4), round(other, 4)
            print(f"{kind}, liked item {names[0]!r}, highest score {first!r}: reciprocal rank {one:.4f}, {other:.4f}")
print("warnings:", [str(warning.message) for warning in said])
same = not said and found == {
    ("probabilities", "a"): (0.3333, 0.3333), ("probabilities", "z"): (1.0, 1.0), ("logits", "a"): (1.0, 1.0),
    ("logits", "z"): (1.0, 1.0)}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
