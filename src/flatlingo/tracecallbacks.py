"""Tr(F) while a model trains, for any Trainer: at given shares of the steps, or every k steps into its logs."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import evaluating
from flatlingo.fisher import FisherTrace, fisher_trace
from flatlingo.fisher.batches import check_whole
from flatlingo.randomness import own_randomness

logger = logging.getLogger(__name__)


class TraceCurve(TrainerCallback):
    """Measures Tr(F) on the way, at given shares of the training steps, and appends it to the Trainer's log history.

    An entry holds `step`, `trace/share` (of the steps planned), `trace/value` (nats²), `trace/log_mean` (the mean over
    rows of the logarithm of each row's trace) and `trace/loss` (mean cross entropy of the rows' gold labels). In
    float32 and eval mode whatever the precision of training; the model, its modes and the global generators are left as
    they were.

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
                at = {"step": state.global_step, "trace/share": state.global_step / state.max_steps}
                state.log_history.append(at | self._measure(kwargs["model"]))

    def _measure(self, model: nn.Module) -> dict[str, float]:
        trace = fisher_trace(model, self.batches)
        losses = [
            F.cross_entropy(model(**_inputs(batch, model)).logits, batch["labels"].to(model.device), reduction="none")
            for batch in self.batches
        ]
        return {
            "trace/value": trace.value,
            "trace/log_mean": trace.log_mean,
            "trace/loss": float(torch.cat(losses).mean()),
        }


class TraceCallback(TrainerCallback):
    """Shows Tr(F) on the way: measures it every k steps or epochs and logs it, for TensorBoard, wandb and the rest.

    For any `transformers.Trainer`. An entry of the log holds `fisher_trace` and `fisher_trace_se` (nats², the standard
    error over rows), `fisher_log_trace` (mean over rows of the logarithm of each row's trace) and `fisher_trace_share`,
    the share of the time since training began that measuring took. A measurement that would take this share above
    `max_share` is left out; the first time a warning says so, and the next entry holds `fisher_trace_skipped`, their
    number. Before the first one, the time it takes is reckoned from its first batch, measured when training begins. The
    last step has its turn, too, unless training stops early. (200 rows of the mini world take as long as five training
    steps of 32 rows on a CPU core, in float32.)

    Training is as without it, bit by bit: gradients, modes and generators are left alone. Tr(F) is exact, in eval mode
    and the precision of the weights, without autocast and TF32. Processes (DDP) share the work and agree on when.

    Args:
        batches: padded batches of the rows to measure on, as `flatlingo.batches` makes them or a DataLoader with the
            Trainer's collator; the same in every process, so that with several it is not one of the Trainer's own. A
            few hundred rows will do.
        trainer: the Trainer; `finetune(…, callbacks=[…])` fills in its own.
        every: steps (updates of the weights) or epochs from one measurement to the next.
        unit: "step" or "epoch".
        max_share: largest share of the time, above 0; 1 for any.

    Raises:
        FlatlingoError: if an argument is not as above; when training begins, if the Trainer is not known, or spreads
            each weight over processes (FSDP, DeepSpeed); as `fisher_trace`.

    Example::

        trainer = Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        few = rows.select(range(200)).remove_columns(["premise", "hypothesis"])  # token ids and labels stay
        few = DataLoader(few, batch_size=32, collate_fn=trainer.data_collator)
        trainer.add_callback(fl.TraceCallback(few, trainer, every=100))
        trainer.train()
        [entry["fisher_trace"] for entry in trainer.state.log_history if "fisher_trace" in entry]
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        trainer: Trainer | None = None,
        *,
        every: int = 100,
        unit: Literal["step", "epoch"] = "step",
        max_share: float = 0.1,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1 or unit not in ("step", "epoch"):
            raise FlatlingoError(f"every={every!r}, unit={unit!r}: give a whole number, 1 or more, of step or epoch")
        if not 0 < max_share <= 1:
            raise FlatlingoError(f"max_share={max_share}: give a share of the training time above 0, up to 1")
        check_whole(batches)
        with own_randomness():  # a DataLoader draws a seed, which would change what training draws
            self.batches = [dict(batch) for batch in batches]
        self.trainer = trainer
        if not self.batches:
            raise FlatlingoError("there are no batches to measure Tr(F) on; a generator that is used up gives none")
        self.every, self.unit, self.max_share = every, unit, max_share

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure on the first batch, to know the cost and to fail early if the model cannot be measured."""
        if self.trainer is None:
            raise FlatlingoError("TraceCallback knows no Trainer to log to: give it, TraceCallback(batches, trainer)")
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            raise FlatlingoError("Tr(F) needs whole weights, which FSDP and DeepSpeed spread; leave TraceCallback out")
        self._began, self._spent, self._skipped, self._warned = time.monotonic(), 0.0, 0, False
        self._measure(kwargs["model"], self.batches[:1])
        first = self._spent
        one = self._measure(kwargs["model"], self.batches[:1])  # again, since the first of all takes longer
        rows = sum(len(next(iter(batch.values()))) for batch in self.batches)
        self._expected = (self._spent - first) / one.n * rows

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure after every k-th step, and the last."""
        if self.unit == "step" and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self._take_turn(kwargs["model"], state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure after every k-th epoch, and the last."""
        if self.unit == "epoch" and (round(state.epoch) % self.every == 0 or state.global_step == state.max_steps):
            self._take_turn(kwargs["model"], state, control)

    def _take_turn(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        """Measure and log if there is time for it; the first of several processes decides."""
        passed = time.monotonic() - self._began
        share = (self._spent + self._expected) / (passed + self._expected)
        fits = [share <= self.max_share]
        if PartialState().num_processes > 1:
            fits = broadcast_object_list(fits)
        if not fits[0]:
            self._skipped += 1
            if not self._warned and state.is_world_process_zero:
                logger.warning(
                    "Tr(F) at step %d is left out: it takes about %.2g s, and measuring would have taken %.0f %% of "
                    "the time, more than max_share=%g; it is tried again every %d %ss",
                    *(state.global_step, self._expected, 100 * share, self.max_share, self.every, self.unit),
                )
            self._warned = True
            if state.global_step == state.max_steps:
                self._log({}, control)
            return
        before = self._spent
        trace = self._measure(model, self.batches)
        self._expected = self._spent - before
        entry = {
            "fisher_trace": trace.value,
            "fisher_trace_se": trace.standard_error,
            "fisher_log_trace": trace.log_mean,
            "fisher_trace_share": self._spent / (time.monotonic() - self._began),
        }
        self._log(entry, control)

    def _log(self, entry: dict[str, float], control: TrainerControl) -> None:
        asked = control.should_log
        self.trainer.log(entry | ({"fisher_trace_skipped": self._skipped} if self._skipped else {}))
        control.should_log = asked  # which a log resets, so that the loss of this step would not be logged
        self._skipped = 0

    def _measure(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> FisherTrace:
        if next(model.parameters()).device.type != "cpu":
            torch.accelerator.synchronize()  # what training has queued is not the measurement's
        began = time.monotonic()
        with full_precision(model), evaluating(model):
            trace = fisher_trace(model, batches)
        self._spent += time.monotonic() - began
        return trace


def _inputs(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {column: values.to(model.device) for column, values in batch.items() if column != "labels"}


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """The model without the autocast that accelerate puts around its `forward` in mixed-precision training."""
    if "_original_forward" not in vars(model):
        yield
        return
    wrapped, model.forward = model.forward, model._original_forward
    try:
        yield
    finally:
        model.forward = wrapped
