"""Two conditions compared over the seeds that both have: the mean difference with its t interval."""

import warnings
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report.judging import signed
from flatlingo.report.shapes import require

FEWEST_SEEDS = 3  # for an interval over seeds: of two, with one degree of freedom, it is 13 standard errors wide


@dataclass(frozen=True)
class Difference:
    """Mean difference of two conditions, paired by seed, with its 95 % t interval and the p-value of the t test.

    Interval and p-value are NaN for a single seed, the p-value also if all differences are 0.

    >>> print(Difference(0.012, -0.001, 0.025, 0.06, 3))
    +1.2 points [−0.1, +2.5] over 3 seeds
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int

    def row(self) -> dict[str, float]:
        """As columns of a table: `value, low, high, p, seeds`."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p_value, "seeds": self.n}

    def __str__(self) -> str:
        value, low, high = (signed(100 * number, 1) for number in (self.value, self.low, self.high))
        return f"{value} points [{low}, {high}] over {self.n} seeds" if self.n > 1 else f"{value} points"


def difference(table: pd.DataFrame, label: str, baseline: str, y: str) -> Difference:
    """Mean over seeds of `y` under one condition minus `y` under another, in the units of `y`.

    Args:
        table: runs (of one language, if there are several).
        label: the condition.
        baseline: the one it is compared with.
        y: name of the column.

    Returns:
        The difference over the seeds that both have.

    Raises:
        FlatlingoError: if the two conditions share no seed.
    """
    require(table, ["label", "seed", y])
    first, second = (table[table["label"] == name].set_index("seed")[y] for name in (label, baseline))
    gaps = (first - second).dropna()
    if gaps.empty:
        raise FlatlingoError(f"conditions {label} and {baseline} have no seed in common")
    return over_seeds(gaps)


def over_seeds(values: pd.Series) -> Difference:
    """Mean of one value per seed, its 95 % t interval, and the t test that it is 0; seeds without a value do not count.

    >>> found = over_seeds(pd.Series([0.01, 0.02, 0.03, None]))
    >>> print(found, round(found.p_value, 3))
    +2.0 points [−0.5, +4.5] over 3 seeds 0.074
    """
    values = values.dropna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one seed, or seeds that differ by nothing: NaN, or p is 0
        found = stats.ttest_1samp(values, 0)
        ends = found.confidence_interval()
    return Difference(float(values.mean()), float(ends.low), float(ends.high), float(found.pvalue), len(values))
