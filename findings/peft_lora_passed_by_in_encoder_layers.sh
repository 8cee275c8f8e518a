#!/usr/bin/env bash
# peft and torch: of LoRA in nn.TransformerEncoderLayer one part is used in training only, another one never.
#
# Seen with peft 0.21.2, torch 2.13.0, transformers 5.23.0 on the CPU (CPython 3.11, Linux). After eval() the layer takes
# torch's fast path, which is given the weights of linear1 and linear2 and does not call these modules: their adapter is
# trained, its gradients are right, and in evaluation the output is that of the base model bit for bit. out_proj of the
# attention is never called as a module, in training neither: its adapter counts as trainable and gets no gradient.
# "all-linear" takes all three. No warning; expected is one adapted output in both modes, or a refusal. Small
# recommenders, rerankers and query transformers are built of this layer, and their validation then says that adapting
# brings nothing. torch.backends.mha.set_fastpath_enabled(False) brings linear1 and linear2 back; merging brings all.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet peft==0.21.2 torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
inputs = torch.randn(2, 3, 16)
PARTS = ("linear1", "linear2", "out_proj")


def adapted(targets):
    """An encoder of one layer whose adapters do something from the start, and the warnings that this gave."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = get_peft_model(nn.Sequential(layer), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return model, [str(warning.message) for warning in said]


@torch.no_grad()
def effect(model, training):
    """The largest difference that the adapter makes to the output."""
    model.train(training)
    with_adapter = model(inputs)
    with model.disable_adapter():
        return (with_adapter - model(inputs)).abs().max().item()


seen = {}
for part in PARTS:
    model, said = adapted([part])
    torch.backends.mha.set_fastpath_enabled(False)
    slow = effect(model, False)
    torch.backends.mha.set_fastpath_enabled(True)
    training, evaluation = effect(model, True), effect(model, False)
    with model.disable_adapter():
        base = model(inputs).detach()
    merged = (model.merge_and_unload().train()(inputs) - base).abs().max().item()
    seen[part] = training > 0.01, evaluation > 0, slow > 0.01, merged > 0.01
    print(f"LoRA on {part} changes the output by up to {training:.4f} in training, {evaluation} in evaluation, "
          f"{slow:.4f} without the fast path, {merged:.4f} merged; warnings: {said}")
model, said = adapted("all-linear")
model.train()(inputs).square().sum().backward()
moved = {part: [bool(p.grad is not None and p.grad.abs().sum() > 0) for n, p in model.named_parameters()
                if part in n and "lora_" in n] for part in PARTS}
print("all-linear, gradients of the adapter's two matrices:", moved, "warnings:", said)
same = seen == {
    "linear1": (True, False, True, True), "linear2": (True, False, True, True), "out_proj": (False, False, False, True)}
same = same and not said and moved == {"linear1": [True, True], "linear2": [True, True], "out_proj": [False, False]}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
