"""The figures of equation (1) and of the estimators of Tr(F)."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.drawing import beside, key, plain_log_labels
from flatlingo.report.saving import STYLE


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
        single, paired = key("of one ε", **kinds), key("of the mean over ±ε", **kinds | {"markerfacecolor": "none"})
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


def _slope_guide(ax: Axes, expansion: pd.DataFrame, column: str, slope: int, *, above: bool) -> None:
    """A dotted line ∝ √C to an integer power beside the points of a column."""
    edge = expansion.groupby("deviation")[column].agg("max" if above else "min")
    x = edge.index.to_numpy()
    x = x[(edge > 1e-16) & (x < 1e-2)]
    anchor = edge[x] / x**slope
    y = x**slope * (4 * anchor.max() if above else anchor.min() / 4)
    ax.plot(x, y, color="0.4", linestyle=":", linewidth=1)
    beside(
        ax,
        f"slope {slope}",
        (x[len(x) // 2], y[len(x) // 2]),
        (-3, 3) if above else (4, -8),
        "data",
        ha="right" if above else "left",
    )


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
            plain_log_labels(axis)
        drawn = set().union(*(table["estimator"] for table, _, _ in panels))
        keys = [key(n, color=c, marker=m, markersize=4) for n, (c, m) in ESTIMATORS.items() if n in drawn]
        fig.legend(handles=keys, loc="outside lower center", ncols=4)
    return fig
