"""The tidy table of many runs, which reports are made of."""

import math

import pandas as pd

from flatlingo.study.runspec import RunConfig

EMBEDDINGS = ("embeddings", "other embeddings")  # of words; of positions and segments, with their norm


def table(configs: list[RunConfig], results: list[dict]) -> pd.DataFrame:
    """One row per run or, where the study has a second stage, one row per run and target language.

    Accuracies and shares lie in 0..1, losses are in nats, traces in nats²; NaN where something was not measured.

    Columns of every table: `run_id, plan, task, encoder, family, weight, label, seed, classes, seconds`; `compute`
    (`RunSpec.compute`, of plain fine-tuning for the setup's epochs 1); `validation_rows` (English);
    `english_accuracy`, `accuracy_<language>` and `zero_shot_accuracy`, the mean over the other languages;
    `train_accuracy`, `train_loss`, `clean_train_accuracy`, `clean_train_loss`, `noisy_fitted` (of the wrong training
    labels, the share reproduced); `trace`, `trace_se`, `log_trace` (mean over examples of the logarithm),
    `trace_without_embeddings` (neither of words nor others), `head_trace` (group "head"), `trace_<language>`,
    `empirical_fisher`, `scale_aware`, `distance`, `sharpness`, `segmentation_kl` (see `study.measure`), `margin`,
    `train_margin` and `early_trace` (the first measured after training began).

    After a second stage also: `language`; on its held-out half `zero_shot`, `adapted`, `gain` = adapted - zero_shot,
    `control` (adapted on as many English rows) and `control_gain`; and `start`, zero-shot accuracy on the other
    validation rows, whose error of measurement the gain does not share.
    """
    rows = [
        row
        for config, result in zip(configs, results, strict=True)
        for row in _with_second_stage(_row(config, result), result)
    ]
    return pd.DataFrame(rows)


def curves(configs: list[RunConfig], results: list[dict]) -> pd.DataFrame:
    """Tr(F) on the way of the trainings on English: one row per run and moment at which it was measured.

    Columns: `run_id, family, label, seed`; `share` of the training steps, the nearest of those that the setup asks
    for; `early_trace` (nats²), `early_log_trace` (mean over examples of the logarithm) and
    `early_loss` (nats), all on the same English validation rows.
    """
    columns = ["run_id", "family", "label", "seed", "share", "early_trace", "early_log_trace", "early_loss"]
    rows = [row for pair in zip(configs, results, strict=True) for row in _curve(*pair)]
    return pd.DataFrame(rows, columns=columns)


def _curve(config: RunConfig, result: dict) -> list[list]:
    history, asked = result.get("history", []), config.setup.measurement.curve
    last = max((entry["step"] for entry in history), default=0)
    names = [config.run_id, config.condition.family, config.condition.label, config.seed]
    moments = {}
    for entry in history:
        if asked and "trace/value" in entry:
            done = entry.get("trace/share", entry["step"] / max(last, 1))  # older runs lack it; none stopped early
            share = min(asked, key=lambda share: abs(done - share))
            moments.setdefault(share, [_number(entry.get(f"trace/{what}")) for what in ("value", "log_mean", "loss")])
    return [[*names, share, *values] for share, values in moments.items()]


def _row(config: RunConfig, result: dict) -> dict:
    trace, accuracy = result["trace"], result["accuracy"]
    others = {language: value for language, value in accuracy.items() if language != "en"}
    measured = (
        *("train_loss", "train_margin", "clean_train_accuracy", "clean_train_loss", "noisy_fitted"),
        *("scale_aware", "distance", "sharpness", "segmentation_kl"),
    )
    return {
        "run_id": config.run_id,
        "plan": config.plan,
        "task": config.setup.task,
        "encoder": config.encoder,
        "family": config.condition.family,
        "weight": config.condition.weight,
        "label": config.condition.label,
        "seed": config.seed,
        "compute": config.compute,
        "classes": result["classes"],
        "validation_rows": _sizes(result)["en", "validation"],
        "english_accuracy": accuracy["en"],
        "zero_shot_accuracy": sum(others.values()) / len(others) if others else math.nan,
        **{f"accuracy_{language}": value for language, value in others.items()},
        "train_accuracy": result["train_accuracy"],
        **{name: _number(result.get(name)) for name in measured},
        "margin": _number(result.get("margin", {}).get("en")),
        "trace": trace["value"],
        "trace_se": trace["standard_error"],
        "log_trace": _number(trace.get("log_mean")),
        "trace_without_embeddings": trace["value"] - sum(trace["groups"].get(group, 0.0) for group in EMBEDDINGS),
        "head_trace": trace["groups"]["head"],
        **{f"trace_{language}": found["value"] for language, found in result.get("target_trace", {}).items()},
        "empirical_fisher": result["empirical_fisher"],
        "early_trace": _early_trace(result.get("history", [])),
        "seconds": result["seconds"],
    }


def _sizes(result: dict) -> dict[tuple[str, str], int]:
    """Rows of each language and split."""
    return {(counted["language"], counted["split"]): counted["rows"] for counted in result["rows"]}


def _with_second_stage(row: dict, result: dict) -> list[dict]:
    if "second_stage" not in result:
        return [row]
    sizes, rows = _sizes(result), []
    for language, accuracy in result["second_stage"].items():
        start, control = accuracy["zero_shot"], _number(accuracy.get("control"))
        gains = {"gain": accuracy["adapted"] - start, "control": control, "control_gain": control - start}
        of_all, held_out = (sizes[language, split] for split in ("validation", "adapt_validation"))
        elsewhere = (of_all * row[f"accuracy_{language}"] - held_out * start) / (of_all - held_out)
        stage = {"language": language, "start": elsewhere, "zero_shot": start, "adapted": accuracy["adapted"]}
        rows.append(row | stage | gains)
    return rows


def _early_trace(history: list[dict]) -> float:
    return next((entry["trace/value"] for entry in history if entry["step"] > 0 and "trace/value" in entry), math.nan)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
