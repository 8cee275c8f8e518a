#!/usr/bin/env bash
# transformers: what a Gemma 3 processor calls its image token is not the token whose places the model fills with pictures.
#
# Seen with transformers 5.23.0 (CPython 3.11, Linux). `Gemma3Processor.image_token` and `.image_token_id` are the mark that
# begins a picture (boi); the places that `Gemma3Model` fills are those of `config.image_token_id`, which is the tokenizer's
# `image_token_id`. In LLaVA, Idefics 3 and most others the processor's, the tokenizer's and the model's are one. So a
# collator that masks `input_ids == processor.image_token_id` in the labels, as one would for LLaVA, finds one token of a
# picture of four here (of 256 at full size) and trains the model to say the other places; one that counts pictures by
# tokens finds one. Use `processor.image_token_ids`, or `config.image_token_id`.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet transformers==5.23.0 torch==2.13.0 numpy==2.4.6 pillow==13.0.0
python - <<'PY'
import sys

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = ["<pad>", "<unk>", "<bos>", "<eos>", "<start>", "<end>", "<soft>", "<image>"]
words = {token: place for place, token in enumerate([*MARKS, "what", "is", "this"])}
plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
plain.add_special_tokens(MARKS)
named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
picture = Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8))

tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **named, extra_special_tokens={
    "boi_token": "<start>", "eoi_token": "<end>", "image_token": "<soft>"})
images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=4)
gemma = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
config = transformers.Gemma3Config(image_token_index=words["<soft>"], boi_token_index=words["<start>"],
                                   eoi_token_index=words["<end>"], mm_tokens_per_image=4)
ids = gemma(text="<bos> <start> what is this", images=[picture])["input_ids"][0]

tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **named, extra_special_tokens={"image_token": "<image>"})
clip = transformers.CLIPImageProcessorPil(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
llava = transformers.LlavaProcessor(clip, tokenizer, patch_size=8, vision_feature_select_strategy="full",
                                    num_additional_image_tokens=0)
other = transformers.LlavaConfig(image_token_index=words["<image>"])
theirs = llava(text="<image> what is this", images=[picture])["input_ids"][0]

found = {}
for name, processor, one, said in (("Gemma 3", gemma, config, ids), ("LLaVA", llava, other, theirs)):
    wanted, called = one.image_token_id, processor.image_token_id
    found[name] = (called == wanted, said.count(called), said.count(wanted))
    print(f"{name}: the model fills token {wanted} (tokenizer's {processor.tokenizer.image_token_id}), the processor "
          f"calls {called} ({processor.image_token!r}) its image token; in a prompt of one picture {said.count(called)} "
          f"of it, {said.count(wanted)} to be filled")
sys.exit(0 if found == {"Gemma 3": (False, 1, 4), "LLaVA": (True, 4, 4)} else 1)
PY
