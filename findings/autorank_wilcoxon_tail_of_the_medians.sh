#!/usr/bin/env bash
# autorank: of two models the Wilcoxon test looks into one tail, chosen by the medians: p is half of what it should be, or 1.
#
# Seen with autorank 1.3.0, numpy 2.4.6, scipy 1.17.1, pandas 3.1.1, statsmodels 0.15.0 (CPython 3.11, Linux). Where one of
# two columns is not normal, autorank() takes Wilcoxon's signed rank test, as documented, with alternative="greater" for the
# column whose median turned out higher. (1) The tail is chosen after the data were seen: p is half of the two-sided value,
# and at 5 % of the models that do not differ up to 10 % do. The t-test, which normal columns get, is two-sided. (2) The
# test is one of paired differences, whose direction need not be that of the medians. Of 21 users one model is better for
# 20; the middle one, for whom it is not, makes its median lower, and p is .99996: "we assume that there is no
# statistically significant difference", where the two-sided test has .00007. The effect size and mean ranks point
# the other way in the same table. The documentation says the p-value is that "for the difference in central
# tendency" and does not name a tail; the report's null hypothesis has one, and verbose=True prints "(one-sided)". No
# warning; no issue of the project about it was found. Call scipy.stats.wilcoxon() for the p-value.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg MPLCONFIGDIR="$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet autorank==1.3.0 baycomp==1.0.3 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 statsmodels==0.15.0 \
    matplotlib==3.11.2
python - <<'PY'
import contextlib
import io
import sys
import warnings

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata


def by_hand(first, second):
    """Two-sided p-value of the signed rank test, by its normal approximation."""
    gaps = first - second
    ranks = rankdata(np.abs(gaps))
    z = (ranks[gaps > 0].sum() - ranks.sum() / 2) / np.sqrt((ranks**2).sum() / 4)
    return 2 * norm.sf(abs(z))


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from autorank import autorank, create_report
    from scipy.stats import wilcoxon

    def asked(first, second):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            result = autorank(pd.DataFrame({"one": first, "other": second}))
            text.truncate(0)
            create_report(result)
        return result, text.getvalue()

    low, high = np.linspace(0.15, 0.25, 10), np.linspace(0.75, 0.85, 10)
    one = np.concatenate([low, [0.5], high])
    other = np.concatenate([low + 0.04 + 0.001 * np.arange(10), [0.47], high + 0.03 + 0.0011 * np.arange(10)])
    result, text = asked(one, other)
    rng, shares = np.random.default_rng(0), []
    while len(shares) < 12:
        user = rng.exponential(size=40)
        first, second = user + 0.3 * rng.standard_normal((2, 40))
        draw, _ = asked(first, second)
        agree = (np.median(first) > np.median(second)) == (wilcoxon(first, second, alternative="greater").pvalue < 0.5)
        if draw.omnibus == "wilcoxon" and agree:
            shares.append(draw.pvalue / wilcoxon(first, second).pvalue)

ranks = result.rankdf["meanrank"]
print(f"better for {int((other > one).sum())} of 21 users; test: {result.omnibus}, p = {result.pvalue:.5f}")
print(f"two-sided: scipy {wilcoxon(one, other).pvalue:.5f}, by hand {by_hand(one, other):.5f}")
print(f"mean ranks: one {ranks['one']:.2f}, other {ranks['other']:.2f}; medians {np.median(one):.2f}, {np.median(other):.2f}")
assumed = "there is no statistically significant difference" in text
print("report: no statistically significant difference:", assumed)
print("no difference, tails agree: p divided by the two-sided p:", sorted({round(float(share), 6) for share in shares}))
words = ("wilcoxon", "sided", "tail")
about = [str(each.message) for each in said if any(word in str(each.message).lower() for word in words)]
print("warnings about it:", about)
same = result.omnibus == "wilcoxon" and result.pvalue > 0.999 and assumed and wilcoxon(one, other).pvalue < 0.001
same = same and by_hand(one, other) < 0.001 and ranks["other"] < ranks["one"]
same = same and np.allclose(shares, 0.5) and not about
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
