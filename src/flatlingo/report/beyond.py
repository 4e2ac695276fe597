"""The figure of what the paper leaves open: points, and forests of estimates with their intervals."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.drawing import TRACE, beside, check, lacks, legend, plain_log_labels, scatter
from flatlingo.report.saving import STYLE
from flatlingo.study.families import family

FOREST_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def beyond_figure(runs: pd.DataFrame, forests: dict[str, pd.DataFrame]) -> Figure:
    """What the paper leaves open: memorisation against Tr(F), and for each question a panel of estimates.

    Args:
        runs: one row per run, columns as `study.table` makes them.
        forests: by the panel's axis label, rows `label`, `value`, `low`, `high` from top to bottom and, optionally,
            `group`: rows of a group share a colour and stand under its name. Without ends (NaN) there is no interval,
            without a value the line says so; a panel without rows says that, too.

    Returns:
        A figure of one panel of points, with each family's own trend, and one panel per forest.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    check(runs, ["family", "weight", "label", "trace", "noisy_fitted"])
    lines = [10, *map(_forest_lines, forests.values()), 0]
    heights = [max(8, *pair) for pair in zip(lines[0::2], lines[1::2], strict=False)]
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            len(heights), 2, figsize=(7.2, 0.9 + sum(0.16 * h + 0.55 for h in heights)), height_ratios=heights
        )
        first, *others = axes.flat
        known = runs.dropna(subset=["noisy_fitted"])
        if known.empty:
            lacks(first, "no training label is known to be wrong")
        else:
            scatter(first, known, "trace", "noisy_fitted", scale=100)
            _family_trends(first, known, "trace", "noisy_fitted")
            first.set_xscale("log")
            plain_log_labels(first.xaxis)
        first.set(xlabel=TRACE, ylabel="wrong labels fitted (%)")
        for ax, (name, rows) in zip(others, forests.items(), strict=False):
            _forest(ax, rows) if len(rows) else lacks(ax, "no runs that can be compared")
            ax.set_xlabel(name)
        for ax in others[len(forests) :]:
            ax.set_axis_off()
        for ax, letter in zip(axes.flat[: len(forests) + 1], "abcdefgh", strict=False):
            ax.set_title(letter, loc="left", fontweight="bold")
        legend(fig, runs)
    return fig


def _family_trends(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A least-squares line on log x for each family of three conditions or more, and a dotted grey one for all runs."""
    parts = {name: part for name, part in table.groupby("family") if part["label"].nunique() >= 3}
    for name, part in {**parts, None: table}.items():
        if part[x].nunique() < 2:
            continue
        slope, intercept = np.polyfit(np.log(part[x]), 100 * part[y], 1)
        ends = np.array([part[x].min(), part[x].max()])
        look = {"color": family(name).drawn.colour} if name else {"color": "0.4", "linestyle": ":"}
        ax.plot(ends, intercept + slope * np.log(ends), linewidth=0.9, zorder=2, **look)


def _forest_lines(rows: pd.DataFrame) -> int:
    """Lines that a forest takes: its rows and the names of its groups."""
    return len(rows) + (rows["group"].replace("", np.nan).nunique() if "group" in rows else 0)


def _forest(ax: Axes, rows: pd.DataFrame) -> None:
    """Estimates with their intervals, one per line from the top, and a line at 0; groups stand apart."""
    rows = rows if "group" in rows else rows.assign(group="")
    place, ticks = 0.0, []
    for i, (group, part) in enumerate(rows.groupby("group", sort=False)):
        colour = FOREST_COLOURS[i % len(FOREST_COLOURS)]
        if group:
            ticks.append((place, group, "bold"))
            place -= 1
        for row in part.itertuples():
            ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
            ax.plot(row.value, place, color=colour, marker="osD^"[i % 4], markersize=4)
            if np.isnan(row.value):
                beside(ax, "undefined", (0, place), (3, 0), "data", va="center", color="0.5")
            ticks.append((place, row.label, "normal"))
            place -= 1
        place -= 0.3
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0.5)
    ax.set_yticks([at for at, _, _ in ticks], [text for _, text, _ in ticks])
    for text, (_, _, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        text.set_fontweight(weight)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_ylim(place + 0.7, 0.7)
