#!/usr/bin/env bash
# diffusers: attention_head_dim is the width of a head in UNet2DModel and the number of heads in UNet2DConditionModel.
#
# Seen with diffusers 0.42.1, torch 2.13.0 on the CPU (CPython 3.11, Linux). Of the same 128 channels attention_head_dim=8
# makes 16 heads of width 8 in the one class and 8 heads of width 16 in the other, without a word; the number of parameters
# and their shapes do not depend on it, so that neither counting nor loading weights shows it. Whoever turns an unconditional model into a
# conditional one, or scales a configuration down by widths, gets other attention than asked for. num_attention_heads,
# which would say what is meant, is refused by UNet2DConditionModel with an error that names this as a known matter.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet diffusers==0.42.1 torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import sys
from diffusers import UNet2DConditionModel, UNet2DModel
shared = dict(sample_size=8, block_out_channels=(64, 128), layers_per_block=1, attention_head_dim=8)
plain = UNet2DModel(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **shared)
conditional = UNet2DConditionModel(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=32, **shared)
def heads(model):
    attention = next(part for name, part in model.named_modules() if name.startswith("down_blocks.1") and hasattr(part, "to_q"))
    return attention.heads, attention.to_q.out_features // attention.heads
found = {type(model).__name__: heads(model) for model in (plain, conditional)}
refused = ""
try:
    UNet2DConditionModel(num_attention_heads=8)
except ValueError as error:
    refused = type(error).__name__
for name, (count, width) in found.items():
    print(f"{name}(attention_head_dim=8), 128 channels: {count} heads of width {width}")
print("UNet2DConditionModel(num_attention_heads=8):", refused or "accepted")
same = found == {"UNet2DModel": (16, 8), "UNet2DConditionModel": (8, 16)} and refused == "ValueError"
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
