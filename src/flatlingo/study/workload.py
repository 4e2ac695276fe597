"""What one run computes, counted from its configuration and its rows: calls and padded tokens of each kind of work."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from flatlingo.encoding import LengthGroupedSampler, encode
from flatlingo.evaluation import TRACE_BATCH, prediction_batch
from flatlingo.study.run import SHARPNESS_ROWS
from flatlingo.study.runspec import RunSpec
from flatlingo.tasks import Task


class Amount(NamedTuple):
    """Some work: how often something is called, and the tokens of all calls, padding included."""

    calls: int = 0
    tokens: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.calls + other.calls, self.tokens + other.tokens)

    def __mul__(self, times: int) -> "Amount":
        return Amount(self.calls * times, self.tokens * times)


class Workload(NamedTuple):
    """The work of one run.

    Attributes:
        english: training steps on English.
        second_stage: training steps of all second stages, the English control among them.
        predicted: forward passes, a call being one set of rows.
        traced: Tr(F) of English rows by tensor, with their empirical Fisher; a call is one set of rows.
        traced_briefly: Tr(F) alone, of other languages and on the way.
    """

    english: Amount
    second_stage: Amount
    predicted: Amount
    traced: Amount
    traced_briefly: Amount


class Lengths:
    """The lengths of a task's rows in tokens.

    Args:
        task: the rows.
        tokenizer: of the encoder.
        max_length: longer rows are cut to it.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length

    @functools.cache  # noqa: B019 (there is one object per estimate)
    def of(self, language: str, split: str) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        items = encode(list(self.task.rows(language, split)), self.tokenizer, max_length=self.max_length)
        return np.array([len(item["input_ids"]) for item in items])


def workload(spec: RunSpec, lengths: Lengths, device: torch.device) -> Workload:
    """The work of a run on a device, as `study.run` does it. Early stopping is counted as if it never stopped."""
    setup, asked = spec.setup, spec.setup.measurement
    grouped = setup.training.group_by_length
    english = shuffled(lengths.of("en", "train"), setup.training.batch_size, grouped) * spec.epochs
    languages, at_once = lengths.task.languages, prediction_batch(device)
    predicted = [ordered(lengths.of("en", "train"), at_once)]
    predicted += [ordered(lengths.of(language, "validation"), at_once) for language in languages]
    if asked.sharpness_radius:  # a gradient takes about three forward passes
        predicted.append(ordered(lengths.of("en", "train")[:SHARPNESS_ROWS], TRACE_BATCH) * 4)
    if asked.segmentation_examples:  # two passes
        predicted.append(ordered(lengths.of("en", "validation")[: asked.segmentation_examples], at_once) * 2)
    traced = ordered(lengths.of("en", "validation")[: asked.trace_examples], TRACE_BATCH)
    targets = [language for language in languages if language != "en"] if asked.target_examples else []
    briefly = [
        ordered(lengths.of(language, "validation")[: asked.target_examples], TRACE_BATCH) for language in targets
    ]
    points = len({round(share * english.calls) for share in asked.curve})
    curve = ordered(lengths.of("en", "validation")[: asked.curve_examples], TRACE_BATCH) * points
    second_stage, held_out = _second_stages(spec, lengths, at_once)
    return Workload(english, second_stage, _sum([*predicted, curve, held_out]), traced, _sum([*briefly, curve]))


def _second_stages(spec: RunSpec, lengths: Lengths, at_once: int) -> tuple[Amount, Amount]:
    """The steps of all second stages, and the predictions, `at_once` rows a batch, on their held-out rows."""
    asked = spec.setup.second_stage
    if asked is None:
        return Amount(), Amount()
    trained = (*asked.languages, *(("en",) if asked.english_control else ()))
    grouped = spec.setup.training.group_by_length
    rows = (lengths.of(language, "adapt_train")[: asked.rows] for language in trained)
    steps = [shuffled(of, asked.batch_size, grouped) * asked.epochs for of in rows]
    tested = asked.languages * (2 if asked.english_control else 1)
    rows = [ordered(lengths.of(language, "adapt_validation"), at_once) for language in tested]
    return _sum(steps), _sum(rows)


def shuffled(lengths: np.ndarray, batch_size: int, grouped: bool = False) -> Amount:
    """One pass of training: a call per batch, each padded to its longest row, `grouped` by length or not.

    >>> shuffled(np.array([5, 5, 5, 5, 5]), 2), shuffled(np.array([9, 1, 9, 1]), 2, grouped=True)
    (Amount(calls=3, tokens=25), Amount(calls=2, tokens=20))
    """
    order = np.random.default_rng(0).permutation(lengths)
    if grouped:
        order = np.concatenate([np.sort(pool) for pool in _batches(order, LengthGroupedSampler.POOL * batch_size)])
    batches = _batches(order, batch_size)
    return Amount(len(batches), _padded(batches))


def ordered(lengths: np.ndarray, batch_size: int) -> Amount:
    """One call over rows in the order of their lengths, as `encoding.batches` makes its batches.

    >>> ordered(np.array([9, 2, 3, 8]), 2)
    Amount(calls=1, tokens=24)
    """
    return Amount(1, _padded(_batches(np.sort(lengths), batch_size)))


def _batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]


def _padded(batches: list[np.ndarray]) -> int:
    return int(sum(len(batch) * batch.max() for batch in batches))


def _sum(amounts: Iterable[Amount]) -> Amount:
    return functools.reduce(Amount.__add__, amounts, Amount())
