"""Figures of what the paper leaves open: clouds of runs, and forests of estimates with their intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.drawing import beside, check, lacks, legend, plain_log_labels, scatter
from flatlingo.report.saving import STYLE
from flatlingo.study.families import family

FOREST = "0.25"  # of estimates: colours are of families
CLOUD_LINES = 12  # lines of a forest that a cloud is as high as


class Cloud(NamedTuple):
    """A panel of points, one per run, with each family's trend, and that of all runs dotted.

    Attributes:
        runs: columns as `study.table` makes them.
        x: a column above 0, drawn on a log axis.
        y: another.
        xlabel: what to call x.
        ylabel: what to call y.
        without: what the panel says where no run has both.
        text: a line above the panel.
        scale: what y is multiplied by.
        log: whether y has a log axis too.
    """

    runs: pd.DataFrame
    x: str
    y: str
    xlabel: str
    ylabel: str
    without: str
    text: str = ""
    scale: float = 1
    log: bool = False


def beyond_figure(clouds: Sequence[Cloud], forests: dict[str, pd.DataFrame]) -> Figure:
    """Clouds of runs and, after them, for each question a panel of estimates, two in a row; one alone is drawn narrow.

    Args:
        clouds: of which the first says what the legend holds; none if there are forests only.
        forests: by the panel's axis label, rows `label`, `value`, `low`, `high` from top to bottom and, optionally,
            `group`: rows of a group share a marker and stand under its name. Without ends (NaN) there is no interval,
            without a value the line says so; a panel without rows says that, too.

    Returns:
        A figure whose panels have letters, with the legend of the runs below.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    for cloud in clouds:
        check(cloud.runs, ["family", "weight", "label", cloud.x, cloud.y])
    lines = [*[CLOUD_LINES] * len(clouds), *map(_forest_lines, forests.values())]
    columns = min(2, len(lines))
    heights = [max(8, *lines[at : at + columns]) for at in range(0, len(lines), columns)]
    size = (7.2 if columns > 1 else 4.8, 0.9 + sum(0.16 * height + 0.55 for height in heights))
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(len(heights), columns, figsize=size, height_ratios=heights, squeeze=False)
        panels = iter(axes.flat)
        for cloud in clouds:
            _cloud(next(panels), cloud)
        for name, rows in forests.items():
            ax = next(panels)
            _forest(ax, rows) if len(rows) else lacks(ax, "no runs that can be compared")
            ax.set_xlabel(name)
        for ax in panels:
            ax.set_axis_off()
        for left, right in axes if columns > 1 else ():  # lines that say the same are named once
            names = [[label.get_text() for label in ax.get_yticklabels()] for ax in (left, right)]
            right.tick_params(labelleft=bool(clouds) or names[0] != names[1])
        for ax, letter in zip(axes.flat[: len(lines)] if len(lines) > 1 else (), "abcdefgh", strict=False):
            ax.set_title(letter, loc="left", fontweight="bold")
        if clouds:
            legend(fig, clouds[0].runs)
    return fig


def _cloud(ax: Axes, cloud: Cloud) -> None:
    known = cloud.runs.dropna(subset=[cloud.x, cloud.y])
    ax.set(xlabel=cloud.xlabel, ylabel=cloud.ylabel)
    if known.empty:
        lacks(ax, cloud.without)
        return
    scatter(ax, known, cloud.x, cloud.y, scale=cloud.scale)
    _family_trends(ax, known, cloud)
    ax.set(xscale="log", yscale="log" if cloud.log else "linear")
    plain_log_labels(ax.xaxis)
    if cloud.log:
        plain_log_labels(ax.yaxis)
    beside(ax, cloud.text, (0.07, 1), (0, 4), "axes fraction")  # beside the panel's letter


def _family_trends(ax: Axes, table: pd.DataFrame, cloud: Cloud) -> None:
    """A least-squares line on log x for each family of three conditions or more, and a dotted grey one for all runs."""
    parts = {name: part for name, part in table.groupby("family") if part["label"].nunique() >= 3}
    for name, part in {**parts, None: table}.items():
        x, y = part[cloud.x], cloud.scale * part[cloud.y]
        if x.nunique() < 2:
            continue
        slope, intercept = np.polyfit(np.log(x), np.log(y) if cloud.log else y, 1)
        ends = np.array([x.min(), x.max()])
        line = intercept + slope * np.log(ends)
        look = {"color": family(name).drawn.colour} if name else {"color": "0.4", "linestyle": ":"}
        ax.plot(ends, np.exp(line) if cloud.log else line, linewidth=0.9, zorder=2, **look)


def _forest_lines(rows: pd.DataFrame) -> int:
    """Lines that a forest takes: its rows and the names of its groups."""
    return len(rows) + (rows["group"].replace("", np.nan).nunique() if "group" in rows else 0)


def _forest(ax: Axes, rows: pd.DataFrame) -> None:
    """Estimates with their intervals, one per line from the top, and a line at 0; groups stand apart."""
    rows = rows if "group" in rows else rows.assign(group="")
    place, ticks = 0.0, []
    for i, (group, part) in enumerate(rows.groupby("group", sort=False)):
        if group:
            ticks.append((place, group, "bold"))
            place -= 1
        for row in part.itertuples():
            ax.plot([row.low, row.high], [place, place], color=FOREST, linewidth=1.4, solid_capstyle="butt")
            ax.plot(row.value, place, color=FOREST, marker="osD^"[i % 4], markersize=4)
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
