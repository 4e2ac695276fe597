"""What a sweep will take, before it is started: runs, rows, steps, and hours and memory from measured steps."""

import math
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
)

from flatlingo import evaluation, experiment, hub, methods, study, training
from flatlingo.experiment import RunConfig
from flatlingo.tasks import MINI, load_task

# The shapes of models on the Hub that can be timed without their weights.
SHAPES = {
    "google-bert/bert-base-multilingual-cased": partial(BertConfig, vocab_size=119_547),
    # with two token types, since the stand-in for its tokenizer tells two texts apart
    "FacebookAI/xlm-roberta-base": partial(
        XLMRobertaConfig, vocab_size=250_002, max_position_embeddings=514, type_vocab_size=2
    ),
}
GPU_STEPS, CPU_STEPS, CPU_ROWS = 10, 2, 4


@dataclass(frozen=True)
class Sizes:
    """How many rows a run sees: training; validation and each half of it, in each language; and how many classes."""

    train: int
    validation: int
    half: int
    classes: int


# As published (rows differ by a few once unusable ones are dropped), for tasks whose rows are on the Hub.
PUBLISHED = {"xnli": Sizes(392_702, 2_490, 1_245, 3), "pawsx": Sizes(49_401, 2_000, 1_000, 2)}


@dataclass(frozen=True)
class Estimate:
    """What a sweep takes.

    Attributes:
        families: one row a family of conditions, with the columns `runs`, `step_seconds` and `run_hours`.
        memory: the largest number of bytes held while measuring.
        text: all of it, for people.
    """

    families: pd.DataFrame
    memory: int
    text: str

    def __str__(self) -> str:
        return self.text


def estimate(
    figure: str,
    *,
    preset: str,
    seeds: int | list[int] | None = None,
    data: Path | None = None,
    model: str | None = None,
) -> Estimate:
    """Estimate a sweep from training steps, predictions and Tr(F) that are timed here. Downloads nothing.

    A step of each family is timed by `training.finetune`; on CPU with few rows, and scaled. A model on the Hub is
    replaced by one of its shape with random weights, its tokenizer by that of mini-mbert (which cuts words into more
    pieces), and rows on the Hub by made-up ones of the full length: the hours are then an upper bound.

    Args:
        figure: "figure1", "figure2", "methods" or "beyond" (see `experiment.plan`).
        preset: "smoke", "mini", "paper", or a path to a YAML file.
        seeds: how many, or which; the preset's number by default.
        data: folder of real rows, as for `sweeps.sweep`.
        model: another pre-trained model than the preset's.

    Raises:
        FlatlingoError: for bad input.
    """
    configs = experiment.plan(figure, experiment.load_preset(preset), seeds=seeds, data=data, model=model)
    first = configs[0]
    there = data is not None or first.study.task in MINI
    sizes, rows, tokenizer = _rows(first, data) if there else _made_up(first)
    classifier = _classifier(first, sizes.classes)
    clock = _Clock(classifier, tokenizer, rows, first)
    step = {}
    for config in configs:
        family, weight = config.condition.family, config.condition.weight
        if family not in step and (weight > 0 or family == "none"):
            step[family] = clock.step(config)
    predict, trace = clock.a_row(evaluation.accuracy), clock.a_row(study.trace_of)

    runs = pd.Series([config.condition.family for config in configs]).value_counts(sort=False)
    families = pd.DataFrame({"runs": runs, "step_seconds": [step.get(family, step["none"]) for family in runs.index]})
    updates, measured = _work(first, sizes)
    seconds = updates["english"] * families["step_seconds"] + updates["adaptation"] * step["none"]
    families["run_hours"] = (seconds + measured["predicted"] * predict + measured["traced"] * trace) / 3600
    text = "\n".join(
        [
            _plan(configs, preset, classifier, sizes, updates),
            f"timed on {study.device_name()}: {clock.steps} steps a family of {clock.batch} rows"
            f"{'' if clock.scale == 1 else f' (seconds scaled to {first.study.training.batch_size})'}, "
            f"{'rows of the plan' if there else f'made-up rows of {first.study.training.max_length} pieces'}; "
            f"{1e3 * predict:.3g} ms a row to predict, {1e3 * trace:.3g} ms a row for Tr(F)",
            families.to_string(float_format="{:.3g}".format),
            f"together {(families['runs'] * families['run_hours']).sum():.3g} hours with one run at a time"
            f"{'' if there else ', at most: real rows are shorter'}",
            f"memory: {clock.memory() / 1e9:.2f} GB {'on the GPU' if clock.on_gpu else 'in this process'} with "
            f"{clock.batch} rows a step; on disk {len(configs) * _parameters(classifier) * 4 / 1e9:.3g} GB of weights, "
            "unless discarded",
        ]
    )
    return Estimate(families, clock.memory(), text)


def _plan(configs: list[RunConfig], preset: str, model: PreTrainedModel, sizes: Sizes, updates: dict[str, int]) -> str:
    first, study_ = configs[0], configs[0].study
    lines = [
        f"{first.figure}, preset {preset}: {len(configs)} runs of {first.model} ({_parameters(model) / 1e6:.1f} M "
        f"parameters) on {study_.task}",
        f"a run: {sizes.train:,} rows, {study_.training.epochs} epochs, {updates['english']:,} steps of "
        f"{study_.training.batch_size}; {sizes.validation:,} validation rows in {', '.join(study_.languages)}; "
        f"Tr(F) over {min(study_.trace_examples or sizes.validation, sizes.validation):,}",
    ]
    if study_.adaptation:
        languages = ", ".join(study_.adaptation.languages)
        lines.append(f"then {updates['adaptation']:,} steps on {sizes.half:,} rows each of {languages}")
    return "\n".join(lines)


def _work(config: RunConfig, sizes: Sizes) -> tuple[dict[str, int], dict[str, int]]:
    """Steps of training, and rows to predict and to trace, in one run."""
    training_, adaptation = config.study.training, config.study.adaptation
    updates = {"english": math.ceil(sizes.train / training_.batch_size) * training_.epochs, "adaptation": 0}
    predicted = sizes.train + len(config.study.languages) * sizes.validation
    if adaptation:
        one = math.ceil(sizes.half / adaptation.batch_size) * adaptation.epochs
        updates["adaptation"] = len(adaptation.languages) * one
        predicted += len(adaptation.languages) * 2 * sizes.half
    traced = min(config.study.trace_examples or sizes.validation, sizes.validation)
    return updates, {"predicted": predicted, "traced": traced}


def _rows(config: RunConfig, data: Path | None) -> tuple[Sizes, Dataset, PreTrainedTokenizerBase]:
    task = study._task(config, data)
    sizes = Sizes(
        len(task.rows("en", "train")),
        len(task.rows("en", "validation")),
        len(task.rows("en", "adapt_train")),
        len(task.labels),
    )
    stand_in = "mini-mbert" if config.model in SHAPES else config.model
    return sizes, task.rows("en", "train"), hub.load_tokenizer(stand_in)


def _made_up(config: RunConfig) -> tuple[Sizes, Dataset, PreTrainedTokenizerBase]:
    """Sentences of the mini world, their words repeated to the full length, and the tokenizer of its encoder."""
    published = PUBLISHED[config.study.task]
    sizes = Sizes(config.study.train_size or published.train, published.validation, published.half, published.classes)
    rows = load_task("mini-nli", train_size=CPU_ROWS * 8, validation_size=2, languages=("en",)).rows("en", "train")
    half = config.study.training.max_length // 2

    def long(text: str) -> str:
        return " ".join((text.split() * half)[:half])

    made_up = Dataset.from_list(
        [
            {"text_a": long(row["text_a"]), "text_b": long(row["text_b"]), "label": row["label"] % sizes.classes}
            for row in rows
        ]
    )
    return sizes, made_up, hub.load_tokenizer("mini-mbert")


def _classifier(config: RunConfig, classes: int) -> PreTrainedModel:
    if config.model in SHAPES:
        model = AutoModelForSequenceClassification.from_config(SHAPES[config.model](num_labels=classes))
    else:
        model = hub.load_model(config.model, classes, seed=0)
    return model.to(study.device())


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Clock:
    """Times the parts of a run."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, config: RunConfig
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.on_gpu = model.device.type == "cuda"
        settings = config.study.training
        self.batch = settings.batch_size if self.on_gpu else min(CPU_ROWS, settings.batch_size)
        self.scale = settings.batch_size / self.batch
        self.steps = GPU_STEPS if self.on_gpu else CPU_STEPS
        self.max_length = settings.max_length
        self.rows = rows.select([i % len(rows) for i in range(self.batch * self.steps)])
        self.step(config)  # the first time, libraries and kernels are loaded
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def step(self, config: RunConfig) -> float:
        """Seconds of one training step under the configuration's condition."""
        settings = config.study.training.model_dump() | {"epochs": 1, "batch_size": self.batch}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that made-up rows are cut
            log = training.finetune(
                self.model,
                self.tokenizer,
                self.rows,
                regularizers=methods.terms(config, self.tokenizer),
                seed=0,
                **{"sam": methods.settings(config.condition).get("sam")} | settings,
            )
        return log[-1]["train_runtime"] / self.steps * self.scale

    def a_row(self, measure: Callable) -> float:
        """Seconds a row of a measurement of the model."""
        started = time.perf_counter()
        measure(self.model, self.tokenizer, self.rows, max_length=self.max_length)
        return (time.perf_counter() - started) / len(self.rows)

    def memory(self) -> int:
        """Largest number of bytes held so far, on the GPU or, without one, by the process."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
