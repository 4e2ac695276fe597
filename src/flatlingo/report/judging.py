"""What an interval and a p-value allow to say, by the rule that was fixed before the runs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SMALLEST = 0.5  # points, the smallest effect of interest: per halving of Tr(F), or between two conditions
TOO_FEW, TOO_FEW_SEEDS = "too few conditions", "too few seeds"


def judge(
    value: float,
    low: float,
    high: float,
    p_value: float,
    *,
    words: tuple[str, str, str] = ("rises", "falls", "no effect"),
    too_few: str = TOO_FEW,
) -> str:
    """What an interval allows to say; an effect smaller than the smallest of interest counts as none.

    The third word if the interval lies within ± `SMALLEST`; the first or second if it excludes 0 and p < 0.05; else
    "undecided".

    Args:
        value: in points.
        low: NaN for no interval.
        high: the same.
        p_value: corrected for the questions asked together.
        words: for up, down and neither.
        too_few: said where there is no interval.

    >>> judge(0.8, 0.6, 1.0, 0.001), judge(0.2, 0.1, 0.3, 0.001), judge(0.8, 0.1, 1.5, 0.06)
    ('rises', 'no effect', 'undecided')
    >>> judge(0.8, math.nan, math.nan, 0.001)
    'too few conditions'
    """
    if math.isnan(low) or math.isnan(high):
        return too_few
    if low >= -SMALLEST and high <= SMALLEST:
        return words[2]
    if (low > 0 or high < 0) and p_value < 0.05:
        return words[0] if value > 0 else words[1]
    return "undecided"


def holm(p_values: list[float]) -> np.ndarray:
    """P-values corrected for being asked together (Holm 1979); NaN stays and is not counted.

    >>> holm([0.01, 0.04, math.nan, 0.03]).round(2).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    corrected = np.array(p_values, dtype=float)
    order = np.argsort(corrected)[: np.isfinite(corrected).sum()]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * corrected[order]), 1)
    return corrected


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus, and some decimals.

    >>> signed(-0.25, 1), signed(3, 2)
    ('−0.2', '+3.00')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(row: Mapping[str, Any], digits: int) -> str:
    """`+0.3 [−0.1, +0.7]`; without an interval the value alone, and where there is no value nothing."""
    value, low, high = (signed(row[name], digits) for name in ("value", "low", "high"))
    if math.isnan(row["low"]):
        return "" if math.isnan(row["value"]) else value
    return f"{value} [{low}, {high}]"


def said(row: Mapping[str, Any]) -> str:
    """A value with its interval and verdict, in points: `+0.31 [+0.10, +0.52]: no effect`; without a value the verdict.

    >>> said({"value": 0.31, "low": -0.1, "high": 0.72, "verdict": "undecided"})
    '+0.31 [−0.10, +0.72]: undecided'
    """
    return ": ".join(part for part in (interval(row, 2), row["verdict"]) if part)
