"""Stores of finished runs whose results were made up, as a sweep of a large preset would leave them."""

from pathlib import Path

import numpy as np
from tiny import resolved

from flatlingo.study.presets import RunConfig, load_preset
from flatlingo.study.store import Store

GROUPS = {"embeddings": 0.2, "other embeddings": 0.2, "encoder": 0.4, "pooler": 0.05, "head": 0.15}


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
    log = [{"step": 0, "trace/value": value / 3}, {"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]
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
        "history": [log[0] | {"step": 1}, *log] if setup.measurement.curve else log[1:],
        "rows": [],
    }
    if setup.second_stage:
        result["second_stage"] = {
            code: {"zero_shot": accuracy[code], "adapted": accuracy[code] + gain, "control": accuracy[code] + gain / 3}
            for code, gain in zip(others, rng.normal(0.03, 0.01, len(others)), strict=True)
        }
    return result
