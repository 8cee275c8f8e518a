#!/usr/bin/env bash
# transformers: in Qwen2.5-VL a cached conversation goes on at the positions of whoever was read last.
#
# Seen with transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux), in Qwen2-VL, Qwen2.5-VL and Qwen3-VL of
# random weights. A picture takes fewer positions than tokens; how many fewer is kept in the model (rope_deltas), not in
# the cache that the caller keeps. With a cache per user, a question to the first is asked at the positions of the user
# whose picture was read last, in forward() and in generate(): some logits are off by two of their standard
# deviations, the greedy answer is another one, and nothing is said. In a second copy of the model, which read nothing, the
# same cache goes on as if its picture were text. Expected: what one call with the whole conversation gives, as with
# LLaVA; that is what past_key_values is for. Questions to users behind cached profiles are this case, when their pictures
# differ in number or size. Putting model.model.rope_deltas back along with each cache mends it.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.4.6
python - <<'PY'
import copy
import logging
import sys
import warnings

import torch
from transformers import (CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration,
                          Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig,
                          Qwen2VLForConditionalGeneration, Qwen3VLConfig, Qwen3VLForConditionalGeneration)

PICTURE, START, END = 3, 5, 6
words = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2)
turned = dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4})
marks = dict(image_token_id=PICTURE, video_token_id=4, vision_start_token_id=START, vision_end_token_id=END)
patches = dict(depth=1, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
question = torch.tensor([[30, 31, 32]])
heard = []
logging.getLogger("transformers").addHandler(type("Ears", (logging.Handler,), {
    "emit": lambda self, record: heard.append(record.getMessage())})())


def made(kind):
    torch.manual_seed(0)
    if kind == "LLaVA":
        model = LlavaForConditionalGeneration(LlavaConfig(
            text_config=LlamaConfig(**words), image_token_index=PICTURE, vision_config=CLIPVisionConfig(
                hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
                patch_size=4)))
    elif kind == "Qwen2-VL":
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(
            text_config=words | turned, **marks, vision_config=patches | dict(embed_dim=32, hidden_size=64)))
    elif kind == "Qwen2.5-VL":
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
            text_config=words | turned, **marks, vision_config=patches | dict(
                hidden_size=32, out_hidden_size=64, intermediate_size=32, window_size=16, fullatt_block_indexes=[0])))
    else:
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(
            text_config=words | turned | dict(head_dim=16), **marks, vision_config=patches | dict(
                hidden_size=32, out_hidden_size=64, intermediate_size=32, num_position_embeddings=256,
                deepstack_visual_indexes=[0])))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def profile(kind, side, text):
    """A picture of side x side patches and some words, as a processor gives them."""
    if kind == "LLaVA":
        return dict(input_ids=torch.tensor([[START] + [PICTURE] * 16 + [END] + text]),
                    pixel_values=torch.randn(1, 3, 16, 16))
    ids = torch.tensor([[START] + [PICTURE] * (side // 2) ** 2 + [END] + text])
    return dict(input_ids=ids, mm_token_type_ids=(ids == PICTURE).int(), image_grid_thw=torch.tensor([[1, side, side]]),
                pixel_values=torch.randn(side * side, 3 * 2 * 4 * 4))


@torch.no_grad()
def look(kind):
    model = made(kind)
    fresh = copy.deepcopy(model)
    inputs = {"first": profile(kind, 12, [10, 11, 12]), "second": profile(kind, 4, [20, 21])}
    whole = dict(inputs["first"], input_ids=torch.cat([inputs["first"]["input_ids"], question], 1))
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (whole["input_ids"] == PICTURE).int()
    right = model(**whole).logits[0, -1]
    right_words = model.generate(**whole, max_new_tokens=8, do_sample=False)[0, -8:].tolist()

    def read(*users):
        """The first user's cache after all of these were read, each with a cache of their own, and what was kept."""
        caches, kept = {user: DynamicCache(config=model.config.get_text_config()) for user in users}, None
        for user in users:
            model(**inputs[user], past_key_values=caches[user], use_cache=True)
            kept = getattr(model.model, "rope_deltas", None) if user == "first" else kept
        return caches["first"], kept

    def asked(cache, who=model):
        return (who(input_ids=question, past_key_values=cache).logits[0, -1] - right).abs().max().item() / right.std().item()

    found = {"alone": asked(read("first")[0]), "read before": asked(read("second", "first")[0])}
    found["read between"] = asked(read("first", "second")[0])
    found["second copy"] = asked(read("first")[0], fresh)
    cache, kept = read("first", "second")
    if kept is not None:
        model.model.rope_deltas = kept
    found["put back"] = asked(cache)
    spoken = {users: model.generate(whole["input_ids"], past_key_values=read(*users)[0], max_new_tokens=8,
                                    do_sample=False)[0, -8:].tolist() == right_words
              for users in (("first",), ("first", "second"))}
    print(f"{kind}: largest difference of the logits to one call with everything, in their standard deviations:",
          {name: round(value, 4) for name, value in found.items()})
    print(f"{kind}: generate() answers as with one call: alone {spoken['first',]}, other user read between "
          f"{spoken['first', 'second']}")
    return tuple(value > 0.5 for value in found.values()) + tuple(spoken.values()), max(found["alone"], found["put back"])


seen = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for kind in ("LLaVA", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"):
        seen[kind], rounding = look(kind)
        seen[kind] += (rounding < 1e-3,)
print("warnings:", [str(warning.message) for warning in said], "log:", heard)
fine, moved = (False,) * 5 + (True,) * 3, (False, False, True, True, False, True, False, True)
same = not heard and not said and seen == {
    "LLaVA": fine, "Qwen2-VL": moved, "Qwen2.5-VL": moved, "Qwen3-VL": moved}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
