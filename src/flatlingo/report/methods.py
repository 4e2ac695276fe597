"""What every method does to Tr(F) and to accuracy, beside no regulariser: a table, and a dot plot of it."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.differences import over_seeds
from flatlingo.report.drawing import (
    beside,
    check,
    colour_of_kind,
    in_order,
    lacks,
    legend_of_kinds,
    mean_and_seeds,
    plain_log_labels,
)
from flatlingo.report.matched import with_baseline
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import check_one_baseline, per_run
from flatlingo.study.families import family

RATIO = "Tr(F) / Tr(F) without"
GAINED = {
    "english_accuracy": "English accuracy\ngained (points)",
    "zero_shot_accuracy": "zero-shot accuracy\ngained (points)",
}


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What each condition changes, compared with the unregularised run of the same seed.

    Args:
        table: of plan `methods`, columns as `study.table` makes them; a run of `none` for each seed.

    Returns:
        A row per condition but `none`, indexed by label, the sharpest first: `family`, `name` (the family's title, with
        the weight where several were tried), `seeds`; `trace`, the geometric mean of the ratios of Tr(F); and
        `english_accuracy` and `zero_shot_accuracy`, in points gained. Each with `…_low` and `…_high`, its 95 % t
        interval over seeds (NaN for one seed).

    Raises:
        FlatlingoError: for a missing column, an empty table, an unknown family, a seed without a run of `none`, or
            several baselines (`shapes.check_one_baseline`).
    """
    changes = _changes(table)
    conditions = in_order(changes)
    several = conditions["family"].value_counts()
    rows = {}
    for row in conditions.itertuples():
        part = changes[changes["label"] == row.label]
        name = family(row.family).title
        name = name if several[row.family] == 1 else f"{name}, {family(row.family).weight} = {row.weight:g}"
        found = {"family": row.family, "name": name, "seeds": len(part)}
        for column in ("trace", *GAINED):
            one = over_seeds(np.log(part[column]) if column == "trace" else part[column])
            ends = [float(np.exp(end)) if column == "trace" else end for end in (one.value, one.low, one.high)]
            found |= dict(zip((column, f"{column}_low", f"{column}_high"), ends, strict=True))
        rows[row.label] = found
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("trace", ascending=False)


def methods_figure(table: pd.DataFrame) -> Figure:
    """Each method's Tr(F), English and zero-shot accuracy beside no regulariser, sorted by Tr(F), the sharpest on top.

    Large dots are means over seeds, small ones seeds, lines 95 % t intervals over three seeds or more (of two they are
    13 standard errors wide). No single method may stretch a panel: an arrow has the value of a mean that lies outside.

    Args:
        table: as for `effects`.

    Returns:
        A figure of three panels that share their rows.

    Raises:
        FlatlingoError: as for `effects`.
    """
    changes, found = _changes(table), effects(table)
    places = dict(zip(found.index, -np.arange(len(found)), strict=True))
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 1.3 + 0.16 * len(found)), sharey=True)
        for ax, (column, words) in zip(axes, {"trace": RATIO, **GAINED}.items(), strict=True):
            if found[column].isna().all():
                lacks(ax, "not measured")
            else:
                _dots(ax, changes, found, column, places)
            ax.set_xlabel(words)
        axes[0].set_yticks(list(places.values()), found["name"])
        axes[0].set_ylim(-len(found) + 0.3, 0.7)
        for text, name in zip(axes[0].get_yticklabels(), found["family"], strict=True):
            text.set_color(colour_of_kind(name))
        for ax in axes:
            ax.tick_params(axis="y", length=0)
        legend_of_kinds(fig, found["family"])
    return fig


def _changes(table: pd.DataFrame) -> pd.DataFrame:
    """The regularised runs, with `trace` as a ratio to the unregularised run's and accuracies in points gained."""
    check(table, ["run_id", "family", "weight", "label", "seed", "trace", *GAINED])
    check_one_baseline(table)
    runs = per_run(table)
    for column in ("trace", *GAINED):
        runs = with_baseline(runs, column)
    changed = {column: 100 * (runs[column] - runs[f"{column}_baseline"]) for column in GAINED}
    runs = runs.assign(trace=runs["trace"] / runs["trace_baseline"], **changed)
    return runs[runs["family"] != "none"]


def _dots(ax: Axes, changes: pd.DataFrame, found: pd.DataFrame, column: str, places: dict[str, float]) -> None:
    """The rows of one panel, with limits that hold most of the runs."""
    logarithmic = column == "trace"
    low, high = _limits(np.log(changes[column]) if logarithmic else changes[column])
    low, high = (math.exp(low), math.exp(high)) if logarithmic else (low, high)
    ax.set(xscale="log" if logarithmic else "linear", xlim=(low, high))
    ax.axvline(1 if logarithmic else 0, color="0.4", linewidth=0.8, zorder=0.5)
    for row in found.itertuples():
        place, colour, value = places[row.Index], colour_of_kind(row.family), getattr(row, column)
        if not low <= value <= high:
            at, text = (0, f"◂ {value:.3g}") if value < low else (1, f"{value:.3g} ▸")
            side = {"ha": "left" if at == 0 else "right", "va": "center", "color": colour}
            beside(ax, text.replace("-", "−"), (at, place), (0, 0), ("axes fraction", "data"), **side)
            continue
        ends = {"low": getattr(row, f"{column}_low"), "high": getattr(row, f"{column}_high")}
        seeds = changes.loc[changes["label"] == row.Index, column]
        mean_and_seeds(ax, place, {"value": value, "seeds": row.seeds} | ends, seeds, colour=colour, label=row.name)
    if logarithmic:
        plain_log_labels(ax.xaxis)


def _limits(values: pd.Series) -> tuple[float, float]:
    """The range of the values and 0, cut at the range of the middle four fifths beyond their ends, and some space."""
    inner, outer = values.quantile([0.1, 0.9]), (min(values.min(), 0), max(values.max(), 0))
    width = max(inner.max() - inner.min(), 0.1)
    low, high = max(outer[0], min(inner.min() - width, 0)), min(outer[1], max(inner.max() + width, 0))
    space = max(0.1 * (high - low), 0.01)
    return low - space, high + space
