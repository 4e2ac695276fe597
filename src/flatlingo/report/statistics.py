"""Estimates of plain numbers: a power law, the error of a mean, what conditions and seeds leave, the jackknife."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.errors import FlatlingoError


def power_law(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent b of y ∝ x^b: the slope of the least-squares line through log y against log x.

    >>> round(power_law([1, 10, 100], [2, 2000, 2000000]), 9)
    3.0
    """
    return float(stats.linregress(np.log(x), np.log(y)).slope)


class GroupedError(NamedTuple):
    """A relative error (root mean square) and its 95 % interval."""

    error: float
    low: float
    high: float


def grouped_error(units: Sequence[float], truth: float, size: int) -> GroupedError:
    """How far the mean of `size` independent estimates lies from the truth, measured on disjoint groups of them.

    (1/G Σ_g (mean of group g / truth - 1)²)^½ over G whole groups. The interval takes the groups' errors for normal:
    G times the mean square is then χ² with G degrees of freedom times its expectation.

    Args:
        units: the estimates; those of a last, incomplete group are left out.
        truth: what they estimate.
        size: of a group.

    Raises:
        FlatlingoError: if there are fewer estimates than a group needs.

    >>> grouped_error([1.1, 0.9, 1.2, 1.0], 1.0, 2).error  # groups of mean 1 and 1.1
    0.0707...
    """
    groups = len(units) // size
    if not groups:
        raise FlatlingoError(f"{len(units)} estimates make no group of {size}; draw more")
    means = np.reshape(units[: groups * size], (groups, size)).mean(axis=1)
    error = float(np.mean((means / truth - 1) ** 2) ** 0.5)
    low, high = (error * (groups / stats.chi2.ppf(end, groups)) ** 0.5 for end in (0.975, 0.025))
    return GroupedError(error, float(low), float(high))


def left_variance(runs: pd.DataFrame, y: str) -> tuple[float, int]:
    """What conditions and seeds leave of y: Σ (y - condition - seed)² / (n - C - S + 1), and its degrees of freedom.

    NaN without any.
    """
    freedom = len(runs) - runs["label"].nunique() - runs["seed"].nunique() + 1
    if freedom < 1:
        return np.nan, freedom
    design = pd.get_dummies(runs[["label", "seed"]].astype(str)).to_numpy(dtype=float)
    left = runs[y] - design @ np.linalg.lstsq(design, runs[y])[0]
    return float((left**2).sum() / freedom), freedom


def jackknife_error(left: Sequence[float]) -> float:
    """Standard error of an estimate from those that are left without one of its n units each: √((n-1)/n Σ (l - l̄)²).

    >>> jackknife_error([2.5, 2.0, 1.5])  # of the mean of 1, 2 and 3
    0.577...
    """
    left = np.asarray(left)
    n = len(left)
    return math.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
