"""Correlations with intervals, comparisons over seeds, and the tables that the notebooks print.

Everything here takes the tidy table of a sweep (one row per run, or one row per run and target language). Runs of one
condition differ in their seed only, so they are not independent evidence about the conditions: resampling and
permuting always move whole conditions, never single runs.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report.judging import signed
from flatlingo.study.families import title

FEWEST_SEEDS = 3  # for an interval over seeds: of two, with one degree of freedom, it is 13 standard errors wide
CONDITION = ["family", "weight", "label"]
SHARES_OF_LANGUAGES = ["start", "zero_shot", "adapted", "gain", "control", "control_gain"]  # of a run in each language
HEADINGS = {
    "english_accuracy": "English accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "noisy_fitted": "noisy labels fitted (%)",
    "trace": "Tr(F)",
    "zero_shot": "zero-shot accuracy (%)",
    "zero_shot_accuracy": "zero-shot accuracy (%)",
    "adapted": "adapted accuracy (%)",
    "gain": "gain (points)",
    "control_gain": "gain from as many English rows (points)",
}


@dataclass(frozen=True)
class Correlation:
    """A rank correlation, its 95 % jackknife interval and its permutation p-value (`slopes.rank_correlation`).

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


def require(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        FlatlingoError: naming what is missing and what there is.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise FlatlingoError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")


class PowerLaw(NamedTuple):
    """y ∝ x^exponent, and the standard error of the exponent."""

    exponent: float
    standard_error: float


def power_law(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """Least-squares line through log y against log x.

    >>> power_law([1, 10, 100], [2, 2000, 2000000]).exponent
    3.0
    """
    line = stats.linregress(np.log(x), np.log(y))
    return PowerLaw(float(np.round(line.slope, 12)), float(line.stderr))


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


def per_run(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run: of a table with a second stage, without what belongs to one language; else the table itself."""
    if "language" not in table:
        return table
    of_languages = ["language", *SHARES_OF_LANGUAGES]
    return table.drop(columns=of_languages, errors="ignore").drop_duplicates("run_id", ignore_index=True)


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


def check_one_baseline(table: pd.DataFrame) -> None:
    """Refuse a table in which plain fine-tuning has several lengths, where conditions are compared with the baseline.

    Such are recipes at several budgets of compute, which only those of one budget can be compared with.

    Raises:
        FlatlingoError: naming the baselines and what to do.
    """
    baselines = list(table.loc[table["family"] == "none", "label"].unique())
    if len(baselines) > 1:
        raise FlatlingoError(
            f"plain fine-tuning was run at several lengths ({', '.join(baselines)}), so that there is no one baseline; "
            "compare recipes at equal compute (report.technique), or give the rows of one length"
        )


def language_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run of a table with a second stage, with the means over the target languages."""
    keys = [name for name in table if name not in _measurements(table) and name != "language"]
    return table.groupby(keys, sort=False, dropna=False)[_measurements(table)].mean().reset_index()


def condition_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of every numeric column over the seeds of a condition, in the order of the table; `runs` counts them.

    Rows of different languages stay apart. The result can go wherever a table of runs can.
    """
    require(table, CONDITION)
    groups = table.groupby(_keys(table), sort=False)
    means = groups[_measurements(table)].mean()
    return means.assign(runs=groups.size()).reset_index()


def _keys(table: pd.DataFrame) -> list[str]:
    return CONDITION + [name for name in ("language",) if name in table]


def _measurements(table: pd.DataFrame) -> list[str]:
    numeric = table.select_dtypes("number").columns
    return [name for name in numeric if name not in [*CONDITION, "seed"]]


def summary(
    table: pd.DataFrame, columns: tuple[str, ...] = ("train_accuracy", "english_accuracy", "trace")
) -> pd.DataFrame:
    """A table to print: `mean ± sd` over seeds (sd with n - 1; left out for a single seed), one row per condition.

    Accuracies and gains are in per cent, traces in nats². Columns without any value (wrong labels, where none are
    known) are left out.

    Raises:
        FlatlingoError: for a column that the table lacks, or that is neither a share nor a trace.
    """
    require(table, [*CONDITION, *columns])
    columns = [name for name in columns if table[name].notna().any()]
    groups = table.groupby([name for name in _keys(table) if name not in ("family", "weight")], sort=False)
    printed = {"runs": groups.size()}
    for name in columns:
        language = name.removeprefix("accuracy_")
        heading = HEADINGS.get(name, name if language == name else f"{language} (%)")
        show = _text_of(name)
        printed[heading] = [show(*pair) for pair in zip(groups[name].mean(), groups[name].std(), strict=True)]
    return pd.DataFrame(printed)


def _text_of(name: str) -> Callable[[float, float], str]:
    """How the mean and standard deviation of a column are printed."""
    if "trace" in name:
        return _trace_text
    if "accuracy" in name or name in ("noisy_fitted", *SHARES_OF_LANGUAGES):
        return _percent_text
    raise FlatlingoError(f"column {name} is neither a share nor a trace, which is all that a summary prints; drop it")


def _percent_text(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f}" if np.isnan(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _trace_text(mean: float, sd: float) -> str:
    return rounded(mean) if np.isnan(sd) else f"{rounded(mean)} ± {rounded(sd, 2)}"


def rounded(value: float, digits: int = 3) -> str:
    """A trace to some significant digits, written out.

    >>> rounded(1489.2), rounded(27.64), rounded(0.0123, 2)
    ('1490', '27.6', '0.012')
    """
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def as_table(correlations: dict[object, Correlation]) -> pd.DataFrame:
    """Correlations to print, one row each; the keys (words, or tuples for several levels) become the index."""
    columns = {"value": "value", "low": "low", "high": "high", "p_value": "p", "n": "rows", "conditions": "conditions"}
    values = {heading: [getattr(row, name) for row in correlations.values()] for name, heading in columns.items()}
    keys = list(correlations)
    index = pd.MultiIndex.from_tuples(keys) if isinstance(keys[0], tuple) else keys
    return pd.DataFrame(values, index=index).round({"value": 2, "low": 2, "high": 2, "p": 4})


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

    >>> found = over_seeds(pd.Series([0.01, 0.02, 0.03, np.nan]))
    >>> print(found, round(found.p_value, 3))
    +2.0 points [−0.5, +4.5] over 3 seeds 0.074
    """
    values = values.dropna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one seed, or seeds that differ by nothing: NaN, or p is 0
        found = stats.ttest_1samp(values, 0)
        ends = found.confidence_interval()
    return Difference(float(values.mean()), float(ends.low), float(ends.high), float(found.pvalue), len(values))


def jackknife_error(left: Sequence[float]) -> float:
    """Standard error of an estimate from those that are left without one of its n units each: √((n-1)/n Σ (l - l̄)²).

    >>> jackknife_error([2.5, 2.0, 1.5])  # of the mean of 1, 2 and 3
    0.577...
    """
    left = np.asarray(left)
    n = len(left)
    return math.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())


def best_of_family(table: pd.DataFrame) -> pd.DataFrame:
    """The condition of highest mean English accuracy in each family, compared with no regulariser over the same seeds.

    Choosing on the rows that are then reported favours families with many conditions.

    Raises:
        FlatlingoError: for several baselines (`check_one_baseline`), or conditions without a seed in common.
    """
    check_one_baseline(table)
    means = condition_means(table)
    best = means.loc[means.groupby("family", sort=False)["english_accuracy"].idxmax()]
    rows = []
    for label in best["label"]:
        gap = difference(table, label, "none", "english_accuracy")
        runs = table[table["label"] == label]
        english = runs["english_accuracy"]
        rows.append(
            {
                "best condition": label,
                HEADINGS["english_accuracy"]: _percent_text(english.mean(), english.std()),
                "minus none (points)": round(100 * gap.value, 1),
                "low": round(100 * gap.low, 1),
                "high": round(100 * gap.high, 1),
                "Tr(F)": _trace_text(runs["trace"].mean(), runs["trace"].std()),
            }
        )
    return pd.DataFrame(rows, index=[*map(title, best["family"])])
