"""Panels of what decides: outcomes per halving of Tr(F), and families at equal Tr(F) and with their controls.

Competent runs decide (`report.competence`); others are drawn hollow and named. Numbers and verdicts in the panels are
those that `decisions.verdicts` tabulates.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flatlingo.report import matched
from flatlingo.report.competence import undecidable, with_competence
from flatlingo.report.drawing import above, beside, check, keys_of_kinds, lacks
from flatlingo.report.judging import SMALLEST, said, signed
from flatlingo.report.marks import (
    MANY,
    condition_marks,
    draw_marks,
    label_marks,
    limits,
    names_of,
    off_the_axes,
)
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES, outcomes
from flatlingo.study.families import family, title

LINE = 0.165  # inches of a line of a forest
PER_CONDITION = 0.15  # inches of height that slopes have for each condition, whose names are to stand beside them
RIVALS = len(matched.RIVALS)  # the first of the questions asked in pairs
INTERVAL, SMALL = {"color": "#0072B2", "alpha": 0.15}, {"color": "0.8", "alpha": 0.5}
WEDGES = [
    Line2D([], [], color="0.2", linewidth=1, label="slope"),
    Patch(**INTERVAL, linewidth=0, label="its 95 % interval"),
    Patch(**SMALL, linewidth=0, label=f"± {SMALLEST:g} points per halving"),
]
NO_STAGE = "no {}: these runs have no second stage"


def slopes_figure(table: pd.DataFrame, found: pd.DataFrame, ys: tuple[str, ...]) -> Figure:
    """Outcomes against halvings of Tr(F), with the slope, its interval and its verdict.

    The wedge is the interval; the grey one is half a point per halving either way, the smallest effect of interest.

    Args:
        table: one row per run, or per run and target language (then the mean over languages counts).
        found: the verdicts on it, see `answers.decided`.
        ys: the outcomes, of `slopes.OUTCOMES`.

    Returns:
        A figure of one panel per outcome; one that cannot be drawn says why.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace"])
    reason = undecidable(table)
    with plt.style.context(STYLE):
        height = max(3.8, PER_CONDITION * table["label"].nunique())
        fig, axes = plt.subplots(1, len(ys), figsize=(7.2, height), squeeze=False)
        drawn = {}
        for ax, y in zip(axes[0], ys, strict=True):
            if reason or y not in outcomes(table):
                lacks(ax, reason or NO_STAGE.format(OUTCOMES[y]))
            else:
                runs = per_seed(with_competence(table), [y])
                drawn[ax] = _slope(ax, runs, y, found[found["outcome"] == OUTCOMES[y]])
            ax.set(xlabel="halvings of Tr(F) below no regulariser's", ylabel=f"{OUTCOMES[y]} ({_unit(y)})")
        kinds = keys_of_kinds(table["family"]) if table["family"].nunique() > MANY else []
        fig.legend(handles=[*WEDGES, *kinds], loc="outside lower center", ncols=len(WEDGES))
        fig.draw_without_rendering()
        for ax, (runs, conditions) in drawn.items():
            label_marks(ax, off_the_axes(ax, conditions, names=False), names_of(conditions), runs)
    return fig


def _unit(y: str) -> str:
    return "points" if y == "gain" else "%"


def _slope(ax: Axes, table: pd.DataFrame, y: str, found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One panel: marks, the line through their middle, the wedges, and the verdict above it; what was drawn."""
    runs, conditions = condition_marks(table, y)
    none = conditions.loc[conditions["family"] == "none", "x"].iloc[0]
    runs, conditions = (part.assign(x=-np.log2(part["x"] / none)) for part in (runs, conditions))
    draw_marks(ax, runs, conditions, size=0.8)
    able = runs[runs["able"]]
    marks = conditions[conditions["able"]]
    others = conditions[~conditions["able"]]
    ax.set_xlim(*limits(able["x"].to_numpy(), others["x"].to_numpy()))
    ax.set_ylim(*limits(pd.concat([able, marks])["y"].to_numpy(), others["y"].to_numpy()))
    middle, ends = (able["x"].mean(), able["y"].mean()), np.array(ax.get_xlim())
    row = found[found["question"] == "slope"].iloc[0]
    _wedge(ax, middle, ends, -SMALLEST, SMALLEST, **SMALL)
    if not math.isnan(row["low"]):
        _wedge(ax, middle, ends, row["low"], row["high"], **INTERVAL)
    ax.plot(ends, middle[1] + row["value"] * (ends - middle[0]), color="0.2", linewidth=1, zorder=1.2, label="_slope")
    within = found[found["question"] == "slope within families"].iloc[0]
    above(ax, f"per halving {said(row)}\nwithin families {said(within)}")
    return runs, conditions


def _wedge(ax: Axes, middle: tuple[float, float], ends: np.ndarray, low: float, high: float, **look) -> None:
    x = np.array([ends[0], middle[0], ends[1]])
    bounds = [middle[1] + slope * (x - middle[0]) for slope in (low, high)]
    ax.fill_between(x, *bounds, linewidth=0, zorder=0.4, **look)


def families_figure(table: pd.DataFrame, found: pd.DataFrame, ys: tuple[str, ...]) -> Figure:
    """Families in pairs, seed by seed: at equal Tr(F) above; below, what augmentation and what consistency give.

    Args:
        table: as for `slopes_figure`.
        found: as for `slopes_figure`.
        ys: as for `slopes_figure`; a column of panels each.

    Returns:
        A figure of two rows of panels; a comparison that cannot be made says why.

    Raises:
        FlatlingoError: for a missing column, an empty table, or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace"])
    reason = undecidable(table)
    runs = with_competence(per_seed(table, []))
    asked = {} if reason else _asked(runs)
    upper, lower = ({name: asked[name] for name in part} for part in (list(asked)[:RIVALS], list(asked)[RIVALS:]))
    heights = [sum(2 + len(pairs) for pairs in part.values()) or 8 for part in (upper, lower)]
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            2, len(ys), figsize=(7.2, 1.2 + LINE * sum(heights)), height_ratios=heights, squeeze=False, sharey="row"
        )
        shown, beyond = [-1.0, 1.0], []
        for column, y in zip(axes.T, ys, strict=True):
            for ax, part in zip(column, (upper, lower), strict=True):
                if reason or y not in outcomes(runs):
                    lacks(ax, reason or NO_STAGE.format(OUTCOMES[y]))
                    continue
                verdicts = found[found["outcome"] == OUTCOMES[y]].set_index("question")
                inside, outside = _forest(ax, runs, y, part, verdicts)
                shown += inside
                beyond += [(ax, *place) for place in outside]
            column[0].set_title(OUTCOMES[y], fontweight="bold")
            column[1].set_xlabel("difference (points)")
        _at_the_border(axes, np.array(shown), beyond)
    return fig


def _asked(runs: pd.DataFrame) -> dict[str, dict[str, tuple[str, str]]]:
    """The pairs of competent runs of each question; at other levels those with a condition that has no such run."""
    every, able = matched.questions(runs), matched.questions(runs[runs["able"]])
    learnt = set(runs.loc[runs["able"], "label"])
    return {
        question: {name: pair for name, pair in pairs.items() if not learnt.issuperset(pair)} | able[question]
        for question, pairs in every.items()
    }


def _forest(
    ax: Axes, runs: pd.DataFrame, y: str, asked: dict[str, dict], found: pd.DataFrame
) -> tuple[list[float], list[tuple[float, float, str]]]:
    """A line for each pair, from the top; above the pairs of a question, its verdict.

    Returns:
        What is to lie within the axes: seeds' differences and intervals of all pairs together (those of one pair, from
        few seeds, may go beyond); and the hollow marks as (value, line, colour).
    """
    ax.axvspan(-SMALLEST, SMALLEST, color="0.8", alpha=0.5, linewidth=0, zorder=0.3)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0.5)
    place, names, inside, hollow = 0.0, {}, [], []
    for question, pairs in asked.items():
        names[place], row = question, found.loc[question]
        words = said(row) if pairs else _absent(question, runs)
        beside(ax, words, (1, place), (-2, 0), ("axes fraction", "data"), va="center", ha="right")
        for name, pair in pairs.items():
            place -= 1
            names[place] = f"{pair[0]} − {pair[1]}" + ("" if name in pair else f", Tr(F) × {name}")
            colour = family(runs.loc[runs["label"] == pair[1], "family"].iloc[0]).drawn.colour
            inside += _pair(ax, place, runs[runs["able"]], y, pair, colour)
            if matched.compare(runs[runs["able"]], y, {"": pair}).empty:
                hollow += [(value, place, colour) for value in matched.compare(runs, y, {"": pair})["value"]]
        if row["conditions"] > 1:
            place -= 1
            names[place] = "all"
            ax.plot([row["low"], row["high"]], [place] * 2, color="0.1", linewidth=1.6)
            ax.plot(row["value"], place, "D", color="0.1", markersize=4, label=question)
            inside += [value for value in (row["low"], row["value"], row["high"]) if not math.isnan(value)]
        place -= 1.3
    ax.set_yticks([*names], [*names.values()])
    for text in ax.get_yticklabels():
        text.set(fontsize=6.5, fontweight="bold" if text.get_text() in asked else "normal")
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_ylim(place + 0.8, 0.7)
    return inside, hollow


def _pair(ax: Axes, place: float, runs: pd.DataFrame, y: str, pair: tuple[str, str], colour: str) -> list[float]:
    """One difference of competent runs: a dot for each seed, the mean, its interval. Returns the seeds' differences."""
    found = matched.compare(runs, y, {"": pair})
    if found.empty:
        return []
    row, by_seed = found.iloc[0], runs.pivot(index="seed", columns="label", values=y)
    gaps = 100 * (by_seed[pair[0]] - by_seed[pair[1]]).dropna()
    ax.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=0.9, alpha=0.7)
    ax.plot(gaps, [place] * len(gaps), ".", color=colour, markersize=3, alpha=0.7)
    ax.plot(row["value"], place, "o", markersize=4.5, color=colour, label=" − ".join(pair))
    return [*gaps]


def _at_the_border(axes: np.ndarray, shown: np.ndarray, hollow: list[tuple[Axes, float, float, str]]) -> None:
    """One scale for all panels; hollow marks of conditions that are not competent, with their value if beyond it."""
    low, high = limits(shown, np.array([value for _, value, *_ in hollow]))
    for ax in axes.flat:
        ax.set_xlim(low, high)
    for ax, value, place, colour in hollow:
        at = min(max(value, low), high)
        ax.plot(at, place, "o", markersize=4.5, markerfacecolor="none", markeredgecolor=colour, clip_on=False)
        text = "not competent" + (f": {signed(value, 1)}" if at != value else "")
        side, align = (-5, "right") if at > (low + high) / 2 else (5, "left")
        beside(ax, text, (at, place), (side, 0), "data", va="center", ha=align, color="0.4")


def _absent(question: str, runs: pd.DataFrame) -> str:
    """Why a question has no pair of conditions."""
    named = [name for name in ("consistency", "both_views", *matched.RIVALS) if title(name) in question]
    missing = [title(name) for name in named if name not in set(runs["family"])]
    return f"no run of {' and of '.join(missing)}" if missing else "no pair at equal Tr(F)"
