"""Which measure of a fine-tuned model foretells how it does in other languages: Tr(F), its variants, and rivals.

Every measure is taken of the model and of rows, none of a target-language label. Exploration, not decision: of so many
intervals one in twenty misses by chance.
"""

import itertools
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatlingo.report.correlations import Correlation, rank_correlation, stronger
from flatlingo.report.drawing import key, note
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import per_seed, require
from flatlingo.report.slopes import OUTCOMES, outcomes

MEASURES = {  # column: what tables call it
    "trace": "Tr(F)",
    "log_trace": "mean log Tr(F)",
    "target_trace": "Tr(F) of target rows",
    "trace_without_embeddings": "Tr(F) without all embeddings",
    "head_trace": "Tr(F) of the classifier",
    "scale_aware": "scale-aware Tr(F)",
    "early_trace": "early Tr(F)",
    "empirical_fisher": "empirical Fisher",
    "sharpness": "SAM sharpness",
    "margin": "margin",
    "distance": "distance from start",
    "train_loss": "training loss",
    "english_accuracy": "English accuracy",
    "segmentation_kl": "KL of two segmentations",
}
FIT = "train_loss"
PAIR = ("trace", "segmentation_kl")
ANY = 1  # permutations, where no p-value is shown
COLOUR = "#0072B2"
WITHIN = {"seed": (), "seed and fit": (FIT,)}


def predictors(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of every measure with every outcome, within seeds, and within seeds at equal training loss.

    Spearman's ρ and its interval as `correlations.rank_correlation` has them; at equal fit, given the training loss
    (where it is on record). Correlations rest on runs that share their rows.

    Args:
        table: of competent runs (`competence.competent`) of one plan and preset, one row per run, or per run and target
            language (then the mean over languages counts).

    Returns:
        A row for each measure that the table has values of, outcome (zero-shot accuracy, gain, accuracy after
        adaptation) and `within` ("seed", "seed and fit"): `value, low, high, conditions, seeds, runs`; `stronger`, |ρ|
        minus that of Tr(F) on the same runs, with `stronger_low` and `stronger_high` (`correlations.stronger`; NaN for
        Tr(F) itself). A negative value: the larger the measure, the lower the outcome.

    Raises:
        FlatlingoError: for a table without trace or training loss, or two runs of one condition and seed.
    """
    runs = per_seed(table, ["trace"])
    require(runs, [FIT])
    runs = runs.assign(target_trace=_target_trace(runs))
    rows = [
        {"measure": MEASURES[x], "outcome": OUTCOMES[y], "within": within} | _found(runs, x, y, given)
        for y in outcomes(runs)
        if y != "english_accuracy"
        for x in MEASURES
        if x in runs and runs[x].notna().any()
        for within, given in WITHIN.items()
        if x not in given and runs[[x, y, *given]].notna().all(axis=1).any()
    ]
    return pd.DataFrame(rows)


def trace_or_kl(table: pd.DataFrame) -> pd.DataFrame:
    """What Tr(F) and the KL of two segmentations foretell, each by itself and at an equal value of the other.

    Consistency lowers the KL, which equation (1) of the paper ties to Tr(F). If Tr(F) is what matters, it foretells
    outcomes at equal KL too, and the KL does not at equal Tr(F). Neither is known without error, which leaves to either
    some of what the other does.

    Args:
        table: as for `predictors`.

    Returns:
        A row for each of the two, outcome (English accuracy too) and `within` ("seed", "seed and the other"), columns
        but `stronger` as there; none where the KL was not measured.

    Raises:
        FlatlingoError: as `predictors`.
    """
    runs = per_seed(table, ["trace"])
    if PAIR[1] not in runs:
        return pd.DataFrame()
    runs = runs.dropna(subset=[*PAIR])
    rows = [
        {"measure": MEASURES[x], "outcome": OUTCOMES[y], "within": within}
        | _counted(runs, rank_correlation(runs, y, x=x, given=given, n_permutations=ANY), [y])
        for y in outcomes(runs)
        for x, other in (PAIR, PAIR[::-1])
        for within, given in {"seed": (), "seed and the other": (other,)}.items()
    ]
    return pd.DataFrame(rows)


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """What was found, to show: `ρ [low, high]`, a measure per row, outcomes and what is held fixed above."""
    text = [text_of(row.value, row.low, row.high) for row in found.itertuples()]
    cells = found.assign(text=text).set_index(["measure", "outcome", "within"])["text"]
    above = [found["outcome"].unique(), found["within"].unique()]
    order = pd.MultiIndex.from_product(above, names=["outcome", "at equal"])
    return cells.unstack(["outcome", "within"]).reindex(index=found["measure"].unique(), columns=order).fillna("")


def _found(runs: pd.DataFrame, x: str, y: str, given: tuple[str, ...]) -> dict[str, float]:
    found = rank_correlation(runs, y, x=x, given=given, n_permutations=ANY)
    more = (math.nan,) * 3 if x == "trace" else stronger(runs, y, x=x, given=given)
    more = dict(zip(("stronger", "stronger_low", "stronger_high"), more, strict=True))
    return _counted(runs, found, [x, y, *given]) | more


def _counted(runs: pd.DataFrame, found: Correlation, columns: list[str]) -> dict[str, float]:
    """A correlation with its interval, and of what it is: the runs that have every column."""
    return {
        **{"value": found.value, "low": found.low, "high": found.high},
        **{"conditions": found.conditions, "seeds": runs.dropna(subset=columns)["seed"].nunique(), "runs": found.n},
    }


def _target_trace(runs: pd.DataFrame) -> pd.Series | float:
    """Mean trace over the target languages that have one."""
    languages = [name.removeprefix("accuracy_") for name in runs if name.startswith("accuracy_")]
    columns = [name for name in (f"trace_{language}" for language in languages) if name in runs]
    return runs[columns].mean(axis=1) if columns else np.nan


def predictors_figure(found: dict[str, pd.DataFrame]) -> Figure:
    """Dots of ρ with their intervals: a row of panels a plan, a column an outcome, a line a measure.

    Filled: within seeds; hollow: also at equal training loss. Dotted: |ρ| of Tr(F) within seeds, either way.

    Args:
        found: by plan, what `predictors` gave.

    Returns:
        A figure; what was not measured is said in the panel. Measures that do not vary have no line.
    """
    columns = list(dict.fromkeys(outcome for part in found.values() for outcome in part.get("outcome", [])))
    found = {plan: part.dropna(subset=["value"]) if len(part) else part for plan, part in found.items()}
    lines = {plan: list(dict.fromkeys(part["measure"])) if len(part) else [] for plan, part in found.items()}
    heights = [max(len(names), 4) for names in lines.values()]
    with plt.style.context(STYLE):
        size = (7.2, 0.9 + sum(0.16 * height + 0.4 for height in heights))
        fig, axes = plt.subplots(
            len(found),
            max(len(columns), 1),
            figsize=size,
            height_ratios=heights,
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for row, (plan, part) in zip(axes, found.items(), strict=True):
            row[0].set_title(f"plan {plan}", loc="left", fontsize=7)
            _row(row, part, columns, lines[plan])
        axes[0, 0].set_xlim(-1.05, 1.05)
        for ax, outcome in zip(axes[-1], columns, strict=False):
            ax.set_xlabel(f"ρ with {outcome}")
        looks = {"within seeds": COLOUR, "within seeds, at equal training loss": "white"}
        fig.legend(
            handles=[key(t, color=COLOUR, marker="o", markerfacecolor=face) for t, face in looks.items()],
            loc="outside lower center", ncols=2,
        )  # fmt: skip
    return fig


def _row(axes: Sequence[Axes], found: pd.DataFrame, columns: list[str], names: list[str]) -> None:
    """The panels of a plan, one for each outcome, with a line for each measure that is named."""
    for ax, outcome in itertools.zip_longest(axes, columns):
        here = found[found["outcome"] == outcome] if len(found) else found
        if here.empty:
            note(ax, "not measured in these runs")
        else:
            _lines(ax, here, names)
        ax.tick_params(axis="y", length=0)
    if names:
        axes[0].set_yticks([-i for i in range(len(names))], names)
        axes[0].set_ylim(-len(names) + 0.4, 0.6)


def _lines(ax: Axes, found: pd.DataFrame, names: list[str]) -> None:
    """A line for each measure: with and without the fit."""
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0.5)
    for value in found.loc[(found["measure"] == MEASURES["trace"]) & (found["within"] == "seed"), "value"]:
        for place in (value, -value):
            ax.axvline(place, color="0.5", linewidth=0.8, linestyle=":", zorder=0.5)
    for row in found.itertuples():
        place = -names.index(row.measure) + (0.15 if row.within == "seed" else -0.15)
        ax.plot([row.low, row.high], [place, place], color=COLOUR, linewidth=0.9)
        face = COLOUR if row.within == "seed" else "white"
        ax.plot(row.value, place, "o", markersize=3.5, color=COLOUR, markerfacecolor=face, markeredgewidth=0.8)


def text_of(value: float, low: float, high: float) -> str:
    """`0.41 [−0.10, 0.74]`."""
    return "undefined" if math.isnan(value) else Correlation(value, low, high, math.nan, 0, 0).interval
