"""Statistics of two columns within blocks, a seed or a seed and a family, over conditions.

Runs of one seed share their training order and their initial head, so they are compared with each other only: sums are
taken within blocks. Conditions are what is sampled: they are left out and permuted whole, with all their seeds.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.report.statistics import jackknife_error

ENOUGH = 6  # conditions; no interval from fewer


class Grid(NamedTuple):
    """Columns as (condition, seed), NaN where there is no run, and where each family's conditions begin.

    `held`, (k, condition, seed): what x and y are taken at equal values of.
    """

    x: np.ndarray
    y: np.ndarray
    held: np.ndarray
    starts: np.ndarray

    def without(self, condition: int) -> "Grid":
        """All conditions but one."""
        x = self.x.copy()
        x[condition] = np.nan
        return self._replace(x=x)


def grid_of(runs: pd.DataFrame, x: str, y: str, held: tuple[str, ...] = (), *, within_families: bool) -> Grid:
    """The grid of runs, its conditions sorted by family; within families without those that are alone in theirs.

    Args:
        runs: one row per condition and seed.
        x: a column.
        y: another.
        held: columns to take both at equal values of.
        within_families: whether a block is a seed and a family; else a seed.
    """
    family = runs.groupby("label", sort=False)["family"].first() if within_families else None
    if within_families:
        family = family[family.map(family.value_counts()) > 1].sort_values(kind="stable")
        runs = runs[runs["label"].isin(family.index)]
    labels = runs["label"].unique() if family is None else family.index
    columns = [runs.pivot(index="label", columns="seed", values=name).reindex(labels) for name in (x, y, *held)]
    # Differences only matter: values near 0 lose no digits in the sums.
    values = [(column - column.mean(axis=None) if column.size else column).to_numpy(dtype=float) for column in columns]
    starts = np.array([0]) if family is None else np.flatnonzero(~family.duplicated().to_numpy())
    return Grid(*values[:2], np.array(values[2:]), starts)


def free(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
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


class Inference(NamedTuple):
    """What `inference` finds of a statistic.

    Attributes:
        value: of all conditions; NaN where it is undefined.
        interval: 95 % jackknife interval, NaN with fewer than six conditions.
        left: the smallest and the largest value that is left when a condition is left out.
        p_value: two-sided, by permutation.
    """

    value: float
    interval: tuple[float, float]
    left: tuple[float, float]
    p_value: float


def inference(grid: Grid, statistic: Callable, n_permutations: int, *, seed: int = 0) -> Inference:
    """A statistic of a grid with interval and p-value, see `slopes.slope`; NaN with fewer than two conditions.

    Args:
        grid: of x and y, which the statistic takes less their fit on what is held (`free`).
        statistic: of x, of any number of y (…, condition, seed), and of where the families begin.
        n_permutations: arrangements at most.
        seed: of the random ones.
    """
    n, (x, y) = len(grid.x), free(grid)
    value = float(statistic(x, y, grid.starts)) if n > 1 else math.nan
    if math.isnan(value):
        return Inference(value, (math.nan, math.nan), (math.nan, math.nan), math.nan)
    left = [float(statistic(*free(grid.without(c)), grid.starts)) for c in range(n)]
    interval = jackknife(value, left, n - len(grid.starts) - 1 - len(grid.held))
    orders, exact = _arrangements(np.diff([*grid.starts, n]), n_permutations, seed)
    permuted = np.abs(statistic(x, y[orders], grid.starts))
    as_large = int((permuted >= abs(value) * (1 - 1e-9)).sum())
    p = as_large / len(orders) if exact else (1 + as_large) / (1 + len(orders))
    return Inference(value, interval, (float(np.min(left)), float(np.max(left))), p)


def jackknife(value: float, left: list[float], freedom: int) -> tuple[float, float]:
    """The 95 % interval of a value from those that are left without one condition each; NaN with fewer than six."""
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


def sums(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
