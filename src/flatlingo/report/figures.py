"""The paper's two figures, of any plan: English accuracy, and the gain of a second stage, against Tr(F).

Marker and colour both say the family (crosses, circles and squares as in the paper; colours that colour-blind readers
can tell apart); the darker the colour, the larger the weight. Small dots are runs, with what their seeds differ by
taken out; marks are means over seeds, hollow where a model has not learnt its task (`competence.competent`).
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from flatlingo.report.competence import with_competence
from flatlingo.report.correlations import rank_correlation
from flatlingo.report.drawing import (
    LANGUAGES,
    TRACE,
    above,
    beside,
    check,
    key,
    lacks,
    marker_of,
    plain_log_labels,
)
from flatlingo.report.marks import (
    condition_marks,
    draw_marks,
    half_widths,
    label_marks,
    limits,
    names_of,
    off_the_axes,
    seeds_aligned,
    weight_text,
)
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import check_one_baseline, per_run
from flatlingo.study.families import family

ROWS = {  # of figure 2: the outcome, its axis, and what the same is after as many English rows
    "gain": ("gain (points)", "control_gain"),
    "zero_shot": ("before: zero-shot (%)", None),
    "adapted": ("after adaptation (%)", "control"),
}


def figure1(table: pd.DataFrame) -> Figure:
    """English validation accuracy against Tr(F), and Tr(F) against the regulariser's weight (the paper's Figure 1).

    Args:
        table: of any plan, columns as `study.table` makes them; each run is drawn once.

    Returns:
        A figure: the large panel (first of its axes) and, below it, one for each family of two weights or more.

    Raises:
        FlatlingoError: for a missing column, an empty table, an unknown family, two runs of one condition and seed, or
            several baselines (`shapes.check_one_baseline`).
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace", "english_accuracy"])
    check_one_baseline(table)
    table = with_competence(per_run(table))
    with plt.style.context(STYLE):
        fig = plt.figure(figsize=(7.2, 5.2))
        upper, lower = fig.add_gridspec(2, 1, height_ratios=(3, 1.7))
        ax = fig.add_subplot(upper)
        weights_of = _facets(fig, lower, table)
        runs, conditions = condition_marks(table, "english_accuracy")
        draw_marks(ax, runs, conditions)
        _frame(ax, [(runs, conditions)])
        ax.set(xlabel=TRACE, ylabel="English validation accuracy (%)")
        above(ax, f"within seeds: {_correlation(table, 'english_accuracy')}")
        _chance(ax, table)
        _trace_against_weight(weights_of, runs, conditions)
        moved = off_the_axes(ax, conditions)
        names = [name + text for name, text in zip(names_of(conditions), moved["text"], strict=True)]
        fig.draw_without_rendering()
        label_marks(ax, moved, names, runs)
    return fig


def figure2(table: pd.DataFrame) -> Figure:
    """Gain from fine-tuning on a target language against Tr(F) after English (the paper's Figure 2).

    One column per language. Below the gain stand where the models start and where they end: a low start inflates a
    gain, but not the end. Dashes show the same after as many English rows, where that was measured.

    Args:
        table: of a plan with a second stage: one row per run and target language, columns as `study.table` makes them.

    Returns:
        A figure of three rows of panels with their legend below.

    Raises:
        FlatlingoError: for a missing column, an empty table, an unknown family, two runs of one condition and seed, or
            several baselines (`shapes.check_one_baseline`).
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "trace", "language", "gain", "zero_shot", "adapted"])
    check_one_baseline(table)
    languages = list(dict.fromkeys(table["language"]))
    table = with_competence(table)
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            len(ROWS), len(languages), figsize=(2.4 * len(languages), 6.4), sharex=True, sharey="row", squeeze=False
        )
        hollow = []
        for row, (y, (title, control)) in zip(axes, ROWS.items(), strict=True):
            drawn = [condition_marks(table[table["language"] == language], y) for language in languages]
            dashes = []
            for ax, language, (runs, conditions) in zip(row, languages, drawn, strict=True):
                part = table[table["language"] == language]
                draw_marks(ax, runs, conditions, size=0.8)
                _bars(ax, runs, conditions)
                dashes.append(_dashes(ax, part, conditions, control))
                above(ax, _correlation(part, y, n_permutations=1).partition(", p")[0])
            for ax, (runs, conditions) in zip(row, drawn, strict=True):
                _frame(ax, drawn, np.concatenate(dashes))
                moved = off_the_axes(ax, conditions, names=False)
                hollow.append((ax, moved[~moved["able"]], runs))
            row[0].set_ylabel(title)
        for ax, language in zip(axes[0], languages, strict=True):
            ax.axhline(0, color="0.6", linewidth=0.8, zorder=0.5)
            ax.set_title(LANGUAGES.get(language, language), fontweight="bold", pad=15)
        for ax in axes[1:].flat:
            _chance(ax, table)
        for ax in axes[-1]:
            ax.set_xlabel("Tr(F) after English (nats²)")
        _families_legend(fig, table)
        fig.draw_without_rendering()
        for ax, conditions, runs in hollow:
            label_marks(ax, conditions, [*conditions["label"]], runs)
    return fig


def _correlation(table: pd.DataFrame, y: str, **options) -> str:
    """The rank correlation with Tr(F) within seeds, over competent runs."""
    return str(rank_correlation(table[table["able"]], y, **options))


def _frame(ax: Axes, drawn: list[tuple[pd.DataFrame, pd.DataFrame]], also: Sequence[float] = ()) -> None:
    """Axes that show every competent run and condition, and no further than a bit beyond them for the others.

    Args:
        ax: gets a logarithmic x.
        drawn: the runs and conditions of all panels that share the axes.
        also: further values of y that are in sight.
    """
    able, others = [], []
    for runs, conditions in drawn:
        half = half_widths(runs, conditions).fillna(0)
        for part, bar in ((runs, 0), (conditions, half), (conditions, -half)):
            places = np.column_stack([np.log(part["x"]), part["y"] + bar])
            able.append(places[part["able"]])
            others.append(places[~part["able"]] if part is conditions else places[:0])
    (x, y), (other_x, other_y) = np.concatenate(able).T, np.concatenate(others).T
    y = np.concatenate([y, also])
    ax.set_xscale("log")
    ax.set_xlim(*np.exp(limits(x, other_x, spare=0.05)))
    ax.set_ylim(*limits(y, other_y, spare=0.06))
    plain_log_labels(ax.xaxis)


def _chance(ax: Axes, table: pd.DataFrame) -> None:
    """A line at the accuracy of guessing, if the classes are known and it lies in range."""
    classes = table["classes"].dropna() if "classes" in table else pd.Series(dtype=float)
    low, high = ax.get_ylim()
    if len(classes) and low < 100 / classes.iloc[0] < high:
        chance = 100 / classes.iloc[0]
        ax.axhline(chance, color="0.5", linewidth=0.8, linestyle=":", zorder=0.5, label="_chance")
        beside(ax, "chance", (1, chance), (-2, 2), ("axes fraction", "data"), color="0.4", ha="right")


def _bars(ax: Axes, runs: pd.DataFrame, conditions: pd.DataFrame) -> None:
    """The 95 % interval of every competent condition's mean, see `marks.half_widths`."""
    able = conditions[conditions["able"]]
    half = half_widths(runs, able)
    if half.notna().any():
        ax.vlines(able["x"], able["y"] - half, able["y"] + half, color="0.55", linewidth=0.6, zorder=1, label="_bars")


def _dashes(ax: Axes, table: pd.DataFrame, conditions: pd.DataFrame, control: str | None) -> np.ndarray:
    """What as many English rows give, as a dash at each competent condition's Tr(F); the values, if measured."""
    if not control or control not in table or table[control].isna().all():
        return np.empty(0)
    able = conditions[conditions["able"]]
    aligned = seeds_aligned(table.dropna(subset=[control]), [control])
    means = able["label"].map(100 * aligned[aligned["able"]].groupby("label")[control].mean()).dropna()
    ax.plot(able.loc[means.index, "x"], means, color="0.35", zorder=1, label="_control", **DASH)
    return means.to_numpy()


DASH = {"marker": "_", "linestyle": "none", "markersize": 6, "markeredgewidth": 1.1}


def _families_legend(fig: Figure, table: pd.DataFrame) -> None:
    """A key for each family and for the English control."""
    names = dict.fromkeys(name for name in table["family"])
    keys = [key(family(name).title, **marker_of(name, family(name).drawn.colour)) for name in names]
    if "control" in table and table["control"].notna().any():
        keys.append(key("after as many English rows", color="0.35", **DASH))
    fig.legend(handles=keys, loc="outside lower center", ncols=4)


def _facets(fig: Figure, place, table: pd.DataFrame) -> dict[str, Axes]:
    """A panel for each family of two weights or more, in their order; one without a name if there is none."""
    weighted = table[table["weight"] > 0]
    numbers = weighted.groupby("family", sort=False)["label"].nunique()
    numbers = numbers[numbers > 1]
    if numbers.empty:
        return {"": fig.add_subplot(place)}
    grid = place.subgridspec(1, len(numbers), width_ratios=[max(number, 2) for number in numbers])
    axes = {}
    for name, cell in zip(numbers.index, grid, strict=True):
        axes[name] = fig.add_subplot(cell, sharey=next(iter(axes.values()), None))
    return axes


def _trace_against_weight(axes: dict[str, Axes], runs: pd.DataFrame, conditions: pd.DataFrame) -> None:
    """Conditions joined by weight, runs as small dots, those without a regulariser as a band; an axis for each unit.

    Runs and conditions are those of the large panel (`condition_marks`), so that a mark has the same Tr(F) in both.
    """
    if "" in axes:
        lacks(axes[""], "Tr(F) against the weight: no family has two weights")
        return
    baseline, mean = (part.loc[part["family"] == "none", "x"] for part in (runs, conditions))
    for i, (name, ax) in enumerate(axes.items()):
        look = family(name).drawn
        dotted, means = (part[(part["family"] == name) & (part["weight"] > 0)] for part in (runs, conditions))
        ax.set(xscale="log", yscale="log", xlabel=family(name).weight or "weight")
        dots = {"marker": ".", "markersize": 3, "linestyle": "none", "alpha": 0.55}
        ax.plot(dotted["weight"], dotted["x"], color=look.colour, **dots)
        ax.plot(means["weight"], means["x"], color=look.colour, linewidth=0.8, label="_")
        for able, part in means.groupby("able"):
            face = {} if able else {"markerfacecolor": "none", "markeredgecolor": look.colour}
            ax.plot(part["weight"], part["x"], label=name if able else "_", **marker_of(name, look.colour) | face)
        if not baseline.empty:
            ax.axhspan(baseline.min(), baseline.max(), color="0.85", zorder=0.5, linewidth=0)
            ax.axhline(mean.item(), color="0.3", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.6)
        ax.set_title(family(name).title, color=look.colour, fontsize=7)
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(means["weight"]))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: weight_text(value))
        ax.tick_params(axis="x", labelsize=6)
        ax.margins(x=0.12)
        if i:
            ax.tick_params(labelleft=False)
    first = next(iter(axes.values()))
    first.set_ylabel(TRACE)
    plain_log_labels(first.yaxis)
    if not baseline.empty:
        beside(first, "none", (0, baseline.max()), (2, 2), ("axes fraction", "data"), color="0.3")
