"""The figures of equation (1) and of the estimators of Tr(F)."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.drawing import beside, key, plain_log_labels
from flatlingo.report.saving import STYLE


def theory_figure(
    expansion: pd.DataFrame, directions: pd.DataFrame, independent: pd.DataFrame, structured: pd.DataFrame
) -> Figure:
    """Equation (1) at work: the expansion of the KL, what it leaves out, single directions, and means over noise.

    Args:
        expansion: one noise vector, scaled: columns `model`, `deviation` (√C), `kl`, `quadratic` (½ εᵀFε), `remainder`
            (|KL - ½ εᵀFε|) and `paired` (the same for the mean of the KL over ε and -ε).
        directions: several noise vectors of the last model, scaled: `direction`, `sign` (of ε: 1 or -1), `deviation`,
            `kl` and `quadratic`.
        independent: means over i.i.d. noise: `model`, `deviation`, `ratio` (E KL / ½ C Tr(F)), `standard_error`.
        structured: means over other noise of the same power: `noise`, `predicted` (Tr(F Cov ε) / C Tr(F)), `ratio`,
            `standard_error`.

    Returns:
        A figure of five panels.
    """
    models = list(dict.fromkeys(expansion["model"]))
    looks = dict(zip(models, zip("o^s", ("#0072B2", "#D55E00", "#009E73"), strict=False), strict=False))
    noise = "standard deviation of the noise, √C"
    with plt.style.context(STYLE):
        fig, axes = plt.subplot_mosaic("ab;cd;ee", figsize=(7.2, 7.4), height_ratios=[1, 1, 0.75])
        for model, (marker, colour) in looks.items():
            part = expansion[expansion["model"] == model]
            points = {"linestyle": "none", "marker": marker, "markersize": 3.5, "color": colour}
            axes["a"].plot(part["deviation"], part["quadratic"], color=colour, linewidth=0.9)
            axes["a"].plot(part["deviation"], part["kl"], label=model, **points)
            axes["b"].plot(part["deviation"], part["remainder"], **points)
            axes["b"].plot(part["deviation"], part["paired"], **points | {"markerfacecolor": "none"})
            part = independent[independent["model"] == model]
            bars = points | {"linestyle": "-", "linewidth": 0.8, "capsize": 2}
            axes["d"].errorbar(part["deviation"], part["ratio"], 1.96 * part["standard_error"], **bars)
        for name in "ab":
            axes[name].set(xscale="log", yscale="log", xlabel=noise)
        axes["a"].set_ylabel("KL (markers), ½ εᵀFε (lines), nats")
        axes["a"].legend(loc="upper left")
        axes["b"].set_ylabel("|KL − ½ εᵀFε| (nats)")
        kinds = {"linestyle": "none", "marker": "o", "markersize": 3.5, "color": "0.3"}
        single, paired = key("of one ε", **kinds), key("of the mean over ±ε", **kinds | {"markerfacecolor": "none"})
        axes["b"].legend(handles=[single, paired], loc="lower right")
        _slope_guide(axes["b"], expansion, "remainder", 3, above=True)
        _slope_guide(axes["b"], expansion, "paired", 4, above=False)
        _single_directions(axes["c"], directions, looks[models[-1]][1])
        axes["c"].set_xlabel(noise)
        axes["d"].axhline(1, color="0.4", linewidth=0.8)
        axes["d"].set(xscale="log", xlabel=noise, ylabel="E KL / ½ C Tr(F), with 95 % interval")
        _structured_noise(axes["e"], structured)
        for name, ax in axes.items():
            ax.set_title(name, loc="left", fontweight="bold")
    return fig


def _single_directions(ax: Axes, directions: pd.DataFrame, colour: str) -> None:
    """KL / ½ εᵀFε along single directions and their opposites, and the ratio of their means."""
    for (_, sign), part in directions.groupby(["direction", "sign"]):
        style = "-" if sign > 0 else "--"
        ax.plot(part["deviation"], part["kl"] / part["quadratic"], style, color=colour, linewidth=0.6, alpha=0.6)
    sums = directions.groupby("deviation")[["kl", "quadratic"]].sum()
    ax.plot(sums.index, sums["kl"] / sums["quadratic"], color="black", linewidth=1.6)
    ax.axhline(1, color="0.4", linewidth=0.8)
    ax.set(xscale="log", yscale="log", ylabel="KL / ½ εᵀFε along single ε")
    plain_log_labels(ax.yaxis)
    lines = {
        "one ε": ("-", colour, 0.6),
        "its opposite −ε": ("--", colour, 0.6),
        "ratio of the means": ("-", "black", 1.6),
    }
    ax.legend(
        handles=[key(name, linestyle=s, color=c, linewidth=w) for name, (s, c, w) in lines.items()], loc="lower left"
    )


def _structured_noise(ax: Axes, structured: pd.DataFrame) -> None:
    """What noise of the same power but other covariance costs: predicted and measured."""
    places = np.arange(len(structured))[::-1]
    ax.axvline(1, color="0.4", linewidth=0.8)
    ring = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none", "color": "0.5"}
    ax.plot(structured["predicted"], places, label="predicted, Tr(F Cov ε) / C Tr(F)", **ring)
    dot = {"linestyle": "none", "marker": "o", "markersize": 3, "color": "black", "capsize": 2}
    ax.errorbar(structured["ratio"], places, xerr=1.96 * structured["standard_error"], label="measured", **dot)
    ax.set(xscale="log", xlabel="E KL / ½ C Tr(F)", ylim=(-0.6, len(places) - 0.4))
    plain_log_labels(ax.xaxis)
    ax.set_yticks(places, structured["noise"])
    ax.legend(loc="lower right")


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
        cost: columns `estimator`, `passes` (forward passes of one example), `error` (relative, over all examples) with
            its interval `low`, `high`; the least cost is what the dotted lines go out from.
        spread: for given examples: `estimator`, `examples`, `spread` (relative standard deviation of one draw).
        ratios: for given examples in batches: `estimator`, `examples` of a batch, `ratio` to Tr(F), `standard_error`.

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
                line = "none" if y == "error" else "-"
                look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 0.9}
                if y == "error" and len(part):
                    error = [part[y] - part["low"], part["high"] - part[y]]
                    foretold = part[y].iloc[0] * (part[x] / part[x].iloc[0]) ** -0.5
                    ax.plot(part[x], foretold, color=colour, linestyle=":", linewidth=0.9)
                ax.errorbar(part[x], part[y], error, linestyle=line, elinewidth=0.9, **look)
            ax.set(xscale="log", yscale="log")
            ax.set_title(letter, loc="left", fontweight="bold")
        axes[0].set(xlabel="cost (forward passes of one example)", ylabel="relative error of Tr(F)")
        axes[1].set(xlabel="batch size B", ylabel="relative spread of one draw")
        axes[2].set(xlabel="batch size B", ylabel="ratio to Tr(F), with 95 % interval")
        axes[2].axhline(1, color="0.4", linewidth=0.8)
        plain_log_labels(axes[0].xaxis)
        for ax, (table, x, _) in zip(axes[1:], panels[1:], strict=True):
            sizes = sorted(set(table[x]))
            ax.set_xticks(sizes, sizes)
            ax.set_xticks([], minor=True)
        for ax in axes:
            plain_log_labels(ax.yaxis)
        drawn = set().union(*(table["estimator"] for table, _, _ in panels))
        keys = [key(n, color=c, marker=m, markersize=4) for n, (c, m) in ESTIMATORS.items() if n in drawn]
        fig.legend(handles=keys, loc="outside lower center", ncols=4)
    return fig
