"""Comparisons beyond the paper: regularisers at equal accuracy, and runs of two plans.

Everything takes tables of runs as `study.table` makes them. The seed is the independent unit: whatever is compared is
averaged within a seed first, and intervals are 95 % t intervals over seeds.
"""

from collections.abc import Sequence

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report.correlations import Correlation
from flatlingo.report.differences import Difference, over_seeds
from flatlingo.report.shapes import per_run

TRADITIONAL = ("l2", "l2_sp", "dropout")
FLATTENING = ("consistency", "fisher_penalty")
NEAR = 0.02  # largest difference between English accuracies that count as alike, in 0..1


def at_matched_accuracy(
    table: pd.DataFrame, y: str, families: tuple[str, ...], rivals: tuple[str, ...]
) -> tuple[Difference | None, int]:
    """Mean difference in `y` between runs of two groups of families that classify English equally well.

    Every run of the first group is compared with the mean of the rivals' runs of the same seed whose English accuracy
    differs by at most `NEAR`; runs without such a rival are left out.

    Args:
        table: one row per run, with its `run_id`.
        y: what to compare.
        families: the first group.
        rivals: the second group.

    Returns:
        The difference (None where nothing matches), and the number of runs that were matched.

    >>> runs = pd.DataFrame({"run_id": [1, 2, 3], "family": ["l2", "consistency", "consistency"], "seed": 1,
    ...                      "english_accuracy": [0.70, 0.71, 0.90], "trace": [300.0, 100.0, 1.0]})
    >>> found, matched = at_matched_accuracy(runs, "trace", ("l2",), ("consistency",))
    >>> found.value, matched
    (200.0, 1)
    """
    columns = ["run_id", "seed", "english_accuracy", y]
    first, second = (table.loc[table["family"].isin(group), columns].dropna() for group in (families, rivals))
    pairs = first.merge(second, on="seed", suffixes=("", "_rival"))
    near = pairs[(pairs["english_accuracy_rival"] - pairs["english_accuracy"]).abs() <= NEAR + 1e-12]
    if near.empty:
        return None, 0
    runs = near.groupby(["seed", "run_id"])
    gaps = runs[y].first() - runs[f"{y}_rival"].mean()
    return over_seeds(gaps.groupby("seed").mean()), len(gaps)


def paired(first: pd.DataFrame, second: pd.DataFrame, y: str, *, on: tuple[str, ...]) -> Difference:
    """Mean of `y` in one table minus `y` in another, over the pairs of rows that agree in the seed and in `on`.

    Raises:
        FlatlingoError: if no rows agree.
    """
    keys = ["seed", *on]
    both = first[[*keys, y]].merge(second[[*keys, y]], on=keys, suffixes=("", "_second"), validate="one_to_one")
    if both.empty:
        raise FlatlingoError(f"the two tables have no {' and '.join(keys)} in common")
    return over_seeds((both[y] - both[f"{y}_second"]).groupby(both["seed"]).mean())


def kept_minus_dropped(kept: pd.DataFrame, dropped: pd.DataFrame) -> dict[str, Difference]:
    """By family: adapted accuracy of runs that keep their regulariser in the second stage minus that without it.

    Args:
        kept: of plan `regularized_second_stage`, one row per run and target language.
        dropped: the same runs of plan `paraphrase`.

    Returns:
        The mean over the pairs of equal condition, seed and language; families without a pair are left out.
    """
    keys = ("label", "language")
    both = kept.merge(dropped[["seed", *keys]], on=["seed", *keys])
    return {family: paired(part, dropped, "adapted", on=keys) for family, part in both.groupby("family", sort=False)}


def one_minus_other(table: pd.DataFrame, family: str, other: str, columns: Sequence[str]) -> dict[str, Difference]:
    """By column: runs of a family minus those of another of the same weight, seed and language; {} without a pair."""
    first, second = (table[table["family"] == name] for name in (family, other))
    keys = ["weight", "language"]
    if first.merge(second, on=["seed", *keys]).empty:
        return {}
    return {y: paired(first, second, y, on=tuple(keys)) for y in columns}


def first_stages_apart(kept: pd.DataFrame, dropped: pd.DataFrame) -> float:
    """The largest relative difference in Tr(F) between runs of two plans that share condition and seed; NaN for none.

    Their first stage is the same training, done twice: 0 on one kind of CPU, more on GPUs, which add in any order.
    """
    both = per_run(kept).merge(per_run(dropped), on=["label", "seed"], suffixes=("", "_dropped"))
    return float((both["trace"] / both["trace_dropped"] - 1).abs().max())


def direction(found: Difference | None) -> str:
    """Say in words whether a difference is more than the spread over seeds explains: its interval excludes 0.

    >>> [direction(Difference(0.02, low, 0.03, 0.01, 3)) for low in (0.01, -0.01)], direction(None)
    (['higher', 'undecided'], 'no match')
    """
    if found is None:
        return "no match"
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "undecided"


def forest(found: dict[tuple[str, str], Correlation | Difference], *, scale: float = 1) -> pd.DataFrame:
    """Estimates as rows `group`, `label`, `value`, `low`, `high`, as `beyond.beyond_figure` draws them."""
    rows = [
        (group, label, scale * one.value, scale * one.low, scale * one.high) for (group, label), one in found.items()
    ]
    return pd.DataFrame(rows, columns=["group", "label", "value", "low", "high"])
