"""Conditions compared in pairs, seed by seed: families at equal Tr(F), augmentation, and adaptation to English rows.

If two conditions differ at the same Tr(F), then Tr(F) is not what makes the difference. Intervals are 95 % t intervals
over seeds; they speak of these conditions and these validation rows, which all runs share, not of other weights of
their families: where each condition has a peculiarity of its own, a question about families is often answered wrongly
(notebook 5 simulates how often).
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report.differences import over_seeds
from flatlingo.report.judging import TOO_FEW_SEEDS, judge
from flatlingo.report.shapes import check_one_baseline, per_seed
from flatlingo.study.families import LEVELS, title

RIVALS = ("fisher_penalty", "l2", "dropout")
CONTROLS = ("none", "both_views")  # at no level: they have no weight that could bring them there
FACTOR = 1.5  # largest ratio of share and level, either way
EQUAL = 1.3  # largest ratio of two traces called equal: less than half a halving
ALL = "all"
WORDS = ("higher", "lower", "no difference")


def levels(table: pd.DataFrame) -> pd.DataFrame:
    """The level of Tr(F) that each condition is at, as a share of the unregularised model's of the same seed.

    A condition belongs to the level nearest to its share (in logarithms, averaged over seeds), if within `FACTOR`; of
    two conditions of a family at one level the nearer one does.

    Args:
        table: one row per run, or per run and target language; with condition none in every seed that counts.

    Returns:
        Indexed by label, in the order of the table, without none and both views: `family`, `share`, `level` (NaN if
        left out) and `left_out`, why ("" if not).

    Raises:
        FlatlingoError: if a run has no baseline of its seed, or there are several (`shapes.check_one_baseline`).

    >>> runs = pd.DataFrame({"family": ["none", "l2", "l2"], "label": ["none", "l2=1", "l2=9"], "seed": 1,
    ...                      "trace": [100.0, 45.0, 5.0]})
    >>> levels(runs)[["level", "left_out"]].values.tolist()
    [[0.5, ''], [nan, 'no level within a factor 1.5']]
    """
    check_one_baseline(table)
    runs = with_baseline(per_seed(table, ["trace"]), "trace")
    runs = runs[~runs["family"].isin(CONTROLS)]
    logarithm = np.log(runs["trace"] / runs["trace_baseline"])
    means = logarithm.groupby(runs["label"], sort=False).mean()
    distances = np.abs(means.to_numpy()[:, None] - np.log(LEVELS))
    family = runs.drop_duplicates("label").set_index("label")["family"]
    found = pd.DataFrame(
        {"family": family, "share": np.exp(means), "level": np.array(LEVELS)[distances.argmin(axis=1)]}
    )
    distance = pd.Series(distances.min(axis=1), index=found.index)
    near = distance <= math.log(FACTOR) + 1e-12
    best = distance[near].groupby([found["family"], found["level"]]).idxmin()
    nearest = [best.get(key) for key in zip(found["family"], found["level"], strict=True)]
    found["left_out"] = [
        "" if label == other else f"{other} is nearer to its level" if close else f"no level within a factor {FACTOR:g}"
        for label, other, close in zip(found.index, nearest, near, strict=True)
    ]
    found["level"] = found["level"].where(found["left_out"] == "")
    return found


def pairs_at_equal_trace(table: pd.DataFrame, family: str, rival: str) -> dict[str, tuple[str, str]]:
    """The conditions of two families that are at the same level of Tr(F), as `compare` takes them.

    Those of a level count if their traces (geometric means over seeds) differ by at most a factor of 1.3.

    Args:
        table: of competent runs, the unregularised ones among them.
        family: the first family.
        rival: the one to subtract.

    Raises:
        FlatlingoError: as for `levels`.
    """
    at = levels(table).dropna(subset=["level"])
    first, second = (
        pd.Series(part.index, index=part["level"]) for part in (at[at["family"] == name] for name in (family, rival))
    )
    shared = [level for level in LEVELS if level in first.index and level in second.index]
    apart = {level: abs(math.log(at.loc[first[level], "share"] / at.loc[second[level], "share"])) for level in shared}
    shared = [level for level in shared if apart[level] <= math.log(EQUAL)]
    return {f"{level:g}": (first[level], second[level]) for level in shared}


def pairs_with_control(table: pd.DataFrame, family: str, control: str) -> dict[str, tuple[str, str]]:
    """Each condition of a family with a family of one condition, as `compare` takes them.

    `"both_views"` with `"none"` is augmentation without the divergence; `"consistency"` with `"both_views"` what the
    divergence adds to it, at each of its weights.

    Raises:
        FlatlingoError: for several baselines (`shapes.check_one_baseline`).
    """
    check_one_baseline(table)
    first, second = (table.loc[table["family"] == name, "label"].unique() for name in (family, control))
    return {label: (label, other) for label in first for other in second}


def questions(table: pd.DataFrame) -> dict[str, dict[str, tuple[str, str]]]:
    """What is asked of conditions in pairs, and the pairs as `compare` takes them: `RIVALS` first, then the controls.

    Raises:
        FlatlingoError: as for `levels`.
    """
    asked = {
        f"consistency minus {title(rival)} at equal Tr(F)": pairs_at_equal_trace(table, "consistency", rival)
        for rival in RIVALS
    }
    return asked | {
        "both views minus none": pairs_with_control(table, "both_views", "none"),
        "consistency minus both views": pairs_with_control(table, "consistency", "both_views"),
    }


def compare(table: pd.DataFrame, y: str, pairs: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Conditions minus others, paired by seed, each pair alone and all together.

    Over all pairs, the differences are averaged within a seed first.

    The interval over all pairs does not know of what the matching left (`halvings` times the slope), nor of what one
    condition has that others of its family lack.

    Args:
        table: one row per run, or per run and target language (then the mean over languages counts).
        y: name of the outcome, in 0..1.
        pairs: of labels, by what to call them.

    Returns:
        A row for each pair and one, `all`, for all of them: `value, low, high` in points (no interval from one seed),
        `p` (t test, uncorrected), `pairs` of runs, `seeds`, `halvings`, by which the first is flatter (mean of
        -log2 of the ratio of traces: what the matching left), and `verdict`: higher, lower, no difference (the interval
        lies within ± half a point), undecided. Pairs without a seed in common are left out; no row if none has one.

    Raises:
        FlatlingoError: for a column that the table lacks, or two runs of one condition and seed.
    """
    runs = per_seed(table, [y, "trace"]).set_index(["label", "seed"])[[y, "trace"]]
    runs = runs.assign(trace=-np.log2(runs["trace"]))
    known = set(runs.index.get_level_values("label"))
    gaps = {
        name: (runs.loc[first] - runs.loc[second]).dropna()
        for name, (first, second) in pairs.items()
        if first in known and second in known
    }
    gaps = {name: gap for name, gap in gaps.items() if not gap.empty}
    if gaps:
        gaps[ALL] = pd.concat(gaps.values())
    columns = ["value", "low", "high", "p", "pairs", "seeds", "halvings", "verdict"]
    return pd.DataFrame([_row(gap[y], gap["trace"]) for gap in gaps.values()], index=[*gaps], columns=columns)


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """The gain of each condition beside where it starts and ends, and beside the gain from as many English rows.

    What was not measured (the English control) is NaN, and does not count in means.

    Args:
        table: one row per run and target language.

    Returns:
        Indexed by condition, in per cent and points, means over languages and seeds: `zero_shot`, `adapted`, `gain`,
        `control_gain`; `gain minus control` with `low` and `high` over seeds and `p` (t test, uncorrected); `seeds`.
        The last row, `all`, is the mean over the conditions, within a seed first.

    Raises:
        FlatlingoError: for a column that the table lacks.
    """
    columns = ["zero_shot", "adapted", "gain", "control_gain"]
    runs = per_seed(table, columns[:3])
    runs = runs.assign(beyond=runs["gain"] - runs["control_gain"])
    runs = pd.concat([runs, runs.groupby("seed", as_index=False)[[*columns, "beyond"]].mean().assign(label=ALL)])
    rows = {}
    for label, part in runs.groupby("label", sort=False):
        beyond = over_seeds(100 * part["beyond"]).row()
        rows[label] = (100 * part[columns].mean()).to_dict() | {"gain minus control": beyond.pop("value")} | beyond
    return pd.DataFrame.from_dict(rows, orient="index")


def unregularised(runs: pd.DataFrame) -> pd.DataFrame:
    """The unregularised run of each seed, indexed by it: without what was trained longer.

    Raises:
        FlatlingoError: if a run's seed has none.
    """
    baseline = runs[runs["label"] == "none"].set_index("seed")
    missing = sorted(set(runs["seed"]) - set(baseline.index))
    if missing:
        seeds = ", ".join(map(str, missing))
        raise FlatlingoError(
            f"seed {seeds} has no run of condition none to compare with; run it, or leave the seed out"
        )
    return baseline


def with_baseline(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Runs with another column, `<column>_baseline`: that of the unregularised run of the same seed.

    Raises:
        FlatlingoError: if a run has none.
    """
    return runs.assign(**{f"{column}_baseline": runs["seed"].map(unregularised(runs)[column])})


def verdict(found: Mapping[str, float], p: float) -> str:
    """The verdict on a difference, `value, low, high` in points, given its p-value (of several questions corrected)."""
    return judge(found["value"], found["low"], found["high"], p, words=WORDS, too_few=TOO_FEW_SEEDS)


def _row(gaps: pd.Series, halvings: pd.Series) -> dict:
    found = over_seeds(100 * gaps.groupby("seed").mean()).row()
    return found | {"pairs": len(gaps), "halvings": float(halvings.mean()), "verdict": verdict(found, found["p"])}
