#!/usr/bin/env bash
# torch: inside one autocast block a weight that was changed is not used; training in it stands still.
#
# Seen with torch 2.13.0 on the CPU (CPython 3.11, Linux). autocast keeps the half-precision copy of every float32
# parameter that requires a gradient until the outermost block is left, and does not look whether the parameter has
# changed since. (1) Five steps of SGD in one block: each is taken, the weights move, and all five losses are the first
# one; with a block per step the loss falls. (2) Two users' weights loaded in turn by load_state_dict() inside one block,
# under no_grad: the second user is answered with the first user's weights, bit for bit. No error and no warning. Of
# frozen parameters no copy is kept, so that the same evaluation is right in one program and wrong in another. Expected:
# the new weights. Open the block per step and per user, or pass cache_enabled=False.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys
import warnings
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.functional import mse_loss

torch.manual_seed(0)
inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
users = {name: {"weight": torch.randn(1, 4), "bias": torch.randn(1)} for name in ("Ann", "Ben")}


def block(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def losses(outer, inner):
    """The losses of five steps, and how far the weights have moved by the last."""
    torch.manual_seed(1)
    model = nn.Linear(4, 1)
    start = model.weight.detach().clone()
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    with outer:
        for _ in range(5):
            with inner():
                loss = mse_loss(model(inputs).float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(round(loss.item(), 4))
    return found, round((model.weight - start).abs().max().item(), 4)


@torch.no_grad()
def answers(frozen, **options):
    model, found = nn.Linear(4, 1).requires_grad_(not frozen), []
    with block(**options):
        for state in users.values():
            model.load_state_dict(state)
            found.append(model(inputs).float())
    return (found[0] - found[1]).abs().max().item()


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    one, per_step = losses(block(), nullcontext), losses(nullcontext(), block)
    uncached = losses(block(cache_enabled=False), nullcontext)
    trainable, frozen, plain = answers(False), answers(True), answers(False, cache_enabled=False)
print("five steps in one block: losses", one[0], "weights moved by", one[1])
print("a block per step:        losses", per_step[0], "weights moved by", per_step[1])
print("cache_enabled=False:     losses", uncached[0], "weights moved by", uncached[1])
print(f"answers for Ann and for Ben differ by {trainable:.3f}; frozen: {frozen:.3f}; cache_enabled=False: {plain:.3f}")
print("warnings:", [str(warning.message) for warning in said])
same = len(set(one[0])) == 1 and one[1] > 0.01 and per_step[0][-1] < per_step[0][0] and uncached == per_step
same = same and trainable == 0 and frozen > 0.1 and plain == frozen and not said
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
