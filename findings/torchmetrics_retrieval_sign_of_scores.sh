#!/usr/bin/env bash
# torchmetrics: MAP, MRR, precision and recall of a perfect ranking are 0 where its scores are negative.
#
# Seen with torchmetrics 1.9.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). A relevant item whose score is 0 or less
# counts as not retrieved in RetrievalMAP, RetrievalMRR, RetrievalPrecision and RetrievalRecall, and as any other in
# RetrievalNormalizedDCG, RetrievalHitRate, RetrievalRPrecision and RetrievalAUROC. A ranking does not change when a
# constant is taken off all scores; with log-likelihoods or negated distances the first four are 0 and the others 1, of
# the same lists, and with cosines or logits around 0 they lie between, lower than they are. No warning. Expected: the
# order alone. Give ranks or exp(scores) to all of them.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import torch
from torchmetrics.retrieval import (
    RetrievalAUROC, RetrievalHitRate, RetrievalMAP, RetrievalMRR, RetrievalNormalizedDCG, RetrievalPrecision,
    RetrievalRecall, RetrievalRPrecision)

users = torch.tensor([0, 0, 0, 1, 1, 1])
liked = torch.tensor([True, False, False, True, False, False])
scores = torch.tensor([0.9, 0.5, 0.1, 0.6, 0.5, 0.4])
METRICS = {
    "MAP": RetrievalMAP, "MRR": RetrievalMRR, "precision@1": lambda: RetrievalPrecision(top_k=1),
    "recall@1": lambda: RetrievalRecall(top_k=1), "NDCG": RetrievalNormalizedDCG,
    "hit rate@1": lambda: RetrievalHitRate(top_k=1), "R-precision": RetrievalRPrecision, "AUROC": RetrievalAUROC}
found = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for taken in (0.0, 0.7, 1.0):
        found[taken] = {
            name: round(make()(scores - taken, liked, indexes=users).item(), 4) for name, make in METRICS.items()}
        print(f"scores less {taken}: {found[taken]}")
print("warnings:", [str(warning.message) for warning in said])
by_sign = ("MAP", "MRR", "precision@1", "recall@1")
same = not said and all(
    value == ({0.0: 1.0, 0.7: 0.5, 1.0: 0.0}[taken] if name in by_sign else 1.0)
    for taken, row in found.items() for name, value in row.items())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
