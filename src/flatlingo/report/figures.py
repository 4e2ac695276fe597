"""The figures of the paper, drawn from the tables of sweeps.

Marker and colour both say the family (crosses, circles and squares as in the paper; colours that colour-blind readers
can tell apart); the darker the colour, the larger the weight. Every run is drawn, so that the spread over seeds shows.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report import statistics
from flatlingo.report.drawing import (
    LANGUAGES,
    TRACE,
    WITH_WEIGHTS,
    above,
    apart,
    beside,
    check,
    in_order,
    legend,
    marker_of,
    plain_log_labels,
    scatter,
)
from flatlingo.report.saving import STYLE
from flatlingo.study.families import family


def figure1(table: pd.DataFrame, *, seed: int = 0) -> Figure:
    """English validation accuracy against Tr(F), and Tr(F) against the regulariser's weight (the paper's Figure 1).

    Args:
        table: of any plan, columns as `study.table` makes them; each run is drawn once.
        seed: of the bootstrap behind the correlation's interval.

    Returns:
        A figure of two panels with their legend below.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace", "english_accuracy"])
    table = statistics.per_run(table)
    with plt.style.context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
        scatter(left, table, "trace", "english_accuracy", scale=100)
        left.set(xscale="log", xlabel=TRACE, ylabel="English validation accuracy (%)")
        above(left, str(statistics.correlation(table, "trace", "english_accuracy", seed=seed)))
        _trace_against_weight(right, table)
        for axis in (left.xaxis, right.yaxis):
            plain_log_labels(axis)
        legend(fig, table)
    return fig


def figure2(table: pd.DataFrame, *, seed: int = 0) -> Figure:
    """Gain from fine-tuning on a target language against Tr(F) after English (the paper's Figure 2).

    One panel per language. The second row shows the accuracy after fine-tuning instead: a low start inflates a gain,
    but not the end.

    Args:
        table: of a plan with a second stage: one row per run and target language, columns as `study.table` makes them.
        seed: of the bootstrap behind the correlations' intervals.

    Returns:
        A figure of two rows of panels with their legend below.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    check(table, ["family", "weight", "label", "seed", "trace", "language", "gain", "adapted"])
    languages = list(dict.fromkeys(table["language"]))
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            2, len(languages), figsize=(2.4 * len(languages), 5), sharex=True, sharey="row", squeeze=False
        )
        for column, language in zip(axes.T, languages, strict=True):
            part = table[table["language"] == language]
            for ax, y in zip(column, ("gain", "adapted"), strict=True):
                scatter(ax, part, "trace", y, scale=100)
                ax.set_xscale("log")
                above(ax, f"Spearman ρ = {statistics.correlation(part, 'trace', y, seed=seed).interval}")
            column[0].axhline(0, color="0.6", linewidth=0.8, zorder=0.5)
            column[0].set_title(LANGUAGES.get(language, language), fontweight="bold", pad=15)
            column[1].set_xlabel("Tr(F) after English (nats²)")
            plain_log_labels(column[1].xaxis)
        axes[0, 0].set_ylabel("gain in accuracy (points)")
        axes[1, 0].set_ylabel("accuracy after adaptation (%)")
        legend(fig, table)
    return fig


def _trace_against_weight(ax: Axes, table: pd.DataFrame) -> None:
    """Means over seeds joined by family, every run as a small point; weight 0, off a log axis, as a horizontal line."""
    ax.set(xscale="log", yscale="log", xlabel="weight (each family in its own unit)", ylabel=TRACE)
    means = statistics.condition_means(table)
    for name in dict.fromkeys(in_order(means)["family"]):
        _weights_of_family(ax, name, table[table["family"] == name], means[means["family"] == name])
    baseline = table.loc[table["family"] == "none", "trace"]
    if not baseline.empty:
        ax.axhspan(baseline.min(), baseline.max(), color="0.88", zorder=0.5)
    unweighted = means[means["weight"] == 0].sort_values("trace")
    ax.autoscale_view()
    low, high = np.log(ax.get_ylim())
    height = 72 * 0.7 * ax.figure.get_figheight()  # of the panel, in points, nearly
    wanted = height * (np.log(unweighted["trace"].to_numpy()) - low) / (high - low)
    for row, place, free in zip(unweighted.itertuples(), wanted, apart(wanted, gap=8), strict=True):
        colour = family(row.family).drawn.colour
        ax.axhline(row.trace, color=colour, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        beside(ax, row.label, (1, row.trace), (3, free - place), ("axes fraction", "data"), color=colour, va="center")


def _weights_of_family(ax: Axes, name: str, runs: pd.DataFrame, means: pd.DataFrame) -> None:
    """The line and the points of one family."""
    look, title = family(name).drawn, family(name).title
    runs, means = runs[runs["weight"] > 0], means[means["weight"] > 0].sort_values("weight")
    if means.empty:
        return
    ax.plot(runs["weight"], runs["trace"], linestyle="none", marker=".", markersize=3, color=look.colour, alpha=0.5)
    line = {"linestyle": "-" if look.filled else "--", "color": look.colour, "label": title}
    ax.plot(means["weight"], means["trace"], zorder=3, **marker_of(name, look.colour) | line)
    if len(means) > 1 and name in WITH_WEIGHTS:
        lowest = means.loc[means["trace"].idxmin()]
        at = (lowest["weight"], lowest["trace"])
        beside(ax, title, at, (-7, 0), "data", color=look.colour, ha="right", va="center")
