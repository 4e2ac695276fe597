"""The figures of the paper, the one of all methods, and those to explore with, drawn from the tables of sweeps.

Marker and colour both say the family (crosses, circles and squares as in the paper; colours that colour-blind readers
can tell apart); the darker the colour, the larger the weight. Every run is drawn, so that the spread over seeds shows.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatlingo.errors import FlatlingoError
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
    key,
    lacks,
    legend,
    marker_of,
    plain_log_labels,
    scatter,
)
from flatlingo.report.saving import STYLE
from flatlingo.study.families import KINDS, family


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


def methods(table: pd.DataFrame) -> Figure:
    """Accuracy gained in each language against Tr(F), one point per method.

    The point is the mean over seeds, lines go from the least to the most. The gain is over the run of the same seed,
    hence the same training rows, without a regulariser.

    Args:
        table: of plan `methods`, columns as `study.table` makes them; a run of `none` for each seed.

    Returns:
        A figure of one panel per language; every point has its method's title beside the panel.

    Raises:
        FlatlingoError: for a missing column, an empty table, an unknown family, or no run of `none`.
    """
    check(table, ["run_id", "family", "label", "seed", "trace", "english_accuracy"])
    table = statistics.per_run(table)
    others = [name for name in table if name.startswith("accuracy_")]
    columns = {"en": "english_accuracy", **{name.removeprefix("accuracy_"): name for name in others}}
    plain = table[table["family"] == "none"].set_index("seed")[list(columns.values())]
    if not set(table["seed"]) <= set(plain.index):
        raise FlatlingoError("a gain needs a run without a regulariser for every seed; add family none")
    gains = table.assign(**{name: table[name] - table["seed"].map(plain[name]) for name in plain})
    rows = -(-len(columns) // 2)
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(rows, 2, figsize=(7.2, 3.4 * rows), sharex=True, squeeze=False)
        for ax, (language, column) in zip(axes.flat, columns.items(), strict=False):
            _method_points(ax, gains, column)
            ax.axhline(0, color="0.7", linewidth=0.6, zorder=0)
            ax.set_title(f"{LANGUAGES.get(language, language)}, {100 * plain[column].mean():.1f} % without")
        for ax in axes[-1]:
            ax.set_xlabel(TRACE)
            plain_log_labels(ax.xaxis)
        for ax in axes[:, 0]:
            ax.set_ylabel("accuracy gained (points)")
        drawn = {family(name).kind for name in table["family"]}
        keys = [key(text, color=c, marker="o", linestyle="none") for kind, (text, c) in KINDS.items() if kind in drawn]
        fig.legend(handles=keys, loc="outside lower center", ncols=3)
    return fig


def _method_points(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """The points of a panel and, on its right in their order, their titles, each with a line to its point."""
    ax.set_xscale("log")
    runs = table.groupby("family", sort=False)
    spread = {name: runs[name].agg(["min", "mean", "max"]) for name in ("trace", column)}
    spread[column] = 100 * spread[column].sort_values("mean")
    for name, accuracy in spread[column].iterrows():
        trace, colour = spread["trace"].loc[name], KINDS[family(name).kind][1]
        lines = {"color": colour, "linewidth": 0.8}
        ax.plot([trace["min"], trace["max"]], [accuracy["mean"]] * 2, **lines)
        ax.plot([trace["mean"]] * 2, [accuracy["min"], accuracy["max"]], **lines)
        ax.plot(trace["mean"], accuracy["mean"], "o", markersize=4, color=colour, label=family(name).title)
    low, high = ax.get_ylim()
    height = 72 * 2.5  # of a panel, in points, nearly
    places = apart(height * (spread[column]["mean"].to_numpy() - low) / (high - low), gap=7.5)
    for (name, accuracy), place in zip(spread[column].iterrows(), places, strict=True):
        ax.annotate(
            family(name).title,
            (spread["trace"].loc[name, "mean"], accuracy["mean"]),
            (1.04, place / height),
            textcoords="axes fraction",
            fontsize=6.5,
            va="center",
            color=KINDS[family(name).kind][1],
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "0.8", "linewidth": 0.4, "zorder": 0.5},
        )


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


def run_figure(table: pd.DataFrame, run_id: str, y: str, *, history: list[dict], groups: dict[str, float]) -> Figure:
    """One run among the others: where it lies, how its loss fell, and which modules its Tr(F) comes from.

    Args:
        table: one row per run, columns as `study.table` makes them.
        run_id: the run to look at.
        y: the accuracy to draw against Tr(F), a column.
        history: its training curve, entries of `step` and `loss`; empty if none was recorded.
        groups: its Tr(F) by module group.

    Returns:
        A figure of three panels.

    Raises:
        FlatlingoError: for a missing column, an empty table, a run that is not in it, or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "trace", y])
    chosen = table[table["run_id"] == run_id]
    if chosen.empty:
        raise FlatlingoError(f"no run {run_id} in the table of {len(table)} rows")
    with plt.style.context(STYLE):
        fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.6))
        fig.get_layout_engine().set(wspace=0.08)
        scatter(left, table, "trace", y, scale=100)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none"}
        left.plot(chosen["trace"], 100 * chosen[y], marker="o", zorder=5, clip_on=False, **ring)
        left.set(xscale="log", xlabel=TRACE, ylabel=statistics.HEADINGS.get(y, f"{y.replace('_', ' ')} (%)"))
        plain_log_labels(left.xaxis)
        colour = family(chosen["family"].iloc[0]).drawn.colour
        losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
        if losses:
            middle.plot(list(losses), list(losses.values()), color=colour)
        else:
            lacks(middle, "no training curve recorded")
        middle.set(xlabel="training step", ylabel="training loss (nats)")
        _bars(right, groups, colour)
        right.set_xlabel(TRACE)
    return fig


def _bars(ax: Axes, values: dict[str, float], colour: str) -> None:
    """Horizontal bars from the top, each with its share."""
    places, total = -np.arange(len(values)), sum(values.values())
    ax.barh(places, values.values(), color=colour, height=0.6)
    ax.set_yticks(places, [textwrap.fill(name, 10) for name in values])
    ax.set_xlim(0, 1.2 * max(values.values()))
    for place, value in zip(places, values.values(), strict=True):
        beside(ax, f"{value / total:.0%}", (value, place), (3, 0), "data", va="center")
    ax.grid(visible=False, axis="y")


def live_figure(curves: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy and Tr(F) while models train, one line per model.

    Args:
        curves: by a model's name, one row per epoch: `epoch`, `accuracy` (on clean validation rows, 0..1), `trace`.

    Returns:
        A figure of two panels.
    """
    looks = zip(("#000000", "#0072B2", "#D55E00", "#009E73"), "osD^", strict=True)
    with plt.style.context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.4))
        for (name, curve), (colour, marker) in zip(curves.items(), looks, strict=False):
            left.plot(curve["epoch"], 100 * curve["accuracy"], color=colour, marker=marker, label=name)
            right.plot(curve["epoch"], curve["trace"], color=colour, marker=marker)
        left.set(xlabel="epoch", ylabel="English validation accuracy (%)")
        right.set(xlabel="epoch", ylabel=TRACE, yscale="log")
        plain_log_labels(right.yaxis)
        for ax in (left, right):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        fig.legend(loc="outside lower center", ncols=4)
    return fig
