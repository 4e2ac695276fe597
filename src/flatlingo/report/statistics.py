"""Correlations with intervals, comparisons over seeds, and the tables that the notebooks print.

Everything here takes the tidy table of a sweep (one row per run, or one row per run and target language). Runs of one
condition differ in their seed only, so they are not independent evidence about the conditions: resampling and
permuting always move whole conditions, never single runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.study.families import FAMILIES

CONDITION = ["family", "weight", "label"]
REPLICATE = ["seed", "language"]
SECOND_STAGE = ["language", "zero_shot", "adapted", "gain", "control", "control_gain"]  # of a run, in each language
METHODS = {"spearman": "Spearman ρ", "pearson": "Pearson r"}
HEADINGS = {
    "english_accuracy": "English accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "noisy_fitted": "noisy labels fitted (%)",
    "trace": "Tr(F)",
    "trace_without_embeddings": "Tr(F) without embeddings",
    "head_trace": "Tr(F) of the head",
    "target_trace": "Tr(F) on target rows",
    "early_trace": "Tr(F) early in training",
    "scale_aware": "scale-aware Tr(F)",
    "empirical_fisher": "empirical Fisher",
    "sharpness": "sharpness",
    "zero_shot": "zero-shot accuracy (%)",
    "zero_shot_accuracy": "zero-shot accuracy (%)",
    "adapted": "adapted accuracy (%)",
    "gain": "gain (points)",
}


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient, its 95 % bootstrap interval and its permutation p-value.

    Attributes:
        value: the coefficient, -1..1; NaN where it is undefined (fewer than three conditions, or a constant column).
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, against "the conditions of x and y are paired at random".
        n: rows used.
        conditions: independent units among them: what the interval and the p-value rest on.
        method: "spearman" or "pearson".
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    conditions: int
    method: str = "spearman"

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"{METHODS[self.method]} undefined ({self.conditions} conditions)"
        return f"{METHODS[self.method]} = {self.interval}, p = {self.p_value:.2g}"

    @property
    def interval(self) -> str:
        """`value [low, high]` with two decimals and a true minus sign; the value alone where there is no interval."""
        ends = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{ends}".replace("-", "−")


def correlation(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    given: tuple[str, ...] = (),
    method: str = "spearman",
    seed: int = 0,
    n_bootstrap: int = 5000,
    n_permutations: int = 9999,
) -> Correlation:
    """Correlation of two columns over runs, with an interval and a p-value over conditions.

    The coefficient is Pearson's, of values or (Spearman) of their ranks. With `given`, both sides are first replaced by
    the residuals of their least-squares fit on the (ranks of the) given columns: the partial correlation. A given
    column of words, such as `family`, counts as one indicator per word, which leaves the correlation within families.

    The interval is the 2.5 and 97.5 % percentile of the coefficient over bootstrap samples of *conditions*: a drawn
    condition brings all its runs. (On simulated studies of 8 and 14 conditions with 1 or 3 seeds it covers the true
    value in 90-98 % of cases, more often than BCa does.) The p-value permutes whole conditions too, exactly where there
    are at most `n_permutations` orders.

    Args:
        table: rows of runs with column `label` (the condition) and, as far as they apply, `seed` and `language`. Rows
            that lack a value in a column used are left out.
        x: name of a numeric column.
        y: name of another.
        given: names of the columns to hold fixed.
        method: "spearman" or "pearson".
        seed: of the bootstrap and of the permutations; the global random state is left alone.
        n_bootstrap: bootstrap samples.
        n_permutations: permutations at most.

    Returns:
        The correlation; all NaN if fewer than three conditions are left or if a side is constant.

    Raises:
        FlatlingoError: for a column that the table lacks, an unknown method, or two rows of the same condition, seed
            and language.

    >>> runs = pd.DataFrame({"label": list("abcd"), "trace": [9.0, 4.0, 2.0, 1.0], "gain": [0.0, 1.0, 1.5, 1.4]})
    >>> correlation(runs, "trace", "gain").value
    -0.8
    """
    if method not in METHODS:
        raise FlatlingoError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    require(table, ["label", x, y, *given])
    table = table.dropna(subset=[x, y, *given])
    condition, replicate = _positions(table)
    n_conditions = len(np.unique(condition))
    scores = _scores(_numeric(table, [x, y, *given]), method)
    value = float(_pearson(*scores)) if n_conditions >= 3 else np.nan
    if np.isnan(value):
        return Correlation(*[np.nan] * 4, n=len(table), conditions=n_conditions, method=method)

    raw, scored = (_grid(side, condition, replicate) for side in (_numeric(table, [x, y, *given]), scores))
    drawn = np.random.default_rng(seed).integers(0, n_conditions, (n_bootstrap, n_conditions))
    resampled = _pearson(*_scores(_pool(raw, drawn), method))
    low, high = np.nanquantile(resampled, [0.025, 0.975])  # NaN: a sample in which a side is constant
    permuted = stats.permutation_test(
        (np.arange(n_conditions),),
        lambda order, axis: _pearson(_pool(scored[:1], np.arange(n_conditions))[0], _pool(scored[1:], order)[0]),
        permutation_type="pairings",
        n_resamples=n_permutations,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    # Repeated conditions are ties, which can hold every sample below |value|.
    low, high = min(low, value), max(high, value)
    return Correlation(value, float(low), float(high), float(permuted.pvalue), len(table), n_conditions, method)


def resampled(
    table: pd.DataFrame,
    names: list[str],
    y: str,
    *,
    given: tuple[str, ...] = (),
    method: str = "spearman",
    seed: int = 0,
    n_bootstrap: int = 5000,
) -> np.ndarray:
    """Coefficients of several columns with `y`, of all conditions and of bootstrap samples of them, the same for all.

    Args:
        table: as for `correlation`; rows that lack a value in any column used are left out.
        names: names of numeric columns.
        y: name of another.
        given: as for `correlation`.
        method: as for `correlation`.
        seed: of the bootstrap.
        n_bootstrap: bootstrap samples.

    Returns:
        (names, 1 + n_bootstrap), the coefficients of the table itself first; NaN where a side is constant, and all NaN
        where fewer than three conditions are left.

    Raises:
        FlatlingoError: as for `correlation`.
    """
    require(table, ["label", y, *names, *given])
    table = table.dropna(subset=[y, *names, *given])
    condition, replicate = _positions(table)
    n_conditions = len(np.unique(condition))
    if n_conditions < 3:
        return np.full((len(names), 1 + n_bootstrap), np.nan)
    grid = _grid(_numeric(table, [*names, y, *given]), condition, replicate)
    everything = np.arange(n_conditions)[None]
    drawn = np.random.default_rng(seed).integers(0, n_conditions, (n_bootstrap, n_conditions))
    samples = _pool(grid, np.concatenate([everything, drawn]))
    sides, held = samples[: len(names)], samples[len(names) :]
    return np.stack([_pearson(*_scores(np.concatenate([side[None], held]), method)) for side in sides])


def require(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        FlatlingoError: naming what is missing and what there is.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise FlatlingoError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")


def _positions(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's condition, and of its seed and language."""
    condition, labels = pd.factorize(table["label"])
    keys = [name for name in REPLICATE if name in table]
    replicate = table.groupby(keys).ngroup().to_numpy() if keys else np.zeros(len(table), dtype=int)
    twice = pd.DataFrame({"c": condition, "r": replicate}).duplicated()
    if twice.any():
        raise FlatlingoError(
            f"two rows of condition {labels[condition[twice.argmax()]]} with the same seed (and language)"
        )
    return condition, replicate


def _grid(columns: np.ndarray, condition: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    """(column, row) → (column, condition, replicate), NaN where a condition lacks a replicate."""
    grid = np.full((len(columns), condition.max() + 1, replicate.max() + 1), np.nan)
    grid[:, condition, replicate] = columns
    return grid


def _numeric(table: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Columns as rows of one float64 array; a column of words becomes one indicator per word."""
    return pd.get_dummies(table[names]).to_numpy(dtype=float).T


def _pool(grid: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """(column, condition, replicate) → (column, …, value): all values of a selection of conditions (…, n)."""
    chosen = grid[:, conditions]
    return chosen.reshape(*chosen.shape[:-2], -1)


def _scores(columns: np.ndarray, method: str) -> np.ndarray:
    """The first two columns, ranked for Spearman, less their least-squares fit on a constant and on the others.

    Args:
        columns: (2 + k, …, n), statistics run along the last axis; NaN where a replicate is absent.
        method: "spearman" or "pearson".

    Returns:
        (2, …, n); all NaN where nothing is left of a side, which a plain subtraction would leave as rounding noise.
    """
    absent = np.isnan(columns).any(axis=0)
    if method == "spearman":
        columns = stats.rankdata(np.where(absent, np.inf, columns), axis=-1)
    columns = np.where(absent, 0, columns)
    floor = 1e-18 * (columns**2).sum(axis=-1, keepdims=True)
    means = columns.sum(axis=-1, keepdims=True) / np.maximum((~absent).sum(axis=-1, keepdims=True), 1)
    columns = np.where(absent, 0, columns - means)
    while len(columns) > 2:  # Gram-Schmidt: project the last column out of the others
        *_, last = columns
        norm = (last * last).sum(axis=-1, keepdims=True)
        products = (columns[:-1] * last).sum(axis=-1, keepdims=True)
        slope = np.divide(products, norm, out=np.zeros_like(products), where=norm > floor[len(columns) - 1])
        columns = columns[:-1] - slope * last
    vanished = (columns**2).sum(axis=-1, keepdims=True) <= floor[:2]
    return np.where(absent | vanished, np.nan, columns)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's coefficient along the last axis over the places where both sides have a value; NaN if there is none."""
    both = ~(np.isnan(x) | np.isnan(y))
    n = np.maximum(both.sum(axis=-1, keepdims=True), 1)
    x, y = (np.where(both, side, 0) for side in (x, y))
    x, y = (np.where(both, side - side.sum(axis=-1, keepdims=True) / n, 0) for side in (x, y))
    norms = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), norms, out=np.full_like(norms, np.nan), where=norms > 0)


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
    return table.drop(columns=SECOND_STAGE, errors="ignore").drop_duplicates("run_id", ignore_index=True)


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
    """
    require(table, [*CONDITION, *columns])
    columns = [name for name in columns if table[name].notna().any()]
    groups = table.groupby([name for name in _keys(table) if name not in ("family", "weight")], sort=False)
    printed = {"runs": groups.size()}
    for name in columns:
        show = _trace_text if "trace" in name or name == "empirical_fisher" else _percent_text
        language = name.removeprefix("accuracy_")
        heading = HEADINGS.get(name, name if language == name else f"{language} (%)")
        printed[heading] = [show(*pair) for pair in zip(groups[name].mean(), groups[name].std(), strict=True)]
    return pd.DataFrame(printed)


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


def correlation_table(table: pd.DataFrame, x: str, y: str, *, method: str = "spearman", seed: int = 0) -> pd.DataFrame:
    """The same correlation over all runs, over condition means, within families together, and in each family.

    A pooled correlation can come from differences between families alone (Simpson's paradox): then the rows
    "within families" and the families' own disagree with the first. Families of fewer than three conditions are left
    out.
    """
    require(table, [x, y, *CONDITION])
    rows = {
        "all runs": correlation(table, x, y, method=method, seed=seed),
        "condition means": correlation(condition_means(table), x, y, method=method, seed=seed),
        "within families": correlation(table, x, y, given=("family",), method=method, seed=seed),
    }
    for family, part in table.groupby("family", sort=False):
        if part["label"].nunique() >= 3:
            rows[_title(family)] = correlation(part, x, y, method=method, seed=seed)
    return as_table(rows)


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
    """Mean difference of two conditions, paired by seed, with its 95 % t interval (NaN for a single seed).

    >>> print(Difference(0.012, -0.001, 0.025, 3))
    +1.2 points [−0.1, +2.5] over 3 seeds
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        points = [f"{100 * number:+.1f}".replace("-", "−") for number in (self.value, self.low, self.high)]
        return (
            f"{points[0]} points [{points[1]}, {points[2]}] over {self.n} seeds"
            if self.n > 1
            else f"{points[0]} points"
        )


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
    """Mean and 95 % t interval of one value per seed.

    >>> print(over_seeds(pd.Series([0.01, 0.02, 0.03])))
    +2.0 points [−0.5, +4.5] over 3 seeds
    """
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return Difference(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def t_test(values: pd.Series) -> float:
    """Two-sided p-value of a t test that one value per seed has mean 0; NaN for a single seed, or if all are 0.

    >>> round(t_test(pd.Series([0.01, 0.02, 0.03])), 3)
    0.074
    """
    if len(values) < 2:
        return np.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # seeds that differ by nothing: p is 0, or NaN
        return float(2 * stats.t.sf(abs(values.mean()) / values.sem(), len(values) - 1))


def best_of_family(table: pd.DataFrame, y: str = "english_accuracy", baseline: str = "none") -> pd.DataFrame:
    """The condition with the highest mean `y` in each family, compared with the baseline over the same seeds.

    Choosing on the rows that are then reported favours families with many conditions.

    Raises:
        FlatlingoError: for several baselines (`check_one_baseline`), or conditions without a seed in common.
    """
    check_one_baseline(table)
    means = condition_means(table)
    best = means.loc[means.groupby("family", sort=False)[y].idxmax()]
    rows = []
    for label in best["label"]:
        gap = difference(table, label, baseline, y)
        runs = table[table["label"] == label]
        rows.append(
            {
                "best condition": label,
                HEADINGS.get(y, y): _percent_text(runs[y].mean(), runs[y].std()),
                f"minus {baseline} (points)": round(100 * gap.value, 1),
                "low": round(100 * gap.low, 1),
                "high": round(100 * gap.high, 1),
                "Tr(F)": _trace_text(runs["trace"].mean(), runs["trace"].std()),
            }
        )
    return pd.DataFrame(rows, index=[*map(_title, best["family"])])


def _title(name: str) -> str:
    """A family as prose names it."""
    return FAMILIES[name].title if name in FAMILIES else name
