#!/usr/bin/env bash
# trl: before its first step DPO's accuracy is 0, whichever of two answers is called the chosen one.
#
# Seen with trl 1.16.0, transformers 5.23.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). The policy starts as the
# reference model, so that the rewards of chosen and rejected answers are both 0: eval_loss is ln 2 and the margin 0, and
# rewards/accuracies, which counts chosen > rejected, is 0.0. It is 0.0 with all pairs turned round as well: a tie counts
# as wrong in both. Expected: one half, which is what whoever knows nothing has, or the ties named. A curve that
# rises from 0 to .5 looks like learning and is none; a policy that half precision leaves with many ties is below a
# guess for the same reason. Read margins beside accuracies, or count a tie as half. torch needs no CUDA.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0 numpy==2.4.6
cat >first.py <<'PY'
import copy
import math

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = ["<pad>", "<eos>", "<unk>", *"does user one two three like tea coffee yes no ?".split()]
plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    pad_token_id=0, eos_token_id=1, bos_token_id=None))
asked = [(f"does user {user} like {drink} ?", answer) for user, drink, answer in (
    ("one", "tea", " yes"), ("one", "coffee", " no"), ("two", "tea", " no"), ("three", "coffee", " yes"))]
other = {" yes": " no", " no": " yes"}
chosen = Dataset.from_list([{"prompt": q, "chosen": a, "rejected": other[a]} for q, a in asked])
turned = Dataset.from_list([{"prompt": q, "chosen": other[a], "rejected": a} for q, a in asked])
options = DPOConfig("out", max_steps=60, learning_rate=1e-2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
                    per_device_eval_batch_size=4, save_strategy="no", logging_strategy="no")
trainer = DPOTrainer(
    model, ref_model=copy.deepcopy(model), args=options, train_dataset=chosen, eval_dataset=chosen,
    processing_class=tokenizer)


def measured(pairs):
    found = trainer.evaluate(pairs)
    return [round(found[f"eval_{name}"], 4) for name in ("loss", "rewards/margins", "rewards/accuracies")]


before = [measured(pairs) for pairs in (trainer.eval_dataset, turned)]
print("loss, margin, accuracy before training:", *before)
trainer.train()
after = [measured(pairs)[2] for pairs in (trainer.eval_dataset, turned)]
print("accuracies after training:", *after)
seen = before == [[round(math.log(2), 4), 0.0, 0.0]] * 2 and sum(after) == 1.0
raise SystemExit(0 if seen else "this is no longer so")
PY
python first.py 2>log || { cat log; exit 1; }
