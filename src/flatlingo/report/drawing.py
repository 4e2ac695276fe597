"""Pieces of the figures: markers that say the family, colours that say the weight, legends, labels that stand apart."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

from flatlingo.errors import FlatlingoError
from flatlingo.report.differences import FEWEST_SEEDS
from flatlingo.report.shapes import require
from flatlingo.study.families import FAMILIES, KINDS, family

TRACE = "Tr(F) (nats²)"
LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "zh": "Chinese"}
WITH_WEIGHTS = ("consistency", "fisher_penalty")  # a row each in the legend, as in the paper
ROW = 5  # names in a row of the legend, if no row of weights is longer
LINES = ("x", "+")  # markers without a face
HALO = [withStroke(linewidth=1.6, foreground="white")]  # keeps text readable on lines


def check(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that cannot be drawn.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    require(table, columns)
    if table.empty:
        raise FlatlingoError("nothing to draw: the table has no rows")
    for name in table["family"].unique():
        family(name)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The conditions: families as in `FAMILIES`, weights ascending."""
    conditions = table[["family", "weight", "label"]].drop_duplicates()
    rank = conditions["family"].map(list(FAMILIES).index)
    return conditions.assign(rank=rank).sort_values(["rank", "weight"]).drop(columns="rank")


def shades(table: pd.DataFrame) -> dict[str, tuple]:
    """Colour by condition: from a light tint of the family's colour to a dark shade, by the rank of the weight."""
    colours = {}
    for name, part in in_order(table).groupby("family", sort=False):
        base = np.array(to_rgb(family(name).drawn.colour))
        ramp = LinearSegmentedColormap.from_list(name, [base + 0.5 * (1 - base), base, 0.5 * base])
        places = np.linspace(0, 1, len(part)) if len(part) > 1 else [0.5]
        colours |= dict(zip(part["label"], map(ramp, places), strict=True))
    return colours


def marker_of(name: str, colour: str | tuple) -> dict:
    """Line2D settings of a family's marker."""
    look = family(name).drawn
    thin = look.marker in LINES or not look.filled
    return {
        "linestyle": "none",
        "marker": look.marker,
        "markersize": look.size,
        "markerfacecolor": colour if look.filled else "none",
        "markeredgecolor": colour if thin else "white",
        "markeredgewidth": 1.5 if thin else 0.4,
    }


def scatter(ax: Axes, table: pd.DataFrame, x: str, y: str, *, scale: float) -> None:
    """One artist per condition (its `label` the condition's), one marker per run; the baseline on top."""
    colours = shades(table)
    for condition in in_order(table).itertuples():
        runs = table[table["label"] == condition.label]
        marker = marker_of(condition.family, colours[condition.label])
        ax.plot(
            runs[x], scale * runs[y], label=condition.label, zorder=4 if condition.family == "none" else 3, **marker
        )


def mean_and_seeds(
    ax: Axes, place: float, found: Mapping[str, Any], seeds: Iterable[float], *, colour: str, label: str
) -> None:
    """A line of a dot plot: a mean, its interval from three seeds on, and its seeds as small dots.

    Args:
        ax: the panel.
        place: the height of the line.
        found: `value, low, high, seeds`, as `Difference.row` gives them.
        seeds: their values.
        colour: of all.
        label: of the mean.
    """
    seeds = [*seeds]
    ax.plot(seeds, [place] * len(seeds), "o", markersize=2, markeredgewidth=0, color=colour, alpha=0.5, label="_")
    ax.plot(found["value"], place, "o", markersize=4, color=colour, label=label)
    if found["seeds"] >= FEWEST_SEEDS:
        ax.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1, label="_")


def apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places, moved as little as possible (least squares) so that each is `gap` above the one before.

    >>> apart(np.array([0.0, 1.0, 50.0]), gap=8)
    array([-3.5,  4.5, 50. ])
    """
    steps = gap * np.arange(len(places))
    return isotonic_regression(places - steps).x + steps if len(places) else places


def beside(ax: Axes, text: str, xy: tuple, points: tuple, xycoords: str | tuple, **style: object) -> None:
    """Small text at some points' distance from a place."""
    ax.annotate(text, xy, points, xycoords=xycoords, textcoords="offset points", fontsize=6.5, **style)


def above(ax: Axes, text: str) -> None:
    """A line above the panel, where no data can hide it."""
    beside(ax, text, (0, 1), (0, 4), "axes fraction")


def lacks(ax: Axes, text: str) -> None:
    """Say in an empty panel what it lacks."""
    ax.set(xticks=[], yticks=[])
    note(ax, text)


def note(ax: Axes, text: str) -> None:
    """Say something in the middle of a panel, which may share its ticks with others."""
    text = textwrap.fill(text, 45)
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=7, color="0.3")


def plain_log_labels(axis: Axis) -> None:
    """Ticks at 1, 2, 5 × 10ⁿ written out, so that a range below a decade has labels too."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(fig: Figure, table: pd.DataFrame) -> None:
    """A row each for consistency and Fisher penalty with their weights, as in the paper; the others by their titles."""
    colours, conditions = shades(table), in_order(table)
    rows = []
    for name in WITH_WEIGHTS:
        labels = conditions.loc[conditions["family"] == name, "label"]
        keys = [key(label, **marker_of(name, colours[label])) for label in labels]
        rows += [[key(family(name).title, linestyle="none"), *keys]] if keys else []
    others = [
        key(family(name).title, **marker_of(name, family(name).drawn.colour))
        for name in dict.fromkeys(conditions["family"])
        if name not in WITH_WEIGHTS
    ]
    columns = max(min(len(others), ROW), *map(len, rows), 1)
    rows += [others[i : i + columns] for i in range(0, len(others), columns)]
    blank = key("", linestyle="none")
    by_column = [row[i] if i < len(row) else blank for i in range(columns) for row in rows]
    fig.legend(handles=by_column, loc="outside lower center", ncols=columns)


def colour_of_kind(name: str) -> str:
    """The colour of a family where only kinds of methods are told apart."""
    return KINDS[family(name).kind][1]


def legend_of_kinds(fig: Figure, families: Iterable[str]) -> None:
    """A dot for each kind of method that some families are of."""
    fig.legend(handles=keys_of_kinds(families), loc="outside lower center", ncols=4)


def keys_of_kinds(families: Iterable[str]) -> list[Line2D]:
    """The entries of `legend_of_kinds`."""
    drawn = {family(name).kind for name in families}
    dot = {"marker": "o", "linestyle": "none"}
    return [key(text, color=colour, **dot) for kind, (text, colour) in KINDS.items() if kind in drawn]


def key(label: str, **marker: object) -> Line2D:
    """An entry of a legend: a marker and its label, no data."""
    return Line2D([], [], label=label, **marker)
