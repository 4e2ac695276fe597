"""Rank correlations within blocks, a seed or a seed and a family, and whether they agree with a claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.report import blocks
from flatlingo.report.blocks import Grid
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES, outcomes


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, its 95 % jackknife interval and its permutation p-value (`rank_correlation`).

    Attributes:
        value: the coefficient, -1..1; NaN where it is undefined (a constant column).
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, against "the conditions of x and y are paired at random".
        n: rows used.
        conditions: independent units among them: what the interval and the p-value rest on.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    conditions: int

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"Spearman ρ undefined ({self.conditions} conditions)"
        return f"Spearman ρ = {self.interval}, p = {self.p_value:.2g}"

    @property
    def interval(self) -> str:
        """`value [low, high]` with two decimals and a true minus sign; the value alone where there is no interval."""
        ends = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{ends}".replace("-", "−")


def rank_correlation(
    table: pd.DataFrame,
    y: str,
    *,
    x: str = "trace",
    given: tuple[str, ...] = (),
    within_families: bool = False,
    n_permutations: int = 9999,
) -> Correlation:
    """Spearman's ρ of an outcome and a trace within blocks; the p-value rests on |ρ|, permuted within the same blocks.

    Ranks are taken over all runs and centred within each block (a seed, or a seed and a family). With `given`, the
    partial correlation: both sides less their least-squares fit on the centred ranks of these columns. Interval (of
    artanh ρ, with as many degrees of freedom less as columns are given) and permutations (of what is left of y) are
    those of `slopes.slope`: whole conditions, within families where these are held fixed.

    Args:
        table: as for `slopes.slope`; rows that lack a value in a column used are left out.
        y: name of a column.
        x: name of another.
        given: names of columns to hold fixed.
        within_families: as for `slopes.slope`.
        n_permutations: as for `slopes.slope`.

    Returns:
        The correlation; NaN where nothing was measured, varies within a block, or is left after the fit; the interval
        NaN with fewer than six conditions.

    Raises:
        FlatlingoError: for a column that the table lacks, or two runs of one condition and seed.

    >>> runs = pd.DataFrame({"family": "l2", "label": list("abcd"), "seed": 1, "trace": [9.0, 4.0, 2.0, 1.0]})
    >>> print(rank_correlation(runs.assign(gain=[0.0, 1.0, 1.5, 1.4]), "gain"))
    Spearman ρ = −0.80, p = 0.33
    >>> print(rank_correlation(runs.assign(gain=math.nan), "gain"))
    Spearman ρ undefined (0 conditions)
    """
    grid = _ranked(table, x, y, given, within_families)
    value, interval, _, p = blocks.inference(grid, _artanh_correlation, n_permutations)
    low, high = np.tanh(interval)
    return Correlation(math.tanh(value), float(low), float(high), p, int((~np.isnan(grid.x)).sum()), len(grid.x))


def stronger(table: pd.DataFrame, y: str, *, x: str, given: tuple[str, ...] = ()) -> tuple[float, float, float]:
    """How much stronger one column's `rank_correlation` with y is than that of Tr(F): |ρ_x| - |ρ_trace|, within seeds.

    Args:
        table: as for `rank_correlation`; both are of the runs that have all columns.
        y: see there.
        x: a column.
        given: see there.

    Returns:
        The difference and its 95 % jackknife interval over conditions (as for `slopes.slope`), NaN with fewer than six.

    Raises:
        FlatlingoError: as for `rank_correlation`.
    """
    known = per_seed(table, [x, "trace", y, *given])
    grids = [_ranked(known, name, y, given, within_families=False) for name in (x, "trace")]

    def gap(condition: int | None = None) -> float:
        left = [grid if condition is None else grid.without(condition) for grid in grids]
        first, second = (abs(math.tanh(_artanh_correlation(*blocks.free(grid), grid.starts))) for grid in left)
        return first - second

    value, n = gap(), len(grids[0].x)
    return value, *blocks.jackknife(value, [gap(c) for c in range(n)], n - 2 - len(given))


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """`rank_correlation` of every outcome with Tr(F), within seeds and within seeds and families, as a table."""
    rows = {}
    for within, block in ((False, "seed"), (True, "seed and family")):
        for y in outcomes(table):
            found = rank_correlation(table, y, within_families=within)
            rows[OUTCOMES[y], block] = {
                "Spearman ρ": found.value, "low": found.low, "high": found.high, "p (of |ρ|)": found.p_value,
                "conditions": found.conditions,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["outcome", "within"])


def verdict(found: Correlation, *, sign: int) -> str:
    """Whether a correlation agrees with a claim about its sign.

    "agrees" and "contradicts" need an interval that excludes 0 and p < 0.05: with few conditions neither alone will do.

    >>> verdict(Correlation(-0.8, -0.9, -0.4, 0.001, 42, 14), sign=-1)
    'agrees: Spearman ρ = −0.80 [−0.90, −0.40], p = 0.001'
    """
    if (found.low > 0 or found.high < 0) and found.p_value < 0.05:
        word = "agrees" if np.sign(found.value) == sign else "contradicts"
    else:
        word = "undecided"
    return f"{word}: {found}"


class Question(NamedTuple):
    """A rank correlation to ask of the runs in each language.

    Attributes:
        words: what tables and figures call it.
        x: a column.
        y: another.
        given: columns held fixed, see `rank_correlation`; seeds are blocks.
        within_families: whether families are blocks too.
        claim: what is expected, in words; "" for nothing.
        sign: of the correlation expected.
    """

    words: str
    x: str
    y: str
    given: tuple[str, ...] = ()
    within_families: bool = False
    claim: str = ""
    sign: int = -1


class Answer(NamedTuple):
    """What was found in one language."""

    language: str
    question: Question
    found: Correlation


def ask(table: pd.DataFrame, questions: Sequence[Question]) -> list[Answer]:
    """The answers to all questions, language by language; the table has one row per run and language."""
    return [
        Answer(
            language,
            one,
            rank_correlation(runs, one.y, x=one.x, given=one.given, within_families=one.within_families),
        )
        for language, runs in table.groupby("language", sort=False)
        for one in questions
    ]


def _ranked(table: pd.DataFrame, x: str, y: str, given: tuple[str, ...], within_families: bool) -> Grid:
    """The grid of ranks over all runs that have every column."""
    names = [x, y, *given]
    runs = per_seed(table, names)
    ranks = runs.assign(**{name: stats.rankdata(runs[name]) for name in names})
    return blocks.grid_of(ranks, x, y, given, within_families=within_families)


def _artanh_correlation(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    products, x_squares, y_squares = blocks.sums(x, y, starts)
    norms = np.sqrt(x_squares * y_squares)
    found = np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > 1e-12)
    return np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12))
