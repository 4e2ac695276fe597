"""Stores and tables of runs whose results were made up, as a sweep would leave them."""

from pathlib import Path

import numpy as np
import pandas as pd
from tiny import resolved

from flatlingo.study.presets import expand, load_preset
from flatlingo.study.runspec import RunConfig
from flatlingo.study.store import Store

GROUPS = {"embeddings": 0.2, "other embeddings": 0.2, "encoder": 0.4, "pooler": 0.05, "head": 0.15}
ACCURACIES = {"english_accuracy": 0.6, "zero_shot_accuracy": 0.5}  # what tables that are made up start from


def made_up_store(folder: Path, preset: str, seeds: int) -> Store:
    """Every run of every plan of a preset; nothing is trained. No label is known to be wrong, as on real rows."""
    store, rng = Store(folder), np.random.default_rng(0)
    for plan in load_preset(preset).plans:
        for config in resolved(plan, preset, seeds):
            environment = {"device": "cpu", "seconds": 60.0 + rng.normal(), "versions": {}}
            store.write(config, made_up_result(config, rng), environment)
    return store


def made_up_result(config: RunConfig, rng: np.random.Generator) -> dict:
    """A result in the shape of `study.run`: accuracy falls with Tr(F), Tr(F) with the weight, both with noise."""
    setup, weight = config.setup, config.condition.weight
    value = float(300 * np.exp(rng.normal(scale=0.2)) / (1 + weight))
    accuracy = {code: float(0.85 - 0.02 * np.log(value) + rng.normal(scale=0.01)) for code in setup.languages}
    others = [code for code in setup.languages if code != "en"]
    trace = {"value": value, "standard_error": value / 30, "log_mean": float(np.log(value) - 1), "examples": 300}
    log = [{"step": 100, "loss": 1.0}, {"step": 200, "loss": 0.5}]
    for share in setup.measurement.curve:
        early = {"value": value * share, "log_mean": float(np.log(value * share + 1)), "loss": 1.1 - share / 2}
        log.append({"step": round(200 * share)} | {f"trace/{name}": float(x) for name, x in early.items()})
        log[-1]["trace/loss"] += 0.1 * rng.normal()
    result = {
        "accuracy": accuracy,
        "validation_loss": dict.fromkeys(setup.languages, 0.6),
        "margin": dict.fromkeys(setup.languages, 1.0),
        "classes": 2 if "pawsx" in setup.task or "paraphrase" in setup.task else 3,
        "train_accuracy": 0.98,
        "train_loss": 0.05,
        "clean_train_accuracy": 0.98,
        "clean_train_loss": 0.05,
        "noisy_fitted": None,
        "trace": trace | {"log_standard_error": 0.1, "groups": {name: value * share for name, share in GROUPS.items()}},
        "empirical_fisher": value * float(np.exp(rng.normal(scale=0.1))),
        "scale_aware": 2 * value,
        "distance": 3.0,
        "target_trace": dict.fromkeys(others, trace) if setup.measurement.target_examples else {},
        "history": sorted(log, key=lambda entry: entry["step"]),
        "rows": [
            {"language": code, "split": split, "rows": rows, "dropped": 0, "reason": "", "quoted": 0}
            for code in setup.languages
            for split, rows in (("validation", 300), ("adapt_train", 150), ("adapt_validation", 150))
        ],
    }
    if setup.second_stage:
        result["second_stage"] = {
            code: {"zero_shot": accuracy[code], "adapted": accuracy[code] + gain, "control": accuracy[code] + gain / 3}
            for code, gain in zip(others, rng.normal(0.03, 0.01, len(others)), strict=True)
        }
    if setup.measurement.segmentation_examples:
        result["segmentation_kl"] = value / 1000 * float(np.exp(rng.normal(scale=0.3)))
    return result


def technique_table(effects: dict[str, float], seeds: int, *, second_stage: bool = True) -> pd.DataFrame:
    """Runs of plan technique of preset mini, as `study.table` makes them: two points a level, and effects of recipes.

    Args:
        effects: points that runs whose label has a word in it gain in every accuracy, by that word.
        seeds: how many.
        second_stage: whether there is one, of two languages.
    """
    rng, rows = np.random.default_rng(0), []
    for spec in expand("technique", load_preset("mini"), seeds=seeds):
        label = spec.condition.label
        gain = sum(points for word, points in effects.items() if word in label)
        level = 0.02 * round(spec.compute) + 0.01 * gain + 0.02 * (spec.seed % 3)
        row = {
            "run_id": spec.name, "plan": spec.plan, "family": spec.condition.family, "weight": spec.condition.weight,
            "label": label, "seed": spec.seed, "compute": spec.compute, "classes": 3, "clean_train_accuracy": 0.9,
            "trace": 200 * np.exp(rng.normal(scale=0.1)), "train_loss": 0.3 + rng.normal(scale=0.01),
        }  # fmt: skip
        row |= {y: start + level + rng.normal(scale=0.003) for y, start in ACCURACIES.items()}
        stage = {
            "zero_shot": 0.5,
            "adapted": 0.6 + level,
            "gain": 0.1 + level,
            "control": np.nan,
            "control_gain": np.nan,
        }
        stages = [{"language": code} | stage for code in ("de", "es") if second_stage]
        rows += [row | one for one in stages] or [row]
    return pd.DataFrame(rows)


def intervention_table(per_doubling: float, per_loss: float, seeds: int) -> pd.DataFrame:
    """Runs of plan intervention of preset mini: points of accuracy per doubling of Tr(F), and per nat of training loss.

    The larger the target, the larger the training loss, but not quite.
    """
    rng, rows = np.random.default_rng(0), []
    for spec in expand("intervention", load_preset("mini"), seeds=seeds):
        condition = spec.condition
        trace = (condition.weight or 200) * np.exp(rng.normal(scale=0.1))
        loss = 0.3 + 0.05 * np.log2(trace / 200) + rng.normal(scale=0.02)
        points = per_doubling * np.log2(trace / 200) + per_loss * (loss - 0.3) + 5 * (spec.seed % 3)
        rows.append({
            "run_id": spec.name, "plan": spec.plan, "family": condition.family, "weight": condition.weight,
            "label": condition.label, "seed": spec.seed, "trace": trace, "train_loss": loss,
        } | {y: start + 0.01 * (points + rng.normal(scale=0.1)) for y, start in ACCURACIES.items()})  # fmt: skip
    return pd.DataFrame(rows)
