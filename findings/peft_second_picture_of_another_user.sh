#!/usr/bin/env bash
# peft: in a mixed batch, the second picture of one user is read with the adapter of the next, as long as there are as
# many pictures as questions.
#
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). Two users have LoRA on the
# decoder and the projector of a LLaVA, and a batch asks both with adapter_names=["anna", "ben"]. One adapter per row of
# what a layer is given, says peft; but the projector's rows are pictures, and the decoder's are questions. With one
# picture per question both are the same. With two for Anna's and none for Ben's, her second picture goes through Ben's
# projector: her logits are up to 3.0 standard deviations off those of the question asked alone, Ben's are exact, and nothing
# is said. With three pictures for two questions there is a ValueError. That it is the projector is shown by Anna's
# answer with her second picture projected by hand with Ben's adapter: equal. The documentation of mixed batches names
# other limits (no training, no merged layers, slower), not this one. Expected: the adapter of the question that a
# picture belongs to, or the error.
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
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
    tower = CLIPVisionConfig(image_size=28, patch_size=14, **small)
    decoder = LlamaConfig(vocab_size=60, num_key_value_heads=4, **small)
    config = LlavaConfig(vision_config=tower, text_config=decoder, image_token_index=59, image_seq_length=4)
    targets = r".*(language_model.*(q_proj|v_proj)|multi_modal_projector.linear_[12])"
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(LlavaForConditionalGeneration(config), lora, adapter_name="anna").eval()
    model.add_adapter("ben", copy.deepcopy(lora))
    picture, words = [59] * 4, torch.randint(1, 58, (12,)).tolist()
    questions = {0: words, 1: picture + words[:8], 2: picture * 2 + words[:4]}  # by how many pictures they have, 12 tokens each

    @torch.no_grad()
    def asked(pictures, *, users):
        """The logits of one question per user, with so many pictures each; the pictures are the same in all calls."""
        drawn = torch.randn(sum(pictures), 3, 28, 28, generator=torch.Generator().manual_seed(1))
        tokens = torch.tensor([questions[count] for count in pictures])
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        inputs |= {"pixel_values": drawn} if len(drawn) else {}
        if len(users) == 1:
            model.set_adapter(users[0])
            return model(**inputs).logits[0]
        return model(**inputs, adapter_names=list(users)).logits

    def apart(one, other):
        return round(float((one - other).abs().max() / other.std()), 2)

    both = ("anna", "ben")
    one_each = asked((1, 1), users=both)
    anna_first = asked((1,), users=("anna",))  # the first picture of the same draw is the same
    mixed = asked((2, 0), users=both)
    anna, ben = asked((2,), users=("anna",)), asked((0,), users=("ben",))

    # by hand: Anna's decoder, her first picture through her projector, her second one through Ben's
    projector = model.base_model.model.model.multi_modal_projector
    project = projector.forward
    def first_anna_then_ben(features):
        parts = []
        for user, part in zip(both, features):
            model.set_adapter(user)
            parts.append(project(part[None]))
        model.set_adapter("anna")
        return torch.cat(parts)
    projector.forward = first_anna_then_ben
    wrong = asked((2,), users=("anna",))
    projector.forward = project
    try:
        asked((2, 1), users=both)
        refused = "nothing"
    except ValueError as error:
        refused = f"ValueError: {error}"

print("greatest difference of logits to the same question asked alone, in standard deviations:")
print("  a picture each: Anna", apart(one_each[0], anna_first))
print("  two for Anna, none for Ben: Anna", apart(mixed[0], anna), " Ben", apart(mixed[1], ben))
print("  Anna's, to her second picture by Ben's projector by hand:", apart(mixed[0], wrong))
print("three pictures, two questions:", refused)
texts = [str(warning.message) for warning in said if "adapter_names" in str(warning.message)]
print("warnings about it:", texts)
same = max(apart(one_each[0], anna_first), apart(mixed[1], ben), apart(mixed[0], wrong)) < 0.01
same = same and apart(mixed[0], anna) > 0.3 and "ValueError" in refused and not texts
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
