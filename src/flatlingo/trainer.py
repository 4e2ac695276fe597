"""A `transformers.Trainer` that adds the terms of regularisers to the loss."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PredictionOutput, TrainOutput

from flatlingo.encoding import EncodedRows, LengthGroupedSampler, PairCollator, check_length, padding_id
from flatlingo.errors import FlatlingoError
from flatlingo.files import replacing
from flatlingo.fisher.selection import check_trainable
from flatlingo.labels import class_order, with_classes_of_model
from flatlingo.lossrecord import READ_EVERY, LossRecord
from flatlingo.masks import whole_masks
from flatlingo.regularizers import SAM, Regularizer, TracePenalty
from flatlingo.regularizers.base import check_softmax
from flatlingo.rowchecks import check_dataset, check_rows, warn_if_cut, warn_if_empty


class RegularizedTrainer(Trainer):
    """A `transformers.Trainer` whose training loss is the task loss plus the terms of regularisers.

    Data sets may hold rows of texts (`text_a`, for pairs `text_b`, `label` and, optionally, `row_id`), which are
    encoded with `processing_class` and padded batch by batch (not by `data_collator`), or be tokenised already, as for
    any Trainer, and then `data_collator` makes the batches. Where rows of texts name their labels (`ClassLabel`) and
    the model its classes, they are matched by name. Evaluation never sees regularisers. Each training log holds,
    besides `loss`, the means since the last log of the task loss (`loss/task`), of each term (`loss/<name>`) and of
    what it reports (`<name>/<key>`).

    Every loss is a mean over a micro-batch, and the mean over micro-batches is followed: with equally large ones,
    accumulating 4 batches of 8 is one batch of 32, but for terms that are no mean over rows, which say so.
    (transformers 5.23 by itself does not divide the loss of BERT-like classifiers by the number of micro-batches.)

    What regularises without being a term comes from the Trainer and works together with the terms: weight decay
    (`TrainingArguments(weight_decay=…)`, decoupled, not on biases and layer norms), label smoothing
    (`label_smoothing_factor=…`, which terms with a cross entropy of their own follow; `eval_loss` has it too), early
    stopping (`callbacks=[EarlyStoppingCallback(…)]`), dropout (`load_model(…, dropout=…)`).

    Perturbed views of the texts are encoded where batches are made: with
    `TrainingArguments(dataloader_num_workers=n)` in n processes beside the training loop. A view depends on seed, epoch
    and row alone, so the trained weights are the same bit for bit with any number of workers. (Persistent workers see
    the same views too, but PyTorch then draws fewer numbers from the global generator, hence other dropout masks.)

    Under bf16 or fp16 (`TrainingArguments(bf16=True)`) passes run under autocast in training, evaluation and prediction
    only: afterwards, also when they fail, the model is as it came and computes in its own precision.

    Losses are read from the device every 50 steps, and before logs, evaluations and checkpoints: a loss that is not
    finite ends the training by then, and the message names the first such step and term.

    Checkpoints also hold the states of the regularisers' random generators: on CPU a resumed run equals the
    uninterrupted one bit for bit.

    Args:
        *args: as for `transformers.Trainer`.
        regularizers: the terms; a regulariser of weight 0 is left out altogether.
        sam: sharpness-aware minimisation of the sum of task loss and terms.
        max_length: largest number of tokens of a row of texts.
        group_by_length: train on batches of texts of about one length (`encoding.LengthGroupedSampler`).
        **kwargs: as for `transformers.Trainer`.

    Raises:
        FlatlingoError: if two regularisers share a name, a regulariser needs texts and the training data are tokenised,
            the model's outputs have no `logits` to regularise,
            rows of texts come without a tokenizer or may be longer than the model can take, a regulariser does not go
            together with activation checkpointing or `compute_loss_func`, SAM not with fp16, DeepSpeed, FSDP or weights
            in half precision, a row has a text or a label that the model cannot learn, label smoothing lies outside
            0 … 1, or, in training, the loss is not finite.

    Warns:
        UserWarning: if training rows, or the first 500 perturbed views of a consistency loss, are longer than
            `max_length` and are cut; if texts have no pieces (blank, or characters the tokenizer drops); or if a
            checkpoint holds no generators.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        regularizers: Sequence[Regularizer] = (),
        sam: SAM | None = None,
        max_length: int = 128,
        group_by_length: bool = False,
        **kwargs: Any,
    ):
        _check_terms(regularizers, sam)
        super().__init__(*args, **kwargs)
        self.regularizers = [regularizer for regularizer in regularizers if regularizer.weight > 0]
        self.sam, self.max_length, self.group_by_length = sam, max_length, group_by_length
        self.args.logging_nan_inf_filter = False  # waits for the GPU, to leave out what is an error here
        _check_names(self.regularizers)
        self._check_settings()
        if (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self._is_spread:
            self._move_model_to_device(self.model, self.args.device)  # else it moves after the terms have begun
        self._start(self.model)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._encoded(rows) for name, rows in self.eval_dataset.items()}
        else:
            self.eval_dataset = self._encoded(self.eval_dataset)
        self.train_dataset = self._encoded(self.train_dataset, self.regularizers, training=True)
        if isinstance(self.train_dataset, EncodedRows):
            # accelerate forwards the epoch to the data set in one process only
            self.add_callback(_EpochCallback(self.train_dataset))
            warn_if_cut(self.train_dataset, self.processing_class)
            warn_if_empty(self.train_dataset, self.processing_class)
        # first of all, since others may measure the model in on_train_begin
        self.callback_handler.callbacks.insert(0, _BeginCallback(self._begin))
        self._contexts = ExitStack()
        self._record = LossRecord()
        self._losses_seen, self._loss_gap = 0, torch.zeros(())
        self._micro_batches: list[dict[str, Tensor]] = []
        self._ascended = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, within the contexts of the regularisers; arguments as for `transformers.Trainer.train`."""
        with self._forward_given_back(), self._contexts:
            if self.model_init is None and not resume_from_checkpoint:  # the weights may have changed since
                self._start(self.model)
            if taken := [regularizer.name for regularizer in self.regularizers if regularizer.trainer != id(self)]:
                raise FlatlingoError(
                    f"{taken[0]} was given to another trainer since, and remembers its model; give each trainer its own"
                )
            output = super().train(resume_from_checkpoint, *args, **kwargs)
            self._read_own_loss()
            self._record.read()
            return output

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make the model that is then trained; the regularisers start anew with it."""
        model = super().call_model_init(trial)
        if hasattr(self, "regularizers"):
            self._start(model)
        return model

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure loss and metrics; arguments as for `transformers.Trainer.evaluate`."""
        self._record.read()
        with self._forward_given_back():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict; arguments as for `transformers.Trainer.predict`."""
        with self._forward_given_back():
            return super().predict(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradient of a (micro-)batch; with SAM, the last one of an update moves all gradients to w + ε̂."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.sam is None:
            return loss
        self._micro_batches.append(inputs)
        if self.accelerator.sync_gradients:
            for regularizer in self.regularizers:
                regularizer.repeat(len(self._micro_batches))
            with self.sam.ascended(model.parameters()), self._recording_nothing():
                model.zero_grad()
                for micro_batch in self._micro_batches:
                    super().training_step(model, micro_batch, num_items_in_batch)
            self._micro_batches.clear()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the mean task loss of a (micro-)batch and, in training, add the terms of the regularisers."""
        clean = {column: values for column, values in inputs.items() if "/" not in column}
        if not model.training:
            return super().compute_loss(model, clean, return_outputs)
        with ExitStack() as stack:
            for regularizer in self.regularizers:
                stack.enter_context(regularizer.forward_context())
                stack.enter_context(regularizer.shared_context(model, inputs))
            loss, outputs = super().compute_loss(model, clean, return_outputs=True)
        if self.regularizers and not hasattr(outputs, "logits"):
            raise FlatlingoError(
                f"{self.regularizers[0].name} needs outputs.logits, and the model returns a {type(outputs).__name__}: "
                "have its forward return transformers.modeling_outputs.SequenceClassifierOutput(loss=…, logits=…), or "
                "set model.config.return_dict = True"
            )
        self._check_own_loss(loss, outputs, inputs)
        terms, details = {"task": loss}, {}
        for regularizer in self.regularizers:
            terms[regularizer.name], logged = regularizer(model, inputs, outputs)
            details |= {f"{regularizer.name}/{key}": value for key, value in logged.items()}
        self._record.note(self.state.global_step + 1, terms, details, logged=not self._ascended)
        loss = sum(terms.values())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the mean terms since the last training log; over all processes, as is the loss."""
        if "loss" in logs and (own := self._record.means()):
            means = gather_object([own])
            logs |= {name: sum(mean[name] for mean in means) / len(means) for name in own}
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not self.group_by_length:
            return super()._get_train_sampler(rows)
        if not isinstance(rows, EncodedRows):
            raise FlatlingoError("group_by_length needs rows of texts; for tokenised data set train_sampling_strategy")
        batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(rows, batch_size, seed=self.args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Make the data loader of evaluation; rows of texts are encoded."""
        return super().get_eval_dataloader(self._encoded(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """Make the data loader of prediction; rows of texts are encoded."""
        return super().get_test_dataloader(self._encoded(test_dataset))

    def _start(self, model: nn.Module) -> None:
        """Prepare the terms for training a model from its present weights."""
        if self.sam:
            self.sam.check(model)
        for regularizer in self.regularizers:
            regularizer.label_smoothing = self.args.label_smoothing_factor
            regularizer.start(model, seed=self.args.seed + self.args.process_index)
            regularizer.trainer = id(self)

    def _begin(self) -> None:
        """Begin the training loop, or begin it again with smaller batches (`auto_find_batch_size`)."""
        self._check_recomputation()  # once more: it can be switched on after the trainer was built
        self._contexts.close()
        if self.args.world_size > 1:  # else every process would drop the same units of its own rows
            torch.manual_seed(self.args.seed + self.args.process_index)
        self._contexts.enter_context(whole_masks(self.model))
        for regularizer in self.regularizers:
            self._contexts.enter_context(regularizer.training_context(self.model))
        self._micro_batches.clear()
        self._record = LossRecord()
        self._losses_seen, self._loss_gap = 0, torch.zeros(())

    def _encoded(self, rows: Any, regularizers: Sequence[Regularizer] = (), *, training: bool = False) -> Any:
        if not _holds_texts(rows):
            if needy := [regularizer.name for regularizer in regularizers if regularizer.needs_text]:
                raise FlatlingoError(
                    f"{needy[0]} draws new segmentations and needs texts, but the training data are {_kind(rows)}; "
                    "give rows with text_a, for pairs text_b, and label"
                )
            return rows
        if self.processing_class is None:
            raise FlatlingoError("rows of texts need a tokenizer; give the trainer processing_class=tokenizer")
        check_length(self.model, self.processing_class, self.max_length, f"max_length {self.max_length}")
        order = class_order(self.model.config, rows)
        rows = [dict(row) for row in rows]
        check_rows(rows, self.model.config, needs_labels=training)
        return EncodedRows(
            with_classes_of_model(rows, "label", order),
            self.processing_class,
            max_length=self.max_length,
            regularizers=regularizers,
            seed=self.args.seed,
        )

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        given = self.data_collator
        if isinstance(dataset, EncodedRows):  # others may be tokenised already
            self.data_collator = PairCollator(self.processing_class, padding_id(self.model, self.processing_class))
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.data_collator = given

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        if isinstance(data_collator, PairCollator):
            return data_collator  # encoded rows have no unused columns: the rest is for the regularisers
        return super()._get_collator_with_removed_columns(data_collator, description)

    @property
    def _is_spread(self) -> bool:
        """Whether each weight is spread over processes."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _check_settings(self) -> None:
        if self.args.n_gpu > 1:
            raise FlatlingoError(
                f"one process sees {self.args.n_gpu} GPUs, over which transformers would spread each batch "
                "(DataParallel): start one process per GPU (accelerate launch), or show it one (CUDA_VISIBLE_DEVICES=0)"
            )
        if not 0 <= self.args.label_smoothing_factor <= 1:
            raise FlatlingoError(
                "label smoothing is the share of a label that is spread over all classes: give a number from 0 to 1, "
                f"got {self.args.label_smoothing_factor}"
            )
        if self.args.label_smoothing_factor:
            check_softmax(self.model, "label smoothing")
        check_trainable(self.model)
        self._check_recomputation()
        if len(traces := [one.name for one in self.regularizers if isinstance(one, TracePenalty)]) > 1:
            raise FlatlingoError(f"{traces[0]} and {traces[1]} both record the clean pass, which one term can; use one")
        for regularizer in self.regularizers:
            if regularizer.needs_pass_alone and (sharing := [r.name for r in self.regularizers if r.shares_pass]):
                raise FlatlingoError(
                    f"{regularizer.name} needs a clean pass of the clean rows alone, and {sharing[0]} sends its view "
                    "through it; leave out its shared_pass"
                )
            if regularizer.uses_labels and self.compute_loss_func is not None:
                raise FlatlingoError(
                    f"{regularizer.name} trains on the cross entropy of the labels and cannot know compute_loss_func; "
                    "leave compute_loss_func out"
                )
        for regularizer in self.regularizers:
            if regularizer.takes_gradients and (self.args.fp16 or self.args.torch_compile or self._is_spread):
                raise FlatlingoError(
                    f"{regularizer.name} is made of gradients: fp16 makes small ones 0, torch_compile cannot "
                    "differentiate them, DeepSpeed and FSDP spread them; use bf16 or float32 without these"
                )
        if self.sam and (self.args.fp16 or self._is_spread):
            raise FlatlingoError("SAM does not work with fp16, DeepSpeed or FSDP; use bf16 or float32 without them")

    def _check_recomputation(self) -> None:
        if not (self.args.activation_checkpointing or getattr(self.model, "is_activation_checkpointing", False)):
            return
        for regularizer in self.regularizers:
            if not regularizer.recomputable:
                raise FlatlingoError(
                    f"{regularizer.name} needs its passes to be run once only, and activation (gradient) checkpointing "
                    "runs them again in the backward pass; switch it off"
                )

    def _check_own_loss(self, loss: Tensor, outputs: Any, inputs: dict[str, Tensor]) -> None:
        """Compare the model's loss with the one that terms with labels of their own follow, in the first 50 steps.

        Class weights do not show in a batch of one class, and hardly with a fresh head, for which all labels are about
        equally likely: so in many steps, and to rounding. Read are the first and the last of them (`_read_own_loss`).
        """
        uses_labels = any(regularizer.uses_labels for regularizer in self.regularizers)
        if not uses_labels or "labels" not in inputs or self._losses_seen >= READ_EVERY:
            return
        loss, logits = loss.detach(), outputs.logits.detach()
        plain = F.cross_entropy(logits.float(), inputs["labels"], label_smoothing=self.args.label_smoothing_factor)
        full = (torch.float32, torch.float64)
        rounding = 1e-5 if loss.dtype in full and logits.dtype in full else 1e-2
        allowed = rounding * (plain.abs() + 1e-2) + 1e-6 * logits.abs().max()  # a compiled loss adds up otherwise
        gap = ((loss - plain).abs() - allowed).clamp_min(0) / (plain.abs() + 1e-2)
        self._loss_gap = torch.fmax(self._loss_gap.to(gap), gap)
        self._losses_seen += 1
        if self._losses_seen in (1, READ_EVERY):
            self._read_own_loss()

    def _read_own_loss(self) -> None:
        """Refuse a model whose loss is another one than the cross entropy of the labels."""
        if (gap := float(self._loss_gap)) > 0:
            name = next(regularizer.name for regularizer in self.regularizers if regularizer.uses_labels)
            raise FlatlingoError(
                f"{name} trains on the cross entropy of the labels, from which the model's own loss is {gap:.2g} of it "
                "away: it is another one (class weights?), which the term cannot follow; leave the term out"
            )

    @contextmanager
    def _forward_given_back(self) -> Iterator[None]:
        """Undo what accelerate does to a model under bf16 or fp16: a `forward` under autocast, for good."""
        names = ("forward", "_original_forward", "_is_accelerate_prepared")
        first = self.model
        own = {name: vars(first)[name] for name in names if name in vars(first)}
        try:
            yield
        finally:
            model = extract_model_from_parallel(self.model)
            before = own if model is first else {}  # another: from model_init
            wrapped = "_original_forward" in vars(model) and "_original_forward" not in before
            for name in names:
                vars(model).pop(name, None)
            vars(model).update(before)
            if wrapped:
                self.accelerator.free_memory()  # else it would take the model for prepared in what follows

    @contextmanager
    def _recording_nothing(self) -> Iterator[None]:
        self._ascended = True
        try:
            yield
        finally:
            self._ascended = False

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._read_own_loss()
        self._record.read()  # nobody shall go on from weights that are no numbers
        super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        states = {
            f"{regularizer.name}/{key}": value
            for regularizer in self.regularizers
            for key, value in regularizer.state_dict().items()
        }
        if states:
            path = Path(output_dir, self._states_file)
            with replacing(path) as temporary:
                save_file(states, temporary)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not any(regularizer.state_dict() for regularizer in self.regularizers):
            return
        path = Path(checkpoint, self._states_file)
        states = load_file(path) if path.exists() else {}
        for regularizer in self.regularizers:
            own = f"{regularizer.name}/"
            state = {key.removeprefix(own): value for key, value in states.items() if key.startswith(own)}
            if state.keys() != regularizer.state_dict().keys():
                warnings.warn(
                    f"{checkpoint} holds no random generator of {regularizer.name}: it draws as from its start, so the "
                    "resumed run differs from one never stopped",
                    stacklevel=2,
                )
            else:
                regularizer.load_state_dict(state)

    @property
    def _states_file(self) -> str:
        return f"regularizers_{self.args.process_index}.safetensors"


class _BeginCallback(TrainerCallback):
    """Tells the trainer that its loop begins; after running out of memory, once more."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin()


class _EpochCallback(TrainerCallback):
    """Tells the training rows which epoch begins."""

    def __init__(self, rows: EncodedRows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.set_epoch(int(state.epoch))


def _kind(rows: Any) -> str:
    """What a data set is that does not hold rows of texts."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        return "iterable, of which no row can be looked up"
    first = rows[0] if rows is not None and len(rows) else {}
    return "tokenised already" if "input_ids" in first else f"rows of {', '.join(sorted(first)) or 'nothing'}"


def _holds_texts(rows: Any) -> bool:
    """Whether a data set holds rows of texts rather than token ids."""
    check_dataset(rows)
    if rows is None or isinstance(rows, str | EncodedRows | torch.utils.data.IterableDataset) or len(rows) == 0:
        return False
    return isinstance(rows[0], Mapping) and "text_a" in rows[0]


def _check_terms(regularizers: Any, sam: Any) -> None:
    if not isinstance(regularizers, Sequence):
        raise FlatlingoError(f"regularizers must be a list, as in [RDrop()], got {type(regularizers).__name__}")
    if odd := [one for one in regularizers if not isinstance(one, Regularizer)]:
        raise FlatlingoError(f"{odd[0]!r} is no regulariser; give objects such as RDrop()")
    if sam is not None and not isinstance(sam, SAM):
        raise FlatlingoError(f"sam must be a SAM, as in SAM(rho=0.05), got {sam!r}")


def _check_names(regularizers: Sequence[Regularizer]) -> None:
    names = [regularizer.name for regularizer in regularizers]
    for name in names:
        if names.count(name) > 1:
            raise FlatlingoError(f"two regularizers are named {name!r}; give each its own `name`")
        if "/" in name or name == "task":
            raise FlatlingoError(f"a regularizer cannot be named {name!r}; choose a name without '/'")
