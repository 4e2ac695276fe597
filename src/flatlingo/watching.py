"""Watching a training from outside: one line a minute, or TensorBoard."""

import sys
import time
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

LINE_SECONDS = 60


class MinuteLines(TrainerCallback):
    """Writes a line a minute on standard error: step, last logged loss, time left. For terminals and log files."""

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


def tensorboard(folder: Path) -> TrainerCallback:
    """Write what the Trainer logs (losses, terms, learning rate) for TensorBoard: `tensorboard --logdir FOLDER`."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def duration(seconds: float) -> str:
    """Write a duration for people.

    >>> duration(42), duration(754), duration(7400)
    ('42 s', '13 min', '2 h 3 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
