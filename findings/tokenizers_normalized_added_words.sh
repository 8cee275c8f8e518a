#!/usr/bin/env bash
# tokenizers: a word that add_tokens() added is found only behind a blank when the normalizer is Llama 2's.
#
# Seen with tokenizers 0.23.3 (CPython 3.11, Linux). Llama 2's normalizer puts "▁" in front of a text and in the place of
# every blank. Words given to add_tokens() as strings are looked for in the normalized text, after having been
# normalized themselves, so that they begin with "▁": of the five in "<sks> is <token0><token1><token2> <token3>." three
# are found (<sks>, <token0>, <token3>) and two fall apart into pieces, without a word. As
# AddedToken(..., normalized=False) all five are found. Every method that writes soft tokens one behind the other
# (Yo'LLaVA's "<sks> is <token0>...<token15>.") trains fewer of them than it says. Count added words in encoded prompts.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet tokenizers==0.23.3
python - <<'PY'
import string
import sys
from tokenizers import AddedToken, Tokenizer, models, normalizers

WORDS = ["<sks>", *(f"<token{k}>" for k in range(4))]
TEXT = "<sks> is <token0><token1><token2> <token3>."


def found(words):
    """Which of the added words are in the encoded text, with Llama 2's normalizer over single characters."""
    vocabulary = {"<unk>": 0} | {c: i for i, c in enumerate("▁" + string.printable, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_tokens(words)
    ids = tokenizer.encode(TEXT).ids
    return [w for w in WORDS if tokenizer.token_to_id(w) in ids]


plain, exact = found(WORDS), found([AddedToken(w, normalized=False) for w in WORDS])
print("added as strings:", plain)
print("normalized=False:", exact)
expected = plain == ["<sks>", "<token0>", "<token3>"] and exact == WORDS
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
