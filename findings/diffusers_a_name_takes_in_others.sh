#!/usr/bin/env bash
# diffusers: a learned word brings in whatever learned word is named like it with _1, and swallows the longer name.
#
# Seen with diffusers 0.42.1, transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). A concept of several
# vectors is kept as the words NAME, NAME_1, NAME_2; before encoding, the pipeline writes behind a NAME in the prompt
# all words NAME_1, NAME_2 that the tokenizer knows, whoever's they are, and replaces NAME wherever these letters stand.
# So (1) of three people, each learned as one vector and loaded as user, user_1 and user_2, "a photo of user" is encoded
# with all three, and the first user's picture (same seed, same weights) changes when the second user is loaded; and (2)
# of anna and annabel, two vectors each, "anna beside annabel" is encoded with no vector of annabel, who is right when
# alone, and with anna twice or three times, as the process happens to order a set: the same seed gives two pictures in
# two runs. Loading refuses the opposite order (user after user_1) and no other. No warning. Expected: the vectors that
# were loaded for the word. load_textual_inversion() says nothing of names: give names in brackets, as <anna>, none of
# which is another with _1 behind it.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet diffusers==0.42.1 transformers==5.23.0 torch==2.13.0 numpy==2.4.6 pillow==13.0.0 accelerate==1.15.0
python - <<'PY'
import logging
import string
import sys
import warnings

import numpy as np
import torch

words_said = []
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    keep = logging.Handler()
    keep.emit = lambda record: words_said.append(record.getMessage())
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).addHandler(keep)
    letters = [*string.ascii_lowercase, *string.digits, "_"]
    known = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(known)}
    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=len(known), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=2, bos_token_id=len(known) - 2, eos_token_id=len(known) - 1)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=32,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8), text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77), unet=unet, feature_extractor=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def picture(prompt):
        seed = torch.Generator().manual_seed(1)
        return pipe(prompt, num_inference_steps=2, output_type="np", generator=seed).images

    def learned(prompt):
        """The added words among those that the pipeline encodes for a prompt."""
        tokens = pipe.tokenizer.tokenize(pipe.maybe_convert_prompt(prompt, pipe.tokenizer))
        return [token for token in tokens if token not in vocabulary]

    def load(name, vectors):
        pipe.load_textual_inversion({name: torch.randn(vectors, 32, generator=torch.Generator().manual_seed(len(name)))})

    load("user", 1)
    before, cat = picture("a photo of user"), picture("a photo of a cat")
    load("user_1", 1)
    load("user_2", 1)
    moved = float(np.abs(picture("a photo of user") - before).max())
    still = float(np.abs(picture("a photo of a cat") - cat).max())
    load("anna", 2)
    load("annabel", 2)
    prompts = ("a photo of user", "a photo of user_1", "a photo of anna", "a photo of annabel", "anna beside annabel")
    found = {prompt: learned(prompt) for prompt in prompts}

for prompt, tokens in found.items():
    print(f"{prompt!r} is encoded with {tokens}")
print(f"user's picture after two others were loaded: changed by up to {moved:.3f}; a cat's: {still:.3f}")
everything = [*words_said, *(str(warning.message) for warning in said)]
about = [words for words in everything if "user" in words or "anna" in words or "multi-vector" in words.lower()]
print("warnings about it:", about)
same = found["a photo of user"] == ["user", "user_1", "user_2"] and found["a photo of user_1"] == ["user_1"]
same = same and found["a photo of annabel"] == ["annabel", "annabel_1"] and moved > 0.001 and still == 0 and not about
same = same and set(found["anna beside annabel"]) == {"anna", "anna_1"} and len(found["anna beside annabel"]) in (4, 6)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
