#!/usr/bin/env bash
# transformers: in Llama 3.2 Vision (Mllama), text in front of the first picture looks at all pictures, padding included.
#
# Seen with transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). The processor's cross_attention_mask is 0
# where a token stands before every picture. The model turns such a row of the mask into "look at everything", to keep the
# softmax finite, and takes the MLP's part of the layer away again (full_text_row_masked_out_mask), but not that of the
# attention: what is added to the token is the mean over all pictures behind it. So (1) the logits of a token change with
# a picture that comes later, and (2) a conversation of one picture gets other logits in a batch with one of two, whose
# second place is padding that its mask forbids. Expected: no difference in either, as with any causal model, and as the
# mask says. Gates are 0 in a new model, which hides it; here they are 1. Matters wherever words come before the picture
# (a system prompt, a profile, a conversation) and answers should not depend on the batch: put rows with equally many
# pictures into a batch.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.4.6
python - <<'PY'
import sys

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

torch.manual_seed(0)
model = MllamaForConditionalGeneration(MllamaConfig(
    vision_config=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_global_layers=1, attention_heads=2,
                       image_size=16, patch_size=8, vision_output_dim=48, intermediate_layers_indices=[0], max_num_tiles=1,
                       supported_aspect_ratios=[[1, 1]]),
    text_config=dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                     num_key_value_heads=2, cross_attention_layers=[1], initializer_range=0.3, pad_token_id=0, bos_token_id=1,
                     eos_token_id=2),
    image_token_index=31)).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            parameter.fill_(1.0)


def logits(pixels, pictures, before=3):
    """Of six tokens: three words, the picture, two words; places of pictures beyond the first are forbidden padding."""
    mask = torch.zeros(1, 6, pictures, 1, dtype=torch.long)
    mask[:, before:, 0] = 1
    ids = torch.tensor([[5, 6, 7, 31, 8, 9]])
    padded = torch.cat([pixels, torch.zeros(1, pictures - 1, *pixels.shape[2:])], 1)
    ratio = torch.tensor([[1] + [0] * (pictures - 1)])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=padded, aspect_ratio_ids=ratio,
                     aspect_ratio_mask=torch.ones(1, pictures, 1, dtype=torch.long), cross_attention_mask=mask).logits[0]


one, other = torch.randn(2, 1, 1, 1, 3, 16, 16)
later = (logits(one, 1)[:3] - logits(other, 1)[:3]).abs().max().item()
padding = (logits(one, 1)[-1] - logits(one, 2)[-1]).abs().max().item()
control = (logits(one, 1, before=0)[-1] - logits(one, 2, before=0)[-1]).abs().max().item()
print(f"logits of words in front of the picture, for two pictures: they differ by up to {later:.3f}")
print(f"logits of the last word, with and without a forbidden second place: they differ by up to {padding:.3f}")
print(f"the same where no word stands in front of the picture: {control:.6f}")
expected = later > 0.01 and padding > 0.01 and control < 1e-4
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
