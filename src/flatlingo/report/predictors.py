"""Which measure of a fine-tuned model foretells how it does in other languages: Tr(F), its variants, and rivals.

Every measure is taken of the model and of rows, none of a target-language label. Exploration, not decision: of so many
intervals one in twenty misses by chance.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from flatlingo.report.slopes import ENOUGH, OUTCOMES, outcomes, per_seed
from flatlingo.report.statistics import resampled

MEASURES = {  # column: what tables call it
    "trace": "Tr(F)",
    "log_trace": "mean log Tr(F)",
    "target_trace": "Tr(F) of target rows",
    "trace_without_embeddings": "Tr(F) without embeddings",
    "head_trace": "Tr(F) of the head",
    "scale_aware": "scale-aware Tr(F)",
    "early_trace": "early Tr(F)",
    "empirical_fisher": "empirical Fisher",
    "sharpness": "SAM sharpness",
    "margin": "margin",
    "distance": "distance from start",
    "train_loss": "training loss",
    "english_accuracy": "English accuracy",
}
FIT = "train_loss"
WITHIN = {"seed": ("block",), "seed and fit": ("block", FIT)}


def predictors(table: pd.DataFrame, *, seed: int = 0, n_bootstrap: int = 1000) -> pd.DataFrame:
    """Rank correlation of every measure with every outcome, within seeds, and within seeds at equal training loss.

    Spearman's partial ρ: ranks over all runs, less their least-squares fit on the seed as a factor and, at equal fit,
    on the rank of the training loss. Intervals are the 2.5 and 97.5 % percentile over bootstrap samples of conditions,
    each with all its seeds; none from fewer than six conditions. (Correlations rest on runs that share their rows, and
    seeds of one condition are no evidence about conditions; see `statistics.correlation`.)

    Args:
        table: of competent runs (`decisions.competent`) of one plan and preset, one row per run, or per run and target
            language (then the mean over languages counts).
        seed: of the bootstrap.
        n_bootstrap: samples.

    Returns:
        A row for each measure that the table has values of, outcome (zero-shot accuracy, gain, accuracy after
        adaptation) and `within` ("seed", "seed and fit"): `value, low, high`; `stronger`, |ρ| minus that of Tr(F) on
        the same runs, with `stronger_low` and `stronger_high` from the same samples (NaN for Tr(F) itself);
        `conditions, seeds, runs`. A negative value: the larger the measure, the lower the outcome.

    Raises:
        FlatlingoError: for a table without trace or training loss, or two runs of one condition and seed.
    """
    runs = per_seed(table, ["trace", FIT])
    runs = runs.assign(block=runs["seed"].map("seed {}".format), target_trace=_target_trace(runs))
    rows = [
        {"measure": MEASURES[x], "outcome": OUTCOMES[y], "within": within}
        | _found(runs, x, y, given, seed=seed, n_bootstrap=n_bootstrap)
        for y in outcomes(runs)
        if y != "english_accuracy"
        for x in MEASURES
        if x in runs and runs[x].notna().any()
        for within, given in WITHIN.items()
        if x not in given
    ]
    return pd.DataFrame(rows)


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """What `predictors` found to show: `ρ [low, high]`, a measure per row, outcomes and what is held fixed above."""
    text = found.apply(lambda row: _text(row["value"], row["low"], row["high"]), axis=1)
    cells = found.assign(text=text).set_index(["measure", "outcome", "within"])["text"]
    order = pd.MultiIndex.from_product([found["outcome"].unique(), WITHIN], names=["outcome", "at equal"])
    return cells.unstack(["outcome", "within"]).reindex(index=found["measure"].unique(), columns=order).fillna("")


def trace_at_loss(history: Sequence[Mapping[str, float]], loss: float) -> float:
    """Tr(F) on the way of a training, where the loss on the rows it is measured on first came down to a given one.

    Tr(F) grows as a model fits, so two trainings are compared at the same loss. log Tr(F) is interpolated linearly
    between the two measurements that the loss lies between.

    Args:
        history: the entries of a training log; those of `callbacks.TraceCurve` hold `trace/loss` and `trace/value`.
        loss: in nats.

    Returns:
        nats²; NaN where the loss was not reached, or was lower from the first measurement on.

    >>> log = [{"trace/loss": 1.0, "trace/value": 10.0}, {"loss": 0.9}, {"trace/loss": 0.5, "trace/value": 1000.0}]
    >>> round(trace_at_loss(log, 0.75), 6), trace_at_loss(log, 0.4)
    (100.0, nan)
    """
    points = [(entry["trace/loss"], entry["trace/value"]) for entry in history if "trace/loss" in entry]
    for (above, first), (below, second) in itertools.pairwise(points):
        if above >= loss >= below:
            share = (above - loss) / (above - below) if above > below else 1.0
            return float(first ** (1 - share) * second**share)
    return math.nan


def _found(runs: pd.DataFrame, x: str, y: str, given: tuple[str, ...], **options: int) -> dict[str, float]:
    part = runs.dropna(subset=[x, y])
    names = list(dict.fromkeys([x, "trace"]))
    coefficients = resampled(part, names, y, given=given, **options)
    value, sampled = coefficients[0, 0], coefficients[0, 1:]
    gaps = np.abs(coefficients[0]) - np.abs(coefficients[-1])
    conditions, alone = part["label"].nunique(), x == "trace"
    low, high = _interval(value, sampled, conditions)
    stronger = (np.nan,) * 3 if alone else (gaps[0], *_interval(gaps[0], gaps[1:], conditions))
    return {
        **{"value": value, "low": low, "high": high},
        **dict(zip(("stronger", "stronger_low", "stronger_high"), stronger, strict=True)),
        **{"conditions": conditions, "seeds": part["seed"].nunique(), "runs": len(part)},
    }


def _interval(value: float, sampled: np.ndarray, conditions: int) -> tuple[float, float]:
    """Percentiles, widened to the value itself: ties, as repeated conditions are, can pull all samples to one side."""
    if conditions < ENOUGH or np.isnan(value):
        return np.nan, np.nan
    low, high = np.nanquantile(sampled, [0.025, 0.975])
    return float(min(low, value)), float(max(high, value))


def _target_trace(runs: pd.DataFrame) -> pd.Series | float:
    """Mean trace over the target languages that have one."""
    languages = [name.removeprefix("accuracy_") for name in runs if name.startswith("accuracy_")]
    columns = [name for name in (f"trace_{language}" for language in languages) if name in runs]
    return runs[columns].mean(axis=1) if columns else np.nan


def _text(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "undefined"
    interval = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{value:.2f}{interval}".replace("-", "−")
