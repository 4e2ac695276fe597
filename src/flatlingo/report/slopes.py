"""How many points accuracy rises or falls per halving of Tr(F), over conditions, and what may be said of it.

Runs of one seed share their training order and their initial head, so they are compared with each other only: sums are
taken within blocks, a seed or a seed and a family. Conditions are what is sampled: they are left out and permuted
whole, with all their seeds.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report.judging import holm, judge
from flatlingo.report.statistics import Correlation, jackknife_error, language_means, require

OUTCOMES = {  # column: what prose calls it
    "english_accuracy": "English accuracy",
    "zero_shot_accuracy": "zero-shot accuracy",
    "gain": "gain",
    "adapted": "accuracy after adaptation",
}
ENOUGH = 6  # conditions; no interval from fewer


@dataclass(frozen=True)
class Slope:
    """Points of an outcome per halving of Tr(F), its 95 % jackknife interval and its permutation p-value.

    Attributes:
        value: positive where the outcome is higher at smaller traces; NaN where Tr(F) does not vary within a block.
        low: lower end of the interval; NaN with fewer than six conditions.
        high: upper end.
        least: the smallest slope that is left when a condition is left out.
        most: the largest: far from `least` where the slope hangs on a single condition.
        p_value: two-sided, on |slope|.
        conditions: what the interval and the p-value rest on.
        seeds: seeds among the runs.
        runs: runs used.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    p_value: float
    conditions: int
    seeds: int
    runs: int


class _Grid(NamedTuple):
    """Columns as (condition, seed), NaN where there is no run, and where each family's conditions begin.

    `held`, (k, condition, seed): what x and y are taken at equal values of.
    """

    x: np.ndarray
    y: np.ndarray
    held: np.ndarray
    starts: np.ndarray

    def without(self, condition: int) -> "_Grid":
        """All conditions but one."""
        x = self.x.copy()
        x[condition] = np.nan
        return self._replace(x=x)


def slope(
    table: pd.DataFrame, y: str, *, within_families: bool = False, seed: int = 0, n_permutations: int = 9999
) -> Slope:
    """Least-squares slope of an outcome in -log2 Tr(F) with the seed as a factor, or seed and family.

    Σ_b Σ_{i∈b} (x_i - x̄_b)(y_i - ȳ_b) / Σ_b Σ_{i∈b} (x_i - x̄_b)² over blocks b. A block is a seed or, within families,
    a seed and a family; a condition that is alone in its family then says nothing and is not counted.

    The interval leaves out one condition at a time, with all its seeds (the cluster jackknife, in the notation of
    MacKinnon, Nielsen & Webb 2023): value ± t · SE, SE² = (C-1)/C Σ_c (slope without c - their mean)², with t of C - 2
    degrees of freedom, within families of C - families - 1. On simulated studies of 7 to 14 conditions it covers the
    true slope in 92-99 % of cases; percentiles of resampled conditions cover it in 87-96 %.

    The p-value permutes whole conditions, within families where they are held fixed: a condition's values of y, of all
    seeds, go to another condition's traces. The statistic is |slope|. Every arrangement is tried where there are at
    most `n_permutations`; otherwise p = (1 + k)/(1 + n) for k of n random arrangements at least as large.

    Args:
        table: one row per run, or per run and target language (then the mean over languages counts).
        y: name of the outcome, in 0..1.
        within_families: whether the family is held fixed as well.
        seed: of the random arrangements.
        n_permutations: arrangements at most.

    Returns:
        The slope in points per halving.

    Raises:
        FlatlingoError: for a column that the table lacks, two runs of one condition and seed, or a trace of 0 or less.

    >>> runs = pd.DataFrame({"family": "l2", "label": list("abcd"), "seed": 1, "trace": [8.0, 4.0, 2.0, 1.0]})
    >>> found = slope(runs.assign(gain=[0.00, 0.01, 0.02, 0.03]), "gain")
    >>> round(found.value, 9), found.low, round(found.p_value, 3)  # 2 of 24 orders; four conditions give no interval
    (1.0, nan, 0.083)
    """
    runs = per_seed(table, ["trace", y])
    if (flat := runs["trace"] <= 0).any():
        raise FlatlingoError(f"column trace of run {runs.loc[flat.idxmax(), 'label']} is not above 0")
    runs = runs.assign(**{"trace": -np.log2(runs["trace"]), y: 100 * runs[y]})
    grid = _grid(runs, "trace", y, within_families=within_families)
    value, interval, left, p = _inference(grid, _slope, seed, n_permutations)
    n = int((~np.isnan(grid.x)).sum())
    return Slope(value, *interval, *left, p, conditions=len(grid.x), seeds=runs["seed"].nunique(), runs=n)


def slopes(table: pd.DataFrame, *, within_families: bool = False, seed: int = 0, **options) -> pd.DataFrame:
    """The slope of every outcome that the table has, with Holm's p-values over them and the verdicts.

    Returns:
        Indexed by outcome: `value, low, high` (points per halving of Tr(F)), `p` (Holm), `least, most, conditions,
        seeds, verdict`.

    Raises:
        FlatlingoError: as for `slope`.
    """
    found = [slope(table, y, within_families=within_families, seed=seed, **options) for y in outcomes(table)]
    rows = pd.DataFrame(
        {
            name: [getattr(one, name) for one in found]
            for name in ("value", "low", "high", "least", "most", "conditions", "seeds")
        },
        index=[OUTCOMES[y] for y in outcomes(table)],
    )
    rows.insert(3, "p", holm([one.p_value for one in found]))
    rows["verdict"] = [judge(row.value, row.low, row.high, row.p) for row in rows.itertuples()]
    return rows


def rank_correlation(
    table: pd.DataFrame,
    y: str,
    *,
    x: str = "trace",
    given: tuple[str, ...] = (),
    within_families: bool = False,
    seed: int = 0,
    n_permutations: int = 9999,
) -> Correlation:
    """Spearman's ρ of an outcome and a trace within blocks; the p-value rests on |ρ|, permuted within the same blocks.

    Ranks are taken over all runs and centred within each block (a seed, or a seed and a family). With `given`, the
    partial correlation: both sides less their least-squares fit on the centred ranks of these columns. Interval (of
    artanh ρ, with as many degrees of freedom less as columns are given) and permutations (of what is left of y) are
    those of `slope`: whole conditions, within families where these are held fixed.

    Args:
        table: as for `slope`; rows that lack a value in a column used are left out.
        y: as for `slope`, but it need not be an accuracy.
        x: name of a column, a trace or another measure.
        given: names of columns to hold fixed.
        within_families: as for `slope`.
        seed: as for `slope`.
        n_permutations: as for `slope`.

    Returns:
        The correlation; NaN where nothing varies within a block, or is left after the fit; the interval NaN with fewer
        than six conditions.

    Raises:
        FlatlingoError: as for `slope`.

    >>> runs = pd.DataFrame({"family": "l2", "label": list("abcd"), "seed": 1, "trace": [9.0, 4.0, 2.0, 1.0]})
    >>> print(rank_correlation(runs.assign(gain=[0.0, 1.0, 1.5, 1.4]), "gain"))
    Spearman ρ = −0.80, p = 0.33
    """
    grid = _ranked(table, x, y, given, within_families)
    value, interval, _, p = _inference(grid, _artanh_correlation, seed, n_permutations)
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
        The difference and its 95 % jackknife interval over conditions (as for `slope`), NaN with fewer than six.

    Raises:
        FlatlingoError: as for `slope`.
    """
    known = per_seed(table, [x, "trace", y, *given])
    grids = [_ranked(known, name, y, given, within_families=False) for name in (x, "trace")]

    def gap(condition: int | None = None) -> float:
        left = [grid if condition is None else grid.without(condition) for grid in grids]
        first, second = (abs(math.tanh(_artanh_correlation(*_free(grid), grid.starts))) for grid in left)
        return first - second

    value, n = gap(), len(grids[0].x)
    return value, *_jackknife(value, [gap(c) for c in range(n)], n - 2 - len(given))


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """`rank_correlation` of every outcome with Tr(F), within seeds and within seeds and families, as a table."""
    rows = {}
    for within, blocks in ((False, "seed"), (True, "seed and family")):
        for y in outcomes(table):
            found = rank_correlation(table, y, within_families=within)
            rows[OUTCOMES[y], blocks] = {
                "Spearman ρ": found.value, "low": found.low, "high": found.high, "p (of |ρ|)": found.p_value,
                "conditions": found.conditions,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["outcome", "within"])


def outcomes(table: pd.DataFrame) -> list[str]:
    """Names of the outcomes that a table has values of."""
    return [name for name in OUTCOMES if name in table and table[name].notna().any()]


def per_seed(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """One row per condition and seed that has all the columns; of a table with a second stage the mean over languages.

    Raises:
        FlatlingoError: for a column that the table lacks, or two runs of one condition and seed.
    """
    require(table, ["family", "label", "seed", *columns])
    runs = language_means(table) if "language" in table else table
    twice = runs.duplicated(["label", "seed"])
    if twice.any():
        label, seed = runs.loc[twice, ["label", "seed"]].iloc[0]
        raise FlatlingoError(f"condition {label} has two runs of seed {seed}; give the runs of one plan and preset")
    return runs.dropna(subset=columns)


def _ranked(table: pd.DataFrame, x: str, y: str, given: tuple[str, ...], within_families: bool) -> _Grid:
    """The grid of ranks over all runs that have every column."""
    names = [x, y, *given]
    runs = per_seed(table, names)
    ranks = runs.assign(**{name: stats.rankdata(runs[name]) for name in names})
    return _grid(ranks, x, y, given, within_families=within_families)


def _grid(runs: pd.DataFrame, x: str, y: str, held: tuple[str, ...] = (), *, within_families: bool = False) -> _Grid:
    """The grid of runs, its conditions sorted by family."""
    family = runs.groupby("label", sort=False)["family"].first() if within_families else None
    if within_families:
        family = family[family.map(family.value_counts()) > 1].sort_values(kind="stable")
        runs = runs[runs["label"].isin(family.index)]
    labels = runs["label"].unique() if family is None else family.index
    columns = [runs.pivot(index="label", columns="seed", values=name).reindex(labels) for name in (x, y, *held)]
    # Differences only matter: values near 0 lose no digits in the sums.
    values = [(column - column.mean(axis=None) if column.size else column).to_numpy(dtype=float) for column in columns]
    starts = np.array([0]) if family is None else np.flatnonzero(~family.duplicated().to_numpy())
    return _Grid(*values[:2], np.array(values[2:]), starts)


def _free(grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y less their least-squares fit on what is held, centred within blocks; NaN where nothing is left."""
    if not len(grid.held):
        return grid.x, grid.y
    present = ~(np.isnan(grid.x) | np.isnan(grid.y) | np.isnan(grid.held).any(axis=0))
    ends = [*grid.starts[1:], len(grid.x)]
    block = np.repeat(np.arange(len(ends)), np.diff([0, *ends]))[:, None] * grid.x.shape[1] + np.arange(grid.x.shape[1])
    rows = pd.DataFrame([column[present] for column in (*grid.held, grid.x, grid.y)]).T
    rows = (rows - rows.groupby(block[present]).transform("mean")).to_numpy()
    held, sides = rows[:, :-2], rows[:, -2:]
    left = sides - held @ np.linalg.lstsq(held, sides)[0]
    left[:, (left**2).sum(axis=0) <= 1e-18 * (sides**2).sum(axis=0)] = np.nan
    found = np.full((2, *grid.x.shape), np.nan)
    found[:, present] = left.T
    return tuple(found)


def _inference(
    grid: _Grid, statistic, seed: int, n_permutations: int
) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """A statistic of a grid: value, 95 % jackknife interval, range with one condition left out, permutation p-value."""
    n, (x, y) = len(grid.x), _free(grid)
    value = float(statistic(x, y, grid.starts)) if n > 1 else math.nan
    if math.isnan(value):
        return value, (math.nan, math.nan), (math.nan, math.nan), math.nan
    left = [float(statistic(*_free(grid.without(c)), grid.starts)) for c in range(n)]
    interval = _jackknife(value, left, n - len(grid.starts) - 1 - len(grid.held))
    orders, exact = _arrangements(np.diff([*grid.starts, n]), n_permutations, seed)
    permuted = np.abs(statistic(x, y[orders], grid.starts))
    as_large = int((permuted >= abs(value) * (1 - 1e-9)).sum())
    p = as_large / len(orders) if exact else (1 + as_large) / (1 + len(orders))
    return value, interval, (float(np.min(left)), float(np.max(left))), p


def _jackknife(value: float, left: list[float], freedom: int) -> tuple[float, float]:
    """The interval of a value from those that are left without one condition each."""
    if len(left) < ENOUGH or freedom < 1 or np.isnan(left).any():
        return math.nan, math.nan
    half = stats.t.ppf(0.975, freedom) * jackknife_error(left)
    return value - half, value + half


def _arrangements(sizes: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, bool]:
    """Orders of conditions in which each stays in its family, (order, condition), and whether these are all."""
    begins = np.cumsum(sizes) - sizes
    if math.prod(math.factorial(size) for size in sizes) <= most:
        every = [itertools.permutations(range(begin, begin + size)) for begin, size in zip(begins, sizes, strict=True)]
        return np.array([[*itertools.chain(*parts)] for parts in itertools.product(*every)]), True
    rng = np.random.default_rng(seed)
    parts = [np.tile(np.arange(begin, begin + size), (most, 1)) for begin, size in zip(begins, sizes, strict=True)]
    return np.concatenate([rng.permuted(part, axis=1) for part in parts], axis=1), False


def _slope(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    products, squares, _ = _sums(x, y, starts)
    return np.divide(products, squares, out=np.full_like(products, np.nan), where=squares > 1e-12)


def _artanh_correlation(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    products, x_squares, y_squares = _sums(x, y, starts)
    norms = np.sqrt(x_squares * y_squares)
    found = np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > 1e-12)
    return np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12))


def _sums(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums within blocks of (x - x̄)(y - ȳ), (x - x̄)² and (y - ȳ)², (…): of (…, condition, seed), NaN where absent."""
    present = ~(np.isnan(x) | np.isnan(y))
    x, y = np.where(present, x, 0.0), np.where(present, y, 0.0)
    number, x_sum, y_sum = (np.add.reduceat(values, starts, axis=-2) for values in (present.astype(float), x, y))
    number = np.maximum(number, 1)
    pairs = ((x, y, x_sum, y_sum), (x, x, x_sum, x_sum), (y, y, y_sum, y_sum))
    return tuple(
        np.einsum("...cs,...cs->...", a, b) - (a_sum * b_sum / number).sum(axis=(-2, -1))
        for a, b, a_sum, b_sum in pairs
    )
