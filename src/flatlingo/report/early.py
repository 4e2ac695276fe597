"""Does Tr(F) on the way of a training foretell how the model does in other languages, and with which sign?

FUN with Fisher (Liu et al. 2024) reports that a *larger* trace early in training goes with better generalisation, where
at its end a smaller one is said to. Exploration, as in `predictors`, whose intervals these are.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from flatlingo.report.correlations import rank_correlation
from flatlingo.report.drawing import key, note
from flatlingo.report.predictors import ANY, text_of
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES, outcomes

MEASURES = {"early_trace": "Tr(F)", "early_log_trace": "mean log Tr(F)"}
SHOWN = MEASURES["early_trace"]  # in table and figure
WITHIN = {"seed": (), "seed and loss then": ("early_loss",)}
TITLES = {"seed": "within seeds", "seed and loss then": "within seeds, at equal loss then"}
LOOKS = {
    "zero_shot_accuracy": {"color": "#0072B2", "marker": "o"},
    "gain": {"color": "#D55E00", "marker": "^"},
    "adapted": {"color": "#009E73", "marker": "s"},
}
COLUMNS = ["share", "measure", "outcome", "within", "value", "low", "high", "conditions", "seeds", "runs"]


def early(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of Tr(F) at shares of the training with every outcome, within seeds and at equal loss then.

    Spearman's ρ and its interval as `correlations.rank_correlation` has them; at equal loss, given the loss at that
    moment on the rows that the trace was measured on.

    Args:
        table: of competent runs of one plan and preset, one row per run, or per run and target language (then the mean
            over languages counts).
        curves: of these runs, as `study.table.curves` makes them; runs that are not in the table are left out.

    Returns:
        A row for each share, measure ("Tr(F)", "mean log Tr(F)"), outcome (a column's name; zero-shot accuracy, gain,
        accuracy after adaptation) and `within` ("seed", "seed and loss then"): `value, low, high, conditions, seeds,
        runs`; a positive value: the larger the trace then, the higher the outcome in the end. No row without a curve.

    Raises:
        FlatlingoError: for a column that the table lacks, or two runs of one condition and seed.
    """
    runs = per_seed(table, ["run_id"]).drop(columns="early_trace", errors="ignore")
    runs = runs.merge(curves[["run_id", "share", *MEASURES, "early_loss"]], on="run_id")
    rows = []
    for share, moment in runs.groupby("share"):
        for x, measure in MEASURES.items():
            for y in outcomes(moment):
                for within, given in WITHIN.items():
                    part = moment.dropna(subset=[x, y, *given])
                    if y == "english_accuracy" or part.empty:
                        continue
                    found = rank_correlation(part, y, x=x, given=given, n_permutations=ANY)
                    counts = [found.conditions, part["seed"].nunique(), found.n]
                    rows.append([share, measure, y, within, found.value, found.low, found.high, *counts])
    return pd.DataFrame(rows, columns=COLUMNS)


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """What `early` found of Tr(F), to show: `ρ [low, high]`, a share a row, outcomes and what is held above."""
    part = found[found["measure"] == SHOWN]
    text = [text_of(row.value, row.low, row.high) for row in part.itertuples()]
    part = part.assign(text=text, outcome=part["outcome"].map(OUTCOMES), within=part["within"].map(TITLES))
    order = list(dict.fromkeys(zip(part["outcome"], part["within"], strict=True)))
    return part.set_index(["share", "outcome", "within"])["text"].unstack(["outcome", "within"])[order]


def early_figure(found: dict[str, pd.DataFrame]) -> Figure:
    """ρ of each outcome with Tr(F) at a share of the training against that share: a row a plan, with and without fit.

    Args:
        found: by plan, what `early` gave.

    Returns:
        A figure of two panels for each plan, which say so where no curve was measured.
    """
    drawn = set()
    with plt.style.context(STYLE):
        size = (7.2, 0.7 + 1.9 * len(found))
        fig, axes = plt.subplots(len(found), 2, figsize=size, sharex=True, sharey=True, squeeze=False)
        for row, (plan, part) in zip(axes, found.items(), strict=True):
            for ax, within in zip(row, WITHIN, strict=True):
                ax.axhline(0, color="0.4", linewidth=0.8, zorder=0.5)
                ax.set_title(f"plan {plan}, {TITLES[within]}", loc="left", fontsize=7)
                lines = part[(part["measure"] == SHOWN) & (part["within"] == within)]
                if lines.empty:
                    note(ax, "Tr(F) was not measured on the way of these runs")
                for i, (y, line) in enumerate(lines.groupby("outcome", sort=False)):
                    x = line["share"] * 1.03 ** (i - 1)  # so that intervals stand beside each other
                    ax.plot(x, line["value"], markersize=3, linewidth=0.9, **LOOKS[y])
                    ax.vlines(x, line["low"], line["high"], color=LOOKS[y]["color"], linewidth=0.9)
                    drawn.add(y)
            row[0].set_ylabel("Spearman's ρ")
        shares = sorted({share for part in found.values() for share in part["share"] if share > 0})
        if shares:
            axes[0, 0].set(xscale="log", ylim=(-1, 1))
            axes[0, 0].set_xticks(shares, [f"{share:g}" for share in shares], minor=False)
            axes[0, 0].set_xticks([], minor=True)
        for ax in axes[-1]:
            ax.set_xlabel("share of the training")
        keys = [key(OUTCOMES[y], **look) for y, look in LOOKS.items() if y in drawn]
        if keys:
            fig.legend(handles=keys, loc="outside lower center", ncols=3)
    return fig
