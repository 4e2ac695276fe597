"""One run of a study: task → model → training → measurements → second stages. A run that was broken off goes on."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from flatlingo import training
from flatlingo.checkpoints import MINUTES, Checkpoints
from flatlingo.devices import device, loading_processes, processes, threads
from flatlingo.encoding import batches
from flatlingo.evaluation import TRACE_BATCH
from flatlingo.study import measure
from flatlingo.study.condition import Condition
from flatlingo.study.measure import Classifier, Measured
from flatlingo.study.runspec import RunSpec
from flatlingo.study.sources import Sources
from flatlingo.study.stages import Stages
from flatlingo.study.terms import segmentation, settings, terms
from flatlingo.tasks import Task
from flatlingo.tracecallbacks import TraceCurve

SHARPNESS_ROWS = 300


class Finished(NamedTuple):
    """A finished run.

    Attributes:
        result: its numbers.
        rows: its arrays, see `study.measure`.
        model: the classifier after English.
        tokenizer: its tokenizer.
    """

    result: dict
    rows: dict[str, np.ndarray]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def run(
    spec: RunSpec,
    sources: Sources,
    *,
    work: Path | None = None,
    checkpoint_minutes: float = MINUTES,
    callbacks: Sequence[TrainerCallback] = (),
) -> Finished:
    """Fine-tune on English, measure, and adapt to each target language if the study asks for it.

    On CPU one torch thread computes, so that the result does not depend on how many runs share the machine.

    Args:
        spec: what to run; decides the result, together with the files of `sources`.
        sources: where encoder and rows lie.
        work: folder for checkpoints and finished stages, from which the same run goes on to the same result after it
            was killed (but for the loss logged next, a mean over the steps since); None for nothing.
        checkpoint_minutes: between two checkpoints of the training on English.
        callbacks: further callbacks of that training; they must not change it.
    """
    sources.require_gpu()
    with threads(1):
        stages = Stages(work if processes() == 1 else None)  # of several processes each would write the same
        checkpoints = Checkpoints(work / "english", minutes=checkpoint_minutes) if work else None
        return _run(spec, sources, stages, checkpoints, callbacks)


def _run(
    spec: RunSpec,
    sources: Sources,
    stages: Stages,
    checkpoints: Checkpoints | None,
    callbacks: Sequence[TrainerCallback],
) -> Finished:
    task = sources.load_task(spec.setup, spec.seed)
    tokenizer = sources.load_tokenizer()
    model = sources.load_model(spec, task.labels)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    classifier = Classifier(model.to(device()), tokenizer, spec.setup.training.max_length)
    log = stages.train(model, lambda: _train(spec, classifier, task, checkpoints, callbacks))
    result = {
        "rows": task.counts.to_dict("records"),
        "classes": len(task.labels),
        "history": measure.curve(log),
    }
    parts = _measure(spec, classifier, task, start, stages)
    if spec.setup.second_stage:
        first = _as_second_stages_take_it(spec, sources, classifier, task)
        parts |= _second_stages(spec, first, task, stages)
    arrays = {name: values for part in parts.values() for name, values in part.arrays.items()}
    unused = sources.load_tokenizer()  # a tokenizer keeps, and saves, how it was called last
    return Finished(result | _assembled(spec, task, parts, arrays), arrays, model, unused)


def _train(
    spec: RunSpec,
    classifier: Classifier,
    task: Task,
    checkpoints: Checkpoints | None,
    callbacks: Sequence[TrainerCallback],
) -> list[dict]:
    setup, rows, changes = spec.setup, task.rows("en", "train"), settings(spec.condition)
    if "patience" in changes:  # one training row in ten decides when to stop: the validation rows are for reporting
        halves = rows.train_test_split(0.1, seed=spec.seed)
        rows, changes["eval_rows"] = halves["train"], halves["test"]
    return training.finetune(
        classifier.model,
        classifier.tokenizer,
        rows,
        regularizers=terms(spec, classifier.tokenizer),
        seed=spec.seed,
        precision=setup.precision,
        **changes,
        **(dict(setup.training) | {"epochs": spec.epochs}),
        checkpoints=checkpoints,
        callbacks=[*callbacks, *_curve(spec, classifier, task)],
        workers=loading_processes(),
    )


def _curve(spec: RunSpec, classifier: Classifier, task: Task) -> list[TrainerCallback]:
    asked = spec.setup.measurement
    if not asked.curve:
        return []
    rows = _first(task.rows("en", "validation"), asked.curve_examples)
    padded = batches(classifier.tokenizer, rows, max_length=classifier.max_length, batch_size=TRACE_BATCH)
    return [TraceCurve(padded, asked.curve)]


def _measure(
    spec: RunSpec, classifier: Classifier, task: Task, start: dict[str, torch.Tensor], stages: Stages
) -> dict[str, Measured]:
    """Every measurement of the model after English, by the name of its stage."""
    asked = spec.setup.measurement
    validation = {language: task.rows(language, "validation") for language in task.languages}
    traced = {"en": _first(validation["en"], asked.trace_examples)}
    if asked.target_examples:
        others = [language for language in task.languages if language != "en"]
        traced |= {language: _first(validation[language], asked.target_examples) for language in others}
    steps: dict[str, Callable[[], Measured]] = {"fit": lambda: measure.fit(classifier, task.rows("en", "train"))}
    for language, rows in validation.items():
        kept = len(traced.get(language, ()))
        steps[f"accuracy-{language}"] = functools.partial(measure.accuracy, classifier, rows, language, kept)
    if asked.sharpness_radius:
        few = _first(task.rows("en", "train"), SHARPNESS_ROWS)
        steps["sharpness"] = lambda: measure.sharpness(classifier, few, asked.sharpness_radius)
    if asked.segmentation_examples:
        compared = _first(validation["en"], asked.segmentation_examples)
        view = segmentation(spec.setup, classifier.tokenizer)
        steps["segmentation"] = lambda: measure.segmentation_kl(classifier, compared, view)
    steps["trace-en"] = lambda: measure.trace(classifier, traced["en"], start)
    for language in list(traced)[1:]:
        steps[f"trace-{language}"] = functools.partial(measure.target_trace, classifier, traced[language], language)
    return {name: stages.measure(name, step) for name, step in steps.items()}


def _second_stages(spec: RunSpec, classifier: Classifier, task: Task, stages: Stages) -> dict[str, Measured]:
    """The measurements of each adapted copy of the model, by the name of its stage."""
    asked = spec.setup.second_stage
    languages = (*asked.languages, *(("en",) if asked.english_control else ()))
    return {
        f"adapted-{language}": stages.measure(
            f"adapted-{language}", functools.partial(_adapted, spec, classifier, task, language)
        )
        for language in languages
    }


def _as_second_stages_take_it(spec: RunSpec, sources: Sources, classifier: Classifier, task: Task) -> Classifier:
    """The classifier, with the encoder's own dropout unless the regulariser is to stay on."""
    changed = any(row.changes == "model" for row, _ in spec.condition.parts)
    if spec.setup.second_stage.regularized or not changed:
        return classifier
    plain = sources.load_model(spec.model_copy(update={"condition": Condition(family="none")}), task.labels)
    plain.load_state_dict(classifier.model.state_dict())
    return classifier._replace(model=plain.to(device()))


def _kept_on(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> dict:
    """What of a condition stays on in a second stage, from its first step on; no rows are kept for early stopping."""
    setup = spec.setup.model_copy(update={"trace_target_after": 0})
    changes = {name: value for name, value in settings(spec.condition).items() if name != "patience"}
    kept = terms(spec.model_copy(update={"setup": setup}), tokenizer)
    return {"regularizers": kept, "workers": loading_processes(), **changes}


def _adapted(spec: RunSpec, classifier: Classifier, task: Task, language: str) -> Measured:
    """Train a copy on half of a language's rows or fewer; measure it on the other half, of English on each target's."""
    asked = spec.setup.second_stage
    model = training.adapt(
        classifier.model,
        classifier.tokenizer,
        _some(task.rows(language, "adapt_train"), asked.rows),
        **(_kept_on(spec, classifier.tokenizer) if asked.regularized else {}),
        seed=spec.seed,
        precision=spec.setup.precision,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        warmup=spec.setup.training.warmup,
        group_by_length=spec.setup.training.group_by_length,
        max_length=classifier.max_length,
    )
    targets = asked.languages if language == "en" else (language,)
    found = {
        target: measure.held_out(
            classifier._replace(model=model), task.rows(target, "adapt_validation"), f"adapted/{language}/{target}"
        )
        for target in targets
    }
    arrays = {name: values for part in found.values() for name, values in part.arrays.items()}
    return Measured({target: part.numbers["accuracy"] for target, part in found.items()}, arrays)


def _assembled(spec: RunSpec, task: Task, parts: dict[str, Measured], arrays: dict[str, np.ndarray]) -> dict:
    """The numbers of all stages in the shape of `result.json`."""
    numbers = {name: part.numbers for name, part in parts.items()}
    of = {language: numbers[f"accuracy-{language}"] for language in task.languages}
    result = {
        "accuracy": {language: found["accuracy"] for language, found in of.items()},
        "validation_loss": {language: found["loss"] for language, found in of.items()},
        "margin": {language: found["margin"] for language, found in of.items()},
        **numbers["fit"],
        **numbers["trace-en"],
        **numbers.get("sharpness", {}),
        **numbers.get("segmentation", {}),
        "target_trace": {
            language: numbers[f"trace-{language}"]["trace"]
            for language in task.languages
            if language != "en" and f"trace-{language}" in numbers
        },
    }
    if asked := spec.setup.second_stage:
        result["second_stage"] = {
            language: {
                "zero_shot": _zero_shot(task, language, arrays[f"correct/{language}"]),
                "adapted": numbers[f"adapted-{language}"][language],
                **({"control": numbers["adapted-en"][language]} if asked.english_control else {}),
            }
            for language in asked.languages
        }
    return result


def _zero_shot(task: Task, language: str, correct: np.ndarray) -> float:
    """Accuracy before the second stage on its held-out rows, which are some of the validation rows."""
    held_out = set(task.rows(language, "adapt_validation")["row_id"])
    return float(correct[[row_id in held_out for row_id in task.rows(language, "validation")["row_id"]]].mean())


def _some(rows: Dataset, n: int | None) -> Dataset:
    """So many rows, the same in every language and seed: the rows of a task may come in an order, as XNLI's genres."""
    if n is None or n >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:n]))


def _first(rows: Dataset, n: int | None) -> Dataset:
    return rows.select(range(min(n or len(rows), len(rows))))
