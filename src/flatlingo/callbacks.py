"""Callbacks for any Trainer: checkpoints from which a killed training goes on, a line per minute, TensorBoard."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flatlingo.evaluation import evaluating
from flatlingo.files import changed, write_sums
from flatlingo.fisher import fisher_trace
from flatlingo.progress import LINE_SECONDS, duration

MINUTES = 5.0
# Steps from one agreement of several processes to the next: all of them wait for it.
AGREE_EVERY = 50
# The last but one is kept until the last is known to be whole.
KEPT = 2
logger = logging.getLogger(__name__)


class Checkpoints(TrainerCallback):
    """Makes a Trainer write a checkpoint every few minutes, and finds the last whole one.

    A checkpoint is whole once the digests of its files lie in it. The Trainer's optimizer, schedule and generators are
    torch archives, which transformers reads with `weights_only=True`: they hold tensors and numbers, and no code is
    run. Weights and the regularisers' generators are safetensors.

    A training of less than `minutes` writes none. On CPU a resumed training ends in the same weights, bit by bit, as
    one that nothing disturbed.

    Args:
        folder: where they lie; for one training only, of one configuration.
        minutes: between two checkpoints; 0 for one after every step, with several processes after every 50th.
    """

    def __init__(self, folder: Path, *, minutes: float = MINUTES):
        self.folder, self.minutes = folder, minutes
        self._last = time.monotonic()

    def last(self) -> Path | None:
        """The last whole checkpoint; others, which a kill or a full disk has left, are named and removed."""
        with PartialState().main_process_first():
            for path in sorted(self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True):
                if not (reason := changed(path)):
                    return path
                logger.warning("checkpoint %s is not whole (%s): it is removed", path, reason)
                shutil.rmtree(path, ignore_errors=True)
        return None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to count the minutes."""
        self._last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask for a checkpoint when it is due; the first of several processes decides, in every 50th step."""
        due = [time.monotonic() - self._last >= 60 * self.minutes]
        if PartialState().num_processes > 1:
            due = broadcast_object_list(due) if state.global_step % AGREE_EVERY == 0 else [False]
        if due[0]:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the digests, once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            write_sums(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
        self._last = time.monotonic()


class MinuteLines(TrainerCallback):
    """Writes a line per minute on standard error: step, last logged loss, time left. For terminals and log files."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._first, self._loss = 0, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to count; a resumed training begins at its checkpoint's step."""
        self._began = self._last = time.monotonic()
        self._first = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict, **kwargs: object
    ) -> None:
        """Keep the loss for the next line."""
        if "loss" in logs:
            self._loss = f", loss {float(logs['loss']):.4g}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the line when it is due."""
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS and state.is_world_process_zero:
            self._last = now
            left = (state.max_steps - state.global_step) * (now - self._began) / (state.global_step - self._first)
            line = f"{time.strftime('%H:%M:%S')} step {state.global_step:,} of {state.max_steps:,}{self._loss}"
            print(f"{line}, about {duration(left)} left", file=sys.stderr, flush=True)


class TraceCurve(TrainerCallback):
    """Measures Tr(F) on the way, at given shares of the training steps, and appends it to the Trainer's log history.

    An entry holds `step`, `trace/value` (nats²), `trace/log_mean` (the mean over rows of the logarithm of each row's
    trace) and `trace/loss` (mean cross entropy of the rows' gold labels). In float32 and eval mode whatever the
    precision of training; the model, its modes and the global generators are left as they were.

    Args:
        batches: padded batches with "labels", as `encoding.batches` makes them.
        shares: of the steps of the whole training, in [0, 1): 0 is before the first step.
    """

    def __init__(self, batches: Sequence[Mapping[str, Tensor]], shares: Iterable[float]):
        self.batches, self.shares = batches, tuple(shares)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure before the first step, if asked for."""
        if state.global_step == 0:
            self.on_step_end(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure after a step that was asked for."""
        if state.global_step in {round(share * state.max_steps) for share in self.shares}:
            with full_precision(kwargs["model"]), evaluating(kwargs["model"]):
                state.log_history.append({"step": state.global_step} | self._measure(kwargs["model"]))

    def _measure(self, model: nn.Module) -> dict[str, float]:
        trace = fisher_trace(model, self.batches)
        losses = [
            F.cross_entropy(model(**_inputs(batch, model)).logits, batch["labels"].to(model.device), reduction="none")
            for batch in self.batches
        ]
        log_mean = float(np.log(trace.per_example).mean())
        return {
            "trace/value": trace.value,
            "trace/log_mean": log_mean,
            "trace/loss": float(torch.cat(losses).mean()),
        }


def _inputs(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {column: values.to(model.device) for column, values in batch.items() if column != "labels"}


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """The model without the autocast that accelerate puts around its `forward` in mixed-precision training."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def tensorboard(folder: Path) -> TrainerCallback:
    """Write what the Trainer logs (losses, terms, learning rate) for TensorBoard: `tensorboard --logdir FOLDER`.

    Raises:
        ModuleNotFoundError: if TensorBoard is not installed.
    """
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
