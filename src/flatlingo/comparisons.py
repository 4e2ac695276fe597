"""Comparisons beyond the paper: regularisers at equal accuracy, runs of two plans, and ways to choose a checkpoint.

Everything takes tables of runs as `study.table` makes them. The seed is the independent unit: whatever is compared is
averaged within a seed first, and intervals are 95 % t intervals over seeds.
"""

from collections.abc import Callable

import pandas as pd

from flatlingo.analysis import Correlation, Difference, over_seeds
from flatlingo.errors import FlatlingoError

TRADITIONAL = ("l2", "l2_sp", "dropout")
FLATTENING = ("consistency", "fisher_penalty")
PREDICTORS = ("trace", "trace_without_embeddings", "head_trace", "empirical_fisher")


def at_matched_accuracy(
    table: pd.DataFrame, y: str, families: tuple[str, ...], rivals: tuple[str, ...], *, caliper: float = 0.02
) -> tuple[Difference | None, int]:
    """Mean difference in `y` between runs of two groups of families that classify English equally well.

    Every run of the first group is compared with the mean of the rivals' runs of the same seed whose English accuracy
    differs by at most `caliper`; runs without such a rival are left out.

    Args:
        table: one row a run.
        y: what to compare.
        families: the first group.
        rivals: the second group.
        caliper: largest difference in English accuracy, in 0..1.

    Returns:
        The difference (None where nothing matches), and the number of runs that were matched.

    >>> runs = pd.DataFrame({"family": ["l2", "consistency", "consistency"], "seed": 1,
    ...                      "english_accuracy": [0.70, 0.71, 0.90], "trace": [300.0, 100.0, 1.0]})
    >>> found, matched = at_matched_accuracy(runs, "trace", ("l2",), ("consistency",))
    >>> found.value, matched
    (200.0, 1)
    """
    gaps = []
    for seed, runs in table.groupby("seed"):
        others = runs[runs["family"].isin(rivals)]
        for _, run in runs[runs["family"].isin(families)].iterrows():
            near = others[(others["english_accuracy"] - run["english_accuracy"]).abs() <= caliper + 1e-12]
            if len(near):
                gaps.append((seed, run[y] - near[y].mean()))
    if not gaps:
        return None, 0
    return over_seeds(pd.DataFrame(gaps, columns=["seed", "gap"]).groupby("seed")["gap"].mean()), len(gaps)


def paired(first: pd.DataFrame, second: pd.DataFrame, y: str, *, on: tuple[str, ...]) -> Difference:
    """Mean of `y` in one table minus `y` in another, over the pairs of rows that agree in the seed and in `on`.

    Raises:
        FlatlingoError: if no rows agree.
    """
    keys = ["seed", *on]
    both = first[[*keys, y]].merge(second[[*keys, y]], on=keys, suffixes=("", " of second"), validate="one_to_one")
    if both.empty:
        raise FlatlingoError(f"the two tables have no {' and '.join(keys)} in common")
    return over_seeds((both[y] - both[f"{y} of second"]).groupby(both["seed"]).mean())


def flattest(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: those of the smallest Tr(F)."""
    return runs["trace"] == runs["trace"].min()


def most_accurate(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: those of the highest English accuracy."""
    return runs["english_accuracy"] == runs["english_accuracy"].max()


def flattest_of_the_accurate(runs: pd.DataFrame, *, margin: float = 0.02) -> pd.Series:
    """Which runs a rule picks: of those within `margin` of the highest English accuracy, the one of smallest Tr(F)."""
    near = runs["english_accuracy"] >= runs["english_accuracy"].max() - margin - 1e-12
    return near & (runs["trace"] == runs.loc[near, "trace"].min())


def any_run(runs: pd.DataFrame) -> pd.Series:
    """Which runs a rule picks: none in particular, so that its regret is that of a draw at random."""
    return pd.Series(True, index=runs.index)


RULES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "smallest Tr(F)": flattest,
    "highest English accuracy": most_accurate,
    "flattest within 2 points of it": flattest_of_the_accurate,
    "at random": any_run,
}


def regrets(table: pd.DataFrame, y: str = "adapted") -> dict[str, Difference]:
    """What each rule of `RULES` loses by its choice of the checkpoint to adapt; no rule sees target-language labels.

    In each seed and language the conditions' checkpoints are the candidates; the regret is the best one's `y` minus
    the chosen one's (the mean of them, where several tie), averaged over languages.
    """
    return {name: over_seeds(_lost(table, rule, y)) for name, rule in RULES.items()}


def regret_against_chance(table: pd.DataFrame, rule: str, y: str = "adapted") -> Difference:
    """The regret of a rule of `RULES` minus that of a draw at random, paired by seed."""
    return over_seeds(_lost(table, RULES[rule], y) - _lost(table, any_run, y))


def _lost(table: pd.DataFrame, rule: Callable[[pd.DataFrame], pd.Series], y: str) -> pd.Series:
    """Regret by seed."""
    lost = {
        group: runs[y].max() - runs.loc[rule(runs), y].mean() for group, runs in table.groupby(["seed", "language"])
    }
    return pd.Series(lost).groupby(level=0).mean()


def zero_shot_rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a run and target language, with its zero-shot accuracy, from columns `accuracy_<language>`."""
    columns = [name for name in table if name.startswith("accuracy_")]
    rows = table.melt([c for c in table if c not in columns], columns, "language", "zero_shot")
    return rows.assign(language=rows["language"].str.removeprefix("accuracy_"))


def direction(found: Difference | None) -> str:
    """Say in words whether a difference is more than the spread over seeds explains: its interval excludes 0.

    >>> direction(Difference(0.02, 0.01, 0.03, 3)), direction(Difference(0.02, -0.01, 0.05, 3)), direction(None)
    ('higher', 'undecided', 'no match')
    """
    if found is None:
        return "no match"
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "undecided"


def competitive(table: pd.DataFrame, *, margin: float = 0.1) -> pd.DataFrame:
    """Runs of the conditions whose mean English accuracy is within `margin` of the best condition's.

    A regulariser so strong that nothing is learnt is flat, and useless: such conditions alone can decide a correlation.
    """
    means = table.groupby("label")["english_accuracy"].mean()
    return table[table["label"].isin(means.index[means >= means.max() - margin - 1e-12])]


def forest(found: dict[tuple[str, str], Correlation | Difference], *, scale: float = 1) -> pd.DataFrame:
    """Estimates as rows `group`, `label`, `value`, `low`, `high`, as `figures.beyond_figure` draws them."""
    rows = [
        (group, label, scale * one.value, scale * one.low, scale * one.high) for (group, label), one in found.items()
    ]
    return pd.DataFrame(rows, columns=["group", "label", "value", "low", "high"])
