#!/usr/bin/env bash
# diffusers: EMAModel(use_ema_warmup=False) warms up all the same, by another rule than the one that is switched off.
#
# Seen with diffusers 0.42.1, torch 2.13.0 on the CPU (CPython 3.11, Linux). With use_ema_warmup=False, the default, the
# decay asked for is reached only after nine times 1 / (1 - decay) steps: before that it is (1 + n) / (10 + n), n being
# the steps taken, and the first step takes the weights over whole. With decay 0.9999 that is 90,000 steps; a run of
# 2,000 steps never averages with more than 0.9955. The argument's description speaks of a warm-up that is then not used.
# min_decay=decay switches it off, all but the first step, which is how to get a constant decay.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet diffusers==0.42.1 torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import sys
import torch
from diffusers.training_utils import EMAModel
steps = (1, 2, 10, 100, 2000, 89_990, 89_992)
def decays(**options):
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = EMAModel([weight], decay=0.9999, **options)
    return [round(ema.get_decay(step), 5) for step in steps], weight, ema
plain, weight, ema = decays(use_ema_warmup=False)
constant, _, _ = decays(use_ema_warmup=False, min_decay=0.9999)
by_rule = [round(min(step / (9 + step), 0.9999), 5) for step in steps]
by_rule[0] = 0.0
with torch.no_grad():
    weight.fill_(1.0)
ema.step([weight])
print("step:", steps)
print("decay with use_ema_warmup=False:", plain)
print("(1 + n) / (10 + n), n = step - 1:", by_rule)
print("decay with min_decay=decay as well:", constant)
print("average after one step from 0 towards 1:", float(ema.shadow_params[0]))
same = plain == by_rule and constant[1:] == [0.9999] * (len(steps) - 1) and float(ema.shadow_params[0]) == 1.0
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
