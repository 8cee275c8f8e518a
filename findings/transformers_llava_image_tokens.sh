#!/usr/bin/env bash
# transformers: a LLaVA processor saved by 4.46 is loaded by 5.23 with one image token too few, and only the model objects.
#
# Seen with transformers 4.46.3 (writes the folder) and 5.23.0 (reads it), torch 2.13.0 on the CPU (CPython 3.11, Linux).
# The processor of 5.23 writes as many image tokens as there are patches, plus num_additional_image_tokens, minus one if
# the model drops CLIP's class token ("default"). A folder of 4.46 has no such field, and 0 is taken in silence, though its
# patch_size and "default" are there: 4 patches become 3 tokens. Expected: 1 for a tower with a class token, or a word at
# loading. Prompts are encoded, counted and stored without complaint; the first forward pass raises ("Image features and
# image tokens do not match"). Set processor.num_additional_image_tokens = 1 after loading. The model here is tiny and
# random, nothing is downloaded but packages; torch needs no CUDA.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
python3 -m venv old && python3 -m venv new
old/bin/pip install --quiet transformers==4.46.3 tokenizers==0.20.3 numpy==2.4.6 pillow==13.0.0
new/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6 pillow==13.0.0 torch==2.13.0
old/bin/python - <<'PY' 2>old.log || { cat old.log; exit 1; }
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "who": 2, "is": 3, "this": 4}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"])
pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
LlavaProcessor(
    pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default").save_pretrained("processor")
PY
echo "processor_config.json of 4.46.3:" $(cat processor/processor_config.json)
new/bin/python - <<'PY' 2>new.log || { cat new.log; exit 1; }
import logging
import sys
import warnings

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor)

said = []


class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger("transformers").addHandler(Listener())
logging.getLogger("transformers.here").warning("heard")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    processor = LlavaProcessor.from_pretrained("processor")
    taken = processor.num_additional_image_tokens
    picture = Image.new("RGB", (40, 30), (200, 30, 30))

    def encode():
        return processor(images=picture, text="<image> who is this", return_tensors="pt")
    short = encode()
said += [str(w.message) for w in caught]
processor.num_additional_image_tokens = 1
right = encode()

torch.manual_seed(0)
image = processor.image_token_id
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlavaForConditionalGeneration(LlavaConfig(
    vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **sizes),
    text_config=LlamaConfig(vocab_size=8, **sizes), image_token_index=image,
    vision_feature_select_strategy="default")).eval()


def forward(inputs):
    try:
        with torch.no_grad():
            return f"logits {list(model(**inputs).logits.shape)}"
    except ValueError as error:
        return f"ValueError: {error}"


count = [int((inputs["input_ids"] == image).sum()) for inputs in (short, right)]
outcome = [forward(inputs) for inputs in (short, right)]
about = [text for text in said if "additional" in text or "image token" in text.lower()]
print(f"loaded with num_additional_image_tokens {taken}; messages about it: {about}; all messages: {said}")
print(f"as loaded: {count[0]} image tokens, {outcome[0]}")
print(f"set to 1: {count[1]} image tokens, {outcome[1]}")
expected = (
    taken == 0 and "heard" in said and not about and count == [3, 4] and outcome[1] == "logits [1, 7, 8]"
    and outcome[0].startswith("ValueError: Image features and image tokens do not match"))
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
