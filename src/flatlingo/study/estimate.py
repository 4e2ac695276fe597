"""What a sweep will take, before it is started: runs, rows, steps, and hours and memory from measured steps."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

from flatlingo import devices, models
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import TRACE_BATCH, prediction_batch
from flatlingo.study import measure
from flatlingo.study.clock import Clock, Line
from flatlingo.study.condition import Condition
from flatlingo.study.measure import Classifier
from flatlingo.study.presets import load_preset
from flatlingo.study.runspec import RunSpec
from flatlingo.study.sources import Sources
from flatlingo.study.store import open_store
from flatlingo.study.terms import settings, terms
from flatlingo.study.workload import Lengths, Workload, workload

COLUMNS = ["runs", "step_seconds", "run_hours"]


@dataclass(frozen=True)
class Estimate:
    """What a sweep takes.

    Attributes:
        families: one row per method (`Condition.method`), with the columns `COLUMNS`.
        memory: the largest number of bytes held while measuring.
        text: all of it, for people.
    """

    families: pd.DataFrame
    memory: int
    text: str

    def __str__(self) -> str:
        return self.text


def estimate(
    plan: str,
    *,
    preset: str,
    store: str | Path | None = None,
    seeds: int | list[int] | None = None,
    task: str | Path | None = None,
    data: str | Path | None = None,
    model: str | Path | None = None,
) -> Estimate:
    """Estimate what a sweep has left to do, from steps, predictions and Tr(F) that are timed here, one thread on CPU.

    Of the encoder only the configuration and the tokenizer are read, from a folder or the Hugging Face cache: weights
    are random, which takes as long. The rows are loaded as a run loads them.

    Args:
        plan: one of `runspec.PLANS`.
        preset: a name, or a path to a YAML file.
        store: folder of finished runs, which are not computed again; or "recorded". None for an empty one.
        seeds: how many, or which; as many as are planned by default.
        task: as for `sweep`.
        data: as for `sweep`.
        model: as for `sweep`.

    Raises:
        FlatlingoError: for bad input, and for an encoder or rows that are not at hand.
    """
    chosen = load_preset(preset)
    sources = Sources.of(chosen, plan, model=model, task=task, data=data)
    asked = sources.specs(plan, chosen, seeds)
    runs = None if store is None else open_store(store, chosen.name)
    specs = asked if runs is None else [spec for spec in asked if runs.find(spec) is None]
    stored = [] if runs is None else [f"{len(asked) - len(specs)} of {len(asked)} runs are stored"]
    if not specs:
        return Estimate(pd.DataFrame(columns=COLUMNS), 0, f"{plan}, preset {chosen.name}: {stored[0]}: nothing to do")
    if specs[0].setup.precision == "bf16" and not devices.has_bf16():
        raise FlatlingoError(
            f"a dry run times steps in bf16, which {devices.device_name()} would only emulate: call it where the runs "
            "are to be computed, on a cluster by srun"
        )
    rows = sources.load_task(specs[0].setup, specs[0].seed)
    encoder = sources.encoder
    classifier, tokenizer = models.load_shape(encoder.source, len(rows.labels), revision=encoder.revision)
    lengths = Lengths(rows, tokenizer, specs[0].setup.training.max_length)
    work = workload(specs[0], lengths, devices.device())
    clock = Clock(
        Classifier(classifier.to(devices.device()), tokenizer, lengths.max_length),
        rows.rows("en", "train"),
        lengths.of("en", "train"),
    )
    with devices.threads(1):  # as runs do
        steps, measured = _steps(specs, work, clock), _measured(work, clock)
    families = _families(specs, work, steps, measured)
    memory = _memory(clock)
    lines = [
        *_described(specs, chosen.name, classifier, work),
        *stored,
        rows.describe(),
        f"timed on {devices.device_name()}, the measurements of a run taking {measured / 3600:.3g} hours",
        families.to_string(float_format="{:.3g}".format),
        f"together {(families['runs'] * families['run_hours']).sum():.3g} hours with one run at a time",
        f"memory: {memory / 1e9:.2f} GB {'on the GPU' if clock.on_gpu else 'in this process, with half a batch'}; "
        f"on disk {len(specs) * _parameters(classifier) * 4 / 1e9:.3g} GB of weights, unless discarded",
    ]
    return Estimate(families, memory, "\n".join(lines))


def _steps(specs: list[RunSpec], work: Workload, clock: Clock) -> dict[str, Line]:
    """Seconds of a training step by method: of each at its largest weight, since at weight 0 a method is left out."""
    batch_size = specs[0].setup.training.batch_size
    length = work.english.tokens / work.english.calls / batch_size  # to which batches are padded in the mean
    plain = clock.step(_under(specs[0], Condition(family="none")), batch_size, length)

    def timed(spec: RunSpec) -> Line:
        adds = terms(spec, clock.classifier.tokenizer) or "sam" in settings(spec.condition)
        return clock.step(spec, batch_size, length) if adds else plain

    lines = {}
    largest = {spec.condition.method: spec for spec in sorted(specs, key=lambda spec: spec.condition.weight)}
    for spec in largest.values():
        whole = timed(_under(spec, spec.condition.model_copy(update={"every": 1})))
        every = max(spec.every(row.name) for row, _ in spec.condition.parts)  # there is one number besides 1
        rest = whole if every == 1 else timed(_under(spec, _of_every_step(spec)))
        lines[spec.condition.method] = rest.towards(whole, 1 / every)
    return {"none": plain} | lines


def _of_every_step(spec: RunSpec) -> Condition:
    """What the condition of a run does in the steps in which the penalties of some steps are not computed."""
    kept = [(row.name, weight) for row, weight in spec.condition.parts if spec.every(row.name) == 1] or [("none", 0.0)]
    (name, weight), *also = kept
    return spec.condition.model_copy(update={"family": name, "weight": weight, "also": tuple(also), "every": 1})


def _under(spec: RunSpec, condition: Condition) -> RunSpec:
    """The run under a condition, with a penalty in every step."""
    setup = spec.setup.model_copy(update={"trace_penalty_every": 1, "trace_target_after": 0})
    return spec.model_copy(update={"condition": condition, "setup": setup})


def _measured(work: Workload, clock: Clock) -> float:
    """Seconds of all measurements of a run."""
    classifier = clock.classifier
    start = {name: parameter.detach().cpu() for name, parameter in classifier.model.named_parameters()}
    predict = clock.measurement(classifier.logits, prediction_batch(devices.device()))
    trace = clock.measurement(lambda rows: measure.trace(classifier, rows, start), TRACE_BATCH)
    brief = clock.measurement(classifier.traces, TRACE_BATCH)
    return predict(work.predicted) + trace(work.traced) + brief(work.traced_briefly)


def _families(specs: list[RunSpec], work: Workload, steps: dict[str, Line], measured: float) -> pd.DataFrame:
    """Runs, seconds of a step and hours of a run by method."""
    second_stage = specs[0].setup.second_stage
    rows = {}
    epochs = pd.Series([spec.epochs / specs[0].epochs for spec in specs], [spec.condition.method for spec in specs])
    for method, lengths in epochs.groupby(level=0, sort=False):
        english = steps[method](work.english)
        adapting = steps[method if second_stage and second_stage.regularized else "none"](work.second_stage)
        hours = (lengths.mean() * english + adapting + measured) / 3600
        rows[method] = [len(lengths), english / work.english.calls, hours]
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).astype({"runs": int})


def _described(specs: list[RunSpec], preset: str, model: PreTrainedModel, work: Workload) -> list[str]:
    first, setup = specs[0], specs[0].setup
    lines = [
        f"{first.plan}, preset {preset}: {len(specs)} runs of {first.encoder} ({_parameters(model) / 1e6:.1f} M "
        "parameters)",
        f"a run: {setup.training.epochs} epochs, {work.english.calls:,} steps of {setup.training.batch_size}",
    ]
    if asked := setup.second_stage:
        control = " and English" if asked.english_control else ""
        lines.append(
            f"then {work.second_stage.calls:,} steps on half of the rows of {', '.join(asked.languages)}{control}"
        )
    return lines


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _memory(clock: Clock) -> int:
    """Largest number of bytes held so far, on the GPU or, without one, by the process."""
    if clock.on_gpu:
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # macOS counts bytes, Linux KiB
