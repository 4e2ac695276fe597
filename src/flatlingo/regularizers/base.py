"""What a regulariser is: a weighted scalar computed from the model, the batch and the outputs of the clean pass."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError


class Resumable:
    """Something with random generators of its own, whose states a checkpoint keeps."""

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept for a resumed run to go on as if never stopped: the state of each `torch.Generator`."""
        generators = {name: value for name, value in vars(self).items() if isinstance(value, torch.Generator)}
        return {name: generator.get_state() for name, generator in generators.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state that `state_dict` gave, after `start`."""
        for name, value in state.items():
            getattr(self, name).set_state(value)


class Regularizer(Resumable):
    """A term added to the training loss of a sequence classifier.

    A subclass gives the term in `__call__` and, where needed, the other hooks. They are called in this order:

    1. `start`, when the trainer is built and again when training begins, with the model that is then trained;
    2. `training_context`, around all of training;
    3. `features`, for every training row and epoch, while batches are made;
    4. `forward_context` and `shared_context`, around the clean forward pass of every step;
    5. `__call__`, after it. The trainer adds the terms up; with gradient accumulation, the mean over micro-batches.

    Checkpoints keep `state_dict`. What `start` remembers of the model (the anchors of `L2SP`) they do not: resume with
    the model that training began with, as a script run again does.

    A weight of zero is plain training, bit for bit: the trainer then calls none of them.

    Args:
        weight: factor λ of the term, at least 0.

    Raises:
        FlatlingoError: if the weight is negative or not finite.

    How to write one's own: see `flatlingo.regularizers`.

    >>> Regularizer(weight=-1)
    Traceback (most recent call last):
    flatlingo.errors.FlatlingoError: the weight of regularizer must be a finite number of at least 0, got -1
    """

    name: str = "regularizer"
    """Short name; a trainer logs the term as `loss/<name>` and keeps names apart."""

    recomputable: bool = True
    """Whether its passes may be run again in the backward pass, as activation checkpointing does."""

    takes_gradients: bool = False
    """Whether the term is made of gradients of the weights: they must lie whole in one place, and in a range of numbers
    in which small ones do not become 0."""

    uses_labels: bool = False
    """Whether the term holds the cross entropy of the labels, which must then be that of the task loss."""

    needs_pass_alone: bool = False
    """Whether the clean pass must hold the clean rows only: no term may then send rows along (`shared_context`)."""

    label_smoothing: float = 0.0
    """The label smoothing of the task loss, set by the trainer."""

    trainer: int | None = None
    """Whose it is: the `id` of the last trainer that was built with it, set by that."""

    def __init__(self, weight: float):
        if not (math.isfinite(weight) and weight >= 0):
            raise FlatlingoError(f"the weight of {self.name} must be a finite number of at least 0, got {weight}")
        self.weight = weight

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Prepare for training `model` from its present weights: check it, remember it, seed one's own generators."""

    def training_context(self, model: nn.Module) -> AbstractContextManager:
        """Context in which all of training runs, for a method that changes the model as long as it is trained."""
        return nullcontext()

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode what the term needs of a row besides its clean encoding, for example a perturbed view of its texts.

        Args:
            row: `row_id`, `text_a`, `text_b`, `label`.
            seed: seed of the run.
            epoch: epoch of training, from 0.
            max_length: largest number of tokens.

        Returns:
            Columns such as `input_ids`, padded batch by batch and given back by `columns`. All randomness must come
            from the arguments (for example `random.Random(f"{seed}/{epoch}/{row['row_id']}")`), never from a global
            generator: then the draw does not depend on batches, workers or the number of processes.
        """
        return {}

    def forward_context(self) -> AbstractContextManager:
        """Context of the clean forward pass, for a term that must see it or change its kernels."""
        return nullcontext()

    def shared_context(self, model: nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager:
        """Context of the clean forward pass for a term that sends rows of its own through it (see `joint`).

        Args:
            model: as for `__call__`.
            batch: as for `__call__`.
        """
        return nullcontext()

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the term.

        Args:
            model: the classifier, in train mode.
            batch: the collated batch: the clean columns, `labels`, and the columns of all regularisers.
            outputs: what the model returned for the clean columns; `outputs.logits` has shape (batch, classes).

        Returns:
            The scalar to be added to the loss, already weighted, and values to log as `<name>/<key>`.
        """
        raise NotImplementedError

    def repeat(self, passes: int) -> None:
        """The last so many passes come once more, at other weights (SAM): for a term that counts them."""

    @property
    def shares_pass(self) -> bool:
        """Whether the term sends rows of its own through the clean pass."""
        return False

    @property
    def needs_text(self) -> bool:
        """Whether `features` asks for rows with texts, so that a tokenised data set will not do."""
        return type(self).features is not Regularizer.features

    def columns(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of a batch that this regulariser's `features` made."""
        own = f"{self.name}/"
        return {column.removeprefix(own): values for column, values in batch.items() if column.startswith(own)}


def logits_of(outputs: Any) -> Tensor:
    """Logits of shape (batch, classes), in float32 at least."""
    return outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))


def bare(model: nn.Module) -> nn.Module:
    """The Hugging Face model itself, without what accelerate (several processes) or peft (adapters) wrap around it."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def encoder_of(model: nn.Module) -> nn.Module | None:
    """What lies below the head, None if the model does not say."""
    model = bare(model)
    encoder = getattr(model, "base_model", model)
    return None if encoder is model else encoder


def check_softmax(model: nn.Module, what: str) -> None:
    """Refuse a model whose logits are not those of a softmax over two labels or more.

    Raises:
        FlatlingoError: naming `what`.
    """
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if getattr(config, "num_labels", 2) < 2 or problem in ("multi_label_classification", "regression"):
        kind = "several labels at once" if problem == "multi_label_classification" else "a number"
        raise FlatlingoError(
            f"{what} compares distributions over labels, and the model predicts {kind}; it gives no such distribution"
        )


def check_labels(logits: Tensor, labels: Tensor | None, what: str) -> None:
    """Refuse labels, or logits, of anything but one class per row: transformers would then take another loss.

    Raises:
        FlatlingoError: naming `what`.
    """
    if labels is not None and (labels.is_floating_point() or labels.ndim != 1):
        raise FlatlingoError(
            f"{what} needs one class per row, and the labels are of shape {tuple(labels.shape)} and type "
            f"{labels.dtype}, for several labels at once or for a number; give integer labels, or leave the term out"
        )
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise FlatlingoError(f"{what} needs logits of shape (rows, two classes or more), got {tuple(logits.shape)}")


def check_precision(parameters: Iterable[Tensor], what: str) -> None:
    """Refuse weights in half precision, in whose rounding small moves are lost.

    Raises:
        FlatlingoError: naming `what`.
    """
    for parameter in parameters:
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise FlatlingoError(
                f"{what} is lost in the rounding of {str(parameter.dtype).removeprefix('torch.')} weights; load the "
                "model in float32 (training may still run under bf16 autocast)"
            )


def is_seen(condition: Tensor) -> bool:
    """Whether a condition holds, on a device that knows at once; False on a GPU, which would have to be waited for.

    For errors told early. What a GPU does not say here must still make the loss NaN, which a trainer sees.
    """
    return condition.device.type == "cpu" and bool(condition)


def squared_norm(x: Tensor) -> Tensor:
    """∑ x², a scalar; on the way back one product where autograd takes three, which counts for x as large as a model.

    Example:
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> torch.autograd.grad(squared_norm(x), x)
        (tensor([6., 8.]),)
    """
    return _SquaredNorm.apply(x)


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (2 * factor) * x
