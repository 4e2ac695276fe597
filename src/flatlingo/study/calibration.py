"""The weights at which every family has the same Tr(F), so that families can be compared at equal traces.

Found on seeds of their own, from Tr(F) and the fit of the clean training rows alone: no accuracy on validation rows is
looked at. A level is a share of the unregularised model's Tr(F).
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from flatlingo.errors import FlatlingoError
from flatlingo.files import replacing
from flatlingo.study.competence import COMPETENT, competence_of
from flatlingo.study.condition import Condition
from flatlingo.study.families import LEVELS, family
from flatlingo.study.presets import Preset, load_preset
from flatlingo.study.runspec import RunSpec
from flatlingo.study.setup import Measurement
from flatlingo.study.store import open_store
from flatlingo.study.sweep import Computing, tabulated

TOLERANCE = 0.1  # about the standard error of a share on 500 rows
DIGITS = 2


def calibrate(
    plan: str,
    *,
    preset: str,
    store: str | Path,
    task: str | Path | None = None,
    data: str | Path | None = None,
    model: str | Path | None = None,
    jobs: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train what a plan's calibration asks for and a store lacks, and find the weights of each level.

    Args:
        plan: a plan whose preset has a `calibration`.
        preset: a name, or a path to a YAML file.
        store: folder of finished runs.
        task: as for `sweep`.
        data: as for `sweep`.
        model: as for `sweep`.
        jobs: as for `sweep`.

    Returns:
        The runs (`measured`) and the weights (`weights_at_levels`).

    Raises:
        FlatlingoError: as `sweep`, and for a plan without calibration.
    """
    settings = load_preset(preset)
    runs = open_store(store, settings.name)
    computing = Computing(jobs=jobs, keep_weights=False)
    sources = computing.sources(settings, plan, model=model, task=task, data=data)
    configs = computing.complete(_specs(plan, settings, sources), sources, runs)
    found = measured(tabulated(configs, runs))
    return found, weights_at_levels(found)


def _specs(plan: str, preset: Preset, sources) -> list[RunSpec]:
    """The runs of a calibration: the plan's training, and of the measurements Tr(F) and the fit only."""
    asked = preset.plan(plan).calibration
    if asked is None:
        raise FlatlingoError(f"plan {plan} of preset {preset.name} has no calibration; give it weights to try")
    changes = {
        "languages": ("en",),
        "validation_size": asked.examples,
        "second_stage": None,
        "measurement": Measurement(trace_examples=asked.examples),
    }
    conditions = [Condition(family="none")]
    conditions += [Condition(family=name, weight=weight) for name, tried in asked.weights.items() for weight in tried]
    return [
        spec.model_copy(update={"setup": spec.setup.model_copy(update=changes), "condition": condition})
        for seed in asked.seeds
        for spec in sources.specs(plan, preset, seeds=[seed])[:1]
        for condition in conditions
    ]


def measured(runs: pd.DataFrame) -> pd.DataFrame:
    """What each calibration run has of the unregularised model of its seed.

    Returns:
        One row per run: `family`, `weight`, `seed`, `trace`, `share` (of the baseline's Tr(F)) and `competence`,
        see `study.competence`.
    """
    baseline = runs[runs["family"] == "none"].set_index("seed")
    return runs[["family", "weight", "seed", "trace"]].assign(
        share=runs["trace"] / runs["seed"].map(baseline["trace"]),
        competence=competence_of(runs, baseline),
    )


def weights_at_levels(found: pd.DataFrame, levels: tuple[float, ...] = LEVELS) -> pd.DataFrame:
    """The weight of each family and level, by interpolation of log Tr(F) in log weight.

    Shares are averaged over seeds (their logarithms), and made to fall with the weight by isotonic regression; the
    competence is interpolated likewise. A level is left out where it is not reached, or would need less than the
    smallest weight tried, by more than a tenth of the level, or is not competent (less than 3/4 of the baseline's clean
    training accuracy above chance).

    Args:
        found: as `measured` gives it.
        levels: shares of the baseline's Tr(F).

    Returns:
        One row per family and level: `family`, `level`, `weight` (two digits; NaN if left out), competence and verdict.

    >>> runs = pd.DataFrame({"family": "l2", "weight": [0.01, 1.0], "seed": 101, "share": [1.0, 0.01]})
    >>> weights_at_levels(runs.assign(competence=[1.0, 0.8]), levels=(0.1, 0.001))[["level", "weight", "verdict"]]
       level  weight      verdict
    0  0.100     0.1           ok
    1  0.001     NaN  not reached
    """
    rows = []
    for name, runs in found[found["family"] != "none"].groupby("family", sort=False):
        means = runs.assign(share=np.log(runs["share"])).groupby("weight")[["share", "competence"]].mean()
        falling = isotonic_regression(means["share"].to_numpy(), increasing=False).x
        log_weight = np.log(means.index.to_numpy())
        for level in levels:
            rows.append(
                {"family": name, "level": level} | _at(math.log(level), log_weight, falling, means["competence"])
            )
    return pd.DataFrame(rows)


def _at(log_level: float, log_weight: np.ndarray, log_share: np.ndarray, competence: pd.Series) -> dict:
    if log_level > log_share[0] - math.log1p(-TOLERANCE):
        return {"weight": math.nan, "competence": math.nan, "verdict": "below the smallest weight"}
    if log_level < log_share[-1] - math.log1p(TOLERANCE):
        return {"weight": math.nan, "competence": math.nan, "verdict": "not reached"}
    place = float(np.interp(-log_level, -log_share, log_weight))
    able = float(np.interp(place, log_weight, competence))
    weight = float(f"{math.exp(place):.{DIGITS}g}")
    if able < COMPETENT:
        return {"weight": math.nan, "competence": able, "verdict": "not competent"}
    return {"weight": weight, "competence": able, "verdict": "ok"}


def conditions(weights: pd.DataFrame) -> str:
    """The weights found as the `conditions` of a preset, after none and both views.

    Raises:
        FlatlingoError: if no level of any family was found.
    """
    kept = weights.dropna(subset=["weight"])
    if kept.empty:
        raise FlatlingoError("no level of any family was reached by a competent model; try other weights")
    lines = ["none: [0]", "both_views: [0]"]
    for name, part in kept.groupby("family", sort=False):
        lines.append(f"{family(name).name}: [{', '.join(f'{weight:g}' for weight in sorted(set(part['weight'])))}]")
    return "\n".join(lines)


def write(path: Path, found: pd.DataFrame, weights: pd.DataFrame) -> None:
    """Write runs and weights as one CSV, to be committed beside the recorded results."""
    rows = [found.assign(what="run"), weights.assign(what="level")]
    text = pd.concat(rows).set_index("what").to_csv(float_format="%.6g")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
