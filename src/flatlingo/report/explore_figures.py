"""The figures to explore with: one run among the others, and a training as it goes."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flatlingo.errors import FlatlingoError
from flatlingo.report.drawing import TRACE, above, beside, check, lacks, legend, plain_log_labels, scatter
from flatlingo.report.saving import STYLE
from flatlingo.study.families import family


def run_figure(
    table: pd.DataFrame, run_id: str, y: str, *, words: str, history: list[dict], groups: dict[str, float]
) -> Figure:
    """One run among the others: where it lies, how its loss fell, and which modules its Tr(F) comes from.

    Args:
        table: one row per run, columns as `study.table` makes them.
        run_id: the run to look at.
        y: the accuracy to draw against Tr(F), a column.
        words: what to call it.
        history: its training curve, entries of `step` and `loss`; empty if none was recorded.
        groups: its Tr(F) by module group.

    Returns:
        A figure of three panels with the legend of the conditions below.

    Raises:
        FlatlingoError: for a missing column, an empty table, a run that is not in it, or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace", y])
    chosen = table[table["run_id"] == run_id]
    if chosen.empty:
        raise FlatlingoError(f"no run {run_id} in the table of {len(table)} rows")
    with plt.style.context(STYLE):
        fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 3.1))
        fig.get_layout_engine().set(wspace=0.08)
        scatter(left, table, "trace", y, scale=100)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none"}
        left.plot(chosen["trace"], 100 * chosen[y], marker="o", zorder=5, clip_on=False, **ring)
        left.set(xscale="log", xlabel=TRACE, ylabel=f"{words} (%)")
        above(left, f"◯ {chosen['label'].iloc[0]}, seed {chosen['seed'].iloc[0]}")
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
        legend(fig, table)
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
