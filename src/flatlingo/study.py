"""One run of a study: task → model → training → evaluation, and the tables made of many."""

import os
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset

from flatlingo import evaluation, hub, methods, training
from flatlingo.errors import FlatlingoError, unknown
from flatlingo.experiment import RunConfig
from flatlingo.fisher import empirical_fisher, fisher_trace
from flatlingo.tasks import Task, load_task

TRACE_BATCH = 32


def run(config: RunConfig, data: Path | None = None, **watching):
    """Fine-tune on English, measure, and adapt to each target language if the study asks for it.

    On CPU one torch thread computes, so that the result does not depend on how many runs share the machine.

    Args:
        config: what to run; decides the result.
        data: the folder of real rows, if the task is not of the mini world.
        **watching: `checkpoints` and `callbacks` of the training on English, as for `training.finetune`; they do not
            change the result.

    Returns:
        The result (plain numbers), the model after English, and its tokenizer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = _task(config, data)
        tokenizer = hub.load_tokenizer(config.model)
        dropout = config.condition.weight if config.condition.family == "dropout" else None
        model = hub.load_model(config.model, len(task.labels), dropout=dropout, seed=config.seed).to(device())
        log = _train(config, model, tokenizer, task.rows("en", "train"), watching)
        result = _measure(config, model, tokenizer, task) | {"history": _history(log)}
        if config.study.adaptation:
            result["adaptation"] = _adapt(config, model, tokenizer, task)
        return result, model, tokenizer
    finally:
        torch.set_num_threads(threads)


def check(config: RunConfig, data: Path | None) -> None:
    """Load the task, the tokenizer and the model of a run once, so that bad input is reported before hours of compute.

    Raises:
        FlatlingoError: whatever `tasks` and `hub` refuse, or target languages that the task lacks.
    """
    task = _task(config, data)
    for language in config.study.adaptation.languages if config.study.adaptation else ():
        if language not in task.languages:
            raise FlatlingoError(unknown("target language", language, task.languages))
    hub.load_tokenizer(config.model)
    hub.load_model(config.model, len(task.labels), seed=config.seed)


def trace_of(
    model, tokenizer, rows: Dataset, *, max_length: int, examples: int | None = None, measure=fisher_trace, **options
):
    """Exact Tr(F), a `FisherTrace`, of a classifier over the first `examples` rows (all by default) in eval mode.

    With `measure=empirical_fisher`, the empirical Fisher of the same rows.
    """
    rows = rows.select(range(min(examples or len(rows), len(rows))))
    model.eval()
    return measure(model, evaluation.batches(tokenizer, rows, max_length=max_length, batch_size=TRACE_BATCH), **options)


def device_name() -> str:
    """`cpu` or the name of the GPU in use."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _task(config: RunConfig, data: Path | None) -> Task:
    study = config.study
    return load_task(
        study.task,
        data=data,
        languages=study.languages,
        train_size=study.train_size,
        validation_size=study.validation_size,
        seed=config.seed,
        label_noise=study.label_noise,
    )


def _train(config: RunConfig, model, tokenizer, rows: Dataset, watching: dict) -> list[dict]:
    changes = methods.settings(config.condition)
    if "patience" in changes:  # one training row in ten decides when to stop: the validation rows are for reporting
        halves = rows.train_test_split(0.1, seed=config.seed)
        rows, changes["eval_rows"] = halves["train"], halves["test"]
    return training.finetune(
        model,
        tokenizer,
        rows,
        regularizers=methods.terms(config, tokenizer),
        seed=config.seed,
        **changes,
        **config.study.training.model_dump(),
        **watching,
    )


def _measure(config: RunConfig, model, tokenizer, task: Task) -> dict:
    """What is known of the model after English: accuracies, memorisation, Tr(F), and what is mistaken for it."""
    length = config.study.training.max_length
    accuracies = {
        language: evaluation.accuracy(model, tokenizer, task.rows(language, "validation"), max_length=length)
        for language in task.languages
    }
    trace, empirical = (
        trace_of(
            model,
            tokenizer,
            task.rows("en", "validation"),
            max_length=length,
            examples=config.study.trace_examples,
            measure=measure,
        )
        for measure in (fisher_trace, empirical_fisher)
    )
    return {
        "rows": task.counts.to_dict("records"),
        "accuracy": accuracies,
        **evaluation.memorisation(model, tokenizer, task.rows("en", "train"), max_length=length),
        "trace": {
            "value": trace.value,
            "standard_error": trace.standard_error,
            "examples": trace.n,
            "groups": dict(trace.groups),
        },
        "empirical_fisher": empirical.value,
    }


def _history(log: list[dict]) -> list[dict]:
    """The training curve: of each log entry the step, the loss and its terms, to five digits."""
    return [
        {"step": entry["step"]}
        | {name: float(f"{value:.5g}") for name, value in entry.items() if name == "loss" or name.startswith("loss/")}
        for entry in log
        if "loss" in entry
    ]


def _adapt(config: RunConfig, model, tokenizer, task: Task) -> dict:
    """Accuracy on the second half of each target language's validation rows, before and after training on the first."""
    settings = config.study.adaptation
    length = config.study.training.max_length
    outcome = {}
    for language in settings.languages:
        held_out = task.rows(language, "adapt_validation")
        adapted = training.adapt(
            model,
            tokenizer,
            task.rows(language, "adapt_train"),
            regularizers=methods.terms(config, tokenizer) if settings.regularized else [],
            seed=config.seed,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=length,
        )
        outcome[language] = {
            "zero_shot": evaluation.accuracy(model, tokenizer, held_out, max_length=length),
            "adapted": evaluation.accuracy(adapted, tokenizer, held_out, max_length=length),
        }
    return outcome


def table(configs: list[RunConfig], results: list[dict]) -> pd.DataFrame:
    """Tidy results: one row a run or, where the study adapts, one row a run and target language.

    Columns: `run_id, family, weight, label, seed, english_accuracy, train_accuracy, noisy_fitted, trace, trace_se,
    trace_without_embeddings, head_trace, empirical_fisher, accuracy_<language>, seconds`; after adaptation also
    `language, zero_shot, adapted, gain`. Accuracies lie in 0..1, traces are in nats²; `noisy_fitted` is None without
    known label noise.
    """
    rows = [_row(config, result) for config, result in zip(configs, results, strict=True)]
    if "adaptation" not in results[0]:
        return pd.DataFrame(rows)
    return pd.DataFrame(
        row | {"language": language, **accuracy, "gain": accuracy["adapted"] - accuracy["zero_shot"]}
        for row, result in zip(rows, results, strict=True)
        for language, accuracy in result["adaptation"].items()
    )


def _row(config: RunConfig, result: dict) -> dict:
    trace = result["trace"]
    return {
        "run_id": config.run_id,
        "family": config.condition.family,
        "weight": config.condition.weight,
        "label": config.condition.label,
        "seed": config.seed,
        "english_accuracy": result["accuracy"]["en"],
        "train_accuracy": result["train_accuracy"],
        "noisy_fitted": result.get("noisy_fitted"),
        "trace": trace["value"],
        "trace_se": trace["standard_error"],
        "trace_without_embeddings": trace["value"] - trace["groups"]["embeddings"],
        "head_trace": trace["groups"]["head"],
        "empirical_fisher": result["empirical_fisher"],
        **{f"accuracy_{language}": value for language, value in result["accuracy"].items() if language != "en"},
        "seconds": result["seconds"],
    }
