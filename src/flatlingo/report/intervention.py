"""What Tr(F) does when it is set: runs whose trace is pulled towards a target, by one and the same term.

Regularisers differ in more than the trace; here only the target differs. Runs of a seed share data, order and first
head, so that seeds are what is sampled: they are left out, or averaged over, whole.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from scipy.stats import gmean

from flatlingo.errors import FlatlingoError
from flatlingo.report.differences import FEWEST_SEEDS, over_seeds
from flatlingo.report.drawing import HALO, TRACE, beside, plain_log_labels
from flatlingo.report.judging import TOO_FEW_SEEDS, holm, judge, said
from flatlingo.report.matched import WORDS, verdict, with_baseline
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES, outcomes
from flatlingo.report.statistics import jackknife_error

FAMILY = "trace_target"
FIT = "train_loss"
HELD = {"": (), "at equal loss": (FIT,)}
UNDETERMINED = "undetermined"  # what is held does not vary, or with the trace alone
COLOUR = "#D55E00"
COLUMNS = 3


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What each target does: the trace it reaches, the training loss, and outcomes minus those without a target.

    Args:
        table: of plan `intervention`, one row per run, or per run and target language (then the mean over languages).

    Returns:
        A row for each target and outcome: `target` (nats²), `outcome`, `trace` (geometric mean over seeds) and that of
        plain training, `plain`; `train_loss` (mean) and its difference `loss_gap, loss_low, loss_high` (nats), `value,
        low, high` (points), both paired by seed (no interval from one), `p` (t test, Holm over targets), `seeds`,
        `verdict`: higher, lower, no difference, undecided.

    Raises:
        FlatlingoError: for a missing column, no run with a target, or a seed without a run of none.
    """
    runs = _runs(table)
    losses = runs[FIT] - with_baseline(runs, FIT)[f"{FIT}_baseline"]
    plain, rows = gmean(runs.loc[runs["family"] == "none", "trace"]), []
    for y in outcomes(runs):
        gaps = 100 * (runs[y] - with_baseline(runs, y)[f"{y}_baseline"])
        targets = [part for _, part in runs[runs["family"] == FAMILY].groupby("weight")]
        gains = [over_seeds(gaps[part.index]) for part in targets]
        for part, one, p in zip(targets, gains, holm([one.p_value for one in gains]), strict=True):
            loss = over_seeds(losses[part.index])
            reached = {"trace": gmean(part["trace"]), "plain": plain, FIT: part[FIT].mean()}
            reached |= {"loss_gap": loss.value, "loss_low": loss.low, "loss_high": loss.high}
            found = one.row() | {"p": p, "verdict": verdict(one.row(), p)}
            rows.append({"target": part["weight"].iloc[0], "outcome": y} | reached | found)
    return pd.DataFrame(rows)


def per_halving(table: pd.DataFrame) -> pd.DataFrame:
    """Points of each outcome per halving of the Tr(F) that was set, as it is and at equal training loss.

    The least-squares coefficient β of y = a_seed - β log₂ Tr(F) (+ γ training loss) over the runs with a target. What
    is set changes the fit too, of which the second line takes out what is linear. The interval leaves out one seed at a
    time (jackknife): β ± t · SE, SE² = (S-1)/S Σ_s (β without s - their mean)², t of S - 1 degrees of freedom; from
    three seeds on.

    Args:
        table: as for `effects`.

    Returns:
        A row for each outcome and what is held: `outcome, held` ("", "at equal loss"), `value, low, high`
        (points per halving: positive where smaller traces do better), `p` (t test, Holm over the outcomes), `targets,
        seeds, verdict`: rises, falls, no effect (within ± half a point per halving), undecided; and `rests_on`, the
        targets without which the verdict is another (none are left out of fewer than three).

    Raises:
        FlatlingoError: as for `effects`.
    """
    runs = _runs(table)
    runs = runs[runs["target"] == 1]
    found, targets = _judged(runs, ["x"]), sorted(runs["weight"].unique())
    without = {one: _judged(runs[runs["weight"] != one], ["x"]) for one in targets if len(targets) > 2}
    changed = {one: less["verdict"] != found["verdict"] for one, less in without.items()}
    return found.assign(rests_on=[[one for one, rows in changed.items() if rows[i]] for i in found.index])


def besides(table: pd.DataFrame) -> pd.DataFrame:
    """What the term does besides setting Tr(F): runs with a target minus plain training, at equal Tr(F).

    The least-squares coefficient δ of y = a_seed - β log₂ Tr(F) + δ [with a target] (+ γ training loss) over all runs.
    It rests on the line of the targets at the Tr(F) of plain training, which is to lie between theirs. Intervals and
    p-values are those of `per_halving`.

    Args:
        table: as for `effects`.

    Returns:
        As `per_halving`, in points; positive where the term does good. `verdict`: higher, lower, no difference (within
        ± half a point), undecided.

    Raises:
        FlatlingoError: as for `effects`.
    """
    return _judged(_runs(table), ["target", "x"], words=WORDS)


def intervention_figure(table: pd.DataFrame) -> Figure:
    """Outcomes and training loss minus those without a target, against the Tr(F) that was reached.

    Large dots are means over seeds (of Tr(F) geometric), small ones seeds, lines 95 % t intervals over three seeds or
    more, dashes Tr(F) without a target. In the first panel the target stands beside each.

    Args:
        table: as for `effects`.

    Raises:
        FlatlingoError: as for `effects`.
    """
    runs, found, slopes = _runs(table), effects(table), per_halving(table)
    ys = outcomes(runs)
    with plt.style.context(STYLE):
        rows = math.ceil((len(ys) + 1) / COLUMNS)
        fig, axes = plt.subplots(rows, COLUMNS, figsize=(7.2, 0.2 + 2.5 * rows), squeeze=False)
        for ax in axes.flat[len(ys) + 1 :]:
            ax.set_axis_off()
        for ax, y in zip(axes.flat, [*ys, FIT], strict=False):
            change = runs[y] - with_baseline(runs, y)[f"{y}_baseline"]
            _panel(
                ax,
                runs.assign(y=change if y == FIT else 100 * change),
                found[found["outcome"] == (ys[0] if y == FIT else y)],
            )
            ax.axvline(found["plain"].iloc[0], color="0.4", linestyle="--", linewidth=0.8, zorder=0.5)
            ax.axhline(0, color="0.4", linewidth=0.8, zorder=0.5)
            ax.set(xlabel=TRACE, ylabel="change (nats)" if y == FIT else "change (points)" if ax in axes[:, 0] else "")
            ax.set_title(OUTCOMES.get(y, "training loss"), loc="left", pad=8 if y == FIT else 24, fontweight="bold")
            if y != FIT:
                text = "\n".join(map(_text, slopes[slopes["outcome"] == y].to_dict("records")))
                beside(ax, text, (0, 1), (0, 4), "axes fraction", in_layout=False)
            ax.set_xscale("log")
            plain_log_labels(ax.xaxis)
        for one in found[found["outcome"] == ys[0]].itertuples():
            place, look = (one.trace, one.value), {"color": COLOUR, "path_effects": HALO}
            beside(axes.flat[0], f"{one.target:g}", place, (4, 4), "data", **look)
    return fig


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    runs = per_seed(table, ["weight", "trace", FIT])
    runs = runs[runs["family"].isin(["none", FAMILY])]
    if (runs["family"] != FAMILY).all():
        raise FlatlingoError("no run has a target of Tr(F); give the table of plan intervention")
    with_baseline(runs, "trace")
    runs = runs.assign(x=-np.log2(runs["trace"]), target=(runs["family"] == FAMILY).astype(float))
    return runs.reset_index(drop=True)


def _judged(runs: pd.DataFrame, columns: list[str], **words: tuple[str, str, str]) -> pd.DataFrame:
    """The coefficient of the first column for each outcome, as it is and at equal loss, with interval and verdict."""
    number = {"targets": runs.loc[runs["target"] == 1, "weight"].nunique(), "seeds": runs["seed"].nunique()}
    few = TOO_FEW_SEEDS if number["seeds"] < FEWEST_SEEDS else UNDETERMINED
    rows = []
    for held, also in HELD.items():
        found = [_estimate(runs, y, [*columns, *also]) for y in outcomes(runs)]
        for y, one, p in zip(outcomes(runs), found, holm([one[3] for one in found]), strict=True):
            interval = dict(zip(("value", "low", "high"), one[:3], strict=True))
            judged = {"verdict": judge(*one[:3], p, too_few=few, **words)}
            rows.append({"outcome": y, "held": held} | interval | {"p": p} | number | judged)
    return pd.DataFrame(rows)


def _estimate(runs: pd.DataFrame, y: str, columns: list[str]) -> tuple[float, float, float, float]:
    """The coefficient of the first column, its jackknife interval over seeds, and its p-value."""
    seeds = runs["seed"].unique()
    value = _coefficient(runs, y, columns)
    left = [_coefficient(runs[runs["seed"] != seed], y, columns) for seed in seeds if len(seeds) > 1]
    if len(seeds) < FEWEST_SEEDS or np.isnan([value, *left]).any():
        return value, math.nan, math.nan, math.nan
    error = jackknife_error(left)
    half = stats.t.ppf(0.975, len(seeds) - 1) * error
    with np.errstate(divide="ignore"):
        return value, value - half, value + half, float(2 * stats.t.sf(np.abs(value) / error, len(seeds) - 1))


def _coefficient(runs: pd.DataFrame, y: str, columns: list[str]) -> float:
    """Of the first column in the regression of y (points) on all and on the seed as a factor; NaN if undetermined."""
    design = np.column_stack([runs[columns].to_numpy(dtype=float), pd.get_dummies(runs["seed"]).to_numpy(dtype=float)])
    if len(runs) <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        return math.nan
    return float(np.linalg.lstsq(design, 100 * runs[y].to_numpy())[0][0])


def _panel(ax: Axes, runs: pd.DataFrame, found: pd.DataFrame) -> None:
    """The mean of `y` over the seeds of each target, its interval and its seeds, at the Tr(F) that was reached."""
    targets = runs[runs["family"] == FAMILY].groupby("weight")
    for row, (_, part) in zip(found.itertuples(), targets, strict=True):
        one = over_seeds(part["y"])
        ax.plot(part["trace"], part["y"], ".", markersize=3, color=COLOUR, alpha=0.55)
        ax.plot(row.trace, one.value, "o", markersize=4, color=COLOUR)
        if len(part) >= FEWEST_SEEDS:
            ax.plot([row.trace, row.trace], [one.low, one.high], color=COLOUR, linewidth=1)


def _text(row: dict) -> str:
    held = row["held"].removeprefix("at ")
    return f"{held}{': ' if math.isnan(row['value']) else ' '}{said(row)}".strip()
