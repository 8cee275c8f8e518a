#!/usr/bin/env bash
# rank-bm25: a word of three statements in four weighs more than a word of two, which weighs nothing.
#
# Seen with rank-bm25 0.2.2, numpy 2.4.6 (CPython 3.11, Linux). BM25Okapi's weight of a word in n of N texts,
# log((N - n + 1/2) / (n + 1/2)), is below 0 where n > N/2, and such words get a quarter of the mean weight instead. A word
# in exactly half of the texts keeps its 0. So a rarer word may count for less, and does at the size of a user's profile:
# of four statements of which two are about tea, a question about tea finds none, while "likes", which stands in three,
# has a say. With two statements whatever tells them apart scores 0, and nothing is said. Expected: a weight that never
# grows with n. BM25Plus and BM25L of the same package have one.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet rank-bm25==0.2.2 numpy==2.4.6
python - <<'PY'
import sys
from rank_bm25 import BM25L, BM25Okapi, BM25Plus
four = [text.split() for text in ("likes green tea", "likes black tea", "likes walks in autumn", "plays the violin")]
two = [text.split() for text in ("ada likes tea", "ada likes jazz")]
found = {}
for make in (BM25Okapi, BM25Plus, BM25L):
    index = make(four)
    weight = {word: round(float(index.idf[word]), 3) for word in ("green", "tea", "likes")}
    lost = [round(float(score), 3) for score in make(two).get_scores(["jazz"])]
    found[make.__name__] = weight["tea"] > weight["likes"], lost[1] > lost[0]
    print(f"{make.__name__}: weights of words in 1, 2 and 3 of 4 texts {[*weight.values()]}; "
          f"'jazz' in the second of two texts scores {lost}")
same = found == {"BM25Okapi": (False, False), "BM25Plus": (True, True), "BM25L": (True, True)}
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
