"""The figure of all methods, and those to explore with, drawn from the tables of sweeps.

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
    apart,
    beside,
    check,
    key,
    lacks,
    plain_log_labels,
    scatter,
)
from flatlingo.report.saving import STYLE
from flatlingo.study.families import KINDS, family


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
