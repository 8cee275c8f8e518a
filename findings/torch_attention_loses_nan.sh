#!/usr/bin/env bash
# torch: where every key is NaN, fused attention on the CPU gives zeros, and the plain one NaN.
#
# Seen with torch 2.13.0 on the CPU (CPython 3.11, Linux). scaled_dot_product_attention() of keys that are all NaN (weights
# that turned NaN in training, a damaged adapter) gives exactly 0 for every query with the fused kernel, which is taken
# without being asked for, and NaN with SDPBackend.MATH, as softmax and a product by hand give it. With a single NaN among
# the keys both give NaN. So a branch of attention whose keys are lost is silent, a residual connection carries the rest on,
# outputs are finite, and a check for NaN at the end of the model finds nothing; expected: NaN. With a mask, as decoders
# have, the same. Look at the weights, not at what comes out.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 2, 6, 8)[:, :, :, :4]
lost = {"all keys": torch.full_like(key, torch.nan), "one key": key.clone()}
lost["one key"][:, :, 1] = torch.nan
found = {}
for name, keys in lost.items():
    for causal in (False, True):
        plainly = (query @ keys.transpose(-2, -1) / 8**0.5).softmax(-1) @ value
        rows = {"by hand": plainly[:, :, -1]}
        rows["unasked"] = scaled_dot_product_attention(query, keys, value, is_causal=causal)[:, :, -1]
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            with sdpa_kernel(backend):
                rows[backend.name] = scaled_dot_product_attention(query, keys, value, is_causal=causal)[:, :, -1]
        for kind, row in rows.items():
            said = "NaN" if row.isnan().all() else "zeros" if (row == 0).all() else "numbers"
            found[name, causal, kind] = said
        print(f"{name} NaN, causal {causal}: the last query's output:", {k: found[name, causal, k] for k in rows})
fused = {"unasked", "FLASH_ATTENTION"}
same = all(said == ("zeros" if name == "all keys" and kind in fused else "NaN") for (name, _, kind), said in found.items())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
