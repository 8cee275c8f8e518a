#!/usr/bin/env bash
# peft: with prompt tuning the answer to a question depends on how long the longest question of its batch is.
#
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). Batches are padded on the
# left to generate. The learned vectors are put in front of the padding and positions are counted through it, so that
# between a user's vectors and the question there is a gap as long as the padding: in a model of rotary positions the
# logits of a question padded by 12 are off by more than their standard deviation, and another answer is generated, with
# PromptTuningConfig and with PromptEncoderConfig, in generate() and in forward(). The same model without vectors, with
# LoRA, or with prefix tuning generates alike in every batch, as generate() counts positions from the mask (so done by
# hand it is right here, too); these positions are thrown away. What is said, "Position ids are not supported for
# parameter efficient tuning. Ignoring position ids.", is said for a question without padding as well, where it changes
# nothing. So accuracy depends on the size and order of batches. Expected: the answer that the question gets alone. Ask
# one by one, or put questions of one length into a batch.
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
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
                     num_key_value_heads=4, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=None)
base = LlamaForCausalLM(config).eval()
task = {"task_type": "CAUSAL_LM"}
ways = {
    "nothing": None,
    "LoRA": LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], **task),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4, **task),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=4, **task),
    "prompt encoder": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=32, **task),
}
question = torch.tensor([[7, 8, 9]])


def generated(model, padding):
    """The answer's five tokens, the logits of the first of them, and what was said about positions."""
    blank = torch.zeros(1, padding, dtype=torch.long)
    ids, mask = torch.cat([blank, question], 1), torch.cat([blank, torch.ones_like(question)], 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False,
                             output_logits=True, return_dict_in_generate=True)
        logits = model(input_ids=ids, attention_mask=mask).logits[0, -1]
    return out.sequences[0, ids.shape[1] :].tolist(), out.logits[0][0], logits, {str(w.message) for w in said}


off, words = {}, {}
with torch.no_grad():
    for name, way in ways.items():
        model = (get_peft_model(copy.deepcopy(base), way) if way else copy.deepcopy(base)).eval()
        for parameter in getattr(model, "prompt_encoder", torch.nn.Module()).parameters():
            torch.nn.init.normal_(parameter)  # as if learned
        (alone, first, forward, quiet), (padded, other, other_forward, loud) = generated(model, 0), generated(model, 12)
        off[name] = float((first - other).abs().max() / first.std())
        print(f"{name}: alone {alone}, padded by 12 {padded}; generate() is off by {off[name]:.5f} standard deviations,"
              f" forward() by {float((forward - other_forward).abs().max() / forward.std()):.5f}")
        if name == "prompt tuning":  # the padded batch by hand, with positions counted from the mask
            embeddings = model.get_input_embeddings()(torch.cat([torch.zeros(1, 12, dtype=torch.long), question], 1))
            mask = torch.tensor([[1] * 4 + [0] * 12 + [1] * 3])
            by_hand = model.base_model(inputs_embeds=torch.cat([model.get_prompt(batch_size=1), embeddings], 1),
                                       attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[0, -1]
            mended = float((by_hand - first).abs().max() / first.std())
        words[name] = {text for text in quiet if "osition" in text}, {text for text in loud if "osition" in text}

print(f"prompt tuning, padded by 12, positions counted from the mask by hand: {mended:.5f} standard deviations off")
print("said without padding, and with:", *words["prompt tuning"])
same = all(off[name] < 0.001 for name in ("nothing", "LoRA", "prefix tuning"))
same = same and off["prompt tuning"] > 0.3 and off["prompt encoder"] > 0.3 and mended < 0.001
same = same and all(quiet == loud for quiet, loud in words.values())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
