"""What choosing the checkpoint to adapt by a rule loses, beside two rules that look at no checkpoint."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from flatlingo.report.comparisons import NEAR
from flatlingo.report.shapes import check_one_baseline

NONE = "always none"
BEST_FAMILY = "always the best family"
ENOUGH_SEEDS = 5
SAMPLES = 5000  # of seeds, in a bootstrap


def flattest(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: those of the smallest Tr(F)."""
    return runs["trace"] == runs["trace"].min()


def most_accurate(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: those of the highest English accuracy."""
    return runs["english_accuracy"] == runs["english_accuracy"].max()


def flattest_of_the_accurate(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: of those within `NEAR` of the highest English accuracy, the one of smallest Tr(F)."""
    near = runs["english_accuracy"] >= runs["english_accuracy"].max() - NEAR - 1e-12
    return near & (runs["trace"] == runs.loc[near, "trace"].min())


def any_run(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: none in particular, so that its regret is that of a draw at random."""
    return pd.Series(True, index=runs.index)


RULES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "smallest Tr(F)": flattest,
    "highest English accuracy": most_accurate,
    "flattest within 2 points of the best": flattest_of_the_accurate,
    "at random": any_run,
}


def regret_by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """What each rule loses in each seed: the best checkpoint's `adapted` minus the chosen one's, mean over languages.

    The rules are `RULES`, which see no target-language label, and two that see no checkpoint: always the unregularised
    model, and always the family (a draw at random among its conditions) whose mean `adapted` was highest in the *other*
    seeds; NaN with one seed.

    Args:
        table: of competent runs, one row per run and target language.

    Returns:
        Points, (seed, rule).

    Raises:
        FlatlingoError: for several baselines (`shapes.check_one_baseline`).
    """
    check_one_baseline(table)
    means = table.groupby(["seed", "family"])["adapted"].mean().unstack()
    best = {seed: _best_elsewhere(means, seed) for seed in means.index}
    rules = RULES | {
        NONE: lambda runs: runs["family"] == "none",
        BEST_FAMILY: lambda runs: runs["family"] == best[runs["seed"].iloc[0]],
    }
    lost = {
        group: {name: runs["adapted"].max() - runs.loc[rule(runs), "adapted"].mean() for name, rule in rules.items()}
        for group, runs in table.groupby(["seed", "language"])
    }
    rows = pd.DataFrame.from_dict(lost, orient="index")
    return 100 * rows.groupby(level=0).mean().rename_axis("seed")


def _best_elsewhere(means: pd.DataFrame, seed: int) -> str | None:
    """The family of highest mean over the other seeds, of those that this seed has."""
    others = means.drop(index=seed)[means.columns[means.loc[seed].notna()]].mean()
    return None if others.isna().all() else others.idxmax()


def regret_table(table: pd.DataFrame) -> pd.DataFrame:
    """The regret of each rule, and how much more it loses than the naive rules, with bootstrap intervals over seeds.

    Args:
        table: as for `regret_by_seed`.

    Returns:
        Indexed by rule and by what its regret is compared with ("" for the regret itself, "always none", "always the
        best family"): `value, low, high` in points, `seeds`. No interval from fewer than five seeds.
    """
    lost = regret_by_seed(table)
    drawn = np.random.default_rng(0).integers(0, len(lost), (SAMPLES, len(lost)))
    compared = {(rule, ""): lost[rule] for rule in lost}
    compared |= {(rule, naive): lost[rule] - lost[naive] for rule in RULES for naive in (NONE, BEST_FAMILY)}
    rows = {key: _bootstrapped(values.to_numpy(), drawn) for key, values in compared.items()}
    index = pd.MultiIndex.from_tuples(rows, names=["rule", "minus"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["value", "low", "high", "seeds"])


def regret_forest(table: pd.DataFrame) -> pd.DataFrame:
    """`regret_table` as rows `group`, `label`, `value`, `low`, `high`, as `beyond.beyond_figure` draws them, if any."""
    columns = ["group", "label", "value", "low", "high"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    rows = regret_table(table).reset_index().rename(columns={"rule": "label"})
    groups = [f"regret minus that of {naive}" if naive else "regret" for naive in rows["minus"]]
    return rows.assign(group=groups)[columns]


def _bootstrapped(values: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float, int]:
    """Mean and percentile interval, expanded for few values as a t interval is (Hesterberg 2015): it stays in range."""
    n = len(values)
    if n < ENOUGH_SEEDS or np.isnan(values).any():
        return float(values.mean()), math.nan, math.nan, n
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(values[drawn].mean(axis=1), [tail, 1 - tail])
    return float(values.mean()), float(low), float(high), n
