"""The two claims of docs/claims.md, which were written down before the runs, held against an edition's tables."""

from collections.abc import Iterator

import pandas as pd

CLAIMS_COLUMNS = ("claim", "kind", "about", "said", "measured", "outcome")

TOLD, FRESH = "auc_told", "auc_untold_fresh"

PREFMOE, LORA, READER, LORA_READER = "PrefMoE", "LoRA", "Non-tuned with profile", "LoRA with profile"
ANCHORS, FREE = "LoRA that reads frozen anchors", "Free user embedding"

RANGES = (
    ("a", PREFMOE, TOLD, 0.75, 0.90), ("a", LORA, TOLD, 0.45, 0.58),
    ("b", PREFMOE, FRESH, 0.55, 0.75), ("b", LORA_READER, FRESH, 0.50, 0.65),
)  # fmt: skip
"""Claim, method, measure, and where its value was expected."""

EXPECTED, REFUTING = "expected", "would refute"


def claims_table(
    table1: pd.DataFrame, controls: pd.DataFrame, comparisons: pd.DataFrame, *, backbone: str, turns: int = 0
) -> pd.DataFrame:
    """Every sentence of the claims with what came out on one backbone.

    Args:
        table1, controls, comparisons: as `tables.read_table` reads them.

    Returns the columns of `CLAIMS_COLUMNS`: claim ("a" or "b"), kind (`EXPECTED` or `REFUTING`), about, said, measured
    (value and interval), outcome: whether it came out so. Sentences about rows that the edition does not have are left
    out.
    """
    main = table1[(table1["backbone"] == backbone) & (table1["turns"] == turns)].set_index(["method", "metric"])
    under = controls[(controls["backbone"] == backbone) & (controls["method"] == PREFMOE)]
    under = under[under["metric"] == TOLD].set_index("control")
    paired = comparisons[(comparisons["backbone"] == backbone) & (comparisons["turns"] == turns)]
    paired = paired[paired["method"] == PREFMOE].set_index(["baseline", "metric"])
    rows = [*_expected(main, under), *_refuting(main, under, paired)]
    table = pd.DataFrame(rows, columns=list(CLAIMS_COLUMNS))
    return table.sort_values(["claim", "kind"], kind="stable", ignore_index=True)


def refuted_by(table: pd.DataFrame, claim: str) -> list[str]:
    """About which rows of `claims_table` something came out that refutes the claim; nothing if it is not refuted."""
    rows = table[(table["claim"] == claim) & (table["kind"] == REFUTING) & (table["outcome"] == "yes")]
    return list(rows["about"])


def _expected(main: pd.DataFrame, under: pd.DataFrame) -> Iterator[tuple]:
    for claim, method, measure, low, high in RANGES:
        if (one := _row(main, (method, measure))) is not None:
            said = f"{measure} between {low:.2f} and {high:.2f}"
            yield claim, EXPECTED, method, said, _text(one), _yes(low <= one["value"] <= high)
    reader, others = _row(main, (READER, TOLD)), [_row(main, (name, TOLD)) for name in (PREFMOE, LORA)]
    if reader is not None and all(one is not None for one in others):
        above = all(reader["value"] > one["value"] for one in others)
        yield "a", EXPECTED, READER, f"{TOLD} above {PREFMOE}'s and {LORA}'s", _text(reader), _yes(above)
    if (one := _row(under, "other_user")) is not None:
        about = f"{PREFMOE} with somebody else's prefix"
        yield "a", EXPECTED, about, f"{TOLD} falls to .5 or below it", _text(one), _yes(one["value"] <= 0.5)
    if (one := _row(under, "zero_prefix")) is not None:
        yield "a", EXPECTED, f"{PREFMOE} with a prefix of zeros", f"{TOLD} about .5", _text(one), _yes(_half(one))
    if (one := _row(main, (PREFMOE, FRESH))) is not None:
        yield "b", EXPECTED, PREFMOE, f"{FRESH} above .5 by its interval", _text(one), _yes(one["low"] > 0.5)
    for name in (FREE, LORA):
        if (one := _row(main, (name, FRESH))) is not None:
            yield "b", EXPECTED, name, f"{FRESH} not told apart from .5", _text(one), _yes(_half(one))


def _refuting(main: pd.DataFrame, under: pd.DataFrame, paired: pd.DataFrame) -> Iterator[tuple]:
    for claim, measure in (("a", TOLD), ("b", FRESH)):
        if (one := _row(main, (PREFMOE, measure))) is not None:
            said = f"the interval of {measure} includes .5"
            yield claim, REFUTING, PREFMOE, said, _text(one), _yes(_half(one))
    anchors, free = (_row(main, (name, TOLD)) for name in (ANCHORS, FREE))
    if anchors is not None and free is not None:
        said, measured = f"{TOLD} no higher than {FREE}'s", f"{_text(anchors)} beside {_text(free)}"
        yield "a", REFUTING, ANCHORS, said, measured, _yes(anchors["value"] <= free["value"])
    plain, other = (_row(under, kind) for kind in ("none", "other_user"))
    if plain is not None and other is not None:
        measured = f"{_text(plain)} becomes {_text(other)}"
        yield (
            "a",
            REFUTING,
            "somebody else's prefix",
            "changes nothing: both intervals touch",
            measured,
            _yes(other["high"] >= plain["low"]),
        )
    if (one := _row(paired, (ANCHORS, FRESH))) is not None:
        measured = f"{PREFMOE} minus it: {_text(one.rename({'difference': 'value'}), '+.3f')}"
        said = f"as good as {PREFMOE} in {FRESH}: the paired interval is not above 0"
        yield "b", REFUTING, ANCHORS, said, measured, _yes(one["low"] <= 0)


def _row(table: pd.DataFrame, key: str | tuple[str, str]) -> pd.Series | None:
    """The row of a unique key, or None without it or without a value."""
    row = table.loc[key] if key in table.index else None
    if row is None or pd.isna(row.get("value", row.get("difference"))):
        return None
    return row


def _half(row: pd.Series) -> bool:
    return row["low"] <= 0.5 <= row["high"]


def _text(row: pd.Series, form: str = ".3f") -> str:
    value, low, high = (format(float(row[name]), form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _yes(true: bool) -> str:
    return "yes" if true else "no"
