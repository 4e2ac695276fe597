"""The figures of the paper, drawn from the table of a sweep, and how a figure is saved.

Marker and colour both say the family (crosses, circles and squares as in the paper; colours that colour-blind readers
can tell apart); the darker the colour, the larger the weight. Every run is drawn, so that the spread over seeds shows.
"""

import dataclasses
import io
import json
import os
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from flatlingo import analysis
from flatlingo.errors import FlatlingoError
from flatlingo.paths import FIGURES

STYLE = Path(__file__).with_name("paper.mplstyle")
TRACE = "Tr(F) (nats²)"
LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "zh": "Chinese"}
PACKAGES = ("flatlingo", "torch", "transformers", "numpy", "pandas", "scipy", "matplotlib")


class Look(NamedTuple):
    """How a family is drawn."""

    name: str
    marker: str
    colour: str
    filled: bool = True
    size: float = 5


FAMILIES = {
    "none": Look("no regulariser", "*", "#000000", size=9),
    "consistency": Look("consistency", "x", "#0072B2"),
    "fisher_penalty": Look("Fisher penalty", "o", "#D55E00"),
    "l2": Look("L2 to zero", "s", "#009E73"),
    "l2_sp": Look("L2 to the start", "s", "#009E73", filled=False),
    "dropout": Look("dropout", "^", "#CC79A7"),
    "trace_penalty": Look("trace penalty", "D", "#E69F00"),
}
IN_LEGEND_BY_WEIGHT = ("consistency", "fisher_penalty")

KINDS = {  # colour of each kind of method
    "none": ("no regulariser", "#000000"),
    "consistency": ("consistency of two passes", "#0072B2"),
    "gradient": ("penalty on gradients, or sharpness", "#D55E00"),
    "weights": ("on the weights", "#009E73"),
    "other": ("dropout, labels, stopping", "#CC79A7"),
}
METHODS = {  # name and kind of each family in the study of all methods
    "none": ("none", "none"),
    "consistency": ("MVR", "consistency"),
    "r3f": ("R3F", "consistency"),
    "r4f": ("R4F", "consistency"),
    "r_drop": ("R-Drop", "consistency"),
    "smart": ("SMART", "consistency"),
    "vat": ("VAT", "consistency"),
    "lnsr": ("LNSR", "consistency"),
    "xtune": ("xTune", "consistency"),
    "weight_noise": ("weight noise", "consistency"),
    "fisher_penalty": ("Fisher penalty", "gradient"),
    "trace_penalty": ("trace penalty", "gradient"),
    "gradient_norm": ("gradient norm", "gradient"),
    "sam": ("SAM", "gradient"),
    "asam": ("ASAM", "gradient"),
    "l2": ("L2", "weights"),
    "l2_sp": ("L2-SP", "weights"),
    "weight_decay": ("weight decay", "weights"),
    "mixout": ("mixout", "weights"),
    "dropout": ("dropout", "other"),
    "label_smoothing": ("label smoothing", "other"),
    "early_stopping": ("early stopping", "other"),
}


def figure1(table: pd.DataFrame, *, seed: int = 0) -> Figure:
    """English validation accuracy against Tr(F), and Tr(F) against the regulariser's weight (the paper's Figure 1).

    Args:
        table: one row a run, columns as `study.table` makes them.
        seed: of the bootstrap behind the correlation's interval.

    Returns:
        A figure of two panels with their legend below.

    Raises:
        FlatlingoError: for a missing column, an empty table, or a family that has no marker here.
    """
    _check(table, ["family", "weight", "label", "seed", "trace", "english_accuracy"])
    with plt.style.context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
        _scatter(left, table, "trace", "english_accuracy", scale=100)
        left.set(xscale="log", xlabel=TRACE, ylabel="English validation accuracy (%)")
        _above(left, str(analysis.correlation(table, "trace", "english_accuracy", seed=seed)))
        _trace_against_weight(right, table)
        for axis in (left.xaxis, right.yaxis):
            _plain_log_labels(axis)
        _legend(fig, table)
    return fig


def figure2(table: pd.DataFrame, *, seed: int = 0) -> Figure:
    """Gain from fine-tuning on a target language against Tr(F) after English (the paper's Figure 2).

    One panel a language. The second row shows the accuracy after fine-tuning instead: a low start inflates a gain, but
    not the end.

    Args:
        table: one row a run and target language, columns as `study.table` makes them.
        seed: of the bootstrap behind the correlations' intervals.

    Returns:
        A figure of two rows of panels with their legend below.

    Raises:
        FlatlingoError: for a missing column, an empty table, or a family that has no marker here.
    """
    _check(table, ["family", "weight", "label", "seed", "trace", "language", "gain", "adapted"])
    languages = list(dict.fromkeys(table["language"]))
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            2, len(languages), figsize=(2.4 * len(languages), 5), sharex=True, sharey="row", squeeze=False
        )
        for column, language in zip(axes.T, languages, strict=True):
            part = table[table["language"] == language]
            for ax, y in zip(column, ("gain", "adapted"), strict=True):
                _scatter(ax, part, "trace", y, scale=100)
                ax.set_xscale("log")
                _above(ax, f"Spearman ρ = {analysis.correlation(part, 'trace', y, seed=seed).interval}")
            column[0].axhline(0, color="0.6", linewidth=0.8, zorder=0.5)
            column[0].set_title(LANGUAGES.get(language, language), fontweight="bold", pad=15)
            column[1].set_xlabel("Tr(F) after English (nats²)")
            _plain_log_labels(column[1].xaxis)
        axes[0, 0].set_ylabel("gain in accuracy (points)")
        axes[1, 0].set_ylabel("accuracy after adaptation (%)")
        _legend(fig, table)
    return fig


def methods(table: pd.DataFrame) -> Figure:
    """Accuracy gained in each language against Tr(F), a point a method: the mean over seeds, lines from least to most.

    The gain is over the run of the same seed, hence the same training rows, without a regulariser.

    Args:
        table: one row a run of plan `methods`, columns as `study.table` makes them; one of `none` for each seed.

    Returns:
        A figure of one panel a language; every point has its method's name beside the panel.

    Raises:
        FlatlingoError: for a missing column, an empty table, a family that has no name here, or no run of `none`.
    """
    _check(table, ["family", "label", "seed", "trace", "english_accuracy"], METHODS)
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
            _plain_log_labels(ax.xaxis)
        for ax in axes[:, 0]:
            ax.set_ylabel("accuracy gained (points)")
        drawn = {METHODS[family][1] for family in table["family"]}
        keys = [_key(name, color=c, marker="o", linestyle="none") for kind, (name, c) in KINDS.items() if kind in drawn]
        fig.legend(handles=keys, loc="outside lower center", ncols=3)
    return fig


def _method_points(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """The points of a panel, and their names on its right in the order of the points, each with a line to its point."""
    ax.set_xscale("log")
    runs = table.groupby("family", sort=False)
    spread = {name: runs[name].agg(["min", "mean", "max"]) for name in ("trace", column)}
    spread[column] = 100 * spread[column].sort_values("mean")
    for family, accuracy in spread[column].iterrows():
        trace, colour = spread["trace"].loc[family], KINDS[METHODS[family][1]][1]
        lines = {"color": colour, "linewidth": 0.8}
        ax.plot([trace["min"], trace["max"]], [accuracy["mean"]] * 2, **lines)
        ax.plot([trace["mean"]] * 2, [accuracy["min"], accuracy["max"]], **lines)
        ax.plot(trace["mean"], accuracy["mean"], "o", markersize=4, color=colour, label=METHODS[family][0])
    low, high = ax.get_ylim()
    height = 72 * 2.5  # of a panel, in points, nearly
    wanted = height * (spread[column]["mean"].to_numpy() - low) / (high - low)
    steps = 7.5 * np.arange(len(wanted))  # isotonic regression: the least movement that keeps these distances
    places = isotonic_regression(wanted - steps).x + steps
    for (family, accuracy), place in zip(spread[column].iterrows(), places, strict=True):
        name, kind = METHODS[family]
        ax.annotate(
            name,
            (spread["trace"].loc[family, "mean"], accuracy["mean"]),
            (1.04, place / height),
            textcoords="axes fraction",
            fontsize=6.5,
            va="center",
            color=KINDS[kind][1],
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "0.8", "linewidth": 0.4, "zorder": 0.5},
        )


def theory_figure(expansion: pd.DataFrame, independent: pd.DataFrame, structured: pd.DataFrame) -> Figure:
    """Equation (1) at work: the expansion of the KL, what it leaves out, and its mean over noise.

    Args:
        expansion: one noise vector, scaled: columns `model`, `deviation` (√C), `kl`, `quadratic` (½ εᵀFε), `remainder`
            (|KL - ½ εᵀFε|) and `paired` (the same for the mean of the KL over ε and -ε).
        independent: means over i.i.d. noise: `model`, `deviation`, `ratio` (E KL / ½ C Tr(F)), `standard_error`.
        structured: means over other noise of the same power: `noise`, `predicted` (Tr(F Cov ε) / C Tr(F)), `ratio`,
            `standard_error`.

    Returns:
        A figure of four panels.
    """
    models = list(dict.fromkeys(expansion["model"]))
    looks = dict(zip(models, zip("o^s", ("#0072B2", "#D55E00", "#009E73"), strict=False), strict=False))
    with plt.style.context(STYLE):
        fig, ((growth, left_out), (mean, correlated)) = plt.subplots(2, 2, figsize=(7.2, 5.4))
        for model, (marker, colour) in looks.items():
            part = expansion[expansion["model"] == model]
            points = {"linestyle": "none", "marker": marker, "markersize": 3.5, "color": colour}
            growth.plot(part["deviation"], part["quadratic"], color=colour, linewidth=0.9)
            growth.plot(part["deviation"], part["kl"], label=model, **points)
            left_out.plot(part["deviation"], part["remainder"], **points)
            left_out.plot(part["deviation"], part["paired"], **points | {"markerfacecolor": "none"})
            part = independent[independent["model"] == model]
            bars = points | {"linestyle": "-", "linewidth": 0.8, "capsize": 2}
            mean.errorbar(part["deviation"], part["ratio"], 1.96 * part["standard_error"], **bars)
        for ax in (growth, left_out):
            ax.set(xscale="log", yscale="log", xlabel="standard deviation of the noise, √C")
        growth.set_ylabel("KL (markers), ½ εᵀFε (lines), nats")
        growth.legend(loc="upper left")
        left_out.set_ylabel("|KL − ½ εᵀFε| (nats)")
        kinds = {"linestyle": "none", "marker": "o", "markersize": 3.5, "color": "0.3"}
        single, paired = _key("of one ε", **kinds), _key("of the mean over ±ε", **kinds | {"markerfacecolor": "none"})
        left_out.legend(handles=[single, paired], loc="lower right")
        _slope_guide(left_out, expansion, "remainder", 3, above=True)
        _slope_guide(left_out, expansion, "paired", 4, above=False)
        mean.axhline(1, color="0.4", linewidth=0.8)
        mean.set(
            xscale="log", xlabel="standard deviation of the noise, √C", ylabel="E KL / ½ C Tr(F), with 95 % interval"
        )
        places = np.arange(len(structured))[::-1]
        correlated.axvline(1, color="0.4", linewidth=0.8)
        ring = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none", "color": "0.5"}
        correlated.plot(structured["predicted"], places, label="predicted, Tr(F Cov ε) / C Tr(F)", **ring)
        dot = {"linestyle": "none", "marker": "o", "markersize": 3, "color": "black", "capsize": 2}
        deviation = 1.96 * structured["standard_error"]
        correlated.errorbar(structured["ratio"], places, xerr=deviation, label="measured", **dot)
        correlated.set(xscale="log", xlabel="E KL / ½ C Tr(F)", ylim=(-0.6, len(places) + 0.4))
        correlated.set_yticks(places, [textwrap.fill(str(name), 15) for name in structured["noise"]])
        correlated.legend(loc="upper right")
        for ax, letter in zip((growth, left_out, mean, correlated), "abcd", strict=True):
            ax.set_title(letter, loc="left", fontweight="bold")
    return fig


def beyond_figure(runs: pd.DataFrame, forests: dict[str, pd.DataFrame]) -> Figure:
    """What the paper leaves open: memorisation against Tr(F), and a panel of estimates with intervals a question.

    Args:
        runs: one row a run, columns as `study.table` makes them.
        forests: by the panel's axis label, rows `label`, `value`, `low`, `high` from top to bottom and, optionally,
            `group`: rows of a group share a colour and stand under its name. NaN ends leave the interval out.

    Returns:
        A figure of one panel of points, with each family's own trend, and one a forest.

    Raises:
        FlatlingoError: for a missing column, an empty table, or a family that has no marker here.
    """
    _check(runs, ["family", "weight", "label", "trace", "noisy_fitted"])
    lines = [10, *map(_forest_lines, forests.values()), 0]
    heights = [max(8, *pair) for pair in zip(lines[0::2], lines[1::2], strict=False)]
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            len(heights), 2, figsize=(7.2, 0.9 + sum(0.16 * h + 0.55 for h in heights)), height_ratios=heights
        )
        first, *others = axes.flat
        known = runs.dropna(subset=["noisy_fitted"])
        if known.empty:
            first.text(0.5, 0.5, "no known wrong labels", ha="center", transform=first.transAxes)
        else:
            _scatter(first, known, "trace", "noisy_fitted", scale=100)
            _family_trends(first, known, "trace", "noisy_fitted")
            first.set_xscale("log")
            _plain_log_labels(first.xaxis)
        first.set(xlabel=TRACE, ylabel="wrong labels fitted (%)")
        for ax, (name, rows) in zip(others, forests.items(), strict=False):
            _forest(ax, rows)
            ax.set_xlabel(name)
        for ax in others[len(forests) :]:
            ax.set_axis_off()
        for ax, letter in zip(axes.flat[: len(forests) + 1], "abcdefgh", strict=False):
            ax.set_title(letter, loc="left", fontweight="bold")
        _legend(fig, runs)
    return fig


def _family_trends(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A least-squares line on log x for each family of three conditions or more, and a dotted grey one for all runs."""
    parts = {family: part for family, part in table.groupby("family") if part["label"].nunique() >= 3}
    for family, part in {**parts, None: table}.items():
        if part[x].nunique() < 2:
            continue
        slope, intercept = np.polyfit(np.log(part[x]), 100 * part[y], 1)
        ends = np.array([part[x].min(), part[x].max()])
        look = {"color": FAMILIES[family].colour} if family else {"color": "0.4", "linestyle": ":"}
        ax.plot(ends, intercept + slope * np.log(ends), linewidth=0.9, zorder=2, **look)


FOREST_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def _forest_lines(rows: pd.DataFrame) -> int:
    """Lines that a forest takes: its rows and the names of its groups."""
    return len(rows) + (rows["group"].replace("", np.nan).nunique() if "group" in rows else 0)


def _forest(ax: Axes, rows: pd.DataFrame) -> None:
    """Estimates with their intervals, one a line from the top, and a line at 0; groups apart and under their names."""
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


def run_figure(table: pd.DataFrame, run_id: str, y: str, *, history: list[dict], groups: dict[str, float]) -> Figure:
    """One run among the others: where it lies, how its loss fell, and which modules its Tr(F) comes from.

    Args:
        table: runs, a row each; columns as `study.table` makes them.
        run_id: the run to look at.
        y: the accuracy to draw against Tr(F), a column.
        history: its training curve, entries of `step` and `loss`; empty if none was recorded.
        groups: its Tr(F) by module group.

    Returns:
        A figure of three panels.

    Raises:
        FlatlingoError: for a missing column, an empty table, a run that is not in it, or an unknown family.
    """
    _check(table, ["run_id", "family", "weight", "label", "trace", y])
    chosen = table[table["run_id"] == run_id]
    if chosen.empty:
        raise FlatlingoError(f"no run {run_id} in the table of {len(table)} rows")
    with plt.style.context(STYLE):
        fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.6))
        fig.get_layout_engine().set(wspace=0.08)
        _scatter(left, table, "trace", y, scale=100)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none"}
        left.plot(chosen["trace"], 100 * chosen[y], marker="o", zorder=5, clip_on=False, **ring)
        left.set(xscale="log", xlabel=TRACE, ylabel=analysis.HEADINGS.get(y, f"{y.replace('_', ' ')} (%)"))
        _plain_log_labels(left.xaxis)
        colour = FAMILIES[chosen["family"].iloc[0]].colour
        if history:
            middle.plot([h["step"] for h in history], [h["loss"] for h in history], color=colour)
        else:
            middle.set(xticks=[], yticks=[])
            middle.text(0.5, 0.5, "no training curve recorded", ha="center", transform=middle.transAxes, fontsize=7)
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
        _beside(ax, f"{value / total:.0%}", (value, place), (3, 0), "data", va="center")
    ax.grid(visible=False, axis="y")


def live_figure(curves: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy and Tr(F) while models train, a line a model.

    Args:
        curves: by a model's name, a row an epoch: `epoch`, `accuracy` (on clean validation rows, 0..1), `trace`.

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
        _plain_log_labels(right.yaxis)
        for ax in (left, right):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        fig.legend(loc="outside lower center", ncols=4)
    return fig


ESTIMATORS = {  # colour and marker of each way to Tr(F)
    "exact labels": ("#000000", "*"),
    "sampled labels": ("#0072B2", "x"),
    "B‖ḡ‖², sampled": ("#D55E00", "o"),
    "Hutchinson": ("#009E73", "s"),
    "‖ḡ‖², sampled": ("#E69F00", "v"),
    "gold labels": ("#999999", "P"),
    "most probable label": ("#CC79A7", "^"),
    "B‖ḡ‖², most probable": ("#56B4E9", "D"),
}


def estimators_figure(cost: pd.DataFrame, spread: pd.DataFrame, ratios: pd.DataFrame) -> Figure:
    """Ways to estimate Tr(F): what an error costs, what more examples buy, and what look-alikes measure.

    Args:
        cost: columns `estimator`, `passes` (forward passes of one example), `error` (relative, over all examples).
        spread: for given examples: `estimator`, `examples`, `spread` (relative standard deviation of one draw).
        ratios: for given examples: `estimator`, `examples`, `ratio` to their Tr(F), `standard_error`.

    Returns:
        A figure of three panels with their legend below.
    """
    panels = ((cost, "passes", "error"), (spread, "examples", "spread"), (ratios, "examples", "ratio"))
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 3))
        for ax, (table, x, y), letter in zip(axes, panels, "abc", strict=True):
            for estimator, (colour, marker) in ESTIMATORS.items():
                part = table[table["estimator"] == estimator]
                error = 1.96 * part["standard_error"].fillna(0) if y == "ratio" else None
                ax.errorbar(part[x], part[y], error, color=colour, marker=marker, markersize=4, linewidth=0.9)
            ax.set(xscale="log", yscale="log")
            ax.set_title(letter, loc="left", fontweight="bold")
        axes[0].set(xlabel="cost (forward passes of one example)", ylabel="relative error of Tr(F)")
        axes[1].set(xlabel="examples B", ylabel="relative spread of one draw")
        axes[2].set(xlabel="examples B", ylabel="ratio to Tr(F), with 95 % interval")
        axes[2].axhline(1, color="0.4", linewidth=0.8)
        for axis in (axes[1].xaxis, axes[1].yaxis, axes[2].xaxis, axes[2].yaxis):
            _plain_log_labels(axis)
        drawn = set().union(*(table["estimator"] for table, _, _ in panels))
        keys = [_key(n, color=c, marker=m, markersize=4) for n, (c, m) in ESTIMATORS.items() if n in drawn]
        fig.legend(handles=keys, loc="outside lower center", ncols=4)
    return fig


def _slope_guide(ax: Axes, expansion: pd.DataFrame, column: str, slope: int, *, above: bool) -> None:
    """A dotted line ∝ √C to an integer power beside the points of a column."""
    edge = expansion.groupby("deviation")[column].agg("max" if above else "min")
    x = edge.index.to_numpy()
    x = x[(edge > 1e-16) & (x < 1e-2)]
    anchor = edge[x] / x**slope
    y = x**slope * (4 * anchor.max() if above else anchor.min() / 4)
    ax.plot(x, y, color="0.4", linestyle=":", linewidth=1)
    _beside(
        ax,
        f"slope {slope}",
        (x[len(x) // 2], y[len(x) // 2]),
        (-3, 3) if above else (4, -8),
        "data",
        ha="right" if above else "left",
    )


def _check(table: pd.DataFrame, columns: list[str], families: dict[str, object] | None = None) -> None:
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        raise FlatlingoError(f"nothing to draw: the table has {len(table)} rows and lacks columns {missing}")
    unknown = sorted(set(table["family"]) - set(families or FAMILIES))
    if unknown:
        where = "FAMILIES" if families is None else "METHODS"
        raise FlatlingoError(f"family {unknown[0]} has no marker; add a line for it to {where} in figures.py")


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The conditions: families as in FAMILIES, weights ascending."""
    conditions = table[["family", "weight", "label"]].drop_duplicates()
    rank = conditions["family"].map(list(FAMILIES).index)
    return conditions.assign(rank=rank).sort_values(["rank", "weight"]).drop(columns="rank")


def _colours(table: pd.DataFrame) -> dict[str, tuple]:
    """Colour by condition: from a light tint of the family's colour to a dark shade, by the rank of the weight."""
    colours = {}
    for family, part in _in_order(table).groupby("family", sort=False):
        base = np.array(plt.matplotlib.colors.to_rgb(FAMILIES[family].colour))
        ramp = LinearSegmentedColormap.from_list(family, [base + 0.5 * (1 - base), base, 0.5 * base])
        places = np.linspace(0, 1, len(part)) if len(part) > 1 else [0.5]
        colours |= dict(zip(part["label"], map(ramp, places), strict=True))
    return colours


def _marker(family: str, colour) -> dict:
    """Line2D settings of a family's marker."""
    look = FAMILIES[family]
    return {
        "linestyle": "none",
        "marker": look.marker,
        "markersize": look.size,
        "markerfacecolor": colour if look.filled else "none",
        "markeredgecolor": colour if look.marker == "x" or not look.filled else "white",
        "markeredgewidth": 1.5 if look.marker == "x" or not look.filled else 0.4,
    }


def _scatter(ax: Axes, table: pd.DataFrame, x: str, y: str, *, scale: float) -> None:
    """One artist a condition (its `label` the condition's), one marker a run; the baseline on top."""
    colours = _colours(table)
    for condition in _in_order(table).itertuples():
        runs = table[table["label"] == condition.label]
        marker = _marker(condition.family, colours[condition.label])
        ax.plot(
            runs[x], scale * runs[y], label=condition.label, zorder=4 if condition.family == "none" else 3, **marker
        )


def _trace_against_weight(ax: Axes, table: pd.DataFrame) -> None:
    """Means over seeds joined by family, every run as a small point; weight 0, off a log axis, as a horizontal line."""
    ax.set(xscale="log", yscale="log", xlabel="weight (each family in its own unit)", ylabel=TRACE)
    means = analysis.condition_means(table)
    for family in dict.fromkeys(_in_order(means)["family"]):
        look, mean = FAMILIES[family], means[(means["family"] == family) & (means["weight"] > 0)].sort_values("weight")
        if mean.empty:
            continue
        runs = table[(table["family"] == family) & (table["weight"] > 0)]
        ax.plot(runs["weight"], runs["trace"], linestyle="none", marker=".", markersize=3, color=look.colour, alpha=0.5)
        line = {"linestyle": "-" if look.filled else "--", "color": look.colour, "label": look.name}
        ax.plot(mean["weight"], mean["trace"], zorder=3, **_marker(family, look.colour) | line)
        if len(mean) > 1 and family in IN_LEGEND_BY_WEIGHT:
            lowest = mean.loc[mean["trace"].idxmin()]
            _beside(
                ax,
                look.name,
                (lowest["weight"], lowest["trace"]),
                (-7, 0),
                "data",
                color=look.colour,
                ha="right",
                va="center",
            )
    baseline = table.loc[table["family"] == "none", "trace"]
    if not baseline.empty:
        ax.axhspan(baseline.min(), baseline.max(), color="0.88", zorder=0.5)
    unweighted = means[means["weight"] == 0].sort_values("trace")
    ax.autoscale_view()
    low, high = np.log(ax.get_ylim())
    height = 72 * 0.7 * ax.figure.get_figheight()  # of the panel, in points, nearly
    wanted = height * (np.log(unweighted["trace"].to_numpy()) - low) / (high - low)
    for row, place, free in zip(unweighted.itertuples(), wanted, _spread(wanted, gap=8), strict=True):
        colour = FAMILIES[row.family].colour
        ax.axhline(row.trace, color=colour, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        _beside(ax, row.label, (1, row.trace), (3, free - place), ("axes fraction", "data"), color=colour, va="center")


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places, moved up as little as keeps each `gap` above the one before, and centred again.

    >>> _spread(np.array([0.0, 1.0, 50.0]), gap=8)
    array([-3.5,  4.5, 50. ])
    """
    moved = places.astype(float).copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    crowded = moved != places
    crowded[:-1] |= crowded[1:]
    if crowded.any():
        moved[crowded] -= (moved - places)[crowded].mean()
    return moved


def _beside(ax: Axes, text: str, xy: tuple, points: tuple, xycoords, **style) -> None:
    """Small text at some points' distance from a place."""
    ax.annotate(text, xy, points, xycoords=xycoords, textcoords="offset points", fontsize=6.5, **style)


def _above(ax: Axes, text: str) -> None:
    """A line above the panel, where no data can hide it."""
    _beside(ax, text, (0, 1), (0, 4), "axes fraction")


def _plain_log_labels(axis) -> None:
    """Ticks at 1, 2, 5 × 10ⁿ written out, so that a range below a decade has labels too."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(fig: Figure, table: pd.DataFrame) -> None:
    """A row each for consistency and Fisher penalty with their weights, as in the paper; one for the others by name."""
    colours, conditions = _colours(table), _in_order(table)
    rows = []
    for family in IN_LEGEND_BY_WEIGHT:
        labels = conditions.loc[conditions["family"] == family, "label"]
        keys = [_key(label, **_marker(family, colours[label])) for label in labels]
        rows += [[_key(FAMILIES[family].name, linestyle="none"), *keys]] if keys else []
    others = [family for family in dict.fromkeys(conditions["family"]) if family not in IN_LEGEND_BY_WEIGHT]
    rows += [[_key(FAMILIES[family].name, **_marker(family, FAMILIES[family].colour)) for family in others]]
    columns = max(map(len, rows))
    blank = _key("", linestyle="none")
    by_column = [row[i] if i < len(row) else blank for i in range(columns) for row in rows]
    fig.legend(handles=by_column, loc="outside lower center", ncols=columns)


def _key(label: str, **marker) -> Line2D:
    return Line2D([], [], label=label, **marker)


def save_figure(
    fig: Figure,
    name: str,
    *,
    caption: str,
    table: pd.DataFrame | dict[str, pd.DataFrame],
    folder: str | Path = FIGURES,
    headline: dict[str, object] | None = None,
    sources: dict[str, str] | None = None,
) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, and beside them a JSON with what it shows and where it came from.

    The same figure gives the same bytes: no dates, no random ids. Each file appears complete or not at all.

    Args:
        fig: the figure.
        name: file name without ending.
        caption: the caption, for whoever reuses the figure.
        table: the data drawn, or several tables by name; goes into the JSON, rounded to 6 significant digits.
        folder: where to write; made if missing.
        headline: numbers the text quotes (numbers, strings, correlations) by name.
        sources: where the data came from, e.g. preset and store. Names, not paths: the file is to be shared.

    Returns:
        The four paths.

    Raises:
        FlatlingoError: if a source is an absolute path.
    """
    for key, value in (sources or {}).items():
        if Path(str(value)).is_absolute():
            raise FlatlingoError(f"source {key}={value} of figure {name} is an absolute path; give a name")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "caption": " ".join(caption.split()),
        "headline": _plain(headline or {}),
        "data": _plain(table),
        "provenance": {**(sources or {}), "versions": versions()},
    }
    files = {"json": (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()}
    undated = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with plt.style.context(STYLE):
        for ending, metadata in undated.items():
            drawn = io.BytesIO()
            fig.savefig(drawn, format=ending, metadata=metadata)
            files[ending] = drawn.getvalue()
    paths = []
    for ending, content in files.items():
        path = folder / f"{name}.{ending}"
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        paths.append(path)
    return paths


def versions() -> dict[str, str]:
    """Versions of the packages that numbers and pictures depend on."""
    return {package: version(package) for package in PACKAGES}


def _plain(value):
    """JSON's own types: tables as lists of rows, dataclasses as dicts, floats to 6 significant digits, NaN as null."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
