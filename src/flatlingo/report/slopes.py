"""How many points accuracy rises or falls per halving of Tr(F), over conditions, and what may be said of it."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report import blocks
from flatlingo.report.differences import FEWEST_SEEDS, over_seeds
from flatlingo.report.judging import TOO_FEW_SEEDS, holm, judge
from flatlingo.report.shapes import per_seed

OUTCOMES = {  # column: what prose calls it
    "english_accuracy": "English accuracy",
    "zero_shot_accuracy": "zero-shot accuracy",
    "gain": "gain",
    "adapted": "accuracy after adaptation",
}


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
    grid = blocks.grid_of(runs, "trace", y, within_families=within_families)
    value, interval, left, p = blocks.inference(grid, _slope, n_permutations, seed=seed)
    n = int((~np.isnan(grid.x)).sum())
    return Slope(value, *interval, *left, p, conditions=len(grid.x), seeds=runs["seed"].nunique(), runs=n)


def slopes(table: pd.DataFrame, **options) -> pd.DataFrame:
    """The slope of every outcome that the table has, with Holm's p-values over them and the verdicts; see `slope`.

    Returns:
        Indexed by outcome: `value, low, high` (points per halving of Tr(F)), `p` (Holm), `least, most, conditions,
        seeds, verdict`.

    Raises:
        FlatlingoError: as for `slope`.
    """
    found = [slope(table, y, **options) for y in outcomes(table)]
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


def of_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The slope of each single seed: their mean with its t interval, which knows how seeds differ and not conditions.

    What rests on few seeds can be decided over conditions and open here: `slope` holds the seed fixed.

    Args:
        table: as for `slope`, of any number of seeds.

    Returns:
        Indexed by outcome: `value, low, high` (points per halving of Tr(F)), `p` (of a t test, Holm), `least` and
        `most` of the seeds, `seeds`, `verdict`. No interval from fewer than `differences.FEWEST_SEEDS`.

    Raises:
        FlatlingoError: as for `slope`.
    """
    rows = {}
    for y in outcomes(table):
        found = pd.Series([slope(part, y, n_permutations=1).value for _, part in table.groupby("seed")])
        rows[OUTCOMES[y]] = over_seeds(found).row() | {"least": found.min(), "most": found.max()}
    rows = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "p", "least", "most", "seeds"])
    rows.loc[rows["seeds"] < FEWEST_SEEDS, ["low", "high", "p"]] = math.nan
    rows["p"] = holm(rows["p"].to_list())
    rows["verdict"] = [judge(*row[:4], too_few=TOO_FEW_SEEDS) for row in rows.itertuples(index=False)]
    return rows.astype({"seeds": int})


def outcomes(table: pd.DataFrame) -> list[str]:
    """Names of the outcomes that a table has values of."""
    return [name for name in OUTCOMES if name in table and table[name].notna().any()]


def _slope(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    products, squares, _ = blocks.sums(x, y, starts)
    return np.divide(products, squares, out=np.full_like(products, np.nan), where=squares > 1e-12)
