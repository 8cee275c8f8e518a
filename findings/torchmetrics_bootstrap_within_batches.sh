#!/usr/bin/env bash
# torchmetrics: BootStrapper's standard error of the same answers is 0 when they are given one by one.
#
# Seen with torchmetrics 1.9.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). sampling_strategy="multinomial" draws with
# replacement within what one update() is given, not among all answers: of 40 answers, 70 % right, the standard error of
# the accuracy is as it should be when they come in one batch, and exactly 0 in batches of one, with the same mean and
# without a warning. A loop that asks question by question thus reports a method without any uncertainty. With "poisson",
# the default, both are near the binomial formula. Expected: one interval for one set of answers.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import torch
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.wrappers import BootStrapper

answers, truth = (torch.arange(40) % 10 < 7).long(), torch.ones(40, dtype=torch.long)
formula = (0.7 * 0.3 / 40) ** 0.5
found = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for strategy in ("multinomial", "poisson"):
        for size in (1, 40):
            torch.manual_seed(0)
            metric = BootStrapper(BinaryAccuracy(), num_bootstraps=40, sampling_strategy=strategy)
            for start in range(0, 40, size):
                metric.update(answers[start:start + size], truth[start:start + size])
            error = found[strategy, size] = metric.compute()["std"].item()
            print(f"{strategy}, batches of {size}: standard error {error:.4f}")
print(f"by the binomial formula: {formula:.4f}; warnings:", [str(warning.message) for warning in said])
one = found.pop(("multinomial", 1))
same = one == 0 and not said and all(0.6 < error / formula < 1.5 for error in found.values())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
