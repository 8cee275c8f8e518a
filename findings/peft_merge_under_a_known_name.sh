#!/usr/bin/env bash
# peft: add_weighted_adapter() under a name that exists does nothing: every point of a sweep over weights is the first one.
#
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). Two users' adapters are
# mixed with weights 1/0, 1/2 and 0/1 under one name, and the model is asked after each: three times the same logits,
# bit for bit, those of the first user. The method returns at once where the name is known, without a word and without a
# result to look at; the documentation has none of it. add_adapter() and load_adapter() are no guide: the one refuses a
# name that is known, the other loads the new weights over the old ones. A curve over mixtures is flat, a merge that was
# made anew after more training is the old one, also with another combination_type. Under three names, or with
# delete_adapter() before each merge, the logits are those of the mixture, computed by hand. Expected: the new mixture,
# or the ValueError of add_adapter().
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet peft==0.21.2 transformers==5.23.0 torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
python - <<'PY'
import copy
import sys
import warnings

import torch

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=4, vocab_size=50, initializer_range=0.3)
    base = LlamaForCausalLM(config).eval()
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(base), lora, adapter_name="first").eval()
    model.add_adapter("second", copy.deepcopy(lora))
    question = torch.randint(0, 50, (1, 8))
    mixtures = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))

    @torch.no_grad()
    def asked(of, adapter=None):
        if adapter:
            of.set_adapter(adapter)
        return of(input_ids=question).logits

    @torch.no_grad()
    def by_hand(weights):
        """The base model with the weighted sum of both users' changes added to its matrices."""
        mixed = copy.deepcopy(base)
        for name, layer in model.base_model.model.named_modules():
            if hasattr(layer, "lora_A"):
                matrix = mixed.get_submodule(name).weight
                for adapter, weight in zip(("first", "second"), weights):
                    matrix += weight * 2 * layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight  # 2 = alpha / r
        return asked(mixed)

    def merged(weights, name, kind="cat"):
        model.add_weighted_adapter(["first", "second"], list(weights), name, combination_type=kind)
        return asked(model, name)

    one_name = [merged(weights, "mixture") for weights in mixtures]
    other_kind = merged((0.0, 1.0), "mixture", "svd")
    three_names = [merged(weights, f"mixture{place}") for place, weights in enumerate(mixtures)]
    deleted = []
    for weights in mixtures:
        model.delete_adapter("mixture")
        deleted.append(merged(weights, "mixture"))
    true = [by_hand(weights) for weights in mixtures]
    try:
        model.add_adapter("first", copy.deepcopy(lora))
        refused = "nothing"
    except ValueError as error:
        refused = f"ValueError: {error}"

apart = lambda rows: [round(float((row - right).abs().max()), 4) for row, right in zip(rows, true)]
print("weights:", mixtures, " logits' standard deviation:", round(float(true[0].std()), 2))
print("greatest difference to the mixture by hand, under one name:", apart(one_name))
print("  under three names:", apart(three_names), " deleted before each:", apart(deleted))
print("the three under one name are equal bit for bit:", all(torch.equal(one_name[0], row) for row in one_name))
print("add_adapter() with a known name:", refused.splitlines()[0])
texts = [str(warning.message) for warning in said]
about = [text for text in texts if ("mixture" in text and "deleted" not in text) or "exist" in text or "weighted" in text]
print("warnings about it:", about)
same = all(torch.equal(one_name[0], row) for row in (*one_name, other_kind)) and not about and "ValueError" in refused
same = same and max(apart(three_names) + apart(deleted)) < 0.001 and min(apart(one_name)[1:]) > 0.1
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
