#!/usr/bin/env bash
# seaborn: numbers in a heatmap are white where the darker of its two colours would be read far better.
#
# Seen with seaborn 0.13.2, matplotlib 3.11.2, numpy 2.4.6, pandas 3.0.1 (CPython 3.11, Linux). `heatmap(annot=True)` writes
# nearly black where the cell's relative luminance (WCAG 2) is above .408, and white elsewhere. The two have the same
# contrast at about .2, so that between there and .408 the worse one is taken: 2.3 to 1 at the upper end, where the dark
# one has 6.5. Of 101 even steps of the default colours 16 are in between, of cividis 21; below the 4.5 to 1 that text of
# this size is asked to have are 21 and 27, with the better colour of the two 9 and 11. Another threshold cannot be given,
# one colour for all numbers can. No warning.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MPLBACKEND=agg
python3 -m venv venv && . venv/bin/activate
pip install --quiet seaborn==0.13.2 matplotlib==3.11.2 numpy==2.4.6 pandas==3.0.1
python - <<'PY'
import sys

import numpy as np
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


steps, lowest, wrong = np.linspace(0, 1, 101)[None], {}, {}
for name in ("rocket", "gray", "cividis"):
    axis = Figure().subplots()
    sns.heatmap(steps, cmap=name, annot=True, ax=axis)
    cells = [(text.get_color(), face[:3]) for text, face in zip(axis.texts, axis.collections[0].get_facecolors())]
    dark = next(colour for colour, _ in cells if luminance(colour) < 0.1)
    light = next(colour for colour, _ in cells if luminance(colour) > 0.9)
    lowest[name] = min(contrast(colour, face) for colour, face in cells)
    best = [max(contrast(dark, face), contrast(light, face)) for _, face in cells]
    wrong[name] = sum(contrast(*cell) < 0.99 * most for cell, most in zip(cells, best))
    _, face = min(cells, key=lambda cell: contrast(*cell))
    print(f"{name}: lowest contrast {lowest[name]:.2f}, where the other colour has {contrast(dark, face):.2f}; "
          f"the worse of the two in {wrong[name]} of {len(cells)} cells, below 4.5 in "
          f"{sum(contrast(*cell) < 4.5 for cell in cells)} (with the better one in {sum(most < 4.5 for most in best)})")
same = all(value < 3 for value in lowest.values()) and all(wrong.values())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
