#!/usr/bin/env bash
# torch: with the same seed, randn() of one more number gives other numbers in the places before.
#
# Seen with torch 2.13.0 on the CPU (CPython 3.11, Linux). randn() of fewer than 16 numbers draws in another way than of
# 16 and more, where the last 16 are drawn again if 16 does not divide their count: of randn(15) and randn(16) after the
# same manual_seed() no number agrees, of randn(16) and randn(17) only the first. So the noise of the first user, picture
# or candidate changes when one is added at the end, in the rows too: of the 20 rows of randn(20, 3) not all are those of
# randn(21, 3). rand() does agree. Expected: the longer draw begins with the shorter, as numpy's default generator does.
# Runs that are to be compared over a growing number of users need one generator per row. No warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys

import numpy as np
import torch

def drawn(draw, count):
    torch.manual_seed(0)
    return getattr(torch, draw)(count)

def numpys(draw, count):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(count))

pairs = [(8, 9), (15, 16), (16, 17), (16, 32), (20, 40), (63, 64)]
agree = {}
for name, make in (("torch.randn", lambda n: drawn("randn", n)), ("torch.rand", lambda n: drawn("rand", n)),
                   ("numpy's standard_normal", lambda n: numpys("randn", n))):
    agree[name] = [int((make(short) == make(long)[:short]).sum()) for short, long in pairs]
    print(name, {f"{short} and {long}": f"{same} of {short} agree" for (short, long), same in zip(pairs, agree[name])})
torch.manual_seed(0)
short = torch.randn(20, 3)
torch.manual_seed(0)
rows = int((short == torch.randn(21, 3)[:20]).all(1).sum())
print(f"rows of randn(20, 3) that are rows of randn(21, 3): {rows} of 20")
all_agree = [short for short, _ in pairs]
same = (agree["torch.rand"] == agree["numpy's standard_normal"] == all_agree and agree["torch.randn"][1:3] == [0, 1]
        and agree["torch.randn"][3] == 16 and agree["torch.randn"][4] < 20 and rows < 20)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
