"""Checkpoints from which a killed training goes on, for any Trainer."""

import logging
import shutil
import time
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flatlingo.errors import FlatlingoError
from flatlingo.files import changed, write_sums

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
        """The last whole checkpoint; others, which a kill or a full disk has left, are named and removed.

        Raises:
            FlatlingoError: if several processes find different ones.
        """
        with PartialState().main_process_first():
            last = self._last_whole()
        found = gather_object([last and last.name])
        if len(set(found)) > 1:
            raise FlatlingoError(
                f"the processes of this training find different checkpoints in {self.folder}: "
                f"{', '.join(map(str, found))}; give a folder that all machines share, or an empty one"
            )
        return last

    def _last_whole(self) -> Path | None:
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
        if args.eval_strategy != "no" and float(state.epoch).is_integer():
            due = [False]  # a training that went on from here would miss the evaluation that follows
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


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
