"""Seconds of training steps and measurements, timed on few rows: a constant, and a rate for the tokens."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flatlingo import devices, training
from flatlingo.study.measure import Classifier
from flatlingo.study.runspec import RunSpec
from flatlingo.study.terms import settings, terms
from flatlingo.study.workload import Amount

REPETITIONS = 3  # of which the fastest counts, after one that does not


class Line(NamedTuple):
    """Seconds of a call: `constant` (of a step: AdamW, launches; of a measurement: its checks) + `rate` x tokens.

    >>> Line(0.1, 0.002)(Amount(calls=10, tokens=5000))
    11.0
    """

    constant: float
    rate: float

    def __call__(self, amount: Amount) -> float:
        """Seconds that so many calls and tokens take."""
        return amount.calls * self.constant + amount.tokens * self.rate

    def towards(self, other: "Line", share: float) -> "Line":
        """The mean line where that share of the calls costs what `other` does, and the rest what this one does."""
        return Line(*(mine + share * (its - mine) for mine, its in zip(self, other, strict=True)))


def fitted(points: Sequence[tuple[int, float]]) -> Line:
    """The line through two measurements (tokens, seconds); noise makes neither part negative.

    >>> fitted([(100, 1.5), (200, 2.5)])
    Line(constant=0.5, rate=0.01)
    """
    (few, fast), (many, slow) = points
    rate = min(max(slow - fast, 0.0) / (many - few), slow / many)
    return Line(slow - rate * many, rate)


class Clock:
    """Times the parts of runs on this machine.

    On CPU with a quarter and half the rows of a batch; on a GPU, which is idle with few rows, with half and all.

    Args:
        classifier: a model of the encoder's shape, on its device.
        rows: English training rows.
        lengths: their tokens.
    """

    def __init__(self, classifier: Classifier, rows: Dataset, lengths: np.ndarray):
        self.classifier, self.rows, self.lengths = classifier, rows, lengths
        self.on_gpu = classifier.model.device.type == "cuda"

    def step(self, spec: RunSpec, batch_size: int, length: float) -> Line:
        """A training step under a run's condition, with rows of about the length to which full batches are padded."""
        sizes = _sizes(batch_size, (1 / 2, 1) if self.on_gpu else (1 / 4, 1 / 2))
        return fitted([self._steps(spec, size, length) for size in sizes])

    def _steps(self, spec: RunSpec, batch_size: int, length: float) -> tuple[int, float]:
        rows, tokens = self._near(length, batch_size, times=REPETITIONS + 1)
        ends = _Ends()
        changes = {"sam": settings(spec.condition)["sam"]} if "sam" in settings(spec.condition) else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of rows that are cut
            training.finetune(
                self.classifier.model,
                self.classifier.tokenizer,
                rows,
                regularizers=terms(spec, self.classifier.tokenizer),
                seed=0,
                epochs=1,
                batch_size=batch_size,
                learning_rate=0.0,  # the weights stay as they are
                max_length=self.classifier.max_length,
                precision=spec.setup.precision,
                workers=devices.loading_processes(),
                callbacks=[ends],
                **changes,
            )
        return tokens, float(min(np.diff(ends.times)))

    def measurement(self, measure: Callable[[Dataset], object], batch_size: int) -> Line:
        """A measurement of rows in the order of their lengths, in batches."""
        sizes = _sizes(batch_size, (1, 3) if self.on_gpu else (1 / 4, 1 / 2))
        points = []
        for size in sizes:
            rows, tokens = self._near(self.lengths.mean(), size)
            seconds = [_seconds(lambda rows=rows: measure(rows)) for _ in range(REPETITIONS + 1)]
            points.append((tokens, min(seconds[1:])))
        return fitted(points)

    def _near(self, length: float, n: int, times: int = 1) -> tuple[Dataset, int]:
        """The n rows nearest to a length (some twice if there are too few), several times; and their padded tokens."""
        order = np.abs(self.lengths - length).argsort(kind="stable")
        chosen = np.resize(order[:n], n)
        return self.rows.select(np.tile(chosen, times)), n * int(self.lengths[chosen].max())


class _Ends(TrainerCallback):
    """When each step has ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        _finish()
        self.times.append(time.perf_counter())


def _sizes(batch_size: int, shares: tuple[float, float]) -> tuple[int, int]:
    small, large = (max(1, round(batch_size * share)) for share in shares)
    return small, max(large, small + 1)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    _finish()
    return time.perf_counter() - started


def _finish() -> None:
    """Wait for the GPU, which works on while Python goes ahead."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
