#!/usr/bin/env bash
# seaborn: a layer takes any variable; so.Est() uses weights, and so.Agg() beside it does not.
#
# Seen with seaborn 0.13.2, matplotlib 3.11.2, pandas 3.1.1 (CPython 3.11, Linux). weight= is documented for Est, and
# Hist and KDE use it; Agg, Count, Perc and PolyFit take it as well and draw what they draw without it. The usual pair
# of layers for a mean and its interval, so.Dot() with so.Agg() and so.Range() with so.Est(), both with the same
# weights, thus puts a dot at 0.2 that lies far outside its own interval around 0.8. Plot() refuses a name that it does
# not know, add() takes every one: colour= draws without colours. Nothing is said. Expected: the weighted value, or the
# TypeError of Plot(). Take so.Est() for the dot, too, and compute weighted counts and quantiles before plotting.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export MPLBACKEND=Agg MPLCONFIGDIR="$place/matplotlib" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet seaborn==0.13.2 matplotlib==3.11.2 pandas==3.1.1 numpy==2.4.6
python - <<'PY'
import sys
import warnings

import numpy as np
import pandas as pd
import seaborn.objects as so

answers = pd.DataFrame({
    "method": "ours", "right": [1.0] * 20 + [0.0] * 80, "times": [16.0] * 20 + [1.0] * 80, "place": np.arange(100.0)})
weighted = float(np.average(answers["right"], weights=answers["times"]))


def drawn(mark, statistic, x="method", y="right", **variables):
    """What one layer shows: dots, ends of ranges, points of lines or heights of bars."""
    axes = so.Plot(answers, x=x, y=y).add(mark, statistic, **variables).plot()._figure.axes[0]
    shown = [line.get_ydata() for line in axes.lines] + [[bar.get_height()] for bar in axes.patches]
    for group in axes.collections:
        segments = getattr(group, "get_segments", list)()
        shown += [part[:, 1] for part in segments] or [group.get_offsets()[:, 1]]
    return np.concatenate(shown).astype(float).round(4).tolist()


LAYERS = {
    "Agg": (so.Dot(), so.Agg(), {}), "Est": (so.Dot(), so.Est(), {}),
    "Perc": (so.Dot(), so.Perc([50]), {}), "Count": (so.Bar(), so.Count(), {"y": None}),
    "Hist": (so.Bar(), so.Hist(), {"y": None}),
    "PolyFit": (so.Line(), so.PolyFit(1, gridsize=2), {"x": "place"}),
    "KDE": (so.Line(), so.KDE(gridsize=3, cut=0), {"x": "right", "y": None})}
unread = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name, (mark, statistic, other) in LAYERS.items():
        without, given = drawn(mark, statistic, **other), drawn(mark, statistic, weight="times", **other)
        unread[name] = without == given
        print(f"{name}: without weights {without}, with weights {given}")
    ends = drawn(so.Range(), so.Est(seed=0), weight="times")
    misspelt = drawn(so.Dot(), so.Agg(), colour="method") == drawn(so.Dot(), so.Agg())
    dot = drawn(so.Dot(), so.Agg(), weight="times")
about = [text for text in (str(warning.message) for warning in said) if "weight" in text or "colour" in text]
try:
    so.Plot(answers, x="method", y="right", colour="method")
    refused = False
except TypeError as error:
    refused = True
    print("Plot():", error)
print(f"weighted mean by numpy {weighted}; with these weights dot of Agg {dot}, range of Est {ends}; warnings: {about}")
print("add(colour=...) draws as without:", misspelt)
same = unread == {
    "Agg": True, "Est": False, "Perc": True, "Count": True, "Hist": False, "PolyFit": True, "KDE": False}
same = same and misspelt and refused and not about and dot == [0.2] and dot[0] < min(ends) - 0.1
same = same and min(ends) < weighted < max(ends)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
