"""Watching a training: a line a minute, TensorBoard."""

import sys
import time
from importlib import import_module
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from flatlingo.progress import LINE_SECONDS, duration


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


def tensorboard_in(folder: Path) -> TrainerCallback:
    """Write what the Trainer logs (losses, terms, learning rate) for TensorBoard: `tensorboard --logdir FOLDER`.

    Raises:
        ModuleNotFoundError: if TensorBoard is not installed.
    """
    import_module("tensorboard")  # without it transformers raises a RuntimeError
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback
