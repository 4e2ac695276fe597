"""Fine-tuning with regularisers, and its second stage."""

import copy
import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from flatlingo import devices
from flatlingo.averaging import WeightAverage
from flatlingo.checkpoints import KEPT, Checkpoints
from flatlingo.errors import FlatlingoError, unknown
from flatlingo.randomness import LARGEST_SEED, own_randomness
from flatlingo.regularizers import SAM, Regularizer
from flatlingo.rowchecks import check_dataset, check_rows
from flatlingo.tracecallbacks import TraceCallback
from flatlingo.trainer import RegularizedTrainer

Precision = Literal["float32", "bf16"]


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    regularizers: Sequence[Regularizer] = (),
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    max_grad_norm: float = 1.0,
    gradient_accumulation_steps: int = 1,
    label_smoothing: float = 0.0,
    sam: SAM | None = None,
    average: float = 0.0,
    patience: int | None = None,
    group_by_length: bool = False,
    workers: int = 0,
    precision: Precision = "float32",
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = False,
) -> list[dict[str, float]]:
    """Fine-tune a classifier in place and leave it in eval mode.

    AdamW (betas 0.9 and 0.999, epsilon 1e-8), learning rate decaying linearly to 0, gradient norm clipped: the settings
    of Wang et al. (2021). All randomness (order, dropout, sampled views and labels) comes from `seed`: on CPU the same
    call gives the same weights bit by bit, whatever was drawn before, and the global generators are left as they were.

    Under `accelerate launch` several processes share each batch; its `--mixed_precision` is not followed. A last batch
    that is not whole they fill with rows from the beginning of the epoch, which one process does not: where the rows
    are no multiple of the batch, the training is another one.

    Args:
        model: a sequence classifier.
        tokenizer: its tokenizer.
        rows: `text_a`, for pairs `text_b`, `label` and, optionally, `row_id`.
        regularizers: terms to add to the loss.
        seed: seed of everything random.
        epochs: passes over the rows.
        batch_size: rows per forward pass, in all processes together; times `gradient_accumulation_steps` for an update.
        learning_rate: at the start of the decay.
        max_length: largest number of tokens; longer pairs are truncated longest first.
        weight_decay: decoupled weight decay, on all but biases and layer norms.
        warmup: share of the updates, below 1, in which the learning rate rises linearly from 0.
        max_grad_norm: largest norm of the gradient; 0: not clipped.
        gradient_accumulation_steps: batches per update.
        label_smoothing: share of the label spread over all classes; of `eval_loss` too, as with any Trainer.
        sam: sharpness-aware minimisation.
        average: share of the updates over which, at the end, the weights are averaged (`averaging.WeightAverage`);
            `eval_rows` are measured before.
        patience: stop when the loss on `eval_rows` has not fallen for so many epochs, and keep the weights of its
            lowest value (early stopping).
        group_by_length: batches of rows of about one length, in random order: less padding, and another training.
        workers: processes that encode the perturbed views; 0 for the training process itself. The result is the same.
        precision: `"float32"`, or `"bf16"` for passes under bf16 autocast; weights, gradients and updates are float32
            in both, and the model afterwards computes in float32.
        eval_rows: rows to measure loss and accuracy on after each epoch.
        checkpoints: where to write checkpoints; if there is one already, the training goes on from it. None: nowhere.
        callbacks: further callbacks of the Trainer, such as `flatlingo.watching.MinuteLines()`.
        progress: whether to show a progress bar.

    Returns:
        The training log, about fifty entries with `loss`, `loss/task`, `loss/<name>` …, `epoch` and `step`, and
        `eval_loss`, `eval_accuracy` where there are `eval_rows`; `pandas.DataFrame(log)` makes it a table.

    Raises:
        FlatlingoError: as for `RegularizedTrainer`, or if there are no rows, a number is out of its range, the
            processes cannot share a batch evenly, or the device has no bf16 of its own. After a loss that is not finite
            the model is of no use.
    """
    _check_rows(rows, eval_rows, model)
    _check_least(
        batch_size=(batch_size, 1),
        gradient_accumulation_steps=(gradient_accumulation_steps, 1),
        seed=(seed, 0),
        learning_rate=(learning_rate, 0),
        weight_decay=(weight_decay, 0),
        max_grad_norm=(max_grad_norm, 0),
    )
    if seed > LARGEST_SEED:
        raise FlatlingoError(f"seed must be {LARGEST_SEED} or less, got {seed}")
    if not epochs > 0 or not 0 <= warmup < 1:
        raise FlatlingoError(f"epochs must be above 0, warmup a share below 1; got {epochs} and {warmup}")
    _check_stopping(patience, eval_rows, average)
    _check_precision(precision)
    stopping = [EarlyStoppingCallback(patience)] if patience else []
    averaging = [WeightAverage(average)] if average else []
    with tempfile.TemporaryDirectory(prefix="flatlingo-") as scratch, own_randomness():
        args = _arguments(
            checkpoints.folder if checkpoints else Path(scratch),
            precision,
            evaluates=eval_rows is not None,
            stops=bool(stopping),
            seed=seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=_share(batch_size),
            gradient_accumulation_steps=gradient_accumulation_steps,
            learning_rate=learning_rate,
            warmup_steps=warmup,  # below 1, transformers takes it for a share
            weight_decay=weight_decay,
            label_smoothing_factor=label_smoothing,
            max_grad_norm=max_grad_norm,
            save_only_model=checkpoints is None,
            dataloader_num_workers=workers,
            disable_tqdm=not progress,
        )
        trainer = RegularizedTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            compute_metrics=_accuracy,
            regularizers=regularizers,
            sam=sam,
            max_length=max_length,
            group_by_length=group_by_length,
            callbacks=[*callbacks, *averaging, *([checkpoints] if checkpoints else []), *stopping],
        )
        trainer.remove_callback(PrinterCallback)
        for callback in callbacks:
            if isinstance(callback, TraceCallback):
                callback.trainer = trainer
        last = checkpoints and checkpoints.last()
        if last and patience and (epoch := _stopped_at(last, patience)):
            args.num_train_epochs = epoch  # nothing is left to train, and the best weights are loaded
        trainer.train(resume_from_checkpoint=last and str(last))
    model.eval()
    history = trainer.state.log_history
    if torch.cuda.is_available():  # a cycle of references would keep the optimizer's moments on the GPU
        del trainer
        gc.collect()
    return history


def adapt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], **settings: Any
) -> PreTrainedModel:
    """Second stage of two-stage fine-tuning: train a copy of a fine-tuned classifier on rows of a target language.

    Args:
        model: the classifier after the first stage; left as it is.
        tokenizer: its tokenizer.
        rows: rows of the target language.
        **settings: as for `finetune`; without `regularizers` the second stage is plain training, with the dropout that
            the model has.

    Returns:
        The trained copy, in eval mode.
    """
    adapted = copy.deepcopy(model)
    finetune(adapted, tokenizer, rows, **settings)
    return adapted


def _arguments(
    folder: Path, precision: Precision, *, evaluates: bool, stops: bool, **settings: Any
) -> TrainingArguments:
    """What the Trainer is told: a call's settings, and what is the same in all calls.

    Args:
        folder: for checkpoints.
        precision: of the passes.
        evaluates: whether to evaluate after each epoch.
        stops: whether a training may stop early, and keeps its best weights.
        **settings: of the call, by the names of `TrainingArguments`.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=64,
        lr_scheduler_type="linear",
        bf16=precision == "bf16",
        use_cpu=devices.device() == devices.CPU,
        eval_strategy="epoch" if evaluates else "no",
        logging_steps=0.02,
        save_strategy="epoch" if stops else "no",  # and when `checkpoints` asks for it
        save_total_limit=KEPT + stops,  # the best one is kept besides
        restore_callback_states_from_checkpoint=True,  # for how many epochs the loss has not fallen
        load_best_model_at_end=stops,
        metric_for_best_model="loss",
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        report_to="none",
        **settings,
    )
    args.mixed_precision = "bf16" if precision == "bf16" else "no"  # not what the environment says
    args._n_gpu = min(args.n_gpu, 1)  # one device per process: DataParallel would multiply the batch
    return args


def _share(batch_size: int) -> int:
    """Rows of a batch that one of the processes takes."""
    processes = devices.processes()
    if batch_size % processes:
        raise FlatlingoError(f"{processes} processes cannot share batches of {batch_size} rows; give a multiple")
    return batch_size // processes


def _stopped_at(checkpoint: Path, patience: int) -> float | None:
    """The epoch after which early stopping had ended the training that left a checkpoint; None if it goes on."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    counted = state.stateful_callbacks[EarlyStoppingCallback.__name__]["attributes"]["early_stopping_patience_counter"]
    return state.epoch if counted >= patience else None


def _check_rows(rows: Sequence, eval_rows: Sequence | None, model: PreTrainedModel) -> None:
    """Refuse what is no data set, or empty; rows to train on the Trainer checks besides."""
    check_dataset(rows)
    check_dataset(eval_rows)
    if len(rows) == 0:
        raise FlatlingoError("there are no rows to train on; check the split and its size")
    if eval_rows is None:
        return
    if len(eval_rows) == 0:
        raise FlatlingoError("there are no eval_rows; check the split and its size, or leave them out")
    check_rows(eval_rows, model.config, needs_labels=True)


def _check_stopping(patience: int | None, eval_rows: Sequence | None, average: float) -> None:
    if patience is None:
        return
    if eval_rows is None or patience < 1:
        raise FlatlingoError(f"early stopping needs eval_rows and a patience of at least 1 epoch, got {patience}")
    if average:
        raise FlatlingoError("early stopping keeps the weights of one epoch; leave out patience, or average")


def _check_least(**numbers: tuple[float, float]) -> None:
    """Refuse an argument, by name with its least value, that is smaller or no number."""
    for name, (number, least) in numbers.items():
        if not number >= least:
            raise FlatlingoError(f"{name} must be {least} or more, got {number}")


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise FlatlingoError(unknown("precision", precision, get_args(Precision)))
    if precision == "bf16" and not devices.has_bf16():
        raise FlatlingoError(
            f"{devices.device_name()} has no bf16 of its own and would only emulate it; use precision: float32"
        )


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Of classes; nothing for other labels. Encoder-decoders give logits with other outputs, logits first."""
    found = prediction.predictions
    logits = found[0] if isinstance(found, tuple) else found
    if logits.shape[-1] < 2 or prediction.label_ids.ndim != 1:
        return {}
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}
